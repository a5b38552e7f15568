"""A data set of clips over a split list and the frame folders it names."""

import json
import re
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.frame_folders import recorded_frames
from datasets.splits import SplitError
from datasets.video import even_positions


def natural_key(name):
    """Sorting key under which frame 10 follows frame 9, not frame 1."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def list_frames(folder):
    """The JPEG files of a frame folder in natural order: list of Path. SplitError when empty."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SplitError(f"{folder}: no such frame folder; run extract_frames.py")
    frames = [f for f in folder.iterdir() if f.suffix.lower() in (".jpg", ".jpeg")]
    if not frames:
        raise SplitError(f"{folder}: no frames; rerun extract_frames.py")
    return sorted(frames, key=lambda f: natural_key(f.name))


def jittered_positions(available, wanted, rng):
    """Evenly spaced frames that start at a random place: the same place within every segment.

    One draw a clip moves all its frames together, so that motion keeps its pace; a draw a frame
    would shake it. rng: numpy.random.Generator.
    """
    return ((np.arange(wanted) + rng.random()) * available / wanted).astype(int)


def clip_request(item, wanted):
    """What a sampler asks for: an index, or (index, seed) for temporal jitter.

    Returns (index, choose): `choose` turns a number of frames into the positions of `wanted`.
    """
    if not isinstance(item, tuple):
        return item, partial(even_positions, wanted=wanted)
    index, seed = item
    rng = np.random.default_rng(seed)
    return index, partial(jittered_positions, wanted=wanted, rng=rng)


def read_frame(path):
    """One JPEG as (H, W, 3) uint8 RGB; SplitError when it is cut short or cannot be decoded."""
    try:
        with open(path, "rb") as file:
            encoded = file.read()
    except OSError as error:
        raise SplitError(f"{path}: {error.strerror}; run extract_frames.py again") from error
    is_whole = encoded.endswith(b"\xff\xd9")  # end of image; OpenCV greys what is missing
    pixels = np.frombuffer(encoded, np.uint8)
    frame = cv2.imdecode(pixels, cv2.IMREAD_COLOR_RGB) if is_whole else None
    if frame is None:
        raise SplitError(f"{path}: damaged; delete its folder and run extract_frames.py again")
    return frame


def read_extraction(root):
    """The settings with which extract_frames.py wrote `root`: dict, None if not its work.

    "num_frames" is the number of frames per video, 0 for all of them.
    """
    record = Path(root) / "extraction.json"
    if not record.exists():
        return None
    try:
        settings = json.loads(record.read_text(encoding="utf-8"))
        return {**settings, "num_frames": int(settings["num_frames"])}
    except (ValueError, KeyError, TypeError) as error:
        raise SplitError(f"{record}: damaged; delete {root} and run extract_frames.py") from error


def is_numbered(paths):
    """Whether sorted frames are 000000.jpg to the last one, as extract_frames.py names them."""
    return paths[-1].stem == f"{len(paths) - 1:06d}"


class FrameDataset(Dataset):
    """Clips of `clip_frames` frames from the folders that a split list names.

    An index alone gives the test-time clip, evenly spaced frames. A pair (index, seed) gives a
    training clip with temporal jitter that is a function of the seed, whichever worker reads it.

    names: paths relative to `frames_root`. labels: class ids.
    Items: clip (T, H, W, 3) uint8 RGB tensor, label int. Raises SplitError, at once for missing
    folders and when read for damaged frames.
    """

    def __init__(self, names, labels, frames_root, clip_frames):
        self.names, self.labels = names, labels
        self.root, self.clip_frames = Path(frames_root), clip_frames
        missing = [name for name in names if not (self.root / name).is_dir()]
        if missing:
            raise SplitError(
                f"{len(missing)} of {len(names)} frame folders are missing under {self.root}, "
                f"the first is {missing[0]}; run extract_frames.py, or correct --frames"
            )
        self.extraction = read_extraction(self.root)
        self.extracted = self.extraction and self.extraction["num_frames"]
        self.frame_size = read_frame(list_frames(self.root / names[0])[0]).shape if names else None

    def __len__(self):
        return len(self.names)

    def __getitem__(self, item):
        index, choose = clip_request(item, self.clip_frames)
        return torch.from_numpy(self.read(index, choose)), self.labels[index]

    def read(self, index, choose):
        """Frames of a video as (T, H, W, 3) uint8; `choose` turns their number into positions."""
        folder = self.root / self.names[index]
        paths = list_frames(folder)
        expected = self.extracted or recorded_frames(folder) or len(paths)
        if len(paths) != expected or (self.extracted is not None and not is_numbered(paths)):
            raise SplitError(
                f"{folder}: frames are missing; rerun extract_frames.py, which completes them"
            )
        positions = choose(len(paths))
        clip = np.empty((len(positions), *self.frame_size), np.uint8)
        for t, position in enumerate(positions):
            frame = read_frame(paths[position])
            if frame.shape != self.frame_size:
                raise SplitError(
                    f"{paths[position]} is {frame.shape[:2]}, other frames are "
                    f"{self.frame_size[:2]}; extract all videos with one --size"
                )
            clip[t] = frame
        return clip
