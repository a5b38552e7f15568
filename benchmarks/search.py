"""Milliseconds for the ten nearest of N binary codes: Faiss as search.py uses it, and NumPy.

    python -m benchmarks.search                    # 1,000,000 codes of 64 bits
    python -m benchmarks.search --codes 10000000

Brute force in NumPy is an exclusive or, a count of bits (numpy.bitwise_count) and a partition. The
codes are drawn around 1,000 centres, as trained codes lie around classes; both give the same
distances. The inverted file (IndexBinaryIVF) is approximate: its recall of the ten is printed.
Medians of --runs, the two kinds taking turns.
"""

import argparse
import math
import statistics
import time

import faiss
import numpy as np


def draw_codes(count, bits, rng):
    """(count, bits / 8) uint8 codes of 1,000 centres with a tenth of the bits flipped."""
    centres = rng.integers(0, 256, (1000, bits // 8), np.uint8)
    codes = centres[rng.integers(1000, size=count)]
    for start in range(0, count, 100_000):
        part = codes[start : start + 100_000]
        part ^= np.packbits(rng.random((len(part), bits)) < 0.1, axis=1)
    return codes


def brute_force(queries, codes, top):
    """(Q, top) distances, each query beside all codes."""
    words = codes.view(np.uint64)
    found = []
    for query in queries.view(np.uint64):
        distances = np.bitwise_count(words ^ query).sum(axis=1, dtype=np.uint16)
        nearest = np.argpartition(distances, top)[:top]
        found.append(np.sort(distances[nearest]))
    return np.stack(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--codes", type=int, default=1_000_000, help="database size (default 1000000)")
    add("--bits", type=int, default=64, help="a multiple of 64 (default 64)")
    add("--top", type=int, default=10, help="results (default 10)")
    add("--runs", type=int, default=9, help="timed runs (default 9)")
    add("--ivf", action="store_true", help="also an inverted file of 4 sqrt(N) lists")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    drawn = draw_codes(args.codes + 100, args.bits, rng)
    codes, queries = drawn[100:], drawn[:100]
    flat = faiss.IndexBinaryFlat(args.bits)
    flat.add(codes)
    flat.use_heap = False
    ways = {
        "NumPy": lambda q: brute_force(q, codes, args.top),
        "IndexBinaryFlat": lambda q: flat.search(q, args.top)[0],
    }
    if args.ivf:
        started = time.perf_counter()
        lists = 4 * math.isqrt(args.codes)
        quantizer = faiss.IndexBinaryFlat(args.bits)
        ivf = faiss.IndexBinaryIVF(quantizer, args.bits, lists)
        ivf.train(codes[: 40 * lists])
        ivf.add(codes)
        ivf.nprobe = 16
        ways["IndexBinaryIVF"] = lambda q: ivf.search(q, args.top)[0]
        print(f"IndexBinaryIVF: {lists} lists made in {time.perf_counter() - started:.1f} s")
    print(f"Faiss {faiss.__version__}, NumPy {np.__version__}, {faiss.omp_get_max_threads()} "
          f"threads, top {args.top} of {args.codes} codes of {args.bits} bits")  # fmt: skip
    print(f"{'way':<16} {'queries':>8} {'ms':>10} {'NumPy / it':>11} {'recall':>8}")
    for size in (1, 100):
        times, found = {name: [] for name in ways}, {}
        for _ in range(args.runs):
            for name, way in ways.items():
                started = time.perf_counter()
                found[name] = way(queries[:size])
                times[name].append(1000 * (time.perf_counter() - started))
        medians = {name: statistics.median(values) for name, values in times.items()}
        for name, median in medians.items():
            within = found[name] <= found["NumPy"][:, -1:]  # any item of the right distance counts
            recall = (within.sum(axis=1) / args.top).mean()
            ratio = medians["NumPy"] / median
            print(f"{name:<16} {size:>8} {median:>10.2f} {ratio:>11.1f} {recall:>8.3f}")


if __name__ == "__main__":
    main()
