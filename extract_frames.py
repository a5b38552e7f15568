"""Turn every video of a class-folder tree into a folder of JPEG frames.

    python extract_frames.py --videos data/UCF-101 --frames data/ucf101/frames

<videos>/<class>/<name>.avi becomes <frames>/<class>/<name>/000000.jpg, 000001.jpg, ...: by default
32 frames spread evenly over the whole video. Rerun it: only new, changed and incomplete videos are
extracted. Beside the frames, video.json records the video's size and time and the number of frames.
"""

import argparse
import os
import shutil
import sys
from collections import Counter
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import cv2

from datasets.frame_folders import (
    add_record,
    check_settings,
    describe,
    find_state,
    partial_folder,
    publish,
    set_aside,
)
from datasets.video import VIDEO_SUFFIXES, VideoError, iterate_video, sample_video
from utils.config import new_parser, positive_float, positive_int, processors, whole_number
from utils.errors import DISK_ERRORS, UserError, exit_on_user_error
from utils.files import write_failures
from utils.process_pool import run_jobs
from utils.terminal import progress, safe_streams

# How the last line counts the videos that were extracted anew, by the states of `find_state`.
REASONS = {"changed": "changed", "incomplete": "incomplete", "unrecorded": "without a record"}


def build_parser():
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--videos", required=True, type=Path, help="folder of class folders of videos")
    add("--frames", required=True, type=Path, help="folder for the frame folders; made if absent")
    add("--num-frames", type=whole_number, default=32,
        help="frames per video, spread evenly; shorter videos repeat frames; 0 keeps every frame. "
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


def write_frame(folder, index, frame, quality):
    """Write one (H, W, 3) RGB frame as <folder>/<index>.jpg."""
    bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    encoded, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise VideoError(f"frame {index} cannot be encoded as JPEG")
    (folder / f"{index:06d}.jpg").write_bytes(jpeg)


def extract_video(job, settings):
    """Decode one video into a folder aside and rename that to the frame folder.

    job: (video, folder, aside), paths. settings: {"num_frames", "size", "quality"}.
    Does nothing where another run has done it meanwhile.
    Returns (whether the disk is at fault, the reason of a failure or None).
    """
    video, folder, aside = job
    cv2.setNumThreads(1)
    num_frames, size, quality = (settings[key] for key in ("num_frames", "size", "quality"))
    try:
        if len(folder.name.splitlines()) > 1:
            raise VideoError("has a line end in its name, which no list can hold; rename it")
        if find_state(video, folder, num_frames) == "there":
            return False, None
        aside.mkdir(parents=True)
        source = describe(video)  # before decoding: what is replaced meanwhile is found next time
        frames = sample_video(video, num_frames, size) if num_frames else iterate_video(video, size)
        for index, frame in enumerate(frames):
            write_frame(aside, index, frame, quality)
        publish(aside, folder, {**source, "frames": index + 1})
    except (UserError, OSError, cv2.error) as error:
        shutil.rmtree(aside, ignore_errors=True)
        return getattr(error, "errno", None) in DISK_ERRORS, " ".join(str(error).split())
    return False, None


def extract_all(folders, run, settings, args):
    """Extract `folders` (dict video -> frame folder) in parallel. Returns {video: reason}.

    run: this run's folder for videos in progress. Exits when the disk is full or cannot be written,
    since every other video would fail too.
    """
    items = enumerate(folders.items())
    jobs = [(video, folder, run / str(number)) for number, (video, folder) in items]
    failures, extract = {}, partial(extract_video, settings=settings)
    answers = run_jobs(extract, jobs, args.workers, args.timeout)
    with closing(answers), progress(None, "extracting", len(jobs), "video") as bar:
        for job, disk_fails, reason in answers:
            if disk_fails:
                sys.exit(f"extract_frames.py: {reason}; fix this and rerun")
            if reason is not None:
                failures[job[0]] = reason
                shutil.rmtree(job[2], ignore_errors=True)  # of a worker that was killed
            bar.update()
    return failures


def extract_missing(folders, run, settings, args):
    """Extract what the dict video -> frame folder lacks. Returns (states, failures).

    run: as for `extract_all`. states: the state of each video that was extracted or failed.
    failures: {video: reason}. A video that changed and now fails loses its frames, which are of
    another video.
    """
    states = {v: find_state(v, folder, args.num_frames) for v, folder in folders.items()}
    for video, state in states.items():
        if state == "unrecorded" and args.num_frames:  # else it is unknown how many there should be
            add_record(video, folders[video], run)
            states[video] = "there"
    states = {video: state for video, state in states.items() if state != "there"}
    todo = {video: folders[video] for video in states}
    failures = extract_all(todo, run, settings, args) if todo else {}
    for number, video in enumerate(failures):
        if find_state(video, folders[video], args.num_frames) == "changed":
            with suppress(UserError):  # files of others stay
                set_aside(folders[video], run / f"former-{number}")
    return states, failures


def main(args):
    settings = {"num_frames": args.num_frames, "size": args.size, "quality": args.quality}
    videos = find_videos(args.videos)
    passed_over = count_passed_over(args.videos, videos, args.frames)
    folders = plan_folders(videos, args.frames)
    check_settings(args.frames, settings)
    first, count = args.shard
    folders = dict(list(folders.items())[first - 1 :: count])

    with partial_folder(args.frames, args.shard) as run:
        states, failures = extract_missing(folders, run, settings, args)
        name = "failures.csv" if count == 1 else f"failures-{first}-of-{count}.csv"
        named = {str(video.relative_to(args.videos)): reason for video, reason in failures.items()}
        write_failures(args.frames / name, named)

    done = Counter(state for video, state in states.items() if video not in failures)
    again = ", ".join(f"{done[state]} {word}" for state, word in REASONS.items() if done[state])
    others = f"; {passed_over} other files passed over" if passed_over else ""
    print(
        f"{done.total()} videos done{again and f' ({again})'}, "
        f"{len(folders) - len(states)} already there, {len(failures)} failed{others}"
    )
    if failures:
        sys.exit(f"extract_frames.py: the reasons are in {args.frames / name}")


if __name__ == "__main__":
    with safe_streams("extract_frames.py"):
        args = build_parser().parse_args()
        with exit_on_user_error("extract_frames.py", "--workers"):
            main(args)
