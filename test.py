"""Measure retrieval: search each test video in the training videos by Hamming distance.

    python test.py --checkpoint runs/ucf101/best.pt

Writes metrics.json, codes.npz and retrieval.png beside the checkpoint, or into --output.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from datasets import FrameFolders, SplitError, list_frames, read_classes, read_frame, read_split
from datasets import test_transform as make_test_input
from models import build_model
from utils.checkpoint import CheckpointError, load_checkpoint
from utils.codes import binarize, save_codes
from utils.config import HelpFormatter, positive_int
from utils.files import write_text
from utils.metrics import evaluate
from utils.picture import save_retrieval_picture
from utils.report import format_report
from utils.retrieval import encode, nearest


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, help="best.pt or last.pt of a run folder")
    add("--output", help="folder for the results (default: test/ beside the checkpoint)")
    add("--frames", help="frames root, if it has moved since training")
    add("--splits", help="folder of the lists, if it has moved since training")
    add("--top-r", type=positive_int, default=100, help="cutoff R of the metrics at R")
    add("--pictures", type=int, default=6, help="queries to draw in retrieval.png")
    add("--untrained", action="store_true", help="also evaluate the same network with the random "
        "weights it started from, to see what training adds")  # fmt: skip
    add("--batch-size", type=positive_int, default=32, help="clips at a time")
    add("--workers", type=int, default=2, help="processes that read frames")
    add("--device", help="cuda, cuda:1, cpu; the default is a GPU if there is one")
    return parser


def load_sets(args, checkpoint):
    """(query FrameFolders, database FrameFolders): the test and the training list."""
    settings = checkpoint["settings"]
    frames, splits = args.frames or settings["frames"], Path(args.splits or settings["splits"])
    if read_classes(splits) != checkpoint["classes"]:
        raise SplitError(f"{splits}/classes.txt: not the classes that the network was trained on")
    return [
        FrameFolders(
            *read_split(splits / f"{part}.txt", len(checkpoint["classes"])),
            frames,
            checkpoint["preprocessing"]["clip_frames"],
        )
        for part in ("test", "train")
    ]


def encode_sets(model, sets, checkpoint, device, args):
    """Approximate codes of the queries and of the database: two (_, K) float32 tensors."""
    transform = partial(make_test_input, preprocessing=checkpoint["preprocessing"])
    options = {"batch_size": args.batch_size, "num_workers": args.workers}
    return [
        encode(model.to(device), DataLoader(part, **options), transform, device, name)
        for part, name in zip(sets, ("queries", "database"), strict=True)
    ]


def middle_frame(data, index):
    frames = list_frames(data.root / data.names[index])
    return read_frame(frames[len(frames) // 2])


def draw_results(queries, database, query_bits, database_bits, classes, count, path):
    """Picture of `count` queries, spread over the test list, and their ten nearest."""
    chosen = torch.linspace(0, len(queries) - 1, min(count, len(queries))).long()
    rows = []
    indices, distances = nearest(query_bits[chosen], database_bits, 10)
    for q, found, bits in zip(chosen.tolist(), indices.tolist(), distances.tolist(), strict=True):
        label = queries.labels[q]
        row = [(middle_frame(queries, q), classes[label])]
        for i, d in zip(found, bits, strict=True):
            title = f"{d}  {classes[database.labels[i]]}"
            row.append((middle_frame(database, i), title, database.labels[i] == label))
        rows.append(row)
    save_retrieval_picture(rows, path)


def main(args):
    # ==== checkpoint and data ====
    checkpoint = load_checkpoint(args.checkpoint)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    output = Path(args.output or Path(args.checkpoint).parent / "test")
    sets = queries, database = load_sets(args, checkpoint)
    query_labels, database_labels = (torch.tensor(part.labels) for part in sets)

    # ==== encode ====
    torch.manual_seed(checkpoint["settings"]["seed"])
    model = build_model(**checkpoint["network"])
    untrained = encode_sets(model, sets, checkpoint, device, args) if args.untrained else None
    model.load_state_dict(checkpoint["model"])
    query_codes, database_codes = encode_sets(model, sets, checkpoint, device, args)
    save_codes(
        output / "codes.npz",
        query_codes=query_codes,
        query_labels=query_labels,
        query_names=queries.names,
        database_codes=database_codes,
        database_labels=database_labels,
        database_names=database.names,
    )

    # ==== evaluate ====
    reports = {}
    for name, codes in (("untrained", untrained), ("trained", (query_codes, database_codes))):
        if codes is not None:
            query_bits, database_bits = map(binarize, codes)
            reports[name] = evaluate(
                query_bits, query_labels, database_bits, database_labels, top_r=args.top_r
            )
    print(format_report(reports))
    write_text(output / "metrics.json", json.dumps(reports["trained"], indent=2) + "\n")

    # ==== picture ====
    if args.pictures:
        path = output / "retrieval.png"
        names = checkpoint["classes"]
        draw_results(queries, database, query_bits, database_bits, names, args.pictures, path)
    print(f"wrote metrics.json, codes.npz and retrieval.png to {output}")


if __name__ == "__main__":
    try:
        main(build_parser().parse_args())
    except (SplitError, CheckpointError) as error:
        sys.exit(f"test.py: {error}")
