"""Triplet losses over all triplets, or the hardest ones, of a batch of approximate hash codes.

H. Lai, Y. Pan, Y. Liu, S. Yan, "Simultaneous Feature Learning and Hash Coding with Deep Neural
Networks", CVPR 2015, https://arxiv.org/abs/1504.03410 (the triplet ranking loss on relaxed codes).
A. Hermans, L. Beyer, B. Leibe, "In Defense of the Triplet Loss for Person Re-Identification",
2017, https://arxiv.org/abs/1703.07737 (batch-all, batch-hard, the mean over active triplets).

Differences from the papers:
- Codes lie in (-1, 1) instead of [0, 1], and the default distance is (K - <u, v>) / 2, which is the
  Hamming distance where codes are binary.
- Batch-all is exact but never enumerates triplets. The hinge is piecewise linear, so its value and
  gradient follow from how many triplets each distance takes part in, and those counts from sorting
  the positives of each anchor: O(B² log B) time and O(B²) memory instead of O(B³) and O(B³).
"""

import torch
from torch.nn import functional


def relaxed_hamming_distances(codes):
    """(B, K) codes in [-1, 1] -> (B, B) distances (K - <u, v>) / 2, in bits."""
    return (codes.shape[1] - codes @ codes.T) / 2


def squared_distances(codes):
    """(B, K) codes -> (B, B) squared Euclidean distances, clamped at zero against rounding."""
    norms = codes.square().sum(dim=1)
    return (norms[:, None] + norms[None, :] - 2 * codes @ codes.T).clamp(min=0)


def euclidean_distances(codes):
    """(B, K) codes -> (B, B) Euclidean distances; the gradient at distance zero is zero."""
    squares = squared_distances(codes)
    near = squares < torch.finfo(squares.dtype).eps
    return squares.masked_fill(near, 1).sqrt().masked_fill(near, 0)


DISTANCES = {
    "hamming": relaxed_hamming_distances,
    "squared": squared_distances,
    "euclidean": euclidean_distances,
}


def _pairwise_distances(codes, distance):
    """Distances in float32 or better, also under autocast."""
    if codes.dtype in (torch.float16, torch.bfloat16):
        codes = codes.float()
    with torch.autocast(codes.device.type, enabled=False):
        return DISTANCES[distance](codes)


def _pair_masks(labels):
    """(B,) labels -> (B, B) bool masks of the (anchor, positive) and (anchor, negative) pairs."""
    same = labels[:, None] == labels[None, :]
    return same.logical_and(~torch.eye(len(labels), dtype=torch.bool, device=labels.device)), ~same


def _triplet_counts(distances, labels, margin):
    """How many active triplets each pair takes part in.

    A triplet (a, p, n) is active where D[a, p] + margin > D[a, n]. With the thresholds
    D[a, p] + margin of each anchor sorted, the rank of D[a, n] among them says how many p are
    active with n; a histogram of those ranks says, summed up, how many n are active with each p.

    Returns (w_p (B, B), w_n (B, B), active): w_p[a, p] counts negatives, w_n[a, n] counts
    positives, both 0 for other pairs and in the dtype of `distances`; `active` is a float64 scalar.
    """
    positives, negatives = _pair_masks(labels)
    num_positives = positives.sum(dim=1, keepdim=True)  # (B, 1)
    thresholds = torch.where(positives, distances + margin, torch.inf)
    # On a GPU the whole rows are kept: asking for the largest class would wait for the device.
    width = len(labels) if labels.is_cuda else max(int(num_positives.max()), 1)
    thresholds, columns = torch.topk(thresholds, width, dim=1, largest=False)  # (B, width), sorted
    ranks = torch.searchsorted(thresholds, distances, right=True)  # (B, B): thresholds <= D[a, n]
    ranks = torch.minimum(ranks, num_positives)
    w_n = torch.where(negatives, num_positives - ranks, 0).to(distances.dtype)

    histogram = distances.new_zeros(len(labels), width + 1)  # negatives of each rank
    histogram.scatter_add_(1, ranks, negatives.to(distances.dtype))
    below = histogram[:, :-1].cumsum(dim=1)  # negatives that are active with the j-th positive
    valid = torch.arange(width, device=labels.device) < num_positives
    w_p = torch.zeros_like(distances).scatter_(1, columns, below * valid)
    return w_p, w_n, w_n.sum(dtype=torch.float64)


def _mean(total, active, valid, average):
    """`total` over the active or the valid triplets; zero, with a gradient of zero, over none."""
    return total / (active if average == "active" else valid).clamp(min=1)


def batch_all_triplet_loss(codes, labels, margin, distance="hamming", average="active"):
    """Mean of max(0, D[a, p] - D[a, n] + margin) over every triplet of the batch, exactly.

    codes: (B, K) float, approximate hash codes. labels: (B,) int. margin: in units of `distance`.
    distance: a key of DISTANCES. average: divide by the "active" (loss above zero) or by all
    "valid" triplets.
    Returns (loss, stats): a scalar to back-propagate, zero where no triplet is active, and
    {"valid", "active"}, the numbers of triplets as scalar float64 tensors on the device.
    """
    distances = _pairwise_distances(codes, distance)
    with torch.no_grad():
        w_p, w_n, active = _triplet_counts(distances, labels, margin)
        positives, negatives = _pair_masks(labels)
        valid = (positives.sum(dim=1) * negatives.sum(dim=1)).sum().double()
        weights = w_p - w_n
    # Positive and negative terms nearly cancel, so they are summed in float64.
    total = (weights * distances).sum(dtype=torch.float64) + margin * active
    loss = _mean(total, active, valid, average).to(distances.dtype)
    return loss, {"valid": valid, "active": active}


def batch_hard_triplet_loss(codes, labels, margin, distance="hamming", average="active"):
    """The same hinge over one triplet an anchor: its farthest positive and its nearest negative.

    Arguments and results are those of `batch_all_triplet_loss`; anchors without a positive or a
    negative have no triplet.
    """
    distances = _pairwise_distances(codes, distance)
    positives, negatives = _pair_masks(labels)
    is_valid = positives.any(dim=1) & negatives.any(dim=1)
    hardest_positive = distances.masked_fill(~positives, -torch.inf).amax(dim=1)
    hardest_negative = distances.masked_fill(~negatives, torch.inf).amin(dim=1)
    differences = (hardest_positive - hardest_negative).masked_fill(~is_valid, -torch.inf)
    hinges = functional.relu(differences + margin)
    valid, active = is_valid.sum().double(), (hinges > 0).sum().double()
    loss = _mean(hinges.sum(dtype=torch.float64), active, valid, average).to(distances.dtype)
    return loss, {"valid": valid, "active": active}


MINING = {"batch-all": batch_all_triplet_loss, "batch-hard": batch_hard_triplet_loss}
