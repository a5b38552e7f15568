"""Answers to a query video: moments, ranked, merged, and put into proportion."""

import contextlib
import filecmp
import hashlib
import os
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from retrieval.index import encode_path, is_remote, quote
from retrieval.nearest import COLUMNS, find_nearest

RERANKED = 1000
SHUFFLED = 10_000  # the most ties, the first in the order of paths, that are shown in a mixed order
USUAL = 0.95  # of the validation clips have a neighbour within the distance called usual


class Options(NamedTuple):
    """How a query is answered; see the flags of `search.py query`."""

    top: int = 10
    per_video: bool = False
    exclude_query: bool = False
    class_name: str | None = None
    path: str | None = None  # a glob
    rerank: int | None = None  # rows to sort again; None: RERANKED if the indexes have embeddings
    mix_ties: bool = False  # order ties by a hash of query and path, not by path
    most_mixed: int = SHUFFLED  # rows that are read for it


def answer_query(indexes, query, parts, options):
    """The moments nearest to a query video.

    indexes: list of `retrieval.index.Index` of one encoder. query: path of the video. parts: its
    windows, list of (start, end, approximate code (K,) array). options: `Options`.
    Returns a dict: path, "class" (None), start and end of the query, results, ties, unlike.
    results: list of dicts with rank, distance, share (of the rows searched, as near or nearer),
    class, path, start, end, size of the video when it was indexed, row (its id in the table),
    query_start, query_end. ties: dicts with first and last rank, distance, and windows, the number
    of rows at that distance, for those with more rows than ranks, see `find_ties`. unlike: None, or
    the distance within which nearly all validation clips have a neighbour, where the nearest result
    is farther away.
    """
    parts = [(*part[:2], np.asarray(part[2], np.float32)) for part in parts]
    conditions, copies = zip(
        *(limit_search(index, query, options) for index in indexes), strict=True
    )
    only = [f"_rowid IN ({rows})" if rows else "false" for rows in map(join_rows, copies)]
    columns, num_reranked = COLUMNS, options.rerank
    has_embeddings = all(index.metadata["embeddings"] for index in indexes)
    if num_reranked is None:
        num_reranked = RERANKED if has_embeddings else 0
    if num_reranked:
        columns = [*COLUMNS, "embedding" if has_embeddings else "code"]
    num_mixed = options.mix_ties * options.most_mixed // len(parts)
    count = max(4 * options.top, num_reranked or num_mixed)
    while True:
        found = search_parts(indexes, parts, count, conditions, columns)
        more = search_parts(indexes, parts, count, only, columns) if any(copies) else []
        rows = [row for one in found + more for row in one.rows]
        rows.sort(key=order_of(query, copies, options))
        rows = rerank(rows[:num_reranked], parts) + rows[num_reranked:]
        moments = merge_moments(rows, options)
        if len(moments) >= options.top or all(len(one.rows) < count for one in found):
            return present(indexes, query, parts, moments, found, num_reranked)
        count *= 8


# ==== what is searched ====


def limit_search(index, query, options):
    """(condition of SQL or None, `same_files` with the content of the query)."""
    own, copies = same_files(index, query)
    limits = []
    if options.exclude_query and own:
        limits.append(f"_rowid NOT IN ({join_rows(own)})")
        copies = {path: rows for path, rows in copies.items() if path not in own}
    if options.class_name is not None:
        limits.append(f"class = {quote(encode_path(options.class_name))}")
        copies = {}
    if options.path is not None:
        limits.append(f"regexp_like(path, {quote(glob_to_regex(options.path))})")
        copies = {}
    return " AND ".join(limits) or None, copies


def same_files(index, query):
    """The videos of an index that are the file of the query, and that have its content.

    Returns two dicts {path: row ids}. Files that cannot be read are neither.
    """
    own, copies = {}, {}
    if is_remote(index.videos) or not os.path.isfile(query):
        return own, copies
    for path, rows in index.find(f"size = {os.path.getsize(query)}").items():
        file = os.path.join(index.videos, path)
        with contextlib.suppress(OSError):
            if os.path.samefile(query, file):
                own[path] = rows
            if path in own or filecmp.cmp(query, file, shallow=False):
                copies[path] = rows
    return own, copies


def join_rows(videos):
    """The row ids of `Index.find` as a list of SQL. Lance takes such rows without a scan."""
    return ", ".join(str(row) for rows in videos.values() for row in rows)


def glob_to_regex(pattern):
    """A glob as a regular expression of Rust: * for any text, ? for a character, [ab] for one."""
    words = re.split(r"(\*|\?|\[!?[^\]]+\])", encode_path(pattern))
    wild = {"*": ".*", "?": "."}
    text = ""
    for word in words:
        if len(word) > 2 and word[0] == "[" and word[-1] == "]":
            inside = re.sub(r"([\[\\&~^])", r"\\\1", word[1:-1].removeprefix("!"))
            text += f"[{'^' if word[1] == '!' else ''}{inside}]"
        else:
            text += wild.get(word) or re.escape(word)
    return f"(?s)^{text}$"


# ==== ranking ====


def search_parts(indexes, parts, count, conditions, columns):
    """`find_nearest` for each part of the query; rows also have the number of the part."""
    codes = np.packbits(np.stack([code for *_, code in parts]) >= 0, axis=1)
    found = find_nearest(indexes, codes, count, conditions, columns)
    for number, one in enumerate(found):
        for row in one.rows:
            row["part"] = number
    return found


def order_of(query, copies, options):
    """The key by which rows are sorted: the distance, copies of the query first, then the path."""

    def key(row):
        is_other = row["path"] not in copies[row["index"]]
        mixed = b""
        if options.mix_ties:
            text = f"{query}\0{row['path']}".encode("utf-8", "surrogateescape")
            mixed = hashlib.blake2b(text, digest_size=8).digest()
        ties = (mixed, row["path"], row["start"], row["index"], row["part"])
        return row["distance"], is_other, *ties

    return key


def rerank(rows, parts):
    """Order rows by the cosine similarity of their real-valued codes to that of the query.

    Rows without an "embedding" have their binary codes of +-1 instead: asymmetric distance, A.
    Gordo et al., "Asymmetric Distances for Binary Embeddings", TPAMI 2014. Ties, up to the three
    digits of float16, keep their order.
    """

    def distance(row):
        query = parts[row["part"]][2]
        if "embedding" in row:
            values = np.array(row["embedding"][: len(query)], np.float32)
        else:
            bits = np.unpackbits(np.frombuffer(row["code"], np.uint8), count=len(query))
            values = bits.astype(np.float32) * 2 - 1
        norms = np.linalg.norm(query) * np.linalg.norm(values)
        return -round(float(query @ values) / max(norms, 1e-9), 3)

    return sorted(rows, key=distance)


def merge_moments(rows, options):
    """The first of rows that overlap in one video, or, with per_video, the first of each video."""
    kept, of_video = [], defaultdict(list)
    for row in rows:
        others = of_video[row["index"], row["path"]]
        if options.per_video:
            is_new = not others
        else:
            is_new = all(row["start"] >= o["end"] or row["end"] <= o["start"] for o in others)
        if is_new:
            others.append(row)
            kept.append(row)
            if len(kept) == options.top:
                break
    return kept


# ==== presentation ====


def present(indexes, query, parts, moments, found, num_reranked):
    """The dict that `answer_query` returns."""
    results = []
    for rank, row in enumerate(moments, start=1):
        one, (start, end, _) = found[row["part"]], parts[row["part"]]
        as_near = int(one.counts[: row["distance"] + 1].sum())
        result = {
            "rank": rank,
            "distance": row["distance"],
            "share": as_near / max(1, one.total),
            "class": row["class"],
            "path": os.path.join(indexes[row["index"]].videos, row["path"]),
            "start": row["start"],
            "end": row["end"],
            "size": row["size"],
            "row": row["row"],
            "query_start": start,
            "query_end": end,
        }
        results.append(result)
    return {
        "path": query,
        "class": None,
        "start": parts[0][0],
        "end": parts[-1][1],
        "results": results,
        "ties": find_ties(results, found, num_reranked),
        "unlike": usual_distance(indexes[0], results),
    }


def find_ties(results, found, num_reranked):
    """For each distance with more rows than results: dict with first, last, distance, windows.

    If rows were sorted again, only distances with more rows than those: their order matters.
    """
    ties = []
    for distance in dict.fromkeys(result["distance"] for result in results):
        ranks = [result["rank"] for result in results if result["distance"] == distance]
        windows = sum(int(one.counts[distance]) for one in found)
        if windows > max(len(ranks), num_reranked):
            tie = {"first": ranks[0], "last": ranks[-1], "distance": distance, "windows": windows}
            ties.append(tie)
    return ties


def usual_distance(index, results):
    """The distance within which nearly all validation clips have a neighbour, if no result is."""
    counts = index.metadata["neighbours"] if index.bits == index.metadata["bits"] else None
    if not counts or not sum(counts) or not results:
        return None
    usual = int(np.searchsorted(np.cumsum(counts), USUAL * sum(counts)))
    nearest = min(result["distance"] for result in results)
    return usual if nearest > usual else None
