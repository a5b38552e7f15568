"""The JPEG files of a frame folder. This file imports no PyTorch."""

import re
from pathlib import Path

import cv2
import numpy as np

from datasets.splits import SplitError


def natural_key(name):
    """Sorting key under which frame 10 follows frame 9, not frame 1."""
    words = re.split(r"([0-9]+)", name)
    return [int(word) if index % 2 else word for index, word in enumerate(words)]


def list_frames(folder):
    """The JPEG files of a frame folder in natural order: list of Path. SplitError when empty."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SplitError(f"{folder}: no such frame folder; run extract_frames.py")
    frames = [path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg")]
    if not frames:
        raise SplitError(f"{folder}: no frames; rerun extract_frames.py")
    return sorted(frames, key=lambda path: natural_key(path.name))


def is_numbered(paths):
    """Whether sorted frames are 000000.jpg to the last one, as extract_frames.py names them."""
    return paths[-1].stem == f"{len(paths) - 1:06d}"


def read_frame(path):
    """One JPEG as (H, W, 3) uint8 RGB; SplitError when it is cut short or cannot be decoded."""
    try:
        with open(path, "rb") as file:
            encoded = file.read()
    except OSError as error:
        raise SplitError(f"{path}: {error.strerror}; rerun extract_frames.py") from error
    is_complete = encoded.endswith(b"\xff\xd9")  # end of image; OpenCV would fill up with grey
    pixels = np.frombuffer(encoded, np.uint8)
    try:
        frame = cv2.imdecode(pixels, cv2.IMREAD_COLOR_RGB) if is_complete else None
    except cv2.error:  # its header claims more pixels than OpenCV reads
        frame = None
    if frame is None:
        raise SplitError(f"{path}: damaged; delete its folder and rerun extract_frames.py")
    return frame
