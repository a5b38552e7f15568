"""Example queries with what they found, as a picture, and points for TensorBoard.

queries, database: `datasets.frames.FrameDataset` or `datasets.cache.CachedDataset`. classes: list
of class names.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch

from reports.figures import save_figure
from reports.pictures import retrieval_figure
from reports.projector import write_projector
from utils.terminal import progress

MOST_ROWS = 12  # of a picture


class Example(NamedTuple):
    """A query with the nearest items of the database."""

    query: int  # index of the query
    average_precision: float
    found: list[tuple[int, int]]  # (database index, distance in bits), nearest first


def extremes(average_precision, count):
    """{"best" | "median" | "worst": query indices}, `count` in all; average_precision: (Q,)."""
    order = average_precision.argsort(descending=True, stable=True).tolist()
    count = min(count, len(order))
    best, worst = -(-count // 3), (count + 1) // 3
    middle = count - best - worst
    start = min(max(best, (len(order) - middle) // 2), len(order) - worst - middle)
    chosen = {"best": order[:best], "median": order[start : start + middle]}
    return {**chosen, "worst": order[len(order) - worst :]}


def pick_examples(average_precision, count, find):
    """The `extremes` with what they found: {"best" | "median" | "worst": list of Example}.

    find: function from query indices to what `Example` takes, as of `retrieval.measure`.
    """
    groups = extremes(average_precision, min(count, MOST_ROWS))
    return {group: [Example(*found) for found in find(rows)] for group, rows in groups.items()}


def spread(average_precision, count):
    """`count` query indices, worst first, evenly spaced in the order of average precision."""
    order = average_precision.argsort(stable=True)
    return order[torch.linspace(0, len(order) - 1, min(count, len(order))).long()].tolist()


def draw_examples(examples, queries, database, classes):
    """Draw {"best" | …: list of Example}, a row per query -> Figure."""
    rows = []
    for group, members in examples.items():
        for example in members:
            label = queries.labels[example.query]
            text = f"{group}: AP {example.average_precision:.2f}\n{classes[label]}"
            row = [(middle_frame(queries, example.query), text)]
            for index, distance in example.found:
                is_right = database.labels[index] == label
                unit = "bit" if distance == 1 else "bits"
                text = f"{distance} {unit}\n{classes[database.labels[index]]}"
                row.append((middle_frame(database, index), text, is_right))
            rows.append(row)
    title = (
        "Queries (left) and their nearest by Hamming distance. "
        "Solid blue: right class, dashed orange: wrong class. AP: average precision"
    )
    return retrieval_figure(rows, title)


def save_examples(path, examples, queries, database, classes):
    """Write `draw_examples` to `path`, in the format of its name."""
    save_figure(draw_examples(examples, queries, database, classes), path)


def write_embeddings(folder, codes, queries, database, classes):
    """A folder for TensorBoard's projector: the codes (Q + N, K) of all videos, with thumbnails."""
    videos = [(queries, "query", index) for index in range(len(queries))]
    videos += [(database, "database", index) for index in range(len(database))]
    columns = {
        "class": [classes[dataset.labels[index]] for dataset, _, index in videos],
        "set": [side for _, side, _ in videos],
        "video": [dataset.names[index] for dataset, _, index in videos],
    }
    bar = progress(videos, "thumbnails", leave=False)
    write_projector(folder, codes, columns, (data.read(i, 1)[0] for data, _, i in bar))


def read_shown(dataset, index, num_frames):
    """Frames (T, H, W, 3) uint8 RGB of a video, in the aspect ratio that a player shows."""
    frames, aspect = dataset.read(index, num_frames), dataset.aspect(index)
    height, width = frames.shape[1:3]
    shown = round(height * aspect) if aspect else width
    if shown == width:
        return frames
    return np.stack([cv2.resize(frame, (max(1, shown), height)) for frame in frames])


def middle_frame(dataset, index):
    """One frame (H, W, 3) uint8 RGB, as `read_shown` returns it."""
    return read_shown(dataset, index, 1)[0]
