"""Find the videos that show the same action as yours.

    python search.py index --checkpoint runs/ucf101/best.pt --videos my_videos --output my.index
    python search.py query --index my.index --video clip.mp4 --top 10 --html found.html

The first encodes every video below a folder, straight from the files; run again, it encodes only
what is new or changed, also after a kill. The second prints rank, distance in bits, class, path.
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.transforms import prepare
from datasets.video import VideoError, read_clip, read_video
from datasets.video_files import find_videos
from models import build_model
from reports.page import PREVIEW_HEIGHT, preview, write_page
from retrieval.codes import binarize
from retrieval.encode import build_encoder
from retrieval.index import (
    Index,
    IndexFileError,
    append,
    journal_path,
    known_videos,
    plan,
    write_index,
)
from utils import distributed
from utils.checkpoint import CheckpointError, load_checkpoint
from utils.config import (
    HelpFormatter,
    new_parser,
    non_negative_float,
    positive_float,
    positive_int,
    processors,
)
from utils.errors import UserError, exit_on_user_error
from utils.files import file_lock, printable, write_failures
from utils.process_pool import run_jobs
from utils.terminal import progress, safe_streams


# fmt: off
def build_parser():
    parser = new_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    add("--device", help="cpu, cuda, cuda:1 or mps (Apple); default: cuda where there is one")
    add("--amp", action=argparse.BooleanOptionalAction, default=True,
        help="mixed precision on GPUs; CPUs use float32")
    add("--workers", type=positive_int, default=processors(), help="processes, one video each")
    add("--batch-size", type=positive_int, default=16, help="clips at a time in the network")
    add("--timeout", type=positive_float, default=600, metavar="SECONDS",
        help="for one video; one that takes longer is given up and listed")

    options = {"parents": [shared], "formatter_class": HelpFormatter, "allow_abbrev": False}
    index = commands.add_parser("index", **options,
        help="encode the videos below a folder", doc="Encode the videos below a folder.")
    add = index.add_argument
    add("--checkpoint", required=True, help="best.pt of a run folder")
    add("--videos", required=True, type=Path, help="folder tree of videos")
    add("--output", required=True, type=Path, help="the index, a folder; updated if it exists")

    query = commands.add_parser("query", **options,
        help="find the videos like one's own", doc="Find the videos like one's own.")
    add = query.add_argument
    add("--index", required=True, type=Path, help="what `search.py index` wrote")
    add("--video", required=True, nargs="+", help="query videos")
    add("--top", type=positive_int, default=10, help="results for each query")
    add("--start", type=non_negative_float, default=0, help="of the part to search with, seconds")
    add("--end", type=positive_float, default=float("inf"), help="of that part, seconds")
    add("--exclude-query", action="store_true", help="leave the query itself out of the results")
    add("--rerank", type=positive_int, default=0, metavar="N",
        help="order the nearest N by the query's real-valued code (asymmetric distance)")
    add("--checkpoint", help="the one the index was made with, if it has moved")
    add("--json", action="store_true", help="print JSON for programs")
    add("--html", type=Path, metavar="FILE", help="also write a page with moving previews")
    return parser
# fmt: on


PREVIEW_FRAMES = 8


class Encoder:
    """A checkpoint ready to encode: its network, preprocessing and identity."""

    def __init__(self, path, args):
        checkpoint = load_checkpoint(path)
        self.preprocessing, self.classes = checkpoint["preprocessing"], checkpoint["classes"]
        if "frame_size" not in self.preprocessing:
            raise CheckpointError(f"{path}: of an early version, without the frames' size; retrain")
        model = build_model(**checkpoint["network"])
        model.load_state_dict(checkpoint["model"])
        transform = partial(prepare, preprocessing=self.preprocessing)
        self.encode = build_encoder(model, transform, args.device, args.amp)
        self.metadata = {  # what an index records of how it was encoded
            "bits": checkpoint["network"]["bits"],
            "checkpoint_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
            "preprocessing": self.preprocessing,
        }

    def __call__(self, clips):
        """Approximate hash codes (B, K) of a list of B clips (T, H, W, 3) uint8."""
        return self.encode(torch.from_numpy(np.stack(clips)))


# ==== index ====


def encode_videos(todo, root, encoder, journal, args):
    """Encode the records of `todo` and append them to the open journal, a batch at a time.

    Returns (encoded records, {path: reason} of the videos that cannot be read).
    """
    encoded, failures, batch = [], {}, []
    records = {str(root / record["path"]): record for record in todo}
    classes = set(encoder.classes)

    def flush():
        codes = np.packbits(binarize(encoder([clip for _, clip in batch])).cpu().numpy(), axis=1)
        for (record, _), code in zip(batch, codes, strict=True):
            kind = os.path.basename(os.path.dirname(record["path"]))
            record |= {"class": kind if kind in classes else None, "code": code.tobytes().hex()}
        append(journal, [record for record, _ in batch])
        encoded.extend(record for record, _ in batch)
        batch.clear()

    read = partial(read_clip, preprocessing=encoder.preprocessing)
    clips = run_jobs(read, records, args.workers, args.timeout)
    for path, clip, failure in progress(clips, "indexing", len(records), "video",
                                        is_shown=bool(records)):  # fmt: skip
        if failure is not None:
            failures[records[path]["path"]] = failure
            continue
        batch.append((records[path], clip))
        if len(batch) == args.batch_size:
            flush()
    if batch:
        flush()
    return encoded, failures


def index_videos(args):
    """Make or update an index. Returns the exit status."""
    encoder = Encoder(args.checkpoint, args)
    plans = None
    if distributed.is_main():  # alone, since other processes may already add to their journals
        known = known_videos(args.output, encoder.metadata)
        plans = plan(args.videos, find_videos(args.videos), known)
        args.output.mkdir(parents=True, exist_ok=True)
    kept, todo = distributed.gather(plans)[0]
    path = journal_path(args.output, encoder.metadata, distributed.rank())
    with open(path, "a", encoding="ascii") as journal:
        own = todo[distributed.rank() :: distributed.world_size()]
        parts = distributed.gather(encode_videos(own, args.videos, encoder, journal, args))
    if not distributed.is_main():
        return 0
    encoded = [record for records, _ in parts for record in records]
    failures = {path: reason for _, part in parts for path, reason in part.items()}
    write_failures(args.output / "failures.csv", failures)
    if not kept + encoded:
        raise IndexFileError(f"no video could be read; see {args.output / 'failures.csv'}")
    metadata = {**encoder.metadata, "checkpoint": os.path.abspath(args.checkpoint)}
    write_index(args.output, {**metadata, "videos": os.path.abspath(args.videos)}, kept + encoded)
    dropped = len(known.keys() - {record["path"] for record in kept + todo})
    print(f"{len(kept + encoded)} videos in {args.output}: {len(encoded)} encoded, {len(kept)} "
          f"already there, {dropped} no longer there, {len(failures)} failed")  # fmt: skip
    if failures:
        print(f"search.py: the reasons are in {args.output / 'failures.csv'}", file=sys.stderr)
    return int(bool(failures))


# ==== query ====


def is_same_file(path, other):
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False


def search(index, path, values, args):
    """Results of one query: list of dicts with rank, distance, class, path."""
    wanted = max(args.top, args.rerank) + args.exclude_query
    rows, distances = (f[0] for f in index.search(binarize(values)[None].numpy(), wanted))
    found = {}  # row -> what is printed
    for row, bits in zip(rows.tolist(), distances.tolist(), strict=True):
        video = index.video(row)
        place = os.path.join(index.metadata["videos"], video["path"])
        nearby = os.path.relpath(place)
        place = place if nearby.startswith("..") else nearby
        if not (args.exclude_query and is_same_file(path, place)):
            found[row] = {"distance": bits, "class": video["class"], "path": place}
    rows = np.array(list(found), int)
    if args.rerank:
        nearest = index.rerank(values.numpy(), rows[: args.rerank])
        rows = np.concatenate([nearest, rows[args.rerank :]])
    return [{"rank": n, **found[row]} for n, row in enumerate(rows.tolist()[: args.top], 1)]


def print_results(searches):
    kinds = [result["class"] or "-" for found in searches for result in found["results"]]
    width = max(map(len, ["class", *kinds]))
    for found in searches:
        print(f"\n{printable(found['path'])}\nrank  bits  {'class':<{width}}  path")
        for r in found["results"]:
            kind = printable(r["class"] or "-")
            print(f"{r['rank']:>4}  {r['distance']:>4}  {kind:<{width}}  {printable(r['path'])}")


def read_preview(path, start=0.0, end=float("inf")):
    """(data URI, None) of a video, or (None, reason). Runs in a worker process."""
    cv2.setNumThreads(1)
    try:
        size = (PREVIEW_HEIGHT, None)  # of the shape that a player shows
        return preview(read_video(path, PREVIEW_FRAMES, size, start, end)), None
    except (VideoError, cv2.error) as error:
        return None, str(error)


def write_html(path, searches, args):
    """The page with previews read from the videos; one that has gone has none."""
    read = partial(read_preview, start=args.start, end=args.end)
    queries = [found["path"] for found in searches]
    others = {result["path"] for found in searches for result in found["results"]}
    uris = {job: uri for job, uri, _ in run_jobs(read, queries, args.workers, args.timeout)}
    previews = run_jobs(read_preview, sorted(others), args.workers, args.timeout)
    previews = progress(previews, "previews", len(others), "video", leave=False)
    found_uris = {job: uri for job, uri, _ in previews}
    shown = []
    for found in searches:
        results = [{**r, "preview": found_uris[r["path"]]} for r in found["results"]]
        shown.append({**found, "preview": uris[found["path"]], "results": results})
    write_page(path, "Videos of the same action", shown)


def query_videos(args):
    """Search with each query video. Returns the exit status."""
    if args.start >= args.end:
        raise UserError(f"--start {args.start:g} is not before --end {args.end:g}")
    index = Index(args.index)
    encoder = Encoder(args.checkpoint or index.metadata["checkpoint"], args)
    if any(index.metadata[key] != value for key, value in encoder.metadata.items()):
        raise IndexFileError(
            f"{args.index}: made with another checkpoint (SHA-256 "
            f"{index.metadata['checkpoint_sha256'][:12]}…); give it as --checkpoint"
        )
    read = partial(read_clip, preprocessing=encoder.preprocessing, start=args.start, end=args.end)
    clips = run_jobs(read, dict.fromkeys(args.video), args.workers, args.timeout)
    codes, failed = {}, False
    while chunk := list(islice(clips, args.batch_size)):
        for path, _, failure in chunk:
            if failure is not None:
                print(f"search.py: {printable(path)}: {failure}", file=sys.stderr)
                failed = True
        read_ones = [(path, clip) for path, clip, failure in chunk if failure is None]
        if read_ones:
            values = encoder([clip for _, clip in read_ones]).cpu()
            codes |= {path: row for (path, _), row in zip(read_ones, values, strict=True)}
    searches = [
        {"path": path, "class": None, "results": search(index, path, codes[path], args)}
        for path in dict.fromkeys(args.video)
        if path in codes
    ]
    if args.html and searches:
        write_html(args.html, searches, args)
    if args.json:
        print(json.dumps(searches, indent=2))
    else:
        print_results(searches)
    return int(failed)


def main(args):
    args.device = distributed.start(args.device)
    if args.command == "query":
        return query_videos(args)
    lock = args.output.absolute().with_name(f".{args.output.absolute().name}.lock")
    with file_lock(lock) if distributed.is_main() else contextlib.nullcontext():
        return index_videos(args)


if __name__ == "__main__":
    with safe_streams("search.py"):
        args = build_parser().parse_args()
        with distributed.together(), exit_on_user_error("search.py", "--batch-size"):
            status = main(args)
        sys.exit(status)
