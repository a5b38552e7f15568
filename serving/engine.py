"""Answers to the requests of the page: searches in an index that may be replaced meanwhile."""

import os
import threading
from collections import OrderedDict
from functools import cached_property

import numpy as np

from retrieval.answers import Options, answer_query
from retrieval.index import IndexFileError

SPREAD = 24  # moments on the first page of an index without classes
COLUMNS = ("path", "start", "end", "class", "size")
ENCODER = ("bits", "checkpoint_sha256", "preprocessing", "window", "stride")  # metadata
MIXED = 1000  # ties in a mixed order: ten times as many take 0.1 s longer
KEPT_QUERIES = 64  # whose codes are remembered
POPCOUNT = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


class Missing(Exception):
    """What a request names does not exist, or no longer."""


class Replaced(Exception):
    """The index is another one than that of the request."""


class Snapshot:
    """An opened index with what the page shows of it. version: text that names it."""

    def __init__(self, index):
        self.index = index
        self.version = str(index.seal["crc32"] if index.seal else index.table.version)

    @cached_property
    def overview(self):
        """What /api/index answers: sizes, and a moment of each class, or some spread moments."""
        options = {"columns": list(COLUMNS), "filter": "start = 0", "with_row_id": True}
        videos = self.index.table.scanner(**options).to_table()  # the first window of each video
        classes = {}
        for place, name in enumerate(videos.column("class").to_pylist()):
            classes.setdefault(name, []).append(place)
        classes.pop(None, None)
        places = np.unique(np.linspace(0, len(videos) - 1, min(SPREAD, len(videos))).astype(int))
        named = [
            {"name": name, "videos": len(found), "moment": self._at(videos, found[len(found) // 2])}
            for name, found in sorted(classes.items())
        ]
        return {
            "version": self.version,
            "videos": len(videos),
            "moments": len(self.index),
            "bits": self.index.metadata["bits"],
            "classes": named,
            "spread": [self._at(videos, place) for place in places],
        }

    def _at(self, table, place):
        row = table.slice(place, 1).to_pylist()[0]
        return self.describe({**self.index.check(row), "row": row["_rowid"]})

    def describe(self, moment):
        """A row as the page sees it: with a name, not a path."""
        described = {key: moment[key] for key in ("row", "start", "end", "class")}
        return {**described, "name": moment["path"].encode("utf-8", "backslashreplace").decode()}

    def take(self, row):
        """A row as a dict, with its code and the file of its video. Raises Missing."""
        try:
            [found] = self.index.take([row], [*COLUMNS, "code"]).to_pylist()
        except (IndexFileError, ValueError, OverflowError):
            raise Missing("there is no such row") from None
        found = self.index.check(found)
        return {**found, "row": row, "file": os.path.join(self.index.videos, found["path"])}

    def count_distances(self, codes):
        """Rows at each distance 0..K from the nearest of packed codes (P, B): list of int."""
        bits = self.index.metadata["bits"]
        counts = np.zeros(bits + 1, np.int64)
        for fragment in self.index.fragments:
            for _, packed in self.index.blocks(fragment):
                distances = [POPCOUNT[packed ^ code].sum(axis=1, dtype=np.int64) for code in codes]
                counts += np.bincount(np.min(distances, axis=0), minlength=bits + 1)
        return counts.tolist()


class Engine:
    """Searches for the page.

    open_index: function without arguments that opens the index. encode: function from (path, start,
    end) to the windows of a video, [(start, end, approximate code), ...]; raises UserError with the
    reason for a video that cannot be read.
    """

    def __init__(self, open_index, encode):
        self.open_index, self.encode = open_index, encode
        self.opening, self.encoding = threading.Lock(), threading.Lock()
        self.queries = OrderedDict()  # (path, start, end) -> windows
        self.opened = Snapshot(open_index())

    def snapshot(self, version=None):
        """The newest index. Raises Replaced if `version` is given and another one."""
        with self.opening:
            if not self.opened.index.is_current():
                index, before = self.open_index(), self.opened.index.metadata
                if any(index.metadata[key] != before[key] for key in ENCODER):
                    raise IndexFileError(f"{index.location}: has another encoder now; serve again")
                self.opened = Snapshot(index)
        if version is not None and version != self.opened.version:
            raise Replaced("the index has changed; search again")
        return self.opened

    def windows(self, path, start, end):
        """`encode`, one video at a time, remembered for the newest queries."""
        key = str(path), start, end
        with self.encoding:
            if key not in self.queries:
                self.queries[key] = self.encode(*key)
                while len(self.queries) > KEPT_QUERIES:
                    self.queries.popitem(last=False)
            self.queries.move_to_end(key)
            return self.queries[key]

    def search(self, snapshot, query, parts, top, class_name=None, name=None):
        """The moments nearest to a query: dict with results, unlike, and whether there are more.

        query: dict with its file and, if it is a row of the index, "row", which is left out.
        parts: its windows. name: text that the path of results contains.
        """
        pattern = f"*{escape(name)}*" if name else None
        limits = {"class_name": class_name, "path": pattern}
        options = Options(top=top + 2, **limits, mix_ties=True, most_mixed=MIXED)
        answer = answer_query([snapshot.index], str(query["file"]), parts, options)
        results = [result for result in answer["results"] if result["row"] != query.get("row")]
        kept = ("rank", "distance", "share", "query_start", "query_end")
        shown = []
        for rank, result in enumerate(results[:top], start=1):
            path = os.path.relpath(result["path"], snapshot.index.videos)
            moment = snapshot.describe({**result, "path": path})
            shown.append({key: {**result, "rank": rank}[key] for key in kept} | moment)
        return {"results": shown, "unlike": answer["unlike"], "more": len(results) > top}


def escape(text):
    """A text as a glob that stands for itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)
