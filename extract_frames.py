"""Turn every video of a class-folder tree into a folder of JPEG frames.

    python extract_frames.py --videos data/UCF-101 --frames data/ucf101/frames

<videos>/<class>/<name>.avi becomes <frames>/<class>/<name>/000000.jpg, 000001.jpg, ...: by default
32 frames spread evenly over the whole video. Run it again and it does only what is missing.
"""

import argparse
import contextlib
import errno
import json
import os
import shutil
import sys
from collections import Counter
from functools import partial
from hashlib import sha1
from pathlib import Path

import cv2
from tqdm import tqdm

from utils.config import new_parser, positive_float, positive_int, processors, whole_number
from utils.errors import one_line
from utils.files import write_failures, write_text
from utils.video import VIDEO_SUFFIXES, VideoError, iterate_video, read_video
from utils.workers import run_each

DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.EIO),
)


def build_parser():
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--videos", required=True, type=Path, help="folder of class folders of videos")
    add("--frames", required=True, type=Path, help="folder for the frame folders; made if absent")
    add("--num-frames", type=whole_number, default=32,
        help="frames a video, spread evenly; shorter videos repeat frames; 0 keeps every frame. "
        "Take at least twice --clip-frames of train.py, which jitters between them")  # fmt: skip
    add("--size", type=positive_int, nargs=2, default=[128, 171], metavar=("HEIGHT", "WIDTH"),
        help="pixels; 128 171 suits the usual 112 crop. Where the action fills the whole frame, "
        "take a square, since training cuts out squares")  # fmt: skip
    add("--quality", type=int, choices=range(1, 101), default=95, metavar="1-100",
        help="JPEG quality")  # fmt: skip
    add("--workers", type=positive_int, default=processors(), help="processes, one video each")
    add("--timeout", type=positive_float, default=600, metavar="SECONDS",
        help="for one video; one that takes longer is given up and listed")  # fmt: skip
    add("--shard", type=parse_shard, default="1/1", metavar="I/N",
        help="extract only every N-th video, from the I-th on: run 1/4 to 4/4 on four machines "
        "that share a disk")  # fmt: skip
    return parser


def parse_shard(text):
    """argparse type: "I/N" with 1 <= I <= N -> (I, N)."""
    first, _, count = text.partition("/")
    shard = int(first), int(count)
    if not 1 <= shard[0] <= shard[1]:
        raise argparse.ArgumentTypeError(f"{text} is not I/N with I from 1 to N")
    return shard


def find_videos(root):
    """Videos <root>/<class>/<name>.<suffix> in order: list of Path. Hidden files are left out."""
    if not root.is_dir():
        sys.exit(f"extract_frames.py: --videos {root}: no such folder")
    videos = [
        video
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for video in sorted(folder.iterdir())
        if video.suffix.lower() in VIDEO_SUFFIXES and not video.name.startswith(".")
    ]
    if not videos:
        sys.exit(f"extract_frames.py: no video like {root}/<class>/<name>.avi was found")
    return videos


def count_passed_over(root, videos, frames):
    """Files below `root` that are not in `videos`, hidden ones and those below `frames` left out.

    They have the suffix of no video, or lie directly in `root` or in deeper folders.
    """
    taken, count = set(map(str, videos)), 0
    for folder, folders, names in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and Path(folder, name).resolve() != frames.resolve()
        ]
        count += sum(
            not name.startswith(".") and str(Path(folder, name)) not in taken for name in names
        )
    return count


def plan_folders(videos, frames):
    """The frame folder of each video: dict Path -> Path.

    <class>/<name>, or <class>/<name>.<suffix> for each of several videos of a class that differ
    only in suffix. Exits where an earlier run made <class>/<name> before the second one appeared.
    """
    sharing = Counter((video.parent.name, video.stem) for video in videos)
    folders = {}
    for video in videos:
        plain = frames / video.parent.name / video.stem
        shared = sharing[video.parent.name, video.stem] > 1
        folders[video] = plain.with_name(video.name) if shared else plain
    taken = Counter(folders.values())
    for video, folder in folders.items():
        stale = frames / video.parent.name / video.stem
        if taken[folder] > 1 or (folder != stale and stale not in taken and stale.exists()):
            sys.exit(
                f"extract_frames.py: {video} shares its name with another video, and {stale} "
                "could be of either; rename one of the videos, delete that folder, and run again"
            )
    return folders


def check_settings(frames, settings):
    """Write the settings into a new `frames` folder, or refuse those that differ from its own."""
    path = frames / "extraction.json"
    if not path.exists():
        write_text(path, json.dumps(settings, indent=2) + "\n")
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        sys.exit(f"extract_frames.py: {path}: damaged; delete the folder and extract again")
    if earlier != settings:
        sys.exit(
            f"extract_frames.py: {frames} was extracted with {earlier}, not {settings}; give the "
            "earlier settings, another --frames, or delete the folder"
        )


def write_frame(folder, index, frame, quality):
    """Write one (H, W, 3) RGB frame as <folder>/<index>.jpg."""
    bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    encoded, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise VideoError(f"frame {index} cannot be encoded as JPEG")
    (folder / f"{index:06d}.jpg").write_bytes(jpeg.tobytes())


def extract_video(job, settings):
    """Decode one video into a folder aside and rename that to the frame folder.

    job: (video, folder, aside), paths. settings: {"num_frames", "size", "quality"}.
    Returns (whether the disk is at fault, the reason of a failure or None).
    """
    video, folder, aside = job
    cv2.setNumThreads(1)
    num_frames, size, quality = (settings[key] for key in ("num_frames", "size", "quality"))
    try:
        if len(folder.name.splitlines()) > 1:
            raise VideoError("has a line end in its name, which no list can hold; rename it")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        frames = read_video(video, num_frames, size) if num_frames else iterate_video(video, size)
        for index, frame in enumerate(frames):
            write_frame(aside, index, frame, quality)
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside.rename(folder)
    except (VideoError, OSError, cv2.error) as error:
        shutil.rmtree(aside, ignore_errors=True)
        return getattr(error, "errno", None) in DISK_ERRORS, " ".join(str(error).split())
    return False, None


def extract_all(folders, frames, settings, args):
    """Extract `folders` (dict video -> frame folder) in parallel. Returns {video: reason}.

    Exits when the disk is full or cannot be written, since every other video would fail too.
    """
    jobs, failures = [], {}
    for video, folder in folders.items():
        unique = sha1(str(folder.relative_to(frames)).encode("utf-8", "surrogateescape"))
        jobs.append((video, folder, frames / ".partial" / unique.hexdigest()))
    extract = partial(extract_video, settings=settings)
    with tqdm(total=len(jobs), unit="video", desc="extracting", smoothing=0.05) as bar:
        for job, disk_fails, reason in run_each(extract, jobs, args.workers, args.timeout):
            if disk_fails:
                sys.exit(f"\nextract_frames.py: {reason}; mend that, then run the same command")
            if reason is not None:
                failures[job[0]] = reason
                shutil.rmtree(job[2], ignore_errors=True)  # of a worker that was killed
            bar.update()
    with contextlib.suppress(OSError):  # another machine's shard may still be at work there
        (frames / ".partial").rmdir()
    return failures


def main(args):
    settings = {"num_frames": args.num_frames, "size": args.size, "quality": args.quality}
    videos = find_videos(args.videos)
    passed_over = count_passed_over(args.videos, videos, args.frames)
    folders = plan_folders(videos, args.frames)
    check_settings(args.frames, settings)
    first, count = args.shard
    folders = dict(list(folders.items())[first - 1 :: count])

    missing = {video: folder for video, folder in folders.items() if not folder.is_dir()}
    failures = extract_all(missing, args.frames, settings, args) if missing else {}
    name = "failures.csv" if count == 1 else f"failures-{first}-of-{count}.csv"
    named = {str(video.relative_to(args.videos)): reason for video, reason in failures.items()}
    write_failures(args.frames / name, named)

    done, there = len(missing) - len(failures), len(folders) - len(missing)
    others = f"; {passed_over} other files passed over" if passed_over else ""
    print(f"{done} videos done, {there} already there, {len(failures)} failed{others}")
    if failures:
        sys.exit(f"extract_frames.py: the reasons are in {args.frames / name}")


if __name__ == "__main__":
    args = build_parser().parse_args()
    with one_line("extract_frames.py", "--workers"):
        main(args)
