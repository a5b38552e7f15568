"""The triplet losses against loops over all triplets."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from losses import DISTANCES, batch_all_triplet_loss, batch_hard_triplet_loss


def pair_distance(u, v, distance):
    if distance == "hamming":
        return (len(u) - (u * v).sum()) / 2
    squared = (u - v).square().sum()
    if distance == "squared":
        return squared
    return squared.sqrt() if squared > 0 else 0 * squared


def all_triplets(labels):
    everyone = range(len(labels))
    return [
        (a, p, n)
        for a in everyone
        for p in everyone
        for n in everyone
        if a != p and labels[a] == labels[p] != labels[n]
    ]


def naive_batch_all(codes, labels, margin, distance, average):
    """The definition, one triplet at a time: (loss, valid, active)."""
    hinges = [
        pair_distance(codes[a], codes[p], distance)
        - pair_distance(codes[a], codes[n], distance)
        + margin
        for a, p, n in all_triplets(labels.tolist())
    ]
    active = [hinge for hinge in hinges if hinge > 0]
    total = sum(active, 0 * codes.sum())
    count = len(active) if average == "active" else len(hinges)
    return total / max(count, 1), len(hinges), len(active)


def random_case(seed):
    """Random sizes and labels; codes around class centres, so that some triplets are inactive."""
    generator = torch.Generator().manual_seed(seed)
    batch = int(torch.randint(4, 12, (1,), generator=generator))
    bits = int(torch.randint(1, 9, (1,), generator=generator))
    labels = torch.randint(0, 4, (batch,), generator=generator)
    centres = torch.randn(4, bits, dtype=torch.float64, generator=generator)
    noise = torch.randn(batch, bits, dtype=torch.float64, generator=generator)
    return (centres[labels] + 0.5 * noise).tanh(), labels, bits


@pytest.mark.parametrize("average", ["active", "valid"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_value_and_gradient_equal_the_loop_on_random_batches(distance, average):
    seen_partly_active = seen_inactive = 0
    for seed in range(30):
        codes, labels, bits = random_case(seed)
        margin = (0.1 + seed % 4) * bits / 8
        ours, theirs = codes.clone().requires_grad_(), codes.clone().requires_grad_()
        loss, stats = batch_all_triplet_loss(ours, labels, margin, distance, average)
        expected, valid, active = naive_batch_all(theirs, labels, margin, distance, average)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)
        assert (stats["valid"].item(), stats["active"].item()) == (valid, active)
        count = active if average == "active" else valid
        assert stats["sum"].item() == pytest.approx(expected.item() * count)
        seen_partly_active += 0 < active < valid
        seen_inactive += active == 0
    # Not vacuous: there are batches with some inactive triplets, and batches with only those.
    assert seen_partly_active >= 15
    assert seen_inactive >= 1


@pytest.mark.parametrize("distance", ["hamming", "squared"])
def test_triplets_exactly_on_the_hinge_are_inactive(distance):
    """Integer distances and margin: many triplets have D[a, p] + m = D[a, n] and are inactive."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2, (14, 6), generator=generator).double() * 2 - 1
    labels = torch.arange(14) % 3
    margin = 1.0 if distance == "hamming" else 4.0
    on_the_hinge = sum(
        pair_distance(codes[a], codes[p], distance) + margin
        == pair_distance(codes[a], codes[n], distance)
        for a, p, n in all_triplets(labels.tolist())
    )
    assert on_the_hinge > 20
    loss, stats = batch_all_triplet_loss(codes, labels, margin, distance)
    expected, valid, active = naive_batch_all(codes, labels, margin, distance, "active")
    torch.testing.assert_close(loss, expected)
    assert (stats["valid"], stats["active"]) == (valid, active)


@pytest.mark.parametrize("loss_function", [batch_all_triplet_loss, batch_hard_triplet_loss])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [5]])
def test_no_valid_triplet_gives_a_zero_that_back_propagates(labels, distance, loss_function):
    codes = torch.randn(len(labels), 8).requires_grad_()
    loss, stats = loss_function(codes, torch.tensor(labels), 2.0, distance)
    loss.backward()
    assert loss.item() == 0
    assert stats["valid"].item() == stats["active"].item() == 0
    assert codes.grad.eq(0).all()


@pytest.mark.parametrize("loss_function", [batch_all_triplet_loss, batch_hard_triplet_loss])
def test_no_active_triplet_gives_a_zero_that_back_propagates(loss_function):
    codes = torch.tensor([[1.0] * 4, [1.0] * 4, [-1.0] * 4, [-1.0] * 4]).requires_grad_()
    loss, stats = loss_function(codes, torch.tensor([0, 0, 1, 1]), 2.0)
    loss.backward()
    assert stats["valid"].item() > 0
    assert loss.item() == stats["active"].item() == 0
    assert codes.grad.eq(0).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_equal_codes_give_finite_gradients(distance):
    codes = torch.full((6, 8), 0.3).requires_grad_()
    loss, stats = batch_all_triplet_loss(codes, torch.arange(6) // 2, 2.0, distance)
    loss.backward()
    assert loss.item() == pytest.approx(2.0)
    assert stats["active"] == stats["valid"]
    assert codes.grad.isfinite().all()


@pytest.mark.parametrize("average", ["active", "valid"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_batch_hard_equals_its_definition(distance, average):
    seen_partly_active = 0
    for seed in range(20):
        codes, labels, bits = random_case(seed)
        margin = bits / 8
        hinges = []
        for a in range(len(labels)):
            triplets = [t for t in all_triplets(labels.tolist()) if t[0] == a]
            if triplets:
                farthest = max(pair_distance(codes[a], codes[p], distance) for _, p, _ in triplets)
                nearest = min(pair_distance(codes[a], codes[n], distance) for _, _, n in triplets)
                hinges.append(max(0.0, (farthest - nearest + margin).item()))
        active = sum(hinge > 0 for hinge in hinges)
        expected = sum(hinges) / max(active if average == "active" else len(hinges), 1)
        loss, stats = batch_hard_triplet_loss(codes, labels, margin, distance, average)
        assert loss.item() == pytest.approx(expected)
        assert (stats["valid"].item(), stats["active"].item()) == (len(hinges), active)
        seen_partly_active += 0 < active < len(hinges)
    assert seen_partly_active >= 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_codes_are_compared_in_float32(dtype):
    codes, labels = torch.randn(16, 64).tanh().to(dtype), torch.arange(16) // 4
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = batch_all_triplet_loss(codes, labels, 16.0)
    expected, _ = batch_all_triplet_loss(codes.float(), labels, 16.0)
    assert loss.dtype == torch.float32
    assert loss.item() == expected.item()


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor made inside."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *(tensor.numel() for tensor in tensors)])
        return result


def test_large_batches_are_exact_and_need_no_tensor_of_all_triplets():
    """B = 1024 in float32 against the definition in float64, one anchor at a time."""
    batch = 1024
    labels = torch.arange(batch) // 4
    codes = (torch.randn(batch // 4, 64)[labels] + torch.randn(batch, 64)).tanh()
    with LargestTensor() as largest:
        loss, stats = batch_all_triplet_loss(codes.requires_grad_(), labels, 16.0)
        loss.backward()
    assert largest.elements == batch**2
    exact = codes.detach().double()
    distances = (64 - exact @ exact.T) / 2
    total = active = 0
    for a in range(batch):
        positive = (labels == labels[a]) & (torch.arange(batch) != a)
        hinges = distances[a, positive][:, None] - distances[a, labels != labels[a]] + 16
        total, active = total + hinges.clamp(min=0).sum(), active + (hinges > 0).sum()
    assert 0 < active < stats["valid"]
    assert loss.item() == pytest.approx((total / active).item(), rel=1e-5)
