"""The DataLoaders of a training run, each giving one process its part."""

import torch
from torch.utils.data import DataLoader

from datasets.cache import CachedClips
from datasets.samplers import PKBatchSampler, RandomBatchSampler


def _already_a_batch(batch):
    return batch


def _loader(data, args, **options):
    """Frame folders are read by worker processes; a cache gives whole batches by itself."""
    if isinstance(data, CachedClips):
        pin = data.device.type == "cpu" and torch.cuda.is_available()
        return DataLoader(data, collate_fn=_already_a_batch, pin_memory=pin, **options)
    return DataLoader(
        data, num_workers=args.workers, pin_memory=torch.cuda.is_available(), **options
    )


def build_loaders(train_set, val_set, args, rank=0, ranks=1):
    """(training, validation, database) DataLoaders of process `rank` of `ranks`.

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
    workers_stay = args.workers > 0 and not isinstance(train_set, CachedClips)
    batch_size = args.classes_per_batch * args.clips_per_class
    return (
        _loader(train_set, args, batch_sampler=sampler, persistent_workers=workers_stay),
        *(
            _loader(data, args, batch_size=batch_size, sampler=range(rank, len(data), ranks))
            for data in (val_set, train_set)
        ),
    )
