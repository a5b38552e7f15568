"""Caches that are damaged, stale, shared by several processes, or read by workers."""

import os
import pickle
import time

import cv2
import numpy as np
import pytest
import torch
from fuzzing import flip_bit
from helpers import start_ranks
from test_frames import write_frames

from datasets import cache
from datasets.cache import CachedDataset, build_cache
from datasets.frames import FrameDataset
from datasets.loaders import ClipLoader


@pytest.fixture
def data(tmp_path):
    for number, name in enumerate(("a", "b", "c")):
        write_frames(tmp_path / name, range(number, number + 12))
    return FrameDataset(["a", "b", "c"], [0, 1, 1], tmp_path, clip_frames=5)


@pytest.mark.parametrize("damage", ["empty", "rows", "header", "text", "pixel", "checksum", "more"])
def test_a_damaged_cache_is_built_again(damage, data, tmp_path, capsys):
    path = build_cache(data, 12, tmp_path / "cache", 1)
    whole = path.read_bytes()
    damaged = {
        "empty": b"",
        "rows": whole[:-500],
        "header": whole.replace(b"NUMPY", b"PICKL", 1),
        "text": b"x" * len(whole),
        "pixel": flip_bit(whole[:5000], np.random.default_rng(0), 4000) + whole[5000:],
        "checksum": whole[:-9] + flip_bit(whole[-9:], np.random.default_rng(0)),
        "more": whole + b"x",
    }
    path.write_bytes(damaged[damage])
    assert build_cache(data, 12, tmp_path / "cache", 1) == path
    assert path.read_bytes() == whole and f"{path}: damaged" in capsys.readouterr().out


def test_a_cache_of_an_earlier_version_is_used(data, tmp_path, capsys):
    """It has no checksums after the array."""
    path = build_cache(data, 12, tmp_path / "cache", 1)
    earlier = path.with_name(path.name.replace(".crc32", ""))
    earlier.write_bytes(path.read_bytes()[: -4 * len(data)])
    path.unlink()
    assert build_cache(data, 12, tmp_path / "cache", 1) == earlier
    assert not path.exists() and capsys.readouterr().out == ""
    assert np.array_equal(np.load(earlier)[1], data.read(1, 12))


def test_frames_that_are_overwritten_in_place_give_another_cache(data, tmp_path):
    first = build_cache(data, 12, tmp_path / "cache", 1)
    folder = os.stat(data.root / "b").st_mtime_ns
    grey = cv2.imencode(".jpg", np.full(data.frame_size, 90, np.uint8))[1].tobytes()
    with open(data.root / "b" / "3.jpg", "r+b") as file:
        file.truncate(), file.write(grey)
    assert os.stat(data.root / "b").st_mtime_ns == folder, "the folder itself shows nothing"
    second = build_cache(data, 12, tmp_path / "cache", 1)
    assert second != first and abs(int(np.load(second)[1, 2].mean()) - 90) <= 1


@pytest.mark.scripts
def test_workers_read_a_cache_on_disk_and_get_no_copy_of_it(data, tmp_path):
    path = build_cache(data, 12, tmp_path / "cache", 1)
    disk, ram = (
        CachedDataset(data, path, location, torch.device("cpu")) for location in ("disk", "ram")
    )
    assert len(pickle.dumps(disk)) < 2000 < len(pickle.dumps(ram))
    batches = [[(0, 5), (2, 6)], [(1, 7), (0, 8)]]
    loaders = [ClipLoader(dataset, 2, batch_sampler=batches) for dataset in (disk, ram)]
    assert [loader.num_workers for loader in loaders] == [2, 0]
    for (clips, labels), (others, same) in zip(*loaders, strict=True):
        assert torch.equal(clips, others) and torch.equal(labels, same)
    again = pickle.loads(pickle.dumps(disk))
    assert torch.equal(again.__getitems__(batches[0])[0], ram.__getitems__(batches[0])[0])


def build_and_print(root):
    build = cache._build

    def build_slowly(*rest):
        print("built", flush=True)
        time.sleep(1)
        build(*rest)

    cache._build = build_slowly
    print(build_cache(FrameDataset(["a", "b"], [0, 1], root, 5), 12, root / "cache", 1).name)


@pytest.mark.scripts
def test_of_several_processes_one_builds_the_cache(data, tmp_path):
    """Whatever machine each is on: no process has to be the first one of the run."""
    processes = start_ranks(3, tmp_path, build_and_print, tmp_path)
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert sum("built" in process.stdout for process in processes) == 1
    assert len({process.stdout.split()[-1] for process in processes}) == 1
