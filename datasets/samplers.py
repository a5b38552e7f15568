"""Batches of P classes with K clips each, as triplet losses need them, and plain random ones."""

import numpy as np
from torch.utils.data import Sampler

from utils.errors import UserError


class PKBatchSampler(Sampler):
    """Yields batches of P * K pairs (index, seed): K clips from each of P distinct classes.

    An epoch has as many batches as cover the list once. The P classes of a batch are those whose
    share of clips drawn so far is lowest, ties at random, so that every clip comes about once an
    epoch even where classes differ in size, and exactly P classes are enough. A class with fewer
    than K clips repeats them, each time with another seed and so another crop and jitter.

    The batches are a pure function of (labels, P, K, seed, epoch), the same on every rank; rank r
    of `ranks` gets every ranks-th clip of each, starting at r.

    labels: class id of each clip. Raises UserError when there are fewer than P classes, or when
    the ranks cannot share P * K clips evenly.
    """

    def __init__(self, labels, classes_per_batch, clips_per_class, seed=0, rank=0, ranks=1):
        self.members = [np.flatnonzero(np.equal(labels, c)) for c in np.unique(labels)]
        if len(self.members) < classes_per_batch:
            raise UserError(
                f"{classes_per_batch} classes a batch were asked for, but the training list has "
                f"{len(self.members)}; lower --classes-per-batch"
            )
        if classes_per_batch * clips_per_class % ranks:
            raise UserError(
                f"{classes_per_batch} x {clips_per_class} clips cannot be divided among {ranks} "
                "processes; change --classes-per-batch or --clips-per-class"
            )
        self.classes_per_batch, self.clips_per_class = classes_per_batch, clips_per_class
        self.seed, self.epoch, self.first_batch = seed, 0, 0
        self.rank, self.ranks = rank, ranks

    def __len__(self):
        clips = sum(map(len, self.members))
        return -(-clips // (self.classes_per_batch * self.clips_per_class))

    def set_position(self, epoch, first_batch=0):
        """Choose the epoch that the next iteration gives, and the batch it starts at, from 0."""
        self.epoch, self.first_batch = epoch, first_batch

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        queues = [[] for _ in self.members]
        drawn = np.zeros(len(self.members))
        sizes = np.array([len(members) for members in self.members])
        for number in range(len(self)):
            order = np.lexsort((rng.random(len(sizes)), drawn / sizes))
            batch = []
            for c in order[: self.classes_per_batch]:
                drawn[c] += self.clips_per_class
                while len(queues[c]) < self.clips_per_class:
                    queues[c].extend(rng.permutation(self.members[c]).tolist())
                clips, queues[c] = (
                    queues[c][: self.clips_per_class],
                    queues[c][self.clips_per_class :],
                )
                batch += zip(clips, rng.integers(2**63, size=len(clips)).tolist(), strict=True)
            if number >= self.first_batch:
                yield batch[self.rank :: self.ranks]


class RandomBatchSampler(Sampler):
    """Yields batches of (index, seed) pairs of shuffled clips, whatever their classes.

    Each clip comes once an epoch, but for those that do not fill a last batch. Arguments and
    guarantees as for PKBatchSampler, with a batch size in place of P and K.
    """

    def __init__(self, labels, batch_size, seed=0, rank=0, ranks=1):
        if not batch_size <= len(labels) or batch_size % ranks:
            raise UserError(
                f"batches of {batch_size} from {len(labels)} training clips and {ranks} processes: "
                "lower --classes-per-batch, to a multiple of the processes"
            )
        self.count, self.batch_size, self.seed = len(labels), batch_size, seed
        self.rank, self.ranks = rank, ranks
        self.set_position(0)

    def __len__(self):
        return self.count // self.batch_size

    def set_position(self, epoch, first_batch=0):
        """Choose the epoch that the next iteration gives, and the batch it starts at, from 0."""
        self.epoch, self.first_batch = epoch, first_batch

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.count)
        pairs = list(
            zip(order.tolist(), rng.integers(2**63, size=self.count).tolist(), strict=True)
        )
        for number in range(self.first_batch, len(self)):
            batch = pairs[number * self.batch_size : (number + 1) * self.batch_size]
            yield batch[self.rank :: self.ranks]
