"""Extractions that are killed, that meet another one, or that find lost frames or other videos."""

import contextlib
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from datasets import frame_folders
from datasets.frame_folders import read_record, run_folder
from datasets.frames import FrameDataset
from datasets.splits import SplitError
from datasets.synthetic import make_dataset

FRAMES = ["--size", 24, 32, "--workers", 2, "--num-frames"]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Folder of 45 videos of 40 to 60 frames."""
    root = tmp_path_factory.mktemp("material")
    make_dataset(root, classes=3, groups=5, videos=45, test_groups=1)
    return root / "videos"


@pytest.fixture
def few(material, tmp_path):
    """A copy of four of the videos, which a test may change."""
    for video in sorted(material.glob("*/*_c01.avi"))[:4]:
        copy = tmp_path / "videos" / video.relative_to(material)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(video, copy)
    return tmp_path / "videos"


@pytest.fixture(scope="module")
def whole(material, tmp_path_factory):
    """The tree of an undisturbed extraction of every frame."""
    frames = tmp_path_factory.mktemp("whole") / "frames"
    finish(start(material, frames))
    return tree(frames)


def command(videos, frames, *flags, num_frames=0):
    flags = [*FRAMES, num_frames, *flags]
    return ["extract_frames.py", "--videos", videos, "--frames", frames, *flags]


def start(videos, frames, *flags):
    """The script in a process group of its own."""
    arguments = [sys.executable, *map(str, command(videos, frames, *flags))]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(arguments, cwd=ROOT, start_new_session=True, **options)


def finish(process, status=0):
    """Wait for a script. Returns its last lines of stdout and stderr."""
    output, error = process.communicate(timeout=60)
    assert process.returncode == status, output + error
    assert "Traceback" not in error
    return (output.splitlines() or [""])[-1], (error.splitlines() or [""])[-1]


def wait_for_work(process, frames):
    """Wait until a started run has written its first frame."""
    while not any(frames.glob(".partial/*/*/*.jpg")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


def tree(frames):
    """Every file below a folder of frames with its content, but for locks."""
    return {
        str(path.relative_to(frames)): path.read_bytes()
        for path in sorted(frames.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


def is_clean(frames):
    return not (frames / ".partial").exists()


# ==== kills ====


@pytest.mark.parametrize("target", ["main", "group"])
@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_and_at_once_repeated_equals_undisturbed(target, kills, few, tmp_path):
    """Large frames, so that a worker which lives on would still be at its video then."""
    large = ("--size", 600, 800)
    finish(start(few, tmp_path / "whole", *large))
    expected = tree(tmp_path / "whole")
    rng, hits, frames = random.Random(target), 0, tmp_path / "frames"
    while hits < kills:
        shutil.rmtree(frames, ignore_errors=True)
        process = start(few, frames, *large)
        wait_for_work(process, frames)
        time.sleep(rng.uniform(0, 0.5))
        if process.poll() is None:
            (os.killpg if target == "group" else os.kill)(process.pid, signal.SIGKILL)
            hits += 1
        again = start(few, frames, *large)  # nobody waits for the workers to end
        assert finish(again)[0].endswith(" 0 failed")
        process.communicate()
        assert tree(frames) == expected and is_clean(frames)


def test_what_dead_runs_left_is_removed_and_what_others_use_is_not(few, tmp_path, run_script):
    frames, here = tmp_path / "frames", platform.node()
    dead = [f"1-of-1@{here}@a", "1-of-1@elsewhere@b", f"2-of-3@{here}@c", "of-an-earlier-version"]
    alive = ["2-of-3@elsewhere@d"]  # whether its lock reaches this machine is unknown
    for name in dead + alive:
        (frames / ".partial" / name / "0").mkdir(parents=True)
        (frames / ".partial" / name / "0" / "000000.jpg").write_bytes(b"half")
    with run_folder(frames, (3, 3)) as ours:
        run_script(*command(few, frames))
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


def test_the_same_extraction_twice_at_once_is_refused(few, tmp_path):
    """The first is halted at work, so that they meet for certain."""
    frames = tmp_path / "frames"
    first = start(few, frames)
    wait_for_work(first, frames)
    os.killpg(first.pid, signal.SIGSTOP)
    message = finish(start(few, frames), status=1)[1]
    os.killpg(first.pid, signal.SIGCONT)
    assert "another run extracts the same videos; wait until it ends" in message
    assert finish(first)[0] == "4 videos done, 0 already there, 0 failed"
    assert is_clean(frames)


def test_an_extraction_beside_one_of_its_shards_is_safe(material, whole, tmp_path):
    """The shard is halted at work and goes on with videos that the other has done meanwhile."""
    frames = tmp_path / "frames"
    shard = start(material, frames, "--shard", "1/2")
    wait_for_work(shard, frames)
    os.killpg(shard.pid, signal.SIGSTOP)
    at_work = [path for path in frames.glob(".partial/*") if path.name.startswith("1-of-2")]
    finish(start(material, frames))
    assert at_work and all(path.exists() for path in at_work)
    before = {path: path.stat().st_ino for path in frames.glob("[!.]*/*")}
    os.killpg(shard.pid, signal.SIGCONT)
    finish(shard)
    assert tree(frames) == whole and is_clean(frames)
    assert {path: path.stat().st_ino for path in frames.glob("[!.]*/*")} == before


def test_shards_run_at_once(material, whole, tmp_path):
    frames = tmp_path / "frames"
    shards = [start(material, frames, "--shard", f"{number}/3") for number in (1, 2, 3)]
    assert [finish(shard)[0].split()[0] for shard in shards] == ["15", "15", "15"]
    assert tree(frames) == whole and is_clean(frames)


@pytest.mark.slow
@pytest.mark.parametrize("other", [(), ("--shard", "1/2"), ("--shard", "2/3")])
@pytest.mark.parametrize("has_frames", [False, True], ids=["anew", "over another video"])
def test_ten_pairs_at_once_equal_one_run(other, has_frames, material, whole, tmp_path):
    frames, refused = tmp_path / "frames", 0
    for _ in range(10):
        shutil.rmtree(frames, ignore_errors=True)
        if has_frames:
            finish(start(material, frames))
            for record in frames.glob("*/*/video.json"):
                record.write_text(record.read_text().replace('"size": ', '"size": 1'))
        pair = [start(material, frames), start(material, frames, *other)]
        for process in pair:
            process.wait(timeout=60)
            if process.returncode == 1:
                assert "another run extracts" in finish(process, status=1)[1]
                refused += 1
            else:
                assert finish(process)[0].endswith(" 0 failed")
        assert tree(frames) == whole and is_clean(frames)
    print(f"\n10 pairs, {refused} runs refused")
    assert not (other and refused)


def test_first_runs_with_different_settings_cannot_both_begin(few, tmp_path):
    """Both would find no extraction.json."""
    frames = tmp_path / "frames"
    runs = [start(few, frames, "--quality", quality) for quality in (50, 60, 70)]
    statuses = sorted(run.wait(timeout=60) for run in runs)
    messages = [run.communicate()[1] for run in runs]
    assert statuses[-2:] == [1, 1] and statuses[0] == 0
    assert sum("was extracted with" in message for message in messages) == 2


# ==== lost frames ====


@pytest.mark.parametrize("lost", ["000003.jpg", "the last", "video.json"])
def test_a_lost_frame_is_noticed_and_extracted_again(lost, few, tmp_path, run_script):
    frames = tmp_path / "frames"
    run_script(*command(few, frames))
    before = tree(frames)
    folder = sorted(frames.glob("*/*"))[0]
    (folder / lost if "." in lost else sorted(folder.glob("*.jpg"))[-1]).unlink()
    splits = ["make_splits.py", "--dataset", "folder", "--val-fraction", 0]
    splits += ["--frames", frames, "--output", tmp_path / "splits"]
    if lost != "video.json":
        data = FrameDataset([str(folder.relative_to(frames))], [0], frames, 4)
        with pytest.raises(SplitError, match="frames are missing; rerun extract_frames.py"):
            data.read(0, 4)
        refused = run_script(*splits, status=1)
        count = read_record(folder)["frames"]
        assert f"{folder.name}: {count - 1} of {count} frames" in refused.stdout
        assert f"rerun extract_frames.py with --frames {frames}" in refused.stderr
    reason = "without a record" if lost == "video.json" else "incomplete"
    output = run_script(*command(few, frames)).stdout
    assert f"1 videos done (1 {reason}), 3 already there, 0 failed" in output
    assert tree(frames) == before
    run_script(*splits)


def test_advice_names_the_list_of_failures(few, tmp_path, run_script):
    frames = tmp_path / "frames"
    broken = sorted(few.glob("*/*"))[0]
    broken.write_bytes(b"no video")
    run_script(*command(few, frames), status=1)
    lists = tmp_path / "lists"
    lists.mkdir()
    names = [f"{path.parent.name}/{path.name}" for path in sorted(few.glob("*/*"))]
    kinds = sorted({name.split("/")[0] for name in names})
    (lists / "classInd.txt").write_text("".join(f"{i} {k}\n" for i, k in enumerate(kinds, 1)))
    for name in ("trainlist01.txt", "testlist01.txt"):
        (lists / name).write_text("".join(f"{name}\n" for name in names))
    flags = ["--dataset", "ucf101", "--annotations", lists, "--output", tmp_path / "splits"]
    refused = run_script("make_splits.py", "--frames", frames, *flags, status=1)
    assert f"{broken.stem}: no folder" in refused.stdout
    assert "failures.csv there lists the videos that failed, with reasons" in refused.stderr


# ==== other videos of the same name ====


def test_a_video_that_was_replaced_is_extracted_anew(few, tmp_path, run_script):
    frames = tmp_path / "frames"
    run_script(*command(few, frames, num_frames=8))
    first, second, third, _ = sorted(few.glob("*/*"))
    before = tree(frames)
    shutil.copy(second, first)  # another size and time
    content, times = bytearray(third.read_bytes()), third.stat().st_mtime_ns
    third.write_bytes(content)  # the same size
    os.utime(third, ns=(times + 10**9, times + 10**9))
    output = run_script(*command(few, frames, num_frames=8)).stdout
    assert "2 videos done (2 changed), 2 already there, 0 failed" in output
    pictures = {name: content for name, content in tree(frames).items() if name.endswith(".jpg")}
    one, other = (f"{video.parent.name}/{video.stem}/000004.jpg" for video in (first, second))
    assert pictures[one] == pictures[other] == before[other] != before[one]
    assert (
        "0 videos done, 4 already there" in run_script(*command(few, frames, num_frames=8)).stdout
    )

    first.rename(first.with_suffix(".mp4"))  # same size and time, another file
    assert "(1 changed), 3 already" in run_script(*command(few, frames, num_frames=8)).stdout


def test_the_frames_of_a_replaced_video_do_not_outlive_it(few, tmp_path, run_script):
    """Training would otherwise learn from the earlier video's frames under this name."""
    frames, video = tmp_path / "frames", sorted(few.glob("*/*"))[0]
    run_script(*command(few, frames))
    video.write_bytes(b"no video")
    output = run_script(*command(few, frames), status=1).stdout
    assert "0 videos done, 3 already there, 1 failed" in output
    assert len(list(frames.glob("*/*"))) == 3 and is_clean(frames)


def test_files_of_others_are_never_removed(few, tmp_path, run_script):
    frames, video = tmp_path / "frames", sorted(few.glob("*/*"))[0]
    folder = frames / video.parent.name / video.stem
    folder.mkdir(parents=True)
    (folder / "img_00001.jpg").write_bytes(b"of another tool")
    result = run_script(*command(few, frames), status=1)
    assert "3 videos done, 0 already there, 1 failed" in result.stdout
    assert (
        "has the file img_00001.jpg, which extract_frames.py did not write"
        in (frames / "failures.csv").read_text()
    )
    assert (folder / "img_00001.jpg").read_bytes() == b"of another tool" and is_clean(frames)


# ==== frame folders of an earlier version, without records ====


@pytest.mark.parametrize("num_frames", [0, 8])
def test_extractions_without_records_are_read_and_completed(num_frames, few, tmp_path, run_script):
    """With a fixed number of frames only what is incomplete or older than its video is extracted.

    With all frames nobody knows how many there should be, so that all videos are.
    """
    frames = tmp_path / "frames"
    run_script(*command(few, frames, num_frames=num_frames))
    expected = tree(frames)
    folders = sorted(frames.glob("*/*"))
    for folder in folders:
        (folder / "video.json").unlink()
    names = [str(folder.relative_to(frames)) for folder in folders]
    assert len(FrameDataset(names, [0] * 4, frames, 4)[3][0]) == 4  # as before
    sorted(folders[0].glob("*.jpg"))[2].unlink()
    os.utime(folders[1], ns=(0, 0))
    before = [folder.stat().st_ino for folder in folders]
    output = run_script(*command(few, frames, num_frames=num_frames)).stdout
    after = [folder.stat().st_ino for folder in folders]
    if num_frames:
        assert "2 videos done (1 changed, 1 incomplete), 2 already there, 0 failed" in output
        assert before[2:] == after[2:]
    else:
        again = "(1 changed, 1 incomplete, 2 without a record)"
        assert f"4 videos done {again}, 0 already there, 0 failed" in output
    assert tree(frames) == expected
    assert "4 already there" in run_script(*command(few, frames, num_frames=num_frames)).stdout


def test_a_damaged_record_is_no_record(few, tmp_path, run_script):
    frames = tmp_path / "frames"
    run_script(*command(few, frames))
    before = tree(frames)
    contents = (b"", b"[]", b'{"frames": "many"}', b"\xff")
    for path, content in zip(sorted(frames.glob("*/*/video.json")), contents, strict=True):
        path.write_bytes(content)
    assert "(4 without a record)" in run_script(*command(few, frames)).stdout
    assert tree(frames) == before
