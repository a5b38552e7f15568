"""Measure retrieval: test videos are the queries, training videos the database.

    python test.py --checkpoint runs/ucf101
    python test.py --codes codes.npz --top-r 100 --output results

The first command writes metrics.json, codes.npz, retrieval.png and curves into
runs/ucf101/test. The second one evaluates the codes of any system: arrays
query_codes, query_labels, database_codes, database_labels. Several files of
either kind are compared in one table.
"""

from utils.errors import die_on_ctrl_c

if __name__ == "__main__":  # imports take seconds
    die_on_ctrl_c()

from configs.test_flags import parse_test_flags

if __name__ == "__main__":  # before PyTorch is imported, so that --help is instant
    ARGS = parse_test_flags(__doc__)

from functools import partial
from pathlib import Path

import torch

from datasets.annotations import read_groups
from datasets.features import FeatureDataset
from datasets.frames import FrameDataset
from datasets.loaders import ClipLoader
from datasets.testing import build_datasets
from datasets.transforms import prepare
from models import build_saved_model
from reports.comparison import format_comparison
from reports.environment import describe_environment
from reports.examples import Example, pick_examples, save_examples, spread, write_embeddings
from reports.figures import plot_precision_at, plot_precision_recall
from reports.results import result_folders, short_names, write_metrics
from reports.results_page import write_results_page
from reports.table import format_report, format_summary
from retrieval.baselines import compare, encode_baselines, measure_baselines
from retrieval.codes import load_codes, save_codes
from retrieval.encode import build_encoder, encode
from retrieval.hamming import nearest_labels
from retrieval.measure import SIDES, bits, find_nearest, measure
from utils import distributed
from utils.checkpoint import find_checkpoint, load_checkpoint
from utils.device import set_threads
from utils.errors import UserError, exit_on_user_error, printable
from utils.files import check_writable, is_utf8
from utils.terminal import safe_streams

DEFAULT_PICTURES = 6  # queries
SHOWN_RESULTS = 10  # per query, in the picture and on the page


# ==== encoding and measuring ====


def encode_datasets(model, queries, database, checkpoint, device, args):
    """Approximate codes of both sets: the dict that `save_codes` takes, in every process."""
    preprocessing = checkpoint["preprocessing"]  # None for features, which need none
    transform = partial(prepare, preprocessing=preprocessing) if preprocessing else None
    encoder = build_encoder(model, transform, device, args.amp)
    if has_baselines(checkpoint, args):
        encoder = with_baselines(encoder, device)
    items = {}
    for side, dataset in (("query", queries), ("database", database)):
        indices = range(distributed.rank(), len(dataset), distributed.world_size())
        loader = ClipLoader(dataset, args.workers, batch_size=args.batch_size, sampler=indices)
        rows = encode(encoder, loader, f"encoding {side}")
        rows = distributed.gather_rows(rows, len(dataset))
        width = checkpoint["network"]["bits"]
        items[f"{side}_codes"], items[f"{side}_baselines"] = rows[:, :width], rows[:, width:]
        items[f"{side}_labels"] = torch.tensor(dataset.labels)
        items[f"{side}_names"] = dataset.names
    return items


def has_baselines(checkpoint, args):
    """Whether to compare with retrieval without learning, which needs two frames."""
    preprocessing = checkpoint["preprocessing"]
    return bool(args.baselines and preprocessing and preprocessing["clip_frames"] > 1)


def with_baselines(encoder, device):
    """An encoder that returns the codes and, beside them, the features of the baselines."""

    def encode_both(clips):
        if device.type == "cuda":  # Apple's GPUs lack an operation of the baselines
            clips = clips.to(device, non_blocking=True)
        codes = encoder(clips)
        return torch.cat([codes, encode_baselines(clips).to(device)], dim=1)

    return encode_both


def compare_network(tested, queries, classes, splits):
    """(a dict as of `compare`, its text) for a network that was tested with its baselines."""
    items = tested.items
    sides = [items[f"{side}_{kind}"] for side in SIDES for kind in ("baselines", "labels")]
    path = splits / "groups.csv"
    groups = read_groups(path) if path.is_file() else {}
    numbers = {}
    recordings = [groups.get(name, f"video {name}") for name in queries.names]
    recordings = torch.tensor([numbers.setdefault(name, len(numbers)) for name in recordings])
    network = {"map": tested.average_precision, "precision_at_1": tested.precision_at_1}
    labels = items["query_labels"]
    rows = compare(network, measure_baselines(*sides), labels, classes, recordings)
    return rows, format_comparison(rows, len(numbers) < len(queries))


def measure_prefixes(items, checkpoint, how):
    """{"16 bits": metrics, …} of the shorter ones of nested codes. how: arguments of `measure`."""
    reports = {}
    for length in checkpoint["settings"].get("nested_bits", []):
        if length < checkpoint["network"]["bits"]:
            prefixes = {f"{side}_codes": items[f"{side}_codes"][:, :length] for side in SIDES}
            reports[f"{length} bits"] = measure({**items, **prefixes}, *how).metrics
    return reports


def measure_checkpoint(path, folder, device, args):
    """Encode and measure the lists of a checkpoint, and write the results into `folder`.

    Returns ({"trained": metrics}, whether the network is for videos, the comparison as text). The
    metrics before training, with --untrained, and those of the prefixes of nested codes come first.
    """
    checkpoint = load_checkpoint(path, "settings")
    queries, database, classes = build_datasets(checkpoint, args)
    torch.manual_seed(checkpoint["settings"]["seed"])
    model = build_saved_model(checkpoint, path)
    data = queries, database, checkpoint, device, args
    how, reports = (device, args.top_r, args.cutoffs, classes), {}
    comparison, text = None, ""
    if args.untrained:
        untrained = encode_datasets(model, *data)
        reports["untrained"] = measure(untrained, *how).metrics
    model.load_state_dict(checkpoint["model"])
    items = encode_datasets(model, *data)
    reports |= measure_prefixes(items, checkpoint, how)
    tested = measure(items, *how)
    if distributed.is_main():
        source = args.features or checkpoint["settings"].get("features") or queries.root
        run = {
            **{"checkpoint": str(path), "epoch": checkpoint.get("epoch")},
            "data": {"source": str(source), **checkpoint.get("data", {})},
            **describe_environment(device, distributed.world_size()),
        }
        if has_baselines(checkpoint, args):
            splits = Path(args.splits or checkpoint["settings"]["splits"])
            comparison, text = compare_network(tested, queries, classes, splits)
        write_metrics(folder / "metrics.json", tested.metrics, run, reports, comparison)
        write_results(folder, tested, queries, database, classes, run, args)
    return {**reports, "trained": tested.metrics}, isinstance(queries, FrameDataset), text


def measure_codes(path, folder, device, args):
    """Measure a file of codes, and write metrics.json into `folder`. Returns the metrics."""
    tested = measure(load_codes(path, args.bits), device, args.top_r, args.cutoffs)
    if distributed.is_main():
        run = {"codes": str(path), **describe_environment(device, distributed.world_size())}
        write_metrics(folder / "metrics.json", tested.metrics, run)
    return tested.metrics


# ==== results ====


def write_results(folder, tested, queries, database, classes, run, args):
    """codes.npz and, for videos, a picture; retrieval.html and projector/ with their flags."""
    items, scores = tested.items, tested.average_precision
    save_codes(folder / "codes.npz", items)
    if isinstance(queries, FeatureDataset):
        return
    pictures = DEFAULT_PICTURES if args.pictures is None else args.pictures
    data = queries, database, classes
    if pictures:
        find = partial(find_nearest, tested, count=SHOWN_RESULTS)
        examples = pick_examples(scores, pictures, find)
        save_examples(folder / f"retrieval.{args.format}", examples, *data)
    if args.html:
        rows = spread(scores, args.html)
        examples = [Example(*found) for found in find_nearest(tested, rows, SHOWN_RESULTS)]
        codes = bits(items, "query"), bits(items, "database")
        found = nearest_labels(*codes, items["database_labels"], SHOWN_RESULTS, len(classes))
        page = folder / "retrieval.html"
        write_results_page(page, tested.metrics, found, examples, *data, run)
    if args.projector:
        codes = torch.cat([items["query_codes"], items["database_codes"]])
        write_embeddings(folder / "projector", codes, *data)


def write_report(reports, output, args):
    """Print the metrics of {name: metrics}, and draw the curves of all into `output`."""
    reports = {printable(name): metrics for name, metrics in reports.items()}
    print(format_report(reports) if args.all_metrics else format_summary(reports), end="\n\n")
    plot_precision_recall(reports, output / f"precision_recall.{args.format}")
    plot_precision_at(reports, output / f"precision_at.{args.format}")
    print(printable(f"Metrics, curves and pictures: {output}"))


# ==== main ====


def choose_output(args, checkpoints):
    """The folder for the results."""
    is_one_run = len(checkpoints) == 1 and not args.codes
    return Path(args.output or (checkpoints[0].parent / "test" if is_one_run else "results"))


def next_steps(checkpoint, args):
    """What to run after the test of one checkpoint: lines of text."""
    html = "" if args.html else f"\n  python test.py --checkpoint {printable(checkpoint)} --html"
    return (
        f"Next, a page of the errors, or an index of videos to search:{html}\n"
        f"  python search.py index --checkpoint {printable(checkpoint)} \\\n"
        "      --videos FOLDER --output INDEX"
    )


def main(args):
    device = distributed.start(args.device)
    set_threads(args.threads)

    # ==== files ====
    checkpoints = [find_checkpoint(path) for path in dict.fromkeys(args.checkpoint)]
    files = checkpoints + [Path(path) for path in dict.fromkeys(args.codes)]
    output, names = choose_output(args, checkpoints), short_names(files)
    check_writable(output, "--output")
    folders = result_folders(output, names)
    if args.projector and not all(map(is_utf8, folders)):
        raise UserError(f"--projector: {output}: TensorBoard takes only names that are UTF-8")

    # ==== encode and measure ====
    reports = {}
    for name, path, folder in zip(names, files, folders, strict=True):
        if path in checkpoints:
            measured, is_for_videos, text = measure_checkpoint(path, folder, device, args)
            if len(files) > 1:
                names_of = {key: f"{name} {key}" for key in measured} | {"trained": name}
                measured = {names_of[key]: metrics for key, metrics in measured.items()}
            reports |= measured
        else:
            reports[name] = measure_codes(path, folder, device, args)

    # ==== report ====
    if distributed.is_main():
        write_report(reports, output, args)
        if len(checkpoints) == len(files) == 1 and is_for_videos:
            print("\n" + "\n\n".join(filter(None, [text, next_steps(checkpoints[0], args)])))


if __name__ == "__main__":
    with (
        safe_streams("test.py"),
        distributed.together(),
        exit_on_user_error("test.py", "--batch-size"),
    ):
        main(ARGS)
