"""Disks that are full or cannot be written: an error that says so, and what was there is kept."""

import os
import re
import resource
import signal
import subprocess

import pytest
from helpers import EXTRACT, same_weights, train_command, weights

from datasets import cache
from datasets.cache import build_cache
from datasets.frames import FrameDataset
from datasets.splits import read_split


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 400 kB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_extraction_on_a_full_disk_stops_and_resumes(demo, small_disk, run_script):
    paths = "--videos", demo / "videos", "--frames", small_disk / "frames"
    error = run_script("extract_frames.py", *paths, *EXTRACT, status=1).stderr
    assert "No space left" in error and "fix this and rerun" in error and "Traceback" not in error
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    again = run_script("extract_frames.py", *paths, *EXTRACT).stdout
    assert int(re.search(r"(\d+) already there", again)[1]) > 0, "complete folders are kept"
    for path in demo.glob("frames/*/*/*"):
        assert (small_disk / path.relative_to(demo)).read_bytes() == path.read_bytes()
    assert not (small_disk / "frames" / ".partial").exists()


def test_a_cache_on_a_full_disk_is_refused_and_leaves_nothing(demo, small_disk, run_script):
    flags = "--cache", "disk", "--cache-frames", 64, "--cache-folder", small_disk
    error = run_script(*train_command(demo, demo / "no_run", *flags), status=1).stderr
    assert "GB free and the clips need" in error and os.listdir(small_disk) == [".lock"]


def test_a_disk_that_fills_while_the_cache_is_made_is_an_error_not_a_crash(
    demo, small_disk, monkeypatch
):
    """The check of free space passes, another program fills the disk; a memory map would kill."""
    names, labels = read_split(demo / "splits" / "train.txt", 3)
    data = FrameDataset(names, labels, demo / "frames", 4)
    usage = cache.shutil.disk_usage(small_disk)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=10**12))
    with pytest.raises(OSError, match="No space left"):
        build_cache(data, 64, small_disk, 1)
    assert os.listdir(small_disk) == [".lock"]


def limit_file_size():
    """The log of an epoch fits, a checkpoint does not."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_200_000, 1_200_000))


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(demo, trained, tmp_path, run_script):
    """A limit on the size of files stands for a full disk, so that any user can run this."""
    last = tmp_path / "run" / "last.pt"
    last.parent.mkdir()
    before = (trained / "previous.pt").read_bytes()
    last.write_bytes(before)
    command = train_command(demo, tmp_path / "run")
    result = run_script(*command, patch=limit_file_size, status=1)
    assert "Traceback" not in result.stderr
    assert "resuming" in result.stdout and "the earlier one is kept" in result.stderr
    assert last.read_bytes() == before and not list(last.parent.glob(".*.partial"))
    run_script(*command)
    assert same_weights(weights(last), weights(trained / "last.pt"))


def test_a_folder_that_cannot_be_written_is_named(demo, tmp_path, run_script):
    """A file is where the folder would be, which not even the root user can write into."""
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "below"
    for command in (
        ["extract_frames.py", "--videos", demo / "videos", "--frames", output],
        ["make_splits.py", "--dataset", "folder", "--frames", demo / "frames", "--output", output],
        train_command(demo, output),
        train_command(demo, tmp_path / "run", "--cache", "disk", "--cache-folder", output),
    ):
        error = run_script(*command, status=1).stderr
        assert "Not a directory" in error.splitlines()[-1] and "Traceback" not in error
