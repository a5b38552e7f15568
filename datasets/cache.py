"""Decoded clips as one uint8 array, so that training reads no JPEG twice.

The array (N, F, H, W, 3) is built once from the frame folders and kept in a file. Its name is a
hash of all that it depends on: the list, the number of frames, and the name, size and time of every
frame file. Frames that are extracted again, or overwritten in place, lead to another file.

After the array of <hash>.crc32.npy follows the CRC-32 of each video, which every run verifies.
Earlier versions wrote <hash>.npy without checksums.
"""

import hashlib
import io
import json
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.frames import clip_positions, split_item
from datasets.splits import SplitError
from utils.files import atomic_write, file_lock, remove_temporary
from utils.terminal import print_main, progress

CHECKSUM = np.dtype("<u4")

# ==== the file ====


def folder_state(folder):
    """Hash (hex) of the names, sizes and times of the files in a frame folder."""
    with os.scandir(folder) as entries:
        files = [(e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in entries]
    return hashlib.sha256(repr(sorted(files)).encode("utf-8", "surrogateescape")).hexdigest()


def cache_key(data, frames):
    """Hash (hex) of the list, the number of frames, and the state of every frame folder."""
    with ThreadPoolExecutor(8) as pool:  # a network disk answers many requests at once
        states = list(pool.map(folder_state, (data.root / name for name in data.names)))
    content = [os.path.abspath(data.root), frames, list(data.frame_size)]
    content = json.dumps([content, list(zip(data.names, states, strict=True))])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def cache_header(shape):
    """The first bytes of the .npy file of a uint8 array of this shape."""
    header = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def is_complete(path, shape, has_checksums=True):
    """Whether a cache file has the header and the length of an array of this shape."""
    header = cache_header(shape)
    size = len(header) + _num_bytes(shape) + CHECKSUM.itemsize * shape[0] * has_checksums
    if not path.is_file() or path.stat().st_size != size:
        return False
    with open(path, "rb") as file:
        return file.read(len(header)) == header


def is_intact(path, shape, workers):
    """Whether a cache file is complete, with the content that was written."""
    if not is_complete(path, shape):
        return False
    start, end = len(cache_header(shape)), -CHECKSUM.itemsize * shape[0]
    content = np.memmap(path, np.uint8, "r")
    stored, array = content[end:].view(CHECKSUM), content[start:end].reshape(shape)
    with ThreadPoolExecutor(workers or 1) as pool:  # zlib releases Python's lock
        found = pool.map(zlib.crc32, array)
        found = list(progress(found, "verifying the cache", len(array), "video"))
    return np.array_equal(found, stored)


def build_cache(data, frames, folder, workers):
    """The path of the .npy file with `frames` evenly spaced frames of every video of `data`.

    data: FrameDataset. folder: where caches are kept. An intact file of the same key is used, a
    damaged one is built again. Of several processes one builds and the others wait. Raises
    SplitError when the disk is too small.
    """
    key, shape = cache_key(data, frames), (len(data), frames, *data.frame_size)
    earlier, path = Path(folder) / f"{key}.npy", Path(folder) / f"{key}.crc32.npy"
    if is_complete(earlier, shape, has_checksums=False):
        return earlier
    if is_intact(path, shape, workers):
        return path
    with file_lock(path.parent / ".lock", seconds=-1):
        if is_intact(path, shape, workers):
            return path
        if path.exists():
            print_main(f"{path}: damaged; building it again")
            path.unlink()
        _build(path, shape, data, workers)
    return path


def _build(path, shape, data, workers):
    """Decode all videos of `data` into the file `path`."""
    need, free = _num_bytes(shape), shutil.disk_usage(path.parent).free
    if need > free:
        raise SplitError(
            f"--cache: {path.parent} has {free / 1e9:.1f} GB free and the clips need "
            f"{need / 1e9:.1f} GB; use another --cache-folder or --cache none"
        )
    remove_temporary(path.parent)
    with atomic_write(path) as temporary:
        array = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        if hasattr(os, "posix_fallocate"):  # a full disk must fail now: later it kills by SIGBUS
            with open(temporary, "rb+") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))

        def decode(index):
            clip = data.read(index, shape[1])
            array[index] = clip
            return zlib.crc32(clip)

        with ThreadPoolExecutor(workers or 1) as pool:  # OpenCV releases Python's lock
            decoded = pool.map(decode, range(len(data)))
            checks = np.array(list(progress(decoded, "caching", len(data), "video")), CHECKSUM)
        array.flush()
        with open(temporary, "ab") as file:
            file.write(checks.tobytes())


def _num_bytes(shape):
    return int(np.prod(shape, dtype=np.int64))


# ==== the Dataset ====


class CachedDataset(Dataset):
    """The clips of a FrameDataset, read from a cache, a whole batch at a time.

    location: "disk" (memory-mapped; worker processes may read it), "ram" or "device". A batch is
    one gather from one array, so a DataLoader needs a collate_fn that changes nothing.
    """

    def __init__(self, data, path, location, device):
        self.names, self.labels, self.clip_frames = data.names, data.labels, data.clip_frames
        self.views = data.views
        self.frame_size, self.extraction = data.frame_size, data.extraction
        self.data = data
        self.path, self.location = path, location
        self.device = device if location == "device" else torch.device("cpu")
        array = np.load(path, mmap_mode="r")
        if location != "disk":
            _check_memory(array.nbytes, location, self.device)
        if location == "disk":
            self.clips = array
        elif self.device.type == "cuda":
            self.clips = _copy_to_device(array, self.device)
        else:
            self.clips = np.array(array)  # NumPy gathers rows by copying memory, torch byte by byte

    def __getstate__(self):
        """Workers that are not forked map the file again: pickling a map would copy its data."""
        return {**vars(self), "clips": None} if self.location == "disk" else vars(self)

    def __setstate__(self, state):
        vars(self).update(state)
        if self.location == "disk":
            self.clips = np.load(self.path, mmap_mode="r")

    def __len__(self):
        return len(self.names)

    def __getitems__(self, items):
        """A batch of indices or (index, seed) pairs -> clips (B, T, H, W, 3), labels (B,)."""
        indices, seeds = zip(*map(split_item, items), strict=True)
        available = self.clips.shape[1]
        num_frames = self.clip_frames * (self.views if seeds[0] is None else 1)
        positions = [clip_positions(available, num_frames, seed) for seed in seeds]
        rows, columns = np.array(indices)[:, None], np.stack(positions)  # (B, 1), (B, T)
        labels = torch.tensor([self.labels[index] for index in indices])
        if isinstance(self.clips, np.ndarray):
            return torch.from_numpy(self.clips[rows, columns]), labels
        return self.clips[self._to_device(rows), self._to_device(columns)], labels

    def aspect(self, index):
        """Width over height of a video as a player shows it, or None; see FrameDataset."""
        return self.data.aspect(index)

    def read(self, index, num_frames):
        """`num_frames` evenly spaced frames of a video: (num_frames, H, W, 3) uint8."""
        positions = clip_positions(self.clips.shape[1], num_frames)
        clip = self.clips[index]
        return clip[positions] if isinstance(clip, np.ndarray) else clip.cpu().numpy()[positions]

    def _to_device(self, numbers):
        """An array on the device that holds the clips, copied without waiting for a GPU."""
        tensor = torch.from_numpy(numbers)
        if self.device.type == "cuda":  # from memory that is not pinned the copy would wait
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def _check_memory(num_bytes, location, device):
    """Raise SplitError if the clips do not fit into the memory of `device`."""
    if device.type == "cuda":
        need, free = num_bytes, torch.cuda.mem_get_info(device)[0]
    else:  # each process of this machine keeps a copy
        need, free = num_bytes * int(os.environ.get("LOCAL_WORLD_SIZE", 1)), _free_memory()
    if need > free:
        raise SplitError(
            f"--cache {location}: the clips need {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are "
            "free; use --cache disk, or fewer --cache-frames"
        )


def _free_memory():
    """Bytes of memory that are available, as Linux estimates them; elsewhere no limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("inf")
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))


def _copy_to_device(array, device):
    """The array as a tensor on the device, in chunks: it may be larger than this machine's RAM."""
    clips = torch.empty(array.shape, dtype=torch.uint8, device=device)
    for first in range(0, len(array), 256):
        chunk = np.array(array[first : first + 256])
        clips[first : first + 256] = torch.from_numpy(chunk).to(device)
    return clips
