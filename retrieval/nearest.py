"""Exact search: the rows of one or several indexes that are nearest to binary codes.

Faiss compares the codes, a block at a time, so that memory is bounded whatever the size of the
indexes. Each block is asked for the rows within a distance that shrinks as nearer rows are found.
Every fragment of a table is sorted by path and start, so its first rows at one distance are also
the first in that order: a few rows of each fragment are enough to find the first of all ties.
Source: J. Johnson, M. Douze, H. Jegou, "Billion-scale similarity search with GPUs", 2017,
https://arxiv.org/abs/1702.08734, and the documentation of Faiss's binary indexes.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import faiss
import numpy as np
import pyarrow as pa

COLUMNS = ["path", "start", "end", "class", "size"]
ORDER = [(key, "ascending") for key in ("distance", "path", "start", "index")]


class Found(NamedTuple):
    """What was found for a code."""

    rows: list  # of dicts: COLUMNS, distance in bits, row id, index (its number); nearest first
    counts: np.ndarray  # (K+1,) rows at each distance, exact up to the distance of the last row
    total: int  # rows that were searched


def find_nearest(indexes, codes, count, conditions=None, columns=COLUMNS):
    """The `count` rows nearest to each code; ties are in the order of path, start and index.

    indexes: list of `retrieval.index.Index` with equal numbers of bits. codes: (Q, B) uint8, packed
    as np.packbits does. conditions: for each index which rows to search, a condition of SQL or
    None. Returns a `Found` for each code.
    """
    conditions = conditions or [None] * len(indexes)
    searches, total = [_Search(code, count) for code in codes], 0
    # A call has one query: threads of Faiss that wait for it make it ten times slower.
    with ThreadPoolExecutor(min(8, len(codes)), "", faiss.omp_set_num_threads, (1,)) as pool:
        for number, (index, where) in enumerate(zip(indexes, conditions, strict=True)):
            for fragment in index.fragments:
                for row_ids, packed in index.blocks(fragment, where):
                    total += len(row_ids)
                    block = faiss.IndexBinaryFlat(8 * packed.shape[1])
                    block.add(packed)
                    list(pool.map(lambda search: search.add(block, row_ids), searches))  # noqa: B023
                for search in searches:
                    search.end_fragment(number)
    return [Found(search.rows(indexes, columns), search.counts, total) for search in searches]


class _Search:
    """The nearest rows to one code so far: of each fragment the first `count` by distance."""

    def __init__(self, code, count):
        self.code, self.count, self.bits = np.ascontiguousarray(code[None]), count, 8 * len(code)
        self.limit = self.bits  # a row at a larger distance is not among the nearest
        self.counts = np.zeros(self.bits + 1, np.int64)
        self.fragment, self.fragments = [], []  # (distances, row ids), with the number of the index

    def add(self, block, row_ids):
        """Search a block of the current fragment. block: IndexBinaryFlat. row_ids: of its codes."""
        limit = self.limit
        if limit == self.bits and block.ntotal >= self.count:
            limit = int(block.search(self.code, self.count)[0].max())
        _, distances, rows = block.range_search(self.code, limit + 1)  # less than the radius
        distances = distances.astype(np.int64)
        self.counts += np.bincount(distances, minlength=self.bits + 1)
        order = np.lexsort((rows, distances))[: self.count]
        self.fragment.append((distances[order], row_ids[rows[order]]))
        enough = np.flatnonzero(np.cumsum(self.counts) >= self.count)
        self.limit = min(limit, int(enough[0])) if len(enough) else self.bits

    def end_fragment(self, number):
        """Keep the first rows of the fragment, which is of the index `number`."""
        if self.fragment:
            distances, row_ids = map(np.concatenate, zip(*self.fragment, strict=True))
            order = np.argsort(distances, kind="stable")[: self.count]
            self.fragments.append((number, distances[order], row_ids[order]))
        self.fragment = []

    def rows(self, indexes, columns):
        """The nearest rows, in order: list of dicts."""
        tables = []
        for number, distances, row_ids in self.fragments:
            is_near = distances <= self.limit
            table = indexes[number].take(row_ids[is_near], columns)
            table = table.append_column("distance", pa.array(distances[is_near]))
            table = table.append_column("row", pa.array(row_ids[is_near]))
            tables.append(table.append_column("index", pa.array([number] * len(table), pa.int64())))
        if not tables:
            return []
        nearest = pa.concat_tables(tables).sort_by(ORDER).slice(0, self.count).to_pylist()
        return [indexes[row["index"]].check(row) for row in nearest]
