"""Split lists: lines `video_frames_path class_id`, and the names of the classes."""

from pathlib import Path

from utils.errors import UserError


class SplitError(UserError):
    """A split list or a frame folder that cannot be used; the message is one line."""


def read_split(path, num_classes):
    """Read lines `video_frames_path class_id`; the last blank of a line separates the two.

    num_classes: class ids are below it. Returns (names, labels): list of str, list of int. Raises
    SplitError with the line's number, also where a video stands twice or leaves its root by "..".
    """
    path = Path(path)
    if not path.is_file():
        raise SplitError(f"{path}: no such list; make_splits.py writes it")
    names, labels, lines = [], [], {}
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        name, _, label = line.rstrip().rpartition(" ")
        if not name or not label.isascii() or not label.isdigit():
            raise SplitError(f"{path}:{number}: expected 'video_frames_path class_id': {line!r}")
        if int(label) >= num_classes:
            raise SplitError(f"{path}:{number}: class id {label}, but ids end at {num_classes - 1}")
        if ".." in Path(name).parts:
            raise SplitError(f"{path}:{number}: leaves the folder of frames: {line!r}")
        if name in lines:
            raise SplitError(f"{path}:{number}: the video of line {lines[name]} again: {line!r}")
        lines[name] = number
        names.append(name)
        labels.append(int(label))
    return names, labels


def check_disjoint(splits, names, other_names):
    """Raise SplitError if two lists of the folder `splits` share a video."""
    shared = set(names) & set(other_names)
    if shared:
        raise SplitError(
            f"{splits}: {len(shared)} videos are in two of the lists, the first is "
            f"{min(shared)!r}; are the lists of different folds?"
        )


def read_classes(splits):
    """The class names of <splits>/classes.txt in the order of their ids: list of str."""
    path = Path(splits) / "classes.txt"
    if not path.is_file():
        raise SplitError(f"{path}: no such file; make_splits.py writes it")
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    return [line.strip() for line in lines if line.strip()]
