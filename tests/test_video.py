"""The stream, the times and the limits of datasets/video.py; pictures: test_video_colours.py."""

import gc
import subprocess
import sys

import av
import cv2
import numpy as np
import pytest
from helpers import ROOT
from video_charts import HAS_FFMPEG, chart, encode, fields, moment_of, patches

from datasets import sampling
from datasets.synthetic import write_clip
from datasets.video import VideoError, iterate_video, read_video

pytestmark = pytest.mark.scripts

needs_ffmpeg = pytest.mark.skipif(not HAS_FFMPEG, reason="no ffmpeg program")
H264 = "-c:v libx264 -pix_fmt yuv420p -qp 10"


def run_ffmpeg(inputs, options, output):
    """Run the ffmpeg program. inputs: list of paths. options: one string."""
    named = [word for path in inputs for word in ("-i", path)]
    command = ["ffmpeg", "-y", "-v", "error", *named, *options.split(), output]
    subprocess.run(list(map(str, command)), check=True)


@pytest.fixture
def moving(tmp_path):
    """A video of 20 moments, 10 per second; each shows its index."""
    path = tmp_path / "moving.mp4"
    if not HAS_FFMPEG or not encode(path, fields(20), H264, rate=10):
        pytest.skip("no ffmpeg with libx264")
    return path


def moments(path, **limits):
    return [moment_of(picture) for picture in read_video(path, 4, (96, 120), **limits)]


# ==== the stream ====


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("is_default", [True, False])
def test_a_still_before_the_video_is_not_taken(moving, tmp_path, suffix, is_default):
    still, both = tmp_path / "still.avi", tmp_path / f"both{suffix}"
    assert encode(still, chart()[None], "-c:v mjpeg")
    which = 0 if is_default else 1
    streams = f"-map 0 -map 1 -c copy -disposition:v 0 -disposition:v:{which} default"
    run_ffmpeg([still, moving], streams, both)
    with av.open(str(both)) as container:
        assert container.streams.video[0].codec_context.name == "mjpeg"
    assert moments(both) == moments(moving)


def test_a_cover_picture_is_not_taken(moving, tmp_path):
    cover, both, alone = tmp_path / "cover.png", tmp_path / "both.mp4", tmp_path / "alone.m4v"
    cv2.imwrite(str(cover), chart())
    run_ffmpeg([cover, moving], "-map 0 -map 1 -c copy -disposition:v:0 attached_pic", both)
    assert moments(both) == moments(moving)
    streams = "-f lavfi -i sine=duration=1 -map 0 -map 1 -c:v copy -disposition:v attached_pic"
    run_ffmpeg([cover], f"{streams} -f mp4", alone)
    with pytest.raises(VideoError, match="has no video stream"):
        read_video(alone, 1, (20, 24))


@needs_ffmpeg
def test_the_default_stream_is_taken(moving, tmp_path):
    other, both = tmp_path / "other.mp4", tmp_path / "both.mkv"
    assert encode(other, np.stack([chart()] * 20), H264, rate=10)
    for which in (0, 1):
        streams = f"-map 0 -map 1 -c copy -disposition:v 0 -disposition:v:{which} default"
        run_ffmpeg([moving, other], streams, both)
        picture = read_video(both, 1, (96, 120))[0]
        is_other = np.abs(patches(picture) - patches(chart())).max() < 10
        assert is_other == (which == 1)


def test_a_codec_without_decoder_is_named(moving, tmp_path):
    path = tmp_path / "unknown.avi"
    run_ffmpeg([moving], "-c:v mpeg4 -vtag XVID", path)
    path.write_bytes(path.read_bytes().replace(b"XVID", b"ZZZZ"))
    with pytest.raises(VideoError, match=r"cannot be decoded: .*ZZZZ.* has no decoder here"):
        read_video(path, 1, (20, 24))


def test_a_video_without_a_decodable_frame_is_refused_with_its_codec(tmp_path):
    path = tmp_path / "clip.avi"
    write_clip(path, "Sliding", 1, 1)
    assert len(read_video(path, 1, (20, 24))) == 1
    data = bytearray(path.read_bytes())
    chunk = data.index(b"movi") + 4
    while data[chunk : chunk + 4] == b"00dc":  # a frame: its kind, its size, a JPEG
        size = int.from_bytes(data[chunk + 4 : chunk + 8], "little")
        data[chunk + 8 : chunk + 8 + size] = bytes(size)
        chunk += 8 + size + size % 2
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"no frame could be decoded \(mjpeg\): "):
        read_video(path, 1, (20, 24))


# ==== times ====


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".flv", ".avi"])
def test_start_and_end_are_in_seconds_as_a_player_shows_them(moving, tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    run_ffmpeg([moving], "-c:v mpeg4 -q:v 2 -bf 2" if suffix == ".avi" else "-c copy", path)
    assert len(list(iterate_video(path, (20, 24)))) == 20
    assert moments(path, start=0.5, end=0.9) == [5, 6, 7, 8]
    assert moments(path, start=1.88) == [19] * 4
    with pytest.raises(VideoError, match="has no frame from 7 to inf s; its last is at 1.9 s"):
        moments(path, start=7)


# ==== limits ====

BOMB = b"GIF89a" + (16000).to_bytes(2, "little") * 2 + b"\xf0\0\0" + b"\0\0\0\xff\xff\xff"
BOMB += b",\0\0\0\0" + (16000).to_bytes(2, "little") * 2 + b"\0\x02\x16"
BOMB += (
    b"\x8c\x2d\x99\x87\x2a\x1c\xdc\x33\xa0\x02\x75\xec\x95\xfa\xa8\xde\x60\x8c\x04\x91\x4c\x01\0;"
)


def test_a_frame_too_large_is_refused_before_it_takes_memory(tmp_path):
    path = tmp_path / "bomb.gif"
    path.write_bytes(BOMB)
    script = (
        "import resource, sys\n"
        "from datasets.video import VideoError, read_video\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_video(sys.argv[1], 4, (20, 24))\n"
        "except VideoError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    reason, kib = run.stdout.splitlines()
    assert "frames of more than 67,108,864 pixels" in reason and int(kib) < 50_000


def test_large_frames_are_held_within_the_limit(moving, monkeypatch):
    """Whatever the limit, no more than it and one frame, or 2 x num_frames frames, are held."""
    most, make_room = [], sampling.RecentFrames._make_room

    def spy(recent):
        most.append(recent.held)
        make_room(recent)

    monkeypatch.setattr(sampling.RecentFrames, "_make_room", spy)
    frame = 576 * 720 * 3 // 2
    monkeypatch.setattr(sampling, "MOST_HELD_BYTES", 4 * frame)
    exact = read_video(moving, 4, (96, 120))
    assert most and max(most) < 5.5 * frame
    monkeypatch.setattr(sampling, "MOST_HELD_BYTES", 2**28)
    assert np.array_equal(exact, read_video(moving, 4, (96, 120))), "small pictures: still exact"
    monkeypatch.setattr(sampling, "MOST_HELD_BYTES", 1)
    most.clear()
    found = [moment_of(picture) for picture in read_video(moving, 2, (576, 720))]
    assert max(most) < 4.5 * frame and np.abs(np.subtract(found, [5, 15])).max() <= 5


def test_frames_are_freed_without_a_garbage_collection(moving):
    """Frames in circles of references would pile up: 12 MB each from a 4K video."""
    gc.collect()
    gc.disable()
    try:
        alive = [count_frames() for _ in iterate_video(moving, (20, 24))]
        assert len(alive) == 20 and max(alive) < 8
        read_video(moving, 4, (20, 24))
        assert count_frames() == 0
    finally:
        gc.enable()


def count_frames():
    """The decoded frames that are alive in this process."""
    return sum(type(one) is av.VideoFrame for one in gc.get_objects())


def test_a_frame_that_cannot_be_converted_is_a_failure_with_its_reason(moving, monkeypatch):
    class Unable:
        def reformat(self, *_, **__):
            raise av.error.OSError(95, "Operation not supported")

    monkeypatch.setattr("datasets.picture.VideoReformatter", Unable)
    with pytest.raises(VideoError, match="a frame of yuv420p cannot be converted: Operation not"):
        read_video(moving, 2, (20, 24))
