"""Retrieval metrics of binary codes, exact under Hamming ties, from histograms of distances.

Two histograms a query, of all database items and of the relevant ones by distance, determine every
ranking metric. `retrieval/hamming.py` counts them, `retrieval/tie_aware.py` has the closed forms.

Letters: Q queries, N database items, K bits, L labels.
"""

import torch

from retrieval.hamming import distinct_queries, hamming_histograms
from retrieval.tie_aware import ORDERS, Ties, hits, precision_over_found, precision_sum

QUERY_BLOCK = 2048  # queries whose metrics are computed at once; bounds the float64 temporaries


def evaluate(
    query_codes,
    query_labels,
    database_codes,
    database_labels,
    *,
    top_r=100,
    cutoffs=(1, 5, 10, 20, 50, 100),
):
    """Evaluate codes by Hamming ranking -> flat dict of floats, ints, lists, ready for JSON.

    Codes (Q, K), (N, K) bool; labels int64 (Q,), (N,), or bool (Q, L), (N, L), where items are
    relevant to each other if they share a label. All on one device. Keys:

    queries, database, bits, top_r, queries_without_relevant
        the protocol. Queries that have no relevant item in the database stay in every mean with 0.
    map                 average precision over all ranks ÷ relevant items in the database
    map_at_r            ... within the top R ÷ min(R, relevant items in the database)
    map_at_r_found      ... within the top R ÷ relevant items found in the top R (CSQ, DeepHash)
    map_at_r_over_r     ... within the top R ÷ R (self-supervised video hashing)
    precision_at_N      relevant items in the top N ÷ N, even where the database is smaller than N
    recall_at_N         relevant items in the top N ÷ relevant items in the database
    r_precision         precision at as many ranks as the query has relevant items
    precision_radius_2  share of relevant items at distance <= 2; 0 for a query that finds none
        Each of these is the expectation over uniformly random order within ties; the same key with
        `_optimistic` or `_pessimistic` has the order with relevant items first or last in each tie.
    precision_by_radius, recall_by_radius, nonempty_by_radius
        lists for radius 0..K: mean over all Q queries, an empty ball having precision 0, and the
        share of queries whose ball is not empty (precision_by_radius ÷ it = mean over those).
    precision_curve_n, precision_curve
        precision_at_N (expected) for N log-spaced up to min(database, 1000).
    map_per_class       {label as string: mean `map` of the queries that have it}

    Raises ValueError for shapes or types that do not fit, an empty set, top_r or a cutoff below 1.
    """
    if top_r < 1 or any(cutoff < 1 for cutoff in cutoffs):
        raise ValueError(f"top_r and cutoffs must be at least 1: {top_r}, {list(cutoffs)}")
    check_shapes(query_codes, query_labels, database_codes, database_labels)
    rows, times = distinct_queries(query_codes, query_labels)
    labels, weights = query_labels[rows], times.double()
    all, relevant = hamming_histograms(query_codes[rows], labels, database_codes, database_labels)
    curve = curve_depths(len(database_codes))
    means, precisions = {}, []
    for block in torch.arange(len(rows), device=all.device).split(QUERY_BLOCK):
        values = query_metrics(all[block], relevant[block], top_r, cutoffs, curve)
        precisions.append(values["map"])
        for key, value in values.items():
            means[key] = means.get(key, 0) + weights[block] @ value
    return {
        "queries": len(query_codes),
        "database": len(database_codes),
        "bits": query_codes.shape[1],
        "top_r": top_r,
        "queries_without_relevant": int(times[relevant.sum(1) == 0].sum()),
        **{key: (value / len(query_codes)).tolist() for key, value in means.items()},
        "precision_curve_n": curve,
        "map_per_class": mean_per_class(torch.cat(precisions), labels, weights),
    }


def query_metrics(all, relevant, top_r, cutoffs, curve):
    """Every metric of each query: {key: (Q,) or (Q, points) float64}; see `evaluate`."""
    ties = Ties(all, relevant)
    total = ties.relevant_until[:, -1]
    some = total.clamp(min=1)  # denominators that leave 0 for a query without relevant
    at_total, at_top = ties.at(total[:, None]), ties.at(total.new_full((len(total), 1), top_r))
    at_cutoffs = ties.at(total.new_tensor(cutoffs).expand(len(total), -1))
    whole, top = torch.full_like(total, ties.database), torch.full_like(total, top_r)
    by_radius = ties.relevant_until / ties.all_until.clamp(min=1)
    radius_2 = min(2, all.shape[1] - 1)
    values = {}
    for order, suffix in ORDERS.items():
        top_sum = precision_sum(ties, top, order)
        metrics = {
            "map": precision_sum(ties, whole, order) / some,
            "map_at_r": top_sum / some.clamp(max=top_r),
            "map_at_r_found": top_sum / hits(at_top, order)[:, 0].clamp(min=1),
            "map_at_r_over_r": top_sum / top_r,
            "r_precision": hits(at_total, order)[:, 0] / some,
            "precision_radius_2": by_radius[:, radius_2],  # takes whole ties: the same in any order
        }
        if order == "expected":
            metrics["map_at_r_found"] = precision_over_found(ties, at_top)
        for cutoff, found in zip(cutoffs, hits(at_cutoffs, order).unbind(1), strict=True):
            metrics[f"precision_at_{cutoff}"] = found / cutoff
            metrics[f"recall_at_{cutoff}"] = found / some
        values.update({key + suffix: value for key, value in metrics.items()})
    values["precision_by_radius"] = by_radius
    values["recall_by_radius"] = ties.relevant_until / some[:, None]
    values["nonempty_by_radius"] = (ties.all_until > 0).double()
    curve = total.new_tensor(curve)
    values["precision_curve"] = hits(ties.at(curve.expand(len(total), -1))) / curve
    return values


def curve_depths(database, points=30, limit=1000):
    """Up to `points` whole numbers, log-spaced from 1 to min(database, limit)."""
    depths = torch.logspace(0, 1, points, base=min(database, limit), dtype=torch.float64)
    return depths.round().long().unique().tolist()


def mean_per_class(values, labels, weights):
    """Weighted mean of `values` (Q,) over queries with each label -> {label as string: float}."""
    if labels.ndim == 1:
        names, index = labels.unique(return_inverse=True)
        empty = torch.zeros(len(names), dtype=values.dtype, device=values.device)
        means = empty.index_add(0, index, values * weights) / empty.index_add(0, index, weights)
    else:
        names = labels.any(0).nonzero()[:, 0]
        member = labels[:, names].T.double()
        means = member @ (values * weights) / (member @ weights)
    return {str(name): mean for name, mean in zip(names.tolist(), means.tolist(), strict=True)}


def check_shapes(query_codes, query_labels, database_codes, database_labels):
    """Raise ValueError unless codes and labels have the types and shapes that `evaluate` takes."""
    for name, codes, labels in (
        ("query", query_codes, query_labels),
        ("database", database_codes, database_labels),
    ):
        if codes.dtype != torch.bool or codes.ndim != 2 or 0 in codes.shape:
            raise ValueError(
                f"{name}_codes must be a non-empty (items, bits) bool tensor, not "
                f"{tuple(codes.shape)} {codes.dtype}: see retrieval.codes.binarize"
            )
        kind = {1: torch.int64, 2: torch.bool}.get(labels.ndim)
        if labels.dtype != kind or len(labels) != len(codes):
            raise ValueError(
                f"{name}_labels must be ({len(codes)},) int64 or ({len(codes)}, labels) bool, not "
                f"{tuple(labels.shape)} {labels.dtype}"
            )
    if query_codes.shape[1] != database_codes.shape[1]:
        raise ValueError(
            f"query codes have {query_codes.shape[1]} bits, database codes have "
            f"{database_codes.shape[1]}"
        )
    if query_labels.shape[1:] != database_labels.shape[1:]:
        raise ValueError(
            f"query labels {tuple(query_labels.shape)} and database labels "
            f"{tuple(database_labels.shape)} are not of one kind"
        )
