"""Recall of moments in long videos that are joined from labelled clips; time and memory.

    python -m benchmarks.moments --checkpoint runs/mine/best.pt --videos my_videos \\
        --splits data/mine/splits --group-pattern "_(\\\\d+)_" --minutes 1 10 --output moments

Only videos of test.txt are used. The clips of one recording are the queries;
those of the others are joined into one video of --minutes, in random order,
with the last picture held for 2 to 5 s after each. Each recording has its turn.
A query is answered if one of the first 1 or 10 results overlaps a clip of its
class with a temporal IoU (intersection over union) of at least 0.5. "whole
clips": the same queries in an index of the clips themselves, where the class
must be right; "of these": the moments that are found for queries that whole
clips answer. Everything runs as a user runs it, with search.py.

Time is of the CPU: "decoding" decodes the long video once and keeps nothing,
"encoding" encodes its windows; "indexing" is search.py index, less its start.
"""

import json
import re
import resource
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import av
import numpy as np
import torch

from datasets.splits import read_split
from datasets.video import decode, iterate_video, read_windows
from datasets.video_files import find_videos
from retrieval.index import Index
from search import load_encoder
from utils.argtypes import number
from utils.config import Parser
from utils.terminal import progress

SIZE = (240, 320)
RATE = 30
LEAST_IOU = 0.5


def build_parser():
    parser = Parser(__doc__)
    add = parser.add
    add("--checkpoint", required=True, metavar="RUN", help="trained without the test videos")
    add("--videos", required=True, type=Path, metavar="DIR", help="<class>/<video>")
    add("--splits", required=True, type=Path, metavar="DIR", help="folder of test.txt")
    add("--group-pattern", required=True, metavar="REGEX", help="its first group is the recording")
    add("--minutes", type=number(float, above=0), nargs="+", default=[1, 10], help="lengths")
    add("--window", metavar="SECONDS", help="as of search.py index")
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


def join_clips(clips, seconds, path, rng):
    """Write a video of `clips` in random order. Returns list of (start, end, class)."""
    moments, count = [], 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.height, stream.width = SIZE
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        while count < seconds * RATE:
            for clip in rng.permutation(clips):
                start = count
                for picture in iterate_video(clip, SIZE):
                    write_picture(container, stream, picture, count)
                    count += 1
                moments.append((start / RATE, count / RATE, Path(clip).parent.name))
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


def run_search(*words):
    """What search.py prints, and its CPU seconds and largest memory in MB, with its workers."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "search.py", *map(str, words)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
    return output, seconds, usage.ru_maxrss / 1000


def index_folder(videos, output, args, *more):
    """Index a folder in one process and one worker: (CPU seconds, MB)."""
    paths = "--checkpoint", args.checkpoint, "--videos", videos, "--output", output
    window = ("--window", args.window) if args.window and "--window" not in more else ()
    speed = "--workers", 1, "--threads", 1, "--device", "cpu"
    return run_search("index", *paths, *window, *speed, *more)[1:]


def query(index, queries):
    """The first ten results of each query: {path: list of dict}."""
    output = run_search(
        "query", "--index", index, "--json", "--video", *queries, "--workers", 1, "--threads", 1
    )[0]
    return {found["path"]: found["results"] for found in json.loads(output)}


def is_right(result, moments, label):
    """Whether a result is at a clip of the class: temporal IoU of at least LEAST_IOU."""
    for start, end, name in moments:
        shared = min(end, result["end"]) - max(start, result["start"])
        union = max(end, result["end"]) - min(start, result["start"])
        if name == label and shared / union >= LEAST_IOU:
            return True
    return False


def first_right(results, is_good):
    """The rank of the first good result, or infinity."""
    return next((result["rank"] for result in results if is_good(result)), float("inf"))


def rank_queries(queries, clips, minutes, folder, args, rng):
    """For each query the ranks of the first right result: whole clips, moments, one code."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "video").mkdir(exist_ok=True)
    moments = join_clips(clips, 60 * minutes, folder / "video" / "long.mp4", rng)
    for clip in clips:
        target = folder / "clips" / clip.parent.name / clip.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(clip.absolute())
    index_folder(folder / "clips", folder / "clips_index", args, "--window", "whole")
    cost = index_folder(folder / "video", folder / "index", args)
    index_folder(folder / "video", folder / "whole_index", args, "--window", "whole")
    found = [query(folder / name, queries) for name in ("clips_index", "index", "whole_index")]
    ranks = []
    for path in map(str, queries):
        label = Path(path).parent.name
        clip_rank = first_right(found[0][path], lambda result: result["class"] == label)  # noqa: B023
        at_clip = [
            first_right(one[path], lambda result: is_right(result, moments, label))  # noqa: B023
            for one in found[1:]
        ]
        ranks.append((clip_rank, *at_clip))
    return ranks, cost


# ==== time ====


def time_parts(folder, args):
    """CPU seconds of decoding the long video of a folder alone, and of encoding its windows."""
    started, path = time.process_time(), folder / "video" / "long.mp4"
    for _ in decode(path):
        pass
    decoding = time.process_time() - started
    torch.set_num_threads(1)
    encoder = load_encoder(args.checkpoint, torch.device("cpu"), amp=False)
    metadata, sizes = Index(folder / "index").metadata, encoder.preprocessing
    limits = sizes["clip_frames"], sizes["frame_size"], metadata["window"], metadata["stride"]
    encoding, batch, count = 0.0, [], 0
    for *_, clip in read_windows(path, *limits):
        batch, count = [*batch, clip], count + 1
        if len(batch) == 16:
            started = time.process_time()
            encoder.encode(torch.from_numpy(np.stack(batch)))
            encoding, batch = encoding + time.process_time() - started, []
    return decoding, encoding, count


def time_start(folder, args):
    """CPU seconds of search.py index for a video of a second."""
    (folder / "second").mkdir(exist_ok=True)
    clip = next((folder / "clips").glob("*/*"))
    with av.open(str(folder / "second" / "second.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for index, picture in enumerate(iterate_video(clip, SIZE)):
            if index < RATE:
                write_picture(container, stream, picture, index)
        container.mux(stream.encode())
    return index_folder(folder / "second", folder / "second_index", args)[0]


def main():
    args = build_parser().parse_args()
    groups = group_clips(args)
    turns = sorted(groups)[: args.recordings]
    print(f"{sum(map(len, groups.values()))} clips of {len(groups)} recordings")
    for minutes in args.minutes:
        ranks = []
        for group in progress(turns, f"{minutes:g} minutes", unit="recording"):
            clips = [clip for name in groups if name != group for clip in groups[name]]
            folder = args.output / f"{minutes:g}min_{group}"
            rng = np.random.default_rng(0)
            found, cost = rank_queries(groups[group], clips, minutes, folder, args, rng)
            ranks += found
        ranks = np.array(ranks)
        record = {"minutes": minutes, "queries": len(ranks)}
        for top in (1, 10):
            whole, moments, one_code = (ranks <= top).mean(axis=0).round(3)
            answered = ranks[:, 0] <= top
            record[f"recall@{top}"] = {
                "whole clips": whole,
                "moments": moments,
                "one code a video": one_code,
                "of these": round(float((ranks[answered, 1] <= top).mean()), 3),
            }
        decoding, encoding, windows = time_parts(folder, args)
        indexing = cost[0] - time_start(folder, args)
        record |= {"windows": windows, "decoding": decoding, "encoding": encoding}
        record |= {"indexing": indexing, "ratio": indexing / (decoding + encoding), "MB": cost[1]}
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
