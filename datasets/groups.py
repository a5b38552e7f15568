"""Videos in groups that must not be divided, and how some of them are held out."""

import random
from collections import Counter, defaultdict
from typing import NamedTuple

from utils.errors import printable

ORDERS = 20  # of the groups, of which the best is taken where groups have videos of several classes


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


def group_sizes(videos):
    """How many videos of each class a group has: {group: Counter of labels}."""
    groups = defaultdict(Counter)
    for video in videos:
        groups[video.group][video.label] += 1
    return groups


def describe_groups(videos):
    """Lines that show the grouping: how many groups, their sizes, and three of them."""
    members = {}
    for video in videos:
        members.setdefault(video.group, []).append(video.name)
    least, most = min(map(len, members.values())), max(map(len, members.values()))
    spread = f"{least} to {most}" if least < most else f"{most}"
    lines = [f"{len(members)} groups of {spread} videos, such as"]
    for group, names in list(members.items())[:3]:
        more = f", ... ({len(names)})" if len(names) > 3 else ""
        lines.append(f"  {group}: {', '.join(names[:3])}{more}")
    return "\n".join(map(printable, lines))


def hold_out(videos, fraction, seed):
    """Hold out about `fraction` of each class's videos, in whole groups chosen at random.

    The last group of a class is never held out. Where each group is of one class, every class that
    can spare a group has one held out. Otherwise that could take far too many videos of other
    classes, so the choice is the best of several, in numbers of videos.
    Returns (other videos, held-out videos) in the given order.
    """
    groups = group_sizes(videos)
    num_videos = Counter(video.label for video in videos)
    wanted = {label: round(fraction * num_videos[label]) for label in sorted(num_videos)}
    order, rng = sorted(groups), random.Random(seed)
    rng.shuffle(order)
    best = _choose(order, groups, wanted)
    if any(len(counts) > 1 for counts in groups.values()):
        orders = [rng.sample(order, len(order)) for _ in range(ORDERS)]
        choices = [_choose(other, groups, wanted, i % 2 == 0) for i, other in enumerate(orders)]
        best = min([best, *choices], key=lambda held: _error(held, groups, wanted))
    return divide(videos, best)


def _error(held, groups, wanted):
    """How many videos too many or too few are held out, over all classes."""
    counts = Counter()
    for group in held:
        counts.update(groups[group])
    return sum(abs(counts[label] - number) for label, number in wanted.items())


def _choose(order, groups, wanted, every_class=True):
    """The set of groups to hold out: for each class the first ones that fit what is missing.

    Where none fits, the smallest if that comes nearer; with every_class also if the class had none.
    order: the groups. groups: of `group_sizes`. wanted: {label: number of videos}.
    """
    held, missing = set(), dict(wanted)
    left, members = Counter(), defaultdict(list)  # of each class: groups that remain, all groups
    for group in order:
        for label in groups[group]:
            left[label] += 1
            members[label].append(group)

    def is_free(group):
        return group not in held and all(left[label] > 1 for label in groups[group])

    def helps(group):
        change = (abs(missing[c] - n) - abs(missing[c]) for c, n in groups[group].items())
        return sum(change) < 0

    def hold(group):
        held.add(group)
        for label, number in groups[group].items():
            missing[label] -= number
            left[label] -= 1

    for label in wanted:
        for group in members[label]:  # those that do not fit now will not fit later
            if groups[group][label] <= missing[label] and is_free(group) and helps(group):
                hold(group)
        free = [group for group in members[label] if is_free(group)] if missing[label] > 0 else []
        if free:
            smallest = min(free, key=lambda group: groups[group][label])
            is_first = every_class and missing[label] == wanted[label]
            if is_first or helps(smallest):
                hold(smallest)
    return held
