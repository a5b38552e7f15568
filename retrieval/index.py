"""A search index: a folder with the binary codes of videos (Faiss) and a record of each video.

index.json             metadata: bits, SHA-256 of the checkpoint, preprocessing, count, generation
<generation>.faiss     IndexBinaryFlat; its rows are in the order of the videos' paths
<generation>.jsonl     one line per video in the same order: path, size, mtime_ns, class
.journal-*.jsonl       videos encoded since then by a run that was interrupted
.lock                  held by the run that writes the index

index.json is replaced last, atomically, so that readers see either the old index or the new one.
The generation is a SHA-256 of codes and records, and index.json and each line of a journal have one
too: all are verified when they are read. Faiss only searches; it never parses a file.
Source: J. Johnson, M. Douze, H. Jegou, "Billion-scale similarity search with GPUs", 2017,
https://arxiv.org/abs/1702.08734, and the documentation of Faiss's binary indexes.
"""

import hashlib
import json
import os
import re
import struct
from pathlib import Path

import faiss
import numpy as np

from utils.errors import UserError
from utils.files import atomic_write, similar_folder, write_text

FORMAT = 1  # raised when an index of this code can no longer be read by older code
METADATA = {  # the keys of index.json and their types; "sha256" is not in early indexes
    "format": (int,),
    "bits": (int,),
    "count": (int,),
    "generation": (str,),
    "checkpoint_sha256": (str,),
    "preprocessing": (dict,),
    "checkpoint": (str,),
    "videos": (str,),
}
RECORD = {  # of a video
    "path": (str,),
    "size": (int, type(None)),
    "mtime_ns": (int, type(None)),
    "class": (str, type(None)),
}
# What Faiss writes before the codes of an IndexBinaryFlat: name, bits, bytes per code, number of
# codes, is_trained = 1, metric = 1, number of bytes.
HEADER = struct.Struct("<4siiqBiQ")
INDEX_FILES = re.compile(  # all but index.json: those of a generation, journals, temporary files
    r"[0-9a-f]{16}\.(faiss|jsonl)"
    r"|\.journal-[0-9a-f]{16}-\d+\.jsonl"
    r"|\.([0-9a-f]{16}\.(faiss|jsonl)|index\.json|failures\.csv)\..+\.partial"
)


class IndexFileError(UserError):
    """An index that cannot be used; the message is one line that says why."""


# ==== reading ====


class Index:
    """An index opened for searching; its files are memory-mapped, and their checksums verified.

    metadata: the dict of index.json. packed: codes (N, K / 8) uint8. codes: the same as an
    IndexBinaryFlat. Raises IndexFileError if there is no index or it is damaged.
    """

    def __init__(self, folder):
        self.folder, self.metadata = Path(folder), read_metadata(folder)
        try:
            self._open()
        except IndexFileError:  # it may have been replaced between the two reads
            earlier, self.metadata = self.metadata, read_metadata(folder)
            if earlier == self.metadata:
                raise
            self._open()

    def _open(self):
        """Map the two files of the generation and verify them: 0.1 s per million videos."""
        count, size = self.metadata["count"], (self.metadata["bits"] + 7) // 8  # bytes per code
        file, self.lines = self._map("faiss"), self._map("jsonl")
        if len(file) != HEADER.size + count * size:
            raise self._damaged(".faiss has the wrong length")
        if file[: HEADER.size].tobytes() != pack_header(count, size):
            raise self._damaged(".faiss has another header")
        self.packed = file[HEADER.size :].reshape(count, size)
        if name_generation(self.packed, self.lines) != self.metadata["generation"]:
            raise self._damaged("the checksum is wrong")
        self.ends = np.flatnonzero(self.lines == ord("\n"))
        if len(self.ends) != count:
            raise self._damaged(f"{len(self.ends)} lines for {count} codes")
        self.codes = faiss.IndexBinaryFlat(8 * size)
        self.codes.add(self.packed)
        self.codes.use_heap = False  # search by counting, which keeps the lowest rows of a tie

    def _map(self, suffix):
        """The bytes of a file of the generation: (size,) uint8."""
        path = self.folder / f"{self.metadata['generation']}.{suffix}"
        try:
            if path.is_file():
                return np.asarray(np.memmap(path, np.uint8, "r"))
        except (FileNotFoundError, ValueError):  # removed meanwhile, or empty
            pass
        raise self._damaged(f"{path.name} is missing or empty")

    def _damaged(self, reason):
        return IndexFileError(f"{self.folder}: damaged ({reason}); delete it and index again")

    def __len__(self):
        return len(self.packed)

    def video(self, row):
        """The record of the video in a row: dict with path, size, mtime_ns, class.

        Raises IndexFileError unless the path leads to a file below the folder of videos.
        """
        start = self.ends[row - 1] + 1 if row else 0
        record = parse_json(self.lines[start : self.ends[row]].tobytes())
        if flaw := find_flaw(record, RECORD):
            raise self._damaged(f"line {row + 1}: {flaw}")
        if not is_inside(record["path"]):
            raise IndexFileError(
                f"{self.folder}: line {row + 1} names {record['path']!r}, which is not below its "
                "folder of videos; do not use this index"
            )
        return record

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
        codes = np.unpackbits(self.packed[rows], axis=1, count=len(values))
        signs = codes.astype(np.float32) * 2 - 1
        return rows[np.argsort((len(values) - signs @ values) / 2, kind="stable")]


def read_metadata(folder):
    """The dict of <folder>/index.json. Raises IndexFileError."""
    path = Path(folder) / "index.json"
    if not path.is_file():
        similar = similar_folder(folder, ["index.json"])
        hint = f"; did you mean {similar}?" if similar else ""
        raise IndexFileError(f"{folder}: not an index folder, which `search.py index` makes{hint}")
    metadata = parse_json(path.read_bytes())
    version = metadata.get("format") if isinstance(metadata, dict) else None
    if type(version) is int and version > FORMAT:
        raise IndexFileError(f"{path}: written by a later version of this project; update it")
    if flaw := find_metadata_flaw(metadata):
        raise IndexFileError(f"{path}: damaged ({flaw}); delete the folder and index again")
    return metadata


def find_metadata_flaw(metadata):
    """Why a value cannot be the content of index.json, or None."""
    if flaw := find_flaw(metadata, METADATA):
        return flaw
    if not (0 < metadata["bits"] < 2**24 and 0 < metadata["count"] < 2**48):
        return "bits or count is out of range"
    if not re.fullmatch("[0-9a-f]{16}", metadata["generation"]):
        return "generation is no checksum"
    if metadata.get("sha256") not in (None, hash_metadata(metadata)):
        return "the checksum is wrong"
    return None


def parse_json(data):
    """The value in `data` (UTF-8 bytes), or None if it is not JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def find_flaw(record, types):
    """Why `record` is not a dict with values of these `types` ({key: tuple of types}), or None."""
    if not isinstance(record, dict):
        return "not a JSON object"
    for key, allowed in types.items():
        if key not in record or type(record[key]) not in allowed:
            return f"{key} is missing or has a wrong type"
    return None


def is_inside(path):
    """Whether a relative path, as `find_videos` returns it, leads below its folder."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    is_normal = os.path.normpath(path) == path and "\0" not in path
    return is_normal and not os.path.isabs(path) and path.split(os.sep)[0] not in (".", "..")


def pack_header(count, size):
    """The first bytes of the .faiss file of `count` codes of `size` bytes."""
    return HEADER.pack(b"IBxF", 8 * size, size, count, True, 1, count * size)


def name_generation(codes, lines):
    """The first 16 digits of the SHA-256 of the codes and the lines, two buffers."""
    checksum = hashlib.sha256(codes)
    checksum.update(lines)
    return checksum.hexdigest()[:16]


def hash_metadata(metadata):
    """The SHA-256 of a metadata dict without its key "sha256", or None if it is nested too deep."""
    others = {key: value for key, value in metadata.items() if key != "sha256"}
    try:
        return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
    except RecursionError:
        return None


# ==== writing ====


def write_index(folder, metadata, videos):
    """Write an index; an earlier one is replaced when all files are on the disk.

    metadata: dict with "bits", what identifies the encoder, and the paths "checkpoint" and
    "videos". videos: non-empty list of dicts with "path", "code" (packed bits as hexadecimal text),
    "size", "mtime_ns", "class".
    """
    folder = Path(folder)
    videos = sorted(videos, key=lambda video: video["path"])
    codes = bytes.fromhex("".join(video["code"] for video in videos))
    lines = "".join(json.dumps({key: video[key] for key in RECORD}) + "\n" for video in videos)
    generation = name_generation(codes, lines.encode("ascii"))
    with atomic_write(folder / f"{generation}.faiss") as temporary:
        temporary.write_bytes(pack_header(len(videos), len(codes) // len(videos)) + codes)
    write_text(folder / f"{generation}.jsonl", lines)
    metadata = {"format": FORMAT, **metadata, "count": len(videos), "generation": generation}
    metadata["sha256"] = hash_metadata(metadata)
    write_text(folder / "index.json", json.dumps(metadata, indent=2) + "\n")
    for path in index_files(folder):
        if path.stem != generation:
            path.unlink(missing_ok=True)


def index_files(folder):
    """The files of an index, except index.json, with those of interrupted runs: list of Path."""
    return [path for path in Path(folder).iterdir() if INDEX_FILES.fullmatch(path.name)]


def check_index_folder(folder):
    """Raise IndexFileError unless `folder` is absent, empty, or has an index, complete or begun."""
    if not os.path.lexists(folder):
        return
    is_index = os.path.isdir(folder) and (
        index_files(folder) or set(os.listdir(folder)) <= {"failures.csv", ".lock"}
    )
    if not is_index:
        raise IndexFileError(f"{folder}: exists, but is not an index; use another --output")
