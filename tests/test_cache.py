"""Cached clips equal those read from the frame folders, and a stale cache is never used."""

import os
import shutil

import numpy as np
import pytest
import torch
from test_frames import write_frames

from datasets.cache import CachedDataset, build_cache
from datasets.frames import FrameDataset
from datasets.splits import SplitError

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path):
    for number, name in enumerate(("a", "b", "c")):
        write_frames(tmp_path / name, range(number, number + 12))
    return FrameDataset(["a", "b", "c"], [0, 1, 1], tmp_path, clip_frames=5)


@pytest.mark.parametrize("location", ["disk", "ram", "device"])
def test_cached_clips_are_those_of_the_frame_folders(data, tmp_path, location):
    path = build_cache(data, 12, tmp_path / "cache", workers=2)
    cached = CachedDataset(data, path, location, CPU)
    items = [1, 0, (2, 77), (2, 78), (0, 77)]
    clips, labels = cached.__getitems__(items)
    assert clips.dtype == torch.uint8 and clips.shape == (5, 5, 8, 12, 3)
    for item, clip, label in zip(items, clips, labels, strict=True):
        expected, expected_label = data[item]
        assert torch.equal(clip, expected) and label == expected_label
    assert sorted(os.listdir(tmp_path / "cache")) == [".lock", path.name]


def test_a_cache_is_found_again_and_never_stale(data, tmp_path):
    folder = tmp_path / "cache"
    first = build_cache(data, 12, folder, 1)
    changed = first.stat().st_mtime_ns
    assert build_cache(data, 12, folder, 1) == first and first.stat().st_mtime_ns == changed
    assert build_cache(data, 6, folder, 1) != first
    fewer = FrameDataset(["a", "b"], [0, 1], data.root, 5)
    assert build_cache(fewer, 12, folder, 1) != first

    shutil.rmtree(data.root / "b")
    write_frames(data.root / "b", range(10, 22))  # extracted anew, under the same name
    second = build_cache(data, 12, folder, 1)
    assert second != first
    assert np.array_equal(np.load(second)[1, 0], data.read(1, 12)[0])


def test_a_failure_leaves_no_cache(data, tmp_path):
    (data.root / "c" / "5.jpg").write_bytes(b"damaged")
    with pytest.raises(SplitError, match="damaged"):
        build_cache(data, 12, tmp_path / "cache", 2)
    assert os.listdir(tmp_path / "cache") == [".lock"]


def test_what_does_not_fit_is_refused_with_the_sizes(data, tmp_path, monkeypatch):
    path = build_cache(data, 12, tmp_path / "cache", 1)
    monkeypatch.setattr("datasets.cache._free_memory", lambda: 100)
    with pytest.raises(SplitError, match="--cache ram: the clips need 0.0 GB.*--cache disk"):
        CachedDataset(data, path, "ram", CPU)
    full = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    with pytest.raises(SplitError, match="--cache-folder"):
        build_cache(data, 11, tmp_path / "cache", 1)


@pytest.mark.parametrize("location", ["disk", "ram"])
def test_views_are_read_at_test_time_only(data, tmp_path, location):
    several = FrameDataset(data.names, data.labels, data.root, clip_frames=3, views=2)
    cached = CachedDataset(several, build_cache(several, 12, tmp_path / "cache", 2), location, CPU)
    clips, labels = cached.__getitems__([2, 0])
    assert clips.shape[1] == len(several[2][0]) == 6 and labels.tolist() == [1, 0]
    assert cached.__getitems__([(2, 7)])[0].shape[1] == len(several[2, 7][0]) == 3
