"""Seconds and memory to open, search and update an index of N synthetic moments.

    python -m benchmarks.index --codes 10000000 --folder /tmp/index
    python -m benchmarks.index --codes 100000000 --folder /tmp/index    # 3.2 GB

The index is made once, in --folder, with 100 moments per video and 100 classes.
The codes of a class differ from its centre in 2 % of the bits, so that a quarter
of its moments tie at the centre, as trained codes do. Each step runs in a
process of its own. "faiss" is Faiss's own search for the ten nearest of the same
codes in memory; "query" is the whole of a query but decoding and encoding: it
opens and verifies the index, searches, and reads the ten moments; once with the
files not in memory ("cold"), once in memory, once with ties in a mixed order.
"update" opens the index, compares its videos with those in the folder, appends
10,000 rows and compacts the table. Seconds are by the clock and of the CPU;
"process" is from the start of Python to its end; memory is the largest resident
set. With --checkpoint and --video, search.py query is timed too.
"""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.search import flip_bits
from utils.argtypes import number
from utils.config import Parser
from utils.terminal import progress

PIECE = 2**20  # rows per append
PER_VIDEO = 100
CLASSES = 100
BITS = 64
METADATA = {
    "bits": BITS,
    "checkpoint_sha256": "",
    "preprocessing": {},
    "window": 3.0,
    "stride": 1.5,
    "embeddings": False,
    "neighbours": None,
    "checkpoint": "",
    "videos": "/videos",
}
CENTRES = np.random.default_rng(0).integers(0, 256, (CLASSES, BITS // 8), np.uint8)


def draw_codes(first, classes):
    """Packed codes (N, B) of moments of these classes (N,), number `first` and following."""
    codes = CENTRES[classes]
    flip_bits(codes, 0.02, np.random.default_rng(first))
    return codes


def number_moments(first, count):
    """(videos, windows, classes) of moments number `first` and following, in the order of paths."""
    videos, windows = np.divmod(np.arange(first, first + count), PER_VIDEO)
    order = np.argsort(videos % CLASSES, kind="stable")
    return videos[order], windows[order], videos[order] % CLASSES


def make_rows(first, count, metadata):
    """An Arrow table of moments number `first` and following, in the order of paths."""
    import pyarrow as pa

    from retrieval.index import FORMAT, table_schema

    videos, windows, classes = number_moments(first, count)
    names = [f"class{v % CLASSES:02}/v{v:08}.avi" for v in range(videos.min(), videos.max() + 1)]
    codes = draw_codes(first, classes)
    columns = {
        "path": pa.array(names).take(pa.array(videos - videos.min())),
        "start": 1.5 * windows,
        "end": 1.5 * windows + 3,
        "class": pa.array([f"class{c:02}" for c in range(CLASSES)]).take(pa.array(classes)),
        "size": 1000 + videos,
        "mtime_ns": 10**18 + 7 * 10**9 * videos,
        "code": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(BITS // 8), count, [None, pa.py_buffer(codes.tobytes())]
        ),
    }
    return pa.table(columns, schema=table_schema({"format": FORMAT, **metadata}))


def make_index(folder, count, metadata=METADATA):
    """An index of `count` moments, if it is not there yet."""
    import lance

    from retrieval.index import TABLE
    from retrieval.index_update import open_for_update, seal

    if not (folder / TABLE).exists():
        open_for_update(folder, metadata)
        for first in progress(range(0, count, PIECE), "making the index", unit="piece"):
            rows = make_rows(first, min(PIECE, count - first), metadata)
            lance.write_dataset(rows, str(folder / TABLE), mode="append")
        seal(folder)
    return {"MB on disk": sum(os.path.getsize(path) for path in index_files(folder)) / 1e6}


def index_files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def forget_files(folder):
    """Ask the kernel to drop the files of the index from memory."""
    for path in index_files(folder):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ==== the steps ====


@contextlib.contextmanager
def timed(seconds, name):
    """Add the seconds of the block to the dict `seconds`, by the clock and of the CPU."""
    started, cpu = time.perf_counter(), time.process_time()
    yield
    seconds[name] = time.perf_counter() - started
    seconds[f"{name} CPU"] = time.process_time() - cpu


def time_faiss(folder, count, metadata):
    """Seconds of Faiss's own search, with the codes in memory."""
    import faiss

    index = faiss.IndexBinaryFlat(BITS)
    for first in range(0, count, PIECE):
        _, _, classes = number_moments(first, min(PIECE, count - first))
        index.add(draw_codes(first, classes))
    index.use_heap = False
    index.search(CENTRES[:1], 10)
    seconds = {}
    with timed(seconds, "search"):
        index.search(CENTRES[:1], 10)
    return seconds


def time_query(folder, count, metadata, mix_ties=False):
    """Seconds to open an index and to search it once."""
    seconds = {}
    with timed(seconds, "import"):
        from retrieval.answers import Options, answer_query
        from retrieval.index import Index
    with timed(seconds, "open"):
        index = Index(folder)
    parts = [(0.0, 3.0, np.where(np.unpackbits(CENTRES[0]), 0.5, -0.5))]
    with tempfile.NamedTemporaryFile() as query:  # of the size of one indexed video
        query.write(bytes(1001))
        query.flush()
        with timed(seconds, "search"):
            found = answer_query([index], query.name, parts, Options(mix_ties=mix_ties))
    return {**seconds, "ties": found["ties"][0]["windows"]}


def time_query_cold(folder, count, metadata):
    forget_files(folder)
    return time_query(folder, count, metadata)


def time_query_mixed(folder, count, metadata):
    return time_query(folder, count, metadata, mix_ties=True)


def time_update(folder, count, metadata):
    """Seconds to open an index for an update, to plan it, and to append 10,000 rows."""
    from retrieval.index_update import append_table, clean, compact, open_for_update, plan_update

    seconds = {}
    with timed(seconds, "open"):
        table = open_for_update(folder, metadata)
    with timed(seconds, "plan"):
        plan_update(folder, ["new.avi"], table)
    rows = make_rows(10 * count, 10_000, metadata)
    with timed(seconds, "append"):
        append_table(folder, rows)
    with timed(seconds, "compact"):
        compact(folder)
        clean(folder, is_alone=True)
    return seconds


def measure(step, folder, count, metadata, connection):
    """Run a step in this process and send its seconds, CPU seconds and memory in MB."""
    seconds = step(folder, count, metadata)
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    memory = int(status["VmHWM"].split()[0]) / 1000  # ru_maxrss counts the parent, too
    connection.send({**seconds, "all CPU": time.process_time(), "MB": memory})


def run_step(step, folder, count, metadata):
    """Run a step in a process of its own; returns its figures."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    started = time.perf_counter()
    process = context.Process(target=measure, args=(step, folder, count, metadata, theirs))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return {**found, "process": time.perf_counter() - started}


def time_program(folder, args, *flags):
    """Seconds, CPU seconds and memory in MB of search.py query."""
    command = [sys.executable, "search.py", "query", "--index", str(folder), "--video", args.video]
    command += ["--checkpoint", args.checkpoint, "--workers", "1", *flags]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("search.py query failed")
    cpu = usage.ru_utime + usage.ru_stime
    process_seconds = time.perf_counter() - started
    return {"process": process_seconds, "all CPU": cpu, "MB": usage.ru_maxrss / 1000}


def main():
    parser = Parser(__doc__)
    parser.add("--codes", type=number(int, least=1000), default=10_000_000, help="moments")
    parser.add("--folder", type=Path, required=True, metavar="DIR", help="where the index is made")
    parser.add("--checkpoint", metavar="FILE", help="of 64 bits; also time search.py query")
    parser.add("--video", metavar="FILE", help="the query of it")
    args = parser.parse_args()
    metadata = METADATA
    if args.checkpoint:
        import torch

        from search import load_encoder

        encoder = load_encoder(args.checkpoint, torch.device("cpu"), amp=False)
        metadata = {**METADATA, **encoder.metadata}
    folder = args.folder / f"{args.codes}{'-program' if args.checkpoint else ''}"

    def show(name, found):
        found = {key: round(value, 3) for key, value in found.items()}
        print(json.dumps({"step": name, "codes": args.codes, **found}), flush=True)

    for step in (make_index, time_faiss, time_query_cold, time_query, time_query_mixed):
        show(step.__name__, run_step(step, folder, args.codes, metadata))
    if args.checkpoint:
        show("search.py query", time_program(folder, args))
        show("search.py query --json", time_program(folder, args, "--json"))
    show(time_update.__name__, run_step(time_update, folder, args.codes, metadata))


if __name__ == "__main__":
    main()
