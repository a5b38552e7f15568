"""Files that are no weights, or damaged: one line says what they are."""

import builtins
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from torchvision.models.video import r3d_18
from weight_files import check_message, safetensors_bytes, saved, tiny_backbone, tiny_state

from models.pretrained import PretrainedError, fill_backbone, load_pretrained


class RunsCode:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.fixture(scope="module")
def state():
    return tiny_state()


def refusal(path):
    with pytest.raises(PretrainedError) as error:
        load_pretrained(path)
    check_message(str(error.value), path)
    return str(error.value)


# ==== kinds of files ====


def torchscript():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def compressed():
    """A file of torch.save whose records were compressed, as bombs are."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"a": torch.ones(1)}))) as source,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
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
    "compressed": (compressed, "a ZIP archive with compressed or duplicate records"),
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


def test_a_name_is_read_from_the_cache_of_torch_hub(tmp_path, monkeypatch):
    """Nothing is downloaded; a file that does not have the hash in its name is refused."""
    path = tmp_path / "r3d_18.pth"
    with torch.device("meta"):
        keys = r3d_18().state_dict().keys()
    torch.save({key: torch.ones(9) for key in keys}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    cached = tmp_path / "checkpoints" / f"r3d_18-{sha256[:8]}.pth"
    cached.parent.mkdir()
    path.rename(cached)
    weight = SimpleNamespace(url=f"https://nowhere.invalid/{cached.name}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torchvision.models, "get_weight", lambda _: weight)
    weights = load_pretrained("r3d18_kinetics400")
    assert (weights.backbone, weights.file) == ("r3d18", cached.name)
    cached.write_bytes(cached.read_bytes()[:-100])
    with pytest.raises(PretrainedError, match="delete it and download it again"):
        load_pretrained("r3d18_kinetics400")


# ==== safetensors ====


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
