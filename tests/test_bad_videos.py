"""Broken, odd and hostile videos through the real scripts: a clip or a named failure, each time."""

import csv
import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from bad_videos import DECODED, codecs, make_all, write_every_encoder
from helpers import EXTRACT, ROOT
from test_search import index_command, query_command, write_checkpoint

from datasets.process_pool import run_jobs
from datasets.video import VideoError, iterate_video, read_video
from retrieval.index import Index

pytestmark = pytest.mark.scripts


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    return root, make_all(root / "videos" / "Class")


def extract(root):
    """The command that extracts <root>/videos to <root>/frames."""
    paths = "--videos", root / "videos", "--frames", root / "frames"
    return ["extract_frames.py", *paths, *EXTRACT]


def read_failures(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["video", "reason"]
    return dict(rows[1:])


def test_extraction_names_every_failure_and_decodes_the_rest(bad, run_script):
    root, outcomes = bad
    result = run_script(*extract(root), "--timeout", 30, status=1)
    failures = read_failures(root / "frames" / "failures.csv")
    assert "Traceback" not in result.stderr
    for name, outcome in outcomes.items():
        folder = root / "frames" / "Class" / os.path.splitext(name)[0]
        if outcome == DECODED:
            assert len(list(folder.glob("*.jpg"))) == 8, name
        else:
            assert failures.pop(f"Class/{name}").startswith(outcome), name
            assert not folder.exists()
    assert not failures
    left = {".lock", ".lock-1-of-1", "Class", "extraction.json", "failures.csv", "videos.csv"}
    assert {path.name for path in (root / "frames").iterdir()} == left

    folders = ["--frames", root / "frames", "--output", root / "splits"]
    run_script("make_splits.py", "--dataset", "folder", *folders, "--val-fraction", 0)
    lists = b"".join((root / "splits" / f"{split}.txt").read_bytes() for split in ("train", "test"))
    assert len(lists.splitlines()) == list(outcomes.values()).count(DECODED)
    assert b"Class/bytes\xff 0\n" in lists and b"Class/ sp ace  0\n" in lists


def test_indexing_names_every_failure_and_encodes_the_rest(bad, tmp_path, run_script):
    root, outcomes = bad
    checkpoint = write_checkpoint(tmp_path / "best.pt")
    result = run_script(*index_command(checkpoint, root / "videos", tmp_path / "index"), status=1)
    assert "Traceback" not in result.stderr
    index = Index(tmp_path / "index")
    found = set(index.find("true"))
    expected = {f"Class/{name}" for name, outcome in outcomes.items() if outcome == DECODED}
    assert found == expected | {"Class/line\nend.avi"}, "an index holds any name"
    failures = read_failures(tmp_path / "index" / "failures.csv")
    assert set(failures) == {f"Class/{name}" for name in outcomes} - found


def test_a_rotated_video_is_shown_upright(bad):
    root, outcomes = bad
    if "rotated.mp4" not in outcomes:
        pytest.skip("no ffmpeg with libx264")
    assert read_video(root / "videos" / "Class" / "rotated.mp4", 1, (64, None)).shape[2] == 48


def test_an_interlaced_video_finds_itself(bad, tmp_path, run_script):
    root, outcomes = bad
    woven = ["interlaced_h264.mp4", "interlaced_mpeg4.avi", "broadcast.ts", "dvd.vob", "dv.avi"]
    woven = [name for name in [*woven, "camera.mts"] if name in outcomes]
    if not woven:
        pytest.skip("no ffmpeg")
    (tmp_path / "videos").mkdir()
    for name in woven:
        shutil.copy(root / "videos" / "Class" / name, tmp_path / "videos")
    checkpoint = write_checkpoint(tmp_path / "best.pt", bits=64)
    run_script(*index_command(checkpoint, tmp_path / "videos", tmp_path / "index"))
    queries = [root / "videos" / "Class" / name for name in woven]  # the indexed are copies
    answers = json.loads(run_script(*query_command(tmp_path / "index", *queries)).stdout)
    for name, answer in zip(woven, answers, strict=True):
        path = str(tmp_path / "videos" / name)
        same = [found for found in answer["results"] if found["path"] == path]
        assert same and same[0]["distance"] == 0


def test_a_lying_header_changes_nothing(bad):
    folder = bad[0] / "videos" / "Class"
    names = "good.avi", "says_a_million.avi", "says_one.avi"
    clips = [read_video(folder / name, 8, (20, 24)) for name in names]
    assert np.array_equal(clips[0], clips[1]) and np.array_equal(clips[0], clips[2])


def test_a_video_that_grows_while_it_is_read_is_refused(bad, tmp_path):
    path = tmp_path / "growing.avi"
    path.write_bytes((bad[0] / "videos" / "Class" / "good.avi").read_bytes())
    frames = iterate_video(path, (20, 24))
    next(frames)
    with open(path, "ab") as file:
        file.write(b"more")
    with pytest.raises(VideoError, match="changed while it was read"):
        list(frames)


def test_the_longest_name_that_a_file_system_takes(bad, tmp_path, run_script):
    (tmp_path / "videos" / "Class").mkdir(parents=True)
    video = tmp_path / "videos" / "Class" / ("n" * 251 + ".avi")
    video.write_bytes((bad[0] / "videos" / "Class" / "good.avi").read_bytes())
    run_script(*extract(tmp_path))
    assert len(list((tmp_path / "frames" / "Class" / ("n" * 251)).glob("*.jpg"))) == 8


# ==== fuzzing ====


def read_or_reason(path):
    """Runs in a worker: (shape of the clip, None) or (None, reason)."""
    try:
        return read_video(path, 4, (20, 24)).shape, None
    except (VideoError, cv2.error) as error:
        return None, str(error)


def flip_bytes(data, rng):
    """A copy with a few bytes changed, a stretch cut out or the end missing."""
    damaged = bytearray(data)
    area = len(damaged) if rng.random() < 0.5 else min(2000, len(damaged))  # often the header
    for position in rng.integers(area, size=rng.integers(1, 50)):
        damaged[position] = rng.integers(256)
    start = rng.integers(len(damaged))
    if rng.random() < 0.2:
        del damaged[start : start + rng.integers(1, 5000)]
    return bytes(damaged if rng.random() < 0.8 else damaged[:start])


@pytest.mark.parametrize(
    "inputs", [60, pytest.param(3000, marks=pytest.mark.slow)], ids=["quick", "long"]
)
def test_damaged_bytes_give_a_clip_or_a_reason(bad, data, tmp_path, inputs):
    """No hang beyond the time limit, no crash of the run, no other kind of answer."""
    root, outcomes = bad
    written = [name for name in ("good.avi", *codecs()) if outcomes.get(name) == DECODED]
    sources = [root / "videos" / "Class" / name for name in written if name != "uhd.mp4"]
    if inputs > 1000:
        sources += write_every_encoder(tmp_path / "encoders")
    sources += [path for path in data("clips").iterdir() if path.stat().st_size < 2_000_000]
    contents = [path.read_bytes() for path in sources]
    rng = np.random.default_rng(0)

    def write_inputs():
        for number in range(inputs):
            which = number % len(contents)
            path = tmp_path / f"{number}{sources[which].suffix}"
            path.write_bytes(flip_bytes(contents[which], rng))
            yield path

    answers = {"clip": 0, "reason": 0, "crash": 0, "hang": 0}
    for path, shape, failure in run_jobs(read_or_reason, write_inputs(), 2, seconds=20):
        path.unlink()
        assert (shape is None) != (failure is None)
        assert shape in (None, (4, 20, 24, 3))
        kind = "clip" if shape else "reason"
        kind = "crash" if failure and failure.startswith("its worker process") else kind
        kind = "hang" if failure and failure.startswith("took longer") else kind
        answers[kind] += 1
    print(f"\n{inputs} inputs: {answers}")
    assert sum(answers.values()) == inputs and answers["clip"] and answers["reason"]


def test_a_hanging_video_costs_its_time_limit_and_no_more(bad, tmp_path):
    """A decoder that never returns, here a pipe that nobody writes to behind the checks."""
    folder = tmp_path / "videos" / "Class"
    folder.mkdir(parents=True)
    good = (bad[0] / "videos" / "Class" / "good.avi").read_bytes()
    for number in range(3):
        (folder / f"{number}.avi").write_bytes(good)
    script = (
        "import sys, time; sys.argv[0] = 'extract_frames.py'\n"
        "import extract_frames\n"
        "whole = extract_frames.sample_video\n"
        "def read(path, *rest):\n"
        "    while path.name == '1.avi': time.sleep(1)\n"
        "    return whole(path, *rest)\n"
        "extract_frames.sample_video = read\n"
        "extract_frames.main(extract_frames.build_parser().parse_args())\n"
    )
    command = [*extract(tmp_path)[1:], "--timeout", 3]
    command = [sys.executable, "-c", script, *map(str, command)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 1
    failures = read_failures(tmp_path / "frames" / "failures.csv")
    assert failures == {"Class/1.avi": "took longer than 3 seconds"}
    assert len(list((tmp_path / "frames" / "Class").iterdir())) == 2
    assert not (tmp_path / "frames" / ".partial").exists()
