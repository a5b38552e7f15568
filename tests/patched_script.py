"""Run a script with patches: `python tests/patched_script.py NAME=VALUE SCRIPT ...`

precision=float16  use this dtype for mixed precision on any device
kill=N             kill the process after step N, before that step is saved
no_waiting=A:B     steps A to B (from 1) fail if they wait for the GPU
losses=FOLDER      each process writes the loss of every step to FOLDER/RANK.txt
"""

import os
import runpy
import signal
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def precision(value):
    from utils import device as device_module

    dtype = getattr(torch, value)
    device_module.mixed_precision = lambda device, wanted: dtype if wanted else None


def before_each_check(action):
    """Call `action` with the number of steps done, after each step of train.py."""
    from utils.train_state import CheckpointTimer

    check = CheckpointTimer.check

    def patched(self, step):
        action(step)
        return check(self, step)

    CheckpointTimer.check = patched


def kill(value):
    def act(step):
        if step == int(value):
            os.kill(os.getpid(), signal.SIGKILL)

    before_each_check(act)


def no_waiting(value):
    first, last = map(int, value.split(":"))

    def act(step):
        is_forbidden = first <= step + 1 <= last  # the next step
        torch.cuda.set_sync_debug_mode("error" if is_forbidden else "default")
        if step == last:
            print(f"steps {first} to {last} did not wait", flush=True)

    before_each_check(act)


def losses(value):
    from losses import MINING

    batch_all = MINING["batch-all"]

    def patched(*args, **options):
        loss, stats = batch_all(*args, **options)
        with open(f"{value}/{os.environ.get('RANK', 0)}.txt", "a", encoding="ascii") as file:
            file.write(f"{loss.item()!r}\n")
        return loss, stats

    MINING["batch-all"] = patched


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    patches = {f.__name__: f for f in (precision, kill, no_waiting, losses)}
    sys.argv.pop(0)
    while "=" in sys.argv[0]:
        name, _, value = sys.argv.pop(0).partition("=")
        patches[name](value)
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
