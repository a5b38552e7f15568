"""Extractions that are killed, or that meet another one, give what an undisturbed one gives."""

import contextlib
import os
import platform
import random
import shutil
import signal
import time

import pytest
from extractions import extract_command, is_clean, last_line, read_tree, wait_for_work

from datasets import frame_folders
from datasets.frame_folders import run_folder


@pytest.fixture(scope="module")
def whole(drawn_videos, tmp_path_factory, run_script):
    """The tree of an undisturbed extraction of every frame."""
    frames = tmp_path_factory.mktemp("whole") / "frames"
    run_script(*extract_command(drawn_videos, frames))
    return read_tree(frames)


@pytest.fixture
def start(start_script):
    """A function that starts an extraction."""
    return lambda *arguments: start_script(*extract_command(*arguments))


# ==== kills ====


@pytest.mark.parametrize("target", ["main", "group"])
@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_and_at_once_repeated_equals_undisturbed(target, kills, few_videos, tmp_path, start):
    """Large frames, so that a worker which lives on would still be at its video then."""
    large = ("--size", 600, 800)
    last_line(start(few_videos, tmp_path / "whole", *large))
    expected = read_tree(tmp_path / "whole")
    rng, hits, frames = random.Random(target), 0, tmp_path / "frames"
    while hits < kills:
        shutil.rmtree(frames, ignore_errors=True)
        process = start(few_videos, frames, *large)
        wait_for_work(process, frames)
        time.sleep(rng.uniform(0, 0.5))
        if process.status() is None:
            (os.killpg if target == "group" else os.kill)(process.pid, signal.SIGKILL)
            hits += 1
        again = start(few_videos, frames, *large)  # nobody waits for the workers to end
        assert last_line(again).endswith(" 0 failed")
        assert read_tree(frames) == expected and is_clean(frames)


def test_what_dead_runs_left_is_removed_and_what_others_use_is_not(
    few_videos, tmp_path, run_script
):
    frames, here = tmp_path / "frames", platform.node()
    dead = [f"1-of-1@{here}@a", "1-of-1@elsewhere@b", f"2-of-3@{here}@c", "of-an-earlier-version"]
    alive = ["2-of-3@elsewhere@d"]  # whether its lock reaches this machine is unknown
    for name in dead + alive:
        (frames / ".partial" / name / "0").mkdir(parents=True)
        (frames / ".partial" / name / "0" / "000000.jpg").write_bytes(b"half")
    with run_folder(frames, (3, 3)) as ours:
        run_script(*extract_command(few_videos, frames))
        assert {path.name for path in (frames / ".partial").iterdir()} == {*alive, ours.name}


def test_an_orphan_cannot_publish_what_is_being_removed(tmp_path, monkeypatch):
    """The next run removes its folder between its last two steps, and has removed nothing yet."""
    temporary = tmp_path / ".partial" / f"1-of-1@{platform.node()}@dead" / "0"
    temporary.mkdir(parents=True)
    (temporary / "000000.jpg").touch()
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    with contextlib.ExitStack() as stack:
        next_run = run_folder(tmp_path, (1, 1))
        monkeypatch.setattr(frame_folders, "move_away", lambda *_: stack.enter_context(next_run))
        record = {"video": "v.avi", "size": 1, "mtime_ns": 1, "frames": 1}
        with pytest.raises(FileNotFoundError):
            frame_folders.publish(temporary, tmp_path / "class" / "v", record)
    assert not (tmp_path / "class" / "v").exists()


# ==== two at once ====


def test_the_same_extraction_twice_at_once_is_refused(few_videos, tmp_path, start):
    """The first is halted at work, so that they meet for certain."""
    frames = tmp_path / "frames"
    first = start(few_videos, frames)
    wait_for_work(first, frames)
    first.signal(signal.SIGSTOP)
    message = last_line(start(few_videos, frames), status=1)
    first.signal(signal.SIGCONT)
    assert "another run extracts the same videos; wait until it ends" in message
    assert last_line(first) == "4 videos done, 0 already there, 0 failed"
    assert is_clean(frames)


def test_an_extraction_beside_one_of_its_shards_is_safe(drawn_videos, whole, tmp_path, start):
    """The shard is halted and continues with videos that the other has done meanwhile."""
    frames = tmp_path / "frames"
    shard = start(drawn_videos, frames, "--shard", "1/2")
    wait_for_work(shard, frames)
    shard.signal(signal.SIGSTOP)
    at_work = [path for path in frames.glob(".partial/*") if path.name.startswith("1-of-2")]
    last_line(start(drawn_videos, frames))
    assert at_work and all(path.exists() for path in at_work)
    before = {path: path.stat().st_ino for path in frames.glob("[!.]*/*")}
    shard.signal(signal.SIGCONT)
    last_line(shard)
    assert read_tree(frames) == whole and is_clean(frames)
    assert {path: path.stat().st_ino for path in frames.glob("[!.]*/*")} == before


def test_shards_run_at_once(drawn_videos, whole, tmp_path, start):
    frames = tmp_path / "frames"
    shards = [start(drawn_videos, frames, "--shard", f"{number}/3") for number in (1, 2, 3)]
    assert [last_line(shard).split()[0] for shard in shards] == ["15", "15", "15"]
    assert read_tree(frames) == whole and is_clean(frames)


@pytest.mark.slow
@pytest.mark.parametrize("other", [(), ("--shard", "1/2"), ("--shard", "2/3")])
@pytest.mark.parametrize("has_frames", [False, True], ids=["anew", "over another video"])
def test_ten_pairs_at_once_equal_one_run(other, has_frames, drawn_videos, whole, tmp_path, start):
    frames, refused = tmp_path / "frames", 0
    for _ in range(10):
        shutil.rmtree(frames, ignore_errors=True)
        if has_frames:
            last_line(start(drawn_videos, frames))
            for record in frames.glob("*/*/video.json"):
                record.write_text(record.read_text().replace('"size": ', '"size": 1'))
        pair = [start(drawn_videos, frames), start(drawn_videos, frames, *other)]
        for process in pair:
            if process.wait() == 1:
                assert "another run extracts" in last_line(process, status=1)
                refused += 1
            else:
                assert last_line(process).endswith(" 0 failed")
        assert read_tree(frames) == whole and is_clean(frames)
    print(f"\n10 pairs, {refused} runs refused")
    assert not (other and refused)


def test_first_runs_with_different_settings_cannot_both_begin(few_videos, tmp_path, start):
    """Both would find no extraction.json."""
    frames = tmp_path / "frames"
    runs = [start(few_videos, frames, "--quality", quality) for quality in (50, 60, 70)]
    assert sorted(run.wait() for run in runs) == [0, 1, 1]
    assert sum("was extracted with" in run.stderr for run in runs) == 2
