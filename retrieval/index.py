"""A search index: a folder with the binary codes of videos (Faiss) and a record of each video.

index.json             metadata: bits, SHA-256 of the checkpoint, preprocessing, count, generation
<generation>.faiss     IndexBinaryFlat; its rows are in the order of the videos' paths
<generation>.jsonl     one line per video in the same order: path, size, mtime_ns, class
.journal-*.jsonl       videos encoded since then by a run that was interrupted

index.json is replaced last, atomically, so that readers see either the old index or the new one.
Source: J. Johnson, M. Douze, H. Jegou, "Billion-scale similarity search with GPUs", 2017,
https://arxiv.org/abs/1702.08734, and the documentation of Faiss's binary indexes.
"""

import hashlib
import json
import os
import re
from pathlib import Path

import faiss
import numpy as np

from utils.errors import UserError
from utils.files import atomic_write, similar_folder, write_text

FORMAT = 1  # raised when an index of this code can no longer be read by older code
INDEX_FILES = re.compile(  # all but index.json: those of a generation, journals, temporary files
    r"[0-9a-f]{16}\.(faiss|jsonl)"
    r"|\.journal-[0-9a-f]{16}-\d+\.jsonl"
    r"|\.([0-9a-f]{16}\.(faiss|jsonl)|index\.json|failures\.csv)\..+\.partial"
)


class IndexFileError(UserError):
    """An index that cannot be used; the message is one line that says why."""


# ==== reading ====


class Index:
    """An index opened for searching; codes and records are memory-mapped.

    metadata: the dict of index.json. Raises IndexFileError if there is no index or it is damaged.
    """

    def __init__(self, folder):
        self.metadata = read_metadata(folder)
        try:
            self._open(Path(folder))
        except IndexFileError:  # it may have been replaced between the two reads
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
        self.codes.use_heap = False  # search by counting, which keeps the lowest rows of a tie

    def __len__(self):
        return len(self.ends)

    def video(self, row):
        """The record of the video in a row: dict with path, size, mtime_ns, class."""
        start = self.ends[row - 1] + 1 if row else 0
        return json.loads(self.lines[start : self.ends[row]].tobytes())

    def search(self, codes, count):
        """The `count` nearest videos of each code; ties are in the order of the paths.

        codes: (Q, K) bool. Returns (rows, distances in bits): (Q, min(count, N)) int64.
        """
        packed = np.packbits(codes, axis=1)
        distances, rows = self.codes.search(packed, min(count, len(self)))
        order = np.lexsort((rows, distances), axis=1)
        rows, distances = (np.take_along_axis(x, order, axis=1) for x in (rows, distances))
        return rows, distances

    def rerank(self, values, rows):
        """Order candidates by asymmetric distance: real-valued query, binary database.

        values: (K,) in (-1, 1). rows: (R,) candidates, the nearest first; ties keep this order.
        Returns the rows in their new order. The distance is (K - <u, b>) / 2 for codes b of ±1;
        source: A. Gordo et al., "Asymmetric Distances for Binary Embeddings", TPAMI 2014.
        """
        packed = np.stack([self.codes.reconstruct(int(row)) for row in rows])
        codes = np.unpackbits(packed, axis=1, count=len(values)).astype(np.float32) * 2 - 1
        return rows[np.argsort((len(values) - codes @ values) / 2, kind="stable")]


def read_metadata(folder):
    """The dict of <folder>/index.json. Raises IndexFileError."""
    path = Path(folder) / "index.json"
    if not path.is_file():
        similar = similar_folder(folder, ["index.json"])
        hint = f"; did you mean {similar}?" if similar else ""
        raise IndexFileError(f"{folder}: not an index folder, which `search.py index` makes{hint}")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        version = metadata["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise IndexFileError(f"{path}: damaged; delete the folder and index again") from error
    if version > FORMAT:
        raise IndexFileError(f"{path}: written by a later version of this project; update it")
    return metadata


# ==== writing ====


def write_index(folder, metadata, videos):
    """Write an index; an earlier one is replaced when all files are on the disk.

    metadata: dict with "bits" and what identifies the encoder. videos: non-empty list of dicts with
    "path", "code" (packed bits as hexadecimal text), "size", "mtime_ns", "class".
    """
    folder = Path(folder)
    videos = sorted(videos, key=lambda video: video["path"])
    codes = np.frombuffer(bytes.fromhex("".join(video["code"] for video in videos)), np.uint8)
    codes = codes.reshape(len(videos), -1)
    keys = ("path", "size", "mtime_ns", "class")
    text = "".join(json.dumps({key: video[key] for key in keys}) + "\n" for video in videos)
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


def index_files(folder):
    """The files of an index, except index.json, with those of interrupted runs: list of Path."""
    return [path for path in Path(folder).iterdir() if INDEX_FILES.fullmatch(path.name)]


def may_write_index(folder):
    """Whether `folder` is empty or holds an index, complete or begun."""
    return bool(index_files(folder)) or {p.name for p in folder.iterdir()} <= {"failures.csv"}


# ==== updating: journals and plans ====


def journal_path(folder, metadata, rank):
    """The journal of the process `rank`; a hash of the encoder's metadata is in its name."""
    key = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()[:16]
    return Path(folder) / f".journal-{key}-{rank}.jsonl"


def append_to_journal(journal, videos):
    """Add records to an open journal; `read_journals` ignores a line that a kill truncated."""
    journal.write("".join("\n" + json.dumps(video) for video in videos) + "\n")
    journal.flush()


def read_journals(folder, metadata):
    """The records in all journals of an encoder: list of dicts, the newest of a video last."""
    records = []
    for path in sorted(folder.glob(journal_path(folder, metadata, "*").name)):
        for line in path.read_text(encoding="ascii").split("\n"):
            try:
                records.append(json.loads(line))
            except ValueError:  # empty or truncated
                continue
    return records


def encoded_videos(folder, metadata):
    """All videos that an encoder has encoded, in the index and in journals.

    metadata: as given to `write_index`. Returns {path: dict that `write_index` takes}. Raises
    IndexFileError if the folder holds other files, or the index of another encoder.
    """
    videos, folder = {}, Path(folder)
    if not folder.exists():
        return videos
    if not folder.is_dir() or not may_write_index(folder):
        raise IndexFileError(f"{folder}: exists, but is not an index; use another --output")
    if (folder / "index.json").exists():
        index = Index(folder)
        if any(index.metadata.get(key) != value for key, value in metadata.items()):
            raise IndexFileError(
                f"{folder}: made with another checkpoint; use another --output, or delete it"
            )
        for row, code in enumerate(index.codes.reconstruct_n(0, len(index))):
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
