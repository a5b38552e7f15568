"""Draw a data set as frame folders and lists, without videos between: only OpenCV is needed.

    python -m benchmarks.rehearsal --output data/rehearsal    # a tenth of UCF101's size

The clips are those of `datasets.synthetic`, resized and stored as extract_frames.py stores frames;
whole groups go into the test and the validation list, as make_splits.py does it.
"""

import argparse
import json
import os
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import cv2

from datasets.synthetic import class_names, render_clip
from datasets.video import even_positions
from utils.process_pool import end_with_parent

QUALITY = 95  # of JPEG, as extract_frames.py has it


def write_frames(job, root, frames, size):
    """Draw one clip and write `frames` evenly spaced frames of it, aside and renamed.

    job: (path below `root`, class name, seed of the scene, seed of the clip). size: (H, W) pixels.
    """
    path, name, scene_seed, clip_seed = job
    folder = root / path
    aside = folder.with_name(f".{folder.name}.partial")
    aside.mkdir(parents=True, exist_ok=True)
    clip = render_clip(name, scene_seed, clip_seed, side=max(size))
    for number, position in enumerate(even_positions(len(clip), frames)):
        frame = cv2.resize(clip[position], size[::-1], interpolation=cv2.INTER_AREA)
        _, jpeg = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        (aside / f"{number:06d}.jpg").write_bytes(jpeg.tobytes())
    os.replace(aside, folder)


def draw_frames(
    output, classes, videos, groups, test_groups, val_groups, frames, size, workers=1, seed=0
):
    """Write <output>/frames and <output>/splits, as train.py and test.py read them.

    videos: in all, shared out evenly over `groups` scenes of each class. The first test_groups of
    each class are the test list, the next val_groups the validation list. frames: of each video.
    size: (H, W) pixels. workers: processes.
    """
    names, scenes = class_names(classes), classes * groups
    jobs, lists = [], {"train": [], "val": [], "test": []}
    for label, name in enumerate(names):
        for group in range(1, groups + 1):
            scene = label * groups + group  # from 1 on
            is_val = group <= test_groups + val_groups
            kind = "test" if group <= test_groups else "val" if is_val else "train"
            count = videos * scene // scenes - videos * (scene - 1) // scenes
            for clip in range(1, 1 + count):
                path = f"{name}/v_{name}_g{group:02d}_c{clip:02d}"
                jobs.append((path, name, [seed, label, group], [seed, label, group, clip]))
                lists[kind].append(f"{path} {label}\n")
    root, splits = Path(output) / "frames", Path(output) / "splits"
    write = partial(write_frames, root=root, frames=frames, size=size)
    if workers > 1:
        with Pool(workers, end_with_parent) as pool:
            pool.map(write, jobs, chunksize=1)
    else:
        for job in jobs:
            write(job)
    settings = {"num_frames": frames, "size": list(size), "quality": QUALITY}
    (root / "extraction.json").write_text(json.dumps(settings, indent=2) + "\n")
    splits.mkdir(parents=True, exist_ok=True)
    (splits / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    for kind, lines in lists.items():
        (splits / f"{kind}.txt").write_text("".join(lines))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--output", required=True, help="new folder for frames/ and splits/")
    add("--classes", type=int, default=101, help="at most 120 (default 101)")
    add("--videos", type=int, default=1332, help="in all (default 1332)")
    add("--groups", type=int, default=25, help="scenes a class (default 25)")
    add("--test-groups", type=int, default=7, help="scenes for test (default 7)")
    add("--val-groups", type=int, default=2, help="scenes for validation (default 2)")
    add("--frames", type=int, default=32, help="frames per video (default 32)")
    add("--size", type=int, nargs=2, default=[128, 171], metavar=("H", "W"),
        help="of frames, pixels (default 128 171)")  # fmt: skip
    add("--workers", type=int, default=os.cpu_count(), help="processes (default all)")
    args = parser.parse_args()
    draw_frames(**vars(args))


if __name__ == "__main__":
    main()
