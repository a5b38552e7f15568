"""A search index of videos: a folder with binary codes under Faiss and what is known of each video.

index.json             metadata: bits, SHA-256 of the checkpoint, preprocessing, count, generation
<generation>.faiss     an IndexBinaryFlat whose rows are in the order of the videos' paths
<generation>.jsonl     a line a video in the same order: path, size, mtime_ns, class
.journal-*.jsonl       videos encoded since then: what is left of a run that was stopped

index.json is replaced last, by renaming, so that readers see the old index or the new one.
Source: J. Johnson, M. Douze, H. Jegou, "Billion-scale similarity search with GPUs", 2017,
https://arxiv.org/abs/1702.08734 and the documentation of Faiss's binary indexes.
"""

import hashlib
import json
import os
import re
from pathlib import Path

import faiss
import numpy as np

from utils.errors import UserError
from utils.files import atomic_write, write_text

FORMAT = 1  # raised when an index of this code can no longer be read by older code


class IndexFileError(UserError):
    """An index that cannot be used; the message is one line that says why."""


class Index:
    """An index opened for searching; codes and videos are memory-mapped.

    metadata: the dict of index.json. Raises IndexFileError when there is none or it is damaged.
    """

    def __init__(self, folder):
        self.metadata = read_metadata(folder)
        try:
            self._open(Path(folder))
        except IndexFileError:  # perhaps the index was replaced in between
            earlier, self.metadata = self.metadata, read_metadata(folder)
            if earlier == self.metadata:
                raise
            self._open(Path(folder))

    def _open(self, folder):
        stem = folder / self.metadata["generation"]
        try:
            self.codes = faiss.read_index_binary(f"{stem}.faiss", faiss.IO_FLAG_MMAP_IFC)
            self.lines = np.memmap(f"{stem}.jsonl", np.uint8, "r")
        except (OSError, RuntimeError, ValueError) as error:
            raise IndexFileError(
                f"{folder}: damaged ({error}); delete it and index again"
            ) from error
        self.ends = np.flatnonzero(self.lines == ord("\n"))
        if not len(self.ends) == self.codes.ntotal == self.metadata["count"]:
            raise IndexFileError(f"{folder}: its files differ in length; delete it and index again")
        self.codes.use_heap = False  # counts by distance, which keeps the lowest rows of a tie

    def __len__(self):
        return len(self.ends)

    def video(self, row):
        """What is known of the video in a row: dict with path, size, mtime_ns, class."""
        start = self.ends[row - 1] + 1 if row else 0
        return json.loads(self.lines[start : self.ends[row]].tobytes())

    def search(self, codes, count):
        """The `count` nearest videos of each code, ties in the order of their paths.

        codes: (Q, K) bool. Returns (rows, distances in bits): (Q, min(count, N)) int64.
        """
        packed = np.packbits(codes, axis=1)
        distances, rows = self.codes.search(packed, min(count, len(self)))
        order = np.lexsort((rows, distances), axis=1)
        return tuple(np.take_along_axis(found, order, axis=1) for found in (rows, distances))

    def rerank(self, values, rows):
        """Order candidates by asymmetric distance: real-valued query, binary database.

        values: (K,) in (-1, 1). rows: (R,) candidates, nearest first, which decides ties.
        Returns the rows in their new order. Distance (K - <u, b>) / 2 for codes b of ±1; source:
        A. Gordo et al., "Asymmetric Distances for Binary Embeddings", TPAMI 2014.
        """
        packed = np.stack([self.codes.reconstruct(int(row)) for row in rows])
        codes = np.unpackbits(packed, axis=1, count=len(values)).astype(np.float32) * 2 - 1
        return rows[np.argsort((len(values) - codes @ values) / 2, kind="stable")]


def read_metadata(folder):
    """The dict of <folder>/index.json. Raises IndexFileError."""
    path = Path(folder) / "index.json"
    if not path.is_file():
        raise IndexFileError(f"{folder}: no index; `search.py index` makes one")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        version = metadata["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise IndexFileError(f"{path}: damaged; delete the folder and index again") from error
    if version > FORMAT:
        raise IndexFileError(f"{path}: written by a later version of this project; update it")
    return metadata


def write_index(folder, metadata, videos):
    """Write an index, replacing the one that is there when all is on the disk.

    metadata: dict with "bits" and whatever identifies the encoder. videos: list of dicts with
    "path", "code" (hex of the packed bits), "size", "mtime_ns", "class"; not empty.
    """
    folder = Path(folder)
    videos = sorted(videos, key=lambda video: video["path"])
    codes = np.frombuffer(bytes.fromhex("".join(video["code"] for video in videos)), np.uint8)
    codes = codes.reshape(len(videos), -1)
    kept = ("path", "size", "mtime_ns", "class")
    text = "".join(json.dumps({key: video[key] for key in kept}) + "\n" for video in videos)
    generation = hashlib.sha256(codes.tobytes() + text.encode("ascii")).hexdigest()[:16]
    flat = faiss.IndexBinaryFlat(8 * codes.shape[1])
    flat.add(codes)
    with atomic_write(folder / f"{generation}.faiss") as temporary:
        faiss.write_index_binary(flat, str(temporary))
    write_text(folder / f"{generation}.jsonl", text)
    metadata = {"format": FORMAT, **metadata, "count": len(videos), "generation": generation}
    write_text(folder / "index.json", json.dumps(metadata, indent=2) + "\n")
    for path in index_files(folder):
        if path.stem != generation:
            path.unlink(missing_ok=True)


def is_ours(folder):
    """Whether a folder is empty or an index, whole or begun."""
    return bool(index_files(folder)) or {p.name for p in folder.iterdir()} <= {"failures.csv"}


def index_files(folder):
    """The files of an index but for index.json, journals of stopped runs included."""
    named = re.compile(
        r"[0-9a-f]{16}\.(faiss|jsonl)|\.journal-[0-9a-f]{16}-\d+\.jsonl"
        r"|\.([0-9a-f]{16}\.(faiss|jsonl)|index\.json|failures\.csv)\..+\.partial"
    )
    return [path for path in Path(folder).iterdir() if named.fullmatch(path.name)]


# ==== journals ====


def journal_path(folder, metadata, rank):
    """The journal of a process; it belongs to one encoder, whose hash is in its name."""
    key = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()[:16]
    return Path(folder) / f".journal-{key}-{rank}.jsonl"


def append(journal, videos):
    """Add lines to an open journal; a line that a kill cuts short is ignored by `known_videos`."""
    journal.write("".join("\n" + json.dumps(video) for video in videos) + "\n")
    journal.flush()


def known_videos(folder, metadata):
    """All videos that an encoder has encoded: dict path -> dict as `write_index` takes.

    metadata: as given to `write_index`. Raises IndexFileError when the folder holds something
    else, or the index of another encoder.
    """
    known, folder = {}, Path(folder)
    if not folder.exists():
        return known
    if not folder.is_dir() or not is_ours(folder):
        raise IndexFileError(f"{folder}: exists and is no index; give another --output")
    if (folder / "index.json").exists():
        index = Index(folder)
        if any(index.metadata.get(key) != value for key, value in metadata.items()):
            raise IndexFileError(
                f"{folder}: made with another checkpoint; give another --output, or delete it"
            )
        for row, code in enumerate(index.codes.reconstruct_n(0, len(index))):
            video = index.video(row)
            known[video["path"]] = {**video, "code": code.tobytes().hex()}
    pattern = journal_path(folder, metadata, "*").name
    for path in sorted(folder.glob(pattern)):
        for line in path.read_text(encoding="ascii").split("\n"):
            try:
                video = json.loads(line)
            except ValueError:  # empty, or cut short by a kill
                continue
            known[video["path"]] = video
    return known


def plan(root, paths, known):
    """Compare the videos `paths`, relative to `root`, with what is known.

    Returns (records that are still right, records to encode), dicts with path, size, mtime_ns; a
    file that cannot be looked at is to be encoded, which tells the reason.
    """
    kept, todo = [], []
    for path in paths:
        try:
            status = os.stat(root / path)
            record = {"path": path, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        except OSError:
            record = {"path": path, "size": None, "mtime_ns": None}
        same = path in known and all(known[path][key] == value for key, value in record.items())
        (kept if same else todo).append(known[path] if same else record)
    return kept, todo
