"""Draw a data set as frame folders and split lists; needs only OpenCV.

    python -m benchmarks.rehearsal --output data/rehearsal    # 1/10 of UCF101

The clips are those of datasets.synthetic, resized and stored as
extract_frames.py stores frames, without video files in between. As in
make_splits.py, whole groups go into the test and the validation list.
"""

import json
import os
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import cv2

from datasets.process_pool import end_with_parent
from datasets.sampling import even_positions
from datasets.synthetic import class_names, render_clip
from utils.argtypes import number, processors
from utils.config import Parser

QUALITY = 95  # of JPEG, the default of extract_frames.py


def write_frames(job, root, frames, size):
    """Draw one clip and write `frames` evenly spaced frames of it, atomically.

    job: (path below `root`, class name, seed of the scene, seed of the clip). size: (H, W) pixels.
    """
    path, name, scene_seed, clip_seed = job
    folder = root / path
    temporary = folder.with_name(f".{folder.name}.partial")
    temporary.mkdir(parents=True, exist_ok=True)
    clip = render_clip(name, scene_seed, clip_seed, side=max(size))
    for index, position in enumerate(even_positions(len(clip), frames)):
        frame = cv2.resize(clip[position], size[::-1], interpolation=cv2.INTER_AREA)
        _, jpeg = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        (temporary / f"{index:06d}.jpg").write_bytes(jpeg.tobytes())
    os.replace(temporary, folder)


def plan_videos(classes, videos, groups, test_groups, val_groups, seed):
    """The jobs of `write_frames`, and the lines of the lists {"train", "val", "test"}.

    `videos` are spread evenly over `groups` scenes of each class.
    """
    jobs, lists = [], {"train": [], "val": [], "test": []}
    scenes = classes * groups
    for label, name in enumerate(class_names(classes)):
        for group in range(1, groups + 1):
            scene = label * groups + group  # from 1 on
            is_val = group <= test_groups + val_groups
            split = "test" if group <= test_groups else "val" if is_val else "train"
            count = videos * scene // scenes - videos * (scene - 1) // scenes
            for clip in range(1, 1 + count):
                path = f"{name}/v_{name}_g{group:02d}_c{clip:02d}"
                jobs.append((path, name, [seed, label, group], [seed, label, group, clip]))
                lists[split].append(f"{path} {label}\n")
    return jobs, lists


def draw_frames(
    output, classes, videos, groups, test_groups, val_groups, frames, size, workers=1, seed=0
):
    """Write <output>/frames and <output>/splits, which train.py and test.py read.

    classes: number of classes. videos: in total. groups: scenes per class; the first test_groups of
    each class are the test list, the next val_groups the validation list. frames: per video.
    size: (H, W) pixels. workers: processes.
    """
    jobs, lists = plan_videos(classes, videos, groups, test_groups, val_groups, seed)
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
    (splits / "classes.txt").write_text("".join(f"{name}\n" for name in class_names(classes)))
    for split, lines in lists.items():
        (splits / f"{split}.txt").write_text("".join(lines))


def main():
    parser = Parser(__doc__)
    count = number(int, least=1)
    parser.add("--output", required=True, help="new folder for frames/ and splits/")
    parser.add("--classes", type=number(int, least=1, most=120), default=101, help="at most 120")
    parser.add("--videos", type=count, default=1332, help="number of videos")
    parser.add("--groups", type=count, default=25, help="scenes per class")
    parser.add("--test-groups", type=count, default=7, help="scenes per class for test")
    parser.add("--val-groups", type=count, default=2, help="scenes per class for validation")
    parser.add("--frames", type=count, default=32, help="frames per video")
    parser.add(
        "--size",
        type=count,
        nargs=2,
        default=[128, 171],
        metavar=("H", "W"),
        help="size of the frames in pixels",
    )
    parser.add("--workers", type=count, default=processors(), help="processes")
    args = parser.parse_args()
    draw_frames(**vars(args))


if __name__ == "__main__":
    main()
