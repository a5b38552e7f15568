"""Files that are either whole or not there."""

import contextlib
import csv
import io
import os
import platform
from pathlib import Path

import filelock

from utils.errors import UserError


@contextlib.contextmanager
def atomic_write(path, previous=None):
    """Yield a temporary path beside `path`; on success flush it to the disk and rename it.

    A reader therefore sees the old file or the new one, never half of one, whenever the writer is
    killed. Folders above `path` are made. On an exception the temporary file is removed.
    previous: where the earlier file is kept.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def file_lock(path, seconds=5, reason="another run is at work on it"):
    """Hold the lock file `path`, whose folder is made; the system frees it when this process ends.

    seconds: how long to wait for a process that holds it, -1 for as long as it takes. The default
    outlasts the children of a process that was just killed. Raises UserError with `reason` then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path, timeout=seconds):
            yield
    except filelock.Timeout as error:
        raise UserError(f"{path.parent}: {reason} ({path.name} is locked)") from error


def write_text(path, text):
    """Write `text` to `path` as UTF-8, aside and renamed; file names keep their very bytes."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


def write_failures(path, failures):
    """Write a table `video,reason` of a dict, sorted, as CSV; an empty one has no file."""
    if not failures:
        Path(path).unlink(missing_ok=True)
        return
    table = io.StringIO()
    rows = [("video", "reason"), *sorted(failures.items())]
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_text(path, table.getvalue())


def printable(name):
    """A file name for one line of a terminal: control and undecodable characters are escaped."""
    return str(name) if str(name).isprintable() else repr(str(name))


def check_writable(folder, flag):
    """Raise UserError if no file can be made in `folder`, which need not exist. flag: its name."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{flag} {folder}: {existing}: Not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {folder}: {existing} cannot be written")
