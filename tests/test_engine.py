"""The training engine's promises: what is saved, compared, logged, refused and shared."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from argparse import Namespace

import cv2
import numpy as np
import pytest
import torch
from conftest import EXTRACT, ROOT
from test_chain import epochs_logged, same_weights, train_command, weights
from test_frames import write_frames
from torch import nn

import extract_frames
import make_splits
import search
import test as test_script
import train
from datasets import transforms
from datasets.cache import CachedDataset, build_cache
from datasets.frames import FrameDataset
from datasets.loaders import ClipLoader
from models import build_model
from retrieval.encode import build_encoder
from utils import distributed
from utils.checkpoint import CheckpointError, NotFiniteError, TrainState, find_floats
from utils.device import choose_device, mixed_precision
from utils.errors import UserError, exit_on_user_error, explain

CPU = torch.device("cpu")


def last(run):
    return torch.load(run / "last.pt", weights_only=True)


# ==== flags and errors ====


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (train, ["--conf", "configs/demo.yaml"]),
        (train, ["--config", "configs/demo.yaml", "--epoch", "3"]),
        (train, ["--config", "configs/demo.yaml", "--bit", "16"]),
        (test_script, ["--check", "best.pt"]),
        (extract_frames, ["--videos", "v", "--frames", "f", "--worker", "2"]),
        (make_splits, ["--data", "folder", "--frames", "f", "--output", "o"]),
        (search, ["query", "--index", "i", "--vid", "v"]),
        (search, ["index", "--checkpoint", "c", "--video", "v", "--output", "o"]),
    ],
)
def test_abbreviated_flags_are_refused(script, flags, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script.__name__, *flags])
    with pytest.raises(SystemExit) as stop:
        parser = script.build_parser()
        train.parse_args(parser, flags) if script is train else parser.parse_args(flags)
    assert stop.value.code == 2 and "error" in capsys.readouterr().err


def test_errors_of_the_code_keep_their_traceback_and_those_of_users_are_one_line(tmp_path):
    def leave_with(error):
        with exit_on_user_error("x.py", "--size"):
            raise error

    with pytest.raises(ValueError, match="broadcast"), exit_on_user_error("x.py", "--size"):
        np.zeros(3) + np.zeros(4)
    with pytest.raises(RuntimeError, match="nccl"):
        leave_with(RuntimeError("nccl is not a word that explains anything"))
    with pytest.raises(OSError, match="no file is named"):
        leave_with(OSError("no file is named"))
    with pytest.raises(SystemExit, match="x.py: give another"):
        leave_with(UserError("give another"))
    with pytest.raises(SystemExit, match="x.py: .*nowhere"), exit_on_user_error("x.py", "--size"):
        (tmp_path / "nowhere").read_text()


def test_dead_workers_are_explained_with_the_shared_memory_of_containers():
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error.")
    assert "/dev/shm" in explain(error, "--size") and "--shm-size" in explain(error, "--size")


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--output", ""], 2, "the name is empty"),
        (["--seed", 2**32], 2, "is not from 0 to"),
        (["--device", "meta"], 1, "give cpu, cuda, cuda:1 or mps"),
        (["--device", "xpu"], 1, "give cpu, cuda, cuda:1 or mps"),
        (["--device", "vulkan:0"], 1, "give cpu, cuda, cuda:1 or mps"),
        (["--device", "cuda:x"], 1, "give cpu, cuda, cuda:1 or mps"),
    ],
)
def test_impossible_places_are_refused_in_one_line(
    flags, status, message, demo, tmp_path, run_script
):
    error = run_script(*train_command(demo, tmp_path / "run", *flags), status=status).stderr
    assert message in error.splitlines()[-1] and "Traceback" not in error


def test_one_gpu_for_all_processes_is_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match="puts all 4 processes on one GPU"):
        choose_device("cuda:1")
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("variable", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_tasks_that_do_not_know_of_each_other_are_refused(variable, monkeypatch):
    monkeypatch.setenv(variable, "4")
    with pytest.raises(UserError, match="started 4 tasks .* torchrun --nnodes"):
        distributed.start("cpu")
    monkeypatch.setenv(variable, "1")
    assert distributed.start("cpu") == CPU


# ==== what is saved and logged ====


@pytest.mark.parametrize("rate", [1e4, 1e19, 1e25, 1e37])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_no_checkpoint_holds_infinite_or_nan_weights(rate, optimizer, demo, tmp_path):
    flags = ["--lr", rate, "--optimizer", optimizer, "--clip-gradient", 0, "--warmup-epochs", 0,
             "--save-steps", 1, "--epochs", 2, "--workers", 0]  # fmt: skip
    command = tuple(map(str, train_command(demo, tmp_path / "run", *flags)))
    result = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode in (0, 1) and "Traceback" not in result.stderr  # tanh bears some rates
    if result.returncode:
        kept = (tmp_path / "run" / "last.pt").exists()
        message = "is from before that" if kept else "no checkpoint was written"
        assert message in result.stderr, result.stderr
    for path in (tmp_path / "run").glob("*.pt"):
        content = torch.load(path, weights_only=True)
        state = content.get("training", content["model"])
        assert all(tensor.isfinite().all() for tensor in find_floats(state)), path.name


def make_training(enabled):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    return TrainState(model, optimizer, scheduler, torch.amp.GradScaler("cpu", enabled=enabled))


def test_a_state_with_one_infinite_number_is_not_given_out():
    training = make_training(enabled=False)
    training.model(torch.ones(1, 2)).sum().backward()
    training.optimizer.step()
    assert training.state()["model"]
    momentum = next(iter(training.optimizer.state.values()))["momentum_buffer"]
    momentum[0, 1] = torch.inf
    with pytest.raises(NotFiniteError):
        training.state()


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)])
def test_a_run_resumes_with_and_without_a_gradient_scaler(before, after, tmp_path):
    """bfloat16 and CPUs need none: their empty state must not stop a resume on float16."""
    first = make_training(before)
    torch.save({"format": 1, "settings": {}, "training": first.state()}, tmp_path / "last.pt")
    second = make_training(after)
    assert second.resume([tmp_path / "last.pt"], {}, {}, set()) is None
    assert torch.equal(second.model.weight, first.model.weight)


def test_each_learning_rate_is_logged(demo, tmp_path, run_script):
    run_script(*train_command(demo, tmp_path / "run", "--backbone-lr-factor", 0.1))
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        backbone, head = (record[f"train/learning_rate_{name}"] for name in ("backbone", "hash"))
        assert backbone == pytest.approx(0.1 * head) and (head > 0 or record["epoch"] == 2)


# ==== two runs, and runs that go on ====


def test_a_second_training_on_one_folder_is_refused(demo, tmp_path, run_script):
    from test_signals import start, wait_for_step

    run, flags = tmp_path / "run", ("--epochs", 5000, "--eval-every", 5000)
    command = [str(part) for part in train_command(demo, run, *flags)]
    first = start([sys.executable, *command], tmp_path / "log")
    wait_for_step(run, first, tmp_path / "log")
    error = run_script(*command, "--bits", 16, status=1).stderr
    assert "another run is at work" in error and "Traceback" not in error
    first.terminate()
    assert first.wait(timeout=60) == 1
    assert epochs_logged(run) == list(range(last(run)["epoch"]))
    assert len((run / "environment.jsonl").read_text().splitlines()) == 1


def test_a_run_goes_on_with_another_cache_and_not_with_other_frames(demo, tmp_path, run_script):
    """Also: each start of a run is on record."""
    run, cache = tmp_path / "run", ("--cache-folder", tmp_path / "cache", "--cache-frames", 8)
    run_script(*train_command(demo, tmp_path / "whole", "--epochs", 3))
    stop = ("--epochs", 3, "--save-steps", 1)
    for place in ("ram", "disk", "none"):
        where = (*cache, "--cache", place) if place != "none" else ()
        interrupt_after_one_epoch(train_command(demo, run, *stop, *where), run)
    run_script(*train_command(demo, run, *stop))
    assert same_weights(weights(tmp_path / "whole" / "last.pt"), weights(run / "last.pt"))
    starts = [json.loads(line) for line in (run / "environment.jsonl").read_text().splitlines()]
    assert len(starts) == 4 and all(start["processes"] == 1 for start in starts)

    where = ("--cache", "ram", "--cache-frames", 6, "--cache-folder", tmp_path / "cache")
    error = run_script(*train_command(demo, run, *stop, *where), status=1).stderr
    assert "frames per video 6 instead of 8" in error
    flags = [*EXTRACT[:3], 24, 24, *EXTRACT[5:]]
    run_script("extract_frames.py", "--videos", demo / "videos", "--frames", tmp_path / "frames",
               *flags)  # fmt: skip
    error = run_script(*train_command(demo, run, *stop, "--frames", tmp_path / "frames"),
                       status=1).stderr  # fmt: skip
    assert "frame size [24, 24] instead of [20, 24]" in error and "Traceback" not in error


def interrupt_after_one_epoch(command, run):
    """Run a training in this process and leave it by Ctrl-C at the end of its next epoch."""
    script = (
        "import runpy, sys, os, signal; sys.argv = sys.argv[1:]\n"
        "import utils.run_log as log; whole = log.RunLog.write\n"
        "def write(*rest):\n"
        "    whole(*rest); os.kill(os.getpid(), signal.SIGINT)\n"
        "log.RunLog.write = write; runpy.run_path('train.py', run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, "-c", script, *map(str, command)], cwd=ROOT,
                            capture_output=True, text=True)  # fmt: skip
    assert (run / "last.pt").exists(), result.stderr


def test_another_number_of_processes_is_refused(demo, tmp_path, run_script):
    run_script(*train_command(demo, tmp_path / "run", "--epochs", 1, "--clips-per-class", 2))
    path = tmp_path / "run" / "last.pt"
    content = torch.load(path, weights_only=True)
    assert content["data"]["processes"] == 1
    content["data"]["processes"] = 4
    torch.save(content, path)
    error = run_script(*train_command(demo, tmp_path / "run", "--epochs", 1,
                                      "--clips-per-class", 2), status=1).stderr  # fmt: skip
    assert "processes 1 instead of 4" in error and "Traceback" not in error


# ==== test.py against what was trained ====


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory, run_script):
    run = tmp_path_factory.mktemp("trained") / "run"
    run_script(*train_command(demo, run, "--epochs", 1))
    return run


def lists_of(demo, folder, **changes):
    """The demo's lists with some replaced by others: changes maps one list to another's name."""
    folder.mkdir()
    for name in ("train", "val", "test", "classes"):
        source = changes.get(name, name)
        (folder / f"{name}.txt").write_bytes((demo / "splits" / f"{source}.txt").read_bytes())
    return folder


def test_testing_on_trained_videos_is_refused(demo, trained, tmp_path, run_script):
    lists = lists_of(demo, tmp_path / "lists", train="test", test="train")
    error = run_script("test.py", "--checkpoint", trained / "best.pt", "--splits", lists,
                       "--output", tmp_path / "out", status=1).stderr  # fmt: skip
    assert "was trained on 18 of its 18 videos" in error and "Traceback" not in error
    lists = lists_of(demo, tmp_path / "lists2", test="val")
    warned = run_script("test.py", "--checkpoint", trained / "best.pt", "--splits", lists,
                        "--output", tmp_path / "out").stderr  # fmt: skip
    assert "has validation videos, by which best.pt was chosen" in warned
    silent = run_script("test.py", "--checkpoint", trained / "best.pt", "--output",
                        tmp_path / "out").stderr  # fmt: skip
    assert "warning" not in silent


def test_testing_on_other_frames_is_refused_or_told(demo, trained, tmp_path, run_script):
    def test_on(name, *flags, status):
        run_script("extract_frames.py", "--videos", demo / "videos", "--frames", tmp_path / name,
                   *flags, "--workers", 2)  # fmt: skip
        command = ["test.py", "--checkpoint", trained / "best.pt", "--output", tmp_path / "out"]
        return run_script(*command, "--frames", tmp_path / name, status=status).stderr

    error = test_on("larger", "--num-frames", 8, "--size", 40, 48, status=1)
    assert "trained on [20, 24]; extract with --size 20 24" in error
    error = test_on("fewer", "--num-frames", 3, "--size", 20, 24, status=1)
    assert "3 frames per video, but a clip has 4" in error
    warned = test_on("more", "--num-frames", 16, "--size", 20, 24, status=0)
    assert "warning" in warned and "'num_frames': 16" in warned


# ==== caches ====


@pytest.fixture
def data(tmp_path):
    for number, name in enumerate(("a", "b", "c")):
        write_frames(tmp_path / name, range(number, number + 12))
    return FrameDataset(["a", "b", "c"], [0, 1, 1], tmp_path, clip_frames=5)


@pytest.mark.parametrize("damage", ["empty", "rows", "header", "text"])
def test_a_damaged_cache_is_built_again(damage, data, tmp_path, capsys):
    path = build_cache(data, 12, tmp_path / "cache", 1)
    whole = path.read_bytes()
    damaged = {
        "empty": b"",
        "rows": whole[:-500],
        "header": whole.replace(b"NUMPY", b"PICKL", 1),
        "text": b"x" * len(whole),
    }
    path.write_bytes(damaged[damage])
    assert build_cache(data, 12, tmp_path / "cache", 1) == path
    assert path.read_bytes() == whole and f"{path}: damaged" in capsys.readouterr().out


def test_frames_that_are_overwritten_in_place_give_another_cache(data, tmp_path):
    first = build_cache(data, 12, tmp_path / "cache", 1)
    folder = os.stat(data.root / "b").st_mtime_ns
    grey = cv2.imencode(".jpg", np.full(data.frame_size, 90, np.uint8))[1].tobytes()
    with open(data.root / "b" / "3.jpg", "r+b") as file:
        file.truncate(), file.write(grey)
    assert os.stat(data.root / "b").st_mtime_ns == folder, "the folder itself tells nothing"
    second = build_cache(data, 12, tmp_path / "cache", 1)
    assert second != first and abs(int(np.load(second)[1, 2].mean()) - 90) <= 1


def test_workers_read_a_cache_on_disk_and_get_no_copy_of_it(data, tmp_path):
    path = build_cache(data, 12, tmp_path / "cache", 1)
    disk, ram = (CachedDataset(data, path, place, CPU) for place in ("disk", "ram"))
    assert len(pickle.dumps(disk)) < 2000 < len(pickle.dumps(ram))
    batches = [[(0, 5), (2, 6)], [(1, 7), (0, 8)]]
    loaders = [ClipLoader(place, 2, batch_sampler=batches) for place in (disk, ram)]
    assert [loader.num_workers for loader in loaders] == [2, 0]
    for (clips, labels), (others, same) in zip(*loaders, strict=True):
        assert torch.equal(clips, others) and torch.equal(labels, same)
    again = pickle.loads(pickle.dumps(disk))
    assert torch.equal(again.__getitems__(batches[0])[0], ram.__getitems__(batches[0])[0])


# ==== the network ====


def test_frozen_batch_norm_stays_frozen_when_it_is_synchronised():
    model = build_model("resnet18", 8, width=0.0625)
    count = sum(isinstance(m, nn.BatchNorm3d) for m in model.modules())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.freeze(batch_norm=True)
    model.train()
    layers = [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert count == len(layers) == 20 and not any(layer.training for layer in layers)


def test_emulated_bfloat16_is_not_taken(monkeypatch):
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

    def to_input(clips):
        return clips.permute(0, 4, 1, 2, 3).float() / 255

    with torch.no_grad():
        expected = model.eval()(to_input(clips))
    model.train()
    statistics = model.backbone.bn1.running_mean.clone()
    encode = build_encoder(model, to_input, CPU)
    codes = encode(clips)
    assert codes.is_inference() and not model.training
    torch.testing.assert_close(codes.clone(), expected, atol=1e-5, rtol=0)
    assert torch.equal(model.backbone.bn1.running_mean, statistics)


def test_validation_leaves_the_statistics_of_batch_normalisation_alone(demo, tmp_path, run_script):
    run_script(*train_command(demo, tmp_path / "often", "--eval-every", 1))
    run_script(*train_command(demo, tmp_path / "once", "--eval-every", 3))
    first, second = (weights(tmp_path / name / "last.pt") for name in ("often", "once"))
    assert same_weights(first, second), "running means are among them"


def test_normalisation_copies_nothing_to_the_device_twice(monkeypatch):
    """Each copy of a mean waits for a GPU; a second batch finds it there."""
    clips = torch.zeros(2, 3, 8, 8, 3, dtype=torch.uint8)
    preprocessing = {"size": 8, "crop": 1.0, "channels": "RGB", "range": 1.0,
                     "mean": [0.1, 0.2, 0.35], "std": [0.5, 0.6, 0.7]}  # fmt: skip
    first = transforms.prepare(clips, preprocessing)

    def refuse(*_, **__):
        raise AssertionError("a tensor was made from Python numbers")

    monkeypatch.setattr(torch, "tensor", refuse)
    assert torch.equal(transforms.prepare(clips, preprocessing), first)


# ==== what a CPU can stand in for ====


@pytest.fixture
def train_here(demo, tmp_path, monkeypatch):
    """A function that trains in this process, with `precision` in place of that of the device."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(name, *flags, precision=None):
        monkeypatch.setattr(train, "mixed_precision", lambda *_: precision)
        command = train_command(demo, tmp_path / name, "--workers", 0, *flags)
        args = train.parse_args(train.build_parser(), [str(part) for part in command[1:]])
        train.main(Namespace(**{**vars(args), "margin": args.bits / 8}))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines], last(tmp_path / name)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_training_under_bfloat16_follows_float32(train_here):
    whole, _ = train_here("float32")
    with torch.backends.mkldnn.flags(enabled=False):  # whose backward pass crashes on some CPUs
        half, checkpoint = train_here("bfloat16", precision=torch.bfloat16)
    assert all(tensor.dtype == torch.float32 for tensor in find_floats(checkpoint["model"]))
    losses = [records[0]["train/loss"] for records in (whole, half)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_gradient_scaler_changes_nothing_but_the_rounding(train_here, monkeypatch):
    """float16's path: scaled, unscaled, clipped, stepped and resumed."""
    whole, plain = train_here("plain")
    build = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda kind, enabled: build(kind, init_scale=1024.0)
    )
    scaled, checkpoint = train_here("scaled")
    assert checkpoint["training"]["scaler"]["scale"] == 1024.0
    for name, tensor in plain["model"].items():
        torch.testing.assert_close(checkpoint["model"][name], tensor, rtol=1e-4, atol=1e-6)


def test_dropout_and_augmentation_draw_from_two_streams(train_here, monkeypatch):
    seeds = {"dropout": [], "augmentation": []}
    seed_all, generator = torch.manual_seed, torch.Generator

    class Recorder(generator):
        def manual_seed(self, seed):
            seeds["augmentation"].append(seed)
            return super().manual_seed(seed)

    monkeypatch.setattr(torch, "Generator", Recorder)
    monkeypatch.setattr(
        torch, "manual_seed", lambda seed: seeds["dropout"].append(seed) or seed_all(seed)
    )
    train_here("run", "--epochs", 1)
    steps = seeds["augmentation"]
    assert len(steps) == 3 and len(set(steps)) == 3
    of_weights, *of_steps = seeds["dropout"]
    assert of_weights == 0 and len(set(of_steps)) == 3 and not set(steps) & set(of_steps)


@pytest.mark.slow
def test_a_compiled_network_trains_as_the_plain_one(demo, tmp_path, run_script):
    if not shutil.which("g++") and not shutil.which("clang++"):
        pytest.skip("--compile needs a C++ compiler on CPUs")
    run_script(*train_command(demo, tmp_path / "plain", "--epochs", 1))
    run_script(*train_command(demo, tmp_path / "compiled", "--epochs", 1, "--compile"))
    for name, tensor in weights(tmp_path / "plain" / "last.pt").items():
        other = weights(tmp_path / "compiled" / "last.pt")[name]
        torch.testing.assert_close(other, tensor, rtol=1e-3, atol=1e-4)


def test_a_checkpoint_without_an_optimiser_is_not_resumed(tmp_path):
    torch.save({"format": 1, "settings": {}}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match="holds no optimiser"):
        make_training(False).resume([tmp_path / "best.pt"], {}, {}, set())
