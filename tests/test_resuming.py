"""A run that was interrupted ends as one that was not, or says why it cannot be resumed."""

import json
import os
import shutil
import signal
import subprocess

import pytest
import torch
from helpers import (
    EXTRACT,
    checkpoint_content,
    read_log,
    same_weights,
    train_command,
    wait_for_step,
    weights,
)
from torch import nn

from reports.run_log import RunLog
from utils.checkpoint import CheckpointError, save_checkpoint
from utils.train_state import NotFiniteError, RunCheckpoints, TrainState

METADATA = checkpoint_content()


def read_last(run):
    return torch.load(run / "last.pt", weights_only=True)


# ==== the state ====


def make_state(has_scaler=False):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    return TrainState(model, optimizer, scheduler, torch.amp.GradScaler("cpu", enabled=has_scaler))


def test_a_state_with_one_infinite_number_is_not_saved(tmp_path):
    state = make_state()
    state.model(torch.ones(1, 2)).sum().backward()
    state.optimizer.step()
    checkpoints = RunCheckpoints(tmp_path, state, METADATA)
    checkpoints.save_last()
    before = (tmp_path / "last.pt").read_bytes()
    momentum = next(iter(state.optimizer.state.values()))["momentum_buffer"]
    momentum[0, 1] = torch.inf
    with pytest.raises(NotFiniteError):
        checkpoints.save_last()
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)])
def test_a_run_resumes_with_and_without_a_gradient_scaler(before, after, tmp_path):
    """bfloat16 and CPUs need none: their empty state must not stop a resume on float16."""
    first, second = make_state(before), make_state(after)
    RunCheckpoints(tmp_path, first, METADATA).save_last()
    assert RunCheckpoints(tmp_path, second, METADATA).resume(set()) is None
    assert torch.equal(second.model.weight, first.model.weight)


def test_a_checkpoint_without_an_optimiser_is_not_resumed(tmp_path):
    save_checkpoint(tmp_path / "last.pt", METADATA)
    with pytest.raises(CheckpointError, match="no optimiser state"):
        RunCheckpoints(tmp_path, make_state(), METADATA).resume(set())


# ==== kills ====


def test_a_killed_run_ends_with_the_same_weights(demo, trained, tmp_path, start_script, run_script):
    """Killed at its first checkpoint, in the middle of an epoch."""
    command, run = train_command(demo, tmp_path / "run", "--save-steps", 1), tmp_path / "run"
    process = start_script(*command)
    wait_for_step(run, process)
    process.signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    state = read_last(run)["training"]
    assert state["epoch"] < 3 and (state["batch"] > 0 or state["epoch"] > 0)
    assert "resuming" in run_script(*command).stdout
    assert same_weights(weights(trained / "last.pt"), weights(run / "last.pt"))
    assert [record["epoch"] for record in read_log(run)] == [1, 2, 3]


def test_sigterm_saves_a_checkpoint_and_ends_with_a_message(demo, tmp_path, start_script):
    run = tmp_path / "run"
    process = start_script(*train_command(demo, run, "--epochs", 5000, "--eval-every", 5000))
    wait_for_step(run, process)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 1
    assert "rerun to resume" in process.stderr and "Traceback" not in process.stderr
    assert 0 < read_last(run)["training"]["epoch"] < 5000


def test_a_second_training_on_one_folder_is_refused(demo, tmp_path, start_script, run_script):
    run = tmp_path / "run"
    command = train_command(demo, run, "--epochs", 5000, "--eval-every", 5000)
    first = start_script(*command)
    wait_for_step(run, first)
    error = run_script(*command, "--bits", 16, status=1).stderr
    assert "another run is using it" in error and "Traceback" not in error
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait() == 1
    assert [record["epoch"] for record in read_log(run)] == list(
        range(1, read_last(run)["epoch"] + 1)
    )
    assert len((run / "environment.jsonl").read_text().splitlines()) == 1


# ==== other settings and data ====


def interrupt_after_an_epoch():
    """Send this process Ctrl-C whenever train.py has logged an epoch."""
    write = RunLog.write

    def write_and_interrupt(*rest):
        write(*rest)
        os.kill(os.getpid(), signal.SIGINT)

    RunLog.write = write_and_interrupt


def test_a_run_resumes_with_another_cache(demo, trained, tmp_path, run_script):
    """Each clip is the same, since all 8 extracted frames are cached; each start is recorded."""
    run, folder = tmp_path / "run", ("--cache-folder", tmp_path / "cache", "--cache-frames", 8)
    for cache in (("--cache", "ram", *folder), ("--cache", "disk", *folder)):
        command = train_command(demo, run, *cache)
        run_script(*command, patch=interrupt_after_an_epoch, status=1)
    run_script(*train_command(demo, run))
    assert same_weights(weights(trained / "last.pt"), weights(run / "last.pt"))
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2
    seconds = [record["seconds"] for record in read_log(run)]
    assert seconds == sorted(seconds), "the time before an interruption counts"
    starts = [json.loads(line) for line in (run / "environment.jsonl").read_text().splitlines()]
    assert len(starts) == 3 and all(start["processes"] == 1 for start in starts)


@pytest.fixture
def copied_run(trained, tmp_path):
    """The last checkpoint of `trained` in a run folder of its own."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_bytes((trained / "last.pt").read_bytes())
    return tmp_path / "run"


def test_a_run_does_not_resume_with_other_frames(demo, copied_run, tmp_path, run_script):
    cache = "--cache", "ram", "--cache-frames", 6, "--cache-folder", tmp_path / "cache"
    error = run_script(*train_command(demo, copied_run, *cache), status=1).stderr
    assert "frames per video is 6, was 8" in error and "Traceback" not in error
    paths = "--videos", demo / "videos", "--frames", tmp_path / "frames"
    run_script("extract_frames.py", *paths, *EXTRACT, "--size", 24, 24)
    error = run_script(
        *train_command(demo, copied_run, "--frames", tmp_path / "frames"), status=1
    ).stderr
    assert "frame size is [24, 24], was [20, 24]" in error and "Traceback" not in error


def test_a_run_does_not_resume_with_other_lists(demo, copied_run, tmp_path, run_script):
    lists = tmp_path / "splits"
    shutil.copytree(demo / "splits", lists)
    lines = (lists / "train.txt").read_text().splitlines(keepends=True)
    (lists / "train.txt").write_text("".join(lines[1:]))
    error = run_script(*train_command(demo, copied_run, "--splits", lists), status=1).stderr
    assert "lists is " in error and "Traceback" not in error


def test_a_run_does_not_resume_with_another_number_of_processes(demo, copied_run, run_script):
    content = read_last(copied_run)
    assert content["data"]["processes"] == 1
    content["data"]["processes"] = 4
    torch.save(content, copied_run / "last.pt")
    error = run_script(*train_command(demo, copied_run), status=1).stderr
    assert "processes is 1, was 4" in error and "Traceback" not in error


# ==== damaged checkpoints ====


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    demo, trained, tmp_path, run_script
):
    run, last = tmp_path / "run", tmp_path / "run" / "last.pt"
    command = train_command(demo, run)
    shutil.copytree(trained, run)
    assert torch.load(run / "previous.pt", weights_only=True)["epoch"] == 2
    for damage in (b"", last.read_bytes()[:5000], None):
        if damage is None:
            last.unlink()  # as after a power cut between two renames
        else:
            last.write_bytes(damage)
        output = run_script(*command).stdout
        assert "resuming" in output and "epoch   3/3" in output
        assert damage is None or ("damaged" in output and "previous.pt instead" in output)
        assert same_weights(weights(last), weights(trained / "last.pt"))
    for name in ("last", "previous"):
        (run / f"{name}.pt").write_bytes(name.encode())
    error = run_script(*command, status=1).stderr
    assert "previous.pt" in error and "damaged" in error
    assert all((run / f"{name}.pt").read_bytes() == name.encode() for name in ("last", "previous"))


def test_half_written_files_of_a_killed_run_are_removed(demo, tmp_path, run_script):
    stale, cache = tmp_path / "run" / ".last.pt.123.partial", tmp_path / "cache"
    stale.parent.mkdir()
    stale.write_bytes(b"half")
    cache.mkdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    abandoned = cache / f".k.npy.{os.uname().nodename}.{dead.pid}.partial"
    foreign = cache / f".k.npy.another-machine.{dead.pid}.partial"
    abandoned.write_bytes(b"half"), foreign.write_bytes(b"at work")
    flags = "--epochs", 1, "--cache", "disk", "--cache-frames", 8, "--cache-folder", cache
    run_script(*train_command(demo, tmp_path / "run", *flags))
    assert not stale.exists() and not abandoned.exists() and foreign.exists()
