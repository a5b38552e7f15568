"""What `benchmarks.gpu` measures: each part is a function of the settings that returns figures.

The settings are a Namespace with the sizes of FULL or TINY, and device, precision (of autocast or
None), folder (for data and runs) and figures (those of the parts before).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks import loss, step
from benchmarks.evaluate import planted_codes
from datasets.cache import build_cache
from datasets.frames import FrameDataset
from datasets.loaders import ClipLoader
from datasets.samplers import PKBatchSampler
from datasets.splits import read_classes, read_split
from datasets.transforms import prepare
from models import build_model
from retrieval.codes import binarize
from retrieval.encode import build_encoder, encode
from retrieval.metrics import evaluate
from utils.checkpoint import load_checkpoint
from utils.device import mixed_precision

ROOT = Path(__file__).resolve().parent.parent
FULL = argparse.Namespace(
    **{"batch": 128, "clip_frames": 16, "size": 112, "width": 1.0, "runs": 10},
    **{"loss_batch": 4096, "bits": 64, "database": 1_000_000, "queries": 10_000},
    **{"classes": 101, "videos": 1332, "groups": 25, "test_groups": 7, "val_groups": 2},
    **{"frames": 32, "frame_size": (128, 171), "classes_per_batch": 32, "clips_per_class": 4},
    **{"more_epochs": 60},
)
TINY = argparse.Namespace(
    **{"batch": 4, "clip_frames": 16, "size": 16, "width": 0.0625, "runs": 1},
    **{"loss_batch": 64, "bits": 16, "database": 1000, "queries": 50},
    **{"classes": 2, "videos": 12, "groups": 3, "test_groups": 1, "val_groups": 1},
    **{"frames": 16, "frame_size": (20, 24), "classes_per_batch": 2, "clips_per_class": 2},
    **{"more_epochs": 0},
)


# ==== speed ====


def measure_peak(settings):
    """The speed of a large matrix product, which `share of peak` is over."""
    speed = step.peak_flops(settings.device, settings.precision, settings.runs)
    return {"precision": str(settings.precision or torch.float32), "flops_per_second": speed}


def measure_steps(settings, backbone):
    """TrainState steps from one batch on the device, and from the cache there."""
    peak = settings.figures.get("peak", {}).get("flops_per_second")
    flops = 3 * step.forward_flops(backbone, settings)
    figures = {}
    for source, next_batch in step.open_batches(settings, settings.device).items():
        measured = step.measure(backbone, settings, settings.device, settings.precision, next_batch)
        speed = measured["clips_per_second"]
        figures[f"{source}_clips_per_second"] = speed
        figures[f"{source}_share_of_peak"] = peak and speed * flops / peak
        figures[f"{source}_peak_mib"] = measured["peak_mib"]
    ratio = figures["cache_clips_per_second"] / figures["synthetic_clips_per_second"]
    return {**figures, "cache_over_synthetic": ratio}


def measure_loss(settings):
    """Forward and backward of the exact batch-all loss, four clips of each class."""
    device, batch = settings.device, settings.loss_batch
    codes, labels = loss.draw_batch(batch, 4, settings.bits, device)
    before = step.memory_in_use(device)

    def run():
        codes.grad = None
        loss.ours(codes, labels).backward()

    seconds = step.seconds_of(run, device, settings.runs)
    peak = step.peak_memory(device, before)
    return {"batch": batch, "milliseconds": 1000 * seconds, "peak_mib": peak}


def measure_evaluation(settings):
    """Every metric of `evaluate` on random codes with planted classes, on the device."""
    sizes = {"queries": settings.queries, "database": settings.database, "bits": settings.bits}
    codes = planted_codes(argparse.Namespace(**sizes, classes=100))
    codes = [array.to(settings.device) for array in codes]
    evaluate(codes[0][:100], codes[1][:100], *codes[2:])  # a warm-up
    before = step.memory_in_use(settings.device)
    started = time.perf_counter()
    metrics = evaluate(*codes)  # ends with numbers on the CPU, so that the device has finished
    seconds = time.perf_counter() - started
    peak = step.peak_memory(settings.device, before)
    return {**sizes, "seconds": seconds, "peak_mib": peak, "map": metrics["map"]}


# ==== rehearsal ====


def run_script(*arguments):
    """Run a script or module of the repository; RuntimeError with its last line where it fails."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{arguments[0]} ended with status {done.returncode}: {last}")


def draw_set(settings):
    """Draw the videos of the rehearsal as frame folders."""
    flags = ["--output", settings.folder, "--size", *settings.frame_size]
    for name in ("classes", "videos", "groups", "test_groups", "val_groups", "frames"):
        flags += [f"--{name.replace('_', '-')}", getattr(settings, name)]
    started = time.perf_counter()
    run_script("-m", "benchmarks.rehearsal", *flags)
    return {"videos": settings.videos, "seconds": time.perf_counter() - started}


def open_list(settings, kind):
    """FrameDataset of a list of the rehearsal: "train", "val" or "test"."""
    splits = settings.folder / "splits"
    names, labels = read_split(splits / f"{kind}.txt", len(read_classes(splits)))
    return FrameDataset(names, labels, settings.folder / "frames", settings.clip_frames)


def fill_cache(settings):
    """Build the caches of the training and of the validation list, which train.py then finds."""
    sets = [open_list(settings, kind) for kind in ("train", "val")]
    started = time.perf_counter()
    for data in sets:
        build_cache(data, settings.frames, settings.folder / "cache", os.cpu_count())
    return {"clips": sum(map(len, sets)), "seconds": time.perf_counter() - started}


def train(settings, epochs):
    """Run train.py from the cache on the device. Returns (its records, seconds of it all)."""
    run = settings.folder / f"run-{epochs}"
    started = time.perf_counter()
    run_script(
        *["train.py", "--config", "configs/ucf101.yaml", "--backbone", "resnet18"],
        *["--pretrained", "none", "--backbone-lr-factor", 1, "--width", settings.width],
        *["--clip-frames", settings.clip_frames, "--size", settings.size],
        *["--bits", settings.bits, "--classes-per-batch", settings.classes_per_batch],
        *["--clips-per-class", settings.clips_per_class, "--epochs", epochs],
        *["--eval-every", epochs, "--warmup-epochs", min(5, epochs // 4)],
        *["--frames", settings.folder / "frames", "--splits", settings.folder / "splits"],
        *["--output", run, "--cache", "device", "--cache-frames", settings.frames],
        *["--cache-folder", settings.folder / "cache", "--device", settings.device.type],
    )
    seconds = time.perf_counter() - started
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return records, seconds


def rehearse(settings):
    """Two epochs of train.py; `seconds` are also of its start and of validation."""
    records, seconds = train(settings, 2)
    shape = settings.classes_per_batch, settings.clips_per_class
    clips = len(PKBatchSampler(open_list(settings, "train").labels, *shape)) * shape[0] * shape[1]
    figures = {"clips_per_epoch": clips}
    for number, record in enumerate(records, start=1):
        speed = record["train/clips_per_second"]
        figures[f"epoch_{number}_clips_per_second"] = speed
        figures[f"epoch_{number}_seconds"] = clips / speed
    return {**figures, "val_map": records[-1]["val/map"], "seconds": seconds}


# ==== precision ====


def encode_list(settings, kind, encoder):
    """(binary codes, labels) of a list of the rehearsal."""
    data = open_list(settings, kind)
    loader = ClipLoader(data, min(8, os.cpu_count()), batch_size=settings.batch)
    return binarize(encode(encoder, loader)), torch.tensor(data.labels)


def compare_precisions(settings):
    """Test codes searched in training codes, encoded in float32 and in mixed precision."""
    if settings.more_epochs:  # so that the checkpoint is worth comparing
        train(settings, settings.more_epochs)
    path = settings.folder / f"run-{settings.more_epochs or 2}" / "best.pt"
    checkpoint = load_checkpoint(path)
    model = build_model(**checkpoint["network"])
    model.load_state_dict(checkpoint["model"])
    transform = partial(prepare, preprocessing=checkpoint["preprocessing"])
    found, maps = [], []
    for amp in (False, True):
        encoder = build_encoder(model, transform, settings.device, amp)
        queries, database = (encode_list(settings, kind, encoder) for kind in ("test", "train"))
        maps.append(evaluate(*queries, *database)["map"])
        found.append(torch.cat([queries[0], database[0]]))
    half = mixed_precision(settings.device, True) or torch.float32
    return {
        "epochs": settings.more_epochs or 2,
        "mixed_precision": str(half),
        "float32_map": maps[0],
        "mixed_precision_map": maps[1],
        "equal_bits": (found[0] == found[1]).double().mean().item(),
    }


# ==== the parts in order of value: (function, seconds it may take on a GPU) ====

BACKBONES = ("resnet18", "r3d18", "c3d", "resnet34", "r3d34")
PARTS = {
    "peak": (measure_peak, 5),
    "step resnet18": (partial(measure_steps, backbone="resnet18"), 30),
    "loss": (measure_loss, 5),
    "evaluation": (measure_evaluation, 30),
    **{f"step {name}": (partial(measure_steps, backbone=name), 30) for name in BACKBONES[1:]},
    "drawing": (draw_set, 40),
    "cache": (fill_cache, 15),
    "rehearsal": (rehearse, 60),
    "precision": (compare_precisions, 90),
}
