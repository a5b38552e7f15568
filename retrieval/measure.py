"""All that test.py measures of the codes of one network, or of one file of codes."""

from typing import Any, NamedTuple

import torch

from retrieval.bootstrap import confidence_bands
from retrieval.codes import binarize
from retrieval.hamming import nearest
from retrieval.metrics import evaluate_queries, summarise

SIDES = ("query", "database")
ALWAYS = {1, 10}  # cutoffs of the summary


class Tested(NamedTuple):
    """Codes and their metrics."""

    items: dict[str, Any]  # as of `load_codes`
    metrics: dict[str, Any]  # as of `evaluate`, with the bands of the curves
    average_precision: torch.Tensor  # (Q,)
    precision_at_1: torch.Tensor  # (Q,)


def measure(items, device, top_r, cutoffs, classes=None):
    """The `Tested` of `items`, a dict as of `load_codes`. classes: names for the labels."""
    arrays = []
    for side in SIDES:
        arrays += [bits(items, side).to(device), items[f"{side}_labels"].to(device)]
    protocol, values = evaluate_queries(*arrays, top_r=top_r, cutoffs=sorted({*ALWAYS, *cutoffs}))
    metrics = {**protocol, **summarise(values, arrays[1]), **confidence_bands(values)}
    if classes:
        per_class = metrics["map_per_class"].items()
        metrics["map_per_class"] = {classes[int(label)]: value for label, value in per_class}
    return Tested(items, metrics, values["map"].cpu(), values["precision_at_1"].cpu())


def bits(items, side):
    """The binary codes of one side: (N, K) bool."""
    codes = items[f"{side}_codes"]
    return codes if codes.dtype == torch.bool else binarize(codes)


def find_nearest(tested, rows, count):
    """The `count` nearest database items of the queries `rows`.

    Returns [(query, its average precision, [(database index, distance in bits), …]), …].
    """
    found = nearest(bits(tested.items, "query")[rows], bits(tested.items, "database"), count)
    pairs = torch.stack(found, dim=2).tolist()
    return list(zip(rows, tested.average_precision[rows].tolist(), pairs, strict=True))
