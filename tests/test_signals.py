"""Signals as terminals, `timeout`, SLURM and torchrun send them: to every process of a run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import (
    ROOT,
    TORCHRUN,
    run_main,
    same_weights,
    start_ranks,
    train_command,
    wait_for_output,
    wait_for_step,
    weights,
)

import losses
from retrieval import encode

SOURCES = {
    "folders": ("--workers", 2),
    "cache": ("--workers", 2, "--cache", "disk", "--cache-frames", 8),
}
LAUNCHERS = {"alone": (), "torchrun": (*TORCHRUN, 2)}
EPOCHS = 8


def command_of(demo, run, launcher, source):
    flags = "--clips-per-class", 2, "--epochs", EPOCHS, "--eval-every", EPOCHS
    command = train_command(demo, run, *SOURCES[source], *flags)
    return tuple(map(str, (*LAUNCHERS[launcher], *command)))


def run_to_end(demo, run, launcher, source):
    """Start a run, as torchrun would, and wait for it. Returns its output."""
    command, folder = command_of(demo, run, "alone", source), run / "output"
    count = 2 if launcher == "torchrun" else 1
    processes = start_ranks(count, folder, run_main, command)
    assert [process.wait() for process in processes] == [0] * count, processes[0].output()
    return processes[0].output()


def position(run):
    """(epoch, batch) of the last checkpoint."""
    state = torch.load(run / "last.pt", weights_only=True)["training"]
    return state["epoch"], state["batch"]


def signal_group(process, run, number, wait):
    """Signal the whole group of a run that trains. Returns whether it stopped in the middle.

    Asserts that the run ended by itself with its state saved, unless it had finished before.
    """
    wait_for_step(run, process)
    time.sleep(wait)
    saved = position(run)
    process.signal(number)
    status, output = process.wait(), process.output()
    if status == 0:
        return False
    assert "stopped" in output, output
    assert "frames was killed" not in output and "another process of this run" not in output
    assert position(run) >= saved
    return True


@pytest.fixture(scope="module")
def undisturbed(demo, tmp_path_factory):
    """A function: launcher -> weights of a run that nobody disturbs, made when first asked for."""
    runs, folder = {}, tmp_path_factory.mktemp("undisturbed")

    def weights_of(launcher):
        if launcher not in runs:
            run = folder / launcher
            run_to_end(demo, run, launcher, "folders")  # caches give the same clips
            runs[launcher] = weights(run / "last.pt")
        return runs[launcher]

    return weights_of


QUICK = [
    ("alone", "folders", "SIGINT"),
    ("alone", "cache", "SIGTERM"),
    ("torchrun", "folders", "SIGTERM"),
]
LONG = [(a, s, n) for a in LAUNCHERS for s in SOURCES for n in ("SIGINT", "SIGTERM")]


@pytest.mark.parametrize(
    ("launcher", "source", "name", "signals"),
    [(*case, 1) for case in QUICK]
    + [pytest.param(*case, 10, marks=pytest.mark.slow) for case in LONG],
)
def test_a_signal_to_the_group_saves_and_the_same_command_resumes(
    launcher, source, name, signals, demo, undisturbed, tmp_path, start_script
):
    """Each run is stopped, then started again and left alone: its weights are the undisturbed."""
    rng, stopped = random.Random(f"{launcher} {source} {name}"), 0
    for attempt in range(3 * signals):
        run = tmp_path / f"run{attempt}"
        command, wait = command_of(demo, run, launcher, source), rng.uniform(0, 0.2)
        stopped += signal_group(start_script(*command), run, signal.Signals[name], wait)
        assert "resuming" in run_to_end(demo, run, launcher, source)
        assert same_weights(weights(run / "last.pt"), undisturbed(launcher))
        if stopped == signals:
            break
    assert stopped == signals, "most runs must be stopped in the middle"


def validate_slowly():
    """Validation takes longer than any test waits, and no step looks at signals meanwhile."""

    def wait(*_):
        print("validating", flush=True)
        time.sleep(600)

    encode.encode = wait


def test_a_signal_during_validation_saves_the_epoch(demo, tmp_path, start_script, run_script):
    run = tmp_path / "run"
    command = train_command(demo, run, "--epochs", 1)
    process = start_script(*command, patch=validate_slowly)
    wait_for_output("validating", process)
    process.signal(signal.SIGTERM)
    assert process.wait() == 1 and "stopped before validation" in process.stderr
    assert position(run) == (0, 3)
    assert "val mAP" in run_script(*command).stdout


def step_slowly():
    """No step ends; each sleep is short, since a signal handler runs only between them."""

    def wait(*_, **__):
        print("step", flush=True)
        while True:
            time.sleep(0.1)

    losses.MINING["batch-all"] = wait


def test_a_second_ctrl_c_stops_at_once(demo, tmp_path, start_script):
    """In a step that takes long; a repeated SIGTERM, as schedulers send it, changes nothing."""
    command = train_command(demo, tmp_path / "run", "--workers", 2)
    process = start_script(*command, patch=step_slowly)
    wait_for_output("step", process)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        process.signal(number)
        time.sleep(0.1)
    assert process.status(1) is None, "it waits for the step"
    process.signal(signal.SIGINT)
    assert process.wait() == 1
    assert "Traceback" not in process.stderr and "interrupted" in process.stderr


def interrupt_in_fork():
    """Ctrl-C arrives while os.fork calls its hooks, which swallow exceptions."""
    os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))


def test_ctrl_c_while_a_worker_is_started_is_not_lost(few_videos, trained, tmp_path, run_script):
    extract = "extract_frames.py", "--videos", few_videos, "--frames", tmp_path / "frames"
    test = "test.py", "--checkpoint", trained, "--output", tmp_path / "test", "--workers", 1
    for command in (extract, test):
        error = run_script(*command, patch=interrupt_in_fork, status=1).stderr
        assert "interrupted; rerun to resume" in error and "Traceback" not in error
        assert "Exception ignored" not in error


@pytest.mark.scripts
@pytest.mark.parametrize("script", ["train", "test", "search", "extract_frames", "make_splits"])
def test_ctrl_c_during_imports_gives_no_traceback(script, tmp_path):
    """A process of its own, not forked from one that has imported everything."""
    flags = {
        "train": ["--frames", "x", "--splits", "x", "--output", tmp_path],
        "test": ["--codes", "x"],
        "search": ["query", "--index", "x", "--video", "x"],
        "extract_frames": ["--videos", "x", "--frames", "x"],
        "make_splits": ["--dataset", "folder", "--frames", "x", "--output", "x"],
    }
    process = subprocess.Popen(
        [sys.executable, f"{script}.py", *flags[script]], cwd=ROOT, stderr=subprocess.PIPE
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while "_multiarray_umath" not in maps.read_text():  # NumPy
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == b"" and process.returncode == -signal.SIGINT
