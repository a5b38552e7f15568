"""Training steps a second for each backbone, and the share of the device's peak they use.

    python -m benchmarks.step                               # a GPU, or a small setting on a CPU
    python -m benchmarks.step --size 112 --clip-frames 16 --batch 64 --width 1

A step is the whole of train.py's: augmentation of uint8 clips on the device, forward, batch-all
loss, backward, clipping and the optimiser. "synthetic" repeats one batch that is on the device;
"cache" gathers each batch from clips held there. Peak is measured in the same run as the speed of
a large matrix product in the same precision. Three times the forward multiply-accumulates count
as a step's; a multiply-accumulate is two operations.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from datasets import CachedClips, augment
from losses import batch_all_triplet_loss
from models import BACKBONES, KINETICS, build_model
from utils.optimisation import mixed_precision


def seconds_of(function, device, runs):
    """Median seconds of `function` after two warm-ups."""
    times = []
    for _ in range(runs + 2):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def peak_flops(device, precision, runs):
    """Operations a second of a matrix product of 8192² on GPUs, 2048² on CPUs."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=precision or torch.float32)
    return 2 * side**3 / seconds_of(lambda: a @ a, device, runs)


def forward_flops(backbone, args):
    with torch.device("meta"):
        model = BACKBONES[backbone](width=args.width)
        clip = torch.empty(1, 3, args.clip_frames, args.size, args.size)
    with FlopCounterMode(display=False) as counter:
        model(clip)
    return counter.get_total_flops()


def make_step(backbone, args, device, precision, next_batch):
    """A function that takes one training step on what `next_batch` gives."""
    model = build_model(backbone, 64, width=args.width).to(device)
    model = model.to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, 0.9, fused=device.type == "cuda")
    preprocessing = {"size": args.size, "crop": 0.875, **KINETICS}
    generator = torch.Generator(device)

    def step():
        clips, labels = next_batch()
        clips = augment(clips.to(device), preprocessing, crop_scale=(0.7, 1.0), flip=True,
                        colour_jitter=0.2, generator=generator)  # fmt: skip
        half = torch.autocast(device.type, precision) if precision else contextlib.nullcontext()
        with half:
            codes = model(clips)
        loss, _ = batch_all_triplet_loss(codes, labels.to(device), 8.0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def main():
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--batch", type=int, default=128 if on_gpu else 8, help="clips")
    parser.add_argument("--clip-frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=112 if on_gpu else 56, help="pixels")
    parser.add_argument("--width", type=float, default=1.0 if on_gpu else 0.5)
    parser.add_argument("--runs", type=int, default=20 if on_gpu else 3)
    args = parser.parse_args()
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.backends.cudnn.benchmark = True
    precision = mixed_precision(device, True)
    peak = peak_flops(device, precision, args.runs)
    name = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, {precision or torch.float32}, "
          f"peak {peak / 1e12:.2f} TFLOP/s; {args.batch} clips of {args.clip_frames}x{args.size}²,"
          f" width {args.width}")  # fmt: skip
    print(f"{'backbone':<10} {'data':<10} {'clips/s':>9} {'of peak':>8} {'of synthetic':>13}")

    height, width = round(args.size * 128 / 112), round(args.size * 171 / 112)
    shape = (2 * args.batch, 2 * args.clip_frames, height, width, 3)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clips.npy"
        np.save(path, rng.integers(0, 256, shape, np.uint8))
        labels = [i % args.batch // 4 for i in range(len(np.load(path, mmap_mode="r")))]
        data = argparse.Namespace(
            names=[str(i) for i in range(len(labels))], labels=labels, clip_frames=args.clip_frames,
            frame_size=shape[2:], extraction=None,
        )  # fmt: skip
        cache = CachedClips(data, path, "device", device)
    fixed = cache.__getitems__(list(range(args.batch)))

    def from_cache():
        return cache.__getitems__([(int(i), int(i)) for i in rng.permutation(args.batch)])

    for backbone in args.backbones:
        first = None
        for source, next_batch in (("synthetic", lambda: fixed), ("cache", from_cache)):
            step = make_step(backbone, args, device, precision, next_batch)
            speed = args.batch / seconds_of(step, device, args.runs)
            first = first or speed
            share = speed * 3 * forward_flops(backbone, args) / peak
            print(f"{backbone:<10} {source:<10} {speed:>9.1f} {share:>8.1%} {speed / first:>13.1%}")


if __name__ == "__main__":
    main()
