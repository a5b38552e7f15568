"""What a run depends on besides its flags: commit, packages, machine."""

import json
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "opencv-python")


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
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "processes": processes,
        "python": platform.python_version(),
        "packages": {name: installed[name] for name in PACKAGES if name in installed},
        "commit": commit,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
    }
