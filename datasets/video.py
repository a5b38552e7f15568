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

from datasets.picture import Frame, VideoError, converter, shown_size
from datasets.sampling import RecentFrames

MOST_PIXELS = 2**26  # of a frame: twice 8K
OPTIONS = {  # no playlists, which may name any file; no network
    "format_whitelist": "avi,mov,matroska,mpeg,mpegvideo,mpegts,m4v,asf,flv,ogg,gif",
    "protocol_whitelist": "file",
    "max_pixels": str(MOST_PIXELS),
}
STILL_CODECS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff")  # of previews beside a video


def read_video(path, num_frames, size, start=0.0, end=float("inf")):
    """The frames of `sample_video` as one array: (num_frames, height, width, 3) uint8 RGB."""
    return np.stack(list(sample_video(path, num_frames, size, start, end)))


def sample_video(path, num_frames, size, start=0.0, end=float("inf")):
    """`num_frames` frames spread evenly over a video, each (height, width, 3) uint8 RGB, in turn.

    One decoding pass, although the length is not known; see `RecentFrames` for its memory.

    path: video file. num_frames: T >= 1. size: (height, width) in pixels; a width of None keeps
    the aspect ratio that a player shows. start, end: read from second to second; by default the
    whole video. The generator returns what `describe_last` does. Raises VideoError with the reason
    when no frame can be decoded.
    """
    recent = RecentFrames(converter(size), num_frames)
    with closing(decode(path, start, end)) as frames:
        for frame in frames:
            recent.add(frame)
    yield from recent.sample()
    return describe_last(frame, recent.length)


def read_windows(path, num_frames, size, window, stride, start=0.0, end=float("inf")):
    """Yield (start, end, clip) of each window of a video: seconds and (T, H, W, 3) uint8 RGB.

    A video of up to two windows has one window, the whole of it. A longer one has windows of
    `window` seconds that begin every `stride` seconds, and a last one up to its end. One decoding
    pass; see `RecentFrames` for its memory. A window without a frame, as in a gap between the times
    of two frames, is left out. Other arguments and errors as for `sample_video`, whose clip for the
    same seconds is equal. A window of infinity gives one clip per video.
    """
    recent, number, covered, is_long = RecentFrames(converter(size), num_frames), 0, start, False
    with closing(decode(path, start, end)) as frames:
        for frame in frames:
            is_long = is_long or frame.seconds >= start + 2 * window
            while is_long and frame.seconds >= start + number * stride + window:
                begin = start + number * stride
                if recent.has(begin, begin + window):
                    covered = begin + window
                    yield begin, covered, np.stack(list(recent.sample(begin, covered)))
                    number += 1
                else:  # go on where the frame is
                    number = max(number + 1, int((frame.seconds - window - start) / stride))
                recent.drop(start + (number - 1) * stride)
            recent.add(frame)
    finish = min(frame.seconds + frame.duration, end)
    if not is_long:
        yield start, finish, np.stack(list(recent.sample()))
    elif frame.seconds >= max(covered, start + number * stride):
        begin = max(finish - window, start + (number - 1) * stride)
        yield begin, finish, np.stack(list(recent.sample(begin, finish)))


def iterate_video(path, size):
    """Every frame of a video in turn: (height, width, 3) uint8 RGB. See `sample_video`."""
    convert = converter(size)
    with closing(decode(path)) as frames:
        for index, frame in enumerate(frames):  # noqa: B007
            yield convert(frame)
    return describe_last(frame, index + 1)


def describe_last(frame, count):
    """A video's number of frames, seconds, and size as a player shows it, by its last frame."""
    height, width = shown_size(frame)
    seconds = round(frame.seconds + frame.duration, 6)
    return {"decoded": count, "seconds": seconds, "width": width, "height": height}


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


def decode(path, start=0.0, end=float("inf")):
    """Decode `path` once and yield each frame that a player shows from start to end.

    Frames before the start are decoded too, because seeking is not exact in many files. The frame
    count of the container is never read: many are wrong. Times are those of `_timed`. start, end:
    seconds. Raises VideoError when nothing can be decoded, or the file is still being written.
    """
    before, found = _stat(path), False
    with open_video(path) as (container, stream):
        aspect, step = stream.sample_aspect_ratio or 1, 1 / float(stream.average_rate or 25)
        for seconds, frame in _timed(_frames(container, stream), stream.time_base, step):
            if seconds >= end:
                break
            if seconds >= start:
                found = True
                yield Frame(frame, aspect, seconds, step)
    after = _stat(path)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise VideoError("changed while it was read; rerun when it is complete")
    if not found:
        raise VideoError(f"has no frame from {start:g} to {end:g} s; its last is at {seconds:g} s")


def _timed(frames, unit, step):
    """(seconds, frame) for each frame: its presentation time, relative to the first frame.

    A time that is missing or not later than the one before, as in some AVI files, is replaced by
    the one before plus `step` seconds, 1 / frame rate. unit: of the times of FFmpeg.
    """
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
def open_video(path):
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


def read_clips(path, preprocessing, window, stride, start=0.0, end=float("inf")):
    """Yield the windows of `read_windows` and return why it failed, or None; in a worker process.

    preprocessing: dict with clip_frames and frame_size.
    """
    try:
        frames, size = preprocessing["clip_frames"], preprocessing["frame_size"]
        yield from read_windows(path, frames, size, window, stride, start, end)
    except (VideoError, cv2.error) as error:
        return " ".join(str(error).split())
