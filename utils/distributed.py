"""Training and evaluation in several processes. With one process, all functions do nothing.

`torchrun --nproc-per-node 8 train.py ...` starts the processes, on one machine or, with the
rendezvous flags of torchrun, on several. NCCL exchanges GPU tensors; Gloo exchanges flags and
metrics on the CPU, and never waits for a GPU.
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

# Long, because the others wait while one process validates or reads a slow video.
TIMEOUT = timedelta(hours=1)
_cpu_group = None  # None is the default group, which is Gloo where there is no GPU
_watcher = None  # the thread that waits for a failure of another process
_finished = threading.Event()


class Stopped(SystemExit):
    """The run was asked to stop: all processes exit, and nothing failed."""


# ==== start and end ====


def start(device=None):
    """Join the process group if torchrun started this process. Returns its torch.device.

    device: a name, or None for the GPU of this process if there is one, else the CPU.
    Raises UserError if there is no such device, or if processes were started without torchrun.
    """
    global _cpu_group, _watcher
    device = choose_device(device)
    if "RANK" not in os.environ:
        _refuse_separate_tasks()
    elif not dist.is_initialized():
        on_gpu = device.type == "cuda"
        store, rank, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # With torchrun --max-restarts the store still holds addresses of the killed processes.
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
    """Raise UserError for processes of plain `srun` or `mpirun`: each would do all the work."""
    launchers = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun"}
    for variable, launcher in launchers.items():
        if int(os.environ.get(variable, 1)) > 1:
            raise UserError(
                f"{launcher} started {os.environ[variable]} separate tasks; start one task per "
                "machine, with torchrun: srun --ntasks-per-node 1 torchrun --nnodes "
                "$SLURM_NNODES --nproc-per-node GPUS --rdzv-backend c10d --rdzv-endpoint "
                f"FIRST_HOST:29500 {os.path.basename(sys.argv[0])} ..."
            )


@contextlib.contextmanager
def together():
    """End all processes after the body, or as soon as one of them fails.

    A process that fails prints its error, records it in the store and exits without shutting down
    NCCL, which could wait for collectives that never finish. The others read the record and exit
    within seconds.
    """
    try:
        yield
    except BaseException as error:
        if dist.is_initialized():
            _exit_after(error)
        raise
    if dist.is_initialized():
        _finished.set()
        _watcher.join()
        # Gloo's threads free the tensors of a collective a moment after it is done; if Python has
        # ended by then, the process aborts. A barrier has no tensors.
        barrier()
        dist.destroy_process_group()


def _exit_after(error):
    """Print `error` as Python would, record it for the other processes and exit."""
    if is_lost_connection(error.__context__ or error):
        time.sleep(3)  # meanwhile `_watch` may end this process with the first error
    lines = traceback.format_exception(error)
    if isinstance(error, SystemExit):
        lines = [f"{error.code}\n"] if isinstance(error.code, str) else []
    print("".join(lines), end="", file=sys.stderr)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush(), sys.stderr.flush()
    if not isinstance(error, Stopped):
        with contextlib.suppress(RuntimeError):  # the process that holds the store may have ended
            _connect().compare_set(_failure_key(), "", (lines or ["it failed"])[-1].strip())
            _let_others_read()
    status = error.code if isinstance(error, SystemExit) else 1
    os._exit(status if isinstance(status, int) else 1)


def _let_others_read():
    """Wait, if the store may end with this process: without torchrun the main process holds it."""
    if is_main():
        time.sleep(2)


def _connect():
    """A new connection to the store of the process group."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=20))


def _attempt():
    """The name of this start of the processes; torchrun --max-restarts counts them."""
    return f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def _failure_key():
    """The key in the store under which a failure is recorded."""
    return f"failure of {_attempt()}"


def _watch(store):
    """Exit, whatever this process is doing, when another process has recorded a failure."""
    reason = None
    while reason is None and not _finished.wait(1):
        try:
            if store.check([_failure_key()]):
                reason = store.get(_failure_key()).decode()
        except RuntimeError:
            reason = "the process that holds the store has ended"
    if not _finished.is_set():
        print(f"another process of this run failed: {reason}", file=sys.stderr, flush=True)
        _let_others_read()
        os._exit(1)


# ==== ranks ====


def rank():
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    """Whether this process writes files and prints: rank 0."""
    return rank() == 0


def barrier():
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier(group=_cpu_group)


# ==== training ====


def data_parallel(model):
    """The model to call in training: backward averages its gradients over the processes."""
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
    """Average the running means and variances of batch normalisation over the processes.

    Called after each step, so that all processes validate and save the same model.
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
    """The global batch: codes (B, K) and labels (B,) of all processes, B / world_size() of each.

    Every process computes the same loss, and the gradient of its own codes is exact; the other
    codes get none. DistributedDataParallel averages gradients that should be summed, so the caller
    multiplies the loss by `world_size()` before backward.
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


def async_any(flags):
    """Start a reduction: for each of `flags` (list of bool), is it set in any process?

    All processes must call this. Returns a function that returns the list of answers, the same in
    all processes. Call it one step later, when the answers have arrived without waiting.
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
    """All (count, ...) rows, in every process; `rows` are the rows rank, rank + world_size, ...

    rows: None in a process that has none, if there are fewer rows than processes.
    """
    if world_size() == 1:
        return rows
    gathered = gather(rows)
    some = next(rows for rows in gathered if rows is not None)
    whole = some.new_empty(count, *some.shape[1:])
    for first, rows in enumerate(gathered):
        if rows is not None:
            whole[first :: world_size()] = rows
    return whole


def gather(value):
    """The values of all processes as a list, in every process; waits for all of them."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value, group=_cpu_group)
    return values
