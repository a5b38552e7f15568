"""Measure retrieval: search each test video in the training videos by Hamming distance.

    python test.py --checkpoint runs/ucf101/best.pt
    python test.py --codes codes.npz --top-r 100 --output results

The first writes metrics.json, codes.npz, retrieval.png and the curves into test/ beside the
checkpoint. The second evaluates any system's codes: arrays query_codes, query_labels,
database_codes, database_labels. Several files of either kind give one comparison table.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from datasets.frames import FrameDataset, list_frames, read_frame
from datasets.loaders import ClipLoader
from datasets.splits import SplitError, check_disjoint, read_classes, read_split
from datasets.transforms import prepare
from models import build_model
from reports.figures import plot_precision_at, plot_precision_recall, save_retrieval_picture
from reports.page import preview, write_page
from reports.projector import write_projector
from reports.table import format_report
from retrieval.codes import binarize, load_codes, save_codes
from retrieval.encode import build_encoder, encode
from retrieval.hamming import nearest
from retrieval.metrics import evaluate
from utils import distributed
from utils.checkpoint import load_checkpoint
from utils.config import new_parser, positive_int, whole_number
from utils.errors import UserError, exit_on_user_error
from utils.files import write_text
from utils.terminal import progress, safe_streams


# fmt: off
def build_parser():
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", nargs="+", default=[], metavar="FILE",
        help="best.pt or last.pt of run folders")
    add("--codes", nargs="+", default=[], metavar="FILE.npz",
        help="codes of any system: real-valued (>= 0 is 1), +-1, 0/1, bool, or packed uint8")
    add("--bits", type=positive_int, help="code length of packed --codes")
    add("--output", help="folder for the results; test/ beside a single checkpoint, else results/")
    add("--top-r", type=positive_int, default=100, help="cutoff R of the metrics at R")
    add("--cutoffs", type=positive_int, nargs="+", default=[1, 10, 100],
        help="N of precision@N and recall@N")
    add("--untrained", action="store_true",
        help="also evaluate the network of each checkpoint with random weights of its seed")
    add("--frames", help="frames root, if it has moved since training")
    add("--splits", help="folder of the lists, if it has moved since training")
    add("--pictures", type=whole_number, default=6,
        help="queries, spread over the test list, to show in retrieval.png and --html")
    add("--html", action="store_true",
        help="also write retrieval.html: the queries' results as moving previews")
    add("--projector", action="store_true",
        help="also write projector/ for TensorBoard: codes with classes and thumbnails")
    add("--batch-size", type=positive_int, default=32, help="clips at a time")
    add("--workers", type=whole_number, default=2, help="processes that read frames")
    add("--device", help="cpu, cuda, cuda:1 or mps (Apple); default: cuda where there is one")
    add("--amp", action=argparse.BooleanOptionalAction, default=True,
        help="mixed precision on GPUs; CPUs use float32")
    return parser
# fmt: on


def load_sets(args, checkpoint):
    """(query FrameDataset, database FrameDataset): the test and the training list."""
    settings = checkpoint["settings"]
    frames, splits = args.frames or settings["frames"], Path(args.splits or settings["splits"])
    if read_classes(splits) != checkpoint["classes"]:
        raise SplitError(f"{splits}/classes.txt: not the classes that the network was trained on")
    sets = [
        FrameDataset(
            *read_split(splits / f"{part}.txt", len(checkpoint["classes"])),
            frames,
            checkpoint["preprocessing"]["clip_frames"],
        )
        for part in ("test", "train")
    ]
    if not all(map(len, sets)):
        raise SplitError(f"{splits}: test.txt and train.txt must both name videos")
    check_disjoint(splits, sets[0].names, sets[1].names)
    check_as_trained(checkpoint, *sets, splits)
    return sets


def check_as_trained(checkpoint, queries, database, splits):
    """Compare the data with what the checkpoint records of its training.

    Raises UserError where the figures would be wrong: the network has seen test videos, or the
    frames have another size. Warns where they measure something else than the training suggests.
    """
    clip_frames = checkpoint["preprocessing"]["clip_frames"]
    trained_size = checkpoint["preprocessing"].get("frame_size")  # absent in early checkpoints
    size, stored = list(queries.frame_size[:2]), queries.extracted
    if trained_size and size != trained_size:
        raise UserError(
            f"{queries.root}: the frames are {size} pixels, but the network was trained on "
            f"{trained_size}; extract with --size {trained_size[0]} {trained_size[1]}"
        )
    if stored and stored < clip_frames:
        raise UserError(f"{queries.root}: {stored} frames per video, but a clip has {clip_frames}")

    videos = checkpoint.get("videos", {"train": [], "val": []})
    trained = set(queries.names) & set(videos["train"])
    if trained:
        raise UserError(
            f"{splits}/test.txt: the network was trained on {len(trained)} of its {len(queries)} "
            f"videos, the first is {min(trained)!r}; give the lists of the training with --splits"
        )
    warnings = []
    if set(queries.names) & set(videos["val"]):
        warnings.append(f"{splits}/test.txt has validation videos, by which best.pt was chosen")
    if videos["train"] and set(database.names) != set(videos["train"]):
        warnings.append(f"{splits}/train.txt is not the list that the network was trained on")
    extraction = checkpoint.get("data", {}).get("extraction")
    if extraction and queries.extraction != extraction:
        warnings.append(f"{queries.root}: extracted with {queries.extraction}, not {extraction}")
    for warning in warnings if distributed.is_main() else ():
        tqdm.write(f"warning: {warning}", file=sys.stderr)


def encode_sets(model, sets, checkpoint, args):
    """Approximate codes of the queries and of the database: two (_, K) float32 tensors."""
    transform = partial(prepare, preprocessing=checkpoint["preprocessing"])
    encoder = build_encoder(model, transform, args.device, args.amp)
    codes = []
    for part, name in zip(sets, ("queries", "database"), strict=True):
        share = range(distributed.rank(), len(part), distributed.world_size())
        loader = ClipLoader(part, args.workers, batch_size=args.batch_size, sampler=share)
        rows = encode(encoder, loader, name)
        codes.append(distributed.gather_rows(rows, len(part)))
    return codes


def middle_frame(data, index):
    frames = list_frames(data.root / data.names[index])
    return read_frame(frames[len(frames) // 2])


def find_results(queries, codes, count):
    """`count` queries, spread over the test list, and their ten nearest.

    Returns [(query row, [(database row, distance in bits), ...]), ...].
    """
    chosen = torch.linspace(0, len(queries) - 1, min(count, len(queries))).long()
    query_codes, database_codes = map(binarize, codes)
    rows, bits = nearest(query_codes[chosen], database_codes, 10)
    pairs = zip(rows.tolist(), bits.tolist(), strict=True)
    found = [list(zip(*pair, strict=True)) for pair in pairs]
    return list(zip(chosen.tolist(), found, strict=True))


def draw_results(results, queries, database, classes, path):
    """retrieval.png: a row a query, its results framed as right or wrong."""
    rows = []
    for q, found in results:
        label = queries.labels[q]
        row = [(middle_frame(queries, q), classes[label])]
        for i, bits in found:
            title = f"{bits}  {classes[database.labels[i]]}"
            row.append((middle_frame(database, i), title, database.labels[i] == label))
        rows.append(row)
    save_retrieval_picture(rows, path)


def write_results_page(results, queries, database, classes, scores, path):
    """retrieval.html: the same as moving previews, with the mAP of each class."""

    def describe(data, index):
        frames = data.read(index, 8)
        label = classes[data.labels[index]]
        return {"path": data.names[index], "class": label, "preview": preview(frames)}

    searches = []
    for q, found in results:
        described = [{**describe(database, i), "distance": bits} for i, bits in found]
        for result, (i, _) in zip(described, found, strict=True):
            result["is_right"] = database.labels[i] == queries.labels[q]
        searches.append({**describe(queries, q), "results": described})
    write_page(path, f"{len(searches)} of {len(queries)} test queries", searches, scores)


def write_embeddings(sets, codes, classes, folder):
    """TensorBoard's projector: the approximate codes of both sets, with classes and thumbnails."""
    items = [(data, part, i) for data, part in zip(sets, ("query", "database"), strict=True)
             for i in range(len(data))]  # fmt: skip
    write_projector(
        folder,
        torch.cat(codes),
        {
            "class": [classes[data.labels[i]] for data, _, i in items],
            "set": [part for _, part, _ in items],
            "video": [data.names[i] for data, _, i in items],
        },
        (middle_frame(data, i) for data, _, i in progress(items, "thumbnails", leave=False)),
    )


def measure(query_codes, query_labels, database_codes, database_labels, args):
    """`evaluate` on the device that --device names."""
    arrays = (query_codes, query_labels, database_codes, database_labels)
    arrays = [array.to(args.device) for array in arrays]
    return evaluate(*arrays, top_r=args.top_r, cutoffs=args.cutoffs)


def measure_checkpoint(path, output, args):
    """Encode and evaluate the data of a checkpoint. Returns [(what, metrics)], ours last."""
    checkpoint = load_checkpoint(path)
    sets = queries, database = load_sets(args, checkpoint)
    labels = [torch.tensor(part.labels) for part in sets]
    torch.manual_seed(checkpoint["settings"]["seed"])
    model = build_model(**checkpoint["network"])
    results = []
    for what in ["untrained"] * args.untrained + ["trained"]:
        if what == "trained":
            model.load_state_dict(checkpoint["model"])
        codes = encode_sets(model, sets, checkpoint, args)
        bits = map(binarize, codes)
        metrics = measure(next(bits), labels[0], next(bits), labels[1], args)
        per_class = metrics["map_per_class"]
        metrics["map_per_class"] = {checkpoint["classes"][int(c)]: per_class[c] for c in per_class}
        results.append((what, metrics))
    if not distributed.is_main():
        return results
    save_codes(
        output / "codes.npz",
        query_codes=codes[0],
        query_labels=labels[0],
        query_names=queries.names,
        database_codes=codes[1],
        database_labels=labels[1],
        database_names=database.names,
    )
    classes, found = checkpoint["classes"], find_results(queries, codes, args.pictures)
    if found:
        draw_results(found, *sets, classes, output / "retrieval.png")
    if found and args.html:
        scores = metrics["map_per_class"].items()
        write_results_page(found, *sets, classes, scores, output / "retrieval.html")
    if args.projector:
        write_embeddings(sets, codes, classes, output / "projector")
    return results


def measure_codes(path, args):
    """Evaluate the codes of an .npz file. Returns metrics."""
    arrays = load_codes(path, args.bits)
    kinds = ("query_codes", "query_labels", "database_codes", "database_labels")
    return measure(*(arrays[kind] for kind in kinds), args)


def short_names(paths):
    """The last two parts of each path without its suffix; whole paths where those are equal."""
    names = ["/".join(Path(path).absolute().with_suffix("").parts[-2:]) for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def main(args):
    # ==== where ====
    args.device = distributed.start(args.device)
    files = args.checkpoint + args.codes
    is_single = len(files) == 1
    beside = Path(args.checkpoint[0]).parent / "test" if is_single and args.checkpoint else None
    output = Path(args.output or beside or "results")

    # ==== encode and evaluate ====
    reports = {}
    for name, path in zip(short_names(files), files, strict=True):
        own = output if is_single else output / name.strip("/").replace("/", "_")
        if path in args.codes:
            reports[name] = measure_codes(path, args)
        else:
            *others, (_, metrics) = measure_checkpoint(path, own, args)
            reports |= {f"{name} {what}": other for what, other in others}
            reports[name] = metrics
        if distributed.is_main():
            write_text(own / "metrics.json", json.dumps(reports[name], indent=2) + "\n")
    if not distributed.is_main():
        return

    # ==== report ====
    print(format_report(reports))
    plot_precision_recall(reports, output / "precision_recall.png")
    plot_precision_at(reports, output / "precision_at.png")
    print("\nmAP over all ranks, ties exact:", end=" ")
    print(", ".join(f"{metrics['map']:.4f} {name}" for name, metrics in reports.items()))
    print(f"results in {output}")


if __name__ == "__main__":
    with safe_streams("test.py"):
        parser = build_parser()
        args = parser.parse_args()
        if not args.checkpoint + args.codes:
            parser.error("give --checkpoint or --codes")
        with distributed.together(), exit_on_user_error("test.py", "--batch-size"):
            main(args)
