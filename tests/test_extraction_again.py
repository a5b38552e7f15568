"""Extractions that find lost frames, other videos of the same name, or no records."""

import os
import shutil

import pytest
from extractions import extract_command, is_clean, read_tree

from datasets.frame_folders import read_extraction, read_record
from datasets.frames import FrameDataset
from datasets.splits import SplitError
from utils.errors import UserError


@pytest.fixture
def extract(few_videos, tmp_path, run_script):
    """A function that extracts the few videos, all frames of each. Returns the output."""

    def run(num_frames=0, status=0):
        command = extract_command(few_videos, tmp_path / "frames", num_frames=num_frames)
        return run_script(*command, status=status).stdout

    return run


# ==== lost frames ====


@pytest.mark.parametrize("lost", ["000003.jpg", "the last", "video.json"])
def test_a_lost_frame_is_noticed_and_extracted_again(lost, tmp_path, run_script, extract):
    frames = tmp_path / "frames"
    extract()
    before = read_tree(frames)
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
    output = extract()
    assert f"1 videos done (1 {reason}), 3 already there, 0 failed" in output
    assert read_tree(frames) == before
    run_script(*splits)


def test_advice_names_the_list_of_failures(few_videos, tmp_path, run_script, extract):
    frames = tmp_path / "frames"
    broken = sorted(few_videos.glob("*/*"))[0]
    broken.write_bytes(b"no video")
    extract(status=1)
    lists = tmp_path / "lists"
    lists.mkdir()
    names = [f"{path.parent.name}/{path.name}" for path in sorted(few_videos.glob("*/*"))]
    kinds = sorted({name.split("/")[0] for name in names})
    (lists / "classInd.txt").write_text("".join(f"{i} {k}\n" for i, k in enumerate(kinds, 1)))
    for name in ("trainlist01.txt", "testlist01.txt"):
        (lists / name).write_text("".join(f"{name}\n" for name in names))
    flags = ["--dataset", "ucf101", "--annotations", lists, "--output", tmp_path / "splits"]
    refused = run_script("make_splits.py", "--frames", frames, *flags, status=1)
    assert f"{broken.stem}: no folder" in refused.stdout
    assert "failures.csv there lists the videos that failed, with reasons" in refused.stderr


# ==== other videos of the same name ====


def test_a_video_that_was_replaced_is_extracted_anew(few_videos, tmp_path, extract):
    frames = tmp_path / "frames"
    extract(num_frames=8)
    first, second, third, _ = sorted(few_videos.glob("*/*"))
    before = read_tree(frames)
    shutil.copy(second, first)  # another size and time
    content, times = bytearray(third.read_bytes()), third.stat().st_mtime_ns
    third.write_bytes(content)  # the same size
    os.utime(third, ns=(times + 10**9, times + 10**9))
    output = extract(num_frames=8)
    assert "2 videos done (2 changed), 2 already there, 0 failed" in output
    after = read_tree(frames)
    one, other = (f"{video.parent.name}/{video.stem}/000004.jpg" for video in (first, second))
    assert after[one] == after[other] == before[other] != before[one]
    assert "0 videos done, 4 already there" in extract(num_frames=8)

    first.rename(first.with_suffix(".mp4"))  # same size and time, another file
    assert "(1 changed), 3 already" in extract(num_frames=8)


def test_the_frames_of_a_replaced_video_do_not_outlive_it(few_videos, tmp_path, extract):
    """Training would otherwise learn from the earlier video's frames under this name."""
    frames, video = tmp_path / "frames", sorted(few_videos.glob("*/*"))[0]
    extract()
    video.write_bytes(b"no video")
    output = extract(status=1)
    assert "0 videos done, 3 already there, 1 failed" in output
    assert len(list(frames.glob("*/*"))) == 3 and is_clean(frames)


def test_files_of_others_are_never_removed(few_videos, tmp_path, extract):
    frames, video = tmp_path / "frames", sorted(few_videos.glob("*/*"))[0]
    folder = frames / video.parent.name / video.stem
    folder.mkdir(parents=True)
    (folder / "img_00001.jpg").write_bytes(b"of another tool")
    output = extract(status=1)
    assert "3 videos done, 0 already there, 1 failed" in output
    reason = "has the file img_00001.jpg, which extract_frames.py did not write"
    assert reason in (frames / "failures.csv").read_text()
    assert (folder / "img_00001.jpg").read_bytes() == b"of another tool" and is_clean(frames)


# ==== frame folders of an earlier version, without records ====


@pytest.mark.parametrize("num_frames", [0, 8])
def test_extractions_without_records_are_read_and_completed(num_frames, tmp_path, extract):
    """With a fixed number of frames only what is incomplete or older than its video is extracted.

    With all frames nobody knows how many there should be, so that all videos are.
    """
    frames = tmp_path / "frames"
    extract(num_frames=num_frames)
    expected = read_tree(frames)
    folders = sorted(frames.glob("*/*"))
    for folder in folders:
        (folder / "video.json").unlink()
    names = [str(folder.relative_to(frames)) for folder in folders]
    assert len(FrameDataset(names, [0] * 4, frames, 4)[3][0]) == 4  # as before
    sorted(folders[0].glob("*.jpg"))[2].unlink()
    os.utime(folders[1], ns=(0, 0))
    before = [folder.stat().st_ino for folder in folders]
    output = extract(num_frames=num_frames)
    after = [folder.stat().st_ino for folder in folders]
    if num_frames:
        assert "2 videos done (1 changed, 1 incomplete), 2 already there, 0 failed" in output
        assert before[2:] == after[2:]
    else:
        again = "(1 changed, 1 incomplete, 2 without a record)"
        assert f"4 videos done {again}, 0 already there, 0 failed" in output
    kept = {f"{folder.relative_to(frames)}/video.json" for folder in folders[2:]}
    unknown = kept if num_frames else set()  # seconds and size of videos that were not decoded
    now = read_tree(frames)
    assert now.keys() == expected.keys()
    assert {key: now[key] for key in now.keys() - unknown} == {
        key: expected[key] for key in expected.keys() - unknown
    }
    assert "4 already there" in extract(num_frames=num_frames)


def test_a_damaged_record_is_no_record(tmp_path, extract):
    frames = tmp_path / "frames"
    extract()
    before = read_tree(frames)
    contents = (b"", b"[]", b'{"frames": "many"}', b"\xff")
    for path, content in zip(sorted(frames.glob("*/*/video.json")), contents, strict=True):
        path.write_bytes(content)
    assert "(4 without a record)" in extract()
    assert read_tree(frames) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "num_frames"),
        ('{"num_frames": "8"}', "['num_frames'] must be a whole number"),
        ('{"num_frames": -1}', "['num_frames'] must be a whole number from 0"),
    ],
)
def test_damaged_settings_are_refused_with_the_field(text, message, tmp_path):
    (tmp_path / "extraction.json").write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path}/extraction.json: damaged: ") as error:
        read_extraction(tmp_path)
    assert message in str(error.value)
