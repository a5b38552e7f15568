"""Files that are either whole or not there."""

import contextlib
import csv
import io
import os
from pathlib import Path


@contextlib.contextmanager
def write_aside(path):
    """Yield a temporary path beside `path`; on success flush it to the disk and rename it.

    A reader therefore sees the old file or the new one, never half of one, whenever the writer is
    killed. Folders above `path` are made. On an exception the temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write `text` to `path` as UTF-8, aside and renamed; file names keep their very bytes."""
    with write_aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


def write_failures(path, failures):
    """Write a table `video,reason` of a dict, as CSV; where it is empty there is no file."""
    if not failures:
        Path(path).unlink(missing_ok=True)
        return
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("video", "reason"), *failures.items()])
    write_text(path, table.getvalue())


def printable(name):
    """A file name for one line of a terminal: control and undecodable characters are escaped."""
    return str(name) if str(name).isprintable() else repr(str(name))
