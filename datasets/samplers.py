"""Batches of P classes with K clips each, as triplet losses need them, and plain random ones."""

import math

import numpy as np
from torch.utils.data import Sampler

from utils.errors import UserError


def fit_batch_shape(labels, classes_per_batch, clips_per_class, fixed=(), world_size=1):
    """(P, K) for the classes that there are: no more than these, and more clips of each instead.

    labels: class id of each clip. fixed: those of "P" and "K" that must stay as they are. P * K
    stays as near to what it was as `world_size` processes can divide. Raises UserError if there
    are fewer than two classes, or no class with two clips.
    """
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2 or counts.max() < 2:
        raise UserError(
            f"the training list has {len(counts)} classes, the largest of {counts.max()} videos; "
            "training needs two classes, and two videos in a class"
        )
    if len(counts) >= classes_per_batch:
        return classes_per_batch, clips_per_class
    batch = classes_per_batch * clips_per_class
    if "P" not in fixed:
        classes_per_batch = len(counts)
    if "K" not in fixed:
        step = world_size // math.gcd(world_size, classes_per_batch)
        clips_per_class = max(batch // classes_per_batch // step, 1) * step
    return classes_per_batch, clips_per_class


class PKBatchSampler(Sampler):
    """Yields batches of P * K pairs (index, seed): K clips from each of P distinct classes.

    An epoch has as many batches as the clips of the list fill. The P classes of a batch are those
    from which the smallest fraction of clips was drawn so far, ties at random: so each clip is
    drawn about once per epoch even if classes differ in size, and exactly P classes are enough.
    A class with fewer than K clips repeats them, each time with another seed and therefore another
    crop and jitter.

    The batches are a pure function of (labels, P, K, seed, epoch), the same on every rank; each
    rank yields every `world_size`-th clip of them, starting at `rank`.

    labels: class id of each clip. Raises UserError if there are fewer than P classes, or if P * K
    is not a multiple of `world_size`.
    """

    def __init__(self, labels, classes_per_batch, clips_per_class, seed=0, rank=0, world_size=1):
        self.members = [np.flatnonzero(np.equal(labels, c)) for c in np.unique(labels)]
        if len(self.members) < classes_per_batch:
            raise UserError(
                f"--classes-per-batch is {classes_per_batch}, but the training list has "
                f"{len(self.members)} classes; lower it, or leave it out"
            )
        if classes_per_batch * clips_per_class % world_size:
            raise UserError(
                f"{classes_per_batch} x {clips_per_class} clips per batch cannot be divided among "
                f"{world_size} processes; change --classes-per-batch or --clips-per-class"
            )
        self.classes_per_batch, self.clips_per_class = classes_per_batch, clips_per_class
        self.seed, self.epoch, self.first_batch = seed, 0, 0
        self.rank, self.world_size = rank, world_size

    def __len__(self):
        clips = sum(map(len, self.members))
        return -(-clips // (self.classes_per_batch * self.clips_per_class))

    def set_position(self, epoch, first_batch=0):
        """Set the epoch of the next iteration, and the batch it starts at, from 0."""
        self.epoch, self.first_batch = epoch, first_batch

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        sizes = np.array([len(members) for members in self.members])
        drawn = np.zeros(len(sizes))
        queues = [[] for _ in sizes]  # shuffled clips of each class that are to be drawn next
        for number in range(len(self)):
            classes = np.lexsort((rng.random(len(sizes)), drawn / sizes))[: self.classes_per_batch]
            drawn[classes] += self.clips_per_class
            batch = []
            for c in classes:
                while len(queues[c]) < self.clips_per_class:
                    queues[c] += rng.permutation(self.members[c]).tolist()
                clips = queues[c][: self.clips_per_class]
                del queues[c][: self.clips_per_class]
                batch += zip(clips, _draw_seeds(rng, len(clips)), strict=True)
            if number >= self.first_batch:
                yield batch[self.rank :: self.world_size]


class RandomBatchSampler(Sampler):
    """Yields batches of (index, seed) pairs of shuffled clips, whatever their classes.

    Each clip is drawn once per epoch; those that do not fill a last batch are left out. Arguments
    and guarantees as for PKBatchSampler, with a batch size instead of P and K.
    """

    def __init__(self, labels, batch_size, seed=0, rank=0, world_size=1):
        if not batch_size <= len(labels) or batch_size % world_size:
            raise UserError(
                f"batches of {batch_size} from {len(labels)} training clips and {world_size} "
                "processes: lower --classes-per-batch, to a multiple of the processes"
            )
        self.count, self.batch_size, self.seed = len(labels), batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.set_position(0)

    def __len__(self):
        return self.count // self.batch_size

    def set_position(self, epoch, first_batch=0):
        """Set the epoch of the next iteration, and the batch it starts at, from 0."""
        self.epoch, self.first_batch = epoch, first_batch

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        clips = rng.permutation(self.count).tolist()
        pairs = list(zip(clips, _draw_seeds(rng, self.count), strict=True))
        for number in range(self.first_batch, len(self)):
            batch = pairs[number * self.batch_size : (number + 1) * self.batch_size]
            yield batch[self.rank :: self.world_size]


def _draw_seeds(rng, count):
    """Seeds for the augmentation of `count` clips: list of int."""
    return rng.integers(2**63, size=count).tolist()
