"""Time and memory of `retrieval.metrics.evaluate`, beside the usual evaluation.

    python -m benchmarks.evaluate --codes FILE.npz   # all on these codes
    python -m benchmarks.evaluate                    # all on random codes
    python -m benchmarks.evaluate --scale            # up to 1,000,000 items

The usual evaluation, as published with CSQ, DeepHash and their successors: for
each query, NumPy products with the codes and with the one-hot labels of the
database, one argsort, AP over the relevant items found in the top R. It returns
one number, for one arbitrary order of ties. "lean" is the same with labels
compared as integers. Ours returns every metric of `evaluate`; "single" is ours
without counting each item for two queries at once (retrieval/hamming.py).

Each evaluation is measured in a process of its own. Seconds are the median of
--runs after one warm-up (a single run at the largest scales); memory is the
peak above that of the interpreter with torch loaded.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from utils.argtypes import number
from utils.config import Parser

SCALES = ((10_000, 1_000), (100_000, 1_000), (100_000, 10_000), (1_000_000, 10_000))
ARGSORT_QUERIES = 200  # with --scale, argsort evaluations are extrapolated from these queries
ROW = "{:<30}{:>11}{:>9}{:>6}{:>12}{:>10}{:>13}{:>17}"


def parse_flags():
    parser = Parser(__doc__)
    count = number(int, least=1)
    parser.add("--codes", metavar="FILE", help="an .npz file as for test.py --codes")
    parser.add("--scale", action="store_true", help="several sizes, up to 1e6 items, 1e4 queries")
    parser.add("--top-r", type=count, default=100, help="rank of the cut")
    parser.add("--runs", type=count, default=7, help="timed runs of each evaluation")
    parser.group("random codes")
    parser.add("--database", type=count, default=10_000, help="number of items")
    parser.add("--queries", type=count, default=2_000, help="number of queries")
    parser.add("--bits", type=count, default=64, help="length of the codes")
    parser.add("--classes", type=count, default=100, help="number of classes")
    parser.add("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = parse_flags()
    if args.worker:
        print(json.dumps(measure(args)))
        return
    threads = f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, numpy {np.__version__}, {threads}, R = {args.top_r}")
    columns = ("evaluation", "database", "queries", "bits", "seconds", "ratio", "peak MiB")
    print(ROW.format(*columns, "mAP@R found"))
    for database, queries in SCALES if args.scale else ((args.database, args.queries),):
        args.database, args.queries = database, queries
        compare(args)


def compare(args):
    """Measure each evaluation in its own process and print a row for each."""
    ours = None
    for worker, (label, _) in WORKERS.items():
        if args.scale and worker in ("lean", "single"):
            continue
        result = run_worker(worker, args)
        ours = ours or result
        row = (
            label + (" (estimate)" if result["estimated"] else ""),
            result["database"],
            result["queries"],
            result["bits"],
            f"{result['seconds']:.3f}",
            f"{result['seconds'] / ours['seconds']:.1f}",
            f"{result['mib']:.0f}",
            f"{result['value']:.6f}",
        )
        print(ROW.format(*row), flush=True)


def run_worker(worker, args):
    """`measure` of one evaluation in a new process."""
    command = [sys.executable, "-m", "benchmarks.evaluate", "--worker", worker]
    for name in ("database", "queries", "bits", "classes", "top_r", "runs"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    command += ["--codes", args.codes] if args.codes else []
    command += ["--scale"] if args.scale else []
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output)


def measure(args):
    """Run the evaluation `args.worker` in this process: a dict of its size, time and memory."""
    torch.ones(2, 2) @ torch.ones(2, 2)
    before = peak_mib()
    codes = read_codes(args.codes) if args.codes else planted_codes(args)
    queries = len(codes[0])
    is_ours = args.worker in ("ours", "single")
    estimated = args.scale and not is_ours
    if estimated:
        codes[:2] = codes[0][:ARGSORT_QUERIES], codes[1][:ARGSORT_QUERIES]
    _, run = WORKERS[args.worker]
    arguments = codes if is_ours else usual_arrays(*codes)
    is_large = len(codes[2]) * len(codes[0]) > 1e8
    seconds = []
    for _ in range(1 if is_large else args.runs + 1):
        start = time.perf_counter()
        value = run(*arguments, args.top_r)
        seconds.append(time.perf_counter() - start)
    return {
        "database": len(codes[2]),
        "queries": queries,
        "bits": codes[0].shape[1],
        "seconds": statistics.median(seconds[0 if is_large else 1 :]) * queries / len(codes[0]),
        "mib": peak_mib() - before,
        "value": value,
        "estimated": estimated,
    }


def peak_mib():
    """Peak resident memory of this process in MiB; Linux counts it in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def read_codes(path):
    """Codes and labels of an .npz file in the order of `evaluate`'s arguments."""
    from retrieval.codes import load_codes

    codes = load_codes(path)
    keys = ("query_codes", "query_labels", "database_codes", "database_labels")
    return [codes[key] for key in keys]


def planted_codes(args, flipped=0.25):
    """Random codes around class centres, in the order of `evaluate`'s arguments.

    args: queries, database, bits and classes. flipped: fraction of an item's bits that differ from
    the centre of its class.
    """
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(args.classes, args.bits, generator=generator) < 0.5
    result = []
    for count in (args.queries, args.database):
        labels = torch.randint(args.classes, (count,), generator=generator)
        codes = torch.empty(count, args.bits, dtype=torch.bool)
        for rows, classes in zip(codes.split(65536), labels.split(65536), strict=True):
            flips = torch.rand(rows.shape, generator=generator) < flipped
            torch.logical_xor(centres[classes], flips, out=rows)
        result += [codes, labels]
    return result


def usual_arrays(query_codes, query_labels, database_codes, database_labels):
    """The arguments of the usual evaluation: ±1 float32 codes and integer labels, in NumPy."""
    signs = [(codes.float() * 2 - 1).numpy() for codes in (query_codes, database_codes)]
    return signs[0], query_labels.numpy(), signs[1], database_labels.numpy()


def ours(query_codes, query_labels, database_codes, database_labels, top_r):
    from retrieval.metrics import evaluate

    metrics = evaluate(query_codes, query_labels, database_codes, database_labels, top_r=top_r)
    return metrics[f"map_at_{top_r}_found"]


def ours_single(*arguments):
    from retrieval import hamming

    hamming.queries_per_count = lambda bins, items: 1
    return ours(*arguments)


def argsort_one_hot(query_codes, query_labels, database_codes, database_labels, top_r):
    classes = np.eye(1 + max(query_labels.max(), database_labels.max()), dtype=np.float32)
    query_labels, database_labels = classes[query_labels], classes[database_labels]
    total = 0.0
    for code, label in zip(query_codes, query_labels, strict=True):
        relevant = np.dot(label, database_labels.T) > 0
        total += average_precision(code, relevant, database_codes, top_r)
    return total / len(query_codes)


def argsort_lean(query_codes, query_labels, database_codes, database_labels, top_r):
    total = 0.0
    for code, label in zip(query_codes, query_labels, strict=True):
        total += average_precision(code, database_labels == label, database_codes, top_r)
    return total / len(query_codes)


def average_precision(code, relevant, database_codes, top_r):
    distances = 0.5 * (len(code) - np.dot(code, database_codes.T))
    order = np.argsort(distances)
    ranks = np.flatnonzero(relevant[order][:top_r]) + 1.0
    return np.mean(np.arange(1, len(ranks) + 1) / ranks) if len(ranks) else 0.0


WORKERS = {  # name: (label, function of the codes and labels)
    "ours": ("ours, every metric", ours),
    "single": ("ours, single queries", ours_single),
    "argsort": ("argsort, one metric", argsort_one_hot),
    "lean": ("argsort, lean", argsort_lean),
}

if __name__ == "__main__":
    main()
