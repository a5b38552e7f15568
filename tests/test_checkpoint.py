"""Checkpoints are whole or not there, and loading one never runs code."""

import os
import pickle

import pytest
import torch

from utils.checkpoint import (
    FORMAT,
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from utils.files import atomic_write


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("code_ran",)


def test_a_checkpoint_comes_back(tmp_path):
    content = {"epoch": 3, "names": ["a", "ü"], "model": {"w": torch.randn(3)}}
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
    torch.save({"format": FORMAT, "model": RunsCode()}, "zip.pt")
    with open("plain.pt", "wb") as file:
        pickle.dump(RunsCode(), file)
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match="more than tensors"):
            load_checkpoint(name)
    assert not os.path.exists("code_ran")


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path):
    save_checkpoint(tmp_path / "good.pt", {"model": {"w": torch.randn(1000)}})
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
