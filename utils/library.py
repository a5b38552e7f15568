"""The videos of a folder tree: finding them, comparing them with an index, decoding them.

The two that decode run in worker processes (`utils.workers`) and give (result, reason).
"""

import os

import cv2

from utils.index import IndexFileError
from utils.page import PREVIEW_HEIGHT, preview
from utils.video import VIDEO_SUFFIXES, VideoError, read_video

PREVIEW_FRAMES = 8


def find_videos(root):
    """Videos anywhere below `root`, links followed: sorted list of paths relative to it, str.

    Raises OSError for a folder that cannot be looked into, whose videos would seem deleted.
    """
    if not root.is_dir():
        raise IndexFileError(f"--videos {root}: no such folder")

    def fail(error):
        raise error

    found, seen = [], {os.path.realpath(root)}
    for folder, folders, names in os.walk(root, onerror=fail, followlinks=True):
        below = {
            os.path.realpath(os.path.join(folder, f)): f for f in sorted(folders, reverse=True)
        }
        folders[:] = [name for path, name in below.items() if path not in seen]
        seen |= below.keys()
        found += [
            os.path.relpath(os.path.join(folder, name), root)
            for name in names
            if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith(".")
        ]
    if not found:
        raise IndexFileError(f"--videos {root}: no video there ({' '.join(VIDEO_SUFFIXES)})")
    return sorted(found)


def read_clip(path, preprocessing, start=0.0, end=float("inf")):
    """((T, H, W, 3) uint8 clip, None), or (None, reason). Runs in a worker process."""
    cv2.setNumThreads(1)
    try:
        frames, size = preprocessing["clip_frames"], preprocessing["frame_size"]
        return read_video(path, frames, size, start, end), None
    except (VideoError, cv2.error) as error:
        return None, " ".join(str(error).split())


def read_preview(path, start=0.0, end=float("inf")):
    """(data URI, None) of a video, or (None, reason). Runs in a worker process."""
    cv2.setNumThreads(1)
    try:
        size = (PREVIEW_HEIGHT, None)  # of the shape that a player shows
        return preview(read_video(path, PREVIEW_FRAMES, size, start, end)), None
    except (VideoError, cv2.error) as error:
        return None, str(error)


def plan(root, known):
    """Compare the videos below `root` with what is known.

    Returns (records that are still right, records to encode), dicts with path, size, mtime_ns; a
    file that cannot be looked at is to be encoded, which tells the reason.
    """
    kept, todo = [], []
    for path in find_videos(root):
        try:
            status = os.stat(root / path)
            record = {"path": path, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        except OSError:
            record = {"path": path, "size": None, "mtime_ns": None}
        same = path in known and all(known[path][key] == value for key, value in record.items())
        (kept if same else todo).append(known[path] if same else record)
    return kept, todo
