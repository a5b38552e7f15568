"""Mistakes of users end in one line that says what to do; errors of the code keep a traceback."""

import ctypes
import errno
import os
import subprocess

import numpy as np
import pytest
import torch
from helpers import train_command

from utils import distributed, errors
from utils.device import choose_device
from utils.errors import UserError, exit_on_user_error, explain


def leave_with(error):
    with exit_on_user_error("x.py", "--size"):
        raise error


def test_errors_of_the_code_keep_their_traceback():
    with pytest.raises(ValueError, match="broadcast"), exit_on_user_error("x.py", "--size"):
        np.zeros(3) + np.zeros(4)
    with pytest.raises(RuntimeError, match="nccl"):
        leave_with(RuntimeError("nccl is not a word that explains anything"))
    with pytest.raises(OSError, match="no file is named"):
        leave_with(OSError("no file is named"))


def test_errors_of_users_are_one_line(tmp_path):
    with pytest.raises(SystemExit, match="x.py: give another"):
        leave_with(UserError("give another"))
    with pytest.raises(SystemExit, match="x.py: .*nowhere"), exit_on_user_error("x.py", "--size"):
        (tmp_path / "nowhere").read_text()


def test_dead_workers_are_explained_with_the_shared_memory_of_containers():
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error.")
    for error in (killed, ConnectionResetError(104, "Connection reset by peer"), EOFError()):
        assert "/dev/shm" in explain(error, "--size") and "--shm-size" in explain(error, "--size")
    assert explain(EOFError("No data left in file"), "--size") is None


def test_a_small_dev_shm_is_named(monkeypatch):
    tensor = RuntimeError("unable to allocate shared memory(shm) for file </torch_2_9_0>: ... (28)")
    assert "/dev/shm, through which processes exchange clips, is too small (" in explain(tensor, "")
    semaphore = OSError(errno.ENOSPC, "No space left on device")
    assert explain(semaphore, "") == str(semaphore), "another disk"
    monkeypatch.setattr(errors, "_free_space", lambda _: 4096)
    assert "is too small" in explain(semaphore, "")
    file = OSError(errno.ENOSPC, "No space left on device", "a.pt")
    assert explain(file, "") == str(file), "another disk"


def mount_small_shared_memory():
    """What only this process sees as /dev/shm."""
    ctypes.CDLL(None).unshare(0x00020000)  # CLONE_NEWNS
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", "/dev/shm"], check=True)


def test_training_with_a_small_dev_shm_says_so(demo, tmp_path, run_script):
    mount = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", tmp_path]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    command = train_command(demo, tmp_path / "run", "--workers", 2)
    error = run_script(*command, patch=mount_small_shared_memory, status=1).stderr
    assert "/dev/shm, through which" in error.splitlines()[-1] and "Traceback" not in error


def test_a_lack_of_memory_is_explained_with_what_to_lower():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60)
    assert explain(error.value, "--size") == "out of memory; lower --size"
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert explain(gpu, "--size") == explain(MemoryError(), "--size")
    files = RuntimeError(
        "Too many open files. Communication with the workers is no longer possible"
    )
    assert "ulimit -n" in explain(files, "--size")
    assert explain(RuntimeError("shapes differ"), "--size") is None


@pytest.mark.parametrize("name", ["meta", "xpu", "vulkan:0", "cuda:x"])
def test_devices_that_cannot_train_are_refused(name):
    with pytest.raises(UserError, match="must be cpu, cuda, cuda:1 or mps"):
        choose_device(name)


def test_one_gpu_for_all_processes_is_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match="puts all 4 processes on one GPU"):
        choose_device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(UserError, match="cuda:99"):
        choose_device("cuda:99")


@pytest.mark.parametrize("variable", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_separate_tasks_of_srun_and_mpirun_are_refused(variable, monkeypatch):
    monkeypatch.setenv(variable, "4")
    with pytest.raises(UserError, match="started 4 separate tasks.* torchrun --nnodes"):
        distributed.start("cpu")
    monkeypatch.setenv(variable, "1")
    assert distributed.start("cpu") == torch.device("cpu")
