"""The search index: exact distances and stable ties beside brute force, damage, updates."""

import json

import faiss
import lance
import numpy as np
import pyarrow as pa
import pytest

from retrieval import nearest
from retrieval.answers import Options, answer_query, glob_to_regex
from retrieval.index import (
    CHECKSUMS,
    FORMAT,
    TABLE,
    Index,
    IndexFileError,
    decode_path,
    encode_path,
    seal_checksum,
    table_schema,
)
from retrieval.index_update import (
    Appender,
    check_index_folder,
    choose_fragments,
    clean,
    compact,
    delete_videos,
    open_for_update,
    plan_update,
    seal,
)
from retrieval.nearest import find_nearest
from utils.errors import UserError
from utils.files import file_lock

ENCODER = {"bits": 12, "checkpoint_sha256": "ab", "preprocessing": {"size": 28}}
WINDOWS = {"window": 3.0, "stride": 1.5, "embeddings": False, "neighbours": None}
METADATA = {**ENCODER, **WINDOWS, "checkpoint": "/runs/best.pt", "videos": "/videos"}


def rows_of(codes, paths=None):
    """Rows with the packed codes of (N, K) bits, of one window per video unless paths repeat."""
    packed = np.packbits(codes, axis=1)
    paths = paths or [f"{row:06d}.avi" for row in range(len(codes))]
    windows = [paths[:row].count(path) for row, path in enumerate(paths)] if paths else []
    return [
        {"path": path, "start": 1.5 * window, "end": 1.5 * window + 3, "class": None}
        | {"size": row, "mtime_ns": 1, "code": code.tobytes()}
        for row, (path, window, code) in enumerate(zip(paths, windows, packed, strict=True))
    ]


def make_index(folder, rows, metadata=METADATA, pieces=3):
    """An index with these rows, appended in some pieces in another order."""
    open_for_update(folder, metadata)
    order = np.random.default_rng(0).permutation(len(rows))
    for part in np.array_split(order, pieces):
        appender = Appender(folder, metadata, is_main=False)
        appender.add([rows[row] for row in part])
        appender.flush()
    return Index(folder)


def random_codes(count, bits, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.random((5, bits)) < 0.5
    return centres[rng.integers(5, size=count)] ^ (rng.random((count, bits)) < 0.05)


# ==== search ====


@pytest.mark.parametrize("bits", [1, 7, 12, 64, 65])
@pytest.mark.parametrize("count", [1, 10, 400, 10_000])
def test_search_equals_a_stable_sort_of_all_distances(tmp_path, bits, count, monkeypatch):
    monkeypatch.setattr("retrieval.index.BLOCK", 300)
    codes = random_codes(1500, bits)
    queries = codes[:5] ^ (np.random.default_rng(1).random((5, bits)) < 0.1)
    index = make_index(tmp_path, rows_of(codes), {**METADATA, "bits": bits}, pieces=4)
    found = find_nearest([index], np.packbits(queries, axis=1), count)

    expected = (queries[:, None] != codes).sum(axis=2)
    order = np.argsort(expected, axis=1, kind="stable")[:, :count]
    for query, one in enumerate(found):
        assert [row["path"] for row in one.rows] == [f"{row:06d}.avi" for row in order[query]]
        distances = [row["distance"] for row in one.rows]
        assert distances == expected[query, order[query]].tolist()
        last = distances[-1]
        counts = np.bincount(expected[query], minlength=bits + 1)[: last + 1]
        assert (one.counts[: last + 1] == counts).all() and one.total == 1500
        assert count == 1 or len(set(distances)) < len(distances), "the case has no ties"


@pytest.mark.parametrize("bits", [1, 7, 8, 11, 16])
def test_the_first_bits_are_searched_as_codes_of_that_length(tmp_path, bits):
    codes, metadata = random_codes(300, 20), {**METADATA, "bits": 20}
    make_index(tmp_path, rows_of(codes), metadata)
    queries = random_codes(3, 20, seed=1)
    packed = np.packbits(queries[:, :bits], axis=1)
    found = find_nearest([Index(tmp_path, bits=bits)], packed, 300)
    expected = (queries[:, None, :bits] != codes[:, :bits]).sum(axis=2)
    for query, one in zip(expected, found, strict=True):
        order = np.argsort(query, kind="stable")
        assert [row["path"] for row in one.rows] == [f"{row:06d}.avi" for row in order]
        assert [row["distance"] for row in one.rows] == query[order].tolist()
    with pytest.raises(IndexFileError, match="--bits 21: the codes of .* have 20 bits"):
        Index(tmp_path, bits=21)


def test_a_prefix_has_no_usual_distance_because_that_is_of_whole_codes(tmp_path):
    codes = np.zeros((3, 12), bool)
    metadata = {**METADATA, "neighbours": [5, 0, 0]}  # validation clips have a copy of their code
    make_index(tmp_path, rows_of(codes), metadata)
    for bits, unlike in ((None, 0), (8, None)):
        index = Index(tmp_path, bits=bits)
        parts = [(0.0, 3.0, np.ones(index.bits))]
        assert answer_query([index], "query.avi", parts, Options(top=3))["unlike"] == unlike


def test_shards_and_the_whole_give_equal_results(tmp_path):
    rows = rows_of(random_codes(600, 12))
    whole = make_index(tmp_path / "whole", rows)
    shards = [make_index(tmp_path / str(i), rows[i::3], pieces=2) for i in range(3)]
    codes = np.packbits(random_codes(20, 12, seed=1), axis=1)
    both = find_nearest([whole], codes, 50), find_nearest(shards, codes, 50)
    for one, many in zip(*both, strict=True):
        last = one.rows[-1]["distance"] + 1
        strip = [[{**row, "index": 0, "row": 0} for row in found.rows] for found in (one, many)]
        assert strip[0] == strip[1] and one.total == many.total
        assert (one.counts[:last] == many.counts[:last]).all()


def test_hundreds_of_queries_at_once_are_answered_as_one_by_one(tmp_path):
    index = make_index(tmp_path, rows_of(random_codes(200, 12)))
    codes = np.packbits(random_codes(300, 12, seed=1), axis=1)
    found = find_nearest([index], codes, 7)
    for row in range(0, 300, 29):
        (alone,) = find_nearest([index], codes[row : row + 1], 7)
        assert alone.rows == found[row].rows


def test_each_search_of_a_block_has_one_thread(tmp_path, monkeypatch):
    """The number of threads of Faiss is one per thread that calls it; more wait for each other."""
    index, threads = make_index(tmp_path, rows_of(random_codes(200, 12))), []
    add = nearest._Search.add

    def record(*args):
        threads.append(faiss.omp_get_max_threads())
        add(*args)

    monkeypatch.setattr(nearest._Search, "add", record)
    before = faiss.omp_get_max_threads()  # PyTorch has the same number
    faiss.omp_set_num_threads(2)
    try:
        find_nearest([index], np.zeros((3, 2), np.uint8), 7)
        assert threads and set(threads) == {1} and faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)


def test_conditions_limit_what_is_searched_and_counted(tmp_path):
    rows = rows_of(random_codes(300, 12))
    for number, row in enumerate(rows):
        row["class"] = "it's" if number % 3 else None
    index = make_index(tmp_path, rows)
    code = np.packbits(random_codes(1, 12, seed=1), axis=1)
    (found,) = find_nearest([index], code, 1000, ["class = 'it''s'"])
    assert found.total == len(found.rows) == 200 == found.counts.sum()
    assert {row["class"] for row in found.rows} == {"it's"}


# ==== answers ====


def parts_of(codes):
    """A query whose windows have these bits."""
    return [(1.5 * n, 1.5 * n + 3, np.where(code, 0.5, -0.5)) for n, code in enumerate(codes)]


def test_overlapping_windows_are_one_moment(tmp_path):
    codes = np.zeros((6, 12), bool)
    codes[[0, 4], 0] = codes[5] = True  # distances 1 0 0 0 1 12
    index = make_index(tmp_path, rows_of(codes, ["long.avi"] * 6))
    found = answer_query([index], "query.avi", parts_of(codes[1:2]), Options(top=10))
    times = [(r["start"], r["end"], r["distance"]) for r in found["results"]]
    assert times == [(1.5, 4.5, 0), (4.5, 7.5, 0), (7.5, 10.5, 12)]
    options = Options(top=10, per_video=True)
    (best,) = answer_query([index], "query.avi", parts_of(codes[1:2]), options)["results"]
    assert best["start"] == 1.5 and best["share"] == 0.5, "three of six rows are as near"


def test_more_rows_are_read_until_there_are_enough_moments(tmp_path):
    """Five hundred equal windows of one video come before the other videos."""
    codes = np.zeros((510, 12), bool)
    paths = ["a.avi"] * 500 + [f"b{n}.avi" for n in range(10)]
    index = make_index(tmp_path, rows_of(codes, paths))
    found = answer_query([index], "q", parts_of(codes[:1]), Options(top=6, per_video=True))
    assert [r["path"][8:] for r in found["results"]] == ["a.avi"] + [f"b{n}.avi" for n in range(5)]
    assert found["ties"] == [{"first": 1, "last": 6, "distance": 0, "windows": 510}]


def test_each_part_of_a_long_query_is_searched(tmp_path):
    codes = np.eye(12, dtype=bool)
    index = make_index(tmp_path, rows_of(codes))
    found = answer_query([index], "q", parts_of(codes[[3, 7]]), Options(top=2))["results"]
    assert [(r["path"][8:], r["query_start"]) for r in found] == [
        ("000003.avi", 0),
        ("000007.avi", 1.5),
    ]


def test_ties_are_mixed_by_query_for_people_and_in_order_for_programs(tmp_path):
    codes = np.zeros((100, 12), bool)
    index = make_index(tmp_path, rows_of(codes))

    def paths(query, **options):
        found = answer_query([index], query, parts_of(codes[:1]), Options(top=5, **options))
        return [r["path"] for r in found["results"]]

    assert paths("a") == paths("b") == [f"/videos/{n:06}.avi" for n in range(5)]
    mixed = paths("a", mix_ties=True)
    assert mixed != paths("b", mix_ties=True) and mixed == paths("a", mix_ties=True)


def test_copies_of_the_query_come_first_or_not_at_all(tmp_path):
    (tmp_path / "videos").mkdir()
    for name, content in {"a": b"xx", "b": b"yy", "copy": b"query", "own": b"query"}.items():
        (tmp_path / "videos" / f"{name}.avi").write_bytes(content)
    rows = rows_of(np.zeros((4, 12), bool), ["a.avi", "b.avi", "copy.avi", "own.avi"])
    for row, size in zip(rows, (2, 2, 5, 5), strict=True):
        row["size"] = size
    index = make_index(tmp_path / "i", rows, {**METADATA, "videos": str(tmp_path / "videos")})

    def names(**options):
        query, parts = str(tmp_path / "videos" / "own.avi"), parts_of(np.zeros((1, 12), bool))
        found = answer_query([index], query, parts, Options(**options))["results"]
        return [r["path"].rpartition("/")[2][:-4] for r in found]

    assert names() == ["copy", "own", "a", "b"] and names(top=1) == ["copy"]
    assert names(exclude_query=True) == ["copy", "a", "b"]


def test_an_unusual_query_is_told(tmp_path):
    metadata = {**METADATA, "neighbours": [90, 6, 4, 0]}
    index = make_index(tmp_path, rows_of(np.zeros((5, 12), bool)), metadata)
    for near, unlike in ((0, None), (1, None), (2, 1), (5, 1)):
        code = np.arange(12) < near
        assert answer_query([index], "q", parts_of([code]), Options())["unlike"] == unlike


def test_reranking_is_by_the_distance_to_the_real_valued_query(tmp_path):
    codes = random_codes(100, 12)
    index = make_index(tmp_path, rows_of(codes))
    values = np.random.default_rng(2).uniform(-1, 1, 12).astype(np.float32)
    found = answer_query([index], "q", [(0, 3, values)], Options(top=30, rerank=30))["results"]
    found = [int(r["path"][8:14]) for r in found]
    plain = np.argsort((codes != (values >= 0)).sum(axis=1), kind="stable")[:30].tolist()
    expected = sorted(plain, key=lambda row: (12 - values @ np.where(codes[row], 1, -1)) / 2)
    assert found == expected != plain


def make_index_of_values(folder, values, paths=None):
    """An index that stores these approximate codes (N, 12)."""
    rows = rows_of(values >= 0, paths)
    for row, value in zip(rows, values, strict=True):
        row["embedding"] = value.astype(np.float16)
    return make_index(folder, rows, {**METADATA, "embeddings": True})


def test_stored_embeddings_order_the_nearest_by_cosine(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.choice([-1, 1], 12) * rng.uniform(0.1, 1, (60, 12)).astype(np.float32)
    values[40:, 0] *= -1  # one bit farther away
    query = values[7] + rng.normal(0, 0.1, 12).astype(np.float32)
    index = make_index_of_values(tmp_path / "a", values)

    def order(indexes, values, top=60, **options):
        found = answer_query(indexes, "q", [(0, 3, values)], Options(top=top, **options))
        return [int(result["path"][8:14]) for result in found["results"]], found["ties"]

    def by_cosine(values, query):
        stored = values.astype(np.float16).astype(np.float32)
        similarity = stored @ query / np.linalg.norm(stored, axis=1) / np.linalg.norm(query)
        return np.argsort(-similarity.round(3), kind="stable").tolist()

    ranked, ties = order([index], query)
    assert ranked == by_cosine(values, query) and not ties
    assert min(ranked.index(row) for row in range(40, 60)) < max(map(ranked.index, range(40)))
    near, ties = order([index], query, rerank=30)
    assert near[:30] == by_cosine(values[:30], query) and near[30:] == list(range(30, 60))
    _, ties = order([index], query, top=5, rerank=30)
    assert ties == [{"first": 1, "last": 5, "distance": 0, "windows": 40}], "10 were not sorted"
    plain, ties = order([index], query, rerank=0)
    assert plain == list(range(60)) and len(ties) == 0

    without = make_index(tmp_path / "b", rows_of(values >= 0, [f"{i:06d}.mp4" for i in range(60)]))
    mixed, _ = order([index, without], query)
    assert mixed[::2] == plain[:30], "an index without embeddings: not sorted again"
    short, _ = order([Index(tmp_path / "a", bits=6)], query[:6])
    assert short == by_cosine(values[:, :6], query[:6])


def test_embeddings_that_are_no_numbers_are_refused(tmp_path):
    values = np.ones((3, 12), np.float32)
    values[1, 4] = np.nan
    index = make_index_of_values(tmp_path, values)
    with pytest.raises(IndexFileError, match="an embedding is not finite"):
        answer_query([index], "q", [(0, 3, np.ones(12))], Options())


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("holiday/*", "holiday/a/b.avi", "xholiday/a.avi"),
        ("*.avi", "a/b.avi", "a/bxavi"),
        ("a?c", "a[c", "ac"),
        ("[ab]x", "bx", "cx"),
        ("[!ab]x", "cx", "bx"),
        ("[", "[", "a"),
        ("a+(b)'", "a+(b)'", "aab"),
        ("\udcff*", "\udcff.avi", "x.avi"),
    ],
)
def test_globs(tmp_path, glob, yes, no):
    index = make_index(tmp_path, rows_of(np.zeros((2, 12), bool), [yes, no]), pieces=1)
    found = answer_query([index], "q", parts_of(np.zeros((1, 12), bool)), Options(path=glob))
    assert [r["path"] for r in found["results"]] == [f"/videos/{yes}"], glob_to_regex(glob)


# ==== names ====


@pytest.mark.parametrize("path", ["a/b.avi", "\udcff\udc80.avi", "ü\udcff/é//", "a'b.avi"])
def test_paths_of_any_bytes_are_kept(path):
    path = path.rstrip("/")
    assert decode_path(encode_path(path)) == path and encode_path(path).encode("utf-8")


def test_rows_are_kept_whatever_the_names(tmp_path):
    names = ['a"b.avi', "line\nend.avi", "\udcff.avi", "ü/é.mp4", "<script>.avi", "-x 'q' [1].avi"]
    rows = rows_of(random_codes(6, 12), names)
    index = make_index(tmp_path, rows)
    table = index.table.to_table().to_pylist()
    assert {decode_path(row["path"]): row["code"] for row in table} == {
        row["path"]: row["code"] for row in rows
    }
    delete_videos(tmp_path, names[1:])
    seal(tmp_path)
    assert [row["path"] for row in Index(tmp_path).table.to_table().to_pylist()] == names[:1]


# ==== updates ====


def test_plans_compare_size_and_time(tmp_path):
    names = [f"{number}.avi" for number in range(5)]
    for name in names:
        (tmp_path / name).write_bytes(b"x" * (int(name[0]) + 1))
    table = open_for_update(tmp_path / "index", METADATA)
    assert plan_update(tmp_path, names, table)[0] == 0
    rows = rows_of(np.zeros((7, 12), bool), [*names, names[1], "gone.avi"])
    for row in rows[:-1]:
        status = (tmp_path / row["path"]).stat()
        row |= {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    make_index(tmp_path / "index", rows)
    (tmp_path / names[2]).write_bytes(b"changed")
    (tmp_path / names[3]).unlink()
    (tmp_path / names[3]).symlink_to("nowhere")
    (tmp_path / "new.avi").write_bytes(b"new")
    table = open_for_update(tmp_path / "index", METADATA)
    count, todo, gone, changed = plan_update(tmp_path, [*names, "new.avi"], table)
    assert count == 3 and [record["path"] for record in todo] == [*names[2:4], "new.avi"]
    assert gone == ["gone.avi"] and changed == names[2:4]


def test_compaction_keeps_the_rows_and_bounds_the_fragments(tmp_path):
    rows = rows_of(random_codes(400, 12))
    open_for_update(tmp_path, METADATA)
    most = 0
    for start in range(0, 400, 10):
        appender = Appender(tmp_path, METADATA, is_main=False)
        appender.add(rows[start : start + 10])
        appender.flush()
        assert compact(tmp_path) == start + 10
        most = max(most, len(Index(tmp_path).fragments))
    delete_videos(tmp_path, [row["path"] for row in rows[:200]])
    compact(tmp_path)
    index = Index(tmp_path)
    kept = sorted(index.table.to_table().to_pylist(), key=lambda row: row["path"])
    assert kept == rows[200:] and most <= 7
    assert all(fragment.physical_rows < 300 for fragment in index.fragments)
    assert not choose_fragments(index.fragments) or len(index.fragments) > 1
    (found,) = find_nearest([index], np.packbits(np.zeros((1, 12), bool), axis=1), 200)
    keys = [(row["distance"], row["path"]) for row in found.rows]
    assert keys == sorted(keys) and len(keys) == 200


def test_a_reader_keeps_its_version_while_an_update_runs(tmp_path):
    reader = make_index(tmp_path, rows_of(random_codes(50, 12)))
    delete_videos(tmp_path, [f"{row:06d}.avi" for row in range(25)])
    compact(tmp_path)
    clean(tmp_path, is_alone=True)
    (found,) = find_nearest([reader], np.zeros((1, 2), np.uint8), 100)
    assert len(found.rows) == len(reader) == 50 and not reader.is_current()
    assert len(Index(tmp_path)) == 25 and Index(tmp_path).is_current()


def test_rows_without_a_seal_are_kept_by_the_next_update(tmp_path):
    """A kill between the append and checksums.json."""
    rows = rows_of(random_codes(20, 12))
    make_index(tmp_path, rows[:10])
    before = (tmp_path / CHECKSUMS).read_bytes()
    make_index(tmp_path, rows[10:])
    (tmp_path / CHECKSUMS).write_bytes(before)
    assert len(Index(tmp_path)) == 10
    assert open_for_update(tmp_path, METADATA).count_rows() == 20


# ==== damage ====


def change_seal(**values):
    """Change checksums.json as somebody could who makes its checksum right again."""

    def apply(folder):
        content = {**json.loads((folder / CHECKSUMS).read_text()), **values}
        (folder / CHECKSUMS).write_text(json.dumps({**content, "crc32": seal_checksum(content)}))

    return apply


def of(pattern, change):
    """A function that changes the bytes of the newest file of an index with that pattern."""

    def apply(folder):
        path = min(folder.glob(pattern))
        path.write_bytes(change(path.read_bytes()))

    return apply


def remove(pattern):
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def forge(**metadata):
    """Another table with other metadata in its schema."""

    def apply(folder):
        table = lance.dataset(str(folder / TABLE))
        text = json.dumps({"format": FORMAT, **METADATA, **metadata})
        table.update_schema_metadata({"search": text})
        seal(folder)

    return apply


def flip(data, byte):
    return data[:byte] + bytes([data[byte] ^ 1]) + data[byte + 1 :]


MANIFEST, DATA = f"{TABLE}/_versions/*.manifest", f"{TABLE}/data/*"
DAMAGE = {
    "an earlier format": (forge(format=2), "of an earlier version; delete it and index the"),
    "half of checksums.json": (of(CHECKSUMS, lambda data: data[:30]), "is not JSON"),
    "a list": (of(CHECKSUMS, lambda _: b"[]"), "must be a dict"),
    "nested without end": (of(CHECKSUMS, lambda _: b"[" * 10**6), "is not JSON"),
    "another version": (of(CHECKSUMS, lambda d: d.replace(b'n": 4', b'n": 3')), "checksum"),
    "a file elsewhere": (change_seal(files={"../../x": [1, 1]}), "names '../../x'"),
    "no newest version": (of(MANIFEST, lambda _: b""), "checksum"),
    "no manifest": (remove(MANIFEST), "No such file"),
    "a flipped bit in the manifest": (of(MANIFEST, lambda data: flip(data, 40)), "checksum"),
    "a flipped bit in the rows": (of(DATA, lambda data: flip(data, 40)), "checksum"),
    "rows cut": (of(DATA, lambda data: data[:-5]), "checksum"),
    "no rows": (remove(DATA), "No such file"),
    "a later version": (forge(format=99), "later version"),
    "text for a number": (forge(bits="12"), "must be a whole number"),
    "other bits": (forge(bits=24), "other columns"),
    "no window": (forge(window=-1), "must be a number above 0"),
    "no folder of videos": (forge(videos=None), "must be text"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_indexes_are_refused(tmp_path, case):
    """By a query and by an update, which would otherwise write the damage into the next index."""
    damage, message = DAMAGE[case]
    make_index(tmp_path, rows_of(np.eye(12, dtype=bool)))
    damage(tmp_path)
    for read in (Index, lambda folder: open_for_update(folder, METADATA)):
        with pytest.raises(IndexFileError, match=message) as error:
            read(tmp_path)
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_an_index_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / "index.json").write_text("{}")
    for read in (Index, check_index_folder):
        with pytest.raises(IndexFileError, match="earlier version; delete it and index"):
            read(tmp_path)


@pytest.mark.parametrize(
    "path",
    ["../x.avi", "/etc/x.avi", "a/../../x.avi", "a/../b.avi", "./b.avi", "a//2e.avi", "", "."]
    + ["..", "a/", "a\0.avi", "a//zz.avi", "//ed//a0//80"],
)
def test_rows_that_name_other_files_are_refused(tmp_path, path):
    """The index of somebody else: its page would embed their pictures."""
    schema = table_schema({"format": FORMAT, **METADATA})
    rows = rows_of(np.eye(12, dtype=bool))
    rows[3]["path"] = path
    open_for_update(tmp_path, METADATA)
    rows = pa.Table.from_pylist(rows, schema=schema)
    lance.write_dataset(rows, str(tmp_path / TABLE), mode="append")
    seal(tmp_path)
    if path == "//ed//a0//80":  # bytes that are no UTF-8, and so a possible name
        assert len(find_nearest([Index(tmp_path)], np.zeros((1, 2), np.uint8), 12)[0].rows) == 12
        return
    with pytest.raises(IndexFileError, match="not below its folder of videos"):
        find_nearest([Index(tmp_path)], np.zeros((1, 2), np.uint8), 12)


@pytest.mark.parametrize("times", [(-1, 2), (2, 2), (3, 2), (0, np.inf), (np.nan, 3)])
def test_rows_with_impossible_times_are_refused(tmp_path, times):
    rows = rows_of(np.eye(12, dtype=bool))
    rows[3] |= dict(zip(("start", "end"), times, strict=True))
    index = make_index(tmp_path, rows)
    with pytest.raises(IndexFileError, match="a row has the times"):
        find_nearest([index], np.zeros((1, 2), np.uint8), 12)


def test_a_folder_that_is_no_index_is_left_alone(tmp_path):
    (tmp_path / "holiday.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "holiday.txt"):
        with pytest.raises(IndexFileError, match="is not an index"):
            check_index_folder(path)
    make_index(tmp_path / "index", rows_of(np.eye(12, dtype=bool)))
    with pytest.raises(IndexFileError, match="another checkpoint"):
        open_for_update(tmp_path / "index", {**METADATA, "checkpoint_sha256": "cd"})
    with pytest.raises(IndexFileError, match="made with --window 3, not whole"):
        open_for_update(tmp_path / "index", {**METADATA, "window": None})
    moved = {**METADATA, "videos": "/elsewhere"}
    open_for_update(tmp_path / "index", moved)
    seal(tmp_path / "index")
    assert Index(tmp_path / "index").metadata["videos"] == "/elsewhere"


def test_a_folder_is_locked_for_one_run_at_a_time(tmp_path):
    path = tmp_path / "index.lock"
    with file_lock(path):
        with pytest.raises(UserError, match="another run is using it"), file_lock(path, seconds=0):
            pass
        with file_lock(tmp_path / "other.lock"):
            pass
    with file_lock(path, seconds=0):
        pass
