"""Several processes as one: everything here does nothing where there is only one.

`torchrun --nproc-per-node 8 train.py ...` starts the processes, on one machine or, with torchrun's
rendezvous flags, on several. Tensors of GPUs are exchanged by NCCL; what the processes tell each
other from the CPU (flags, metrics) goes through Gloo, so that it never waits for a GPU.
Sources: PyTorch's documentation of torch.distributed, torchrun and DistributedDataParallel.
"""

import contextlib
import os
import sys
import threading
import time
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from utils.device import choose_device
from utils.errors import UserError, is_lost_connection

# Long, because one process may validate or read a slow video while the others wait for it.
TIMEOUT = timedelta(hours=1)
_cpu_group = None  # None is the default group, which is Gloo where there is no GPU
_watcher = None  # the thread that waits for failures of other processes
_finished = threading.Event()


class Stopped(SystemExit):
    """All processes leave as they were asked to: nothing failed."""


# ==== joining and leaving ====


def start(device=None):
    """Join the processes that torchrun started, if it did. Returns this process's torch.device.

    device: a name, or None for this process's GPU where there is one and else the CPU.
    Raises UserError for a device that is not there, or for tasks that do not know of each other.
    """
    global _cpu_group, _watcher
    device = choose_device(device)
    if "RANK" not in os.environ:
        _refuse_separate_tasks()
    elif not dist.is_initialized():
        on_gpu = device.type == "cuda"
        store, rank, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # Under torchrun --max-restarts one store serves all attempts, with addresses of the dead.
        store = dist.PrefixStore(_attempt(), store)
        options = {"store": store, "rank": rank, "world_size": count, "timeout": TIMEOUT}
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", device_id=device if on_gpu else None, **options
        )
        _cpu_group = dist.new_group(backend="gloo", timeout=TIMEOUT) if on_gpu else None
        _watcher = threading.Thread(target=_watch, args=(_connect(),), daemon=True)
        _watcher.start()
    return device


def _refuse_separate_tasks():
    """`srun` or `mpirun` alone start processes that would all do the whole work at once."""
    launchers = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun"}
    for variable, launcher in launchers.items():
        if int(os.environ.get(variable, 1)) > 1:
            raise UserError(
                f"{launcher} started {os.environ[variable]} tasks that do not know of each other; "
                "start one per machine, with torchrun: srun --ntasks-per-node 1 torchrun --nnodes "
                "$SLURM_NNODES --nproc-per-node GPUS --rdzv-backend c10d --rdzv-endpoint "
                f"FIRST_HOST:29500 {os.path.basename(sys.argv[0])} ..."
            )


@contextlib.contextmanager
def together():
    """Leave all processes at the end of the body, and at once where one of them fails.

    A process that fails prints its error, tells the others and ends: taking down NCCL could wait
    for collectives that never finish. The others end within seconds, with the first error.
    """
    try:
        yield
    except BaseException as error:
        if dist.is_initialized():
            _leave(error)
        raise
    if dist.is_initialized():
        _finished.set()
        _watcher.join()
        # A barrier has no tensors. Gloo's threads free those of other works a moment after the work
        # is done; they need the interpreter for it, and abort the process where that has ended.
        barrier()
        dist.destroy_process_group()


def _leave(error):
    """Print `error` as Python would, tell the other processes and end this one."""
    if is_lost_connection(error.__context__ or error):
        time.sleep(3)  # in which `_watch` ends this process with the first error, if there is one
    lines = traceback.format_exception(error)
    if isinstance(error, SystemExit):
        lines = [f"{error.code}\n"] if isinstance(error.code, str) else []
    print("".join(lines), end="", file=sys.stderr)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush(), sys.stderr.flush()
    if not isinstance(error, Stopped):
        with contextlib.suppress(RuntimeError):  # who keeps the store may have left
            _connect().compare_set(_failure_key(), "", (lines or ["it failed"])[-1].strip())
            _let_others_read()
    status = error.code if isinstance(error, SystemExit) else 1
    os._exit(status if isinstance(status, int) else 1)


def _let_others_read():
    """Without torchrun the first process keeps the store, which ends with it."""
    if is_main():
        time.sleep(2)


def _connect():
    """A connection of its own to the store at which the processes of the run met."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=20))


def _attempt():
    """The name of this start of the processes, which torchrun --max-restarts counts."""
    return f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def _failure_key():
    """Where a failure is told."""
    return f"failure of {_attempt()}"


def _watch(store):
    """End this process, wherever it is, when another one has told that it failed."""
    reason = None
    while reason is None and not _finished.wait(1):
        try:
            if store.check([_failure_key()]):
                reason = store.get(_failure_key()).decode()
        except RuntimeError:
            reason = "the process that they all met at has ended"
    if not _finished.is_set():
        print(f"another process of this run failed: {reason}", file=sys.stderr, flush=True)
        _let_others_read()
        os._exit(1)


# ==== who is who ====


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def barrier():
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier(group=_cpu_group)


# ==== training ====


def data_parallel(model):
    """The model to call in training: gradients are averaged over the processes after backward."""
    if world_size() == 1:
        return model
    device = next(model.parameters()).device
    return torch.nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )


@torch.no_grad()
def average_statistics(model):
    """Give every process the mean of all running means and variances of batch normalisation.

    Asked after each step, so that all processes validate, and save, one and the same network.
    """
    if world_size() == 1:
        return
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    layers = [m for m in layers if not isinstance(m, torch.nn.SyncBatchNorm)]
    buffers = [b for m in layers for b in (m.running_mean, m.running_var)]
    if buffers:
        flat = torch.cat(buffers)
        dist.all_reduce(flat)
        means = (flat / world_size()).split([len(b) for b in buffers])
        for buffer, mean in zip(buffers, means, strict=True):
            buffer.copy_(mean)


def gather_batch(codes, labels):
    """The global batch: (B, K) codes and (B,) labels of all processes, from B / ranks of each.

    A gradient reaches only this process's codes: every process computes the same loss, so that its
    own part is exact. Data parallelism then averages over processes what should be summed, hence
    the loss must be multiplied by `world_size()` before backward.
    """
    if world_size() == 1:
        return codes, labels
    all_codes = [torch.empty_like(codes) for _ in range(world_size())]
    all_labels = [torch.empty_like(labels) for _ in range(world_size())]
    dist.all_gather(all_codes, codes.detach().contiguous())
    dist.all_gather(all_labels, labels)
    all_codes[rank()] = codes
    return torch.cat(all_codes), torch.cat(all_labels)


# ==== between the steps ====


def ask_all(flags):
    """Start to ask whether any process has each of the `flags` (list of bool) set.

    All processes must ask. Returns a function that gives the answer, the same on all of them; by
    the next step it is there, so that nobody waits.
    """
    if world_size() == 1:
        return lambda: flags
    answer = torch.tensor(flags, dtype=torch.uint8)
    work = dist.all_reduce(answer, dist.ReduceOp.MAX, group=_cpu_group, async_op=True)

    def wait():
        work.wait()
        return answer.bool().tolist()

    return wait


def gather_rows(rows, count):
    """The (count, ...) tensor of which each process holds rows rank, rank + ranks, ...; on all.

    rows: None on a process that has none, where there are fewer rows than processes.
    """
    if world_size() == 1:
        return rows
    parts = gather(rows)
    some = next(part for part in parts if part is not None)
    whole = some.new_empty(count, *some.shape[1:])
    for first, part in enumerate(parts):
        if part is not None:
            whole[first :: world_size()] = part
    return whole


def gather(value):
    """What each process gives, as a list on every process; all of them wait here."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value, group=_cpu_group)
    return values
