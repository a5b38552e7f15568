"""A process that fails, is killed or has too little memory: the others end, and say why."""

import os
import resource
import signal
import time

import pytest
import torch
from helpers import (
    TORCHRUN,
    children,
    run_main,
    same_weights,
    start_ranks,
    train_command,
    wait_for_step,
    weights,
)
from torch.distributed import TCPStore

import losses
from datasets.loaders import allow_open_files
from utils import distributed
from utils.errors import UserError, exit_on_user_error

pytestmark = pytest.mark.scripts
ENDLESS = ("--epochs", 5000, "--eval-every", 5000)


# ==== one of several processes ====


def fail_in_rank_1(kind):
    with distributed.together(), exit_on_user_error("x.py", "--size"):
        distributed.start("cpu")
        distributed.barrier()
        if distributed.rank() == 1:
            raise kind("the first error")
        if distributed.rank() == 2:  # in a collective that nobody answers
            torch.distributed.recv(torch.zeros(1), src=0)
        time.sleep(600)


@pytest.mark.parametrize("kind", [UserError, RuntimeError])
def test_a_failure_of_one_process_ends_all_with_its_reason(kind, tmp_path):
    processes = start_ranks(3, tmp_path, fail_in_rank_1, kind)
    assert [process.wait() for process in processes] == [1, 1, 1]
    outputs = [process.output() for process in processes]
    assert all("the first error" in output for output in outputs), outputs
    assert ("Traceback" in outputs[1]) == (kind is RuntimeError)
    assert "Traceback" not in outputs[0] + outputs[2]


def test_when_one_of_two_processes_is_killed_the_other_ends(demo, tmp_path):
    run = tmp_path / "run"
    command = tuple(map(str, train_command(demo, run, "--clips-per-class", 2, *ENDLESS)))
    first, second = start_ranks(2, tmp_path, run_main, command)
    wait_for_step(run, first)
    second.kill()
    assert first.wait() == 1
    assert "another process of this run" in first.output() and "Traceback" not in first.output()
    assert torch.load(run / "last.pt", weights_only=True)["epoch"] >= 1


def count_steps():
    """Each step prints and takes a second."""
    batch_all = losses.MINING["batch-all"]

    def slow(*rest, **options):
        print("step", flush=True)
        time.sleep(1)
        return batch_all(*rest, **options)

    losses.MINING["batch-all"] = slow


def test_a_signal_is_answered_within_two_steps(demo, tmp_path):
    """Schedulers wait for 30 s, but steps may take long; processes agree one step late."""
    run = tmp_path / "run"
    flags = *ENDLESS, "--save-steps", 1, "--clips-per-class", 2
    command = tuple(map(str, train_command(demo, run, *flags)))
    processes = start_ranks(2, tmp_path, run_main, command, count_steps)
    wait_for_step(run, processes[0])
    for process in processes:
        process.signal(signal.SIGTERM)
    before = processes[0].stdout.count("step\n")
    assert processes[0].wait() == processes[1].wait() == 1
    assert processes[0].stdout.count("step\n") <= before + 2
    assert "stopped after step" in processes[0].stderr


RESTARTED = ("--clips-per-class", 2, "--epochs", 6, "--eval-every", 6)


@pytest.fixture(scope="module")
def whole(demo, tmp_path_factory):
    """The weights of a run of two processes that nobody kills."""
    folder = tmp_path_factory.mktemp("whole")
    command = tuple(map(str, train_command(demo, folder / "run", *RESTARTED)))
    for process in start_ranks(2, folder, run_main, command):
        assert process.wait() == 0, process.output()
    return weights(folder / "run" / "last.pt")


def test_restarted_processes_do_not_meet_the_dead_ones(demo, whole, tmp_path):
    """torchrun --max-restarts keeps one store for all starts, with the addresses of the dead."""
    run, store = tmp_path / "run", TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    command = tuple(map(str, train_command(demo, run, *RESTARTED)))
    first, second = start_ranks(2, tmp_path, run_main, command, **environment)
    wait_for_step(run, first)
    for process in (second, first):
        process.kill()
    environment["TORCHELASTIC_RESTART_COUNT"] = "1"
    again = start_ranks(2, tmp_path / "again", run_main, command, **environment)
    assert [process.wait() for process in again] == [0, 0], again[0].output()
    assert "resuming" in again[0].stdout
    assert same_weights(whole, weights(run / "last.pt"))


@pytest.mark.slow
def test_a_killed_process_is_started_again_by_torchrun(demo, whole, tmp_path, start_script):
    run, launcher = tmp_path / "run", (*TORCHRUN, 2, "--max-restarts", 2)
    process = start_script(*launcher, *train_command(demo, run, *RESTARTED))
    wait_for_step(run, process)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    assert process.wait() == 0 and "resuming" in process.stdout, process.output()
    assert same_weights(whole, weights(run / "last.pt"))


# ==== workers and memory ====


def test_a_dead_loader_worker_is_named(demo, tmp_path, start_script):
    run = tmp_path / "run"
    process = start_script(*train_command(demo, run, "--workers", 2, *ENDLESS))
    wait_for_step(run, process)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    assert process.wait() == 1
    # PyTorch may find the dead worker again while it ends the others: an ignored exception.
    lines = process.stderr.splitlines()
    [line] = [line for line in lines if line.startswith("train.py: ")]
    assert "a process that reads frames was killed" in line and "--workers" in line


def limit_open_files():
    """Enough to import the script, but not for the batches of a worker."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (70, 70))


def test_too_low_a_limit_of_open_files_is_refused(demo, tmp_path, run_script):
    """PyTorch waited for ever."""
    command = train_command(demo, tmp_path / "run")
    error = run_script(*command, patch=limit_open_files, status=1).stderr
    assert "may open only 70 files here, but 74 are needed" in error.splitlines()[-1]


def test_the_limit_of_open_files_is_raised_where_the_system_allows_it():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (70, limits[1]))
        for count, expected in ((40, 70), (80, 80), (75, 80)):
            allow_open_files(count)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (expected, limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def limit_memory():
    """An address space that holds the program but not the batch."""
    limit = 6 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def test_a_script_that_runs_out_of_memory_says_what_to_lower(demo, tmp_path, run_script):
    flags = "--size", 2000, "--workers", 0, "--width", 0.5
    command = train_command(demo, tmp_path / "run", *flags)
    error = run_script(*command, patch=limit_memory, status=1).stderr
    assert "out of memory; lower --classes-per-batch" in error.splitlines()[-1]
