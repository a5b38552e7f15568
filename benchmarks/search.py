"""Milliseconds to find the ten nearest of N binary codes: Faiss and NumPy.

    python -m benchmarks.search                    # 1,000,000 codes of 64 bits
    python -m benchmarks.search --codes 10000000

IndexBinaryFlat is what search.py uses. Brute force in NumPy is an exclusive or,
a count of bits (numpy.bitwise_count) and a partition; both find the same
distances. The inverted file (IndexBinaryIVF) is approximate: its recall of the
ten is printed. The codes are drawn around 1,000 centres, as trained codes lie
around classes. Medians of --runs; the ways alternate. For whole indexes see
benchmarks/index.py.
"""

import math
import statistics
import time

import faiss
import numpy as np

from utils.argtypes import number
from utils.config import Parser

ROW = "{:<16} {:>8} {:>10} {:>11} {:>8}"


def draw_codes(count, bits, rng):
    """(count, bits / 8) uint8: codes around 1,000 centres, with a tenth of the bits flipped."""
    centres = rng.integers(0, 256, (1000, bits // 8), np.uint8)
    codes = centres[rng.integers(1000, size=count)]
    flip_bits(codes, 0.1, rng)
    return codes


def flip_bits(codes, share, rng):
    """Flip this share of the bits of packed codes (N, B), in place and in pieces."""
    for start in range(0, len(codes), 100_000):
        chunk = codes[start : start + 100_000]
        chunk ^= np.packbits(rng.random((len(chunk), 8 * codes.shape[1])) < share, axis=1)


def brute_force(queries, codes, top):
    """(Q, top) smallest distances of each query, sorted."""
    words = codes.view(np.uint64)
    found = []
    for query in queries.view(np.uint64):
        distances = np.bitwise_count(words ^ query).sum(axis=1, dtype=np.uint16)
        nearest = np.argpartition(distances, top)[:top]
        found.append(np.sort(distances[nearest]))
    return np.stack(found)


def build_inverted_file(codes, bits):
    """A Faiss index of 4 sqrt(N) lists, of which a query reads 16."""
    started = time.perf_counter()
    lists = 4 * math.isqrt(len(codes))
    index = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(bits), bits, lists)
    index.train(codes[: 40 * lists])
    index.add(codes)
    index.nprobe = 16
    print(f"IndexBinaryIVF: {lists} lists made in {time.perf_counter() - started:.1f} s")
    return index


def time_ways(ways, queries, runs):
    """({name: median milliseconds}, {name: (Q, top) distances}) of each way for all queries."""
    times, found = {name: [] for name in ways}, {}
    for _ in range(runs):
        for name, way in ways.items():
            started = time.perf_counter()
            found[name] = way(queries)
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}, found


def main():
    parser = Parser(__doc__)
    parser.add("--codes", type=number(int, least=1000), default=1_000_000, help="database size")
    parser.add("--bits", type=number(int, least=64), default=64, help="a multiple of 64")
    parser.add("--top", type=number(int, least=1), default=10, help="results per query")
    parser.add("--runs", type=number(int, least=1), default=9, help="timed runs")
    parser.add("--ivf", action="store_true", help="also an inverted file")
    args = parser.parse_args()
    drawn = draw_codes(args.codes + 100, args.bits, np.random.default_rng(0))
    codes, queries = drawn[100:], drawn[:100]
    flat = faiss.IndexBinaryFlat(args.bits)
    flat.add(codes)
    flat.use_heap = False
    ways = {
        "NumPy": lambda q: brute_force(q, codes, args.top),
        "IndexBinaryFlat": lambda q: flat.search(q, args.top)[0],
    }
    if args.ivf:
        ivf = build_inverted_file(codes, args.bits)
        ways["IndexBinaryIVF"] = lambda q: ivf.search(q, args.top)[0]
    versions = f"Faiss {faiss.__version__}, NumPy {np.__version__}"
    threads = f"{faiss.omp_get_max_threads()} threads"
    print(f"{versions}, {threads}, top {args.top} of {args.codes} codes of {args.bits} bits")
    print(ROW.format("way", "queries", "ms", "NumPy / it", "recall"))
    for count in (1, 100):
        medians, found = time_ways(ways, queries[:count], args.runs)
        for name, median in medians.items():
            is_near = found[name] <= found["NumPy"][:, -1:]  # any item of the right distance counts
            recall = (is_near.sum(axis=1) / args.top).mean()
            ratio = medians["NumPy"] / median
            print(ROW.format(name, count, f"{median:.2f}", f"{ratio:.1f}", f"{recall:.3f}"))


if __name__ == "__main__":
    main()
