"""Find videos of the same action by the Hamming distance of their codes.

    python search.py index --checkpoint runs/demo/best.pt \\
        --videos data/demo/videos --output data/demo/index
    python search.py query --index data/demo/index \\
        --video clip.mp4 --top 8 --html found.html

`index` encodes all videos below a folder. The same command updates the index:
it encodes only new and changed videos, also after an interruption. `query`
prints the rank, distance in bits, class and path of the nearest videos.
"""

from utils.errors import die_on_ctrl_c

if __name__ == "__main__":  # imports take seconds
    die_on_ctrl_c()

import sys
from argparse import BooleanOptionalAction
from pathlib import Path

from utils.argtypes import number, processors
from utils.config import Parser


def build_parser():
    parser = Parser(__doc__)
    add_index_flags(parser.command("index", "Encode the videos below a folder."))
    add_query_flags(parser.command("query", "Find the videos nearest to a query video."))
    return parser


def add_index_flags(parser):
    add = parser.add
    folder = {"required": True, "type": Path, "metavar": "DIR"}
    checkpoint = "best.pt or last.pt, or a run folder: its best.pt"
    add("--checkpoint", required=True, metavar="RUN", help=checkpoint)
    add("--videos", **folder, help="videos at any depth below it")
    add("--output", **folder, help="index folder; an index in it is updated")
    add_encoder_flags(parser)


def add_query_flags(parser):
    add = parser.add
    count = number(int, least=1)
    start = {"type": number(float, least=0), "default": 0.0, "metavar": "SECONDS"}
    end = {"type": number(float, above=0), "metavar": "SECONDS"}
    add("--index", required=True, type=Path, metavar="DIR", help="what `search.py index` wrote")
    add("--video", required=True, nargs="+", metavar="FILE", help="query videos")
    add("--top", type=count, default=10, help="results per query")
    add("--exclude-query", action="store_true", help="omit the query itself from the results")
    add("--start", **start, help="use the query video from this time on")
    add("--end", **end, help="use the query video up to this time (default: to its end)")
    rerank = "sort the nearest N by the distance of the real-valued query code (asymmetric)"
    add("--rerank", type=count, metavar="N", help=rerank)
    add("--checkpoint", metavar="RUN", help="the checkpoint of the index, if it was moved")
    add("--json", action="store_true", help="print JSON")
    add("--html", type=Path, metavar="FILE", help="also write a page with animated previews")
    add_encoder_flags(parser)


def add_encoder_flags(parser):
    add = parser.add
    count = number(int, least=1)
    parser.group("speed")
    add("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    amp = "mixed precision on GPUs; CPUs use float32"
    add("--amp", action=BooleanOptionalAction, default=True, help=amp)
    add("--workers", type=count, default=processors(), help="processes that decode videos")
    add("--threads", type=count, help="CPU threads of PyTorch (default: all cores)")
    add("--batch-size", type=count, default=16, help="clips per batch")
    timeout = {"type": number(float, above=0), "default": 600, "metavar": "SECONDS"}
    add("--timeout", **timeout, help="limit per video; videos over the limit are skipped")


if __name__ == "__main__":  # before PyTorch is imported, so that --help is instant
    ARGS = build_parser().parse_args()

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from datasets.process_pool import run_jobs
from datasets.transforms import prepare
from datasets.video import VideoError, read_clip, read_video
from datasets.video_files import find_videos
from models import build_saved_model
from reports.page import PREVIEW_HEIGHT, preview, write_page
from retrieval.codes import binarize
from retrieval.encode import build_encoder
from retrieval.index import Index, IndexFileError, check_index_folder, write_index
from retrieval.index_update import append_to_journal, encoded_videos, journal_path, plan_update
from utils import distributed
from utils.checkpoint import CheckpointError, find_checkpoint, load_checkpoint
from utils.device import set_threads
from utils.errors import UserError, exit_on_user_error, printable
from utils.files import check_writable, file_lock, write_failures
from utils.terminal import progress, safe_streams

PREVIEW_FRAMES = 8


# ==== encoding video files ====


class Encoder(NamedTuple):
    """A checkpoint that is ready to encode."""

    encode: Callable  # uint8 clips (B, T, H, W, 3) -> approximate codes (B, K)
    preprocessing: dict[str, Any]
    classes: list[str]
    metadata: dict[str, Any]  # what must be equal for two encoders to give the same codes


def load_encoder(path, device, amp):
    """The `Encoder` of the checkpoint at `path`. amp: whether to use mixed precision on a GPU."""
    checkpoint = load_checkpoint(path)
    preprocessing = checkpoint["preprocessing"]
    if preprocessing is None:
        raise CheckpointError(
            f"{path}: was trained on features (--features), so it cannot encode videos; use a "
            "checkpoint that was trained on frames"
        )
    if "frame_size" not in preprocessing:
        raise CheckpointError(
            f"{path}: written by an early version, which did not record the size of the frames; "
            "train again"
        )
    model = build_saved_model(checkpoint, path)
    model.load_state_dict(checkpoint["model"])
    transform = partial(prepare, preprocessing=preprocessing)
    metadata = {
        "bits": checkpoint["network"]["bits"],
        "checkpoint_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "preprocessing": preprocessing,
    }
    encode = build_encoder(model, transform, device, amp)
    return Encoder(encode, preprocessing, checkpoint["classes"], metadata)


def encode_videos(paths, encoder, args, start=0.0, end=math.inf):
    """Decode video files in worker processes and encode them, a batch at a time.

    start, end: the seconds of each video to use.
    Yields for each batch ({path: approximate code (K,) on the CPU}, {path: reason of failure}).
    """
    read = partial(read_clip, preprocessing=encoder.preprocessing, start=start, end=end)
    results = run_jobs(read, paths, args.workers, args.timeout)
    results = iter(progress(results, "encoding", len(paths), "video", is_shown=len(paths) > 1))
    while batch := list(islice(results, args.batch_size)):
        clips = {path: clip for path, clip, failure in batch if failure is None}
        codes = {}
        if clips:
            values = encoder.encode(torch.from_numpy(np.stack(list(clips.values())))).cpu()
            codes = dict(zip(clips, values, strict=True))
        yield codes, {path: failure for path, _, failure in batch if failure is not None}


# ==== index ====


def index_videos(device, args):
    """Make or update an index. Returns the exit status: 1 if a video could not be read."""
    checkpoint = find_checkpoint(args.checkpoint)
    encoder = load_encoder(checkpoint, device, args.amp)
    plan = None
    if distributed.is_main():  # before any process writes to its journal
        encoded = encoded_videos(args.output, encoder.metadata)
        paths = find_videos(args.videos)
        plan = *plan_update(args.videos, paths, encoded), len(encoded.keys() - set(paths))
        args.output.mkdir(parents=True, exist_ok=True)
    unchanged, todo, num_removed = distributed.gather(plan)[0]
    records = todo[distributed.rank() :: distributed.world_size()]
    results = distributed.gather(encode_records(records, encoder, args))
    if not distributed.is_main():
        return 0

    encoded = [record for records, _ in results for record in records]
    failures = {path: reason for _, failed in results for path, reason in failed.items()}
    failures_path = args.output / "failures.csv"
    write_failures(failures_path, failures)
    if not unchanged + encoded:
        raise IndexFileError(f"no video could be read; see {failures_path}")
    folders = {"checkpoint": os.path.abspath(checkpoint), "videos": os.path.abspath(args.videos)}
    write_index(args.output, {**encoder.metadata, **folders}, unchanged + encoded)
    print(
        f"{len(unchanged + encoded)} videos in {printable(args.output)}: {len(encoded)} encoded, "
        f"{len(unchanged)} already there, {num_removed} removed, {len(failures)} failed"
    )
    if failures:
        print(printable(f"search.py: the reasons are in {failures_path}"), file=sys.stderr)
    return int(bool(failures))


def encode_records(todo, encoder, args):
    """Encode the videos of the records `todo`, and append each batch to this process's journal.

    Returns (encoded records, {path below --videos: reason of failure}).
    """
    records = {str(args.videos / record["path"]): record for record in todo}
    encoded, failures = [], {}
    path = journal_path(args.output, encoder.metadata, distributed.rank())
    with open(path, "a", encoding="ascii") as journal:
        for codes, failed in encode_videos(records, encoder, args):
            batch = [
                complete_record(records[path], code, encoder.classes)
                for path, code in codes.items()
            ]
            append_to_journal(journal, batch)
            encoded += batch
            failures |= {records[path]["path"]: reason for path, reason in failed.items()}
    return encoded, failures


def complete_record(record, code, classes):
    """A record with its class, None if it is unknown, and its binary code."""
    folder = os.path.basename(os.path.dirname(record["path"]))
    name = folder if folder in classes else None
    bits = np.packbits(binarize(code).numpy())
    return {**record, "class": name, "code": bits.tobytes().hex()}


# ==== query ====


def query_videos(device, args):
    """Search with each query video. Returns the exit status: 1 if a query could not be read."""
    end = math.inf if args.end is None else args.end
    if args.start >= end:
        raise UserError(f"--start {args.start:g} is not before --end {end:g}")
    if args.html:
        check_page(args.html)
    index = Index(args.index)
    encoder = load_index_encoder(index, device, args)
    codes, failures = {}, {}
    for batch, failed in encode_videos(dict.fromkeys(args.video), encoder, args, args.start, end):
        codes |= batch
        failures |= failed
    for path, reason in failures.items():
        print(printable(f"search.py: {path}: {reason}"), file=sys.stderr)
    searches = [
        {"path": path, "class": None, "results": search(index, path, codes[path], args)}
        for path in dict.fromkeys(args.video)
        if path in codes
    ]
    if args.html and searches:
        write_search_page(args.html, searches, args.start, end, args)
    if args.json:
        print(json.dumps(searches, indent=2))
    else:
        print_results(searches)
    return int(bool(failures))


def load_index_encoder(index, device, args):
    """The encoder that made `index`. Raises UserError if --checkpoint is another one."""
    recorded = Path(index.metadata["checkpoint"])
    if not args.checkpoint and not recorded.is_file():
        raise IndexFileError(
            f"{args.index}: its checkpoint {recorded} is missing; if it was moved, set --checkpoint"
        )
    path = find_checkpoint(args.checkpoint or recorded)
    encoder = load_encoder(path, device, args.amp)
    if any(index.metadata[key] != value for key, value in encoder.metadata.items()):
        raise IndexFileError(
            f"{args.index}: made with another checkpoint than {path}; its SHA-256 begins with "
            f"{index.metadata['checkpoint_sha256'][:12]}"
        )
    return encoder


def search(index, query, code, args):
    """The results of one query: list of dicts with rank, distance, class and path.

    query: path of the video. code: its approximate code (K,).
    """
    wanted = max(args.top, args.rerank or 0) + args.exclude_query
    rows, distances = index.search(binarize(code)[None].numpy(), wanted)
    results = {}
    for row, distance in zip(rows[0].tolist(), distances[0].tolist(), strict=True):
        video = index.video(row)
        path = shorten(os.path.join(index.metadata["videos"], video["path"]))
        if not (args.exclude_query and is_same_file(query, path)):
            results[row] = {"distance": distance, "class": video["class"], "path": path}
    rows = np.array(list(results), int)
    if args.rerank:
        first, others = rows[: args.rerank], rows[args.rerank :]
        rows = np.concatenate([index.rerank(code.numpy(), first), others])
    nearest = rows[: args.top].tolist()
    return [{"rank": rank, **results[row]} for rank, row in enumerate(nearest, start=1)]


def shorten(path):
    """A path relative to the current folder, if it is below it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def is_same_file(path, other):
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):  # no such file, or no possible name
        return False


def print_results(searches):
    results = [result for found in searches for result in found["results"]]
    classes = [printable(result["class"] or "-") for result in results]
    width = max(map(len, ["class", *classes]))
    for found in searches:
        print(f"\n{printable(found['path'])}\nrank  bits  {'class':<{width}}  path")
        for r in found["results"]:
            name = printable(r["class"] or "-")
            print(f"{r['rank']:>4}  {r['distance']:>4}  {name:<{width}}  {printable(r['path'])}")


# ==== page ====


def check_page(path):
    """Raise UserError if --html cannot be written."""
    if path.is_dir():
        raise UserError(f"--html {path}: is a folder; name a file, such as {path / 'found.html'}")
    check_writable(path.parent, "--html")


def write_search_page(page, searches, start, end, args):
    """Write the results as a page with animated previews; a video that is gone has none."""
    queries = read_previews([found["path"] for found in searches], args, start, end)
    paths = sorted({result["path"] for found in searches for result in found["results"]})
    previews = read_previews(paths, args)
    shown = []
    for found in searches:
        results = [{**result, "preview": previews[result["path"]]} for result in found["results"]]
        shown.append({**found, "preview": queries[found["path"]], "results": results})
    write_page(page, "Videos of the same action", shown)


def read_previews(paths, args, start=0.0, end=math.inf):
    """The previews of videos, read in worker processes: {path: data URI or None}."""
    read = partial(read_preview, start=start, end=end)
    results = run_jobs(read, paths, args.workers, args.timeout)
    results = progress(results, "previews", len(paths), "video", leave=False)
    return {path: uri for path, uri, _ in results}


def read_preview(path, start, end):
    """(data URI, None) of a video, or (None, reason). Runs in a worker process."""
    cv2.setNumThreads(1)
    try:
        size = (PREVIEW_HEIGHT, None)  # the aspect ratio that a player shows
        return preview(read_video(path, PREVIEW_FRAMES, size, start, end)), None
    except (VideoError, cv2.error) as error:
        return None, str(error)


# ==== main ====


def main(args):
    device = distributed.start(args.device)
    set_threads(args.threads)
    if args.command == "query":
        return query_videos(device, args)
    check_writable(args.output, "--output")
    check_index_folder(args.output)  # before the lock, which makes the folder
    lock = file_lock(args.output / ".lock")
    with lock if distributed.is_main() else contextlib.nullcontext():
        return index_videos(device, args)


if __name__ == "__main__":
    with safe_streams("search.py"):
        with distributed.together(), exit_on_user_error("search.py", "--batch-size"):
            STATUS = main(ARGS)
        sys.exit(STATUS)
