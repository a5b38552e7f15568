"""What retrieval without learning reaches, and how sure a figure of few recordings is.

A network that does not beat the nearest neighbour on simple features of the same frames has learnt
nothing that was not there before. Two features, both seconds of work:

- raw frames: the grey frames at 8 x 8 pixels, without their mean;
- motion energy: the mean absolute difference of consecutive grey frames, at 8 x 8 pixels, in four
  segments of the clip. After the motion-energy images of A. F. Bobick, J. W. Davis, "The
  Recognition of Human Movement Using Temporal Templates", TPAMI 23(3), 2001,
  https://doi.org/10.1109/34.910878, which are binary and cover the whole clip.

Letters: B batch, T frames, Q queries, N database, D features.
"""

import torch
from torch.nn import functional

GRID = 8  # rows and columns
SEGMENTS = 4  # of a clip
REPLICATES = 2000
CHUNK = 2**22  # similarities in memory at once


def raw_frames(clips):
    """Clips (B, T, H, W, 3) uint8 -> features (B, T * 64) float32 of length 1."""
    grey = clips.float().mean(dim=-1)  # (B, T, H, W)
    features = functional.adaptive_avg_pool2d(grey, GRID).flatten(1)
    return functional.normalize(features - features.mean(dim=1, keepdim=True))


def motion_energy(clips):
    """Clips (B, T, H, W, 3) uint8, T >= 2 -> features (B, 256) float32 of length 1."""
    motion = clips.float().mean(dim=-1).diff(dim=1).abs()  # (B, T - 1, H, W)
    cells = functional.adaptive_avg_pool3d(motion[:, None], (SEGMENTS, GRID, GRID))
    return functional.normalize(cells.flatten(1))


BASELINES = {"raw frames": raw_frames, "motion energy": motion_energy}


def encode_baselines(clips):
    """All BASELINES of clips, side by side: (B, D) float32."""
    return torch.cat([extract(clips) for extract in BASELINES.values()], dim=1)


def measure_baselines(query, query_labels, database, database_labels):
    """{name: {"map", "precision_at_1"}} of BASELINES by the cosine, each (Q,) float64.

    query (Q, D), database (N, D): of `encode_baselines`. Labels: (Q,) and (N,) int64.
    """
    width = GRID * GRID * SEGMENTS
    widths = [query.shape[1] - width, width]
    parts = zip(query.split(widths, 1), database.split(widths, 1), strict=True)
    results = {}
    for name, (queries, items) in zip(BASELINES, parts, strict=True):
        values = []
        for rows in torch.arange(len(queries)).split(max(1, CHUNK // len(items))):
            order = (queries[rows] @ items.T).argsort(dim=1, descending=True, stable=True)
            values.append(rank(database_labels[order] == query_labels[rows, None]))
        average, first = (torch.cat(column) for column in zip(*values, strict=True))
        results[name] = {"map": average, "precision_at_1": first}
    return results


def rank(relevant):
    """(average precision, precision at 1) of ranked items: (Q, N) bool -> two (Q,) float64."""
    found = relevant.double().cumsum(dim=1)
    precisions = found / torch.arange(1, relevant.shape[1] + 1)
    average = (precisions * relevant).sum(dim=1) / relevant.sum(dim=1).clamp(min=1)
    return average, relevant[:, 0].double()


def interval(values, groups, seed=0):
    """95 % interval of the mean of values (Q,): the bootstrap over groups, not over queries.

    The queries of one recording fail together, so recordings are drawn, with all their queries.
    groups: (Q,) int64 from 0. Returns (low, high); None for fewer than two groups.
    """
    count = int(groups.max()) + 1
    if count < 2:
        return None
    sums = torch.zeros(count, dtype=torch.float64).index_add(0, groups, values.double())
    sizes = torch.bincount(groups, minlength=count).double()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (REPLICATES, count), generator=generator)
    means = sums[drawn].sum(dim=1) / sizes[drawn].sum(dim=1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def compare(network, baselines, labels, classes, groups):
    """A network beside BASELINES, over all queries and for each class: a dict for JSON.

    network, and each value of baselines: {"map", "precision_at_1"}, each (Q,). labels: (Q,) int64.
    classes: names of the labels. groups: (Q,) int64, the recording of each query.
    Returns {"all" or class: {"queries", "recordings", "map" and "precision_at_1": {"network" or
    name of a baseline: mean, "interval": [low, high] or None}}}.
    """
    masks = {"all": torch.ones_like(labels, dtype=torch.bool)}
    masks |= {f"class {name}": labels == label for label, name in enumerate(classes)}
    rows = {}
    for name, mask in masks.items():
        if not mask.any():
            continue
        recordings, chosen = groups[mask].unique(return_inverse=True)
        row = {"queries": int(mask.sum()), "recordings": len(recordings)}
        for metric in ("map", "precision_at_1"):
            means = {"network": network[metric], **{k: v[metric] for k, v in baselines.items()}}
            row[metric] = {key: values[mask].mean().item() for key, values in means.items()}
            row[metric]["interval"] = interval(network[metric][mask], chosen)
        rows[name] = row
    return rows
