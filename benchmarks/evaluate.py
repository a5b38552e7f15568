"""Time and memory of `retrieval.metrics.evaluate`, beside the evaluation that the field uses.

    python -m benchmarks.evaluate --codes FILE.npz   # both on these codes, in one run
    python -m benchmarks.evaluate                    # both on random codes with planted classes
    python -m benchmarks.evaluate --scale            # growth to 1,000,000 items, 10,000 queries

The field's evaluation, as in the code published with CSQ, DeepHash and their successors: for each
query, NumPy products with the codes and with the one-hot labels of the database, one argsort, AP
over the relevant items found in the top R. It gives one number, for one unstated order of ties.
"lean" is the same with labels compared as integers. Ours gives every metric of `evaluate`.

Each is measured in a process of its own: seconds are the median of --runs after one warm-up (one
run without at the largest scales), memory is the peak above the interpreter with torch loaded.
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

SCALES = ((10_000, 1_000), (100_000, 1_000), (100_000, 10_000), (1_000_000, 10_000))
ARGSORT_QUERIES = 200  # at scale the argsort evaluation runs on these and is multiplied up
ROW = "{:<22}{:>11}{:>9}{:>6}{:>12}{:>10}{:>13}{:>17}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--codes", help="an .npz as `test.py --codes` takes it; default random")
    parser.add_argument("--scale", action="store_true", help="grow to 1e6 items and 1e4 queries")
    parser.add_argument("--database", type=int, default=10_000, help="random codes (default 10000)")
    parser.add_argument("--queries", type=int, default=2_000, help="random codes (default 2000)")
    parser.add_argument("--bits", type=int, default=64, help="random codes (default 64)")
    parser.add_argument("--classes", type=int, default=100, help="random codes (default 100)")
    parser.add_argument("--top-r", type=int, default=100, help="rank of the cut (default 100)")
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each (default 7)")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args)))
        return
    cores = f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, numpy {np.__version__}, {cores}, R = {args.top_r}")
    print(ROW.format("evaluation", "database", "queries", "bits", "seconds", "ratio", "peak MiB",
                     "mAP@R found"))  # fmt: skip
    for database, queries in SCALES if args.scale else ((args.database, args.queries),):
        args.database, args.queries = database, queries
        compare(args)


def compare(args):
    """Measure each evaluation in its own process and print a row for each."""
    results = {}
    for worker in WORKERS:
        if args.scale and worker == "lean":
            continue
        command = [sys.executable, "-m", "benchmarks.evaluate", "--worker", worker]
        for name in ("database", "queries", "bits", "classes", "top_r", "runs"):
            command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
        command += ["--codes", args.codes] if args.codes else []
        command += ["--scale"] if args.scale else []
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        result = results[worker] = json.loads(output)
        ratio = result["seconds"] / results["ours"]["seconds"]
        print(ROW.format(
            LABELS[worker] + (" (estimate)" if result["estimated"] else ""), result["database"],
            result["queries"], result["bits"], f"{result['seconds']:.3f}", f"{ratio:.1f}",
            f"{result['mib']:.0f}", f"{result['value']:.6f}"), flush=True)  # fmt: skip


def measure(args):
    """Run the evaluation `args.worker` in this process -> dict of its size, time and memory."""
    torch.ones(2, 2) @ torch.ones(2, 2)
    before = peak_mib()
    codes = read_codes(args.codes) if args.codes else planted_codes(args)
    queries = len(codes[0])
    estimated = args.scale and args.worker != "ours"
    if estimated:
        codes[:2] = codes[0][:ARGSORT_QUERIES], codes[1][:ARGSORT_QUERIES]
    run = WORKERS[args.worker]
    arguments = codes if args.worker == "ours" else field_arrays(*codes)
    large = len(codes[2]) * len(codes[0]) > 1e8
    seconds = []
    for _ in range(1 if large else args.runs + 1):
        start = time.perf_counter()
        value = run(*arguments, args.top_r)
        seconds.append(time.perf_counter() - start)
    return {
        "database": len(codes[2]),
        "queries": queries,
        "bits": codes[0].shape[1],
        "seconds": statistics.median(seconds[0 if large else 1 :]) * queries / len(codes[0]),
        "mib": peak_mib() - before,
        "value": value,
        "estimated": estimated,
    }


def peak_mib():
    """Peak resident memory of this process in MiB; Linux counts it in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def read_codes(path):
    """Codes and labels of an .npz file in the order that `evaluate` takes them."""
    from retrieval.codes import load_codes

    codes = load_codes(path)
    keys = ("query_codes", "query_labels", "database_codes", "database_labels")
    return [codes[key] for key in keys]


def planted_codes(args, flipped=0.25):
    """Random codes: each item is the centre of its class with a share of its bits flipped."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(args.classes, args.bits, generator=generator) < 0.5
    result = []
    for count in (args.queries, args.database):
        labels = torch.randint(args.classes, (count,), generator=generator)
        codes = torch.empty(count, args.bits, dtype=torch.bool)
        for rows, part in zip(codes.split(65536), labels.split(65536), strict=True):
            flips = torch.rand(rows.shape, generator=generator) < flipped
            torch.logical_xor(centres[part], flips, out=rows)
        result += [codes, labels]
    return result


def field_arrays(query_codes, query_labels, database_codes, database_labels):
    """What the field's evaluation reads: ±1 float32 codes, and labels as integers."""
    signs = [(codes.float() * 2 - 1).numpy() for codes in (query_codes, database_codes)]
    return signs[0], query_labels.numpy(), signs[1], database_labels.numpy()


def ours(query_codes, query_labels, database_codes, database_labels, top_r):
    from retrieval.metrics import evaluate

    metrics = evaluate(query_codes, query_labels, database_codes, database_labels, top_r=top_r)
    return metrics["map_at_r_found"]


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


WORKERS = {"ours": ours, "argsort": argsort_one_hot, "lean": argsort_lean}
LABELS = {"ours": "ours, every metric", "argsort": "argsort, one metric", "lean": "argsort, lean"}

if __name__ == "__main__":
    main()
