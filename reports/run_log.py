"""The log of a run: one line of JSON per epoch, and TensorBoard files."""

import contextlib
import json
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from utils import schema
from utils.files import is_utf8, write_text
from utils.terminal import print_main

RECORD = schema.record({"epoch": schema.whole()})


class RunLog:
    """metrics.jsonl and the TensorBoard event files of a run folder.

    first_epoch: where a resumed run starts; records of later epochs, from before it was
    interrupted, are removed, so that every epoch has one record. TensorBoard cannot write into
    a folder whose name is not UTF-8; such a run has metrics.jsonl only.
    """

    def __init__(self, folder, first_epoch=0):
        self.path = Path(folder) / "metrics.jsonl"
        kept = [record for record in self.read() if record["epoch"] < first_epoch]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        if is_utf8(folder):
            self.board = SummaryWriter(str(folder), purge_step=first_epoch)
        else:
            self.board = None
            print_main(f"warning: {folder}: not UTF-8; no TensorBoard files, only {self.path.name}")

    def read(self):
        """The records so far: a list of dicts, without damaged lines, such as half a last line."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line)
                RECORD(record, "line")
                records.append(record)
        return records

    def write(self, record):
        """Append `record`, a flat dict of numbers with the key `epoch`."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.board is None:
            return
        for name, value in record.items():
            if name != "epoch":
                self.board.add_scalar(name, value, record["epoch"])
        self.board.flush()

    def add_figure(self, name, figure, epoch):
        """Show a matplotlib figure in TensorBoard."""
        if self.board is not None:
            self.board.add_figure(name, figure, epoch)

    def close(self):
        if self.board is not None:
            self.board.close()


def log_environment(path, device, processes):
    """Append `describe_environment` to `path` as a line of JSON."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(describe_environment(device, processes)) + "\n")


def describe_environment(device, processes):
    """Time, command, package versions, commit, device and number of processes: a dict."""
    folder = Path(__file__).resolve().parent
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # no git here
        commit = None
    packages = ("torch", "torchvision", "numpy", "opencv-python-headless", "opencv-python")
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "processes": processes,
        "python": platform.python_version(),
        "packages": {name: installed[name] for name in packages if name in installed},
        "commit": commit,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
    }
