"""Checkpoint files: tensors and plain Python values only, with a hash of the whole file.

A checkpoint is the ZIP archive of torch.save. The archive's comment, its last 71 bytes, is
"sha256:" and the SHA-256 of all bytes before it. Earlier versions wrote no comment; of their files
the CRC-32 of every record is verified instead.
"""

import hashlib
import os
import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import torch

from utils import distributed
from utils.checkpoint_schema import FORMAT, check_content
from utils.errors import UserError
from utils.files import atomic_write, similar_folder
from utils.schema import SchemaError

CHECKPOINT_NAMES = ("best.pt", "last.pt")  # of a run folder, the preferred one first
HASH_PREFIX = b"sha256:"
HASH_LENGTH = len(HASH_PREFIX) + 64
ZIP_END, ZIP_END_LENGTH = b"PK\5\6", 22  # the last record of a ZIP archive without a comment
CHUNK = 2**20


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message is one line that says why."""


class DamagedError(CheckpointError):
    """A checkpoint whose bytes are not those that were written."""


# ==== finding and writing ====


def find_checkpoint(path):
    """The checkpoint file that `path` names: a file, or a run folder's best.pt, else its last.pt.

    Prints which file of a folder is used. Raises CheckpointError with a suggestion.
    """
    file = _checkpoint_in(path) if Path(path).is_dir() else Path(path)
    if file is None or not file.is_file():
        problem = "no best.pt or last.pt in this folder" if file is None else "no such checkpoint"
        similar = similar_folder(path, CHECKPOINT_NAMES)
        hint = f"; did you mean {_checkpoint_in(similar)}?" if similar else ""
        raise CheckpointError(f"{path}: {problem}{hint}")
    if file != Path(path) and distributed.is_main():
        print(f"using {file}", file=sys.stderr)
    return file


def _checkpoint_in(folder):
    """The first of CHECKPOINT_NAMES that is in `folder`, or None."""
    files = [Path(folder) / name for name in CHECKPOINT_NAMES]
    return next((file for file in files if file.is_file()), None)


def save_checkpoint(path, content, previous=None):
    """Write `content` (dict as of `check_content`) and its hash to `path`, atomically.

    previous: where the earlier file of that path is kept.
    """
    with atomic_write(path, previous) as temporary:
        torch.save({"format": FORMAT, **content}, temporary)
        append_hash(temporary)


def append_hash(path):
    """Append the SHA-256 of a file of torch.save to it, as the comment of the ZIP archive."""
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(HASH_LENGTH.to_bytes(2, "little"))  # the length of the comment
        digest = _sha256(file, file.tell())
        file.write(HASH_PREFIX + digest)


def _sha256(file, length):
    """The SHA-256 of the first `length` bytes of an open file, as hexadecimal bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while length and (chunk := file.read(min(CHUNK, length))):
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest().encode()


# ==== reading ====


def load_checkpoint(path, *needed):
    """The dict that `save_checkpoint` wrote, tensors on the CPU, verified against its hash.

    needed: optional keys that the caller uses. All values have the types and ranges of
    `utils.checkpoint_schema`. Read with weights_only=True: a file that needs arbitrary pickle is
    refused, not run. Raises CheckpointError with one line that says what is wrong.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    with open(path, "rb") as file:
        _verify(file, path)
        content = _unpickle(file, path)
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{path}: a PyTorch file, but not a checkpoint that train.py wrote")
    version = content["format"]
    if type(version) is int and version > FORMAT:
        raise CheckpointError(f"{path}: written by a later version of this project; update it")
    try:
        check_content(content, needed)
    except SchemaError as error:
        raise CheckpointError(
            f"{path}: {error}; use a checkpoint that train.py of this project wrote"
        ) from error
    return content


def _verify(file, path):
    """Raise DamagedError unless the bytes of an open checkpoint are those that were written."""
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - HASH_LENGTH - ZIP_END_LENGTH))
        end = file.read()
        comment, has_no_comment = end[-HASH_LENGTH:], end[-ZIP_END_LENGTH:].startswith(ZIP_END)
        if comment.startswith(HASH_PREFIX):
            if _sha256(file, size - HASH_LENGTH) != comment.removeprefix(HASH_PREFIX):
                raise DamagedError(f"{path}: damaged: its bytes do not have the SHA-256 at its end")
        elif not has_no_comment:
            raise DamagedError(f"{path}: damaged or not a checkpoint: it does not end as one")
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            if any(r.compress_type for r in records) or sum(r.file_size for r in records) > size:
                raise CheckpointError(f"{path}: not a checkpoint: torch.save compresses nothing")
            if has_no_comment and archive.testzip():
                raise DamagedError(f"{path}: damaged: a record does not have its CRC-32")
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # a damaged directory of the archive can raise any exception
        raise DamagedError(f"{path}: damaged or not a checkpoint ({_one_line(error)})") from error


def _unpickle(file, path):
    """The content of an open file of torch.save; no code in it is run."""
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not a checkpoint of this project (it holds more than tensors and numbers, "
            "or is damaged)"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a pickle that torch.save did not write can raise any exception
        raise CheckpointError(f"{path}: not a checkpoint ({_one_line(error)})") from error


def _one_line(error):
    """The first line of an error, or its type where it has no text."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200]
