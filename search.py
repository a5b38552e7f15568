"""Find moments of the same action by the Hamming distance of their codes.

    python search.py index --checkpoint runs/demo/best.pt \\
        --videos data/demo/videos --output data/demo/index
    python search.py query --index data/demo/index \\
        --video clip.mp4 --top 8 --html found.html
    python search.py serve --index data/demo/index

`index` encodes all videos below a folder; of a long video each window of some
seconds. The same command updates the index: it encodes only new and changed
videos, also after an interruption. `query` prints the rank, distance in bits,
class, time and path of the nearest moments.
"""

from utils.errors import die_on_ctrl_c

if __name__ == "__main__":  # imports take seconds
    die_on_ctrl_c()

from configs.search_flags import BITS, PRETRAINED, build_parser

if __name__ == "__main__":  # before PyTorch is imported, so that --help is instant
    ARGS = build_parser(__doc__).parse_args()

import contextlib
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from datasets.process_pool import run_jobs
from datasets.transforms import prepare
from datasets.video import VideoError, read_clips, read_video
from datasets.video_files import find_videos
from models import build_saved_model
from models.itq import MOST_ITEMS, fit_hash_layer
from models.label_free import build_label_free
from reports.moments import format_search, format_times
from reports.page import PREVIEW_HEIGHT, link_file, preview, write_page
from retrieval.answers import Options, answer_query
from retrieval.encode import build_encoder, encode_windows
from retrieval.index import Index, IndexFileError, is_unchanged, write_parquet
from retrieval.index_update import (
    Appender,
    check_index_folder,
    clean,
    compact,
    delete_videos,
    open_for_update,
    plan_update,
    recorded_metadata,
)
from utils import distributed
from utils.checkpoint import CheckpointError, find_checkpoint, load_checkpoint, save_checkpoint
from utils.device import set_threads
from utils.errors import UserError, exit_on_user_error, printable
from utils.files import check_writable, folder_lock, write_failures
from utils.terminal import progress, safe_streams

PREVIEW_FRAMES = 8
LABEL_FREE = "encoder.pt"  # in the index: a checkpoint that was made without labels
WINDOW = 5.0  # seconds, for checkpoints that do not know the duration of their training clips
STRIDE = 1 / 3  # of the window; see `retrieval.encode.smooth`


# ==== encoding video files ====


class Encoder(NamedTuple):
    """A checkpoint that is ready to encode."""

    encode: Callable  # uint8 clips (B, T, H, W, 3) -> approximate codes (B, K)
    preprocessing: dict[str, Any]
    classes: list[str]
    metadata: dict[str, Any]  # what must be equal for two encoders to give the same codes
    clip_seconds: float | None  # median duration of the training clips
    neighbours: list[int] | None  # validation clips by the distance of their nearest neighbour


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
    known = (checkpoint.get(key) for key in ("clip_seconds", "neighbours"))
    return Encoder(encode, preprocessing, checkpoint["classes"], metadata, *known)


def encode_videos(paths, encoder, args, windows, start=0.0, end=math.inf):
    """Decode video files in worker processes and encode their windows, a batch at a time.

    windows: window and stride in seconds, as in the metadata of an index. start, end: the seconds
    of each video to use. Yields (path, list of (start, end, approximate code (K,)), reason of
    failure or None) for each video.
    """
    limits = {key: windows[key] or math.inf for key in ("window", "stride")}
    limits |= {"start": start, "end": end}
    read = partial(read_clips, preprocessing=encoder.preprocessing, **limits)
    clips = run_jobs(read, paths, args.workers, args.timeout)
    videos = encode_windows(clips, encoder.encode, args.batch_size)
    return progress(videos, "encoding", len(paths), "video", is_shown=len(paths) > 1)


# ==== an encoder without labels ====


def choose_checkpoint(earlier, device, args):
    """The checkpoint of an index: --checkpoint, that of an earlier run, or one without labels.

    earlier: metadata of the index that is updated, or None.
    """
    path = args.output / LABEL_FREE
    is_new = distributed.gather(earlier is None and not path.exists())[0]
    if args.checkpoint:
        if args.pretrained or args.bits:
            raise UserError("--pretrained and --bits are for indexes without --checkpoint")
        return find_checkpoint(args.checkpoint)
    if is_new:
        fit_encoder(path, device, args)
        return path
    path = path if path.exists() else Path(earlier["checkpoint"])
    bits = load_checkpoint(path)["network"]["bits"]
    if args.pretrained or args.bits not in (None, bits):
        raise IndexFileError(
            f"{args.output}: already has an encoder, of {bits} bits; leave out --pretrained and "
            "--bits to update the index, or use another --output"
        )
    return path


def fit_encoder(path, device, args):
    """Write a checkpoint: pretrained weights, and a hash layer fitted to the videos without labels.

    See `models.itq`. path: of the checkpoint.
    """
    bits = args.bits or BITS
    model, content = build_label_free(args.pretrained or PRETRAINED, bits)
    transform = partial(prepare, preprocessing=content["preprocessing"])
    encode = build_encoder(model.backbone, transform, device, args.amp)
    encoder = Encoder(encode, content["preprocessing"], [], {}, None, None)
    features = sample_features(encoder, args)
    if distributed.is_main():
        fit_hash_layer(model.hash, torch.from_numpy(features))
        folders = {"frames": str(args.videos), "splits": str(args.videos), "seed": 0}
        content |= {"clip_seconds": WINDOW, "classes": [], "settings": folders}
        save_checkpoint(path, {**content, "model": model.state_dict()})
        print(f"{printable(path)}: {bits} bits, fitted without labels to {len(features)} windows")
    distributed.barrier()


def sample_features(encoder, args):
    """Features (N, D) of about MOST_ITEMS windows at most, spread over the videos."""
    paths = find_videos(args.videos)
    paths = paths[:: math.ceil(len(paths) / MOST_ITEMS)]
    most = MOST_ITEMS // len(paths)  # windows per video
    own = [
        str(args.videos / path) for path in paths[distributed.rank() :: distributed.world_size()]
    ]
    window = args.window or WINDOW
    windows = {"window": window, "stride": args.stride or STRIDE * window}
    features, reasons = [], []
    for _, moments, failure in encode_videos(own, encoder, args, windows):
        step = max(1, math.ceil(len(moments) / most))
        features += [feature for _, _, feature in moments[::step]]
        if failure is not None:
            reasons.append(failure)
    results = distributed.gather((features, reasons))
    features = [feature for found, _ in results for feature in found]
    if not features:
        reasons = [reason for _, found in results for reason in found]
        raise IndexFileError(
            f"{args.videos}: no video could be read, such as one that {reasons[0]}"
        )
    return np.stack(features)


# ==== index ====


def index_videos(device, args):
    """Make or update an index. Returns the exit status: 1 if a video could not be read."""
    earlier = distributed.gather(recorded_metadata(args.output))[0]
    checkpoint = choose_checkpoint(earlier, device, args)
    encoder = load_encoder(checkpoint, device, args.amp)
    plan = start_update(earlier, checkpoint, encoder, args) if distributed.is_main() else None
    metadata, num_unchanged, todo, num_gone = distributed.gather(plan)[0]
    records = todo[distributed.rank() :: distributed.world_size()]
    results = distributed.gather(encode_records(records, encoder, metadata, args))
    if not distributed.is_main():
        return 0

    failures = {path: reason for failed in results for path, reason in failed.items()}
    failures_path = args.output / "failures.csv"
    write_failures(failures_path, failures)
    num_moments = compact(args.output)
    clean(args.output, is_alone=True)
    if not num_moments:
        raise IndexFileError(f"no video could be read; see {failures_path}")
    num_encoded = len(todo) - len(failures)
    print(
        f"{num_unchanged + num_encoded} videos in {printable(args.output)}: {num_encoded} encoded, "
        f"{num_unchanged} already there, {num_gone} removed, {len(failures)} failed; "
        f"{num_moments} moments"
    )
    if failures:
        print(printable(f"search.py: the reasons are in {failures_path}"), file=sys.stderr)
    return int(bool(failures))


def start_update(earlier, checkpoint, encoder, args):
    """Open or make the index, and delete the rows of videos that changed or are gone.

    earlier: its metadata, or None if it is new. Returns (its metadata now, number of unchanged
    videos, records to encode, number of videos that are gone).
    """
    paths = find_videos(args.videos)
    if args.store_embeddings is None:
        args.store_embeddings = bool(earlier and earlier["embeddings"])
    metadata = {
        **encoder.metadata,
        **choose_windows(earlier, encoder, args),
        "embeddings": args.store_embeddings,
        "neighbours": encoder.neighbours,
        "checkpoint": os.path.abspath(checkpoint),
        "videos": os.path.abspath(args.videos),
    }
    table = open_for_update(args.output, metadata)
    num_unchanged, todo, gone, changed = plan_update(args.videos, paths, table)
    delete_videos(args.output, gone + changed)
    return metadata, num_unchanged, todo, len(gone)


def choose_windows(earlier, encoder, args):
    """{window, stride} in seconds: of the flags, else of the index, else of the checkpoint."""
    window, stride = args.window, args.stride
    if window is None and earlier:
        window = earlier["window"] or math.inf
        stride = stride or earlier["stride"]
    if window is None:
        window = encoder.clip_seconds
    if window is None:
        window = WINDOW
        print(
            f"note: the checkpoint does not say how long its training clips are; windows of "
            f"{WINDOW:g} s are used (--window)",
            file=sys.stderr,
        )
    if math.isinf(window):
        return {"window": None, "stride": None}
    return {"window": window, "stride": stride or STRIDE * window}


def encode_records(todo, encoder, metadata, args):
    """Encode the videos of the records `todo` and append their moments to the index.

    Returns {path below --videos: reason of failure}.
    """
    records = {str(args.videos / record["path"]): record for record in todo}
    failures, appender = {}, Appender(args.output, metadata, distributed.is_main())
    for path, moments, failure in encode_videos(records, encoder, args, metadata):
        if failure is None:
            appender.add(make_rows(records[path], moments, encoder.classes, metadata["embeddings"]))
        else:
            failures[records[path]["path"]] = failure
    appender.flush()
    return failures


def make_rows(record, moments, classes, with_embeddings):
    """The rows of a video: its record with the class, None if it is unknown, times and codes."""
    folder = os.path.basename(os.path.dirname(record["path"]))
    record = {**record, "class": folder if folder in classes else None}
    rows = []
    for start, end, code in moments:
        row = {**record, "start": start, "end": end, "code": np.packbits(code >= 0).tobytes()}
        rows.append({**row, "embedding": code.astype(np.float16)} if with_embeddings else row)
    return rows


# ==== query ====


def query_videos(device, args):
    """Search with each query video. Returns the exit status: 1 if a query could not be read."""
    end = math.inf if args.end is None else args.end
    if args.start >= end:
        raise UserError(f"--start {args.start:g} is not before --end {end:g}")
    if args.html:
        check_file(args.html, "--html", "found.html")
    indexes = [Index(location, args.videos, args.bits) for location in args.index]
    encoder = load_index_encoder(indexes, device, args)
    options = Options(
        top=args.top,
        per_video=args.per_video,
        exclude_query=args.exclude_query,
        class_name=getattr(args, "class"),
        path=args.path,
        rerank=args.rerank,
        mix_ties=not args.json,
    )
    paths = dict.fromkeys(args.video)
    windows = indexes[0].metadata
    searches, num_failed = dict.fromkeys(paths), 0
    for path, parts, reason in encode_videos(paths, encoder, args, windows, args.start, end):
        if reason is None:
            parts = [(*times, code[: indexes[0].bits]) for *times, code in parts]
            searches[path] = answer_query(indexes, path, parts, options)
        else:
            num_failed += 1
            print(printable(f"search.py: {path}: {reason}"), file=sys.stderr)
    searches = [shorten_paths(found) for found in searches.values() if found]
    if args.html and searches:
        write_search_page(args.html, searches, indexes, args)
    if args.json:
        print(json.dumps(searches, indent=2))
    else:
        print("".join(map(format_search, searches)), end="")
    return int(num_failed > 0)


def load_index_encoder(indexes, device, args):
    """The encoder that made all `indexes`. Raises UserError if --checkpoint is another one."""
    index = indexes[0]
    recorded = Path(index.location) / LABEL_FREE
    recorded = recorded if recorded.is_file() else Path(index.metadata["checkpoint"])
    if not args.checkpoint and not recorded.is_file():
        raise IndexFileError(
            f"{index.location}: its checkpoint {recorded} is missing; if it was moved, set "
            "--checkpoint"
        )
    path = find_checkpoint(args.checkpoint or recorded)
    encoder = load_encoder(path, device, args.amp)
    for index in indexes:
        if any(index.metadata[key] != value for key, value in encoder.metadata.items()):
            raise IndexFileError(
                f"{index.location}: made with another checkpoint than {path}; its SHA-256 begins "
                f"with {index.metadata['checkpoint_sha256'][:12]}"
            )
    return encoder


def shorten_paths(found):
    """An answer whose paths are relative to the current folder where they are below it."""
    results = [
        {key: value for key, value in result.items() if key != "row"}  # no other version has it
        | {"path": shorten(result["path"])}
        for result in found["results"]
    ]
    return {**found, "results": results}


def shorten(path):
    """A path relative to the current folder, if it is below it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


# ==== page ====


def check_file(path, flag, example):
    """Raise UserError if the file `path` of a flag cannot be written."""
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder; name a file, such as {path / example}")
    check_writable(path.parent, flag)


def write_search_page(page, searches, indexes, args):
    """Write the results as a page with animated previews.

    A video that is gone or has another size than when it was indexed has none.
    """
    moments = [(found["path"], found["start"], found["end"]) for found in searches]
    results = [result for found in searches for result in found["results"]]
    moments += [
        (result["path"], result["start"], result["end"])
        for result in results
        if is_unchanged(result["path"], result["size"])
    ]
    jobs = list(dict.fromkeys(moments))
    previews = run_jobs(read_preview, jobs, args.workers, args.timeout)
    previews = progress(previews, "previews", len(jobs), "moment", leave=False)
    previews = {job: uri for job, uri, _ in previews}

    def with_preview(moment):
        path, start, end = moment["path"], moment["start"], moment["end"]
        shown = {"preview": previews.get((path, start, end)), "time": format_times(start, end)}
        return {**moment, **shown, **link_file(path, page.parent)}

    shown = [
        {**with_preview(found), "results": [with_preview(result) for result in found["results"]]}
        for found in searches
    ]
    subtitle = f"The nearest of {sum(map(len, indexes))} moments, by Hamming distance"
    names = ", ".join(os.path.basename(index.location.rstrip("/")) for index in indexes)
    footer = f"Made by search.py on {date.today()} from the index {names}"
    write_page(page, "Moments of the same action", shown, subtitle, footer)


def read_preview(moment):
    """(data URI, None) of a moment (path, start, end), or (None, reason). In a worker process."""
    path, start, end = moment
    try:
        size = (PREVIEW_HEIGHT, None)  # the aspect ratio that a player shows
        return preview(read_video(path, PREVIEW_FRAMES, size, start, end)), None
    except (VideoError, cv2.error) as error:
        return None, str(error)


# ==== export ====


def export_index(args):
    """Write an index as a Parquet file. Returns the exit status."""
    check_file(args.parquet, "--parquet", "moments.parquet")
    index = Index(args.index)
    write_parquet(index, args.parquet)
    print(f"{len(index)} moments in {printable(args.parquet)}")
    return 0


# ==== serve ====


def serve_index(device, args):
    """Serve the page until Ctrl-C. Returns the exit status 0."""
    try:
        from serving.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("flask", "werkzeug"):
            raise
        raise UserError("serve needs Flask: pip install -r requirements-serve.txt") from None
    if args.host not in ("127.0.0.1", "localhost", "::1"):
        print(f"warning: everyone who reaches {args.host} can see the videos", file=sys.stderr)
    open_index = partial(Index, args.index, args.videos)
    index = open_index()
    encoder = load_index_encoder([index], device, args)
    run(open_index, partial(encode_query, index.metadata, encoder, args), args)
    return 0


def encode_query(metadata, encoder, args, path, start, end):
    """The windows of a query video. Raises UserError with the reason if it cannot be read."""
    [(_, parts, reason)] = encode_videos([path], encoder, args, metadata, start, end)
    if reason is not None:
        raise UserError(reason)
    return parts


# ==== main ====


def main(args):
    if args.command == "export":
        return export_index(args)
    device = distributed.start(args.device)
    set_threads(args.threads)
    if args.command == "query":
        return query_videos(device, args)
    if args.command == "serve":
        return serve_index(device, args)
    check_writable(args.output, "--output")
    check_index_folder(args.output)  # before the lock, which makes the folder
    lock = folder_lock(args.output)
    with lock if distributed.is_main() else contextlib.nullcontext():
        return index_videos(device, args)


if __name__ == "__main__":
    with safe_streams("search.py"):
        with distributed.together(), exit_on_user_error("search.py", "--batch-size"):
            STATUS = main(ARGS)
        sys.exit(STATUS)
