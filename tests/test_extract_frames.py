"""extract_frames.py on real and synthetic videos, through the command line and its functions."""

import csv
import os
import shutil

import cv2
import numpy as np
import pytest

import extract_frames
from datasets.sampling import even_positions
from datasets.synthetic import write_clip
from datasets.video import VideoError, read_video
from datasets.video_files import find_class_videos
from utils.errors import UserError

HARD_NAMES = [
    "plain",
    "(challenge)_HARDCORE_VERSION!_clap_u_nm_np1_fr_bad_0",
    "#20_Rhythm_clap_u_nm_np1_fr_goo_0",
    "a [b] & c; d+e@f~g",
    "Übung 東京",
    "-dash.dotted.name",
]


def write_numbered(path, frames, side=64):
    """A video whose frame i has the grey level i (mod 200), so that a frame shows its index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter_fourcc(*"MJPG"), 25, (side, side)
    )
    for i in range(frames):
        writer.write(np.full((side, side, 3), 20 + i % 200, np.uint8))
    writer.release()


def levels(frames):
    return frames.mean(axis=(1, 2, 3)).round().astype(int) - 20


@pytest.fixture
def videos(tmp_path):
    write_numbered(tmp_path / "one.avi", 40)
    for name in HARD_NAMES:
        path = tmp_path / "videos" / "clap" / f"{name}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "one.avi", path)
    return tmp_path / "videos"


def test_frames_are_spread_evenly_and_short_videos_repeat(tmp_path):
    write_numbered(tmp_path / "v.avi", 50)
    expected = even_positions(50, 8)
    assert np.abs(levels(read_video(tmp_path / "v.avi", 8, (32, 32))) - expected).max() <= 1
    write_numbered(tmp_path / "short.avi", 3)
    repeated = levels(read_video(tmp_path / "short.avi", 8, (32, 32)))
    assert len(repeated) == 8 and set(repeated) == {0, 1, 2} and (np.diff(repeated) >= 0).all()


def test_long_videos_are_sampled_in_bounded_memory(tmp_path, monkeypatch):
    for held in (64, 32, 1):  # in small frames; 2 x 8 candidates are kept in any case
        monkeypatch.setattr("datasets.sampling.MOST_HELD_BYTES", held * 3 * 16 * 16)
        for side in (16, 64):  # frames as large as their pictures, or larger
            write_numbered(tmp_path / "v.avi", 190, side=side)
            clip = levels(read_video(tmp_path / "v.avi", 8, (16, 16)))
            error = np.abs(clip - even_positions(190, 8)).max()
            assert error <= max(190 / held, 190 / 16), (held, side, error)


def test_frames_are_rgb(tmp_path):
    frame = np.zeros((32, 32, 3), np.uint8)
    frame[..., 2] = 255  # red, as OpenCV orders it
    path = str(tmp_path / "red.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 25, (32, 32))
    writer.write(frame)
    writer.release()
    clip = read_video(path, 2, (16, 24))
    assert clip.shape == (2, 16, 24, 3)
    assert clip[..., 0].min() > 230 and clip[..., 1:].max() < 30


@pytest.mark.parametrize("content", [b"", b"this is text, not a video", os.urandom(4096)])
def test_unreadable_videos_raise(tmp_path, content):
    (tmp_path / "bad.avi").write_bytes(content)
    with pytest.raises(VideoError):
        read_video(tmp_path / "bad.avi", 4, (16, 16))


def test_names_survive_and_a_second_run_does_nothing(videos, tmp_path, run_script):
    frames = tmp_path / "frames"
    command = ["extract_frames.py", "--videos", videos, "--frames", frames, "--num-frames", 4]
    command += ["--size", 24, 32, "--workers", 2]
    assert "6 videos done, 0 already there, 0 failed" in run_script(*command).stdout
    assert sorted(f.name for f in (frames / "clap").iterdir()) == sorted(HARD_NAMES)
    for name in HARD_NAMES:
        files = sorted(f.name for f in (frames / "clap" / name).iterdir())
        assert files == [*(f"{i:06d}.jpg" for i in range(4)), "video.json"]
    picture = cv2.imread(str(frames / "clap" / "plain" / "000000.jpg"))
    assert picture.shape == (24, 32, 3)
    assert not (frames / ".partial").exists()
    with open(frames / "videos.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["video"] for row in rows) == sorted(f"clap/{name}.avi" for name in HARD_NAMES)
    for row in rows:  # 40 frames at 25 per second
        decoded = row["decoded"], row["seconds"], row["width"], row["height"]
        assert decoded == ("40", "1.6", "64", "64")

    shutil.rmtree(frames / "clap" / "plain")
    before = (frames / "clap" / HARD_NAMES[1] / "000000.jpg").stat().st_mtime_ns
    assert "1 videos done, 5 already there, 0 failed" in run_script(*command).stdout
    assert (frames / "clap" / HARD_NAMES[1] / "000000.jpg").stat().st_mtime_ns == before

    refused = run_script(*command[:-2], "--quality", 50, status=1)
    assert "was extracted with" in refused.stderr and "Traceback" not in refused.stderr


def test_shards_divide_the_videos(videos, tmp_path, run_script):
    frames = tmp_path / "frames"
    command = ["extract_frames.py", "--videos", videos, "--frames", frames, "--num-frames", 2]
    assert "2 videos done" in run_script(*command, "--shard", "2/4").stdout
    assert len(list((frames / "clap").iterdir())) == 2
    done = [run_script(*command, "--shard", f"{i}/4").stdout.split()[0] for i in (1, 3, 4)]
    assert done == ["2", "1", "1"]
    assert "0 videos done, 6 already there" in run_script(*command).stdout
    run_script(*command, "--shard", "5/4", status=2)


def test_every_frame_is_kept_on_request(tmp_path, run_script):
    write_numbered(tmp_path / "videos" / "c" / "v.avi", 23)
    frames = tmp_path / "frames"
    command = ["extract_frames.py", "--videos", tmp_path / "videos", "--frames", frames]
    run_script(*command, "--num-frames", 0, "--size", 16, 16)
    assert len(list((frames / "c" / "v").glob("*.jpg"))) == 23


def test_unreadable_videos_are_listed_and_the_rest_go_on(videos, tmp_path, run_script):
    (videos / "clap" / "broken, really.mp4").write_bytes(b"no video")
    command = ["extract_frames.py", "--videos", videos, "--frames", tmp_path / "frames"]
    result = run_script(*command, status=1)
    assert "6 videos done, 0 already there, 1 failed" in result.stdout
    with open(tmp_path / "frames" / "failures.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == ["clap/broken, really.mp4"]
    assert "opened" in rows[0]["reason"]
    assert not (tmp_path / "frames" / "clap" / "broken, really").exists()

    shutil.copy(tmp_path / "one.avi", videos / "clap" / "broken, really.mp4")
    assert "1 videos done, 6 already there, 0 failed" in run_script(*command).stdout
    assert not (tmp_path / "frames" / "failures.csv").exists()


def test_videos_that_differ_only_in_suffix_do_not_overwrite_each_other(tmp_path):
    videos, frames = tmp_path / "videos", tmp_path / "frames"
    for name in ("a.avi", "a.mp4", "b.avi"):
        (videos / "c").mkdir(parents=True, exist_ok=True)
        (videos / "c" / name).touch()
    plan = extract_frames.plan_folders(find_class_videos(videos)[0], frames)
    assert [str(f.relative_to(frames)) for f in plan.values()] == ["c/a.avi", "c/a.mp4", "c/b"]

    (frames / "c" / "a").mkdir(parents=True)  # from a run before a.mp4 was there
    with pytest.raises(UserError, match="could be of either"):
        extract_frames.plan_folders(find_class_videos(videos)[0], frames)


def test_a_folder_without_videos_is_refused(tmp_path):
    write_clip(tmp_path / "top_level.avi", "Sliding", 0, 0)
    with pytest.raises(UserError, match="<class>/<name>"):
        find_class_videos(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        find_class_videos(tmp_path / "nowhere")


def test_files_that_are_passed_over_are_counted(videos, tmp_path, run_script):
    shutil.copy(tmp_path / "one.avi", videos)  # in no class folder
    (videos / "clap" / "deeper").mkdir()
    shutil.copy(tmp_path / "one.avi", videos / "clap" / "deeper")
    (videos / "clap" / "notes.txt").touch()
    (videos / "clap" / ".hidden").touch()
    command = ["extract_frames.py", "--videos", videos, "--frames", videos / "frames"]
    line = "6 videos done, 0 already there, 0 failed; 3 other files ignored\n"
    assert run_script(*command).stdout == line
    again = "0 videos done, 6 already there, 0 failed; 3 other files ignored\n"
    assert run_script(*command).stdout == again, "the frames, in the same folder, are not counted"


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("v_ApplyEyeMakeup_g01_c01.avi", 164),
        ("v_BaseballPitch_g01_c01.avi", 107),
        ("demo.mp4", 280),
        ("v_CricketShot_g04_c01_rgb.gif", 79),
        ("S001C001P001R001A001_rgb.avi", 103),
    ],
)
def test_real_codecs_decode_whole(data, name, frames):
    clip = read_video(data("clips") / name, frames, (32, 40))
    assert clip.shape == (frames, 32, 40, 3)
    assert clip.std() > 10 and len(np.unique(clip.mean(axis=(1, 2, 3)))) > frames // 2
