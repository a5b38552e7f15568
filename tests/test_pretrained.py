"""Pretrained files of every format: features equal those of an independent forward pass."""

import hashlib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.video import r3d_18
from weight_files import (
    c3d_features,
    file_layout,
    hara_features,
    hara_state,
    published_input,
    random_state,
)

from datasets.transforms import prepare
from models import BACKBONES, build_initial_model
from models.pretrained import PretrainedError, load_pretrained
from models.pretrained_formats import FORMATS

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

    side = 112 if backbone == "c3d" else 48
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


@pytest.fixture(scope="module")
def hara_files(tmp_path_factory):
    """A valid file of each release, and their weights."""
    root = tmp_path_factory.mktemp("hara")
    states = {"Hara 2018": hara_state(18, "B"), "Hara 2017": hara_state(18, "A")}
    for family, state in states.items():
        torch.save(file_layout(family, state), root / f"{family}.pth")
    return root, states


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


def changed(states, family, change):
    layout = file_layout(family, states[family])
    change(layout["state_dict"])
    return layout


def replace_conv1(state):
    state["conv1.weight"] = torch.ones(64, 3, 3, 7, 7)


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
        ("Hara 2017", add("module.bn1.num_batches_tracked"), "unknown weight format"),
    ],
)
def test_files_with_missing_unexpected_or_mismatched_keys_are_refused(
    hara_files, tmp_path, family, change, message
):
    torch.save(changed(hara_files[1], family, change), tmp_path / "w.pth")
    assert message in refusal(tmp_path / "w.pth")


def test_files_that_mix_two_formats_are_refused(tmp_path):
    r3d = {key: value for key, value in r3d_18().state_dict().items() if key != "stem.0.weight"}
    torch.save(r3d, tmp_path / "r3d.pth")
    refusal(tmp_path / "r3d.pth", backbone="r3d18")
    small = {name: torch.ones(1) for name in ("conv1.weight", "fc6.weight", "features.0.weight")}
    torch.save(small, tmp_path / "c3d.pth")
    assert "unknown weight format" in refusal(tmp_path / "c3d.pth", backbone="c3d")
    torch.save({"conv1a.conv.weight": torch.ones(64, 3, 3, 3, 3)}, tmp_path / "mm.pth")
    assert "missing keys: conv1.bias" in refusal(tmp_path / "mm.pth", backbone="c3d")


class RunsCode:
    def __reduce__(self):
        return print, ("code ran",)


def test_other_files_are_refused(tmp_path, capsys):
    torch.save({"state_dict": RunsCode()}, tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"state_dict": {}}, tmp_path / "empty.pth")
    torch.save({"a": 1}, tmp_path / "numbers.pth")
    assert "could run code" in refusal(tmp_path / "code.pth")
    assert "code ran" not in capsys.readouterr().out
    assert "text.pth" in refusal(tmp_path / "text.pth")
    assert "no state_dict" in refusal(tmp_path / "empty.pth")
    assert "contains more than tensors; save" in refusal(tmp_path / "numbers.pth")
    missing = refusal("resnet18_kinetics")
    assert "file not found; these names can be downloaded: r3d18_kinetics400" in missing
    assert issubclass(PretrainedError, ValueError) and len(FORMATS) == 6


def test_a_name_is_read_from_the_cache_of_torch_hub(tmp_path, monkeypatch):
    """Nothing is downloaded, since a file of torchvision's name is in the cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(r3d_18().state_dict(), tmp_path / "checkpoints" / "r3d_18-b3b3357e.pth")
    weights = load_pretrained("r3d18_kinetics400")
    assert (weights.backbone, weights.file) == ("r3d18", "r3d_18-b3b3357e.pth")


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
