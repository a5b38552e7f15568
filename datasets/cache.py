"""Decoded clips as one uint8 array, so that training reads no JPEG twice.

The array (N, F, H, W, 3) is built once from the frame folders and kept in a file whose name is a
hash of all that it depends on: another list, another number of frames, or frames extracted anew
give another file, so that a stale cache is never used.
"""

import hashlib
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

from datasets.frames import SplitError, clip_request, even_frames

PLACES = ("none", "disk", "ram", "device")


def cache_key(data, frames):
    """Hash (hex) of the names, the number of frames, and when each folder was last changed."""
    record = data.root / "extraction.json"
    changed = [os.stat(data.root / name).st_mtime_ns for name in data.names]
    parts = [
        [os.path.abspath(data.root), frames, list(data.frame_size)],
        list(zip(data.names, changed, strict=True)),
        record.read_text(encoding="utf-8") if record.exists() else "",
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def build_cache(data, frames, folder, workers):
    """The path of the .npy file with `frames` evenly spaced frames of every video of `data`.

    data: FrameFolders. folder: where caches are kept. Written aside and renamed; an existing file
    of the same key is used as it is. Raises SplitError when the disk is too small.
    """
    path = Path(folder) / f"{cache_key(data, frames)}.npy"
    if path.exists():
        return path
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    shape = (len(data), frames, *data.frame_size)
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
    return path


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
        array[index] = data.read(index, partial(even_frames, wanted=array.shape[1]))

    with ThreadPoolExecutor(workers or 1) as pool:  # OpenCV decodes outside Python's lock
        decoded = pool.map(decode, range(len(data)))
        for _ in tqdm(decoded, "caching", len(data), unit="video", smoothing=0.05):
            pass
    array.flush()


def _free_memory():
    """Bytes of memory that may still be taken, as Linux estimates them; elsewhere no limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("inf")
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))


class CachedClips(Dataset):
    """The clips of FrameFolders out of a cache: items as there, but fetched a batch at a time.

    place: "disk" (memory-mapped), "ram" or "device". Give it to a DataLoader with
    `collate_fn=lambda batch: batch` and no workers: a batch is one gather from one array.
    """

    def __init__(self, data, path, place, device):
        self.names, self.labels, self.clip_frames = data.names, data.labels, data.clip_frames
        self.frame_size = data.frame_size
        array = np.load(path, mmap_mode="r")
        self.device = device if place == "device" else torch.device("cpu")
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

    def __len__(self):
        return len(self.names)

    def __getitems__(self, items):
        """A batch of indices or (index, seed) pairs -> clips (B, T, H, W, 3), labels (B,)."""
        requests = [clip_request(item, self.clip_frames) for item in items]
        indices = np.array([index for index, _ in requests])
        positions = np.stack([choose(self.clips.shape[1]) for _, choose in requests])  # (B, T)
        if isinstance(self.clips, np.ndarray):
            clips = torch.from_numpy(self.clips[indices[:, None], positions])
        else:
            rows, columns = (torch.from_numpy(x).to(self.device) for x in (indices, positions))
            clips = self.clips[rows[:, None], columns]
        return clips, torch.tensor([self.labels[i] for i in indices])
