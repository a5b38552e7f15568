"""Code files and indexes with random damage: read right or refused by one line, never a crash.

Each case runs in a worker process, so that one that ends it, as by SIGSEGV, is seen.
"""

import contextlib
import io
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fuzzing import change_bytes, change_value
from test_index import ENCODER, METADATA, set_metadata, videos_of

from datasets.process_pool import run_jobs
from retrieval.codes import SETS, load_codes
from retrieval.index import METADATA as METADATA_KEYS
from retrieval.index import Index, hash_metadata, name_generation, write_index
from retrieval.index_update import append_to_journal, encoded_videos, journal_path
from utils.errors import UserError

QUICK_AND_LONG = pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])


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
RECORDS = sorted(videos_of(CODES), key=lambda video: video["path"])


def make_index(folder):
    """An index of the first 15 videos; the journal of an interrupted run has the last five."""
    write_index(folder, METADATA, RECORDS[:15])
    with open(journal_path(folder, ENCODER, 0), "a", encoding="ascii") as journal:
        append_to_journal(journal, RECORDS[15:])


def read_index(folder):
    """All that the index and its journal hold, and what a search finds."""
    index = Index(folder)
    rows, distances = index.search(CODES, 5)
    found = [index.video(row) for row in range(len(index))], rows.tolist(), distances.tolist()
    with contextlib.redirect_stderr(io.StringIO()):  # warnings of damaged lines
        videos = encoded_videos(folder, ENCODER)
    return found, {key: index.metadata[key] for key in METADATA_KEYS}, videos


def damage_index(case, folder):
    """An index with one change of the bytes of one of its files, or of a value in index.json."""
    rng, copy = np.random.default_rng(case), Path(folder) / str(case)
    shutil.copytree(Path(folder) / "index", copy)
    files = sorted(copy.iterdir())
    path = files[rng.integers(len(files))]
    if path.name == "index.json" and rng.integers(2):
        changed = json.dumps(change_value(json.loads(path.read_bytes()), rng)[0], indent=2).encode()
    else:
        changed = change_bytes(path.read_bytes(), rng)
    path.write_bytes(changed)
    found, metadata, videos = read_index(Path(folder) / "index")

    def is_same(other):
        """Damaged lines of the journal are left out; all else is equal."""
        is_known = all(videos.get(name) == video for name, video in other[2].items())
        return (found, metadata) == other[:2] and is_known and len(other[2]) >= 15

    result = try_reading(lambda: read_index(copy), is_same)
    shutil.rmtree(copy)
    return result


@QUICK_AND_LONG
def test_indexes_with_changed_bytes_and_values(count, tmp_path):
    make_index(tmp_path / "index")
    check_all(partial(damage_index, folder=tmp_path), count)


def forge_index(case, folder):
    """Values of index.json or of a record are changed, and all checksums are right again."""
    rng, copy = np.random.default_rng(case), Path(folder) / str(case)
    if rng.integers(2):
        shutil.copytree(Path(folder) / "index", copy)
        metadata = change_value(json.loads((copy / "index.json").read_bytes()), rng)[0]
        is_dict = isinstance(metadata, dict)
        metadata = {**metadata, "sha256": hash_metadata(metadata)} if is_dict else metadata
        (copy / "index.json").write_text(json.dumps(metadata))
    else:
        lines = [json.dumps(change_value(RECORDS[3], rng)[0]), *map(json.dumps, RECORDS[4:])]
        forge_records(copy, lines)

    def is_safe(found):
        paths = [video["path"] for video in found[0][0]]
        return all(not Path(path).is_absolute() and ".." not in path for path in paths)

    result = try_reading(lambda: read_index(copy), is_safe)
    shutil.rmtree(copy)
    return result


def forge_records(folder, lines):
    """An index whose records are `lines`, with the checksum that belongs to them."""
    write_index(folder, METADATA, RECORDS[: len(lines)])
    index, text = Index(folder), ("\n".join(lines) + "\n").encode()
    generation = name_generation(index.packed, text)
    for path in folder.glob(f"{index.metadata['generation']}.*"):
        path.rename(path.with_stem(generation))
    (folder / f"{generation}.jsonl").write_bytes(text)
    set_metadata(folder, generation=generation)


@QUICK_AND_LONG
def test_indexes_that_somebody_forged(count, tmp_path):
    make_index(tmp_path / "index")
    check_all(partial(forge_index, folder=tmp_path), count)
