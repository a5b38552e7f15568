"""Code files and indexes with random damage: read right or refused by one line, never a crash.

Each case runs in a worker process, so that one that ends it, as by SIGSEGV, is seen.
"""

import contextlib
import json
import shutil
from functools import partial
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from fuzzing import change_bytes, change_value
from helpers import SERVER
from test_index import METADATA, make_index, rows_of

from datasets import process_pool
from datasets.process_pool import run_jobs
from retrieval.codes import SETS, load_codes
from retrieval.index import CHECKSUMS, FORMAT, TABLE, Index, table_schema
from retrieval.index_update import delete_videos, open_for_update, plan_update, seal
from retrieval.nearest import find_nearest
from utils.errors import UserError

QUICK_AND_LONG = pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])


def check_all(check, count):
    """Run check(case) for `count` cases in worker processes; each returns (answer, failure).

    A failure, an exception or a crash of any case fails the test, and so does an answer that all
    cases have, because then the damage is too small or too large.
    """
    answers, failures = [], {}
    for case, answer, failure in run_jobs(check, range(count), 2, seconds=60):
        answers.append(answer)
        if failure is not None:
            failures[case] = failure
    print(f"\n{ {answer: answers.count(answer) for answer in set(answers)} }")
    assert not failures, f"{len(failures)} of {count}: {failures}"
    assert len(answers) == count and len(set(answers)) > 1


def try_reading(read, is_same):
    """(answer, failure) of reading a damaged file: refused in one line, or read as before."""
    try:
        found = read()
    except UserError as error:
        return "refused", None if str(error) and "\n" not in str(error) else f"lines: {error}"
    return "same", None if is_same(found) else f"silently different: {found}"


# ==== code files ====

BITS = np.random.default_rng(0).random((30, 12)) < 0.5
LABELS = np.arange(30) % 3
NAMES = np.array([f"käse/{i} v.avi" for i in range(30)])
KINDS = {
    "real": np.where(BITS, 0.3, -0.2).astype(np.float32),
    "signs": np.where(BITS, 1, -1).astype(np.int8),
    "0/1": BITS.astype(np.int64),
    "bool": BITS,
    "packed": np.packbits(BITS, axis=1),
}


def code_arrays(query, database, labels=LABELS):
    """The arrays of a code file with these kinds of codes; the first ten items are queries."""
    return {
        "query_codes": KINDS[query][:10],
        "query_labels": labels[:10],
        "query_names": NAMES[:10],
        "database_codes": KINDS[database][10:],
        "database_labels": labels[10:],
        "database_names": NAMES[10:],
    }


def has_original(found, labels=LABELS):
    """Whether a result of `load_codes` has the bits, labels and names of `code_arrays`."""
    arrays = {
        "codes": (BITS, np.concatenate([found["query_codes"], found["database_codes"]])),
        "labels": (labels, np.concatenate([found["query_labels"], found["database_labels"]])),
    }
    names = (("query_names", NAMES[:10]), ("database_names", NAMES[10:]))
    return all(np.array_equal(*pair) for pair in arrays.values()) and all(
        found.get(key, expected.tolist()) == expected.tolist() for key, expected in names
    )


def damage_codes(case, folder):
    """A code file of a random kind with one change of its bytes."""
    rng = np.random.default_rng(case)
    kind = list(KINDS)[rng.integers(len(KINDS))]
    labels = (LABELS, np.eye(3, dtype=bool)[LABELS])[rng.integers(2)]
    save, path = (np.savez, np.savez_compressed)[rng.integers(2)], Path(folder) / f"{case}.npz"
    save(path, **code_arrays(kind, kind, labels))
    path.write_bytes(change_bytes(path.read_bytes(), rng))
    bits = 12 if kind == "packed" else None
    result = try_reading(lambda: load_codes(path, bits), partial(has_original, labels=labels))
    path.unlink()
    return result


@QUICK_AND_LONG
def test_code_files_with_changed_bytes(count, tmp_path):
    check_all(partial(damage_codes, folder=tmp_path), count)


TYPES = "?bBhHiIlLqQefdgFDSUOMmV"  # of NumPy
ODD_NUMBERS = (float("nan"), float("inf"), -float("inf"), 1e300, -1e300, 2**63, 2**64 - 1, -1, 2, 0)


def change_array(array, rng):
    """An array with another type, shape, order of bytes, or one odd value."""
    change = rng.integers(6)
    if change == 0:
        return array.astype(TYPES[rng.integers(len(TYPES))])
    if change == 1:
        shape = [(-1,), (1, -1), (-1, 1), (0, 12), (len(array), -1, 1), ()][rng.integers(6)]
        return array[0] if shape == () else array[:0] if 0 in shape else array.reshape(shape)
    if change == 2:
        return array[:: rng.choice([-1, 2])]
    if change == 3:
        return array.astype(array.dtype.newbyteorder(">"))
    if change == 4:
        return np.asfortranarray(array)
    wide = np.array(array, object)
    wide.flat[rng.integers(wide.size)] = ODD_NUMBERS[rng.integers(len(ODD_NUMBERS))]
    return np.array(wide.tolist())


def change_types(case, folder):
    """A code file of which one array is changed as no accident would: all is read or refused."""
    rng = np.random.default_rng(case)
    kind = list(KINDS)[rng.integers(len(KINDS))]
    arrays = code_arrays(kind, kind)
    name = list(arrays)[rng.integers(len(arrays))]
    with contextlib.suppress(ValueError, TypeError, OverflowError):  # NumPy cannot convert it
        arrays[name] = change_array(arrays[name], rng)
    path = Path(folder) / f"{case}.npz"
    np.savez(path, **arrays)

    def is_valid(found):
        lengths = [[len(found[f"{side}_{kind}"]) for kind in ("codes", "labels")] for side in SETS]
        columns = [found[f"{side}_codes"].shape[1:] for side in SETS]
        return all(a == b for a, b in lengths) and columns == [(12,), (12,)]

    result = try_reading(lambda: load_codes(path, 12 if kind == "packed" else None), is_valid)
    path.unlink()
    return result


@QUICK_AND_LONG
def test_code_files_with_changed_types(count, tmp_path):
    check_all(partial(change_types, folder=tmp_path), count)


@pytest.mark.parametrize("database", KINDS)
@pytest.mark.parametrize("query", KINDS)
def test_kinds_that_differ_between_the_sides(query, database, tmp_path):
    """Read with the right bits, or refused: 0/1 beside ±1 once gave another mAP."""
    np.savez(tmp_path / "codes.npz", **code_arrays(query, database))
    for bits in (None, 12):
        read = partial(load_codes, tmp_path / "codes.npz", bits)
        assert try_reading(read, has_original)[1] is None


# ==== indexes ====

CODES = np.random.default_rng(0).random((20, 12)) < 0.5
ROWS = rows_of(CODES)


def read_index(folder):
    """All that an index holds, and what a search finds."""
    index = Index(folder)
    found = find_nearest([index], np.packbits(CODES, axis=1), 5)
    rows = index.table.to_table().sort_by("path").to_pylist()
    return rows, index.metadata, [(one.rows, one.counts[:3].tolist()) for one in found]


def update_index(folder):
    """What an update reads: the rows that it finds to be gone, since there are no files."""
    table = open_for_update(folder, METADATA)
    return sorted(plan_update(folder, [], table)[2])


def damage_index(case, folder):
    """An index with one change of the bytes of one of its files, or one of them removed."""
    rng, copy, original = np.random.default_rng(case), Path(folder) / str(case), folder / "index"
    shutil.copytree(original, copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size)
    path = files[rng.integers(len(files))]
    if path.name == CHECKSUMS and rng.integers(2):
        changed = json.dumps(change_value(json.loads(path.read_bytes()), rng)[0], indent=1).encode()
    else:
        changed = change_bytes(path.read_bytes(), rng)
    path.write_bytes(changed) if rng.integers(8) else path.unlink()
    read = read_index if rng.integers(2) else update_index
    expected = read(original)
    result = try_reading(lambda: read(copy), lambda found: found == expected)
    shutil.rmtree(copy)
    return result


@pytest.fixture
def fresh_workers(monkeypatch):
    """Workers from a process that has not used Lance, whose threads are lost in a forked one."""
    monkeypatch.setattr(process_pool, "CONTEXT", SERVER)


def make_original(_, folder):
    make_index(folder / "index", ROWS)
    delete_videos(folder / "index", [ROWS[3]["path"]])
    seal(folder / "index")
    return None, None


@pytest.mark.scripts
@QUICK_AND_LONG
def test_indexes_with_changed_bytes_and_values(count, tmp_path, fresh_workers):
    assert list(run_jobs(partial(make_original, folder=tmp_path), [0], 1, 60)) == [(0, None, None)]
    check_all(partial(damage_index, folder=tmp_path), count)


def forge_index(case, folder):
    """Values of the metadata or of a row are changed, and all checksums are right."""
    rng, copy = np.random.default_rng(case), Path(folder) / str(case)
    make_index(copy, ROWS[4:], pieces=1)
    uri = str(copy / TABLE)
    if rng.integers(2):
        changed = change_value({"format": FORMAT, **METADATA}, rng)[0]
        lance.dataset(uri).update_schema_metadata({"search": json.dumps(changed)})
    else:
        row = change_value(ROWS[3], rng)[0]
        with contextlib.suppress(
            pa.ArrowException, TypeError, AttributeError, OverflowError, UnicodeEncodeError
        ):  # no value of a column
            rows = pa.Table.from_pylist([row], schema=table_schema({"format": FORMAT, **METADATA}))
            with contextlib.suppress(OSError, ValueError):  # a value is missing
                lance.write_dataset(rows, uri, mode="append")
    seal(copy)

    def is_safe(found):
        paths = [row["path"] for one, _ in found[2] for row in one]
        return all(not Path(path).is_absolute() and ".." not in path for path in paths)

    result = try_reading(lambda: read_index(copy), is_safe)
    shutil.rmtree(copy)
    return result


@pytest.mark.scripts
@QUICK_AND_LONG
def test_indexes_that_somebody_forged(count, tmp_path, fresh_workers):
    check_all(partial(forge_index, folder=tmp_path), count)
