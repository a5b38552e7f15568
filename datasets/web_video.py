"""Videos for browsers: which files they play themselves, and moments as WebM, which all play.

Source of what they play: https://developer.mozilla.org/docs/Web/Media/Guides/Formats/Video_codecs
"""

from contextlib import closing
from fractions import Fraction

import av
import cv2

from datasets.picture import VideoError, converter
from datasets.video import decode, open_video

PLAYED = {"video/mp4": {"h264", "av1"}, "video/webm": {"vp8", "vp9", "av1"}}  # codecs of each type
PIXELS = {"yuv420p", "yuvj420p"}  # 8 bits and half the colour resolution
HEIGHT = 360  # pixels, of a WebM
MOST_SECONDS = 120  # of a WebM
OPTIONS = {"deadline": "realtime", "cpu-used": "8", "crf": "16", "threads": "1"}  # more only spin
BITRATE = 2_000_000  # at most
TICK = Fraction(1, 1000)  # seconds


def played_type(path):
    """The MIME type by which browsers play the file itself, or None."""
    with open(path, "rb") as file:
        head = file.read(64)
    if head[4:8] == b"ftyp" and head[8:10] != b"qt":
        kind = "video/mp4"
    elif head[:4] == b"\x1aE\xdf\xa3" and b"webm" in head:
        kind = "video/webm"
    else:
        return None
    with open_video(path) as (_, stream):
        codec = stream.codec_context
        return kind if codec.name in PLAYED[kind] and codec.pix_fmt in PIXELS else None


def duration(path):
    """The seconds that the header of a video names, or None; many headers are wrong."""
    with open_video(path) as (container, _):
        return None if container.duration is None else container.duration / av.time_base


def inspect_video(path):
    """((type, seconds), None) as of the functions above, or (None, reason)."""
    try:
        return (played_type(path), duration(path)), None
    except (VideoError, OSError) as error:
        return None, str(error)


def write_webm(job):
    """Write a moment as WebM without sound: (None, None), or (None, reason).

    job: (path, start, end, target), with times in seconds. The moment is cut after MOST_SECONDS.
    """
    path, start, end, target = job
    try:
        with (
            av.open(str(target), "w", format="webm") as container,
            closing(decode(path, start, min(end, start + MOST_SECONDS))) as frames,
        ):
            _encode(container, frames, start)
    except (VideoError, av.FFmpegError, cv2.error) as error:
        return None, " ".join(str(error).split())
    return None, None


def _encode(container, frames, start):
    """Encode frames, the first at `start` seconds or later, into an opened container."""
    stream = convert = None
    for frame in frames:
        convert = convert or converter((min(HEIGHT, frame.frame.height), None))
        picture = convert(frame)
        if stream is None:
            rate = Fraction(1 / frame.duration).limit_denominator(1001)
            stream = container.add_stream("libvpx", rate=rate, options=OPTIONS)
            stream.height, stream.width = (2 * max(1, side // 2) for side in picture.shape[:2])
            stream.pix_fmt, stream.bit_rate = "yuv420p", BITRATE
            stream.codec_context.time_base, last = TICK, -1
        picture = cv2.resize(picture, (stream.width, stream.height))  # even sides
        image = av.VideoFrame.from_ndarray(picture, format="rgb24")
        last = max(last + 1, round((frame.seconds - start) / TICK))
        image.pts, image.time_base = last, TICK
        container.mux(stream.encode(image))
    container.mux(stream.encode(None))
