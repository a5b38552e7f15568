"""Pretrained files of every format: features equal those of an independent forward pass."""

import hashlib

import pytest
import torch
from helpers import checkpoint_content, train_command
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.video import r3d_18
from weight_files import (
    build_tiny_models,
    c3d_features,
    file_layout,
    hara_features,
    published_input,
    random_state,
    tiny_state,
)

import models
from datasets.transforms import prepare
from models import (
    BACKBONES,
    NORMALISATIONS,
    build_initial_model,
    build_model,
    describe_normalisation,
)
from models.pretrained import load_pretrained
from utils.checkpoint import save_checkpoint

SETTINGS = {"bits": 8, "width": 1.0, "shortcut": None, "dropout": 0.0}

FAMILIES = [
    ("Hara 2018", "resnet18", "B"),
    ("Hara 2018", "resnet34", "B"),
    ("Hara 2017", "resnet18", "A"),
    ("Hara 2017", "resnet34", "A"),
    ("C3D pickle", "c3d", None),
    ("C3D sequential", "c3d", None),
    ("C3D mmaction2", "c3d", None),
]


@pytest.mark.parametrize(("family", "backbone", "shortcut"), FAMILIES)
def test_files_of_each_family_are_recognised_renamed_and_normalised(
    family, backbone, shortcut, tmp_path
):
    with torch.device("meta"):
        keys = random_state(backbone, shortcut).keys()
    state = {key: torch.randn(3) for key in keys}  # only keys are read, not shapes
    path = tmp_path / "weights.pth"
    torch.save(file_layout(family, state), path)

    loaded = load_pretrained(path)
    assert (loaded.family, loaded.backbone, loaded.shortcut) == (family, backbone, shortcut)
    assert loaded.source() == {
        "family": family,
        "file": "weights.pth",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    weights = {k: v for k, v in loaded.weights.items() if "num_batches_tracked" not in k}
    classifier = {"fc.weight", "fc.bias"}
    assert weights.keys() == state.keys() - classifier
    assert all(torch.equal(weights[key], state[key]) for key in weights)

    clips = torch.randint(0, 256, (2, 3, 8, 8, 3), dtype=torch.uint8)
    ours = prepare(clips, {"size": 8, "crop": 1.0, **loaded.normalisation})
    torch.testing.assert_close(ours, published_input(family, clips), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "backbone", "shortcut"),
    [
        ("Hara 2018", "resnet18", "B"),
        ("Hara 2017", "resnet34", "A"),
        ("C3D pickle", "c3d", None),
    ],
)
def test_features_from_pixels_equal_an_independent_forward_pass(
    family, backbone, shortcut, tmp_path
):
    torch.manual_seed(0)
    state = random_state(backbone, shortcut)
    path = tmp_path / "weights.pth"
    torch.save(file_layout(family, state), path)
    settings = {**SETTINGS, "backbone": backbone}
    model, used, normalisation, _ = build_initial_model(settings, path)
    assert used["shortcut"] == (shortcut or "B")

    side = 112 if backbone == "c3d" else 32
    clips = torch.randint(0, 256, (1, 16, side, side, 3), dtype=torch.uint8)
    preprocessing = {"size": side, "crop": 1.0, **normalisation}
    with torch.no_grad():
        ours = model.eval().backbone(prepare(clips, preprocessing))
        x = published_input(family, clips)
        is_c3d = backbone == "c3d"
        theirs = c3d_features(state, x) if is_c3d else hara_features(state, x, int(backbone[-2:]))
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


def test_features_equal_those_of_torchvisions_network(tmp_path):
    torch.manual_seed(0)
    theirs = r3d_18().eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "r3d_18.pth")
    settings = {**SETTINGS, "backbone": "r3d18"}
    model, _, normalisation, source = build_initial_model(settings, tmp_path / "r3d_18.pth")
    assert source["family"] == "torchvision R3D"
    assert normalisation == {
        "mean": [0.43216, 0.394666, 0.37645],
        "std": [0.22803, 0.22145, 0.216989],
        "channels": "RGB",
        "range": 1.0,
    }
    theirs.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 8, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().backbone(x), theirs(x), rtol=0, atol=1e-5)


# ==== refusals ====


@pytest.fixture
def tiny_models(monkeypatch):
    """Networks have few channels, until the test ends."""
    monkeypatch.setattr(models, "build_model", models.build_model)
    build_tiny_models()


@pytest.fixture
def hara_files(tmp_path, tiny_models):
    """A valid file of each release, and their weights, of few channels."""
    states = {"Hara 2018": tiny_state("B"), "Hara 2017": tiny_state("A")}
    for family, state in states.items():
        states[family] = {k: v for k, v in state.items() if "num_batches_tracked" not in k}
        torch.save(file_layout(family, states[family]), tmp_path / f"{family}.pth")
    return tmp_path, states


def refusal(path, **settings):
    with pytest.raises(ValueError) as error:
        build_initial_model({**SETTINGS, "backbone": "resnet18", **settings}, path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_flags_that_contradict_the_file_are_refused_with_the_right_flag(hara_files):
    root, _ = hara_files
    path = root / "Hara 2017.pth"
    assert "needs --backbone resnet18, not resnet34" in refusal(path, backbone="resnet34")
    assert "needs --backbone resnet18, not c3d" in refusal(path, backbone="c3d")
    assert "needs --shortcut A, not B" in refusal(path, shortcut="B")
    assert "needs --width 1.0, not 0.5" in refusal(path, width=0.5)
    assert "needs --shortcut B, not A" in refusal(root / "Hara 2018.pth", shortcut="A")
    with pytest.raises(ValueError, match="were trained on rgb; use --input rgb or --pretrained no"):
        build_initial_model({**SETTINGS, "backbone": "resnet18"}, path, clip_input="motion")


def test_weights_of_motion_are_for_motion(tmp_path):
    """A checkpoint of train.py as the start of another training."""
    model = build_model("resnet18", 12, width=0.0625)
    content = checkpoint_content(model.state_dict())
    content["network"]["backbone"] = "resnet18"
    content["preprocessing"]["input"] = "motion"
    save_checkpoint(tmp_path / "best.pt", content)
    settings = {"backbone": "resnet18", "bits": 12, "width": 0.0625, "shortcut": None}
    loaded, *_ = build_initial_model(settings, tmp_path / "best.pt", clip_input="motion")
    assert torch.equal(loaded.backbone.conv1.weight, model.backbone.conv1.weight)
    with pytest.raises(ValueError, match="--input rgb: .* were trained on motion"):
        build_initial_model(settings, tmp_path / "best.pt")


def changed(states, family, change):
    layout = file_layout(family, states[family])
    change(layout["state_dict"])
    return layout


def replace_conv1(state):
    state["conv1.weight"] = torch.ones(64, 3, 3, 7, 7)


def fill(key, value):
    """A function that fills a tensor of a state dict with a number."""
    return convert(key, lambda tensor: torch.full_like(tensor, value))


def convert(key, function):
    """A function that replaces a tensor of a state dict by `function` of it."""
    return lambda state: state.update({key: function(state[key])})


def quantise(tensor):
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def add(key):
    """A function that adds a tensor to a state dict."""
    return lambda state: state.update({key: torch.ones(1)})


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("Hara 2018", lambda s: s.pop("layer3.1.bn2.bias"), "1 missing keys: layer3.1.bn2"),
        ("Hara 2017", lambda s: s.pop("module.conv1.weight"), "1 missing keys: conv1.weight"),
        ("Hara 2018", add("extra.w"), "1 unexpected keys: extra.w"),
        ("Hara 2018", replace_conv1, "1 mismatched keys: conv1.weight (64, 3, 3, 7, 7) instead of"),
        ("Hara 2018", add("layer1.0.conv3.weight"), "bottleneck blocks"),
        ("Hara 2018", add("layer1.2.conv1.weight"), "(3, 2, 2, 2) blocks per stage"),
        ("Hara 2017", add("module.bn1.num_batches_tracked"), "pass --shortcut A if the network"),
        ("Hara 2018", add("module.conv1.weight"), "has both conv1.weight and module.conv1.weight"),
        ("Hara 2018", add(7), "the key 7 is not a text"),
        (
            "Hara 2018",
            fill("bn1.weight", torch.nan),
            "NaN, infinite or negative keys: bn1.weight",
        ),
        ("Hara 2018", fill("bn1.running_var", -1), "NaN, infinite or negative keys: bn1.running"),
        ("Hara 2018", convert("conv1.weight", torch.Tensor.to_sparse), "conv1.weight is a sparse"),
        ("Hara 2018", convert("bn1.bias", torch.Tensor.int), "bn1.bias has the type torch.int32"),
        ("Hara 2018", convert("bn1.bias", lambda t: t.to("meta")), "bn1.bias is a sparse, quant"),
        ("Hara 2018", convert("bn1.bias", quantise), "bn1.bias is a sparse, quantised"),
        ("Hara 2018", convert("bn1.bias", torch.Tensor.cfloat), "bn1.bias has the type torch.comp"),
        ("Hara 2018", convert("fc.bias", lambda t: t.tolist()), "(fc.bias is of type list); save"),
    ],
)
def test_files_with_missing_unexpected_or_mismatched_keys_are_refused(
    hara_files, tmp_path, family, change, message
):
    torch.save(changed(hara_files[1], family, change), tmp_path / "w.pth")
    assert message in refusal(tmp_path / "w.pth")


def test_files_that_mix_two_formats_are_refused(tmp_path, tiny_models):
    r3d = {name: torch.ones(1) for name in ("stem.1.weight", "layer1.0.conv1.0.weight")}
    torch.save(r3d, tmp_path / "r3d.pth")
    assert "unknown weight format" in refusal(tmp_path / "r3d.pth", backbone="r3d18")
    small = {name: torch.ones(1) for name in ("conv1.weight", "fc6.weight", "features.0.weight")}
    torch.save(small, tmp_path / "c3d.pth")
    assert "unknown weight format" in refusal(tmp_path / "c3d.pth", backbone="c3d")
    torch.save({"conv1a.conv.weight": torch.ones(64, 3, 3, 3, 3)}, tmp_path / "mm.pth")
    assert "missing keys: conv1.bias" in refusal(tmp_path / "mm.pth", backbone="c3d")


# ==== flags that say what the keys do not ====


def test_shortcut_a_with_batch_counters_needs_the_flag(hara_files, tmp_path):
    """PyTorch 0.4.1 and later add counters when they save a network of 2017 again."""
    root, states = hara_files
    path = tmp_path / "saved_again.pth"
    torch.save(changed(states, "Hara 2017", add_counters), path)
    assert "pass --shortcut A" in refusal(path)
    settings = {**SETTINGS, "backbone": "resnet18", "shortcut": "A"}
    model, used, normalisation, source = build_initial_model(settings, path)
    expected, _, same, _ = build_initial_model(settings, root / "Hara 2017.pth")
    assert (used["shortcut"], source["family"], normalisation) == ("A", "Hara 2017", same)
    weights = expected.backbone.state_dict()
    for key, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, weights[key]) or "num_batches_tracked" in key


def add_counters(state):
    for key in [key for key in state if key.endswith("running_var")]:
        state[key.replace("running_var", "num_batches_tracked")] = torch.tensor(1)


@pytest.mark.parametrize("pretrained", ["none", "Hara 2018.pth"])
@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_flag_overrides_the_normalisation(hara_files, pretrained, name):
    path = None if pretrained == "none" else hara_files[0] / pretrained
    settings = {**SETTINGS, "backbone": "resnet18"}
    _, _, normalisation, _ = build_initial_model(settings, path, name)
    assert normalisation == NORMALISATIONS[name]
    assert describe_normalisation(normalisation).startswith(f"{name} (")


def test_training_prints_the_normalisation(demo, hara_files, tmp_path, run_script):
    flags = "--width", 1, "--pretrained", hara_files[0] / "Hara 2018.pth", "--epochs", 1
    command = train_command(demo, tmp_path / "run", *flags, "--normalisation", "hara2017")
    printed = run_script(*command, patch=build_tiny_models).stdout
    sha256 = hashlib.sha256((hara_files[0] / "Hara 2018.pth").read_bytes()).hexdigest()
    assert f"backbone from Hara 2018.pth (Hara 2018, SHA-256 {sha256})\n" in printed
    assert "normalisation hara2017 (RGB from 0 to 255, mean 114.775 107.735 99.475, " in printed
    checkpoint = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert checkpoint["preprocessing"]["mean"] == [114.7748, 107.7354, 99.4750]


# ==== fine-tuning and cost ====


def test_frozen_layers_get_no_gradient_and_keep_their_statistics():
    settings = {**SETTINGS, "backbone": "resnet18", "width": 0.125}
    model, *_ = build_initial_model(settings)
    model.freeze("layer2", batch_norm=True)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()(torch.randn(4, 3, 8, 24, 24)).sum().backward()
    with_gradient = {n.split(".")[1] for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"layer3", "layer4", "weight", "bias"}
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    with pytest.raises(ValueError, match="conv1, bn1, maxpool, layer1"):
        model.freeze("layer9")


@pytest.mark.parametrize(
    ("backbone", "billions"),
    [("resnet18", 8.31), ("resnet34", 12.70), ("r3d18", 40.70), ("r3d34", 75.38), ("c3d", 38.55)],
)
def test_multiply_accumulates_of_a_clip_of_16x112x112(backbone, billions):
    with torch.device("meta"):
        model, clip = BACKBONES[backbone](), torch.empty(1, 3, 16, 112, 112)
    with FlopCounterMode(display=False) as counter:
        model(clip)
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, abs=0.01)
