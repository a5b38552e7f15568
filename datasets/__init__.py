"""Clips from frame folders, batches for triplets, and transforms on the device."""

from datasets.frames import (
    FrameFolders,
    SplitError,
    list_frames,
    read_classes,
    read_frame,
    read_split,
)
from datasets.samplers import PKBatchSampler
from datasets.transforms import augment, prepare

__all__ = [
    "FrameFolders",
    "PKBatchSampler",
    "SplitError",
    "list_frames",
    "read_classes",
    "read_frame",
    "read_split",
    "prepare",
    "augment",
]
