"""Checkpoints are complete, unchanged and of known types, and loading one never runs code."""

import copy
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from fuzzing import cases, flip_bit
from helpers import checkpoint_content

from models import build_model, build_saved_model
from utils.checkpoint import (
    FORMAT,
    CheckpointError,
    DamagedError,
    append_hash,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from utils.files import atomic_write


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("code_ran",)


def test_a_checkpoint_comes_back(tmp_path):
    content = {**checkpoint_content({"w": torch.randn(3)}), "epoch": 3}
    save_checkpoint(tmp_path / "run" / "last.pt", content)
    loaded = load_checkpoint(tmp_path / "run" / "last.pt")
    assert torch.equal(loaded.pop("model")["w"], content.pop("model")["w"])
    assert loaded == {"format": FORMAT, **content}
    assert os.listdir(tmp_path / "run") == ["last.pt"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("killed")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("zip.pt", {**checkpoint_content(), "epoch": RunsCode()})
    with open("plain.pt", "wb") as file:
        pickle.dump(RunsCode(), file)
    for name, message in (("zip.pt", "more than tensors"), ("plain.pt", "not a checkpoint")):
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(name)
    assert not os.path.exists("code_ran")


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path):
    save_checkpoint(tmp_path / "good.pt", checkpoint_content())
    whole = (tmp_path / "good.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"weight": torch.ones(1)}, tmp_path / "foreign.pt")
    torch.save({"format": FORMAT + 1}, tmp_path / "later.pt")
    for name in ("cut", "empty", "text", "foreign", "later", "absent"):
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(tmp_path / f"{name}.pt")
        assert f"{name}.pt" in str(error.value) and "\n" not in str(error.value)


# ==== the hash ====


@pytest.fixture
def saved(tmp_path):
    """A small checkpoint."""
    path = tmp_path / "best.pt"
    save_checkpoint(path, checkpoint_content())
    return path


def test_every_flipped_bit_is_noticed(saved):
    whole = saved.read_bytes()
    for first in range(0, len(whole), 13):
        saved.write_bytes(flip_bit(whole, np.random.default_rng(first), first))
        with pytest.raises(DamagedError):
            load_checkpoint(saved)
    for length in range(0, len(whole), 13):
        saved.write_bytes(whole[:length])
        with pytest.raises(DamagedError):
            load_checkpoint(saved)


def test_a_checkpoint_of_an_earlier_version_loads_and_its_records_are_verified(tmp_path):
    """Without a hash, bytes that are not of a record may change: they are no content."""
    path, content = tmp_path / "old.pt", {"format": FORMAT, **checkpoint_content()}
    torch.save(content, path)
    assert flatten(load_checkpoint(path)) == flatten(content)
    whole, noticed = path.read_bytes(), 0
    for rng in cases(0, 300):
        path.write_bytes(flip_bit(whole, rng))
        try:
            assert flatten(load_checkpoint(path)) == flatten(content)
        except CheckpointError:
            noticed += 1
    assert noticed > 100


def flatten(content):
    """The content of a checkpoint, with lists of numbers instead of tensors."""
    if isinstance(content, dict):
        return {key: flatten(value) for key, value in content.items()}
    return content.tolist() if isinstance(content, torch.Tensor) else content


# ==== hostile content ====

WEIGHTS = build_model("r3d18", 12, width=0.0625).state_dict()
SHAPE = WEIGHTS["hash.weight"].shape
HOSTILE = {
    "an unknown backbone": (("network", "backbone"), "vit", "unknown backbone 'vit'; known: c3d"),
    "another backbone": (("network", "backbone"), "c3d", "model does not fit the network"),
    "no bits": (("network", "bits"), 0, "from 1 to"),
    "too many bits": (("network", "bits"), 2**30, "hash.weight is (12, 32), not (10737418"),
    "too wide": (("network", "width"), 99.0, "not (6336, 3, 3, 7, 7)"),
    "an unknown setting": (("network", "depth"), 3, "['depth'] is unknown"),
    "size 0": (("preprocessing", "size"), 0, "from 1 to"),
    "a clip of 172 GB": (("preprocessing", "frame_size"), [60_000, 60_000], "is too large"),
    "crop NaN": (("preprocessing", "crop"), float("nan"), "must be a number"),
    "an unknown order": (("preprocessing", "channels"), "RBG", "'RGB' or 'BGR', not 'RBG'"),
    "two means": (("preprocessing", "mean"), [0.4, 0.4], "must have 3 items, not 2"),
    "no classes": (("classes",), None, "a list"),
    "a class that is a number": (("classes",), [3], "must be text, not 3"),
    "a class with NUL": (("classes",), ["a\0"], "must be text"),
    "settings in a list": (("settings",), [], "must be a dict, not a list"),
    "an escape code": (("network", "backbone"), "\x1b[31m", r"'\x1b[31m'"),
    "whole numbers": (("model", "hash.weight"), torch.ones(SHAPE, dtype=torch.int64), "int64"),
    "bytes": (("model", "hash.weight"), torch.ones(SHAPE, dtype=torch.uint8), "uint8"),
    "complex": (("model", "hash.weight"), torch.ones(SHAPE, dtype=torch.complex64), "complex64"),
    "sparse": (("model", "hash.weight"), torch.ones(SHAPE).to_sparse(), "a dense tensor"),
    "without data": (("model", "hash.weight"), torch.ones(SHAPE, device="meta"), "dense tensor"),
    "one number for all": (("model", "hash.weight"), torch.ones(1).expand(SHAPE), "claims more"),
    "4 TB": (("model", "hash.weight"), torch.ones(1).expand(10**6, 10**6), "claims more numbers"),
    "NaN": (("model", "hash.weight"), torch.full(SHAPE, torch.nan), "infinite values or NaN"),
    "another shape": (("model", "hash.weight"), torch.ones(3), "hash.weight is (3,), not (12, 32)"),
    "no tensor": (("model", "hash.weight"), None, "must be a tensor, not None"),
    "another name": (("model", "x"), torch.ones(3), "has 'x'"),
    "a lower version": (("format",), 0, "from 1 to 2, not 0"),
    "a version in letters": (("format",), "1", "from 1 to 2, not '1'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_content_is_refused_in_one_line(case, tmp_path):
    """Also with a hash that is right."""
    (*folders, key), value, message = HOSTILE[case]
    content = copy.deepcopy(checkpoint_content(WEIGHTS))
    target = content
    for folder in folders:
        target = target[folder]
    target[key] = value
    path = tmp_path / "best.pt"
    save_checkpoint(path, content)
    with pytest.raises(CheckpointError) as error:
        build_saved_model(load_checkpoint(path, "settings"), path)
    text = str(error.value)
    assert message in text and text.startswith(str(path)) and text.isprintable()
    assert len(text) < 300 + len(str(path))


def test_a_tensor_larger_than_its_record_is_refused(saved, tmp_path):
    """The pickle claims 10^12 numbers; neither they nor a compressed record take memory."""
    for name, method in (("claim.pt", zipfile.ZIP_STORED), ("bomb.pt", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(saved) as old, zipfile.ZipFile(tmp_path / name, "w", method) as new:
            for record in old.infolist():
                data = old.read(record)
                claimed = b"\x8a\x06" + (10**12).to_bytes(6, "little")
                new.writestr(record.filename, data.replace(b"K\x06tq", claimed + b"tq", 1))
        append_hash(tmp_path / name)
        with pytest.raises(CheckpointError, match="record size|compresses nothing"):
            load_checkpoint(tmp_path / name)


# ==== folders ====


def test_a_run_folder_means_best_or_else_last(tmp_path, capsys):
    save_checkpoint(tmp_path / "last.pt", {})
    assert find_checkpoint(tmp_path) == tmp_path / "last.pt"
    save_checkpoint(tmp_path / "best.pt", {})
    assert find_checkpoint(str(tmp_path)) == tmp_path / "best.pt"
    assert capsys.readouterr().err.splitlines() == [
        f"using {tmp_path / 'last.pt'}",
        f"using {tmp_path / 'best.pt'}",
    ]
    assert find_checkpoint(tmp_path / "last.pt") == tmp_path / "last.pt"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("path", "problem", "suggested"),
    [
        ("runs/dmo/best.pt", "no such checkpoint", "runs/demo/best.pt"),
        ("run/demo/best.pt", "no such checkpoint", "runs/demo/best.pt"),
        ("runs/demo/bst.pt", "no such checkpoint", "runs/demo/best.pt"),
        ("runs/other", "no such checkpoint", "runs/other2/last.pt"),
        ("runs", "no best.pt or last.pt in this folder", "runs/demo/best.pt"),
        ("runs/empty", "no best.pt or last.pt in this folder", "runs/demo/best.pt"),
    ],
)
def test_a_missing_checkpoint_is_refused_with_a_similar_one(
    path, problem, suggested, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("runs/demo/best.pt", {})
    save_checkpoint("runs/demo/last.pt", {})
    save_checkpoint("runs/other2/last.pt", {})
    os.mkdir("runs/empty")
    with pytest.raises(CheckpointError) as error:
        find_checkpoint(path)
    assert str(error.value) == f"{path}: {problem}; did you mean {suggested}?"


def test_without_a_checkpoint_near_there_is_no_suggestion(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("best.pt", "runs/demo", "/no/such/file.pt"):
        with pytest.raises(CheckpointError, match="no such checkpoint$"):
            find_checkpoint(path)
