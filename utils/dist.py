"""Several processes as one: everything here does nothing where there is only one.

`torchrun --nproc-per-node 8 train.py ...` starts the processes, on one machine or, with torchrun's
rendezvous flags, on several. Sources: PyTorch's documentation of torch.distributed and torchrun.
"""

import contextlib
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.errors import UserError


def start(device=None):
    """Join the processes that torchrun started, if it did. Returns this process's torch.device.

    device: a name, or None for this process's GPU where there is one and else the CPU.
    Raises UserError for a device that is not there.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device is None:
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
        if device.type == "cuda":
            device = torch.device("cuda", local if device.index is None else device.index)
            torch.cuda.set_device(device)
    except RuntimeError as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from error
    if "RANK" in os.environ and not dist.is_initialized():
        # Long, because one process may validate or read a slow video while the others wait for it.
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=1))
    return device


def stop():
    """Leave the other processes, together with them unless an error makes this one leave."""
    if dist.is_initialized():
        if sys.exc_info()[0] is None:  # else one that leaves early breaks the others' connections
            dist.barrier()
        dist.destroy_process_group()


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def ranks():
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    """Whether this process is the one that writes and prints."""
    return rank() == 0


@contextlib.contextmanager
def main_first():
    """The body runs on the main process alone and then, when it is through, on the others."""
    if ranks() > 1 and not is_main():
        dist.barrier()
    yield
    if ranks() > 1 and is_main():
        dist.barrier()


def data_parallel(model):
    """The model to call in training: gradients are averaged over the processes after backward."""
    if ranks() == 1:
        return model
    return torch.nn.parallel.DistributedDataParallel(model)


def gather_batch(codes, labels):
    """The global batch: (B, K) codes and (B,) labels of all processes, from B / ranks of each.

    A gradient reaches only this process's codes: every process computes the same loss, so that its
    own part is exact. Data parallelism then averages over processes what should be summed, hence
    the loss must be multiplied by `ranks()` before backward.
    """
    if ranks() == 1:
        return codes, labels
    all_codes = [torch.empty_like(codes) for _ in range(ranks())]
    all_labels = [torch.empty_like(labels) for _ in range(ranks())]
    dist.all_gather(all_codes, codes.detach().contiguous())
    dist.all_gather(all_labels, labels)
    all_codes[rank()] = codes
    return torch.cat(all_codes), torch.cat(all_labels)


def gather_shares(rows, count):
    """The (count, ...) tensor of which each process holds rows rank, rank + ranks, ...; on all.

    rows: None on a process that has none, where there are fewer rows than processes.
    """
    if ranks() == 1:
        return rows
    parts = gather(rows)
    some = next(part for part in parts if part is not None)
    whole = some.new_empty(count, *some.shape[1:])
    for first, part in enumerate(parts):
        if part is not None:
            whole[first :: ranks()] = part
    return whole


def any_process(flag, device):
    """Whether `flag` is true on any process; all of them must ask."""
    if ranks() == 1:
        return flag
    flags = torch.tensor(int(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())


def gather(value):
    """What each process gives, as a list on every process; all of them wait here."""
    if ranks() == 1:
        return [value]
    values = [None] * ranks()
    dist.all_gather_object(values, value)
    return values
