"""Videos in groups that must not be divided, and how some of them are held out."""

import random
from collections import Counter, defaultdict
from typing import NamedTuple


class Video(NamedTuple):
    """A video of a list: its path below the folder of frames, its class id and its group.

    A group is usually the videos that were cut from one recording.
    """

    name: str
    label: int
    group: str


def divide(videos, groups):
    """(videos of other groups, videos of these groups), in the given order."""
    others = [video for video in videos if video.group not in groups]
    return others, [video for video in videos if video.group in groups]


def hold_out(videos, fraction, seed):
    """Hold out about `fraction` of each class's videos, in whole groups.

    For each class, groups in a random order are held out until it has enough videos held out:
    first those that are not too large for what is missing, else the smallest if that comes nearer.
    The last group of a class is never held out.
    Returns (other videos, held-out videos) in the given order.
    """
    groups = defaultdict(Counter)  # group -> {label: videos}
    for video in videos:
        groups[video.group][video.label] += 1
    groups_left = Counter(label for counts in groups.values() for label in counts)
    num_videos, num_held = Counter(video.label for video in videos), Counter()
    order, held = sorted(groups), set()
    random.Random(seed).shuffle(order)

    for label in sorted(num_videos):
        while (missing := round(fraction * num_videos[label]) - num_held[label]) > 0:
            free = [
                group
                for group in order
                if label in groups[group]
                and group not in held
                and all(groups_left[other] > 1 for other in groups[group])
            ]
            fitting = [group for group in free if groups[group][label] <= missing]
            if not free:
                break
            group = fitting[0] if fitting else min(free, key=lambda g: groups[g][label])
            if groups[group][label] >= 2 * missing and num_held[label]:
                break
            held.add(group)
            num_held += groups[group]
            groups_left -= Counter(dict.fromkeys(groups[group], 1))
    return divide(videos, held)
