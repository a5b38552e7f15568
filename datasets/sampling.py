"""Which frames of a video make a clip, and the frames that are kept to choose them from."""

import math
from bisect import bisect_left

import numpy as np

MOST_HELD_BYTES = 2**28  # of frames


def even_positions(available, wanted):
    """`wanted` indices spread evenly over `available` frames: the middle of each equal segment.

    Shorter videos repeat frames. Source: the segments of TSN (Wang et al., ECCV 2016).
    """
    return ((np.arange(wanted) + 0.5) * available / wanted).astype(int)


class RecentFrames:
    """The latest frames of a video, in bounded memory, to sample clips from.

    Frames are kept at a stride, which is 1 at first and doubles when they need more than
    MOST_HELD_BYTES. At 128x171 samples are exact up to 2,000 frames, and within 0.1 % of the length
    for more. Near the limit of memory, as with 4K pictures, at least 2 num_frames frames remain.

    convert: function from `datasets.picture.converter`. num_frames: of a clip.
    """

    def __init__(self, convert, num_frames):
        self.convert, self.num_frames = convert, num_frames
        self.frames, self.times, self.first = [], [], 0  # first: index of frames[0] / stride
        self.held, self.stride, self.length = 0, 1, 0

    def add(self, frame):
        """Add the next frame (`datasets.picture.Frame`)."""
        self.length += 1
        if (self.length - 1) % self.stride:
            return
        if not self.frames:
            self.first = (self.length - 1) // self.stride
        self.frames.append(frame)
        self.times.append(frame.seconds)
        self.held += frame.nbytes
        if self.held > MOST_HELD_BYTES:
            self._make_room()

    def drop(self, seconds):
        """Forget the frames before a time."""
        count = bisect_left(self.times, seconds)
        self.held -= sum(frame.nbytes for frame in self.frames[:count])
        self.first += count
        del self.frames[:count], self.times[:count]

    def has(self, start, end):
        """Whether a frame that is kept is shown from start to end, in seconds."""
        return bisect_left(self.times, start) < bisect_left(self.times, end)

    def sample(self, start=-math.inf, end=math.inf):
        """Yield num_frames pictures spread evenly over the frames from start to end."""
        low, high = bisect_left(self.times, start), bisect_left(self.times, end)
        first = (self.first + low) * self.stride
        is_last = high == len(self.times)
        stop = self.length if is_last else (self.first + high) * self.stride
        positions = first + even_positions(stop - first, self.num_frames)
        for row in np.round(positions / self.stride).astype(int) - self.first:
            yield self.convert(self.frames[min(max(row, low), high - 1)])

    def _make_room(self):
        """Convert frames to pictures where those are smaller; if that is not enough, drop half."""
        if self.convert(self.frames[-1]).nbytes < self.frames[-1].nbytes:
            self.frames = [self.convert(frame) for frame in self.frames]
        self.held = sum(frame.nbytes for frame in self.frames)
        if self.held <= MOST_HELD_BYTES // 2 or len(self.frames) < 2 * self.num_frames:
            return
        odd = self.first % 2  # keep the indices that the doubled stride divides
        self.frames, self.times = self.frames[odd::2], self.times[odd::2]
        self.first, self.stride = (self.first + odd) // 2, 2 * self.stride
        self.held = sum(frame.nbytes for frame in self.frames)
