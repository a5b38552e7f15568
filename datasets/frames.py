"""A Dataset of clips, read from frame folders."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.frame_files import is_numbered, list_frames, read_frame
from datasets.frame_folders import read_extraction, read_record, recorded_frames
from datasets.sampling import even_positions
from datasets.splits import SplitError


def clip_positions(available, wanted, seed=None):
    """The positions of `wanted` frames among `available`, one in each of `wanted` equal segments.

    Without a seed, the middle of each segment. With one, a random point of the segment, the same
    in all of them: temporal jitter must not change the pace of the motion.
    """
    if seed is None:
        return even_positions(available, wanted)
    offset = np.random.default_rng(seed).random()
    return ((np.arange(wanted) + offset) * available / wanted).astype(int)


def split_item(item):
    """The (index, seed) of what a sampler yields: such a pair, or an index alone without a seed."""
    return item if isinstance(item, tuple) else (item, None)


class FrameDataset(Dataset):
    """Clips of `clip_frames` frames from the folders that a split list names.

    data[index] is the test-time clip, evenly spaced frames. data[index, seed] is a training clip
    with temporal jitter, which depends on the seed only, whichever worker reads it.

    names: paths relative to `frames_root`. labels: class ids. views: V, the test-time clip has
    V * clip_frames frames, which `prepare` divides into V clips.
    Items: clip (T, H, W, 3) uint8 RGB tensor, label int. Raises SplitError, at once for missing
    folders and when read for damaged frames.
    """

    def __init__(self, names, labels, frames_root, clip_frames, views=1):
        self.names, self.labels, self.views = names, labels, views
        self.root, self.clip_frames = Path(frames_root), clip_frames
        missing = [name for name in names if not (self.root / name).is_dir()]
        if missing:
            raise SplitError(
                f"{len(missing)} of {len(names)} frame folders are missing under {self.root}, such "
                f"as {missing[0]}; run extract_frames.py, or correct --frames"
            )
        self.extraction = read_extraction(self.root)
        self.extracted = self.extraction and self.extraction["num_frames"]
        self.frame_size = read_frame(list_frames(self.root / names[0])[0]).shape if names else None

    def __len__(self):
        return len(self.names)

    def __getitem__(self, item):
        index, seed = split_item(item)
        num_frames = self.clip_frames * (self.views if seed is None else 1)
        return torch.from_numpy(self.read(index, num_frames, seed)), self.labels[index]

    def aspect(self, index):
        """Width over height of a video as a player shows it; None if its extraction is an old one.

        Frames are often extracted at another one.
        """
        record = read_record(self.root / self.names[index]) or {}
        return record["width"] / record["height"] if "height" in record else None

    def read(self, index, num_frames, seed=None):
        """`num_frames` frames of a video, see `clip_positions`: (num_frames, H, W, 3) uint8."""
        folder = self.root / self.names[index]
        paths = list_frames(folder)
        expected = self.extracted or recorded_frames(folder) or len(paths)
        if len(paths) != expected or (self.extracted is not None and not is_numbered(paths)):
            raise SplitError(
                f"{folder}: frames are missing; rerun extract_frames.py, which completes them"
            )
        clip = np.empty((num_frames, *self.frame_size), np.uint8)
        for t, position in enumerate(clip_positions(len(paths), num_frames, seed)):
            frame = read_frame(paths[position])
            if frame.shape != self.frame_size:
                raise SplitError(
                    f"{paths[position]} is {frame.shape[:2]}, other frames are "
                    f"{self.frame_size[:2]}; extract all videos with one --size"
                )
            clip[t] = frame
        return clip
