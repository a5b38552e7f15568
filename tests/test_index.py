"""The search index: exact distances and stable ties beside brute force, whole files only."""

import json

import numpy as np
import pytest

from retrieval import index as index_module
from retrieval.index import (
    Index,
    IndexFileError,
    append_to_journal,
    encoded_videos,
    journal_path,
    write_index,
)
from utils.errors import UserError
from utils.files import file_lock

METADATA = {"bits": 12, "checkpoint_sha256": "ab"}


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
    write_index(tmp_path, {"bits": bits}, videos_of(codes))
    rows, distances = Index(tmp_path).search(queries, count)

    expected = (queries[:, None] != codes).sum(axis=2)
    order = np.argsort(expected, axis=1, kind="stable")[:, :count]
    assert (rows == order).all()
    assert (distances == np.take_along_axis(expected, order, axis=1)).all()
    assert (np.diff(distances, axis=1) == 0).any() or count == 1, "the case has no ties"


def test_equal_codes_by_the_thousand_are_found_in_order(tmp_path):
    codes = np.zeros((200_000, 16), bool)
    write_index(tmp_path, {"bits": 16}, videos_of(codes))
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
    known = encoded_videos(tmp_path, METADATA)
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


def test_journals_survive_a_line_cut_short(tmp_path):
    tmp_path.joinpath("index").mkdir()
    path = journal_path(tmp_path / "index", METADATA, 0)
    records = videos_of(np.eye(12, dtype=bool))
    with open(path, "a", encoding="ascii") as journal:
        append_to_journal(journal, records[:5])
    whole = path.read_text(encoding="ascii")
    path.write_text(whole[:-9], encoding="ascii")  # a kill in the last line
    with open(path, "a", encoding="ascii") as journal:
        append_to_journal(journal, records[5:7])
    assert list(encoded_videos(tmp_path / "index", METADATA)) == [
        r["path"] for r in records[:4] + records[5:7]
    ]
    assert encoded_videos(tmp_path / "index", {**METADATA, "bits": 13}) == {}, "another encoder's"


def test_writing_again_leaves_one_generation_and_no_journal_but_foreign_files(tmp_path):
    codes = np.eye(12, dtype=bool)
    write_index(tmp_path, METADATA, videos_of(codes))
    journal_path(tmp_path, METADATA, 0).write_text("")
    (tmp_path / "notes.jsonl").write_text("mine")
    write_index(tmp_path, METADATA, videos_of(codes[:7]))
    assert len(Index(tmp_path)) == 7
    kinds = sorted(path.suffix for path in tmp_path.iterdir())
    assert kinds == [".faiss", ".json", ".jsonl", ".jsonl"] and (tmp_path / "notes.jsonl").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "index.json").unlink(), "not an index folder"),
        (lambda folder: (folder / "index.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "index.json").write_text("[]"), "damaged"),
        (lambda folder: set_metadata(folder, format=99), "later version"),
        (lambda folder: set_metadata(folder, count=3), "differ in length"),
        (lambda folder: next(folder.glob("*.faiss")).write_bytes(b""), "damaged"),
        (lambda folder: next(folder.glob("*.faiss")).write_bytes(b"IBxF" * 5), "damaged"),
        (lambda folder: cut(next(folder.glob("*.faiss"))), "damaged"),
        (lambda folder: cut(next(folder.glob("*.jsonl"))), "differ in length"),
        (lambda folder: next(folder.glob("*.jsonl")).unlink(), "damaged"),
    ],
)
def test_damaged_indexes_are_refused(tmp_path, damage, message):
    write_index(tmp_path, METADATA, videos_of(np.eye(12, dtype=bool)))
    damage(tmp_path)
    with pytest.raises(IndexFileError, match=message):
        Index(tmp_path)


def set_metadata(folder, **metadata):
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **metadata}))


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def test_a_folder_that_is_no_index_is_left_alone(tmp_path):
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(IndexFileError, match="is not an index"):
        encoded_videos(tmp_path, METADATA)
    with pytest.raises(IndexFileError, match="is not an index"):
        encoded_videos(tmp_path / "holiday.txt", METADATA)
    write_index(tmp_path / "index", METADATA, videos_of(np.eye(12, dtype=bool)))
    with pytest.raises(IndexFileError, match="another checkpoint"):
        encoded_videos(tmp_path / "index", {**METADATA, "checkpoint_sha256": "cd"})


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
