"""Training speed of each backbone, and its fraction of the device's peak.

    python -m benchmarks.step              # a GPU, or small sizes on a CPU
    python -m benchmarks.step --size 112 --clip-frames 16 --batch 64 --width 1

A step is that of train.py: augmentation of uint8 clips on the device, forward
pass, batch-all loss, backward pass, gradient clipping and optimiser. "one
batch" repeats a batch that is on the device; "cache" gathers each batch from
clips that are on the device. The peak is the speed of a large matrix product of
the same precision in the same run. A step counts as three forward passes, and a
multiply-accumulate as two operations.
"""

import argparse
import gc
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from datasets.cache import CachedDataset
from datasets.transforms import augment
from losses import batch_all_triplet_loss
from models import BACKBONES, KINETICS, build_model
from utils.argtypes import number
from utils.config import Parser
from utils.device import mixed_precision

ROW = "{:<10} {:>10} {:>8} {:>14} {:>16}"


def median_seconds(function, device, runs, warm_ups=2):
    """Median seconds of `function` after the warm-ups."""
    times = []
    for _ in range(runs + warm_ups):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[warm_ups:])


def peak_flops(device, precision, runs):
    """Operations per second of a matrix product of side 8192 on GPUs, 2048 on CPUs."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=precision or torch.float32)
    return 2 * side**3 / median_seconds(lambda: a @ a, device, runs)


def forward_flops(backbone, args):
    """Operations of the forward pass of one clip; args: width, clip_frames and size."""
    with torch.device("meta"):
        model = BACKBONES[backbone](width=args.width).eval()
        clip = torch.empty(1, 3, args.clip_frames, args.size, args.size)
    with FlopCounterMode(display=False) as counter:
        model(clip)
    return counter.get_total_flops()


def make_step(backbone, args, device, precision, next_batch):
    """A function that takes one training step on the batch that `next_batch` returns."""
    model = build_model(backbone, 64, width=args.width).to(device)
    model = model.to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, 0.9, fused=device.type == "cuda")
    transform = partial(
        augment,
        preprocessing={"size": args.size, "crop": 0.875, **KINETICS},
        crop_scale=(0.7, 1.0),
        flip=True,
        colour_jitter=0.2,
        generator=torch.Generator(device),
    )

    def step():
        clips, labels = next_batch()  # (B, T, H, W, 3) uint8, (B,)
        clips = transform(clips.to(device))  # (B, 3, T, H, W)
        with torch.autocast(device.type, precision, enabled=precision is not None):
            codes = model(clips)  # (B, K)
        loss, _ = batch_all_triplet_loss(codes, labels.to(device), 8.0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def open_batches(args, device):
    """{"one_batch", "cache"}: functions that return a batch of clips and labels on `device`.

    args: batch, clip_frames (T) and size; frames are larger than `size` in the usual proportion.
    """
    height, width = round(args.size * 128 / 112), round(args.size * 171 / 112)
    shape = (2 * args.batch, 2 * args.clip_frames, height, width, 3)
    rng = np.random.default_rng(0)
    labels = [i % args.batch // 4 for i in range(2 * args.batch)]
    data = argparse.Namespace(
        names=[str(i) for i in range(len(labels))],
        labels=labels,
        clip_frames=args.clip_frames,
        views=1,
        frame_size=shape[2:],
        extraction=None,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clips.npy"
        np.save(path, rng.integers(0, 256, shape, np.uint8))
        cache = CachedDataset(data, path, "device", device)
    batch = cache.__getitems__(list(range(args.batch)))

    def from_cache():
        return cache.__getitems__([(int(i), int(i)) for i in rng.permutation(args.batch)])

    return {"one_batch": lambda: batch, "cache": from_cache}


def measure(backbone, args, device, precision, next_batch):
    """{"clips_per_second", "peak_mib"} of training steps; peak_mib is None without a GPU.

    The peak counts tensors from the third step on, above the memory in use before.
    """
    before = memory_in_use(device)
    step = make_step(backbone, args, device, precision, next_batch)
    for _ in range(2):  # cuDNN tries algorithms, some of which need more memory than later steps
        step()
    memory_in_use(device)
    speed = args.batch / median_seconds(step, device, args.runs, warm_ups=0)
    return {"clips_per_second": speed, "peak_mib": peak_memory(device, before)}


def memory_in_use(device):
    """Bytes of tensors on a GPU, and restart of the peak for `peak_memory`; None without a GPU."""
    if device.type != "cuda":
        return None
    gc.collect()  # frees the previous model
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_memory(device, before):
    """Peak MiB of tensors above `before` bytes since `memory_in_use`; None without a GPU."""
    return None if before is None else (torch.cuda.max_memory_allocated(device) - before) / 2**20


def parse_flags():
    on_gpu = torch.cuda.is_available()
    parser = Parser(__doc__)
    parser.add(
        "--backbones",
        nargs="+",
        choices=BACKBONES,
        default=list(BACKBONES),
        metavar="NAME",
        help="backbones to measure",
    )
    count = number(int, least=1)
    parser.add("--batch", type=count, default=128 if on_gpu else 8, help="clips per batch")
    parser.add("--clip-frames", type=count, default=16, help="frames per clip")
    parser.add("--size", type=count, default=112 if on_gpu else 56, help="pixels per side")
    width = number(float, above=0)
    parser.add("--width", type=width, default=1.0 if on_gpu else 0.5, help="factor on channels")
    parser.add("--runs", type=count, default=20 if on_gpu else 3, help="timed steps")
    return parser.parse_args()


def main():
    args = parse_flags()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    precision = mixed_precision(device, True)
    peak = peak_flops(device, precision, args.runs)
    threads = f"CPU, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name() if device.type == "cuda" else threads
    print(
        f"{name}, torch {torch.__version__}, {precision or torch.float32}, "
        f"peak {peak / 1e12:.2f} TFLOP/s; {args.batch} clips of "
        f"{args.clip_frames}x{args.size}x{args.size}, width {args.width}"
    )
    print(ROW.format("backbone", "clips/s", "of peak", "cache clips/s", "cache/one batch"))
    batches = open_batches(args, device)
    for backbone in args.backbones:
        speeds = {
            source: measure(backbone, args, device, precision, next_batch)["clips_per_second"]
            for source, next_batch in batches.items()
        }
        speed, from_cache = speeds["one_batch"], speeds["cache"]
        of_peak = 3 * speed * forward_flops(backbone, args) / peak
        ratio = f"{from_cache / speed:.1%}"
        print(ROW.format(backbone, f"{speed:.1f}", f"{of_peak:.1%}", f"{from_cache:.1f}", ratio))


if __name__ == "__main__":
    main()
