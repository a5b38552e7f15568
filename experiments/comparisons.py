"""What experiments/recipe.py compares with ours: other losses, and codes made without labels."""

import faiss
import torch
from torch.nn import functional

from losses import DISTANCES
from retrieval.codes import binarize
from retrieval.metrics import evaluate

# ==== losses; one that helps would move to losses/ ====


def semi_hard(codes, labels, margin, distance):
    """Triplets whose negative is farther than the positive but within the margin (Schroff 2015)."""
    distances = DISTANCES[distance](codes)
    same = labels[:, None] == labels
    gap = distances[:, None, :] - distances[:, :, None]  # [a, p, n]
    valid = (same & ~torch.eye(len(labels), dtype=torch.bool))[:, :, None] & ~same[:, None, :]
    chosen = valid & (gap > 0) & (gap < margin)
    return ((margin - gap) * chosen).sum() / chosen.sum().clamp(min=1)


def decorrelation(codes):
    """Squared correlations of different bits (Barlow Twins' second term, Zbontar et al. 2021)."""
    centred = codes - codes.mean(0)
    correlation = functional.normalize(centred, dim=0).T @ functional.normalize(centred, dim=0)
    off = correlation - torch.diag(torch.diag(correlation))
    return off.square().mean()


def hadamard_centres(classes, bits, generator):
    """Central similarity's targets (Yuan et al. 2020): rows of a Hadamard matrix, cut to K bits."""
    matrix, size = torch.ones(1, 1), 1
    while size < max(bits, classes):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        size *= 2
    rows = 1 + torch.randperm(size - 1, generator=generator)[:classes]
    return matrix[rows, :bits]


def tie_aware_ap(codes, labels):
    """1 - mean AP of the batch over histograms of relaxed distances (He et al., CVPR 2018)."""
    bits = codes.shape[1]
    distances = (bits - codes @ codes.T) / 2
    others = ~torch.eye(len(labels), dtype=torch.bool)
    relevant = (labels[:, None] == labels) & others
    bins = torch.arange(bits + 1)
    share = (1 - (distances[..., None] - bins).abs()).clamp(min=0)  # (B, B, K + 1)
    found = (share * relevant[..., None]).sum(1)
    seen = (share * others[..., None]).sum(1)
    below = found.cumsum(1), seen.cumsum(1)
    precision = (1 + 2 * below[0] - found) / (1 + 2 * below[1] - seen)
    return 1 - ((found * precision).sum(1) / relevant.sum(1).clamp(min=1)).mean()


# ==== codes without labels ====


def itq(features, bits, seed):
    """Iterative quantisation (Gong & Lazebnik, CVPR 2011): PCA and the best rotation, by Faiss."""
    transform = faiss.ITQTransform(features.shape[1], bits, True)
    transform.itq.seed = seed
    transform.train(features.numpy())
    return lambda x: torch.from_numpy(transform.apply_py(x.contiguous().numpy()))


def hyperplanes(features, bits, seed):
    """Signs of random projections (Charikar 2002) of centred features."""
    planes = torch.randn(features.shape[1], bits, generator=torch.Generator().manual_seed(seed))
    return lambda x: (x - features.mean(0)) @ planes


BASELINES = {
    "ITQ of the features": itq,
    "random hyperplanes of the features": hyperplanes,
}
"""Name -> what makes codes of features without labels: (training features, bits, seed) -> f."""


# ==== what codes are worth ====


def scores(query, query_labels, database, database_labels):
    """mAP over all ranks of binary codes, and of real-valued codes under the same distance."""
    metrics = evaluate(binarize(query), query_labels, binarize(database), database_labels)
    real = real_map(query, query_labels, database, database_labels)
    return {"map": metrics["map"], "map_real": real}


def real_map(query, query_labels, database, database_labels):
    """mAP over all ranks by (K - <u, v>) / 2 of real-valued codes."""
    order = (query @ database.T).argsort(dim=1, descending=True, stable=True)
    relevant = (database_labels[order] == query_labels[:, None]).double()
    ranks = torch.arange(1, relevant.shape[1] + 1)
    precision = relevant.cumsum(1) / ranks
    return ((precision * relevant).sum(1) / relevant.sum(1).clamp(min=1)).mean().item()
