"""A training that learns nothing is noticed, one that learns is not, and the remedy is of use."""

from types import SimpleNamespace

import pytest
import torch

from losses import batch_all_triplet_loss
from losses.collapse import advise, find_collapse

LABELS = torch.arange(20) // 5


def epoch(codes):
    """What train.py logs of a batch of codes with margin 8."""
    loss, stats = batch_all_triplet_loss(codes, LABELS, 8.0)
    share = (stats["active"] / stats["valid"]).item()
    return codes.std(dim=0).mean().item(), share, loss.item(), 8.0


def test_equal_codes_and_codes_without_a_class_are_a_collapse():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(20, 64, generator=generator) * 2 - 1
    assert "the same code" in find_collapse(*epoch(0.9 + 0.001 * noise))
    assert "at the margin, 8" in find_collapse(*epoch(0.5 + 0.1 * noise))


def test_codes_that_tell_classes_apart_are_none():
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(4, 64, generator=generator) * 2 - 1
    noise = torch.rand(20, 64, generator=generator) * 2 - 1
    for scale in (0.25, 0.6):  # a little, and well
        assert find_collapse(*epoch(scale * centres[LABELS] + 0.1 * noise)) is None
    assert find_collapse(*epoch(torch.sign(noise))) is None  # no class, but it is not stuck


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"classes_per_batch": 2, "clips_per_class": 5}, "--clips-per-class 15"),
        ({"mining": "batch-hard"}, "--mining batch-all"),
        ({}, "--lr 0.0003"),
    ],
)
def test_the_first_remedy_is_for_the_likeliest_cause(changes, first):
    settings = {"classes_per_batch": 6, "clips_per_class": 5, "mining": "batch-all"}
    settings |= {"lr": 0.001, "warmup_epochs": 6.0}
    assert advise(SimpleNamespace(**settings | changes)).startswith(first)
