"""Triplet losses on approximate hash codes: over all triplets of a batch, or the hardest ones.

H. Lai, Y. Pan, Y. Liu, S. Yan, "Simultaneous Feature Learning and Hash Coding with Deep Neural
Networks", CVPR 2015, https://arxiv.org/abs/1504.03410 (triplet ranking loss on relaxed codes).
A. Hermans, L. Beyer, B. Leibe, "In Defense of the Triplet Loss for Person Re-Identification",
2017, https://arxiv.org/abs/1703.07737 (batch-all, batch-hard, mean over the active triplets).

For an anchor a, a positive p of its class and a negative n of another class, with the distances D
of the codes and a margin m:

    loss(a, p, n) = max(0, D[a, p] - D[a, n] + m)                                               (1)

A triplet is valid if a, p, n are as above, and active if its loss is above zero. Batch-all is the
mean of (1) over the active (or over the valid) triplets of the batch.

Batch-all in O(B² log B) time and O(B²) memory. There are O(B³) triplets, but (1) is piecewise
linear in D, so the sum over all triplets only needs the number of active triplets of each pair:

    w_p[a, p] = number of negatives n of a with D[a, n] < D[a, p] + m                           (2)
    w_n[a, n] = number of positives p of a with D[a, p] + m > D[a, n]                           (3)
    sum of (1) = Σ w_p[a, p] D[a, p] - Σ w_n[a, n] D[a, n] + m · (number of active triplets)    (4)

Sorting D[a, p] + m for each anchor yields both counts. They are piecewise constant in D, so they
are constants for autograd, and the gradient of (4) is the exact gradient of the sum.

Differences from the papers:
- Codes are in (-1, 1) instead of [0, 1]. The default distance is (K - <u, v>) / 2, which is the
  Hamming distance for binary codes.
- The value and the gradient of batch-all are exact, but no triplet is enumerated.
"""

import torch
from torch.nn import functional

# ==== distances: (B, K) codes -> (B, B) ====


def relaxed_hamming_distances(codes):
    """(K - <u, v>) / 2, in bits; equal to the Hamming distance for codes of ±1."""
    return (codes.shape[1] - codes @ codes.T) / 2


def squared_distances(codes):
    """Squared Euclidean distances, clamped at zero against rounding errors."""
    norms = codes.square().sum(dim=1)  # (B,)
    return (norms[:, None] + norms[None, :] - 2 * codes @ codes.T).clamp(min=0)


def euclidean_distances(codes):
    """Euclidean distances; the gradient at distance zero is zero."""
    squares = squared_distances(codes)
    near = squares < torch.finfo(squares.dtype).eps
    return squares.masked_fill(near, 1).sqrt().masked_fill(near, 0)


DISTANCES = {
    "hamming": relaxed_hamming_distances,
    "squared": squared_distances,
    "euclidean": euclidean_distances,
}


def _pairwise_distances(codes, distance):
    """(B, B) distances in float32 or float64, also under autocast."""
    if codes.dtype in (torch.float16, torch.bfloat16):
        codes = codes.float()
    with torch.autocast(codes.device.type, enabled=False):
        return DISTANCES[distance](codes)


# ==== losses ====


def batch_all_triplet_loss(codes, labels, margin, distance="hamming", average="active"):
    """Mean of equation (1) over all triplets of the batch, exactly.

    codes: (B, K) float, approximate hash codes. labels: (B,) int. margin: in units of `distance`.
    distance: a key of DISTANCES. average: "active" divides by the number of active triplets,
    "valid" by the number of valid ones.
    Returns (loss, stats): a scalar for backward, zero if no triplet is active, and scalar float64
    tensors on the device: the numbers of {"valid", "active"} triplets, the sum of their losses.
    """
    distances = _pairwise_distances(codes, distance)  # (B, B)
    positives, negatives = _pair_masks(labels)  # (B, B), (B, B)
    with torch.no_grad():
        w_p, w_n, active = _count_active(distances, positives, negatives, margin)
        valid = (positives.sum(dim=1) * negatives.sum(dim=1)).sum().double()
        weights = w_p - w_n  # (B, B)
    # Equation (4), in float64 because the terms of positives and negatives nearly cancel.
    total = (weights * distances).sum(dtype=torch.float64) + margin * active
    loss = _mean(total, active, valid, average).to(distances.dtype)
    return loss, {"valid": valid, "active": active, "sum": total.detach()}


def batch_hard_triplet_loss(codes, labels, margin, distance="hamming", average="active"):
    """Mean of (1) over one triplet per anchor: its farthest positive and its nearest negative.

    Arguments and results as for `batch_all_triplet_loss`. Anchors without a positive or without a
    negative have no triplet.
    """
    distances = _pairwise_distances(codes, distance)  # (B, B)
    positives, negatives = _pair_masks(labels)  # (B, B), (B, B)
    is_valid = positives.any(dim=1) & negatives.any(dim=1)  # (B,)
    farthest_positive = distances.masked_fill(~positives, -torch.inf).amax(dim=1)  # (B,)
    nearest_negative = distances.masked_fill(~negatives, torch.inf).amin(dim=1)  # (B,)
    differences = (farthest_positive - nearest_negative).masked_fill(~is_valid, -torch.inf)
    losses = functional.relu(differences + margin)  # (B,)
    valid, active = is_valid.sum().double(), (losses > 0).sum().double()
    total = losses.sum(dtype=torch.float64)
    loss = _mean(total, active, valid, average).to(distances.dtype)
    return loss, {"valid": valid, "active": active, "sum": total.detach()}


MINING = {"batch-all": batch_all_triplet_loss, "batch-hard": batch_hard_triplet_loss}


def _pair_masks(labels):
    """(B,) labels -> (B, B) bool masks of the (anchor, positive) and (anchor, negative) pairs."""
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same


def _count_active(distances, positives, negatives, margin):
    """The counts w_p and w_n of equations (2) and (3), and the number of active triplets.

    distances, positives, negatives: (B, B). Returns w_p, w_n (B, B), zero for all other pairs and
    in the dtype of `distances`, and a float64 scalar.
    """
    num_positives = positives.sum(dim=1, keepdim=True)  # (B, 1)
    # P: the largest number of positives. On a GPU reading it would wait for the device, so P = B.
    width = len(distances) if distances.is_cuda else max(int(num_positives.max()), 1)

    # (3): if j positives have D[a, p] + m <= D[a, n], the other num_positives - j are active.
    thresholds = torch.where(positives, distances + margin, torch.inf)  # (B, B)
    thresholds, columns = torch.topk(thresholds, width, dim=1, largest=False)  # (B, P), sorted
    ranks = torch.searchsorted(thresholds, distances, right=True)  # (B, B), the j of each n
    ranks = torch.minimum(ranks, num_positives)
    w_n = torch.where(negatives, num_positives - ranks, 0).to(distances.dtype)  # (B, B)

    # (2): the negatives of ranks 0..i are active with the i-th positive.
    histogram = distances.new_zeros(len(distances), width + 1)  # negatives of each rank
    histogram.scatter_add_(1, ranks, negatives.to(distances.dtype))
    counts = histogram[:, :-1].cumsum(dim=1)  # (B, P)
    is_positive = torch.arange(width, device=distances.device) < num_positives  # (B, P)
    w_p = torch.zeros_like(distances).scatter_(1, columns, counts * is_positive)  # (B, B)
    return w_p, w_n, w_n.sum(dtype=torch.float64)


def _mean(total, active, valid, average):
    """`total` per active or valid triplet; zero, with a zero gradient, where there are none."""
    return total / (active if average == "active" else valid).clamp(min=1)
