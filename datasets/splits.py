"""Split lists: lines `video_frames_path class_id`, and the names of the classes."""

import hashlib
import json
import posixpath
from pathlib import Path

from utils.errors import UserError
from utils.schema import is_text, show

MOST_DIGITS = 9  # of a class id


class SplitError(UserError):
    """A split list or a frame folder that cannot be used; the message is one line."""


def read_split(path, num_classes):
    """Read lines `video_frames_path class_id`; the last blank of a line separates the two.

    num_classes: class ids are below it. Returns (names, labels): list of str, list of int. Other
    spellings of a path, such as ./a//b, become a/b. Raises SplitError with the number of the line,
    also for a duplicate video and for a path that is absolute or has "..".
    """
    path = Path(path)
    names, labels, lines = [], [], {}
    for number, line in enumerate(_read(path, "list").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        name, label = _read_line(line, num_classes, where)
        if name in lines:
            raise SplitError(f"{where}: the same video as in line {lines[name]}: {show(line)}")
        lines[name] = number
        names.append(name)
        labels.append(label)
    return names, labels


def _read_line(line, num_classes, where):
    """The (name, label) of a line. where: file and number, for messages."""
    name, _, label = line.rstrip().rpartition(" ")
    is_number = label.isascii() and label.isdigit()
    if not name or not is_number or not is_text(name):
        raise SplitError(f"{where}: expected 'video_frames_path class_id', not {show(line)}")
    if len(label) > MOST_DIGITS or int(label) >= num_classes:
        raise SplitError(
            f"{where}: class id {show(int(label[:60]))} is out of range 0-{num_classes - 1}"
        )
    if name.startswith("/") or ".." in Path(name).parts:
        raise SplitError(
            f"{where}: the path leaves the folder of frames: {show(line)}; write <class>/<video>"
        )
    name = posixpath.normpath(name)
    if name == ".":
        raise SplitError(f"{where}: no video, but the folder of frames: {show(line)}")
    return name, int(label)


def check_disjoint(splits, names, other_names):
    """Raise SplitError if two lists of the folder `splits` have a video in common."""
    shared = set(names) & set(other_names)
    if shared:
        raise SplitError(
            f"{splits}: {len(shared)} videos are in two of the lists, such as {min(shared)!r}; "
            "are the lists of different folds?"
        )


def hash_lists(train, val):
    """Hash (hex) of the training and the validation list, each (names, labels)."""
    lists = json.dumps([[list(names), list(labels)] for names, labels in (train, val)])
    return hashlib.sha256(lists.encode()).hexdigest()[:12]


def find_other_class(names, labels, classes):
    """The first video whose folder has the name of another class than its label, or None."""
    ids = {name: label for label, name in enumerate(classes)}
    for name, label in zip(names, labels, strict=True):
        if ids.get(posixpath.dirname(name), label) != label:
            return name
    return None


def read_classes(splits):
    """The class names of <splits>/classes.txt in the order of their ids: list of str."""
    path = Path(splits) / "classes.txt"
    classes = [line.strip() for line in _read(path, "file").split("\n") if line.strip()]
    check_classes(classes, path)
    return classes


def check_classes(classes, where):
    """Raise SplitError if two classes differ in blanks at the ends only, or not at all."""
    seen = set()
    for name in map(str.strip, classes):
        if name in seen:
            raise SplitError(
                f"{where}: two classes are called {show(name)}; blanks at the ends do not count; "
                "rename one of their folders"
            )
        seen.add(name)


def _read(path, kind):
    """The text of a file; names that are not UTF-8 keep their bytes."""
    if not path.is_file():
        raise SplitError(f"{path}: no such {kind}; make_splits.py writes it")
    return path.read_text(encoding="utf-8-sig", errors="surrogateescape")
