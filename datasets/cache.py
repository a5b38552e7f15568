"""Decoded clips as one uint8 array, so that training reads no JPEG twice.

The array (N, F, H, W, 3) is built once from the frame folders and kept in a file whose name is a
hash of all that it depends on: the list, the number of frames, and the name, size and time of every
frame file. Frames extracted anew, or overwritten in place, give another file.
"""

import hashlib
import io
import json
import os
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from datasets.frames import clip_request, even_positions
from datasets.splits import SplitError
from utils.files import file_lock
from utils.terminal import progress

CACHE_LOCATIONS = ("none", "disk", "ram", "device")


def folder_state(folder):
    """Hash (hex) of the names, sizes and times of the files in a frame folder."""
    with os.scandir(folder) as entries:
        files = [(e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in entries]
    return hashlib.sha256(repr(sorted(files)).encode("utf-8", "surrogateescape")).hexdigest()


def cache_key(data, frames):
    """Hash (hex) of the names, the number of frames, and the state of every frame file."""
    with ThreadPoolExecutor(8) as pool:  # a network disk answers many questions at once
        states = list(pool.map(folder_state, (data.root / name for name in data.names)))
    content = [os.path.abspath(data.root), frames, list(data.frame_size)]
    content = json.dumps([content, list(zip(data.names, states, strict=True))])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def cache_header(shape):
    """The first bytes of the .npy file of a uint8 array of this shape."""
    header = io.BytesIO()
    kind = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, kind)
    return header.getvalue()


def is_whole(path, shape):
    """Whether a cache file has the header and the length of an array of this shape."""
    header = cache_header(shape)
    if not path.is_file() or path.stat().st_size != len(header) + np.prod(shape, dtype=np.int64):
        return False
    with open(path, "rb") as file:
        return file.read(len(header)) == header


def build_cache(data, frames, folder, workers):
    """The path of the .npy file with `frames` evenly spaced frames of every video of `data`.

    data: FrameDataset. folder: where caches are kept. Written aside and renamed; a whole file of
    the same key is used as it is, a damaged one is built again. Of several processes one builds and
    the others wait. Raises SplitError when the disk is too small.
    """
    path = Path(folder) / f"{cache_key(data, frames)}.npy"
    shape = (len(data), frames, *data.frame_size)
    if is_whole(path, shape):
        return path
    with file_lock(path.parent / ".lock", seconds=-1):
        if is_whole(path, shape):
            return path
        if path.exists():
            tqdm.write(f"{path}: damaged; building it again")
            path.unlink()
        _build(path, shape, data, workers)
    return path


def _build(path, shape, data, workers):
    """Decode all videos into a file aside and rename it to `path`."""
    folder = path.parent
    need, free = int(np.prod(shape, dtype=np.int64)), shutil.disk_usage(folder).free
    if need > free:
        raise SplitError(
            f"--cache: {folder} has {free / 1e9:.1f} GB free and the clips take {need / 1e9:.1f} "
            "GB; give another --cache-folder or --cache none"
        )
    _remove_stale(folder)
    aside = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")
    try:
        array = np.lib.format.open_memmap(aside, "w+", np.uint8, shape)
        if hasattr(os, "posix_fallocate"):  # a full disk must fail now: later it kills by SIGBUS
            with open(aside, "rb+") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(aside))
        _fill(array, data, workers)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _remove_stale(folder):
    """Delete what killed processes of this machine left half-built."""
    for aside in folder.glob(f".*.{platform.node()}.*.partial"):
        try:
            os.kill(int(aside.name.split(".")[-2]), 0)
        except ProcessLookupError:
            aside.unlink(missing_ok=True)
        except PermissionError:  # another user's, and alive
            continue


def _fill(array, data, workers):
    """Decode every video of `data` into its row of `array` and flush that to the disk."""

    def decode(index):
        array[index] = data.read(index, partial(even_positions, wanted=array.shape[1]))

    with ThreadPoolExecutor(workers or 1) as pool:  # OpenCV decodes outside Python's lock
        decoded = pool.map(decode, range(len(data)))
        for _ in progress(decoded, "caching", len(data), "video"):
            pass
    array.flush()


def _free_memory():
    """Bytes of memory that may still be taken, as Linux estimates them; elsewhere no limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("inf")
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))


class CachedDataset(Dataset):
    """The clips of FrameDataset out of a cache: items as there, but fetched a batch at a time.

    place: "disk" (memory-mapped; worker processes may read it), "ram" or "device". A batch is one
    gather from one array, so a DataLoader needs a collate_fn that changes nothing.
    """

    def __init__(self, data, path, place, device):
        self.names, self.labels, self.clip_frames = data.names, data.labels, data.clip_frames
        self.frame_size, self.extraction = data.frame_size, data.extraction
        self.path, self.place = path, place
        self.device = device if place == "device" else torch.device("cpu")
        array = np.load(path, mmap_mode="r")
        if place == "disk":
            self.clips = array
            return
        on_gpu = self.device.type == "cuda"
        copies = 1 if on_gpu else int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # one a process
        need = copies * array.nbytes
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else _free_memory()
        if need > free:
            raise SplitError(
                f"--cache {place}: the clips take {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are "
                "free; give --cache disk, or fewer --cache-frames"
            )
        if not on_gpu:
            self.clips = np.array(array)  # NumPy gathers rows by copying memory, torch byte by byte
            return
        self.clips = torch.empty(array.shape, dtype=torch.uint8, device=self.device)
        for first in range(0, len(array), 256):  # never the whole of it in this machine's memory
            chunk = np.array(array[first : first + 256])
            self.clips[first : first + 256] = torch.from_numpy(chunk).to(self.device)

    def __getstate__(self):
        """Workers that are not forked map the file anew: pickling a map copies all its data."""
        return {**vars(self), "clips": None} if self.place == "disk" else vars(self)

    def __setstate__(self, state):
        vars(self).update(state)
        if self.place == "disk":
            self.clips = np.load(self.path, mmap_mode="r")

    def __len__(self):
        return len(self.names)

    def __getitems__(self, items):
        """A batch of indices or (index, seed) pairs -> clips (B, T, H, W, 3), labels (B,)."""
        requests = [clip_request(item, self.clip_frames) for item in items]
        indices = np.array([index for index, _ in requests])
        positions = np.stack([choose(self.clips.shape[1]) for _, choose in requests])  # (B, T)
        labels = torch.tensor([self.labels[i] for i in indices])
        if isinstance(self.clips, np.ndarray):
            return torch.from_numpy(self.clips[indices[:, None], positions]), labels
        return self.clips[self._to_device(indices)[:, None], self._to_device(positions)], labels

    def _to_device(self, numbers):
        """An array on the device that holds the clips, copied without waiting for a GPU."""
        tensor = torch.from_numpy(numbers)
        if self.device.type == "cuda":  # from other memory the copy would wait
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
