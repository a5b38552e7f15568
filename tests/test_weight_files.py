"""Files that are no weights, or damaged: one line says what they are. Fuzzed at the end."""

import builtins
import copy
import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from fuzzing import ODD_VALUES, cases, change_bytes, change_value

from datasets.transforms import prepare
from models.pretrained import PretrainedError, fill_backbone, load_pretrained
from models.pretrained_formats import KINETICS
from models.resnet3d import ResNet3D
from utils.checkpoint import save_checkpoint
from utils.errors import UserError

NETWORK = {"backbone": "resnet18", "bits": 8, "width": 0.02, "shortcut": "B", "dropout": 0.0}


class RunsCode:
    def __reduce__(self):
        return print, ("code ran",)


def tiny_backbone():
    """`resnet18` with one to ten channels; its keys are those of the format Hara 2018."""
    return ResNet3D(blocks=(2, 2, 2, 2), stem="hara", width=NETWORK["width"])


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return {**tiny_backbone().state_dict(), "fc.weight": torch.randn(5, 10)}


def saved(content, **options):
    """What torch.save writes: bytes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def refusal(path):
    with pytest.raises(PretrainedError) as error:
        load_pretrained(path)
    check_message(str(error.value), path)
    return str(error.value)


def check_message(message, path):
    assert message.isprintable() and len(message) < 500, message
    assert path.name in message


# ==== kinds of files ====


def torchscript():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def archive(kind):
    """A ZIP or tar archive with one text file."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("readme.txt", "no weights")
    else:
        with tarfile.open(fileobj=buffer, mode="w") as file:
            file.addfile(tarfile.TarInfo("readme.txt"))
    return buffer.getvalue()


def npy():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 133\n"
OTHERS = {
    "empty": (lambda: b"", "empty; download it again"),
    "web page": (lambda: b"\n<!DOCTYPE html><html>", "a web page, not weights"),
    "XML": (lambda: b'\xef\xbb\xbf<?xml version="1.0"?><Error/>', "a web page, not weights"),
    "LFS pointer": (lambda: POINTER, "a Git LFS pointer, not weights: run `git lfs pull`"),
    "gzip": (lambda: b"\x1f\x8b\x08\x00rest", "a compressed archive; unpack it"),
    "tar": (lambda: archive("tar"), "a tar archive; unpack it"),
    "ZIP": (lambda: archive("zip"), "a ZIP archive that torch.save did not write"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\nrest", "an HDF5 file"),
    "NumPy": (npy, "damaged, or not a PyTorch file"),
    "text": (lambda: b"no weights", "damaged, or not a PyTorch file"),
    "pickle": (lambda: pickle.dumps({"a": 1}, protocol=4), "damaged, or not a PyTorch file"),
    "TorchScript": (torchscript, "a TorchScript archive; save torch.jit.load(FILE).state_dict()"),
    "code": (lambda: saved({"a": RunsCode()}), "could run code: it needs print; save"),
    "whole model": (
        lambda: saved(torch.nn.Linear(2, 2)),
        "it needs torch.nn.modules.linear.Linear; save only model.state_dict()",
    ),
    "arrays": (lambda: saved({"a": np.zeros(3)}), "it needs numpy._core.multiarray._recon"),
    "list": (lambda: saved([torch.ones(1)]), "contains no state_dict"),
    "nothing": (lambda: saved({"state_dict": {}}), "contains no state_dict"),
    "numbers": (lambda: saved({"a": 1}), "contains more than tensors (a is of type int); save"),
    "foreign network": (
        lambda: saved({"network": [1], "preprocessing": None}),
        "contains more than tensors (network is of type list)",
    ),
    "terminal escapes": (lambda: saved({"\x1b[31m\n": torch.ones(1)}), "unknown weight format"),
    "large shape": (
        lambda: saved({"conv1.weight": torch.ones(1).expand(10**12)}),
        "1 missing keys: conv1.bias",
    ),
}


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_refused_by_what_they_are(name, tmp_path, capsys):
    content, message = OTHERS[name]
    path = tmp_path / "weights.pth"
    path.write_bytes(content())
    capsys.readouterr()
    if name == "large shape":  # refused before 4 TB are allocated
        with pytest.raises(PretrainedError, match="missing keys"):
            fill_backbone(tiny_backbone(), load_pretrained(path))
    else:
        assert message in refusal(path)
    assert capsys.readouterr().out == ""  # "code ran"


def test_a_missing_file_is_refused_with_the_known_names():
    with pytest.raises(PretrainedError, match="file not found; these names can be downloaded: r3d"):
        load_pretrained("resnet18_kinetics")


def test_weights_saved_without_checksums_are_read(state, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        (tmp_path / "w.pth").write_bytes(saved(state))
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_pretrained(tmp_path / "w.pth").family == "Hara 2018"


def test_a_changed_weight_is_found_by_its_checksum(state, tmp_path):
    data, value = saved(state), state["layer4.1.conv2.weight"].numpy().tobytes()
    start = data.index(value)
    (tmp_path / "w.pth").write_bytes(data[:start] + bytes([value[0] ^ 1]) + data[start + 1 :])
    assert "damaged (the checksum of archive/data/" in refusal(tmp_path / "w.pth")


# ==== safetensors ====


def safetensors_bytes(state):
    """A file in that format: length of the header, JSON, tensors."""
    safetensors = pytest.importorskip("safetensors.torch")
    return safetensors.save({key: tensor.contiguous() for key, tensor in state.items()})


def test_safetensors_are_read(state, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors_bytes(state))
    backbone = tiny_backbone()
    fill_backbone(backbone, load_pretrained(path))
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    path.write_bytes(path.read_bytes()[:-1])
    assert "damaged, or not a safetensors file" in refusal(path)


def test_safetensors_without_the_package_are_refused_with_the_command(tmp_path, monkeypatch):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}  '
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    real_import = builtins.__import__

    def without(name, *args):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real_import(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "run `pip install safetensors` to read it" in refusal(tmp_path / "w")


# ==== fuzzing ====

# Kind -> whether the file has checksums, so that no change of its values can go unnoticed.
KINDS = {"zip": True, "checkpoint": True, "legacy": False, "safetensors": False}


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
        "network": NETWORK,
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


@pytest.mark.parametrize("count", [40, pytest.param(1500, marks=pytest.mark.slow)])
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
@pytest.mark.parametrize("count", [60, pytest.param(1500, marks=pytest.mark.slow)])
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


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
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
