"""Atomic writes: no half file under the right name, and no temporary file that stays."""

import os
import platform
import subprocess

import pytest

from utils.files import atomic_write, folder_lock, is_utf8, write_text


@pytest.mark.scripts
def test_temporary_files_of_killed_processes_are_removed_by_the_next_write(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    node, alive = platform.node(), os.getppid()
    stale = tmp_path / f".a[1].txt.{node}.{dead.pid}.partial"
    kept = [
        tmp_path / f".a[1].txt.{node}.{alive}.partial",
        tmp_path / f".a[1].txt.another-{node}.{dead.pid}.partial",
        tmp_path / f".b.txt.{node}.{dead.pid}.partial",
        tmp_path / f".a[1].txt.{node}.x.partial",
        tmp_path / f"a[1].txt.{node}.{dead.pid}.partial",
    ]
    for path in (stale, *kept):
        path.write_bytes(b"half")
    write_text(tmp_path / "a[1].txt", "whole")
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "a[1].txt"])


def test_an_exception_leaves_the_earlier_file(tmp_path):
    write_text(tmp_path / "a.txt", "earlier")
    with pytest.raises(KeyError), atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyError
    assert os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "earlier"


def test_a_locked_folder_in_which_nothing_was_written_is_removed(tmp_path):
    """But none that was there before, and none with a file."""
    with pytest.raises(KeyError), folder_lock(tmp_path / "new" / "run"):
        raise KeyError
    assert os.listdir(tmp_path) == []
    with folder_lock(tmp_path / "runs" / "used"):
        (tmp_path / "runs" / "used" / "file").touch()
    (tmp_path / "runs" / "empty").mkdir()
    for name in ("empty", "new"):
        with folder_lock(tmp_path / "runs" / name):
            pass
    assert sorted(os.listdir(tmp_path / "runs")) == ["empty", "used"]


def test_names_that_tensorboard_takes():
    assert is_utf8("runs/käse?") and not is_utf8(os.fsdecode(b"runs/\xff"))
