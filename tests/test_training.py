"""What a step of training does, in this process or by train.py: precision, statistics, log."""

import shutil
import signal

import pytest
import torch
from helpers import read_log, same_weights, train_command, weights
from torch import nn

import train
from configs.flags import parse_train_flags
from datasets import transforms
from models import build_model
from retrieval.encode import build_encoder
from utils.device import mixed_precision, set_threads
from utils.train_state import find_floats

# ==== the network ====


def test_frozen_batch_norm_stays_frozen_when_it_is_synchronised():
    model = build_model("resnet18", 8, width=0.0625)
    count = sum(isinstance(m, nn.BatchNorm3d) for m in model.modules())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.freeze(batch_norm=True)
    model.train()
    layers = [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert count == len(layers) == 20 and not any(layer.training for layer in layers)


def test_emulated_bfloat16_is_not_used(monkeypatch):
    """V100, T4 and RTX 20 have none in hardware, yet PyTorch says that it is supported."""

    def is_supported(including_emulation=True):
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    gpu = torch.device("cuda")
    assert mixed_precision(gpu, True) == torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert mixed_precision(gpu, True) == torch.bfloat16
    assert mixed_precision(gpu, False) is None


def test_the_encoder_gives_the_codes_of_evaluation_without_gradients():
    model = build_model("resnet18", 8, width=0.0625)
    clips = torch.randint(0, 256, (3, 4, 20, 20, 3), dtype=torch.uint8)

    def transform(clips):
        return clips.permute(0, 4, 1, 2, 3).float() / 255

    with torch.no_grad():
        expected = model.eval()(transform(clips))
    model.train()
    statistics = model.backbone.bn1.running_mean.clone()
    encode = build_encoder(model, transform, torch.device("cpu"))
    codes = encode(clips)
    assert codes.is_inference() and not model.training
    torch.testing.assert_close(codes.clone(), expected, atol=1e-5, rtol=0)
    assert torch.equal(model.backbone.bn1.running_mean, statistics)


def test_normalisation_copies_nothing_to_the_device_twice(monkeypatch):
    """Each copy of a mean waits for a GPU; a second batch finds it there."""
    clips = torch.zeros(2, 3, 8, 8, 3, dtype=torch.uint8)
    preprocessing = {"size": 8, "crop": 1.0, "channels": "RGB", "range": 1.0}
    preprocessing |= {"mean": [0.1, 0.2, 0.35], "std": [0.5, 0.6, 0.7]}
    first = transforms.prepare(clips, preprocessing)

    def refuse(*_, **__):
        raise AssertionError("a tensor was made from Python numbers")

    monkeypatch.setattr(torch, "tensor", refuse)
    assert torch.equal(transforms.prepare(clips, preprocessing), first)


# ==== train.py ====


def test_each_learning_rate_is_logged(demo, tmp_path, run_script):
    run_script(*train_command(demo, tmp_path / "run", "--backbone-lr-factor", 0.1, "--epochs", 2))
    for record in read_log(tmp_path / "run"):
        backbone, head = (record[f"train/learning_rate_{name}"] for name in ("backbone", "hash"))
        assert backbone == pytest.approx(0.1 * head) and (head > 0 or record["epoch"] == 2)


def test_validation_leaves_the_statistics_of_batch_normalisation_alone(
    demo, trained, tmp_path, run_script
):
    """The run of `trained` validates after epochs 2 and 3."""
    run_script(*train_command(demo, tmp_path / "once", "--eval-every", 3))
    first, second = weights(trained / "last.pt"), weights(tmp_path / "once" / "last.pt")
    assert same_weights(first, second), "running means are among them"


@pytest.mark.parametrize("rate", [1e4, 1e25, 1e37])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_no_checkpoint_holds_infinite_or_nan_weights(rate, optimizer, demo, tmp_path, start_script):
    flags = "--clip-gradient", 0, "--warmup-epochs", 0, "--save-steps", 1, "--epochs", 2
    command = train_command(demo, tmp_path / "run", *flags, "--lr", rate, "--optimizer", optimizer)
    process = start_script(*command)
    status = process.wait()
    assert status in (0, 1) and "Traceback" not in process.stderr  # tanh bears some rates
    if status:
        was_saved = (tmp_path / "run" / "last.pt").exists()
        message = "was saved before that" if was_saved else "no checkpoint was saved"
        assert message in process.stderr, process.stderr
    for path in (tmp_path / "run").glob("*.pt"):
        content = torch.load(path, weights_only=True)
        state = content.get("training", content["model"])
        assert all(tensor.isfinite().all() for tensor in find_floats(state)), path.name


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(demo, tmp_path, run_script):
    flags = "--save-steps", 1, "--optimizer", "sgd", "--clip-gradient", 0, "--warmup-epochs", 0
    command = train_command(demo, tmp_path / "run", *flags, "--lr", 1e30)
    error = run_script(*command, status=1).stderr
    assert "the loss became nan" in error and "Lower --lr" in error and "Traceback" not in error
    assert all(w.isfinite().all() for w in weights(tmp_path / "run" / "last.pt").values())
    run_script(*train_command(demo, tmp_path / "run", "--restart", "--epochs", 1))


# ==== what a CPU can show about GPUs ====


@pytest.fixture
def train_here(demo, tmp_path, monkeypatch):
    """A function that trains in this process, with `precision` instead of that of the device."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(name, *flags, precision=None):
        monkeypatch.setattr(train, "mixed_precision", lambda *_: precision)
        monkeypatch.setattr(train, "PICTURES", 1)
        command = train_command(demo, tmp_path / name, "--workers", 0, *flags)
        train.main(parse_train_flags("", [str(part) for part in command[1:]]))
        last = torch.load(tmp_path / name / "last.pt", weights_only=True)
        return read_log(tmp_path / name), last

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_training_under_bfloat16_follows_float32(trained, train_here):
    with torch.backends.mkldnn.flags(enabled=False):  # whose backward pass crashes on some CPUs
        half, checkpoint = train_here("bfloat16", precision=torch.bfloat16)
    assert all(tensor.dtype == torch.float32 for tensor in find_floats(checkpoint["model"]))
    losses = [records[0]["train/loss"] for records in (read_log(trained), half)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_gradient_scaler_changes_nothing_but_the_rounding(trained, train_here, monkeypatch):
    """float16's path: scaled, unscaled, clipped, stepped and resumed."""
    build = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda kind, enabled: build(kind, init_scale=1024.0)
    )
    _, checkpoint = train_here("scaled")
    assert checkpoint["training"]["scaler"]["scale"] == 1024.0
    for name, tensor in weights(trained / "last.pt").items():
        torch.testing.assert_close(checkpoint["model"][name], tensor, rtol=1e-4, atol=1e-6)


def test_dropout_and_augmentation_draw_from_two_streams(train_here, monkeypatch):
    seeds = {"dropout": [], "augmentation": []}
    seed_all, generator = torch.manual_seed, torch.Generator

    class Recorder(generator):
        def manual_seed(self, seed):
            seeds["augmentation"].append(seed)
            return super().manual_seed(seed)

    monkeypatch.setattr("retrieval.measure.confidence_bands", lambda _: {})  # at validation
    monkeypatch.setattr(torch, "Generator", Recorder)
    monkeypatch.setattr(
        torch, "manual_seed", lambda seed: seeds["dropout"].append(seed) or seed_all(seed)
    )
    train_here("run", "--epochs", 1)
    steps = seeds["augmentation"]
    assert len(steps) == 3 and len(set(steps)) == 3
    of_weights, of_loss, *of_steps = seeds["dropout"]
    assert of_weights == of_loss == 0 and len(set(of_steps)) == 3 and not set(steps) & set(of_steps)


@pytest.mark.slow
def test_a_compiled_network_trains_as_the_plain_one(demo, tmp_path, run_script):
    if not shutil.which("g++") and not shutil.which("clang++"):
        pytest.skip("--compile needs a C++ compiler on CPUs")
    run_script(*train_command(demo, tmp_path / "plain", "--epochs", 1))
    run_script(*train_command(demo, tmp_path / "compiled", "--epochs", 1, "--compile"))
    for name, tensor in weights(tmp_path / "plain" / "last.pt").items():
        other = weights(tmp_path / "compiled" / "last.pt")[name]
        torch.testing.assert_close(other, tensor, rtol=1e-3, atol=1e-4)


def test_the_number_of_threads_is_set_or_kept():
    before = torch.get_num_threads()
    try:
        set_threads(3)
        assert torch.get_num_threads() == 3
        set_threads(None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
