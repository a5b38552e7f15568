"""The page of test.py: a summary, mAP by class, confusions, and queries with what they found."""

from pathlib import Path

import torch

from reports.examples import read_shown
from reports.page import preview, write_page
from utils.terminal import progress

PREVIEW_FRAMES = 8
MOST_CONFUSED = 3  # pairs of classes to name
MOST_COLUMNS = 30  # of the confusion table


def write_results_page(path, metrics, found, examples, queries, database, classes, run):
    """Write the page to `path`.

    metrics: as of `evaluate`. found: (Q, classes), how many of the first items of each query have
    each class. examples: list of `Example`, in the order in which they are shown. queries,
    database: `datasets.frames.FrameDataset`. run: as of `write_metrics`.
    """
    wanted = [(queries, example.query) for example in examples]
    wanted += [(database, index) for example in examples for index, _ in example.found]
    wanted = list(dict.fromkeys(wanted))
    bar = progress(wanted, "previews", leave=False)
    videos = {(data, index): describe_video(data, index, classes) for data, index in bar}
    searches = []
    for example in examples:
        query = videos[queries, example.query]
        results = []
        for index, distance in example.found:
            is_right = database.labels[index] == queries.labels[example.query]
            result = videos[database, index]
            results.append({**result, "distance": distance, "is_right": is_right})
        searches.append({**query, "score": example.average_precision, "results": results})
    title = f"Retrieval of {metrics['queries']} test videos"
    shown = "all queries" if len(examples) == len(queries) else f"{len(examples)} of the queries"
    subtitle = (
        f"{metrics['database']} database videos of {len(classes)} classes, {metrics['bits']} bits. "
        f"Below: {shown}, lowest average precision first, each with its nearest videos."
    )
    summary = summarise(metrics, found, queries.labels, classes)
    write_page(path, title, searches, subtitle, describe_run(run), summary)


def describe_video(dataset, index, classes):
    """A video as `write_page` takes it."""
    label, frames = classes[dataset.labels[index]], read_shown(dataset, index, PREVIEW_FRAMES)
    return {"path": dataset.names[index], "class": label, "preview": preview(frames)}


def describe_run(run):
    """One line: what made the page."""
    commit = f", commit {run['commit'][:12]}" if run["commit"] else ""
    checkpoint = "/".join(Path(run["checkpoint"]).parts[-2:])
    return (
        f"Made by test.py on {run['started'][:10]} from {checkpoint}, epoch {run['epoch']}{commit}."
        " Figures are expected values over all orders of videos at equal distance; the results "
        "above show one of these orders."
    )


def summarise(metrics, found, labels, classes):
    """The summary that `write_page` takes; arguments as of `write_results_page`."""
    top_r = metrics["top_r"]
    keys = {"mAP": "map", f"mAP@{top_r}": f"map_at_{top_r}"}
    keys |= {"precision@1": "precision_at_1", "precision@10": "precision_at_10"}
    keys |= {"mAP by chance": "chance_map"}
    per_class = sorted(metrics["map_per_class"].items(), key=lambda item: item[1])
    names, confusion = confusions(found, labels, classes)
    rows = list(zip(names, confusion.tolist(), strict=True))
    return {
        "figures": [(title, f"{metrics[key]:.3f}") for title, key in keys.items()],
        "classes": per_class,
        "depth": round(float(found[0].sum())),
        "pairs": confused_pairs(names, confusion),
        "confusion": rows if len(names) <= MOST_COLUMNS else None,
    }


def confusions(found, labels, classes):
    """(names, shares): of the first items that queries of class i find, those of class j.

    Only classes that a query or one of its first items has.
    """
    counts = torch.zeros(len(classes), len(classes), dtype=torch.float64)
    counts.index_add_(0, torch.tensor(labels), found.double())
    seen = ((counts.sum(0) + counts.sum(1)) > 0).nonzero()[:, 0]
    counts = counts[seen][:, seen]
    names = [classes[index] for index in seen.tolist()]
    return names, counts / counts.sum(1, keepdim=True).clamp(min=1)


def confused_pairs(names, shares):
    """The largest shares of another class: list of (class of the query, class found, share)."""
    others = shares.clone().fill_diagonal_(0)
    order = others.flatten().argsort(descending=True)[:MOST_CONFUSED].tolist()
    pairs = [(divmod(cell, len(names)), others.flatten()[cell].item()) for cell in order]
    return [(names[i], names[j], share) for (i, j), share in pairs if share >= 0.005]
