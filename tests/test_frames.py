"""Split lists, frame folders and the clips read from them."""

import json
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import torch

from datasets.frame_files import list_frames, read_frame
from datasets.frame_folders import RECORD
from datasets.frames import FrameDataset, clip_positions
from datasets.picture import Frame, shown_size
from datasets.splits import SplitError, read_split
from reports.examples import read_shown


def write_frames(folder, numbers, size=(8, 12), name="{}.jpg"):
    """Grey frames whose level is ten times their number."""
    folder.mkdir(parents=True)
    for number in numbers:
        frame = np.full((*size, 3), 10 * number, np.uint8)
        cv2.imwrite(str(folder / name.format(number)), frame)


def test_frames_are_in_natural_order_not_in_that_of_text(tmp_path):
    write_frames(tmp_path / "a", range(12))  # 0.jpg ... 11.jpg, as other extractors name them
    assert [frame.name for frame in list_frames(tmp_path / "a")] == [f"{i}.jpg" for i in range(12)]
    clip, _ = FrameDataset(["a"], [0], tmp_path, clip_frames=12)[0]
    assert (clip[:, 0, 0, 0].diff() > 0).all()


def test_names_with_other_digits_are_in_order(tmp_path):
    """Superscripts count as digits in Python, but are no numbers."""
    write_frames(tmp_path / "a", range(12), name="5²{}.jpg")
    names = [frame.name for frame in list_frames(tmp_path / "a")]
    assert names == [f"5²{i}.jpg" for i in range(12)]


def test_a_frame_that_claims_four_billion_pixels_is_refused(tmp_path):
    path = tmp_path / "0.jpg"
    jpeg = bytearray(cv2.imencode(".jpg", np.zeros((8, 12, 3), np.uint8))[1].tobytes())
    size = jpeg.find(b"\xff\xc0") + 5
    jpeg[size : size + 4] = b"\xff\xdc\xff\xdc"
    path.write_bytes(jpeg)
    with pytest.raises(SplitError, match="damaged"):
        read_frame(path)


def test_a_clip_is_uint8_rgb_with_its_label(tmp_path):
    (tmp_path / "a").mkdir()
    red = np.zeros((8, 12, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / "a" / "0.jpg"), red)
    clip, label = FrameDataset(["a"], [3], tmp_path, clip_frames=4)[0]
    assert clip.shape == (4, 8, 12, 3) and clip.dtype == torch.uint8 and label == 3
    assert clip[0, 0, 0, 0] > 240 and clip[0, 0, 0, 2] < 15


@pytest.mark.parametrize(("available", "wanted"), [(32, 16), (33, 16), (16, 16), (5, 16), (1, 4)])
def test_positions_cover_the_video_in_order(available, wanted):
    even = clip_positions(available, wanted)
    assert len(even) == wanted and even.min() >= 0 and even.max() < available
    assert (np.diff(even) >= 0).all()
    assert abs(even.mean() - (available - 1) / 2) <= 0.5
    segments = np.arange(wanted) * available / wanted
    for seed in range(20):
        drawn = clip_positions(available, wanted, seed)
        assert (drawn >= np.floor(segments)).all()
        assert (drawn < np.maximum(segments + available / wanted, drawn.min() + 1)).all()
        assert drawn.max() < available
        assert np.ptp(np.diff(drawn)) <= 1  # as even as whole frames allow: the pace is kept


def test_reports_show_videos_in_their_own_aspect_ratio(tmp_path):
    """Frames are often extracted at another one, such as 64 x 64."""
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "000000.jpg"), np.zeros((64, 64, 3), np.uint8))
    record = {"video": "a.avi", "size": 1, "mtime_ns": 1, "frames": 1, "decoded": 9}
    record |= {"seconds": 1.0, "width": 360, "height": 240}
    (tmp_path / "new" / RECORD).write_text(json.dumps(record))
    data = FrameDataset(["new", "old"], [0, 0], tmp_path, 1)
    assert data.aspect(0) == 1.5 and data.aspect(1) is None
    assert read_shown(data, 0, 2).shape == (2, 64, 96, 3)
    assert read_shown(data, 1, 2).shape == (2, 64, 64, 3)


@pytest.mark.parametrize(("pixel_aspect", "width"), [(1, 64), (2, 128), (Fraction(3, 4), 48)])
def test_the_size_of_a_video_is_that_of_square_pixels(pixel_aspect, width):
    frame = Frame(av.VideoFrame(64, 48, "yuv420p"), pixel_aspect)
    assert shown_size(frame) == (48, width)


def test_jitter_is_a_function_of_the_seed_alone(tmp_path):
    write_frames(tmp_path / "a", range(24))
    data = FrameDataset(["a"], [0], tmp_path, clip_frames=6)
    first, again, other = data[0, 5][0], data[0, 5][0], data[0, 6][0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(data[0][0], data[0][0])


def test_the_last_blank_separates_path_and_class(tmp_path):
    path = tmp_path / "train.txt"
    path.write_bytes("\ufeffa b/ü [1] x.y 0\r\n\r\n b/c 12 1  \n".encode())
    assert read_split(path, 2) == (["a b/ü [1] x.y", " b/c 12"], [0, 1])


@pytest.mark.parametrize(
    "line",
    ["only_a_path", "path -1", "path x", "path 1.0", "path ²", "p 2", "p " + "1" * 5000]
    + ["p" * 100_000, "p\0 1", "a/b 1", "./a//b 1", "../p 1", "/p 1"],
)
def test_bad_lines_are_refused_with_their_number(tmp_path, line):
    path = tmp_path / "train.txt"
    path.write_text(f"a/b 0\n{line}\n", encoding="utf-8")
    with pytest.raises(SplitError, match="train.txt:2") as error:
        read_split(path, 2)
    assert len(str(error.value)) < 300 + len(str(path))


def test_missing_empty_damaged_and_unequal_frames_are_refused(tmp_path):
    write_frames(tmp_path / "good", [0])
    write_frames(tmp_path / "other_size", [0], size=(6, 6))
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "0.jpg").write_bytes(b"not a jpeg")
    with pytest.raises(SplitError, match="no such list"):
        read_split(tmp_path / "nothing.txt", 1)
    with pytest.raises(SplitError, match="1 of 2 frame folders are missing"):
        FrameDataset(["good", "gone"], [0, 0], tmp_path, 2)
    for name, message in (
        ("other_size", "extract all videos with one --size"),
        ("empty", "no frames"),
        ("damaged", "damaged; delete its folder"),
    ):
        with pytest.raises(SplitError, match=message):
            FrameDataset(["good", name], [0, 0], tmp_path, 2)[1]
