"""Histograms of Hamming distances: all that ranking metrics need to know about codes.

A distance takes only K + 1 values. Counting database items by distance, all and relevant ones,
needs no sort and no Q×N array, and runs as matrix products on CPU and GPU alike.

Letters: Q queries, N database items, K bits, L labels.
"""

import itertools

import torch

GATHERED = 2**21  # keys of small sets that are counted at once


def hamming_histograms(
    query_codes,
    query_labels,
    database_codes,
    database_labels,
    *,
    query_chunk=64,
    database_chunk=32768,
):
    """Count the database by Hamming distance from each query -> (all, relevant), (Q, K+1) int64.

    Arguments as for `retrieval.metrics.evaluate`. Distances come from products of ±1 codes, exact
    in float32, a chunk of queries and items at a time: beside the result, memory is about
    8·query_chunk·database_chunk bytes, or 64 MiB if that is more.
    """
    chunks = query_chunk, database_chunk
    with torch.autocast(query_codes.device.type, enabled=False):  # 16-bit products would round
        sets = relevant_sets(query_labels, database_labels)
        all = count_all(query_codes, database_codes, *chunks)
        return all, count_sets(query_codes, database_codes, sets, *chunks)


def count_all(queries, database, query_chunk, database_chunk):
    """Histogram of the distances to all items: (Q, K), (N, K) bool -> (Q, K+1) int64.

    Where it pays, two queries share a key, d + (K+1)·d', and with it one product and one count.
    """
    bins = queries.shape[1] + 1
    paired = bins**2 <= min(len(database), database_chunk)
    rows = (len(queries) + 1) // 2 if paired else len(queries)
    first, second = signs(queries[:rows]), signs(queries[len(queries) - rows :])
    weighted = first + bins * second if paired else first
    keys, weight = (bins**2, bins + 1) if paired else (bins, 1)
    query_chunk = max(1, min(query_chunk, 2**23 // keys))  # keys and halves are exact in float32
    counts = torch.zeros(2, rows, bins, dtype=torch.int64, device=queries.device)
    for items in database.split(database_chunk):
        items = signs(items)
        for start in range(0, rows, query_chunk):
            chunk = slice(start, start + query_chunk)
            joint = count_keys(weighted[chunk], items, keys, weight).view(-1, keys // bins, bins)
            counts[0, chunk] += joint.sum(1)
            if paired:
                counts[1, chunk] += joint.sum(2)
    overlap = 2 * rows - len(queries)  # of an odd number, one query is in both halves
    return torch.cat([counts[0], counts[1, overlap:]]) if paired else counts[0]


def count_keys(queries, items, keys, weight):
    """Histogram for each query of weight·K/2 - query·item / 2, a whole number below `keys`.

    Queries (q, K) ±1, or sums of weighted codes, weights adding up to `weight`; items (n, K) ±1.
    Returns (q, keys) int64. Every query has its own range of keys so that one count serves all.
    """
    shift = torch.arange(len(queries), device=queries.device) * keys + weight * queries.shape[1] / 2
    key = torch.addmm(shift[:, None], queries, items.T, alpha=-0.5)
    return torch.bincount(key.int().flatten(), minlength=len(queries) * keys)


def count_sets(queries, database, sets, query_chunk, database_chunk):
    """Histogram of the distances to each query's own items -> (Q, K+1) int64.

    `sets`: pairs (query rows, item rows), as `relevant_sets` yields. Keys of many small sets are
    gathered before they are counted.
    """
    bins = queries.shape[1] + 1
    signed, radius = signs(queries), torch.tensor(queries.shape[1] / 2, device=queries.device)
    shift = torch.arange(len(queries), device=queries.device)[:, None] * bins
    counts = torch.zeros(len(queries) * bins, dtype=torch.int64, device=queries.device)
    keys, size = [], 0
    for rows, matches in sets:
        for row, match in itertools.product(rows.split(query_chunk), matches.split(database_chunk)):
            distance = torch.addmm(radius, signed[row], signs(database[match]).T, alpha=-0.5)
            keys.append((distance.int() + shift[row]).flatten())
            size += len(keys[-1])
            if size > GATHERED:
                counts += torch.bincount(torch.cat(keys), minlength=len(counts))
                keys, size = [], 0
    if keys:
        counts += torch.bincount(torch.cat(keys), minlength=len(counts))
    return counts.view(-1, bins)


def signs(codes):
    """Bool codes -> float32 -1 and +1."""
    return codes.float() * 2 - 1


def relevant_sets(query_labels, database_labels):
    """Yield (rows of the queries that have the same labels, rows of their relevant items)."""
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
    """Rows of queries of which no two have the same code and labels, and how often each occurs.

    Such queries share every figure. Trained codes collapse so far that this often halves the work.
    Returns two int64 vectors. Codes are read 30 bits at a time to fit a word with the group so far.
    """
    if labels.ndim == 1:
        group = labels.unique(return_inverse=True)[1]
    else:
        group = torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
        codes = torch.cat([codes, labels], dim=1)
    for bits in codes.split(30, dim=1):
        word = (bits << torch.arange(bits.shape[1], device=codes.device)).sum(1)
        word += group << 30
        _, group, times = word.unique(return_inverse=True, return_counts=True)
    rows = torch.empty_like(times)
    return rows.scatter_(0, group, torch.arange(len(codes), device=codes.device)), times
