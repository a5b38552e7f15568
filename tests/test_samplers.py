"""P x K batches: every batch has exactly P classes with K clips, whatever the classes' sizes."""

from collections import Counter

import numpy as np
import pytest

from datasets.samplers import PKBatchSampler, RandomBatchSampler, fit_batch_shape

UNEQUAL = [0] * 40 + [1] * 7 + [2] * 3 + [3] + [7] * 20  # class ids need not be dense


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("clips", [1, 4])
def test_every_batch_has_p_classes_with_k_clips(classes, clips):
    sampler = PKBatchSampler(UNEQUAL, classes, clips, seed=1)
    batches = list(sampler)
    assert len(batches) == len(sampler) > 0  # exactly P classes are enough
    for batch in batches:
        counts = Counter(UNEQUAL[index] for index, _ in batch)
        assert len(counts) == classes and set(counts.values()) == {clips}


def test_an_epoch_covers_balanced_data():
    labels = [c for c in range(10) for _ in range(12)]
    drawn = Counter(index for batch in PKBatchSampler(labels, 5, 4) for index, _ in batch)
    assert len(drawn) == 120 and set(drawn.values()) == {1}


def test_large_classes_are_drawn_more_often():
    labels = [0] * 60 + [1] * 20 + [2] * 20 + [3] * 20
    sampler = PKBatchSampler(labels, 2, 4)
    drawn = Counter(labels[index] for batch in sampler for index, _ in batch)
    assert drawn[0] > 1.5 * max(drawn[1], drawn[2], drawn[3])


def test_a_small_class_repeats_its_clips_with_other_seeds():
    sampler = PKBatchSampler([0, 0, 1, 1, 1, 1], 2, 4)
    for batch in sampler:
        small = [item for item in batch if item[0] < 2]
        assert len(small) == len(set(small)) == 4
        assert Counter(index for index, _ in small) == {0: 2, 1: 2}


def test_batches_are_a_function_of_seed_and_epoch():
    def batches(seed, epoch):
        sampler = PKBatchSampler(UNEQUAL, 3, 4, seed=seed)
        sampler.set_position(epoch)
        return list(sampler)

    assert batches(0, 3) == batches(0, 3)
    assert batches(0, 3) != batches(0, 4)
    assert batches(0, 3) != batches(1, 3)


def test_ranks_divide_the_global_batch():
    whole = list(PKBatchSampler(UNEQUAL, 3, 4, seed=2))
    parts = [list(PKBatchSampler(UNEQUAL, 3, 4, 2, rank=r, world_size=2)) for r in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert len(first) == len(second) == 6
        assert sorted(batch) == sorted(first + second)


def test_an_epoch_can_be_entered_in_the_middle():
    sampler = PKBatchSampler(UNEQUAL, 3, 4)
    whole = list(sampler)
    sampler.set_position(0, first_batch=2)
    assert list(sampler) == whole[2:] and len(sampler) == len(whole)


def test_batches_that_ranks_cannot_share_are_refused():
    with pytest.raises(ValueError, match="divided among 4 processes"):
        PKBatchSampler(UNEQUAL, 3, 2, world_size=4)


def test_too_few_classes_are_refused():
    with pytest.raises(ValueError, match="--classes-per-batch"):
        PKBatchSampler([0, 0, 1, 1], 3, 2)


@pytest.mark.parametrize(
    ("labels", "fixed", "world_size", "shape"),
    [
        ([0, 0, 1, 1], "", 1, (2, 15)),
        ([0, 0, 5, 5, 7], "", 1, (3, 10)),
        ([0, 0, 1, 2, 3, 3], "", 1, (4, 7)),
        ([0, 0, 1, 1], "", 4, (2, 14)),  # 28 clips for four processes
        (list(range(6)) * 2, "", 1, (6, 5)),  # enough classes: as it was
        (list(range(9)) * 2, "", 1, (6, 5)),
        ([0, 0, 1, 1], "K", 1, (2, 5)),
        ([0, 0, 1, 1], "P", 1, (6, 5)),  # refused by PKBatchSampler
        ([0, 0, 1, 1], "PK", 1, (6, 5)),
    ],
)
def test_batches_fit_the_classes_unless_they_are_fixed(labels, fixed, world_size, shape):
    assert fit_batch_shape(labels, 6, 5, fixed, world_size) == shape


@pytest.mark.parametrize("labels", [[3, 3, 3], [0, 1, 2]])
def test_a_list_without_triplets_is_refused(labels):
    with pytest.raises(ValueError, match="needs two classes, and two videos"):
        fit_batch_shape(labels, 6, 5)


def test_random_batches_are_a_function_of_seed_and_epoch_and_cover_the_list_once():
    labels = np.arange(26) % 3
    one, two = RandomBatchSampler(labels, 8, seed=1), RandomBatchSampler(labels, 8, seed=1)
    first = list(one)
    assert first == list(two) and len(first) == len(one) == 3
    indices = [index for batch in first for index, _ in batch]
    assert len(set(indices)) == 24 and set(indices) <= set(range(26))
    one.set_position(1)
    assert list(one) != first
    one.set_position(0, first_batch=2)
    assert list(one) == first[2:]
    ranks = [list(RandomBatchSampler(labels, 8, 1, rank, 2)) for rank in range(2)]
    assert [a[0::2] for a in first] == ranks[0] and [a[1::2] for a in first] == ranks[1]
    for size, count in ((27, 1), (9, 2)):
        with pytest.raises(ValueError, match="lower --classes-per-batch"):
            RandomBatchSampler(labels, size, world_size=count)
