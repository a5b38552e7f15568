"""Decoding of a video file into the pictures that a player shows, with PyAV (FFmpeg).

One pass, bounded memory. Frames stay in the format of the decoder until they are chosen; then
`datasets.picture` converts them.
"""

import errno
import os
import re
import stat
from contextlib import closing, contextmanager

import av
import cv2
import numpy as np

from datasets.picture import Frame, VideoError, converter

MOST_PIXELS = 2**26  # of a frame: twice 8K
MOST_HELD_BYTES = 2**28  # of candidates
OPTIONS = {  # no playlists, which may name any file; no network
    "format_whitelist": "avi,mov,matroska,mpeg,mpegvideo,mpegts,m4v,asf,flv,ogg,gif",
    "protocol_whitelist": "file",
    "max_pixels": str(MOST_PIXELS),
}
STILL_CODECS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff")  # of previews beside a video


def even_positions(available, wanted):
    """`wanted` indices spread evenly over `available` frames: the middle of each equal segment.

    Shorter videos repeat frames. Source: the segments of TSN (Wang et al., ECCV 2016).
    """
    return ((np.arange(wanted) + 0.5) * available / wanted).astype(int)


def read_video(path, num_frames, size, start=0.0, end=float("inf")):
    """The frames of `sample_video` as one array: (num_frames, height, width, 3) uint8 RGB."""
    return np.stack(list(sample_video(path, num_frames, size, start, end)))


def sample_video(path, num_frames, size, start=0.0, end=float("inf")):
    """`num_frames` frames spread evenly over a video, each (height, width, 3) uint8 RGB, in turn.

    One decoding pass, although the length is not known: candidates are kept at a stride, which is
    1 at first and doubles when they need more than MOST_HELD_BYTES (`_make_room`). At 128x171 this
    is exact up to 2,000 frames, and within 0.1 % of the length for longer videos. Near the limit of
    memory, as with 4K pictures, at least num_frames candidates remain.

    path: video file. num_frames: T >= 1. size: (height, width) in pixels; a width of None keeps
    the aspect ratio that a player shows. start, end: read from second to second; by default the
    whole video. Raises VideoError with the reason when no frame can be decoded.
    """
    kept, held, stride, length = [], 0, 1, 0
    convert = converter(size)
    with closing(_decode(path, start, end)) as frames:
        for index, frame in enumerate(frames):
            length = index + 1
            if index % stride:
                continue
            kept.append(frame)
            held += frame.nbytes
            if held > MOST_HELD_BYTES:
                kept, factor = _make_room(kept, convert, 2 * num_frames)
                held = sum(candidate.nbytes for candidate in kept)
                stride *= factor
    for position in np.round(even_positions(length, num_frames) / stride).astype(int):
        yield convert(kept[min(position, len(kept) - 1)])


def iterate_video(path, size):
    """Every frame of a video in turn: (height, width, 3) uint8 RGB. See `read_video`."""
    convert = converter(size)
    with closing(_decode(path)) as frames:
        for frame in frames:
            yield convert(frame)


def _make_room(kept, convert, enough):
    """(candidates in less memory, factor of the stride: 1 or 2).

    Frames are converted to pictures where those are smaller. If that frees less than half of
    MOST_HELD_BYTES, every second candidate is dropped, unless there are fewer than `enough`.
    """
    if convert(kept[-1]).nbytes < kept[-1].nbytes:
        kept = [convert(candidate) for candidate in kept]
    if sum(candidate.nbytes for candidate in kept) <= MOST_HELD_BYTES // 2 or len(kept) < enough:
        return kept, 1
    return kept[::2], 2


# ==== decoding ====


def _stat(path):
    """os.stat of a file that may be a video; VideoError for anything else, which may block."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoError(f"cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoError("is not a file")
    if status.st_size == 0:
        raise VideoError("is empty")
    return status


def _decode(path, start=0.0, end=float("inf")):
    """Decode `path` once and yield each frame that a player shows from start to end.

    Frames before the start are decoded too, because seeking is not exact in many files. The frame
    count of the container is never read: many are wrong. Times are those of `_timed`. start, end:
    seconds. Raises VideoError when nothing can be decoded, or the file is still being written.
    """
    before, found = _stat(path), False
    with _open(path) as (container, stream):
        for seconds, frame in _timed(_frames(container, stream), stream):
            if seconds >= end:
                break
            if seconds >= start:
                found = True
                yield Frame(frame, stream.sample_aspect_ratio or 1)
    after = _stat(path)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise VideoError("changed while it was read; rerun when it is complete")
    if not found:
        raise VideoError(f"has no frame from {start:g} to {end:g} s; its last is at {seconds:g} s")


def _timed(frames, stream):
    """(seconds, frame) for each frame: its presentation time, relative to the first frame.

    A time that is missing or not later than the one before, as in some AVI files, is replaced by
    the one before plus 1 / frame rate.
    """
    unit, step = stream.time_base, 1 / float(stream.average_rate or 25)
    first = seconds = None
    for frame in frames:
        first = frame.pts if first is None else first
        if frame.pts is None:
            shown = 0 if seconds is None else seconds
        else:
            shown = max(0, (frame.pts - first) * unit.numerator / unit.denominator)
        seconds = shown if seconds is None or shown > seconds else seconds + step
        yield seconds, frame


@contextmanager
def _open(path):
    """(container, stream) of a video file, for decoding in one thread."""
    name = os.path.abspath(path)  # FFmpeg would read the text before a colon as a protocol
    try:
        container = av.open(name, options=OPTIONS, metadata_errors="replace")
    except av.FFmpegError as error:
        raise VideoError(f"cannot be opened as a video: {error.strerror}") from error
    with container:
        stream = _shown_stream(container)
        codec = stream.codec_context
        if codec.width * codec.height > MOST_PIXELS:
            raise VideoError(f"has frames of {codec.width}x{codec.height} pixels, too many")
        codec.options = {"max_pixels": OPTIONS["max_pixels"]}
        codec.thread_count = 1  # videos are decoded in parallel
        yield container, stream


def _shown_stream(container):
    """The stream that a player shows: no cover picture, a video before a still, then the default.

    Raises VideoError with the name of the codec if there is no decoder for it.
    """
    cover = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise VideoError("cannot be opened as a video: it has no video stream")

    def rank(stream):
        is_still = stream.codec_context and stream.codec_context.name in STILL_CODECS
        is_default = bool(stream.disposition & av.stream.Disposition.default)
        return not is_still, is_default, stream == container.streams.best("video")

    stream = max(streams, key=rank)
    if stream.codec_context is None:
        raise VideoError(f"cannot be decoded: {_codec(container, stream)} has no decoder here")
    return stream


def _codec(container, stream):
    """The name of a codec without a decoder, which is only in FFmpeg's description."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)  # otherwise the description is empty
    description = container.dumps_format()
    av.logging.set_level(level)
    found = re.search(rf"Stream #0:{stream.index}\b.*?Video: ([^,\n]+)", description)
    return found[1] if found else "its codec"


def _frames(container, stream):
    """The frames of a stream that can be decoded; damaged packets are skipped.

    Raises VideoError with FFmpeg's last reason when there are none.
    """
    found, reason = False, "there is none"

    def packets():
        try:
            yield from container.demux(stream)  # the last one is empty and flushes the decoder
        except av.FFmpegError:
            yield None  # the file is cut short; flush the decoder nevertheless

    for packet in packets():
        try:
            frames = stream.decode(packet)
        except av.FFmpegError as error:
            reason = error.strerror
            if error.errno == errno.EINVAL:  # FFmpeg's message is not more exact
                reason += f", or frames of more than {MOST_PIXELS:,} pixels"
            continue
        found = found or bool(frames)
        yield from frames
    if not found:
        raise VideoError(f"no frame could be decoded ({stream.codec_context.name}): {reason}")


def read_clip(path, preprocessing, start=0.0, end=float("inf")):
    """((T, H, W, 3) uint8 clip, None), or (None, reason). Runs in a worker process."""
    cv2.setNumThreads(1)
    try:
        frames, size = preprocessing["clip_frames"], preprocessing["frame_size"]
        return read_video(path, frames, size, start, end), None
    except (VideoError, cv2.error) as error:
        return None, " ".join(str(error).split())
