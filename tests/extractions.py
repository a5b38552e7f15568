"""Extractions of a few small videos: the command, and what it leaves."""

import time

FRAMES = ["--size", 24, 32, "--workers", 2, "--num-frames"]


def extract_command(videos, frames, *flags, num_frames=0):
    paths = "--videos", videos, "--frames", frames
    return ["extract_frames.py", *paths, *FRAMES, num_frames, *flags]


def wait_for_work(process, frames):
    """Wait until a started extraction has written its first frame."""
    while not any(frames.glob(".partial/*/*/*.jpg")):
        assert process.status() is None, process.output()
        time.sleep(0.001)


def last_line(process, status=0):
    """Wait for an extraction. Returns the last line of its output."""
    assert process.wait() == status and "Traceback" not in process.stderr, process.output()
    return (process.stderr if status else process.stdout).splitlines()[-1]


def read_tree(frames):
    """Every file below a folder of frames with its content.

    But for locks, and for tables of videos: each shard writes its own, and one of videos that were
    there already lacks what only decoding tells.
    """
    return {
        str(path.relative_to(frames)): path.read_bytes()
        for path in sorted(frames.rglob("*"))
        if path.is_file() and not path.name.startswith((".lock", "videos"))
    }


def is_clean(frames):
    """Whether nothing unfinished is left."""
    return not (frames / ".partial").exists()
