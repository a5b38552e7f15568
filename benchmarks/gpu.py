"""Every figure that a machine with one GPU can give, in at most nine minutes.

    make benchmark-gpu
    python -m benchmarks.gpu --output runs/benchmark-gpu    # the same, in the current environment
    python -m benchmarks.gpu --tiny                         # a rehearsal of it, also on a CPU

Writes gpu.json, anew after every part, and gpu.md, the table that it also prints. A part that fails
is recorded with its reason and the others go on; one that no longer fits into --minutes is skipped.
Status 1 if a part failed. Needs neither PyAV nor Faiss nor a network.
"""

import argparse
import contextlib
import copy
import gc
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.gpu_parts import FULL, PARTS, TINY
from utils.device import mixed_precision
from utils.files import write_text
from utils.run_log import describe_environment

UNMEASURED = "not measured"
USABLE = 0.96  # of the minutes; the rest is for imports and for removing the data in the end


class OutOfTimeError(Exception):
    """A part took too long."""


@contextlib.contextmanager
def time_limit(seconds):
    """Raise OutOfTimeError in the body when `seconds` are over."""

    def stop(*_):
        raise OutOfTimeError(f"it was stopped after {seconds:.1f} s")

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def run_part(measure, settings, seconds):
    """The record of one part: its state, "done" or "failed", and its figures or the reason."""
    started = time.perf_counter()
    try:
        with time_limit(seconds):
            record = {"state": "done", "figures": measure(settings)}
    except Exception as error:  # whatever it is, the other parts shall be measured
        lines = str(error).strip().splitlines() or [""]
        record = {"state": "failed", "reason": f"{type(error).__name__}: {lines[0]}"}
    gc.collect()
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()
    return {**record, "seconds": time.perf_counter() - started}


def run_parts(settings, deadline, report, save):
    """Run the parts one after the other and put their records into report["parts"].

    deadline: by time.monotonic(). save: called after every change of the report. A part gets what
    is left of the time, but at most twice its estimate, or a minute: others come after it.
    """
    for name, (measure, estimate) in PARTS.items():
        left = deadline - time.monotonic()
        if left < estimate:
            reason = f"{max(left, 0):.0f} s were left and it may take {estimate} s"
            report["parts"][name] = {"state": "skipped", "reason": reason, "seconds": 0.0}
        else:
            report["parts"][name] = {"state": "started"}
            save()
            report["parts"][name] = record = run_part(
                measure, settings, min(left, max(60, 2 * estimate))
            )
            settings.figures[name] = record.get("figures", {})
        save()


def describe_device(device):
    """What to know of the device beside its name: a dict, empty without a GPU."""
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
    return UNMEASURED if value is None else str(value)


def format_table(report):
    """The report as Markdown: a heading line and one table."""
    about = report["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    lines = [
        f"{about['device']}, Python {about['python']}, {packages}, {about['started'][:10]}: "
        f"`{report['command']}`, {report['seconds']:.0f} s",
        "",
        "| part | figure | value |",
        "|---|---|---|",
    ]
    for name, part in report["parts"].items():
        figures = part.get("figures", {UNMEASURED: part.get("reason", part["state"])})
        for figure, value in figures.items():
            figure, value = figure.replace("_", " "), format_value(value).replace("|", "/")
            lines.append(f"| {name} | {figure} | {value} |")
        lines.append(f"| {name} | seconds of this part | {part.get('seconds', 0):.1f} |")
    return "\n".join(lines) + "\n"


def main():
    """Run all parts. Returns the exit status."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/benchmark-gpu"),
        help="folder of gpu.json and gpu.md (default runs/benchmark-gpu)")  # fmt: skip
    add("--minutes", type=float, default=9, help="for everything (default 9)")
    add("--tiny", action="store_true", help="small sizes, which a CPU does in seconds")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here; --tiny rehearses on a CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    if args.tiny:
        torch.set_num_threads(1)  # small steps of several threads mostly wait for each other
    settings = copy.copy(TINY if args.tiny else FULL)
    settings.device, settings.precision = device, mixed_precision(device, True)
    command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
    report = {"command": command, "minutes": args.minutes, "seconds": 0.0, "parts": {}}
    report["environment"] = {**describe_environment(device, 1), **describe_device(device)}
    report["sizes"] = vars(TINY if args.tiny else FULL)

    def save():
        report["seconds"] = time.monotonic() - started
        write_text(args.output / "gpu.json", json.dumps(report, indent=2) + "\n")
        write_text(args.output / "gpu.md", format_table(report))

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        settings.folder, settings.figures = Path(folder), {}
        run_parts(settings, started + 60 * USABLE * args.minutes, report, save)
    print(format_table(report))
    print(f"also in {args.output / 'gpu.json'} and {args.output / 'gpu.md'}")
    return int(any(part["state"] == "failed" for part in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
