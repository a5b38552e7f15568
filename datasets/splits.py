"""Split lists: lines `video_frames_path class_id`, and the names of the classes."""

from pathlib import Path

from utils.errors import UserError


class SplitError(UserError):
    """A split list or a frame folder that cannot be used; the message is one line."""


def read_split(path, num_classes):
    """Read lines `video_frames_path class_id`; the last blank of a line separates the two.

    num_classes: class ids are below it. Returns (names, labels): list of str, list of int. Raises
    SplitError with the number of the line, also for a duplicate video or a path with "..".
    """
    path = Path(path)
    names, labels, lines = [], [], {}
    for number, line in enumerate(_read(path, "list").split("\n"), start=1):
        if not line.strip():
            continue
        name, _, label = line.rstrip().rpartition(" ")
        where = f"{path}:{number}"
        if not name or not label.isascii() or not label.isdigit():
            raise SplitError(f"{where}: expected 'video_frames_path class_id', not {line!r}")
        if int(label) >= num_classes:
            raise SplitError(f"{where}: class id {label} is out of range 0-{num_classes - 1}")
        if ".." in Path(name).parts:
            raise SplitError(f"{where}: the path leaves the folder of frames: {line!r}")
        if name in lines:
            raise SplitError(f"{where}: the same video as in line {lines[name]}: {line!r}")
        lines[name] = number
        names.append(name)
        labels.append(int(label))
    return names, labels


def check_disjoint(splits, names, other_names):
    """Raise SplitError if two lists of the folder `splits` have a video in common."""
    shared = set(names) & set(other_names)
    if shared:
        raise SplitError(
            f"{splits}: {len(shared)} videos are in two of the lists, such as {min(shared)!r}; "
            "are the lists of different folds?"
        )


def read_classes(splits):
    """The class names of <splits>/classes.txt in the order of their ids: list of str."""
    lines = _read(Path(splits) / "classes.txt", "file").split("\n")
    return [line.strip() for line in lines if line.strip()]


def _read(path, kind):
    """The text of a file; names that are not UTF-8 keep their bytes."""
    if not path.is_file():
        raise SplitError(f"{path}: no such {kind}; make_splits.py writes it")
    return path.read_text(encoding="utf-8-sig", errors="surrogateescape")
