"""Retrieval metrics of binary codes under Hamming ranking, exact for tied distances.

Two histograms per query, of all database items and of the relevant ones by distance, determine
every metric. `retrieval/hamming.py` counts them, `retrieval/tie_aware.py` has the closed forms.

Letters: Q queries, N database items, K bits, L labels.
"""

import torch

from retrieval.hamming import distinct_queries, hamming_histograms
from retrieval.tie_aware import (
    ORDERS,
    Ties,
    num_relevant_within,
    precision_over_found,
    precision_sum,
)

QUERY_CHUNK = 2048  # queries whose metrics are computed at once; bounds the float64 temporaries


def evaluate(
    query_codes,
    query_labels,
    database_codes,
    database_labels,
    *,
    top_r=100,
    cutoffs=(1, 5, 10, 20, 50, 100),
):
    """Evaluate binary codes by Hamming ranking.

    query_codes, database_codes: (Q, K) and (N, K) bool. query_labels, database_labels: int64 (Q,)
    and (N,), or bool (Q, L) and (N, L), where items with a common label are relevant to each other.
    All tensors are on one device. top_r: the R of the metrics at R. cutoffs: the values of N below.
    Raises ValueError for wrong shapes or types, an empty set, and a top_r or cutoff below 1.

    Returns a flat dict of numbers and lists, ready for JSON. Average precision (AP) is the sum of
    the precision at each relevant item; the four definitions of mAP divide it differently:

    map                 AP over all ranks / relevant items in the database
    map_at_R            AP within the top R / min(R, relevant items in the database)
    map_at_R_found      AP within the top R / relevant items found in the top R (CSQ, DeepHash)
    map_at_R_over_r     AP within the top R / R (self-supervised video hashing)
    precision_at_N      relevant items in the top N / N, also if the database has fewer than N items
    recall_at_N         relevant items in the top N / relevant items in the database
    r_precision         precision at the rank that equals the number of relevant items
    precision_radius_2  precision among the items at distance <= 2; 0 if there is none
        Each is the mean over all queries, and the expectation over all orders of tied items. The
        keys with `_optimistic` or `_pessimistic` rank the relevant items first or last in each
        tie. A query without relevant items counts as 0. Names have the number: map_at_100.
    chance_map, chance_map_at_R, chance_precision
        The expectation over all orders of the whole database, that is without codes.
    precision_by_radius, recall_by_radius, nonempty_by_radius, precision_found_by_radius
        Lists for radius 0..K: mean precision over all queries (0 where the radius holds no item),
        mean recall, the fraction of queries with an item within the radius, and the mean precision
        over these queries (None where there is none).
    precision_curve_n, precision_curve
        precision_at_N for up to 30 values of N on a log scale, at most min(database, 1000).
    map_per_class       {label as string: mean `map` of the queries with that label}
    queries, database, bits, top_r, queries_without_relevant
        The protocol: sizes, R, and the number of queries without relevant items.
    """
    protocol, values = evaluate_queries(
        query_codes,
        query_labels,
        database_codes,
        database_labels,
        top_r=top_r,
        cutoffs=cutoffs,
    )
    return {**protocol, **summarise(values, query_labels)}


def evaluate_queries(
    query_codes, query_labels, database_codes, database_labels, *, top_r=100, cutoffs=(1, 10, 100)
):
    """The metrics of each query, which `evaluate` averages; arguments as there.

    Returns (protocol, {key: (Q,) or (Q, points) float64}).
    """
    if top_r < 1 or any(cutoff < 1 for cutoff in cutoffs):
        raise ValueError(f"top_r and cutoffs must be at least 1: {top_r}, {list(cutoffs)}")
    check_shapes(query_codes, query_labels, database_codes, database_labels)
    rows, group = distinct_queries(query_codes, query_labels)
    counts, relevant = hamming_histograms(
        query_codes[rows], query_labels[rows], database_codes, database_labels
    )
    curve_n = log_spaced(min(len(database_codes), 1000))
    chunks = zip(counts.split(QUERY_CHUNK), relevant.split(QUERY_CHUNK), strict=True)
    chunks = [query_metrics(*chunk, top_r, cutoffs, curve_n) for chunk in chunks]
    values = {key: torch.cat([chunk[key] for chunk in chunks])[group] for key in chunks[0]}
    protocol = {
        "queries": len(query_codes),
        "database": len(database_codes),
        "bits": query_codes.shape[1],
        "top_r": top_r,
        "queries_without_relevant": int((relevant.sum(1) == 0)[group].sum()),
        "precision_curve_n": curve_n,
    }
    return protocol, values


def summarise(values, query_labels):
    """The means of the metrics of each query, as `evaluate` returns them."""
    means = {key: value.mean(0).tolist() for key, value in values.items()}
    by_radius = zip(means["precision_by_radius"], means["nonempty_by_radius"], strict=True)
    found = [precision / share if share else None for precision, share in by_radius]
    per_class = mean_per_class(values["map"], query_labels)
    return {**means, "precision_found_by_radius": found, "map_per_class": per_class}


def query_metrics(counts, relevant, top_r, cutoffs, curve_n):
    """Every metric of each query: {key: (Q,) or (Q, points) float64}; see `evaluate`.

    counts, relevant: (Q, K+1) int64, items and relevant items at each distance.
    """
    ties = Ties(counts, relevant)
    values = {}
    for order, suffix in ORDERS.items():
        for key, value in rank_metrics(ties, top_r, cutoffs, order).items():
            values[key + suffix] = value
    num_relevant = ties.relevant_until[:, -1:].clamp(min=1)
    values["precision_by_radius"] = precision_by_radius(ties)
    values["recall_by_radius"] = ties.relevant_until / num_relevant
    values["nonempty_by_radius"] = (ties.counts_until > 0).double()
    curve_n = num_relevant.new_tensor(curve_n)
    depths = curve_n.expand(len(num_relevant), -1)
    values["precision_curve"] = num_relevant_within(*ties.at_depth(depths)) / curve_n
    chance = Ties(counts.sum(1, keepdim=True), relevant.sum(1, keepdim=True))  # all in one tie
    expected = rank_metrics(chance, top_r, (1,), "expected")
    for key in ("map", f"map_at_{top_r}"):
        values[f"chance_{key}"] = expected[key]
    values["chance_precision"] = expected["precision_at_1"]
    return values


def rank_metrics(ties, top_r, cutoffs, order):
    """The metrics of each query that depend on the order of tied items: {key: (Q,) float64}."""
    num_relevant = ties.relevant_until[:, -1]
    at_least_1 = num_relevant.clamp(min=1)  # as a denominator it leaves 0 where there is none
    depth_r = torch.full_like(num_relevant, top_r)
    all_ranks = torch.full_like(num_relevant, ties.num_items)
    radius_2 = min(2, ties.counts.shape[1] - 1)
    depths = [num_relevant, depth_r, *(torch.full_like(depth_r, n) for n in cutoffs)]
    tie, m = ties.at_depth(torch.stack(depths, dim=1))
    found_total, found_r, *found_at_cutoffs = num_relevant_within(tie, m, order).unbind(1)
    sum_at_r = precision_sum(ties, depth_r, order)
    if order == "expected":
        map_at_r_found = precision_over_found(ties, depth_r)
    else:
        map_at_r_found = sum_at_r / found_r.clamp(min=1)
    metrics = {
        "map": precision_sum(ties, all_ranks, order) / at_least_1,
        f"map_at_{top_r}": sum_at_r / at_least_1.clamp(max=top_r),
        f"map_at_{top_r}_found": map_at_r_found,
        f"map_at_{top_r}_over_r": sum_at_r / top_r,
        "r_precision": found_total / at_least_1,
        "precision_radius_2": precision_by_radius(ties)[:, radius_2],  # whole ties: any order
    }
    for cutoff, found in zip(cutoffs, found_at_cutoffs, strict=True):
        metrics[f"precision_at_{cutoff}"] = found / cutoff
        metrics[f"recall_at_{cutoff}"] = found / at_least_1
    return metrics


def precision_by_radius(ties):
    """Precision among the items at distance <= d, 0 where there is none: (Q, K+1)."""
    return ties.relevant_until / ties.counts_until.clamp(min=1)


def log_spaced(most, points=30):
    """Up to `points` whole numbers from 1 to `most` on a log scale."""
    numbers = torch.logspace(0, 1, points, base=most, dtype=torch.float64)
    return numbers.round().long().unique().tolist()


def mean_per_class(values, labels):
    """Mean of `values` (Q,) over the queries with each label: {label as string: float}."""
    if labels.ndim == 1:
        names, index = labels.unique(return_inverse=True)
        sums = torch.zeros(len(names), dtype=values.dtype, device=values.device)
        means = sums.index_add(0, index, values) / torch.bincount(index)
    else:
        names = labels.any(0).nonzero()[:, 0]
        member = labels[:, names].T.double()
        means = member @ values / member.sum(1)
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
        dtype = {1: torch.int64, 2: torch.bool}.get(labels.ndim)
        if labels.dtype != dtype or len(labels) != len(codes):
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
            f"{tuple(database_labels.shape)} must both be vectors, or both (items, labels)"
        )
