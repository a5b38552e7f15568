"""Confidence bands of curves: the bootstrap over queries.

B. Efron, R. J. Tibshirani, "An Introduction to the Bootstrap", 1993: percentile intervals.
"""

import torch

REPLICATES = 1000
QUANTILES = (0.025, 0.975)  # 95 %
MAX_CELLS = 2**22  # weights in memory at once


def resampled_means(values, replicates=REPLICATES, seed=0):
    """Means of values (Q, C) over `replicates` samples of Q queries with replacement.

    Returns (replicates, C) float64.
    """
    generator, count, means = torch.Generator().manual_seed(seed), len(values), []
    values = values.cpu()
    for rows in torch.arange(replicates).split(max(1, MAX_CELLS // count)):
        drawn = torch.randint(count, (len(rows), count), generator=generator)
        drawn += count * torch.arange(len(rows))[:, None]
        weights = torch.bincount(drawn.flatten(), minlength=drawn.numel()).view(drawn.shape)
        means.append(weights.double() @ values / count)
    return torch.cat(means)


def confidence_bands(values):
    """95 % bands of the curves of `retrieval.metrics.evaluate_queries`: {key: list of numbers}.

    values: {key: (Q, points)}. The keys are precision_curve and precision_found_by_radius with
    `_low` and `_high`; None where no query of a sample finds an item.
    """
    names = ("precision_curve", "precision_by_radius", "nonempty_by_radius")
    columns = [values[name] for name in names]
    means = resampled_means(torch.cat(columns, dim=1)).split([c.shape[1] for c in columns], dim=1)
    curves = {"precision_curve": means[0], "precision_found_by_radius": means[1] / means[2]}
    bands = {}
    for name, curve in curves.items():
        levels = torch.tensor(QUANTILES, dtype=curve.dtype)
        for suffix, level in zip(("low", "high"), curve.nanquantile(levels, dim=0), strict=True):
            bands[f"{name}_{suffix}"] = [None if x != x else x for x in level.tolist()]
    return bands
