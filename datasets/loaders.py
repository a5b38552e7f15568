"""The DataLoaders of a training run, each giving one process its part."""

import multiprocessing
import os
import signal
import threading

import torch
from torch.utils.data import DataLoader

from datasets.cache import CachedDataset
from datasets.samplers import PKBatchSampler, RandomBatchSampler
from utils.process_pool import end_with_parent

SIGNALS = {signal.SIGINT, signal.SIGTERM}


def _already_a_batch(batch):
    return batch


def _start_worker(_):
    end_with_parent()
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_obey_parent, daemon=True).start()
    else:  # macOS
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _obey_parent():
    """End this worker when its parent sends a signal, as multiprocessing does in the end."""
    while signal.sigwaitinfo(SIGNALS).si_pid != multiprocessing.parent_process().pid:
        pass
    os._exit(0)


class ClipLoader(DataLoader):
    """A DataLoader whose worker processes leave signals to the main process and end with it.

    Terminals and schedulers signal every process of a run. A worker that died of it would end the
    main process before that could save. Workers inherit blocked signals, so that there is no
    moment in which one is not blocked, whatever handlers PyTorch installs in them; only signals
    of the main process itself are obeyed.
    """

    def __init__(self, data, workers, keep_workers=False, **options):
        place = data.place if isinstance(data, CachedDataset) else "none"
        workers = workers if place in ("none", "disk") else 0  # the others are in memory already
        super().__init__(
            data,
            num_workers=workers,
            persistent_workers=keep_workers and workers > 0,
            pin_memory=torch.cuda.is_available() and place != "device",
            collate_fn=None if place == "none" else _already_a_batch,
            worker_init_fn=_start_worker,
            **options,
        )

    def __iter__(self):
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def build_loaders(train_set, val_set, args, rank=0, ranks=1):
    """(training, validation, database) loaders of process `rank` of `ranks`.

    The first gives its part of each P x K batch; the others its part of the validation and of the
    training clips, each once, with evenly spaced frames.

    args: has batches ("balanced" or "random"), classes_per_batch, clips_per_class, seed, workers.
    """
    shape = args.classes_per_batch, args.clips_per_class
    if args.batches == "balanced":
        sampler = PKBatchSampler(train_set.labels, *shape, args.seed, rank, ranks)
    else:
        size = shape[0] * shape[1]
        sampler = RandomBatchSampler(train_set.labels, size, args.seed, rank, ranks)
    train_loader = ClipLoader(train_set, args.workers, keep_workers=True, batch_sampler=sampler)
    batch_size = args.classes_per_batch * args.clips_per_class
    eval_loaders = [
        ClipLoader(data, args.workers, batch_size=batch_size, sampler=range(rank, len(data), ranks))
        for data in (val_set, train_set)
    ]
    return train_loader, *eval_loaders
