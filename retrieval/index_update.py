"""Updates of a search index: journals of encoded videos, and what is still to be encoded."""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

from retrieval.index import (
    RECORD,
    Index,
    IndexFileError,
    check_index_folder,
    find_flaw,
    parse_json,
)
from utils.errors import printable

# ==== journals ====


def journal_path(folder, metadata, rank):
    """The journal of the process `rank`; a hash of the encoder's metadata is in its name."""
    key = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()[:16]
    return Path(folder) / f".journal-{key}-{rank}.jsonl"


def append_to_journal(journal, videos):
    """Add a line per record to an open journal: its checksum and the record as JSON."""
    texts = [json.dumps(video) for video in videos]
    journal.write("".join(f"\n{hash_line(text.encode())} {text}" for text in texts) + "\n")
    journal.flush()


def hash_line(text):
    """The first 16 digits of the SHA-256 of a journal's record (bytes)."""
    return hashlib.sha256(text).hexdigest()[:16]


def read_journals(folder, metadata):
    """The records in all journals of an encoder: list of dicts, the newest of a video last.

    Warns of damaged lines, as a kill leaves them, and of lines of early versions, which have no
    checksum; their videos are encoded again.
    """
    digits = 2 * ((metadata["bits"] + 7) // 8)
    records = []
    for path in sorted(folder.glob(journal_path(folder, metadata, "*").name)):
        lines = [line for line in path.read_bytes().split(b"\n") if line]
        intact = [record for line in lines if (record := parse_journal_line(line, digits))]
        if len(intact) < len(lines):
            message = f"warning: {path}: {len(lines) - len(intact)} damaged lines are ignored"
            print(printable(message), file=sys.stderr)
        records += intact
    return records


def parse_journal_line(line, digits):
    """The record in a line of a journal (bytes), or None. digits: length of a code."""
    checksum, _, text = line.partition(b" ")
    if checksum != hash_line(text).encode():
        return None
    record = parse_json(text)
    if find_flaw(record, {**RECORD, "code": (str,)}):
        return None
    return record if re.fullmatch(f"[0-9a-f]{{{digits}}}", record["code"]) else None


# ==== plans ====


def encoded_videos(folder, metadata):
    """All videos that an encoder has encoded, in the index and in journals.

    metadata: what identifies the encoder, as given to `write_index`. Returns {path: dict that
    `write_index` takes}. Raises IndexFileError if the folder holds other files, or the index of
    another encoder.
    """
    videos, folder = {}, Path(folder)
    check_index_folder(folder)
    if not folder.exists():
        return videos
    if (folder / "index.json").exists():
        index = Index(folder)
        if any(index.metadata.get(key) != value for key, value in metadata.items()):
            raise IndexFileError(
                f"{folder}: made with another checkpoint; use another --output, or delete it"
            )
        for row, code in enumerate(index.packed):
            video = index.video(row)
            videos[video["path"]] = {**video, "code": code.tobytes().hex()}
    return videos | {video["path"]: video for video in read_journals(folder, metadata)}


def plan_update(root, paths, encoded):
    """Compare the videos `paths`, relative to `root`, with those that are already encoded.

    A video is unchanged if its size and time of change are. A file without these, such as a broken
    link, is to be encoded, which then fails with the reason.
    Returns (records of unchanged videos, records to encode): dicts with path, size, mtime_ns.
    """
    unchanged, todo = [], []
    for path in paths:
        try:
            status = os.stat(root / path)
            record = {"path": path, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        except OSError:
            record = {"path": path, "size": None, "mtime_ns": None}
        earlier = encoded.get(path)
        if earlier and all(earlier[key] == value for key, value in record.items()):
            unchanged.append(earlier)
        else:
            todo.append(record)
    return unchanged, todo
