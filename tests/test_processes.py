"""Several processes that are one run: equal statistics, one failure for all, one cache for all."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from test_chain import same_weights, train_command, weights
from test_frames import write_frames
from test_hardening import children
from test_signals import LAUNCHERS, command_of, start, wait_for_step
from torch import nn


def run_ranks(script, count, folder, seconds=60):
    """Run a script as `count` processes of one group, without torchrun.

    Returns [(exit status, output)] in the order of ranks; fails where one takes longer.
    """
    (folder / "script.py").write_text(script)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    processes = []
    for rank in range(count):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(count),
                       "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                       "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # fmt: skip
        processes.append(subprocess.Popen(
            [sys.executable, folder / "script.py", folder], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT))  # fmt: skip
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, outputs, strict=True)]


# ==== batch normalisation ====

STATISTICS = """
import sys
import torch
from torch import nn
from utils import distributed

with distributed.together():
    distributed.start("cpu")
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[2].eval() if "frozen" in sys.argv[1] else None
    network = distributed.data_parallel(model)
    for step in range(5):
        torch.manual_seed(100 * step + distributed.rank())
        network(torch.randn(6, 4) + distributed.rank()).sum().backward()
        distributed.average_statistics(network)
    torch.save(model.state_dict(), f"{sys.argv[1]}/{distributed.rank()}.pt")
"""


@pytest.mark.parametrize("count", [2, 3])
def test_all_processes_have_the_mean_of_their_statistics(count, tmp_path):
    """Running means are linear in the batches: their mean is that of processes left alone."""
    assert [status for status, _ in run_ranks(STATISTICS, count, tmp_path)] == [0] * count
    expected = []
    for rank in range(count):
        layer = nn.BatchNorm1d(4)
        for step in range(5):
            torch.manual_seed(100 * step + rank)
            layer(torch.randn(6, 4) + rank)
        expected.append(layer.state_dict())
    assert not torch.allclose(expected[0]["running_mean"], expected[1]["running_mean"], atol=0.1)
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(count)]
    for state in states:
        assert same_weights(states[0], state), "every bit, or ranks validate different networks"
        for name in ("running_mean", "running_var"):
            mean = torch.stack([layer[name] for layer in expected]).mean(0)
            torch.testing.assert_close(state[f"0.{name}"], mean, rtol=1e-5, atol=1e-6)


def test_frozen_statistics_are_not_touched(tmp_path):
    folder = tmp_path / "frozen"
    folder.mkdir()
    run_ranks(STATISTICS, 3, folder)
    state = torch.load(folder / "0.pt")
    assert torch.equal(state["2.running_mean"], torch.zeros(4))
    assert torch.equal(state["2.running_var"], torch.ones(4))


RECORD = """
import os, runpy, sys, torch
import retrieval.encode as retrieval
whole = retrieval.build_encoder
def build_encoder(model, *rest):
    torch.save(model.state_dict(), f"{os.environ['SEEN_BY']}/{os.environ['RANK']}.pt")
    return whole(model, *rest)
retrieval.build_encoder = build_encoder
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.parametrize("count", [2, 3])
def test_all_processes_validate_the_network_that_is_saved(count, demo, tmp_path, monkeypatch):
    monkeypatch.setenv("SEEN_BY", str(tmp_path))
    script, run = tmp_path / "record.py", tmp_path / "run"
    script.write_text(RECORD)
    command = train_command(demo, run, "--epochs", 1, "--workers", 0)[1:]
    launcher = (*LAUNCHERS["torchrun"][:-1], str(count))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    process = start([sys.executable, *launcher, str(script), *map(str, command)], tmp_path / "log")
    assert process.wait(timeout=120) == 0, (tmp_path / "log").read_text()
    for rank in range(count):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert same_weights(state, weights(run / "best.pt"))


# ==== failures ====

FAILURE = """
import sys, time
import torch
from utils import distributed
from utils.errors import UserError, exit_on_user_error

with distributed.together(), exit_on_user_error("x.py", "--size"):
    distributed.start("cpu")
    distributed.barrier()
    if distributed.rank() == 1:
        raise KIND("the first error")
    if distributed.rank() == 2:  # in a collective that nobody answers
        torch.distributed.recv(torch.zeros(1), src=0)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["UserError", "RuntimeError"])
def test_a_failure_of_one_process_ends_all_with_its_reason(kind, tmp_path):
    started = time.monotonic()
    ended = run_ranks(FAILURE.replace("KIND", kind), 3, tmp_path)
    assert time.monotonic() - started < 45, "starting included"
    assert [status for status, _ in ended] == [1, 1, 1]
    assert all("the first error" in output for _, output in ended), ended
    assert ("Traceback" in ended[1][1]) == (kind == "RuntimeError")
    assert "Traceback" not in ended[0][1] + ended[2][1]


SLOW = """
import runpy, sys, time
import losses
whole = losses.MINING["batch-all"]
def slow(*rest, **options):
    time.sleep(1.5)
    return whole(*rest, **options)
losses.MINING["batch-all"] = slow
runpy.run_path("train.py", run_name="__main__")
"""


def test_a_signal_is_answered_within_two_steps(demo, tmp_path, monkeypatch):
    """Schedulers wait for 30 s: twenty steps of 1.5 s or more would be too late."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script, run, log = tmp_path / "slow.py", tmp_path / "run", tmp_path / "log"
    script.write_text(SLOW)
    flags = train_command(demo, run, "--epochs", 50, "--save-steps", 1, "--clips-per-class", 2)
    command = [sys.executable, *LAUNCHERS["torchrun"], str(script), *map(str, flags[1:])]
    process = start(command, log)
    wait_for_step(run, process, log)
    os.killpg(process.pid, signal.SIGTERM)
    started = time.monotonic()
    assert process.wait(timeout=60) != 0 and time.monotonic() - started < 15
    assert "stopped after step" in log.read_text(), log.read_text()


def test_a_killed_process_is_started_again_by_torchrun(demo, tmp_path):
    """--max-restarts: all processes begin anew from the last checkpoint."""
    log, whole, run = tmp_path / "log", tmp_path / "whole", tmp_path / "run"
    process = start(command_of(demo, whole, "torchrun", "folders"), log)
    assert process.wait(timeout=120) == 0, log.read_text()
    command = command_of(demo, run, "torchrun", "folders")
    command[command.index("--standalone")] = "--standalone --max-restarts 2"
    process = start(" ".join(command).split(), log)
    wait_for_step(run, process, log)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    assert process.wait(timeout=120) == 0, log.read_text()
    assert "resuming" in log.read_text()
    assert same_weights(weights(whole / "last.pt"), weights(run / "last.pt"))


# ==== caches ====

CACHE = """
import sys, time
from pathlib import Path
from datasets.frames import FrameDataset
from datasets.cache import build_cache
from datasets import cache

whole = cache._build
def build(*rest):
    print("built", flush=True)
    time.sleep(2)
    whole(*rest)
cache._build = build
root = Path(sys.argv[1])
print(build_cache(FrameDataset(["a", "b"], [0, 1], root, 5), 12, root / "cache", 1).name)
"""


def test_of_several_processes_one_builds_the_cache(tmp_path):
    """Whatever machine each is on: no process has to be the first one of the run."""
    for name in ("a", "b"):
        write_frames(tmp_path / name, range(12))
    outputs = [output for _, output in run_ranks(CACHE, 3, tmp_path)]
    assert sum("built" in output for output in outputs) == 1
    assert len({output.split()[-1] for output in outputs}) == 1
