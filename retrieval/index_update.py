"""Updates of a search index: what is still to be encoded, appending, deleting, compacting.

An append adds all rows of some videos in one transaction, so that a kill never leaves a video with
half of its moments. Several processes may append to one table at once.
"""

import json
import os
import time
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance import LanceDataset, LanceOperation
from lance.fragment import write_fragments

from retrieval.index import (
    CHECKSUMS,
    EARLY_FILE,
    FORMAT,
    TABLE,
    IndexFileError,
    check_is_index,
    damaged,
    decode_path,
    encode_path,
    file_checksum,
    is_inside,
    lance_errors,
    open_table,
    quote,
    read_metadata,
    read_seal,
    seal_checksum,
    table_schema,
    table_uri,
)
from utils.files import file_lock, write_text

FRAGMENT = 2**20  # the most rows of a fragment
MOST_DELETED = 0.2  # of a fragment, before it is written again without the deleted rows
KEPT = timedelta(minutes=10)  # for which queries may still read the files of earlier versions
ENCODER_KEYS = ("bits", "checkpoint_sha256", "preprocessing")  # equal for equal codes
CHUNK = 500  # paths per deletion
APPEND_SECONDS = 5
COMPACT_EVERY = 50  # appends
ORDER = [("path", "ascending"), ("start", "ascending")]


# ==== opening ====


def check_index_folder(folder):
    """Raise IndexFileError unless `folder` is absent, empty, or has an index, complete or begun."""
    if not os.path.lexists(folder) or (Path(folder) / TABLE).is_dir():
        return
    if (Path(folder) / EARLY_FILE).is_file():
        check_is_index(folder)  # says what to do
    if not os.path.isdir(folder) or not all(map(is_of_index, os.listdir(folder))):
        raise IndexFileError(f"{folder}: exists, but is not an index; use another --output")


def is_of_index(name):
    """Whether a run that has no table yet may have left this file in the folder of an index."""
    return name in ("failures.csv", ".lock", "encoder.pt") or name.startswith(".encoder.pt.")


def open_for_update(folder, metadata):
    """The Lance table of an index, verified; it is made if there is none.

    metadata: dict of `retrieval.index.METADATA` without "format". Raises IndexFileError for the
    index of another encoder or with other windows.
    """
    folder, metadata = Path(folder), {"format": FORMAT, **metadata}
    if not (folder / TABLE).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with lance_errors(folder):
            empty = table_schema(metadata).empty_table()
            return lance.write_dataset(empty, table_uri(folder))
    seal = read_seal(folder)
    read_metadata(open_table(folder, seal), folder)  # of files that are verified
    table = open_table(folder)  # a killed run may have left a later version without a seal
    if seal and table.version < seal["version"]:
        raise damaged(folder, f"version {seal['version']} of its table is missing")
    earlier = read_metadata(table, folder)
    if any(earlier[key] != metadata[key] for key in ENCODER_KEYS):
        raise IndexFileError(
            f"{folder}: made with another checkpoint; use another --output, or delete it"
        )
    if earlier["embeddings"] != metadata["embeddings"]:
        made = "with" if earlier["embeddings"] else "without"
        raise IndexFileError(
            f"{folder}: made {made} --store-embeddings; omit this flag, or use another --output"
        )
    for key in ("window", "stride"):
        if earlier[key] != metadata[key]:
            raise IndexFileError(
                f"{folder}: made with --{key} {describe_seconds(earlier[key])}, not "
                f"{describe_seconds(metadata[key])}; repeat it, or use another --output"
            )
    if earlier != metadata:  # the videos or the checkpoint were moved
        with lance_errors(folder):
            text = table_schema(metadata).metadata
            table.update_schema_metadata({k.decode(): v.decode() for k, v in text.items()})
    return table


def recorded_metadata(folder):
    """The metadata of the index in `folder`, or None if there is none yet."""
    if not (Path(folder) / TABLE).is_dir():
        return None
    return read_metadata(open_table(folder, read_seal(folder)), folder)


def describe_seconds(seconds):
    return "whole" if seconds is None else f"{seconds:g}"


# ==== what to do ====


def plan_update(root, paths, table):
    """Compare the videos `paths`, relative to `root`, with those of a table.

    A video is unchanged if its size and time of change are. A file without these, such as a broken
    link, is to be encoded, which then fails with the reason.
    Returns (number of unchanged videos, records to encode: dicts with path, size, mtime_ns, paths
    of the table that are gone, paths that changed), in the order of `paths`.
    """
    records = [describe_file(root, path) for path in paths]
    names = pa.array([encode_path(path) for path in paths], pa.string())
    sizes, times = (
        np.array([-1 if record[key] is None else record[key] for record in records])
        for key in ("size", "mtime_ns")
    )
    is_known, is_changed = np.zeros(len(paths), bool), np.zeros(len(paths), bool)
    gone = []
    columns = ["path", "size", "mtime_ns"]
    for batch in table.scanner(columns=columns, filter="start = 0").to_batches():
        rows = pc.index_in(batch["path"], value_set=names)
        is_found = rows.is_valid().to_numpy(zero_copy_only=False)
        gone += [decode_path(text) for text in batch["path"].filter(~is_found).to_pylist()]
        rows = rows.drop_null().to_numpy()
        size, time = (pc.fill_null(batch[k].filter(is_found), -1).to_numpy() for k in columns[1:])
        differs = (size != sizes[rows]) | (time != times[rows]) | is_known[rows]
        is_changed[rows[differs]] = True
        is_known[rows] = True
    is_changed |= is_known & (sizes < 0)
    todo = np.flatnonzero(~is_known | is_changed)
    changed = [paths[row] for row in np.flatnonzero(is_changed)]
    return len(paths) - len(todo), [records[row] for row in todo], gone, changed


def describe_file(root, path):
    try:
        status = os.stat(Path(root) / path)
    except OSError:
        return {"path": path, "size": None, "mtime_ns": None}
    return {"path": path, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


# ==== writing ====


def delete_videos(folder, paths):
    """Delete all rows of the videos `paths`."""
    with lance_errors(folder):
        table = lance.dataset(table_uri(folder))
        for first in range(0, len(paths), CHUNK):
            names = ", ".join(quote(encode_path(path)) for path in paths[first : first + CHUNK])
            table.delete(f"path IN ({names})")


class Appender:
    """Appends the rows of complete videos to an index, every few seconds: a kill loses those.

    metadata: as for `open_for_update`. is_main: whether this process also compacts the table now
    and then, so that an indexing of many days does not make thousands of fragments.
    """

    def __init__(self, folder, metadata, is_main):
        self.folder, self.is_main = folder, is_main
        self.schema = table_schema({"format": FORMAT, **metadata})
        self.rows, self.count, self.time = [], 0, time.monotonic()

    def add(self, rows):
        """rows: list of dicts with the columns of `table_schema`, all rows of a video."""
        for row in rows:
            names = {key: row[key] and encode_path(row[key]) for key in ("path", "class")}
            self.rows.append({**row, **names})
        if time.monotonic() - self.time >= APPEND_SECONDS:
            self.flush()

    def flush(self):
        """Append all rows now, in one transaction."""
        if self.rows:
            rows = pa.Table.from_pylist(self.rows, schema=self.schema)
            append_table(self.folder, rows.sort_by(ORDER))
            self.count += 1
            if self.is_main and self.count % COMPACT_EVERY == 0:
                compact(self.folder)
                clean(self.folder, is_alone=False)
        self.rows, self.time = [], time.monotonic()


def append_table(folder, rows):
    """Append an Arrow table, with encoded paths and sorted by ORDER, and seal the new version."""
    with lance_errors(folder):
        options = {"mode": "append", "max_rows_per_file": FRAGMENT}
        lance.write_dataset(rows, table_uri(folder), **options)
    seal(folder)


def seal(folder):
    """Record the newest version of the table, and the checksums of its files, in checksums.json.

    The checksums of files that were sealed before are kept, since Lance never changes a file.
    """
    folder = Path(folder)
    with file_lock(folder / f"{TABLE}.lock", seconds=-1), lance_errors(folder):
        table = lance.dataset(table_uri(folder))
        earlier = read_seal(folder) or {"files": {}}
        files = {}
        for name in version_files(table):
            files[name] = earlier["files"].get(name) or file_checksum(folder / TABLE / name)
        content = {"version": table.version, "files": files}
        content["crc32"] = seal_checksum(content)
        write_text(folder / CHECKSUMS, json.dumps(content, indent=1) + "\n")


def version_files(table):
    """The files of the newest version of a table, relative to it: list of str."""
    names = [f"_versions/{2**64 - 1 - table.version:020}.manifest"]
    for fragment in table.get_fragments():
        names += [f"data/{file.path}" for file in fragment.data_files()]
        deletions = fragment.deletion_file()
        names += [deletions] if deletions else []
    return [name for name in names if is_inside(name)]


def compact(folder):
    """Merge small fragments and seal the table. Returns its number of rows.

    The fragments that are merged are the smallest, as long as the next is at most twice as large as
    all before it: so a row is written again a few times only, and the number of fragments stays
    small. They keep their order of paths, and memory is bounded by FRAGMENT.
    """
    uri = table_uri(folder)
    with lance_errors(folder):
        table = lance.dataset(uri)
        group = choose_fragments(table.get_fragments())
        if group:
            rows = table.scanner(fragments=group).to_table()
            rows = rows.sort_by(ORDER)
            new = write_fragments(rows, uri, max_rows_per_file=FRAGMENT)
            old = [fragment.metadata for fragment in group]
            change = LanceOperation.Rewrite([LanceOperation.RewriteGroup(old, new)], [])
            table = LanceDataset.commit(uri, change, read_version=table.version)
    seal(folder)
    return table.count_rows()


def clean(folder, is_alone):
    """Remove the files of versions that no query uses any more.

    is_alone: whether no process is appending; then the files of killed runs are removed too.
    """
    with lance_errors(folder):
        table = lance.dataset(table_uri(folder))
        table.cleanup_old_versions(older_than=KEPT, delete_unverified=is_alone)


def choose_fragments(fragments):
    """The fragments to merge, by the rule of `compact`; none, if that would change nothing."""
    counts = {fragment.fragment_id: fragment.count_rows() for fragment in fragments}
    group, total = [], 0
    for fragment in sorted(fragments, key=lambda fragment: counts[fragment.fragment_id]):
        count = counts[fragment.fragment_id]
        deleted = 1 - count / fragment.physical_rows
        if total + count > FRAGMENT or (count > 2 * total > 0 and deleted < MOST_DELETED):
            continue
        group.append(fragment)
        total += count
    is_useful = len(group) > 1 or any(
        fragment.count_rows() < (1 - MOST_DELETED) * fragment.physical_rows for fragment in group
    )
    return group if is_useful else []
