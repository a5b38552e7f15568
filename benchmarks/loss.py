"""Time and memory of the batch-all loss beside a B³ mask and pytorch-metric-learning.

    python -m benchmarks.loss                  # K = 4 clips a class, 64 bits, forward and backward
    pip install pytorch-metric-learning        # for its column; without it the column says so

The masked version is the usual one: all distances D[a, p] - D[a, n] + margin in one B³ tensor.
pytorch-metric-learning's is TripletMarginLoss on squared distances with all triplets and its mean
over non-zero losses, which is our `distance="squared", average="active"`. Seconds are medians
after one warm-up; memory is the peak of a process of its own above that before the first call.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

from losses import batch_all_triplet_loss

MARGIN = 1.0


def ours(codes, labels):
    return batch_all_triplet_loss(codes, labels, MARGIN, distance="squared")[0]


def masked(codes, labels):
    """The definition with a tensor of all B³ triplets."""
    norms = codes.square().sum(1)
    distances = (norms[:, None] + norms[None] - 2 * codes @ codes.T).clamp(min=0)
    same = labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool)
    hinges = distances[:, :, None] - distances[:, None, :] + MARGIN  # (B, B, B)
    hinges = (hinges * (positive[:, :, None] & ~same[:, None, :])).clamp(min=0)
    return hinges.sum() / (hinges > 0).sum()


def metric_learning(codes, labels):
    """pytorch-metric-learning, every triplet."""
    from pytorch_metric_learning import distances, losses, reducers

    squared = distances.LpDistance(normalize_embeddings=False, p=2, power=2)
    reducer = reducers.AvgNonZeroReducer()
    return losses.TripletMarginLoss(MARGIN, distance=squared, reducer=reducer)(codes, labels)


VERSIONS = {"ours": ours, "masked": masked, "metric-learning": metric_learning}


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def draw_batch(batch, clips, bits, device="cpu"):
    """(codes, labels) around a centre for each class: (B, K) with a gradient and (B,)."""
    torch.manual_seed(0)
    labels = torch.arange(batch) // clips
    codes = (torch.randn(batch // clips, bits)[labels] + torch.randn(batch, bits)).tanh()
    return codes.to(device).requires_grad_(), labels.to(device)


def measure(version, batch, clips, bits, runs):
    """{"seconds", "mib", "loss", "gradient"} of one version in this process."""
    codes, labels = draw_batch(batch, clips, bits)
    VERSIONS[version](codes[: 4 * clips], labels[: 4 * clips]).backward()
    before, times = peak(), []
    for _ in range(runs + 1):
        codes.grad = None
        started = time.perf_counter()
        loss = VERSIONS[version](codes, labels)
        loss.backward()
        times.append(time.perf_counter() - started)
    return {
        "seconds": statistics.median(times[1:]),
        "mib": peak() - before,
        "loss": loss.item(),
        "gradient": codes.grad.double().norm().item(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 256, 512, 1024, 4096])
    parser.add_argument("--clips", type=int, default=4, help="K, clips a class (default 4)")
    parser.add_argument("--bits", type=int, default=64, help="length of the codes (default 64)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs (default 5)")
    parser.add_argument("--most-masked", type=int, default=512, help="largest B of the mask, which "
                        "takes 2 GB at 512 and 18 GB at 1024")  # fmt: skip
    parser.add_argument("--most-listed", type=int, default=1024,
                        help="largest B of pytorch-metric-learning")  # fmt: skip
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        version, batch = args.worker[0], int(args.worker[1])
        print(json.dumps(measure(version, batch, args.clips, args.bits, args.runs)))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, K {args.clips}, "
          f"{args.bits} bits")  # fmt: skip
    row = "{:>6} {:<16} {:>10} {:>10} {:>8} {:>12} {:>12}"
    print(row.format("B", "version", "seconds", "x ours", "MiB", "loss", "|gradient|"))
    for batch in args.batches:
        first = None
        for version in VERSIONS:
            most = {"masked": args.most_masked, "metric-learning": args.most_listed}
            if batch > most.get(version, batch):
                continue
            command = [sys.executable, "-m", "benchmarks.loss", "--worker", version, str(batch),
                       "--clips", str(args.clips), "--bits", str(args.bits),
                       "--runs", str(args.runs)]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["killed, out of memory"])[-1]
                print(f"{batch:>6} {version:<16} not measured: {reason}")
                continue
            result = json.loads(done.stdout)
            first = first or result["seconds"]
            print(row.format(batch, version, f"{result['seconds']:.4f}",
                             f"{result['seconds'] / first:.1f}", f"{result['mib']:.0f}",
                             f"{result['loss']:.6f}", f"{result['gradient']:.6f}"))  # fmt: skip


if __name__ == "__main__":
    main()
