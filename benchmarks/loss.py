"""Time and memory of the batch-all loss beside two other implementations.

    python -m benchmarks.loss                  # forward and backward
    pip install pytorch-metric-learning        # otherwise its rows say why not

The masked version is the usual one: all D[a, p] - D[a, n] + margin in a tensor
of B x B x B. pytorch-metric-learning's is TripletMarginLoss on squared
distances with all triplets and its mean over non-zero losses, which is our
`distance="squared", average="active"`. Seconds are medians after one warm-up;
memory is the peak above that before the first call. Each measurement has a
process of its own.
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
from utils.argtypes import number
from utils.config import Parser

MARGIN = 1.0
ROW = "{:>6} {:<16} {:>10} {:>10} {:>8} {:>12} {:>12}"


def ours(codes, labels):
    return batch_all_triplet_loss(codes, labels, MARGIN, distance="squared")[0]


def masked(codes, labels):
    """The definition, with a tensor of all (B, B, B) triplets."""
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
    """Codes (B, K) around class centres, with a gradient, and labels (B,)."""
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


def run_worker(version, batch, args):
    """`measure` in a new process: (result, None), or (None, reason) if it fails."""
    command = [sys.executable, "-m", "benchmarks.loss", "--worker", version, str(batch)]
    for name in ("clips", "bits", "runs"):
        command += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["killed, out of memory"])[-1]
    return json.loads(done.stdout), None


def parse_flags():
    parser = Parser(__doc__)
    count = number(int, least=1)
    parser.add(
        "--batches",
        type=count,
        nargs="+",
        default=[128, 256, 512, 1024, 4096],
        metavar="B",
        help="batch sizes",
    )
    parser.add("--clips", type=count, default=4, help="clips per class")
    parser.add("--bits", type=count, default=64, help="length of the codes")
    parser.add("--runs", type=count, default=5, help="timed runs")
    parser.add(
        "--largest-masked",
        type=count,
        default=512,
        help="largest B of the masked version, which needs 2 GB at 512 and 18 GB at 1024",
    )
    parser.add(
        "--largest-metric-learning",
        type=count,
        default=1024,
        help="largest B of pytorch-metric-learning",
    )
    parser.add("--worker", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = parse_flags()
    if args.worker:
        version, batch = args.worker[0], int(args.worker[1])
        print(json.dumps(measure(version, batch, args.clips, args.bits, args.runs)))
        return
    threads = f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {threads}, {args.clips} clips per class, {args.bits} bits")
    print(ROW.format("B", "version", "seconds", "x ours", "MiB", "loss", "|gradient|"))
    largest = {"masked": args.largest_masked, "metric-learning": args.largest_metric_learning}
    for batch in args.batches:
        ours = None
        for version in VERSIONS:
            if batch > largest.get(version, batch):
                continue
            result, reason = run_worker(version, batch, args)
            if reason:
                print(f"{batch:>6} {version:<16} not measured: {reason}")
                continue
            ours = ours or result
            row = (
                f"{result['seconds']:.4f}",
                f"{result['seconds'] / ours['seconds']:.1f}",
                f"{result['mib']:.0f}",
                f"{result['loss']:.6f}",
                f"{result['gradient']:.6f}",
            )
            print(ROW.format(batch, version, *row))


if __name__ == "__main__":
    main()
