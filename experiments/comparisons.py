"""What the experiments compare with our loss: other losses, and codes made without labels."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from losses import DISTANCES
from models.itq import fit_hash_layer
from retrieval.codes import binarize
from retrieval.metrics import evaluate

# ==== losses of codes (B, K) and labels (B,); one that helps would move to losses/ ====


def semi_hard(codes, labels, margin, distance):
    """Mean over the semi-hard triplets: D[a, p] < D[a, n] < D[a, p] + margin.

    F. Schroff, D. Kalenichenko, J. Philbin, "FaceNet", CVPR 2015, https://arxiv.org/abs/1503.03832.
    """
    distances = DISTANCES[distance](codes)
    same = labels[:, None] == labels
    positives = same & ~torch.eye(len(labels), dtype=torch.bool)
    gap = distances[:, None, :] - distances[:, :, None]  # (B, B, B), [a, p, n]
    chosen = positives[:, :, None] & ~same[:, None, :] & (gap > 0) & (gap < margin)
    return ((margin - gap) * chosen).sum() / chosen.sum().clamp(min=1)


def decorrelation(codes):
    """Mean squared correlation of different bits, the second term of Barlow Twins.

    J. Zbontar et al., "Barlow Twins", ICML 2021, https://arxiv.org/abs/2103.03230.
    """
    centred = codes - codes.mean(0)
    correlation = functional.normalize(centred, dim=0).T @ functional.normalize(centred, dim=0)
    return (correlation - torch.diag(torch.diag(correlation))).square().mean()  # of (K, K)


def hadamard_centres(classes, bits, generator):
    """(classes, bits) codes of ±1 far from each other: rows of a Hadamard matrix, cut to K bits.

    The targets of central similarity: L. Yuan et al., CVPR 2020, https://arxiv.org/abs/1908.00347.
    """
    matrix, size = torch.ones(1, 1), 1
    while size < max(bits, classes):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        size *= 2
    rows = 1 + torch.randperm(size - 1, generator=generator)[:classes]
    return matrix[rows, :bits]


def tie_aware_ap(codes, labels):
    """1 - mean AP of the batch, over soft histograms of the relaxed distances.

    K. He, F. Cakir, S. A. Bargal, S. Sclaroff, "Hashing as tie-aware learning to rank", CVPR 2018,
    https://arxiv.org/abs/1705.08562.
    """
    bits = codes.shape[1]
    distances = (bits - codes @ codes.T) / 2
    others = ~torch.eye(len(labels), dtype=torch.bool)
    relevant = (labels[:, None] == labels) & others
    bins = torch.arange(bits + 1)
    weights = (1 - (distances[..., None] - bins).abs()).clamp(min=0)  # (B, B, K + 1)
    found = (weights * relevant[..., None]).sum(1)  # (B, K + 1) relevant items per distance
    seen = (weights * others[..., None]).sum(1)  # (B, K + 1) items per distance
    precision = (1 + 2 * found.cumsum(1) - found) / (1 + 2 * seen.cumsum(1) - seen)
    return 1 - ((found * precision).sum(1) / relevant.sum(1).clamp(min=1)).mean()


class FunctionTerm(nn.Module):
    """A term without weights of its own: function of (codes, labels)."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, codes, labels):
        return self.function(codes, labels)


class Classifier(nn.Module):
    """Cross-entropy of a linear classifier on the codes."""

    def __init__(self, classes, bits, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(bits, classes)

    def forward(self, codes, labels):
        return functional.cross_entropy(self.layer(codes), labels)


class Proxies(nn.Module):
    """Cross-entropy of cosines to learnt class vectors, times 8."""

    def __init__(self, classes, bits, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.proxies = nn.Parameter(torch.randn(classes, bits, generator=generator) / 8)

    def forward(self, codes, labels):
        cosines = functional.normalize(codes) @ functional.normalize(self.proxies).T
        return functional.cross_entropy(8 * cosines, labels)


class Centres(nn.Module):
    """Distance to the Hadamard centres of the classes.

    kind: "central" is the binary cross-entropy with their bits (central similarity), "fixed" the
    cross-entropy of a classifier whose weights they are.
    """

    def __init__(self, kind, classes, bits, seed):
        super().__init__()
        self.kind = kind
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("centres", hadamard_centres(classes, bits, generator))

    def forward(self, codes, labels):
        if self.kind == "fixed":
            scores = 8 / codes.shape[1] * codes @ self.centres.T
            return functional.cross_entropy(scores, labels)
        targets = (self.centres[labels] + 1) / 2
        return functional.binary_cross_entropy((codes + 1) / 2, targets)


def _without_weights(function):
    return lambda classes, bits, seed: FunctionTerm(function)


# Name -> function of (number of classes, bits, seed) that makes a term of (codes, labels).
TERMS = {
    "quantisation": _without_weights(lambda c, _: c.shape[1] / 4 * (1 - c.abs()).square().mean()),
    "balance": _without_weights(lambda c, _: c.shape[1] / 4 * c.mean(0).square().mean()),
    "decorrelation": _without_weights(lambda c, _: c.shape[1] / 4 * decorrelation(c)),
    "classifier": Classifier,
    "central": partial(Centres, "central"),
    "fixed": partial(Centres, "fixed"),
    "proxy": Proxies,
    "average_precision": _without_weights(tie_aware_ap),
    "semi_hard": _without_weights(lambda c, y: semi_hard(c, y, c.shape[1] / 8, "hamming")),
}


# ==== codes made without labels: (training features, bits, seed) -> function of features ====


def itq(features, bits, seed):
    """The hash layer of `models.itq`."""
    layer = nn.Linear(features.shape[1], bits)
    fit_hash_layer(layer, features.contiguous(), seed)
    return lambda x: layer(x).detach()


def hyperplanes(features, bits, seed):
    """Signs of random projections of centred features (M. Charikar, STOC 2002)."""
    planes = torch.randn(features.shape[1], bits, generator=torch.Generator().manual_seed(seed))
    return lambda x: (x - features.mean(0)) @ planes


def keep(features, bits, seed):
    """The features of length 1, as they are: `map_real` is the mAP of their cosine."""
    return functional.normalize


BASELINES = {
    "ITQ of the features": itq,
    "random hyperplanes of the features": hyperplanes,
    "cosine of the features": keep,
}


# ==== evaluation ====


def score(query, query_labels, database, database_labels, has_real=True):
    """mAP over all ranks of the binarised codes, and if wanted of the real-valued ones: a dict."""
    metrics = evaluate(binarize(query), query_labels, binarize(database), database_labels)
    items = query, query_labels, database, database_labels
    map_real = real_map(*items) if has_real else None
    return {"map": metrics["map"], "map_real": map_real}


def real_map(query, query_labels, database, database_labels):
    """mAP over all ranks by the distance (K - <u, v>) / 2 of real-valued codes."""
    order = (query @ database.T).argsort(dim=1, descending=True, stable=True)  # (Q, N)
    relevant = (database_labels[order] == query_labels[:, None]).double()
    ranks = torch.arange(1, relevant.shape[1] + 1)
    precision = relevant.cumsum(1) / ranks
    return ((precision * relevant).sum(1) / relevant.sum(1).clamp(min=1)).mean().item()
