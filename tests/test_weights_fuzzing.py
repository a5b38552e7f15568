"""Weight files with random damage are refused in one line, or read as they were."""

import copy

import pytest
import torch
from fuzzing import ODD_VALUES, cases, change_bytes, change_value
from weight_files import (
    TINY_WIDTH,
    check_message,
    safetensors_bytes,
    saved,
    tiny_backbone,
    tiny_state,
)

from datasets.transforms import prepare
from models.pretrained import fill_backbone, load_pretrained
from models.pretrained_formats import KINETICS
from utils.checkpoint import save_checkpoint
from utils.errors import UserError

# Kind -> whether the file has checksums, so that no change of its values can go unnoticed.
KINDS = {"zip": True, "checkpoint": True, "legacy": False, "safetensors": False}


@pytest.fixture(scope="module")
def state():
    return tiny_state()


@pytest.fixture(scope="module")
def files(state, tmp_path_factory):
    """A function from one of KINDS to the bytes of a valid file."""

    def build(kind):
        if kind == "safetensors":
            return safetensors_bytes(state)
        if kind != "checkpoint":
            content = {"state_dict": state, "epoch": 200, "arch": "resnet-18"}
            return saved(content, _use_new_zipfile_serialization=kind == "zip")
        path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
        save_checkpoint(path, checkpoint_content(state))
        return path.read_bytes()

    return build


def checkpoint_content(state):
    return {
        "network": {"backbone": "resnet18", "bits": 8, "width": TINY_WIDTH, "shortcut": "B"},
        "preprocessing": {
            **{"clip_frames": 16, "frame_size": [128, 171], "size": 112, "crop": 0.875},
            **KINETICS,
        },
        "pretrained": None,
        "classes": ["a", "b"],
        "settings": {"frames": "frames", "splits": "splits", "seed": 0},
        "epoch": 1,
        "val_map": 0.5,
        "model": {
            **{f"backbone.{key}": value for key, value in state.items() if "fc." not in key},
            "hash.weight": torch.ones(8, 10),
            "hash.bias": torch.ones(8),
        },
    }


def outcome(path, backbone):
    """What is read from a file: (settings, weights); None where it is refused in one line."""
    for tensor in backbone.state_dict().values():
        tensor.fill_(7)
    try:
        pretrained = load_pretrained(path)
        fill_backbone(backbone, pretrained)
    except UserError as error:
        check_message(str(error), path)
        return None
    settings = pretrained.backbone, pretrained.shortcut, pretrained.normalisation
    return settings, {key: value.clone() for key, value in backbone.state_dict().items()}


def is_same(first, second):
    weights, others = first[1], second[1]
    return first[0] == second[0] and all(torch.equal(weights[key], others[key]) for key in weights)


@pytest.mark.parametrize("count", [20, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_changed_bytes_are_refused_or_change_nothing(kind, count, files, tmp_path):
    data, path, backbone = files(kind), tmp_path / "weights.pth", tiny_backbone()
    path.write_bytes(data)
    expected, refused = outcome(path, backbone), 0
    for rng in cases(18, count):
        path.write_bytes(change_bytes(data, rng))
        found = outcome(path, backbone)
        refused += found is None
        if KINDS[kind] and found is not None:
            assert is_same(found, expected)
    assert refused > count / 4  # not vacuous


def drop(state, key, rng):
    del state[key]


def rename(state, key, rng):
    state[f"{key}_"] = state.pop(key)


def repeat(state, key, rng):
    state[f"module.{key}"] = state[key] + 1


def number_key(state, key, rng):
    state[int(rng.integers(9))] = state[key]


def odd_value(state, key, rng):
    state[key] = copy.deepcopy(ODD_VALUES[rng.integers(len(ODD_VALUES))])


def transpose(state, key, rng):
    state[key] = state[key][None]


def nan(state, key, rng):
    state[key] = torch.full(state[key].shape, (torch.nan, torch.inf)[rng.integers(2)])


def bomb(state, key, rng):
    state[key] = torch.zeros(1).expand(10**12, *state[key].shape)


def other_type(state, key, rng):
    types = torch.int16, torch.complex64, torch.bool, torch.uint8, torch.float8_e4m3fn
    state[key] = state[key].to(types[rng.integers(len(types))])


def other_layout(state, key, rng):
    to_meta, to_sparse = (lambda x: x.to("meta")), torch.Tensor.to_sparse
    state[key] = (to_meta, to_sparse)[rng.integers(2)](state[key])


CHANGES = (
    *(drop, rename, repeat, number_key, odd_value),
    *(transpose, nan, bomb, other_type, other_layout),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [20, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["zip", "checkpoint"])
def test_changed_tensors_are_refused(kind, count, state, tmp_path):
    path, backbone = tmp_path / "weights.pth", tiny_backbone()
    is_checkpoint = kind == "checkpoint"
    for rng in cases(19, count):
        content = checkpoint_content(state) if is_checkpoint else {"state_dict": {**state}}
        tensors = content["model" if is_checkpoint else "state_dict"]
        keys = [key for key in tensors if key.startswith(("backbone.", "layer", "conv", "bn"))]
        keys = [key for key in keys if "num_batches_tracked" not in key]
        change = CHANGES[rng.integers(len(CHANGES))]
        change(tensors, keys[rng.integers(len(keys))], rng)
        if is_checkpoint:
            save_checkpoint(path, content)
        else:
            torch.save(content, path)
        assert outcome(path, backbone) is None, change


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_changed_settings_of_a_checkpoint_are_refused_or_valid(count, state, tmp_path):
    path, backbone = tmp_path / "best.pt", tiny_backbone()
    content = checkpoint_content(state)
    for rng in cases(20, count):
        key = ("network", "preprocessing")[rng.integers(2)]
        changed, _, _ = change_value(content[key], rng)
        save_checkpoint(path, {**content, key: changed})
        found = outcome(path, backbone)
        if found is not None:
            _, shortcut, normalisation = found[0]
            assert shortcut in ("A", "B", None)
            clips = torch.zeros(1, 1, 4, 4, 3, dtype=torch.uint8)
            prepare(clips, {"size": 4, "crop": 1.0, **normalisation})
