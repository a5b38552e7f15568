"""A search index: a folder with a Lance table of moments, one row per window of a video.

moments.lance/    the table: path, start, end, class, size, mtime_ns, code, and, if wanted,
                  embedding; see `table_schema`
checksums.json    the newest complete version of the table, and the CRC-32 of each of its files
failures.csv      videos that could not be read
.lock             held by the run that writes the index

A query opens the version that checksums.json names, after it has verified the files of that
version. Of an index on an object store (s3://...) it opens the newest version and verifies nothing.
In each fragment of the table the rows are sorted by path and start, so that the first of several
rows at one distance is the first in that order. Paths are relative to the folder of the videos.
Source: the Lance format, https://lance.org/format/.
"""

import contextlib
import json
import os
import re
import warnings
import zlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from utils import schema
from utils.errors import UserError
from utils.files import atomic_write, is_utf8, similar_folder

# Processes that decode videos are forked, and never call Lance.
warnings.filterwarnings("ignore", "lance is not fork-safe", UserWarning)
FORMAT = 3  # raised when an index of this code can no longer be read by older code
TABLE, CHECKSUMS = "moments.lance", "checksums.json"
EARLY_FILE = "index.json"  # of format 1
METADATA_KEY = b"search"
BLOCK = 2**18  # rows that are searched at once
ODD_BYTE = "//"  # begins two digits, an undecodable byte of a path; no path has two slashes

_count = schema.whole(0)
METADATA = schema.record(
    {
        "format": schema.whole(FORMAT, FORMAT),
        "bits": schema.whole(1, 2**20),
        "checkpoint_sha256": schema.text,
        "preprocessing": schema.dict_of(schema.plain),
        "window": schema.nullable(schema.real(above=0)),  # seconds; None: one code per video
        "stride": schema.nullable(schema.real(above=0)),
        "embeddings": schema.one_of(False, True),
        "neighbours": schema.nullable(schema.list_of(_count)),  # see `retrieval.answers`
        "checkpoint": schema.text,
        "videos": schema.text,
    }
)
SEAL = schema.record(
    {
        "version": schema.whole(1),
        "files": schema.dict_of(schema.list_of(_count, 2, 2)),  # below the table: size, CRC-32
        "crc32": _count,  # of the other keys
    }
)


class IndexFileError(UserError):
    """An index that cannot be used; the message is one line that says why."""


# ==== the table ====


def table_schema(metadata):
    """The Arrow schema of the table. metadata: dict of `METADATA`, kept in the schema."""
    text, bits = json.dumps(metadata, sort_keys=True), metadata["bits"]
    fields = [
        pa.field("path", pa.string(), nullable=False),
        pa.field("start", pa.float64(), nullable=False),  # seconds
        pa.field("end", pa.float64(), nullable=False),
        pa.field("class", pa.string()),  # encoded as paths; null: the folder is no class
        pa.field("size", pa.int64()),  # of the video, in bytes
        pa.field("mtime_ns", pa.int64()),
        pa.field("code", pa.binary((bits + 7) // 8), nullable=False),  # packed bits
    ]
    if metadata["embeddings"]:  # the approximate codes
        fields.append(pa.field("embedding", pa.list_(pa.float16(), bits), nullable=False))
    return pa.schema(fields, metadata={METADATA_KEY: text.encode("ascii")})


def encode_path(path):
    """A path or class as valid Unicode: an undecodable byte, such as 0xff, becomes "//ff"."""
    if path.isascii():
        return path
    return "".join(
        f"{ODD_BYTE}{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in path
    )


def decode_path(text):
    """The path that `encode_path` encoded."""
    first, *others = text.split(ODD_BYTE)
    return first + "".join(chr(0xDC00 + int(part[:2], 16)) + part[2:] for part in others)


def is_inside(path):
    """Whether a relative path, as `find_videos` returns it, leads below its folder."""
    is_normal = schema.is_text(path) and os.path.normpath(path) == path
    return is_normal and not os.path.isabs(path) and path.split(os.sep)[0] not in (".", "..")


@lru_cache(2**16)  # many rows of an answer are of one video
def decode_safe_path(text):
    """The path that `encode_path` encoded. Raises ValueError if it does not lead below a folder."""
    path = decode_path(text)
    if not is_inside(path):
        raise ValueError
    return path


def is_unchanged(path, size):
    """Whether a video has the size that an index records, so that its moments can be shown.

    The index of somebody else may name private files, but hardly their sizes.
    """
    try:
        return os.path.getsize(path) == size
    except OSError:
        return False


def quote(text):
    """A text as a literal of the SQL of Lance's filters."""
    return "'" + text.replace("'", "''") + "'"


# ==== reading ====


def first_bits(packed, bits):
    """The first `bits` bits of packed codes (R, B) uint8, followed by zeros up to a whole byte."""
    packed = packed[:, : (bits + 7) // 8]
    if bits % 8 == 0:
        return np.ascontiguousarray(packed)
    mask = np.packbits(np.arange(8 * packed.shape[1]) < bits)
    return packed & mask


class Index:
    """An index opened for searching, after its files are verified.

    location: a folder, or the address of one on an object store. videos: the folder of the videos,
    if it was moved. bits: length of the prefix of the codes that is searched; None for all.
    metadata: dict of `METADATA`. Raises IndexFileError where there is no index, and if it is
    damaged or has fewer bits.
    """

    def __init__(self, location, videos=None, bits=None):
        self.location = str(location)
        self.seal = None if is_remote(location) else read_seal(location)
        while True:  # an update may replace the files meanwhile
            try:
                self.table = open_table(location, self.seal)
                break
            except IndexFileError:
                earlier, self.seal = self.seal, self.seal and read_seal(location)
                if self.seal == earlier:
                    raise
        self.metadata = read_metadata(self.table, location)
        self.videos = str(videos or self.metadata["videos"])
        self.bits = bits or self.metadata["bits"]
        if self.bits > self.metadata["bits"]:
            raise IndexFileError(
                f"--bits {bits}: the codes of {self.location} have {self.metadata['bits']} bits"
            )
        self.fragments = self.table.get_fragments()
        self._count = self.table.count_rows()

    def __len__(self):
        return self._count

    def is_current(self):
        """Whether no update has written the index since it was opened."""
        return self.seal is None or self.seal == read_seal(self.location)

    def blocks(self, fragment, where=None):
        """Yield (row ids (R,) uint64, packed codes (R, B) uint8) of a fragment, R <= BLOCK.

        where: rows to search, as a condition of SQL; None for all.
        """
        options = {"columns": ["code"], "with_row_id": True, "batch_size": BLOCK}
        with lance_errors(self.location):
            scanner = self.table.scanner(fragments=[fragment], filter=where, **options)
            for batch in scanner.to_batches():
                code, size = batch["code"], batch["code"].type.byte_width
                if code.null_count:
                    raise damaged(self.location, "a code is missing")
                packed = np.frombuffer(code.buffers()[1], np.uint8)
                packed = packed[code.offset * size :][: len(batch) * size].reshape(-1, size)
                yield batch["_rowid"].to_numpy(), first_bits(packed, self.bits)

    def take(self, row_ids, columns):
        """Columns of the rows with these ids, in their order: Arrow table with encoded paths."""
        with lance_errors(self.location):
            return self.table._take_rows(pa.array(row_ids, pa.uint64()), columns=list(columns))

    def find(self, where):
        """The rows that fulfil a condition of SQL, by video: {path: list of row ids}."""
        options = {"columns": ["path"], "with_row_id": True}
        with lance_errors(self.location):
            found = self.table.scanner(filter=where, **options).to_table()
        rows = defaultdict(list)
        for row in found.to_pylist():
            rows[row["path"]].append(row["_rowid"])
        return {self.check({"path": path})["path"]: ids for path, ids in rows.items()}

    def check(self, row):
        """A row (dict) with its path decoded.

        Raises IndexFileError unless it leads to a file below the folder of videos.
        """
        try:
            path = decode_safe_path(row["path"])
            names = {"class": row["class"] and decode_path(row["class"])} if "class" in row else {}
        except ValueError:
            raise IndexFileError(
                f"{self.location}: a row names {row['path']!r}, which is not below its folder of "
                "videos; do not use this index"
            ) from None
        if "end" in row and not 0 <= row["start"] < row["end"] < 2**53:
            raise damaged(self.location, f"a row has the times {row['start']} to {row['end']}")
        if "embedding" in row and not np.isfinite(row["embedding"]).all():
            raise damaged(self.location, "an embedding is not finite")
        return {**row, **names, "path": path}


def table_uri(location):
    """The address of the table of an index for Lance, which takes UTF-8 only."""
    if not is_utf8(location):
        raise IndexFileError(f"{location}: its name is not UTF-8, as an index requires; rename it")
    return f"{str(location).rstrip('/')}/{TABLE}"


def write_parquet(index, path):
    """Write all rows of an index as a Parquet file, in pieces; paths and metadata as they are."""
    with (
        atomic_write(path) as temporary,
        lance_errors(index.location),
        pq.ParquetWriter(temporary, index.table.schema) as writer,
    ):
        for batch in index.table.scanner(batch_size=BLOCK).to_batches():
            writer.write_batch(batch)


def is_remote(location):
    """Whether an index is on an object store."""
    return "://" in str(location)


def open_table(location, seal=None):
    """The Lance table of an index: the sealed version, verified; without a seal the newest."""
    if not is_remote(location):
        check_is_index(location)
        if seal:
            verify(location, seal)
    with lance_errors(location):
        return lance.dataset(table_uri(location), version=seal and seal["version"])


def read_metadata(table, location):
    """The metadata of an index in the schema of its table. Raises IndexFileError."""
    text = (table.schema.metadata or {}).get(METADATA_KEY, b"")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        raise damaged(location, "its table has no metadata") from None
    version = metadata.get("format") if isinstance(metadata, dict) else None
    if type(version) is int and version > FORMAT:
        raise IndexFileError(f"{location}: written by a later version of this project; update it")
    if type(version) is int and version < FORMAT:
        raise early(location)
    try:
        METADATA(metadata, "metadata")
    except schema.SchemaError as error:
        raise damaged(location, error) from None
    if not table.schema.equals(table_schema(metadata)):
        raise damaged(location, "its table has other columns")
    return metadata


def check_is_index(folder):
    """Raise IndexFileError unless `folder` has the table of an index."""
    folder = Path(folder)
    if (folder / TABLE).is_dir():
        return
    if (folder / EARLY_FILE).is_file():
        raise early(folder)
    similar = similar_folder(folder, [CHECKSUMS])
    hint = f"; did you mean {similar}?" if similar else ""
    raise IndexFileError(f"{folder}: not an index folder, which `search.py index` makes{hint}")


def early(location):
    return IndexFileError(
        f"{location}: an index of an earlier version; delete it and index the videos again"
    )


def damaged(location, reason):
    return IndexFileError(f"{location}: damaged ({reason}); delete it and index again")


@contextlib.contextmanager
def lance_errors(location):
    """Turn the errors of Lance into IndexFileError, with the first line of their reason."""
    try:
        yield
    except (UserError, MemoryError, KeyboardInterrupt, GeneratorExit, SystemExit):
        raise
    except BaseException as error:
        is_of_lance = isinstance(error, (OSError, ValueError, RuntimeError, pa.ArrowException))
        if not is_of_lance and type(error).__name__ != "PanicException":  # no Exception, in Rust
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        reason = re.sub(r",? */\S+\.rs:\d+:\d+", "", reason)[:300]  # places in the code of Lance
        raise IndexFileError(f"{location}: cannot be used: {reason}") from error


# ==== checksums ====


def read_seal(folder):
    """The content of checksums.json, or None if there is none, as before the first rows."""
    path = Path(folder) / CHECKSUMS
    try:
        seal = schema.read_json(path, SEAL)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except schema.SchemaError as error:
        raise damaged(folder, f"{CHECKSUMS} {error}") from None
    if seal["crc32"] != seal_checksum(seal):
        raise damaged(folder, f"the checksum of {CHECKSUMS} is wrong")
    return seal


def seal_checksum(seal):
    """The CRC-32 of a seal without its key "crc32"."""
    others = {key: value for key, value in seal.items() if key != "crc32"}
    return zlib.crc32(json.dumps(others, sort_keys=True).encode())


def file_checksum(path):
    """[size, CRC-32] of a file, read in pieces."""
    size = checksum = 0
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            size += len(piece)
            checksum = zlib.crc32(piece, checksum)
    return [size, checksum]


def verify(folder, seal):
    """Raise IndexFileError unless the files of a sealed version are those that were written."""

    def check_file(name):
        if not is_inside(name):
            raise damaged(folder, f"{CHECKSUMS} names {name!r}")
        try:
            found = file_checksum(Path(folder) / TABLE / name)
        except OSError as error:
            raise damaged(folder, f"{name}: {error.strerror}") from None
        if found != seal["files"][name]:
            raise damaged(folder, f"the checksum of {name} is wrong")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check_file, seal["files"]))
