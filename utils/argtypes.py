"""Types of command-line values for argparse; each message says what the value must be."""

import argparse
import math
import os

from utils.schema import show

LARGEST = 2**62  # larger whole numbers fit no tensor
NAMES = {int: "a whole number", float: "a number"}


def number(kind, *, least=None, above=None, most=None, below=None):
    """An argparse type for finite numbers in a range.

    kind: int or float. least, most: bounds that are allowed. above, below: bounds that are not.
    """
    bounds = {"of at least": least, "above": above, "of at most": most, "below": below}
    limits = [f"{words} {bound}" for words, bound in bounds.items() if bound is not None]
    wanted = " ".join([NAMES[kind], " and ".join(limits)]).rstrip()

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        in_range = (
            (abs(value) <= LARGEST if isinstance(value, int) else math.isfinite(value))
            and (least is None or value >= least)
            and (above is None or value > above)
            and (most is None or value <= most)
            and (below is None or value < below)
        )
        if not in_range:
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {show(text)}")
        return value

    parse.metavar = {int: "N", float: "X"}[kind]  # in the help
    return parse


def folder_name(text):
    """argparse type: the name of a folder, not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must be the name of a folder, but is empty")
    return text


def processors():
    """CPU cores for this process, if it shares them with others that torchrun started: >= 1."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
