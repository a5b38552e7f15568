"""TrainState steps a second for each backbone, and the share of the device's peak they use.

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
import gc
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from datasets.cache import CachedDataset
from datasets.transforms import augment
from losses import batch_all_triplet_loss
from models import BACKBONES, KINETICS, build_model
from utils.device import mixed_precision


def seconds_of(function, device, runs, warm_ups=2):
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
    """Operations a second of a matrix product of 8192² on GPUs, 2048² on CPUs."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=precision or torch.float32)
    return 2 * side**3 / seconds_of(lambda: a @ a, device, runs)


def forward_flops(backbone, args):
    """Operations of the forward pass of one clip; args: has width, clip_frames and size."""
    with torch.device("meta"):
        model = BACKBONES[backbone](width=args.width).eval()
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


def open_batches(args, device):
    """{"synthetic", "cache"}: functions that give a batch of clips and labels on `device`.

    args: has batch, clip_frames (T) and size; frames are as much larger than `size` as usual.
    """
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
        cache = CachedDataset(data, path, "device", device)
    fixed = cache.__getitems__(list(range(args.batch)))

    def from_cache():
        return cache.__getitems__([(int(i), int(i)) for i in rng.permutation(args.batch)])

    return {"synthetic": lambda: fixed, "cache": from_cache}


def measure(backbone, args, device, precision, next_batch):
    """{"clips_per_second", "peak_mib"} of training steps; the peak is None but on a GPU.

    The peak is of tensors, from the third step on, above what was there before the network.
    """
    before = memory_in_use(device)
    step = make_step(backbone, args, device, precision, next_batch)
    step(), step()  # cuDNN tries algorithms, some of which take more memory than is used later
    memory_in_use(device)
    speed = args.batch / seconds_of(step, device, args.runs, warm_ups=0)
    return {"clips_per_second": speed, "peak_mib": peak_memory(device, before)}


def memory_in_use(device):
    """Bytes of tensors on a GPU, from which `peak_memory` counts anew; None elsewhere."""
    if device.type != "cuda":
        return None
    gc.collect()  # what is left of the model before
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_memory(device, before):
    """MiB of tensors above `before` bytes at the most since `memory_in_use`; None without a GPU."""
    return None if before is None else (torch.cuda.max_memory_allocated(device) - before) / 2**20


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

    batches = open_batches(args, device)
    for backbone in args.backbones:
        first = None
        for source, next_batch in batches.items():
            measured = measure(backbone, args, device, precision, next_batch)
            speed = measured["clips_per_second"]
            first = first or speed
            share = speed * 3 * forward_flops(backbone, args) / peak
            print(f"{backbone:<10} {source:<10} {speed:>9.1f} {share:>8.1%} {speed / first:>13.1%}")


if __name__ == "__main__":
    main()
