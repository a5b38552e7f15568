"""Atomic file writes, lock files, the list of failures, and reading .npz files."""

import contextlib
import csv
import difflib
import io
import os
import platform
import re
import zipfile
from pathlib import Path

import filelock
import numpy as np

from utils.errors import UserError


@contextlib.contextmanager
def atomic_write(path, previous=None):
    """Yield a temporary path; after the body, flush that file to the disk and rename it to `path`.

    A reader sees the old file or the new one, never half a file, even if the writer is killed.
    Parent folders are created. An exception removes the temporary file, and the next write of
    `path` those of killed processes.
    previous: path under which the earlier file is kept.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_temporary(path.parent, path.name)
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


def remove_temporary(folder, name=None):
    """Remove temporary files that killed processes of this machine left in `folder`.

    name: of the file that they should have become; default: any.
    """
    stem = re.escape(name) if name else ".+"
    pattern = re.compile(rf"\.{stem}\.{re.escape(platform.node())}\.(\d+)\.partial")
    for path in Path(folder).iterdir():
        if match := pattern.fullmatch(path.name):
            try:
                os.kill(int(match[1]), 0)
            except (ProcessLookupError, OverflowError):
                path.unlink(missing_ok=True)
            except PermissionError:  # the process is another user's, and alive
                continue


@contextlib.contextmanager
def file_lock(path, seconds=5, reason="another run is using it"):
    """Hold a lock on the file `path`; the system releases it when this process ends.

    seconds: how long to wait for another process, -1 for ever. The default is longer than children
    of a killed process live. Raises UserError with `reason` if the lock is not released in time.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path, timeout=seconds):
            yield
    except filelock.Timeout as error:
        raise UserError(f"{path.parent}: {reason} ({path.name} is locked)") from error


@contextlib.contextmanager
def folder_lock(folder):
    """Hold the lock of an output folder; remove a new folder again if nothing was written there."""
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with file_lock(folder / ".lock"):
        try:
            yield
        finally:
            if made and os.listdir(folder) == [".lock"]:
                (folder / ".lock").unlink()
                with contextlib.suppress(OSError):  # another run may have written beside it
                    for path in made:
                        path.rmdir()


def write_text(path, text):
    """Write `text` to `path` atomically as UTF-8; names that are not UTF-8 keep their bytes."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


def is_utf8(path):
    """Whether the bytes of a path are UTF-8, which TensorBoard requires."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def write_failures(path, failures):
    """Write {video: reason} as a sorted CSV table; remove the file if there are none."""
    if not failures:
        Path(path).unlink(missing_ok=True)
        return
    table = io.StringIO()
    rows = [("video", "reason"), *sorted(failures.items())]
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_text(path, table.getvalue())


def check_writable(folder, flag):
    """Raise UserError if no file can be made in `folder`, which need not exist. flag: its name."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{flag} {folder}: {existing}: Not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {folder}: {existing} cannot be written")


def similar_folder(path, names):
    """The folder near `path` that holds a file called one of `names`, or None: for "did you mean".

    Searched are the nearest existing folder above `path` and two levels below it; of several
    folders the one whose path is most like `path` is returned.
    """
    start = Path(path).parent
    while not start.is_dir():
        start = start.parent
    if str(start) == start.anchor:  # never search a whole disk
        return None
    patterns = [prefix + name for prefix in ("", "*/", "*/*/") for name in names]
    found = {str(file.parent) for pattern in patterns for file in start.glob(pattern)}
    nearest = difflib.get_close_matches(str(path), sorted(found), n=1, cutoff=0)
    return Path(nearest[0]) if nearest else None


def read_arrays(path, required, optional, content):
    """The arrays of an .npz file with the given names, read without pickle: a dict.

    required, optional: names of arrays; others are not read. content: what the file should hold,
    for messages. Raises UserError with one line.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; expected an .npz file of {content}")
    known = [*required, *optional]
    try:
        with zipfile.ZipFile(path) as file:
            members = {name: f"{name}.npy" for name in known if f"{name}.npy" in file.namelist()}
            size = sum(file.getinfo(member).file_size for member in members.values())
            if 2 * size > _physical_memory():
                raise MemoryError
            arrays = {name: _read_array(file, member) for name, member in members.items()}
    except MemoryError:
        raise UserError(f"{path}: its arrays do not fit into memory") from None
    except PermissionError as error:
        raise UserError(str(error)) from None
    except Exception:  # zipfile and NumPy raise all kinds for files that are not .npz or damaged
        raise UserError(
            f"{path}: damaged or not an .npz file of plain arrays; write it with np.savez, without "
            "objects"
        ) from None
    missing = [name for name in required if name not in arrays]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing; required are {', '.join(required)}")
    return arrays


def _physical_memory():
    """Bytes of memory of this machine; no limit where the system does not say."""
    if not hasattr(os, "sysconf"):
        return float("inf")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read_array(file, member):
    """The array of a member of a ZipFile. Raises an exception if a single bit of it is wrong.

    It is read to its end, since zipfile compares checksums only there. NumPy would stop before if a
    damaged header names a smaller array.
    """
    content = io.BytesIO(file.read(member))
    array = np.lib.format.read_array(content, allow_pickle=False)
    if content.read(1):
        raise ValueError(f"{member} is longer than its array")
    return array
