"""Recall of moments in long videos that are joined from labelled clips; time and memory.

    python -m benchmarks.moments --checkpoint runs/mine/best.pt --videos my_videos \\
        --splits data/mine/splits --group-pattern "_(\\\\d+)_" --minutes 1 10 --output moments

Only videos of test.txt are used. The clips of one recording are the queries;
those of the others are joined into one video of --minutes, in random order,
with the last picture held for 2 to 5 s after each. Each recording has its turn.
A query is answered if one of the first 1 or 10 results overlaps a clip of its
class with a temporal IoU (intersection over union) of at least 0.5. "whole
clips": the same queries in an index of the clips themselves, where the class
must be right; "exact cuts": the same, with each clip as often as it is in the long
video, as if the windows were exactly its clips. "of whole clips", "of exact cuts":
the moments that are found for queries that these answer. "with embeddings": after
the nearest are sorted by stored embeddings. Recalls are printed after each turn,
for all queries so far.

Time is of the CPU, in one process and thread: "decoding" decodes the last video
and keeps nothing, "encoding" encodes as many clips as it has windows; "indexing"
does both, with the conversion of frames; "ratio" is indexing to the sum of the
two parts. Memory is the largest resident set.
"""

import itertools
import json
import math
import re
import resource
import shutil
import time
from collections import defaultdict
from functools import cache, partial
from pathlib import Path

import av
import numpy as np
import torch

from datasets.splits import read_split
from datasets.video import decode, iterate_video, read_windows
from datasets.video_files import find_videos
from retrieval.answers import Options, answer_query
from retrieval.encode import encode_windows
from retrieval.index import Index
from retrieval.index_update import Appender, open_for_update
from search import choose_windows, load_encoder, make_rows
from utils.argtypes import number
from utils.config import Parser

RATE = 30
LEAST_IOU = 0.5
WHOLE = {"window": None, "stride": None}  # one code per video
WAYS = "whole clips", "exact cuts", "moments", "with embeddings", "one code a video"


def build_parser():
    parser = Parser(__doc__)
    add = parser.add
    add("--checkpoint", required=True, metavar="RUN", help="trained without the test videos")
    add("--videos", required=True, type=Path, metavar="DIR", help="<class>/<video>")
    add("--splits", required=True, type=Path, metavar="DIR", help="folder of test.txt")
    add("--group-pattern", required=True, metavar="REGEX", help="its first group is the recording")
    add("--minutes", type=number(float, above=0), nargs="+", default=[1, 10], help="lengths")
    spans = {"type": number(float, above=0), "metavar": "SECONDS"}
    add("--window", **spans, help="as of search.py index")
    add("--stride", **spans, help="as of search.py index")
    size = {"type": number(int, least=16), "nargs": 2, "metavar": ("HEIGHT", "WIDTH")}
    add("--size", **size, default=[240, 320], help="of the long videos, in pixels")
    add("--recordings", type=number(int, least=1), help="only the first N have their turn")
    add("--output", required=True, type=Path, metavar="DIR", help="for the videos and indexes")
    return parser


# ==== videos ====


def group_clips(args):
    """The videos of test.txt by recording: {group: list of Path}."""
    names, _ = read_split(args.splits / "test.txt", 2**20)
    stems = {
        str(Path(path).with_suffix("")): args.videos / path for path in find_videos(args.videos)
    }
    groups = defaultdict(list)
    for name in sorted(names):
        groups[re.search(args.group_pattern, Path(name).name)[1]].append(stems[name])
    return groups


def join_clips(clips, seconds, path, size, rng):
    """Write a video of `clips` in random order. Returns list of (start, end, clip)."""
    moments, count = [], 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.height, stream.width = size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        while count < seconds * RATE:
            for clip in rng.permutation(clips):
                start = count
                for picture in iterate_video(clip, size):
                    write_picture(container, stream, picture, count)
                    count += 1
                moments.append((start / RATE, count / RATE, Path(clip)))
                for _ in range(int(RATE * rng.uniform(2, 5))):
                    write_picture(container, stream, picture, count)
                    count += 1
                if count >= seconds * RATE:
                    break
        container.mux(stream.encode())
    return moments


def write_picture(container, stream, picture, index):
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    frame.pts = index
    container.mux(stream.encode(frame))


# ==== search ====


def encode_video(path, encoder, windows):
    """List of (start, end, code (K,)) of the windows of a video file."""
    sizes = encoder.preprocessing["clip_frames"], encoder.preprocessing["frame_size"]
    window, stride = (windows[key] or math.inf for key in ("window", "stride"))
    clips = ((path, found, None) for found in read_windows(path, *sizes, window, stride))
    clips = itertools.chain(clips, [(path, None, None)])
    ((_, moments, _),) = encode_windows(clips, encoder.encode, batch_size=16)
    return moments


def index_videos(folder, videos, encoder, windows):
    """An Index of video files in a new folder; paths are <number>/<class>/<file>."""
    shutil.rmtree(folder, ignore_errors=True)
    metadata = {**encoder.metadata, **windows, "neighbours": None, "embeddings": True}
    metadata |= {"checkpoint": "", "videos": "/"}
    open_for_update(folder, metadata)
    appender = Appender(folder, metadata, is_main=True)
    encode = cache(partial(encode_video, encoder=encoder, windows=windows))
    for count, path in enumerate(videos):
        name = f"{count}/{path.parent.name}/{path.name}"
        record = {"path": name, "size": None, "mtime_ns": None}
        moments = encode(path)
        appender.add(make_rows(record, moments, encoder.classes, True))
    appender.flush()
    return Index(folder)


def has_class(result, label):
    return result["class"] == label


def is_right(result, moments, label):
    """Whether a result is at a clip of the class: temporal IoU of at least LEAST_IOU."""
    for start, end, clip in moments:
        shared = min(end, result["end"]) - max(start, result["start"])
        union = max(end, result["end"]) - min(start, result["start"])
        if clip.parent.name == label and shared / union >= LEAST_IOU:
            return True
    return False


def first_right(index, path, parts, is_good, rerank=0):
    """The rank of the first good result for a query, or infinity."""
    results = answer_query([index], str(path), parts, Options(top=10, rerank=rerank))["results"]
    return next((result["rank"] for result in results if is_good(result)), math.inf)


def rank_queries(queries, clips, minutes, encoder, folder, args):
    """For each query the ranks of the first right result, one for each of WAYS."""
    (folder / "video").mkdir(parents=True, exist_ok=True)
    long, windows = folder / "video" / "long.mp4", choose_windows(None, encoder, args)
    moments = join_clips(clips, 60 * minutes, long, args.size, np.random.default_rng(0))
    of_clips = index_videos(folder / "clips_index", clips, encoder, WHOLE)
    cuts = [clip for _, _, clip in moments]
    of_cuts = index_videos(folder / "cuts_index", cuts, encoder, WHOLE)
    of_moments = index_videos(folder / "index", [long], encoder, windows)
    of_whole = index_videos(folder / "whole_index", [long], encoder, WHOLE)
    ranks = []
    for path in queries:
        label, parts = path.parent.name, encode_video(path, encoder, WHOLE)
        right_clip = partial(has_class, label=label)
        right_moment = partial(is_right, moments=moments, label=label)
        ranks.append(
            (
                first_right(of_clips, path, parts, right_clip),
                first_right(of_cuts, path, parts, right_clip),
                first_right(of_moments, path, parts, right_moment),
                first_right(of_moments, path, parts, right_moment, rerank=None),
                first_right(of_whole, path, parts, right_moment),
            )
        )
    return ranks


def summarise(ranks):
    """The recalls of the first 1 and 10 results: dict."""
    recalls = {}
    for top in (1, 10):
        shares = (ranks <= top).mean(axis=0)
        recall = dict(zip(WAYS, shares, strict=True))
        for column, way in enumerate(WAYS[:2]):
            answered = ranks[ranks[:, column] <= top]
            recall[f"of {way}"] = (answered[:, WAYS.index("moments")] <= top).mean()
            embedded = answered[:, WAYS.index("with embeddings")]
            recall[f"of {way}, with embeddings"] = (embedded <= top).mean()
        recalls[f"recall@{top}"] = {key: round(float(value), 3) for key, value in recall.items()}
    return recalls


# ==== time ====


def time_parts(path, encoder, args):
    """CPU seconds of decoding a video alone, of encoding its windows, and of both at once; MB."""
    seconds, windows = {}, choose_windows(None, encoder, args)
    started = time.process_time()
    for _ in decode(path):
        pass
    seconds["decoding"] = time.process_time() - started
    sizes = encoder.preprocessing["clip_frames"], *encoder.preprocessing["frame_size"], 3
    clips = torch.zeros(16, *sizes, dtype=torch.uint8)
    encoder.encode(clips)
    started = time.process_time()
    count = len(encode_video(path, encoder, windows))
    seconds["indexing"] = time.process_time() - started
    started = time.process_time()
    for _ in range(0, count, 16):
        encoder.encode(clips)
    seconds["encoding"] = time.process_time() - started
    parts = seconds["decoding"] + seconds["encoding"]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"windows": count, **seconds, "ratio": seconds["indexing"] / parts, "MB": memory}


def main():
    args = build_parser().parse_args()
    torch.set_num_threads(1)
    encoder = load_encoder(args.checkpoint, torch.device("cpu"), amp=False)
    groups = group_clips(args)
    turns = sorted(groups)[: args.recordings]
    print(f"{sum(map(len, groups.values()))} clips of {len(groups)} recordings", flush=True)
    for minutes in args.minutes:
        ranks = []
        for group in turns:
            clips = [clip for name in groups if name != group for clip in groups[name]]
            folder = args.output / f"{minutes:g}min_{group}"
            ranks += rank_queries(groups[group], clips, minutes, encoder, folder, args)
            record = {"minutes": minutes, "queries": len(ranks), **summarise(np.array(ranks))}
            print(json.dumps(record), flush=True)
        print(json.dumps(time_parts(folder / "video" / "long.mp4", encoder, args)), flush=True)


if __name__ == "__main__":
    main()
