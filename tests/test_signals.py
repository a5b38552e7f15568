"""Signals as terminals, `timeout`, SLURM and torchrun send them: to every process of a run."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from test_chain import same_weights, train_command, weights

SOURCES = {
    "folders": ("--workers", 2),
    "cache": ("--workers", 2, "--cache", "disk", "--cache-frames", 8),
}
LAUNCHERS = {
    "alone": (),
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
}
EPOCHS = 12


def command_of(demo, run, launcher, source):
    flags = train_command(demo, run, *SOURCES[source], "--clips-per-class", 2, "--epochs", EPOCHS,
                          "--eval-every", EPOCHS)  # fmt: skip
    return [sys.executable, *LAUNCHERS[launcher], *map(str, flags)]


def start(command, log):
    """The command as the leader of a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "w") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=environment,
                                start_new_session=True)  # fmt: skip


def wait_for_step(run, process, log):
    """Wait until the run has begun to train, which its first checkpoint shows."""
    while not (run / "last.pt").exists():
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)


def signal_group(command, run, number, wait, log):
    """Start a run and, when it trains, signal its whole group. Returns its output.

    Asserts that the run left by itself with its state saved, unless it had finished before.
    """
    process = start(command, log)
    wait_for_step(run, process, log)
    time.sleep(wait)
    saved = torch.load(run / "last.pt", weights_only=True)["training"]
    os.killpg(process.pid, number)
    status, output = process.wait(timeout=60), log.read_text()
    if status == 0:  # it was through
        return output
    assert "stopped" in output, output
    assert "frames was killed" not in output and "another process of this run" not in output
    now = torch.load(run / "last.pt", weights_only=True)["training"]
    assert (now["epoch"], now["batch"]) >= (saved["epoch"], saved["batch"])
    return output


@pytest.fixture(scope="module")
def undisturbed(demo, tmp_path_factory):
    """{(launcher, source): weights of a run that nobody disturbs}, made when first asked for."""
    runs, folder = {}, tmp_path_factory.mktemp("undisturbed")

    def weights_of(launcher, source):
        if launcher not in runs:
            process = start(command_of(demo, folder / launcher, launcher, source), folder / "log")
            assert process.wait(timeout=120) == 0, (folder / "log").read_text()
            runs[launcher] = weights(folder / launcher / "last.pt")
        return runs[launcher]  # folders and caches give the same clips

    return weights_of


QUICK = [("alone", "folders", "SIGINT"), ("alone", "cache", "SIGTERM"),
         ("torchrun", "folders", "SIGTERM")]  # fmt: skip
LONG = [(a, s, n) for a in LAUNCHERS for s in SOURCES for n in ("SIGINT", "SIGTERM")]


@pytest.mark.parametrize(
    ("launcher", "source", "name", "signals"),
    [(*case, 1) for case in QUICK]
    + [pytest.param(*case, 10, marks=pytest.mark.slow) for case in LONG],
)
def test_a_signal_to_the_group_saves_and_the_same_command_goes_on(
    launcher, source, name, signals, demo, undisturbed, tmp_path
):
    """The run is stopped again and again, then left alone: its weights are the undisturbed ones."""
    command = command_of(demo, tmp_path / "run", launcher, source)
    rng, saved, log = random.Random(f"{launcher} {source} {name}"), 0, tmp_path / "log"
    for attempt in range(signals):
        run = tmp_path / f"run{attempt}"
        command = command_of(demo, run, launcher, source)
        output = signal_group(command, run, signal.Signals[name], rng.uniform(0, 0.4), log)
        saved += "stopped" in output
        process = start(command, log)
        assert process.wait(timeout=120) == 0, log.read_text()
        assert same_weights(weights(run / "last.pt"), undisturbed(launcher, source))
    print(f"\n{launcher}, {source}, {name}: {saved} of {signals} stopped and saved, all resumed")
    assert saved >= max(1, 0.7 * signals), "most runs must be stopped in the middle"


def test_a_signal_during_validation_saves_the_epoch(demo, tmp_path):
    """Validation of a second or so, in which no step looks at signals."""
    script = (
        "import sys, time, runpy; sys.argv = sys.argv[1:]\n"
        "import retrieval.encode as retrieval; whole = retrieval.encode\n"
        "def encode(*rest):\n"
        "    print('validating', flush=True); time.sleep(20); return whole(*rest)\n"
        "retrieval.encode = encode; runpy.run_path('train.py', run_name='__main__')\n"
    )
    run, log = tmp_path / "run", tmp_path / "log"
    command = [sys.executable, "-c", script, *map(str, train_command(demo, run, "--epochs", 1))]
    process = start(command, log)
    while "validating" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    started = time.monotonic()
    assert process.wait(timeout=60) == 1 and time.monotonic() - started < 10
    assert "stopped before validation" in log.read_text()
    state = torch.load(run / "last.pt", weights_only=True)["training"]
    assert (state["epoch"], state["batch"]) == (0, 3)
    process = start([sys.executable, *map(str, train_command(demo, run, "--epochs", 1))], log)
    assert process.wait(timeout=60) == 0 and "val mAP" in log.read_text()


def test_a_second_ctrl_c_leaves_at_once(demo, tmp_path):
    """Where a step takes long; a repeated SIGTERM, as schedulers send it, changes nothing."""
    script = (
        "import sys, time, runpy; sys.argv = sys.argv[1:]\n"
        "import losses; whole = losses.MINING['batch-all']\n"
        "def slow(*rest, **options):\n"
        "    print('step', flush=True)\n"
        "    end = time.monotonic() + 60\n"
        "    while time.monotonic() < end: time.sleep(0.1)\n"
        "    return whole(*rest, **options)\n"
        "losses.MINING['batch-all'] = slow; runpy.run_path('train.py', run_name='__main__')\n"
    )
    log = tmp_path / "log"
    flags = train_command(demo, tmp_path / "run", "--workers", 2)
    process = start([sys.executable, "-c", script, *map(str, flags)], log)
    while "step" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        os.killpg(process.pid, number)
        time.sleep(0.1)
    assert process.poll() is None
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == 1
    assert "Traceback" not in log.read_text() and "stopped" in log.read_text()
