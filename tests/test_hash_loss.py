"""The loss of training: triplets, classification beside them, and nested codes."""

import pytest
import torch
from torch.nn import functional

from losses import HashLoss, batch_all_triplet_loss
from losses.hash_loss import binarize_straight_through


def make_batch(bits=12):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(9, bits, generator=generator) * 2 - 1, torch.arange(9) // 3


def make_loss(bits=12, **changes):
    options = {"mining": "batch-all", "distance": "hamming", "average": "active", **changes}
    torch.manual_seed(0)
    return HashLoss(bits, 3, bits / 4, **options)


def test_triplets_alone_are_the_default_and_learn_no_weights():
    codes, labels = make_batch()
    loss, stats = make_loss()(codes, labels)
    expected, expected_stats = batch_all_triplet_loss(codes, labels, 3.0)
    assert loss == expected and stats == expected_stats and stats["active"] > 0
    assert not list(make_loss().parameters())


def test_classification_adds_its_weighted_cross_entropy():
    codes, labels = make_batch()
    criterion = make_loss(classification=2.5)
    scores = codes @ criterion.classifier.weight.T + criterion.classifier.bias
    expected = make_loss()(codes, labels)[0] + 2.5 * functional.cross_entropy(scores, labels)
    assert criterion(codes, labels)[0].item() == pytest.approx(expected.item())


def test_training_with_classification_alone_would_learn():
    """Labels reach the codes through the classifier: its gradient separates the classes."""
    codes, labels = make_batch()
    codes = (codes / 10).requires_grad_()
    criterion = make_loss(classification=100.0)
    optimizer = torch.optim.Adam([codes, *criterion.parameters()], 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss, _ = criterion(codes, labels)
        loss.backward()
        optimizer.step()
    scores = criterion.classifier(codes)
    assert torch.equal(scores.argmax(1), labels)


def test_the_loss_of_nested_codes_is_the_mean_over_the_bits_of_the_prefixes():
    codes, labels = make_batch()
    bits = codes.sign()
    losses = [batch_all_triplet_loss(bits[:, :n], labels, n / 4)[0].item() for n in (4, 8, 12)]
    loss, stats = make_loss(prefixes=(4, 8, 12))(codes, labels)
    assert loss.item() == pytest.approx(sum(losses) / 3) and len(set(losses)) == 3
    assert stats == batch_all_triplet_loss(bits, labels, 3.0)[1]
    classified = make_loss(prefixes=(4, 12), classification=1.0)
    weight, bias = classified.classifier.weight, classified.classifier.bias
    expected = [
        functional.cross_entropy(bits[:, :n] @ weight[:, :n].T + bias, labels) for n in (4, 12)
    ]
    without = make_loss(prefixes=(4, 12))(codes, labels)[0]
    difference = classified(codes, labels)[0] - without
    assert difference.item() == pytest.approx(sum(expected).item() / 2, rel=1e-4)


def test_the_gradient_passes_binarisation():
    codes, labels = make_batch()
    codes.requires_grad_()
    make_loss(prefixes=(4, 12))(codes, labels)[0].backward()
    assert (codes.grad != 0).any(dim=0).all()
    bits = binarize_straight_through(torch.tensor([[0.0, 0.3, -0.2]]))
    assert bits.tolist() == [[1.0, 1.0, -1.0]]  # a zero is bit 1, as in retrieval
