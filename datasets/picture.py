"""Conversion of a decoded frame to the picture that a player shows: scaled and RGB in one step.

- Rotated and mirrored according to the display matrix.
- Only the top field of an interlaced frame: its bottom field is of another moment.
- With the colour matrix and range that the video names; without names BT.601 and limited range, as
  in FFmpeg. Matrices that FFmpeg's scaler lacks (YCgCo, ICtCp and other rare ones) are treated as
  BT.601, as in the ffmpeg program: correct brightness, other hues.
- Transfer functions and primaries are not converted: HDR looks flat. Alpha is dropped.
"""

from fractions import Fraction

import av
import cv2
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import VideoReformatter

from utils.errors import UserError

# Flags of FFmpeg's scaler: SWS_AREA averages along a side that shrinks and interpolates along one
# that grows; SWS_FULL_CHR_H_INT, _INP, SWS_ACCURATE_RND and SWS_BITEXACT: the same on every CPU.
SCALING = 0x20 | 0x2000 | 0x4000 | 0x40000 | 0x80000
UNSPECIFIED, BT2020, BT2020_CONSTANT_LUMINANCE = 2, 9, 10  # AVColorSpace of FFmpeg
SCALER_MATRICES = (0, 1, UNSPECIFIED, 4, 5, 6, 7, BT2020)
WIDEST = 4  # width over height, or height over width, when the width is not given


class VideoError(UserError):
    """A video that cannot be decoded; the message is the reason."""


class Frame:
    """A decoded frame (av.VideoFrame) and the shape of its pixels, width over height.

    seconds, duration: when and for how long a player shows it.
    """

    def __init__(self, frame, pixel_aspect, seconds=0.0, duration=0.04):
        self.frame, self.pixel_aspect = frame, pixel_aspect
        self.seconds, self.duration = seconds, duration
        bits = frame.format.padded_bits_per_pixel  # asking each plane takes ten times as long
        self.nbytes = frame.width * frame.height * bits // 8


def converter(size):
    """A function that converts a Frame to a (height, width, 3) uint8 RGB picture.

    It returns pictures unchanged, and raises VideoError if FFmpeg cannot convert the frame.
    size: (height, width) in pixels; a width of None keeps the aspect ratio that a player shows.
    """
    reformatter = VideoReformatter()  # keeps its tables between frames

    def convert(candidate):
        if isinstance(candidate, np.ndarray):
            return candidate
        frame, (swap, mirror, flip) = candidate.frame, _orientation(candidate.frame)
        height, width = size
        width = width or _shown_width(candidate, height, swap)
        columns, rows = (height, width) if swap else (width, height)
        picture = _scale(frame, columns, rows, reformatter)
        picture = picture.swapaxes(0, 1) if swap else picture
        return np.ascontiguousarray(picture[:: -1 if flip else 1, :: -1 if mirror else 1])

    return convert


def shown_size(candidate):
    """(height, width) in pixels of a Frame as a player shows it: turned, with square pixels."""
    swap, *_ = _orientation(candidate.frame)
    height = candidate.frame.width if swap else candidate.frame.height
    return height, _shown_width(candidate, height, swap)


def _shown_width(candidate, height, swap):
    """The width in pixels that keeps the aspect ratio at this height, limited by WIDEST."""
    aspect = candidate.frame.width * candidate.pixel_aspect / candidate.frame.height
    aspect = 1 / aspect if swap else aspect
    return max(1, round(height * min(max(aspect, 1 / WIDEST), WIDEST)))


def _scale(frame, width, height, reformatter):
    """(height, width, 3) uint8 RGB of a frame, by planes: the scaler is slower for packed RGB."""
    try:
        frame = _top_field(frame) if frame.interlaced_frame else frame
        if frame.colorspace not in SCALER_MATRICES:
            is_bt2020 = frame.colorspace == BT2020_CONSTANT_LUMINANCE
            frame.colorspace = BT2020 if is_bt2020 else UNSPECIFIED
        # These are not converted in any case, and PyAV 17 refuses some of them, such as log.
        frame.color_trc = frame.color_primaries = UNSPECIFIED
        planar = reformatter.reformat(
            frame, width, height, "gbrp", interpolation=SCALING, threads=1
        )
    except (av.FFmpegError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"a frame of {frame.format.name} cannot be converted: {reason}") from error
    green, blue, red = (
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, :width]
        for plane in planar.planes
    )
    return cv2.merge((red, green, blue))


def _top_field(frame):
    """Every second line of an interlaced frame, starting with the first, without a copy."""
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(template=frame, time_base=Fraction(1, 25))
    graph.link_nodes(source, graph.add("field", "top"), graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull()


def _orientation(frame):
    """(swap rows and columns, then mirror left to right, then flip upside down), each a bool.

    From the display matrix [a b u; c d v; x y w]: pixel (p, q) is shown at (a p + c q, b p + d q).
    """
    try:
        # Not frame.side_data: frame and side data would refer to each other, and the memory would
        # not be freed before the next garbage collection.
        matrix = SideDataContainer(frame).get("DISPLAYMATRIX")
    except ValueError:  # side data of a kind that PyAV does not know; flips are lost
        turns = round(frame.rotation / 90) % 4  # counterclockwise
        return turns % 2 == 1, turns in (2, 3), turns in (1, 2)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0
