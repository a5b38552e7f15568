"""All figures that need a GPU, in at most nine minutes.

    make benchmark-gpu
    python -m benchmarks.gpu --output runs/benchmark-gpu    # the same
    python -m benchmarks.gpu --tiny                         # also on a CPU

Writes gpu.json, again after each measurement, and gpu.md, the table that it
also prints. A measurement that fails is recorded with its reason and the others
continue; one that no longer fits into --minutes is skipped. Exits with status 1
if a measurement failed. Needs neither PyAV nor Faiss nor a network.
"""

import argparse
import contextlib
import gc
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.gpu_measurements import MEASUREMENTS
from reports.environment import describe_environment
from utils.argtypes import number
from utils.config import Parser
from utils.device import mixed_precision
from utils.files import write_text

FULL = {
    # training steps: clips per batch, frames per clip, pixels per side, factor on channels
    "batch": 128,
    "clip_frames": 16,
    "size": 112,
    "width": 1.0,
    "runs": 10,
    # loss and evaluation
    "loss_batch": 4096,
    "bits": 64,
    "database": 1_000_000,
    "queries": 10_000,
    # rehearsal: a drawn data set
    "classes": 101,
    "videos": 1332,
    "groups": 25,
    "test_groups": 7,
    "val_groups": 2,
    "frames": 32,
    "frame_size": (128, 171),
    "classes_per_batch": 32,
    "clips_per_class": 4,
    # comparison of precisions: epochs of training before it, 0 to use the rehearsal's checkpoint
    "more_epochs": 60,
}
TINY = {
    "batch": 4,
    "clip_frames": 16,
    "size": 16,
    "width": 0.0625,
    "runs": 1,
    "loss_batch": 64,
    "bits": 16,
    "database": 1000,
    "queries": 50,
    "classes": 2,
    "videos": 12,
    "groups": 3,
    "test_groups": 1,
    "val_groups": 1,
    "frames": 16,
    "frame_size": (20, 24),
    "classes_per_batch": 2,
    "clips_per_class": 2,
    "more_epochs": 0,
}
NOT_MEASURED = "not measured"
USABLE = 0.96  # fraction of --minutes for measurements; the rest is for imports and for cleaning up


class OutOfTimeError(Exception):
    """A measurement took too long."""


@contextlib.contextmanager
def time_limit(seconds):
    """Raise OutOfTimeError in the body after `seconds`."""

    def stop(*_):
        raise OutOfTimeError(f"stopped after {seconds:.1f} s")

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def run_measurement(measure, settings, seconds):
    """The record of one measurement: {"state", "figures" or "reason", "seconds"}."""
    started = time.perf_counter()
    try:
        with time_limit(seconds):
            record = {"state": "done", "figures": measure(settings)}
    except Exception as error:  # whatever it is, the other measurements continue
        lines = str(error).strip().splitlines() or [""]
        record = {"state": "failed", "reason": f"{type(error).__name__}: {lines[0]}"}
    gc.collect()
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()
    return {**record, "seconds": time.perf_counter() - started}


def run_measurements(settings, deadline, records, save):
    """Run all MEASUREMENTS in order and store their records in the dict `records`.

    deadline: by time.monotonic(). save: called after every change of `records`. A measurement may
    take twice its estimate, or a minute if that is more, but not longer than the time left.
    """
    for name, (measure, estimate) in MEASUREMENTS.items():
        left = deadline - time.monotonic()
        if left < estimate:
            reason = f"{max(left, 0):.0f} s were left and it may take {estimate} s"
            records[name] = {"state": "skipped", "reason": reason, "seconds": 0.0}
        else:
            records[name] = {"state": "started"}
            save()
            limit = min(left, max(60, 2 * estimate))
            records[name] = run_measurement(measure, settings, limit)
            settings.figures[name] = records[name].get("figures", {})
        save()


def describe_gpu(device):
    """Versions and memory of a GPU: a dict, empty on a CPU."""
    if device.type != "cuda":
        return {}
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "device_memory_mib": torch.cuda.get_device_properties(device).total_memory / 2**20,
    }


def format_value(value):
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return NOT_MEASURED if value is None else str(value)


def format_table(report):
    """The report as Markdown: a line about the machine and one table."""
    environment = report["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    lines = [
        f"{environment['device']}, Python {environment['python']}, {packages}, "
        f"{environment['started'][:10]}: `{report['command']}`, {report['seconds']:.0f} s",
        "",
        "| measurement | figure | value |",
        "|---|---|---|",
    ]
    for name, record in report["measurements"].items():
        figures = record.get("figures", {NOT_MEASURED: record.get("reason", record["state"])})
        for figure, value in figures.items():
            figure, value = figure.replace("_", " "), format_value(value).replace("|", "/")
            lines.append(f"| {name} | {figure} | {value} |")
        lines.append(f"| {name} | seconds in total | {record.get('seconds', 0):.1f} |")
    return "\n".join(lines) + "\n"


def parse_flags():
    parser = Parser(__doc__)
    folder = Path("runs/benchmark-gpu")
    parser.add("--output", type=Path, default=folder, help="folder of gpu.json and gpu.md")
    parser.add("--minutes", type=number(float, above=0), default=9, help="time for everything")
    parser.add("--tiny", action="store_true", help="tiny sizes, which a CPU measures in seconds")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU; --tiny runs on a CPU")
    return args


def main():
    """Run all measurements. Returns the exit status."""
    started = time.monotonic()
    args = parse_flags()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    if args.tiny:
        torch.set_num_threads(1)  # several threads would mostly wait for each other
    sizes = TINY if args.tiny else FULL
    report = {
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "minutes": args.minutes,
        "seconds": 0.0,
        "measurements": {},
        "environment": {**describe_environment(device, 1), **describe_gpu(device)},
        "sizes": sizes,
    }

    def save():
        report["seconds"] = time.monotonic() - started
        write_text(args.output / "gpu.json", json.dumps(report, indent=2) + "\n")
        write_text(args.output / "gpu.md", format_table(report))

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        precision = mixed_precision(device, True)
        settings = argparse.Namespace(
            **sizes, device=device, precision=precision, folder=Path(folder), figures={}
        )
        deadline = started + 60 * USABLE * args.minutes
        run_measurements(settings, deadline, report["measurements"], save)
    print(format_table(report))
    print(f"also in {args.output / 'gpu.json'} and {args.output / 'gpu.md'}")
    return int(any(record["state"] == "failed" for record in report["measurements"].values()))


if __name__ == "__main__":
    sys.exit(main())
