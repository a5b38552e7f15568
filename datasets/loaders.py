"""The DataLoaders of a training run: each process loads its own clips of every batch."""

import multiprocessing
import os
import signal
import threading

import torch
from torch.utils.data import DataLoader

from datasets.process_pool import end_with_parent, use_one_opencv_thread
from datasets.samplers import PKBatchSampler, RandomBatchSampler
from utils.errors import UserError, delay_ctrl_c

try:
    import resource
except ImportError:  # Windows has no limits of that kind
    resource = None

SIGNALS = {signal.SIGINT, signal.SIGTERM}


def build_loaders(train_set, val_set, args, rank=0, world_size=1):
    """(training, validation, database) loaders of the process `rank`.

    Training: this process's clips of each P x K batch. Validation and database: every
    `world_size`-th validation or training clip, each once, with evenly spaced frames.

    args: has batches ("balanced" or "random"), classes_per_batch, clips_per_class, seed, workers.
    """
    batch_size = args.classes_per_batch * args.clips_per_class
    if args.batches == "balanced":
        shape = args.classes_per_batch, args.clips_per_class
        sampler = PKBatchSampler(train_set.labels, *shape, args.seed, rank, world_size)
    else:
        sampler = RandomBatchSampler(train_set.labels, batch_size, args.seed, rank, world_size)

    def eval_loader(data):
        indices = range(rank, len(data), world_size)
        return ClipLoader(data, args.workers, batch_size=batch_size, sampler=indices)

    train_loader = ClipLoader(train_set, args.workers, keep_workers=True, batch_sampler=sampler)
    return train_loader, eval_loader(val_set), eval_loader(train_set)


class ClipLoader(DataLoader):
    """A DataLoader whose worker processes leave signals to the main process and end with it.

    Terminals and schedulers signal every process of a run. A worker that a signal ends would stop
    the main process before that could save. Workers therefore inherit blocked signals, so that
    there is no moment in which a signal is not blocked, whatever handlers PyTorch installs; only
    signals from the main process end them.
    """

    def __init__(self, data, workers, keep_workers=False, **options):
        location = getattr(data, "location", "none")  # of cached clips, and of features
        workers = workers if location in ("none", "disk") else 0  # others are in memory already
        if workers:
            allow_open_files(64 + 10 * workers)
        super().__init__(
            data,
            num_workers=workers,
            persistent_workers=keep_workers and workers > 0,
            pin_memory=torch.cuda.is_available() and location != "device",
            collate_fn=None if location == "none" else _already_a_batch,
            worker_init_fn=_start_worker,
            **options,
        )

    def __iter__(self):
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            return super().__iter__()
        if self.num_workers:
            use_one_opencv_thread()
        with delay_ctrl_c():
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                return super().__iter__()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


def allow_open_files(count):
    """Raise this process's limit of open files to `count`, if it is lower.

    Every batch that a worker sends takes some; without them PyTorch can wait for ever. Raises
    UserError if the system does not allow so many.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= count:
        return
    if hard != unlimited and hard < count:
        raise UserError(
            f"--workers: a process may open only {hard} files here, but {count} are needed; raise "
            "the limit with ulimit -n, or use --workers 0"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _already_a_batch(batch):
    return batch


def _start_worker(_):
    end_with_parent()
    use_one_opencv_thread()
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_obey_parent, daemon=True).start()
    else:  # macOS
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _obey_parent():
    """End this worker when its parent sends a signal, as multiprocessing does at the end."""
    while signal.sigwaitinfo(SIGNALS).si_pid != multiprocessing.parent_process().pid:
        pass
    os._exit(0)
