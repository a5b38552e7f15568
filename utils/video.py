"""Decoding a video file into frames with OpenCV, in one pass and in bounded memory."""

import os
import stat

import cv2
import numpy as np

from utils.errors import UserError

# FFmpeg reads these when it opens a video: one thread a video, because videos are decoded in
# parallel; videos only, since a playlist may name any file; and no lines about damaged files, whose
# reason we report ourselves.
FORMATS = "avi,mov,matroska,mpeg,mpegvideo,mpegts,m4v,asf,flv,ogg,gif"
os.environ.setdefault(
    "OPENCV_FFMPEG_CAPTURE_OPTIONS", f"threads;1|format_whitelist;{FORMATS}|protocol_whitelist;file"
)
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
# OpenCV 4 has this function at the top and OpenCV 5 has it here; level 1 is "fatal".
(cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(1)

VIDEO_SUFFIXES = (
    *(".avi", ".mp4", ".m4v", ".mkv", ".mov", ".webm", ".mpg", ".mpeg"),
    *(".wmv", ".flv", ".3gp", ".ogv", ".gif"),
)
MOST_CANDIDATES = 1024  # frames held while a video is decoded; shorter videos are sampled exactly
LARGE_FRAME = 600_000  # bytes; larger candidates are resized at once, others only if chosen


class VideoError(UserError):
    """A video that cannot be decoded; the message is the reason."""


def even_positions(available, wanted):
    """`wanted` indices spread evenly over `available` frames: the middle of each equal segment.

    Shorter videos repeat frames. Source: the segments of TSN (Wang et al., ECCV 2016).
    """
    return ((np.arange(wanted) + 0.5) * available / wanted).astype(int)


def resize_frame(frame, size):
    """A decoded (H, W, 3) BGR frame as (height, width, 3) RGB; averaging where it shrinks."""
    height, width = size
    shrinks = frame.shape[0] * frame.shape[1] > height * width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.cvtColor(cv2.resize(frame, (width, height), interpolation=method), cv2.COLOR_BGR2RGB)


def _stat(path):
    """os.stat of a file that may be a video; VideoError of anything else, which may block."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoError(f"cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoError("is not a file")
    if status.st_size == 0:
        raise VideoError("is empty")
    return status


def iterate_video(path, start=0.0, end=float("inf")):
    """Decode `path` once and yield `(index, retrieve)` for each frame shown from start to end.

    `retrieve()`, valid until the next step, gives the frame as (H, W, 3) uint8 BGR; a frame that
    is not retrieved costs no conversion. Frames before the start are decoded too, since seeking
    finds other frames than asked for in many files. The frame count in the container is never read:
    many are wrong. start, end: seconds. Raises VideoError when nothing can be decoded, or the file
    is still being written.
    """
    before = _stat(path)

    def retrieve():
        decoded, frame = capture.retrieve()
        if not decoded:
            raise VideoError(f"frame {index} cannot be converted")
        return frame

    name = os.fsencode(os.path.abspath(path))  # OpenCV crashes on str that UTF-8 cannot hold
    capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise VideoError("cannot be opened as a video")
        index, seconds = 0, None
        step = 1 / (capture.get(cv2.CAP_PROP_FPS) or 25)
        while capture.grab():
            shown = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if seconds is not None and shown <= seconds:  # AVI files leave out some times
                shown = seconds + step
            seconds = shown
            if seconds >= end:
                break
            if seconds >= start:
                yield index, retrieve
                index += 1
        if seconds is None:
            raise VideoError("no frame could be decoded")
        after = _stat(path)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise VideoError("changed while it was read; run again when it is whole")
        if index == 0:
            raise VideoError(
                f"has no frame from {start:g} to {end:g} s; its last is at {seconds:g} s"
            )
    finally:
        capture.release()


def read_video(path, num_frames, size, start=0.0, end=float("inf")):
    """`num_frames` frames spread evenly over a video: (num_frames, height, width, 3) uint8.

    One decoding pass without knowing the length: candidates are kept at a stride that doubles each
    time MOST_CANDIDATES are held, so a video of up to MOST_CANDIDATES frames is sampled exactly
    and a longer one to within 0.1 % of its length. Frames are RGB.

    path: video file. num_frames: T >= 1. size: (height, width) in pixels. start, end: seconds
    of the part to read, the whole video by default.
    Raises VideoError with the reason when no frame can be decoded.
    """
    kept, stride, length = [], 1, 0
    for index, retrieve in iterate_video(path, start, end):
        length = index + 1
        if index % stride == 0 and len(kept) == MOST_CANDIDATES:
            kept = kept[::2]
            stride *= 2
        if index % stride == 0:
            frame = retrieve()
            is_large = frame.nbytes > max(LARGE_FRAME, 3 * size[0] * size[1])
            kept.append((resize_frame(frame, size) if is_large else frame, is_large))
    wanted = np.round(even_positions(length, num_frames) / stride).astype(int)
    chosen = (kept[min(i, len(kept) - 1)] for i in wanted)
    return np.stack([f if is_resized else resize_frame(f, size) for f, is_resized in chosen])
