"""Hamming distances: histograms for the ranking metrics, and the nearest items of a query.

A Hamming distance takes only K + 1 values. Every ranking metric follows from the number of database
items, and of relevant ones, at each distance; counting them needs no sort and no (Q, N) array.
Distances are matrix products of ±1 codes, exact in float32, on CPU and GPU alike.

Letters: Q queries, N database items, K bits, L labels.
"""

import torch
from torch.nn import functional


def hamming_histograms(
    query_codes,
    query_labels,
    database_codes,
    database_labels,
    *,
    query_chunk=64,
    database_chunk=32768,
):
    """Count all items and the relevant items of the database at each distance from each query.

    Arguments as for `retrieval.metrics.evaluate`. Queries and items are processed in chunks: memory
    beside the result is about 8·query_chunk·database_chunk bytes, or 64 MiB if that is more.
    Returns (counts, relevant_counts), both (Q, K+1) int64; column d is distance d.
    """
    chunks = query_chunk, database_chunk
    with torch.autocast(query_codes.device.type, enabled=False):  # 16-bit products would round
        counts = count_distances(query_codes, database_codes, *chunks)
        relevant_counts = torch.zeros_like(counts)
        for rows, items in relevant_sets(query_labels, database_labels):
            queries, relevant = query_codes[rows], database_codes[items]
            relevant_counts[rows] = count_distances(queries, relevant, *chunks)
    return counts, relevant_counts


def count_distances(queries, database, query_chunk, database_chunk):
    """Histogram of the distances from each query: (Q, K), (N, K) bool -> (Q, K+1) int64.

    Counting takes most of the time. Where it pays, an item is therefore counted for two queries at
    once: the histograms of both are the marginals of their joint histogram.
    """
    bins = queries.shape[1] + 1
    group_size = queries_per_count(bins, min(len(database), database_chunk))
    padding = queries[: -len(queries) % group_size]  # makes the number of queries even
    groups = signs(torch.cat([queries, padding])).view(-1, group_size, bins - 1)
    counts = torch.zeros(len(groups), group_size, bins, dtype=torch.int64, device=queries.device)
    group_chunk = max(1, min(query_chunk, 2**23 // bins**group_size))  # keys are exact in float32
    for items in database.split(database_chunk):
        items = signs(items)
        for group, count in zip(groups.split(group_chunk), counts.split(group_chunk), strict=True):
            joint = joint_histogram(group, items)
            count[:, 0] += joint.sum(1)
            if group_size == 2:
                count[:, 1] += joint.sum(2)
    return counts.flatten(0, 1)[: len(queries)]


def count_nearest(queries, database):
    """Number of queries by the distance of their nearest item: (Q, K), (N, K) bool -> (K+1,)."""
    nearest = (count_distances(queries, database, 64, 32768) > 0).int().argmax(dim=1)
    return torch.bincount(nearest, minlength=queries.shape[1] + 1)


def queries_per_count(bins, items):
    """2 where the joint histogram of two queries has no more cells than there are items, else 1."""
    return 2 if bins**2 <= items else 1


def joint_histogram(groups, items):
    """Number of items at each pair of distances (d₂, d₁) from the two queries of each group.

    groups: (G, 2, K) ±1, or (G, 1, K) for single queries. items: (N, K) ±1.
    Returns (G, K+1, K+1) int64, or (G, 1, K+1).
    The key of an item is d₁ + (K+1)·d₂, one matrix product, since d = K/2 - query·item / 2. Each
    group has its own range of keys, so that one count serves all groups.
    """
    _, group_size, bits = groups.shape
    bins = bits + 1
    weights = bins ** torch.arange(group_size, device=groups.device)
    weighted = (groups * weights[:, None]).sum(1)
    offsets = torch.arange(len(groups), device=groups.device) * bins**group_size
    keys = torch.addmm((offsets + weights.sum() * bits / 2)[:, None], weighted, items.T, alpha=-0.5)
    counts = torch.bincount(keys.int().flatten(), minlength=len(groups) * bins**group_size)
    return counts.view(len(groups), -1, bins)


def signs(codes):
    """Bool codes -> float32 -1 and +1."""
    return codes.float() * 2 - 1


def relevant_sets(query_labels, database_labels):
    """Yield (rows of the queries with the same labels, rows of their relevant items)."""
    dim = 0 if query_labels.ndim == 2 else None  # None: the same for a vector, but much faster
    labels, group = torch.unique(query_labels, dim=dim, return_inverse=True)
    groups = group.argsort().split(torch.bincount(group).tolist())
    if query_labels.ndim == 2:
        for label, rows in zip(labels, groups, strict=True):
            yield rows, database_labels[:, label].any(1).nonzero()[:, 0]
        return
    database_labels, order = database_labels.sort()
    starts = torch.searchsorted(database_labels, labels).tolist()
    ends = torch.searchsorted(database_labels, labels, right=True).tolist()
    for rows, start, end in zip(groups, starts, ends, strict=True):
        yield rows, order[start:end]


def distinct_queries(codes, labels):
    """One row of each set of queries that have the same code and labels, and the set of each query.

    Such queries have equal metrics. Trained codes often coincide, which can halve the work.
    Returns (rows, group): int64 vectors with code[rows][group] equal to code.
    """
    if labels.ndim == 1:
        group = labels.unique(return_inverse=True)[1]
    else:
        group = torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
        codes = torch.cat([codes, labels], dim=1)
    for bits in codes.split(30, dim=1):  # 30 bits and the group so far fit into 64 bits
        word = (bits << torch.arange(bits.shape[1], device=codes.device)).sum(1)
        word += group << 30
        values, group = word.unique(return_inverse=True)
    rows = torch.empty_like(values)
    return rows.scatter_(0, group, torch.arange(len(codes), device=codes.device)), group


def nearest(query_codes, database_codes, count):
    """The `count` nearest items of the database for each query, ties in database order.

    query_codes: (Q, K) bool. database_codes: (N, K) bool.
    Returns (indices, distances): (Q, min(count, N)) int64, distances in bits.
    """
    products = signs(query_codes) @ signs(database_codes).T
    distances = (query_codes.shape[1] - products) / 2
    distances, indices = torch.sort(distances, dim=1, stable=True)
    return indices[:, :count], distances[:, :count].long()


def nearest_labels(query_codes, database_codes, database_labels, count, num_labels):
    """How many of the `count` nearest items have each label: (Q, num_labels) float64.

    database_labels: (N,) int64. The expected number over all orders of tied items.
    """
    count = min(count, len(database_codes))
    one_hot = functional.one_hot(database_labels, num_labels).float()  # (N, L)
    items, found = signs(database_codes), []
    for queries in query_codes.split(256):
        products = signs(queries) @ items.T  # (q, N), larger is nearer
        last = products.topk(count, dim=1).values[:, -1:]  # at the rank `count`
        nearer, tied = (products > last).float(), (products == last).float()
        share = (count - nearer.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)
        found.append((nearer + share * tied) @ one_hot)
    return torch.cat(found).double()
