"""Scripts run as a user runs them, in processes forked from one that has imported PyTorch."""

import contextlib
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path

import torch

from reports import examples

ROOT = Path(__file__).resolve().parent.parent
EXTRACT = ["--num-frames", 8, "--size", 20, 24, "--workers", 2]
CLIPS = ["--clip-frames", 4, "--size", 16, "--classes-per-batch", 2, "--clips-per-class", 3]
NETWORK = ["--width", 0.0625, "--bits", 12]
EPOCHS = ["--epochs", 3, "--eval-every", 3, "--warmup-epochs", 1, "--workers", 1]
TINY = [*CLIPS, *NETWORK, *EPOCHS]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]

# One thread per process: the threads of small networks mostly wait for each other.
torch.set_num_threads(1)
os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
# Importing PyTorch and the scripts takes three seconds, which hundreds of runs would each spend.
SERVER = multiprocessing.get_context("forkserver")
SCRIPTS = ["train", "test", "search", "make_splits"]
LIBRARIES = ["torch._dynamo", "torch.distributed.run", "matplotlib.pyplot", "pytest", "helpers"]
SERVER.set_forkserver_preload([*SCRIPTS, *LIBRARIES])
MOST_ROWS = examples.MOST_ROWS
STARTED = []  # the processes of the running test; conftest.py ends them with it


# ==== processes ====


class Process:
    """A call of `function(*arguments)` in a process group of its own, with its output in files."""

    def __init__(self, function, arguments, folder, environment=None):
        self.paths = folder / "stdout", folder / "stderr"
        folder.mkdir(parents=True, exist_ok=True)
        for path in self.paths:
            path.write_bytes(b"")
        arguments = (self.paths, environment or {}, function, *arguments)
        self.process = SERVER.Process(target=_call, args=arguments)
        self.process.start()
        self.pid = self.process.pid
        STARTED.append(self)

    def status(self, seconds=0):
        """The exit status, negative after a signal, or None while the process runs."""
        self.process.join(timeout=seconds)
        return self.process.exitcode

    def wait(self, seconds=300):
        """The exit status. Fails, and kills the group, if the process takes longer."""
        if self.status(seconds) is None:
            self.kill()
            raise AssertionError(f"no end after {seconds} s: {self.output()}")
        return self.status()

    def kill(self):
        """End the whole group, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.process.kill()  # in case it has not made its group yet
        self.process.join()

    def signal(self, number):
        """Send a signal to the whole process group, as terminals and schedulers do."""
        os.killpg(self.pid, number)

    @property
    def stdout(self):
        return self.paths[0].read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self):
        return self.paths[1].read_text(encoding="utf-8", errors="replace")

    def output(self):
        return self.stdout + self.stderr


def _call(paths, environment, function, *arguments):
    """The first steps of a new process: its group, streams and environment; then the call."""
    os.setsid()
    os.chdir(ROOT)
    os.environ |= environment
    multiprocessing.set_start_method("fork", force=True)  # Linux's default before Python 3.14
    for stream, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)
    function(*arguments)


def run_main(arguments, patch=None):
    """What `python ARGUMENTS` does, after `patch()`; pictures of queries are small.

    A training spends most of its time on the picture for TensorBoard.
    """
    examples.MOST_ROWS = 1
    if patch:
        patch()
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        sys.path.insert(0, str(ROOT))
        runpy.run_path(arguments[0], run_name="__main__")


def draw_large_pictures():
    """Patch: pictures of queries have as many rows as users see."""
    examples.MOST_ROWS = MOST_ROWS


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start_ranks(count, folder, function, *arguments, **environment):
    """`count` processes of one group, as torchrun starts them: list of Process, ordered by rank."""
    meeting_point = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment = {"WORLD_SIZE": str(count), **meeting_point, **environment}
    processes = []
    for rank in range(count):
        own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(Process(function, arguments, folder / f"rank{rank}", own))
    return processes


def children(pid):
    """Process ids of the children of a process."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


# ==== data and training ====


def extract_and_split(root, run_script):
    """Frames and lists of a data set that `make_dataset` wrote into `root`."""
    frames = "--frames", root / "frames"
    run_script("extract_frames.py", "--videos", root / "videos", *frames, *EXTRACT)
    lists = "--annotations", root / "annotations", "--output", root / "splits"
    run_script("make_splits.py", "--dataset", "ucf101", *lists, *frames)


# ==== checkpoints ====


def checkpoint_content(weights=None):
    """The least that a checkpoint contains; weights: dict of tensors."""
    return {
        "network": {"backbone": "r3d18", "bits": 12, "width": 0.0625, "shortcut": "B"},
        "model": weights or {"w": torch.arange(6.0)},
        "preprocessing": {
            **{"clip_frames": 4, "frame_size": [20, 24], "size": 16, "crop": 0.875},
            **{"mean": [0.4] * 3, "std": [0.2] * 3, "channels": "RGB", "range": 1.0},
        },
        "classes": ["a", "ü"],
        "settings": {"frames": "frames", "splits": "splits", "seed": 0},
    }


def train_command(root, run, *flags):
    """The small training that most tests run, on the data of the fixture `demo` in `root`."""
    paths = "--frames", root / "frames", "--splits", root / "splits", "--output", run
    return ["train.py", "--config", "configs/demo.yaml", *paths, *TINY, *flags]


def wait_for_output(text, process):
    """Wait until a process has printed a text."""
    while text not in process.output():
        assert process.status() is None, process.output()
        time.sleep(0.02)


def wait_for_step(run, process):
    """Wait until a training has begun, which its first checkpoint shows."""
    while not (run / "last.pt").exists():
        assert process.status() is None, process.output()
        time.sleep(0.02)


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def same_weights(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def read_log(run):
    """The records of the epochs: list of dict."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
