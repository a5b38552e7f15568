"""The search index: exact distances and stable ties beside brute force, whole files only."""

import json

import faiss
import numpy as np
import pytest

from retrieval import index as index_module
from retrieval.index import HEADER, Index, IndexFileError, hash_metadata, write_index
from retrieval.index_update import append_to_journal, encoded_videos, journal_path
from utils.errors import UserError
from utils.files import file_lock

ENCODER = {"bits": 12, "checkpoint_sha256": "ab", "preprocessing": {"size": 28}}
METADATA = {**ENCODER, "checkpoint": "/runs/best.pt", "videos": "/videos"}


def videos_of(codes):
    """Records of videos whose paths sort as the rows do, given in another order."""
    packed = np.packbits(codes, axis=1)
    records = [
        {"path": f"{row:06d}.avi", "size": row, "mtime_ns": 1, "class": None, "code": code}
        for row, code in enumerate(code.tobytes().hex() for code in packed)
    ]
    return records[::-1]


@pytest.mark.parametrize("bits", [1, 7, 12, 64, 65])
@pytest.mark.parametrize("count", [1, 10, 400, 10_000])
def test_search_equals_a_stable_sort_of_all_distances(tmp_path, bits, count):
    rng = np.random.default_rng(bits)
    centres = rng.random((5, bits)) < 0.5
    codes = centres[rng.integers(5, size=3000)] ^ (rng.random((3000, bits)) < 0.05)
    queries = codes[:20] ^ (rng.random((20, bits)) < 0.1)
    write_index(tmp_path, {**METADATA, "bits": bits}, videos_of(codes))
    rows, distances = Index(tmp_path).search(queries, count)

    expected = (queries[:, None] != codes).sum(axis=2)
    order = np.argsort(expected, axis=1, kind="stable")[:, :count]
    assert (rows == order).all()
    assert (distances == np.take_along_axis(expected, order, axis=1)).all()
    assert (np.diff(distances, axis=1) == 0).any() or count == 1, "the case has no ties"


def test_equal_codes_by_the_thousand_are_found_in_order(tmp_path):
    codes = np.zeros((200_000, 16), bool)
    write_index(tmp_path, {**METADATA, "bits": 16}, videos_of(codes))
    rows, distances = Index(tmp_path).search(codes[:3], 50)
    assert (rows == np.arange(50)).all() and not distances.any()


def test_videos_are_kept_with_their_codes_whatever_their_names(tmp_path):
    names = ['a"b.avi', "line\nend.avi", "\udcff.avi", "ü/é.mp4", "<script>.avi", "-x [1].avi"]
    codes = np.random.default_rng(0).random((6, 12)) < 0.5
    records = videos_of(codes)
    for record, name in zip(records, names, strict=True):
        record["path"] = name
    write_index(tmp_path, METADATA, records)
    index = Index(tmp_path)
    assert [index.video(row)["path"] for row in range(6)] == sorted(names)
    known = encoded_videos(tmp_path, ENCODER)
    assert [known[name]["code"] for name in names] == [record["code"] for record in records]


def test_reranking_is_by_the_distance_to_the_real_valued_query(tmp_path):
    rng = np.random.default_rng(0)
    codes = rng.random((100, 12)) < 0.5
    write_index(tmp_path, METADATA, videos_of(codes))
    values = rng.uniform(-1, 1, 12).astype(np.float32)
    index = Index(tmp_path)
    rows = index.search(values[None] >= 0, 30)[0][0]
    expected = sorted(rows, key=lambda row: (12 - values @ np.where(codes[row], 1, -1)) / 2)
    assert list(index.rerank(values, rows)) == expected and list(rows) != expected


def test_journals_survive_damaged_lines(tmp_path, capsys):
    """A line that a kill cut short, one flipped bit, bytes that are not UTF-8, an early version."""
    path = journal_path(tmp_path, ENCODER, 0)
    records = videos_of(np.eye(12, dtype=bool))
    with open(path, "a", encoding="ascii") as journal:
        append_to_journal(journal, records[:5])
    path.write_bytes(path.read_bytes()[:-9])
    with open(path, "ab") as journal:
        journal.write(b"\n\xff\xfe\n" + json.dumps(records[11]).encode())
    with open(path, "a", encoding="ascii") as journal:
        append_to_journal(journal, records[5:7])
    code = records[6]["code"].encode()
    path.write_bytes(path.read_bytes().replace(b'"' + code, b'"' + bytes([code[0] ^ 1]) + code[1:]))
    expected = [record["path"] for record in records[:4] + records[5:6]]
    assert list(encoded_videos(tmp_path, ENCODER)) == expected
    assert capsys.readouterr().err == f"warning: {path}: 4 damaged lines are ignored\n"
    assert encoded_videos(tmp_path, {**ENCODER, "bits": 13}) == {}, "another encoder's"


def test_writing_again_leaves_one_generation_and_no_journal_but_foreign_files(tmp_path):
    codes = np.eye(12, dtype=bool)
    write_index(tmp_path, METADATA, videos_of(codes))
    journal_path(tmp_path, METADATA, 0).write_text("")
    (tmp_path / "notes.jsonl").write_text("mine")
    write_index(tmp_path, METADATA, videos_of(codes[:7]))
    assert len(Index(tmp_path)) == 7
    kinds = sorted(path.suffix for path in tmp_path.iterdir())
    assert kinds == [".faiss", ".json", ".jsonl", ".jsonl"] and (tmp_path / "notes.jsonl").exists()


def of(suffix, change):
    """A function that changes the bytes of the file of an index with that suffix."""

    def apply(folder):
        path = next(path for path in folder.iterdir() if path.suffix == suffix)
        path.write_bytes(change(path.read_bytes()))

    return apply


def changed(**metadata):
    return lambda folder: set_metadata(folder, **metadata)


def set_metadata(folder, **metadata):
    """Change index.json as somebody could who makes the checksum right again."""
    path = folder / "index.json"
    metadata = {**json.loads(path.read_text()), **metadata}
    path.write_text(json.dumps({**metadata, "sha256": hash_metadata(metadata)}))


def flip(data, byte):
    return data[:byte] + bytes([data[byte] ^ 1]) + data[byte + 1 :]


DAMAGE = {
    "no index.json": (lambda folder: (folder / "index.json").unlink(), "not an index folder"),
    "half of index.json": (of(".json", lambda data: data[:30]), "not a JSON object"),
    "a list": (of(".json", lambda _: b"[]"), "not a JSON object"),
    "nested without end": (of(".json", lambda _: b"[" * 10**6), "not a JSON object"),
    "not UTF-8": (of(".json", lambda data: data + b"\xff"), "not a JSON object"),
    "another folder": (of(".json", lambda d: d.replace(b"/videos", b"/videot")), "checksum"),
    "a later version": (changed(format=99), "later version"),
    "no format": (changed(format=None), "format is missing or has a wrong type"),
    "text for a number": (changed(bits="12"), "bits is missing or has a wrong type"),
    "true for a number": (changed(count=True), "count is missing or has a wrong type"),
    "no folder of videos": (changed(videos=None), "videos is missing or has a wrong type"),
    "a path as generation": (changed(generation="../../etc/passwd"), "generation is no checksum"),
    "no bits": (changed(bits=0), "out of range"),
    "too many bits": (changed(bits=2**40), "out of range"),
    "too few codes": (changed(count=3), "wrong length"),
    "other bits": (changed(bits=24), "wrong length"),
    "codes empty": (of(".faiss", lambda _: b""), "is missing or empty"),
    "other codes": (of(".faiss", lambda _: b"IBxF" * 5), "wrong length"),
    "codes cut": (of(".faiss", lambda data: data[:-5]), "wrong length"),
    "another header": (of(".faiss", lambda data: flip(data, 4)), "another header"),
    "a flipped bit in a code": (of(".faiss", lambda data: flip(data, 40)), "checksum is wrong"),
    "a flipped bit in a record": (of(".jsonl", lambda data: flip(data, 40)), "checksum is wrong"),
    "records cut": (of(".jsonl", lambda data: data[:-5]), "checksum is wrong"),
    "no records": (lambda folder: next(folder.glob("*.jsonl")).unlink(), "is missing or empty"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_indexes_are_refused(tmp_path, case):
    """By a query and by an update, which would otherwise write the damage into the next index."""
    damage, message = DAMAGE[case]
    write_index(tmp_path, METADATA, videos_of(np.eye(12, dtype=bool)))
    damage(tmp_path)
    with pytest.raises(IndexFileError, match=message) as error:
        Index(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    if case != "no index.json":
        with pytest.raises(IndexFileError, match=message):
            encoded_videos(tmp_path, ENCODER)


def test_codes_cut_to_any_length_are_refused(tmp_path):
    """Faiss, which reads no file here, ended with SIGSEGV at 13 to 19 bytes."""
    write_index(tmp_path, METADATA, videos_of(np.eye(12, dtype=bool)))
    path = next(tmp_path.glob("*.faiss"))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(IndexFileError, match="damaged"):
            Index(tmp_path)


def test_the_codes_are_a_file_of_faiss(tmp_path):
    codes = np.random.default_rng(0).random((50, 12)) < 0.5
    write_index(tmp_path, METADATA, videos_of(codes))
    file = faiss.read_index_binary(str(next(tmp_path.glob("*.faiss"))))
    assert isinstance(file, faiss.IndexBinaryFlat) and file.d == 16
    assert np.array_equal(file.reconstruct_n(0, 50), np.packbits(codes, axis=1))
    faiss.write_index_binary(file, str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == next(tmp_path.glob("*.faiss")).read_bytes()
    assert HEADER.size + 50 * 2 == (tmp_path / "again").stat().st_size


def test_an_index_of_an_early_version_opens(tmp_path):
    """It has no checksum in index.json; codes and records have always had theirs."""
    write_index(tmp_path, METADATA, videos_of(np.eye(12, dtype=bool)))
    path = tmp_path / "index.json"
    metadata = json.loads(path.read_text())
    del metadata["sha256"]
    path.write_text(json.dumps(metadata))
    assert len(Index(tmp_path)) == len(encoded_videos(tmp_path, ENCODER)) == 12


@pytest.mark.parametrize(
    "path",
    ["../x.avi", "/etc/x.avi", "a/../../x.avi", "a/../b.avi", "./b.avi", "a//b.avi", "", "."]
    + ["..", "a/", "a\0.avi", "\ud800.avi"],
)
def test_records_that_name_other_files_are_refused(tmp_path, path):
    """The index of somebody else, with the right checksums: its page would embed their pictures."""
    records = videos_of(np.eye(12, dtype=bool))
    records[3]["path"] = path
    write_index(tmp_path, METADATA, records)
    index = Index(tmp_path)
    with pytest.raises(IndexFileError, match="not below its folder of videos"):
        [index.video(row) for row in range(12)]
    with pytest.raises(IndexFileError, match="not below its folder of videos"):
        encoded_videos(tmp_path, ENCODER)


def test_a_folder_that_is_no_index_is_left_alone(tmp_path):
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(IndexFileError, match="is not an index"):
        encoded_videos(tmp_path, ENCODER)
    with pytest.raises(IndexFileError, match="is not an index"):
        encoded_videos(tmp_path / "holiday.txt", ENCODER)
    write_index(tmp_path / "index", METADATA, videos_of(np.eye(12, dtype=bool)))
    with pytest.raises(IndexFileError, match="another checkpoint"):
        encoded_videos(tmp_path / "index", {**ENCODER, "checkpoint_sha256": "cd"})


def test_an_index_replaced_while_it_is_opened_is_the_new_one(tmp_path, monkeypatch):
    write_index(tmp_path, METADATA, videos_of(np.eye(12, dtype=bool)))
    whole = index_module.read_metadata

    def read_and_replace(folder):
        metadata = whole(folder)
        monkeypatch.setattr(index_module, "read_metadata", whole)
        write_index(tmp_path, METADATA, videos_of(np.eye(12, dtype=bool)[:5]))
        return metadata

    monkeypatch.setattr(index_module, "read_metadata", read_and_replace)
    assert len(Index(tmp_path)) == 5


def test_a_folder_is_locked_for_one_run_at_a_time(tmp_path):
    path = tmp_path / "index.lock"
    with file_lock(path):
        with pytest.raises(UserError, match="another run is using it"), file_lock(path, seconds=0):
            pass
        with file_lock(tmp_path / "other.lock"):
            pass
    with file_lock(path, seconds=0):
        pass
