"""The windows of long videos: what each shows, their times, one pass, bounded memory."""

from fractions import Fraction

import av
import numpy as np
import pytest

from datasets import sampling, video
from datasets.picture import VideoError
from datasets.video import read_video, read_windows
from retrieval.encode import smooth

SIZE = (32, 48)
BITS = 12  # of the number that a picture shows, in a grid of 3 x 4 black and white squares


def picture_of(number):
    """A (96, 128, 3) picture that shows a number in large squares, which any codec keeps."""
    bits = (number >> np.arange(BITS)) & 1
    grid = np.where(bits.reshape(3, 4), 230, 20).astype(np.uint8)
    return np.repeat(np.repeat(grid, 32, 0), 32, 1)[:, :, None].repeat(3, 2)


def number_of(picture):
    """The number that a picture of any size shows."""
    height, width = picture.shape[:2]
    rows = [round((row + 0.5) * height / 3) for row in range(3)]
    columns = [round((column + 0.5) * width / 4) for column in range(4)]
    bits = picture[np.ix_(rows, columns)].mean(axis=2).flatten() > 125
    return int((bits << np.arange(BITS)).sum())


def write_video(path, times, codec="mpeg4", offset=0.0):
    """A video whose frame number n is shown at times[n], in seconds from `offset`.

    AVI has no times; there the frames are a tenth of a second apart.
    """
    unit = Fraction(1, 10 if path.suffix == ".avi" else 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = 128, 96
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = unit
        stream.bit_rate = 4_000_000
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture_of(number), format="rgb24")
            frame.pts, frame.time_base = round((time + offset) / unit), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def steady(seconds):
    return np.arange(round(10 * seconds)) / 10


def windows(path, frames=4, window=2.0, stride=1.0, **limits):
    """(start, end, numbers of the frames) of each window."""
    return [
        (round(start, 3), round(end, 3), [number_of(picture) for picture in clip])
        for start, end, clip in read_windows(path, frames, SIZE, window, stride, **limits)
    ]


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mov"])
def test_windows_have_the_frames_of_their_times(tmp_path, suffix):
    path = write_video(tmp_path / f"v{suffix}", steady(5.5))
    found = windows(path)
    starts = [start for start, *_ in found]
    assert starts == pytest.approx([0, 1, 2, 3, 3.5], abs=0.1), "the last one ends with the video"
    assert found[0] == (0, 2, [2, 7, 12, 17]) and found[2] == (2, 4, [22, 27, 32, 37])
    assert found[-1][1] == pytest.approx(5.5, abs=0.11)


def test_a_window_equals_the_clip_of_its_seconds(tmp_path):
    path = write_video(tmp_path / "v.mkv", steady(7.3))
    for start, end, clip in read_windows(path, 5, SIZE, 1.5, 0.7):
        assert np.array_equal(clip, read_video(path, 5, SIZE, start, end)), start


def test_a_video_of_up_to_two_windows_has_one(tmp_path):
    path = write_video(tmp_path / "v.mkv", steady(4))
    assert windows(path) == [(0, 4, [5, 15, 25, 35])]
    for limits in ({"window": 50.0}, {"window": np.inf, "stride": np.inf}):
        ((start, _, numbers),) = windows(path, **limits)
        assert start == 0 and numbers == [5, 15, 25, 35]
    longer = write_video(tmp_path / "longer.mkv", steady(4.1))
    assert [start for start, *_ in windows(longer)][:3] == [0, 1, 2]


def test_variable_frame_rates_are_followed(tmp_path):
    """Ten frames in the first second, then one per second, then ten frames again."""
    times = [*np.arange(10) / 10, *range(1, 9), *(9 + np.arange(10) / 10)]
    path = write_video(tmp_path / "v.mkv", times, offset=3.0)  # a player shows 0 at the first one
    found = {start: numbers for start, _, numbers in windows(path, frames=2)}
    assert found[0.0] == [2, 8] and found[4.0] == [13, 14] and found[8.0] == [19, 25]
    assert len(found) == 9


def test_a_gap_in_the_times_has_no_windows_and_takes_no_time(tmp_path):
    times = [*steady(5), *(100_000 + steady(3))]
    path = write_video(tmp_path / "v.mkv", times, "mjpeg")
    starts = [start for start, *_ in windows(path, stride=0.01)]
    assert starts[0] == 0 and max(starts) > 99_999 and len(starts) < 1500
    assert not [start for start in starts if 5 < start < 99_997]


def test_strides_longer_than_the_window_leave_parts_out(tmp_path):
    path = write_video(tmp_path / "v.mkv", steady(9))
    assert [start for start, *_ in windows(path, window=1.0, stride=3.0)] == [0, 3, 6]


def test_a_part_of_a_video_has_its_windows(tmp_path):
    path = write_video(tmp_path / "v.mkv", steady(12))
    found = windows(path, start=3.0, end=8.5)
    assert [start for start, *_ in found] == [3, 4, 5, 6, 6.5]
    assert found[0][2] == [32, 37, 42, 47] and found[-1][1] == 8.5
    ((start, end, numbers),) = windows(path, start=3.0, end=5.0)
    assert (start, end, numbers) == (3, 5, [32, 37, 42, 47])


@pytest.mark.parametrize("held", [20, 60])
def test_memory_is_bounded_and_the_frames_are_nearly_the_same(tmp_path, monkeypatch, held):
    """As of a long window of a film: the frames are kept at a stride."""
    path = write_video(tmp_path / "v.mkv", steady(30))
    exact = windows(path, window=12.0, stride=6.0)
    most, add = [], sampling.RecentFrames.add

    def spy(recent, frame):
        add(recent, frame)
        most.append(recent.held)

    monkeypatch.setattr(sampling.RecentFrames, "add", spy)
    monkeypatch.setattr(sampling, "MOST_HELD_BYTES", held * SIZE[0] * SIZE[1] * 3)
    near = windows(path, window=12.0, stride=6.0)
    assert max(most) <= (held + 8) * SIZE[0] * SIZE[1] * 3 and near != exact
    for (*times, numbers), (*others, expected) in zip(near, exact, strict=True):
        assert times == others and np.abs(np.subtract(numbers, expected)).max() <= 480 / held


@pytest.mark.parametrize("stride", [0.3, 0.5, 2 / 3, 1.0, 2.5])
def test_codes_are_averaged_over_windows_that_overlap_by_two_thirds(stride):
    values = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    starts = [4 + stride * number for number in range(8)]
    starts.append(starts[-1] + stride / 3)  # the last window ends with the video
    moments = [(start, start + 2, value) for start, value in zip(starts, values, strict=True)]
    for (start, end, code), moment in zip(smooth(moments), moments, strict=True):
        near = [value for other, _, value in moments if abs(other - start) <= 2 / 3 + 1e-9]
        assert (start, end) == moment[:2] and code.dtype == np.float32
        assert code == pytest.approx(np.mean(near, axis=0), abs=1e-6)
    assert smooth(moments[:1]) == moments[:1] and smooth([]) == []


def test_each_frame_is_decoded_once(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mkv", steady(10))
    count, decode = [], video.decode

    def counting(*arguments):
        for frame in decode(*arguments):
            count.append(frame.seconds)
            yield frame

    monkeypatch.setattr(video, "decode", counting)
    assert len(windows(path, stride=0.25)) == 33 and len(count) == 100


def test_a_video_that_changes_while_it_is_read_fails_after_its_windows(tmp_path):
    path = write_video(tmp_path / "v.mkv", steady(10))
    found = read_windows(path, 4, SIZE, 2.0, 1.0)
    next(found)
    with open(path, "ab") as file:
        file.write(b"more")
    with pytest.raises(VideoError, match="changed while it was read"):
        list(found)
