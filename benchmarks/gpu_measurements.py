"""The measurements of `benchmarks.gpu`: functions of the settings that return a dict of figures.

The settings are a Namespace of the sizes in `benchmarks.gpu`, and of device, precision (dtype of
autocast, or None), folder (for data and runs) and figures (of the measurements before).
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
REHEARSAL_EPOCHS = 2


# ==== speed ====


def measure_peak(settings):
    """Speed of a large matrix product, to which `fraction of peak` refers."""
    speed = step.peak_flops(settings.device, settings.precision, settings.runs)
    return {"precision": str(settings.precision or torch.float32), "flops_per_second": speed}


def measure_steps(settings, backbone):
    """Training steps on one batch that is on the device, and on batches of the cache there."""
    peak = settings.figures.get("peak", {}).get("flops_per_second")
    flops = 3 * step.forward_flops(backbone, settings)
    figures = {}
    for source, next_batch in step.open_batches(settings, settings.device).items():
        measured = step.measure(backbone, settings, settings.device, settings.precision, next_batch)
        speed = measured["clips_per_second"]
        figures[f"{source}_clips_per_second"] = speed
        figures[f"{source}_fraction_of_peak"] = peak and speed * flops / peak
        figures[f"{source}_peak_mib"] = measured["peak_mib"]
    ratio = figures["cache_clips_per_second"] / figures["one_batch_clips_per_second"]
    return {**figures, "cache_over_one_batch": ratio}


def measure_loss(settings):
    """Forward and backward pass of the batch-all loss, four clips per class."""
    device, batch = settings.device, settings.loss_batch
    codes, labels = loss.draw_batch(batch, 4, settings.bits, device)
    before = step.memory_in_use(device)

    def run():
        codes.grad = None
        loss.ours(codes, labels).backward()

    seconds = step.median_seconds(run, device, settings.runs)
    peak = step.peak_memory(device, before)
    return {"batch": batch, "milliseconds": 1000 * seconds, "peak_mib": peak}


def measure_evaluation(settings):
    """Every metric of `evaluate` on the device, for random codes around class centres."""
    sizes = {"queries": settings.queries, "database": settings.database, "bits": settings.bits}
    codes = planted_codes(argparse.Namespace(**sizes, classes=100))
    codes = [array.to(settings.device) for array in codes]
    evaluate(codes[0][:100], codes[1][:100], *codes[2:])  # warm-up
    before = step.memory_in_use(settings.device)
    started = time.perf_counter()
    metrics = evaluate(*codes)  # returns numbers on the CPU, so the device has finished
    seconds = time.perf_counter() - started
    peak = step.peak_memory(settings.device, before)
    return {**sizes, "seconds": seconds, "peak_mib": peak, "map": metrics["map"]}


# ==== rehearsal ====


def run_script(script, flags):
    """Run a script or module of the repository; RuntimeError with its last line if it fails.

    script: list of str. flags: {name: value or list of values}.
    """
    command = [sys.executable, *script]
    for name, value in flags.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        command += [f"--{name.replace('_', '-')}", *map(str, values)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{script[-1]} ended with status {done.returncode}: {last}")


def draw_dataset(settings):
    """Draw the videos of the rehearsal as frame folders."""
    flags = {"output": settings.folder, "size": settings.frame_size}
    for name in ("classes", "videos", "groups", "test_groups", "val_groups", "frames"):
        flags[name] = getattr(settings, name)
    started = time.perf_counter()
    run_script(["-m", "benchmarks.rehearsal"], flags)
    return {"videos": settings.videos, "seconds": time.perf_counter() - started}


def open_list(settings, split):
    """The FrameDataset of a list of the rehearsal: "train", "val" or "test"."""
    splits = settings.folder / "splits"
    names, labels = read_split(splits / f"{split}.txt", len(read_classes(splits)))
    return FrameDataset(names, labels, settings.folder / "frames", settings.clip_frames)


def fill_cache(settings):
    """Build the caches of the training and of the validation list, which train.py then finds."""
    datasets = [open_list(settings, split) for split in ("train", "val")]
    started = time.perf_counter()
    for dataset in datasets:
        build_cache(dataset, settings.frames, settings.folder / "cache", os.cpu_count())
    return {"clips": sum(map(len, datasets)), "seconds": time.perf_counter() - started}


def train(settings, epochs):
    """Run train.py from the cache on the device: (records of its epochs, seconds in total)."""
    run = settings.folder / f"run-{epochs}"
    flags = {
        "config": "configs/ucf101.yaml",
        "frames": settings.folder / "frames",
        "splits": settings.folder / "splits",
        "output": run,
        "backbone": "resnet18",
        "pretrained": "none",
        "backbone_lr_factor": 1,
        "epochs": epochs,
        "eval_every": epochs,
        "warmup_epochs": min(5, epochs // 4),
        "cache": "device",
        "cache_frames": settings.frames,
        "cache_folder": settings.folder / "cache",
        "device": settings.device.type,
    }
    for name in ("width", "clip_frames", "size", "bits", "classes_per_batch", "clips_per_class"):
        flags[name] = getattr(settings, name)
    started = time.perf_counter()
    run_script(["train.py"], flags)
    seconds = time.perf_counter() - started
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return records, seconds


def rehearse(settings):
    """A short run of train.py; `seconds` includes its start and validation."""
    records, seconds = train(settings, REHEARSAL_EPOCHS)
    shape = settings.classes_per_batch, settings.clips_per_class
    batches = len(PKBatchSampler(open_list(settings, "train").labels, *shape))
    clips = batches * shape[0] * shape[1]
    figures = {"clips_per_epoch": clips}
    for epoch, record in enumerate(records, start=1):
        speed = record["train/clips_per_second"]
        figures[f"epoch_{epoch}_clips_per_second"] = speed
        figures[f"epoch_{epoch}_seconds"] = clips / speed
    return {**figures, "val_map": records[-1]["val/map"], "seconds": seconds}


# ==== precision ====


def encode_list(settings, split, encoder):
    """(binary codes, labels) of a list of the rehearsal."""
    data = open_list(settings, split)
    loader = ClipLoader(data, min(8, os.cpu_count()), batch_size=settings.batch)
    return binarize(encode(encoder, loader)), torch.tensor(data.labels)


def compare_precisions(settings):
    """mAP of test codes searched in training codes, in float32 and in mixed precision."""
    epochs = settings.more_epochs or REHEARSAL_EPOCHS
    if settings.more_epochs:  # a model that has learnt something
        train(settings, epochs)
    checkpoint = load_checkpoint(settings.folder / f"run-{epochs}" / "best.pt")
    model = build_model(**checkpoint["network"])
    model.load_state_dict(checkpoint["model"])
    transform = partial(prepare, preprocessing=checkpoint["preprocessing"])
    codes, maps = [], []
    for amp in (False, True):
        encoder = build_encoder(model, transform, settings.device, amp)
        queries, database = (encode_list(settings, split, encoder) for split in ("test", "train"))
        maps.append(evaluate(*queries, *database)["map"])
        codes.append(torch.cat([queries[0], database[0]]))
    half = mixed_precision(settings.device, True) or torch.float32
    return {
        "epochs": epochs,
        "mixed_precision": str(half),
        "float32_map": maps[0],
        "mixed_precision_map": maps[1],
        "equal_bits": (codes[0] == codes[1]).double().mean().item(),
    }


# ==== measurements, the most important ones first: (function, seconds it may take on a GPU) ====

BACKBONES = ("resnet18", "r3d18", "c3d", "resnet34", "r3d34")
STEPS = {name: (partial(measure_steps, backbone=name), 30) for name in BACKBONES}
MEASUREMENTS = {
    "peak": (measure_peak, 5),
    "step resnet18": STEPS["resnet18"],
    "loss": (measure_loss, 5),
    "evaluation": (measure_evaluation, 30),
    "step r3d18": STEPS["r3d18"],
    "step c3d": STEPS["c3d"],
    "step resnet34": STEPS["resnet34"],
    "step r3d34": STEPS["r3d34"],
    "drawing": (draw_dataset, 40),
    "cache": (fill_cache, 15),
    "rehearsal": (rehearse, 60),
    "precision": (compare_precisions, 90),
}
