"""Seconds and memory to open, search and update an index of N synthetic moments.

    python -m benchmarks.index --codes 10000000 --folder /tmp/index
    python -m benchmarks.index --codes 100000000 --folder /tmp/index

The index is made once, in --folder, with 100 moments per video; codes are drawn
around 1,000 centres, as trained codes lie around classes. Each step runs in a
process of its own. "faiss" is Faiss's own search for the ten nearest of the same
codes in memory; "query" is the whole of a query but decoding and encoding: it
imports the modules, opens and verifies the index, searches, and reads the ten
moments. "update" opens the index, compares its videos with those in the folder,
appends 10,000 rows and compacts the table. Memory is the largest resident set.
"""

import json
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np

from benchmarks.search import draw_codes
from utils.argtypes import number
from utils.config import Parser
from utils.terminal import progress

PIECE = 2**20  # rows per append
PER_VIDEO = 100
BITS = 64
METADATA = {
    "bits": BITS,
    "checkpoint_sha256": "",
    "preprocessing": {},
    "window": 3.0,
    "stride": 1.5,
    "neighbours": None,
    "checkpoint": "",
    "videos": "/videos",
}


def make_rows(first, count):
    """An Arrow table of moments number `first` and following, in the order of paths."""
    import pyarrow as pa

    from retrieval.index import FORMAT, table_schema

    numbers = np.arange(first, first + count)
    videos, windows = numbers // PER_VIDEO, numbers % PER_VIDEO
    names = [f"class{v % 100:02}/v{v:07}.avi" for v in range(videos[0], videos[-1] + 1)]
    codes = draw_codes(count, BITS, np.random.default_rng(first))
    columns = {
        "path": pa.array(names).take(pa.array(videos - videos[0])),
        "start": 1.5 * windows,
        "end": 1.5 * windows + 3,
        "class": pa.array([f"class{c:02}" for c in range(100)]).take(pa.array(videos % 100)),
        "size": 1000 + videos,
        "mtime_ns": videos,
        "code": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(BITS // 8), count, [None, pa.py_buffer(codes.tobytes())]
        ),
    }
    schema = table_schema({"format": FORMAT, **METADATA})
    return pa.table(columns, schema=schema).sort_by([("path", "ascending"), ("start", "ascending")])


def make_index(folder, count):
    """An index of `count` moments, if it is not there yet."""
    import lance

    from retrieval.index import TABLE
    from retrieval.index_update import open_for_update, seal

    if (folder / TABLE).exists():
        return {}
    open_for_update(folder, METADATA)
    for first in progress(range(0, count, PIECE), "making the index", unit="piece"):
        rows = make_rows(first, min(PIECE, count - first))
        lance.write_dataset(rows, str(folder / TABLE), mode="append")
    seal(folder)
    return {}


def time_faiss(folder, count):
    """Seconds of Faiss's own search, with the codes in memory."""
    import faiss

    codes = np.concatenate([draw_codes(min(PIECE, count - first), BITS,
                                       np.random.default_rng(first))
                            for first in range(0, count, PIECE)])  # fmt: skip
    index = faiss.IndexBinaryFlat(BITS)
    index.add(codes)
    index.use_heap = False
    times = []
    for row in range(3):
        started = time.perf_counter()
        index.search(codes[row : row + 1], 10)
        times.append(time.perf_counter() - started)
    return {"search": sorted(times)[1]}


def time_query(folder, count):
    """Seconds to open an index and to search it, for the first and for further queries."""
    started = time.perf_counter()
    from retrieval.answers import Options, answer_query
    from retrieval.index import Index

    seconds = {"import": time.perf_counter() - started}
    started = time.perf_counter()
    index = Index(folder)
    seconds["open"] = time.perf_counter() - started
    code = np.where(np.unpackbits(draw_codes(1, BITS, np.random.default_rng(0))[0]), 0.5, -0.5)
    for name, mix in (("search", False), ("search, ties mixed", True)):
        started = time.perf_counter()
        answer_query([index], "query.avi", [(0.0, 3.0, code)], Options(mix_ties=mix))
        seconds[name] = time.perf_counter() - started
    return seconds


def time_update(folder, count):
    """Seconds to open an index for an update, to plan it, and to append 10,000 rows."""
    from retrieval.index_update import append_table, clean, compact, open_for_update, plan_update

    started = time.perf_counter()
    table = open_for_update(folder, METADATA)
    seconds = {"open": time.perf_counter() - started}
    started = time.perf_counter()
    plan_update(folder, ["new.avi"], table)
    seconds["plan"] = time.perf_counter() - started
    rows = make_rows(10 * count, 10_000)
    started = time.perf_counter()
    append_table(folder, rows)
    seconds["append"] = time.perf_counter() - started
    started = time.perf_counter()
    compact(folder)
    clean(folder, is_alone=True)
    seconds["compact"] = time.perf_counter() - started
    return seconds


def measure(step, folder, count, connection):
    """Run a step in this process and send its seconds, CPU seconds and memory in MB."""
    seconds = step(folder, count)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    connection.send({**seconds, "all CPU": cpu, "MB": usage.ru_maxrss / 1000})


def main():
    parser = Parser(__doc__)
    parser.add("--codes", type=number(int, least=1000), default=10_000_000, help="moments")
    parser.add("--folder", type=Path, required=True, metavar="DIR", help="where the index is made")
    args = parser.parse_args()
    folder = args.folder / f"{args.codes}"
    context = multiprocessing.get_context("spawn")
    for step in (make_index, time_faiss, time_query, time_update):
        ours, theirs = context.Pipe()
        process = context.Process(target=measure, args=(step, folder, args.codes, theirs))
        process.start()
        theirs.close()
        found = {key: round(value, 3) for key, value in ours.recv().items()}
        process.join()
        print(json.dumps({"step": step.__name__, "codes": args.codes, **found}), flush=True)


if __name__ == "__main__":
    main()
