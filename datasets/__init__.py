"""Clips from frame folders, batches for triplets, and transforms on the device."""

from datasets.cache import PLACES, CachedClips, build_cache
from datasets.frames import (
    FrameFolders,
    SplitError,
    check_disjoint,
    even_frames,
    list_frames,
    read_classes,
    read_frame,
    read_split,
)
from datasets.loaders import ClipLoader, build_loaders
from datasets.samplers import PKBatchSampler
from datasets.transforms import augment, prepare

__all__ = [
    "PLACES",
    "CachedClips",
    "ClipLoader",
    "build_cache",
    "build_loaders",
    "FrameFolders",
    "PKBatchSampler",
    "SplitError",
    "check_disjoint",
    "even_frames",
    "list_frames",
    "read_classes",
    "read_frame",
    "read_split",
    "prepare",
    "augment",
]
