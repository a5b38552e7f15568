"""Turn every video of a tree of class folders into a folder of JPEG frames.

    python extract_frames.py --videos data/UCF-101 --frames data/ucf101/frames

<videos>/<class>/<name>.avi becomes <frames>/<class>/<name>/000000.jpg, ...: by
default 32 frames spread evenly over the whole video. Rerun it at any time: only
new, changed and incomplete videos are extracted. Videos that cannot be read are
listed with the reasons in <frames>/failures.csv, and all others with frames,
seconds and size in <frames>/videos.csv.
"""

from utils.errors import die_on_ctrl_c

if __name__ == "__main__":  # imports take seconds
    die_on_ctrl_c()

import argparse
import shutil
import sys
from collections import Counter
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import cv2

from datasets import advice
from datasets.frame_folders import (
    add_record,
    check_settings,
    describe,
    find_state,
    move_away,
    publish,
    run_folder,
    write_table,
)
from datasets.process_pool import run_jobs
from datasets.video import VideoError, iterate_video, sample_video
from datasets.video_files import find_class_videos
from utils.argtypes import number, processors
from utils.config import Parser
from utils.errors import DISK_ERRORS, UserError, exit_on_user_error, printable
from utils.files import check_writable, write_failures
from utils.terminal import progress, safe_streams

# How the last line counts the videos that were extracted again, by the states of `find_state`.
REASONS = {"changed": "changed", "incomplete": "incomplete", "unrecorded": "without a record"}


def build_parser():
    parser = Parser(__doc__)
    add = parser.add
    add("--videos", required=True, type=Path, metavar="DIR", help="<DIR>/<class>/<video>")
    add(
        "--frames", required=True, type=Path, metavar="DIR", help="output folder, created if needed"
    )
    add(
        "--num-frames",
        type=number(int, least=0),
        default=32,
        help="frames per video, spread evenly; shorter videos repeat frames; 0 keeps every frame. "
        "At least twice --clip-frames of train.py is best, for temporal jitter",
    )
    add(
        "--size",
        type=number(int, least=16),
        nargs=2,
        default=[128, 171],
        metavar=("HEIGHT", "WIDTH"),
        help="size of the frames in pixels; 128 171 suits the usual crop of 112. If the action "
        "fills the whole frame, use a square, because training crops squares",
    )
    add("--quality", type=number(int, least=1, most=100), default=95, help="JPEG quality, 1 to 100")
    add("--workers", type=number(int, least=1), default=processors(), help="number of processes")
    add(
        "--timeout",
        type=number(float, above=0),
        default=600,
        metavar="SECONDS",
        help="time limit per video; videos over the limit are skipped and listed in failures.csv",
    )
    add(
        "--shard",
        type=parse_shard,
        default="1/1",
        metavar="I/N",
        help="extract only every N-th video, starting with the I-th: run 1/4 to 4/4 on four "
        "machines that share a disk",
    )
    return parser


def parse_shard(text):
    """argparse type: "I/N" with 1 <= I <= N -> (I, N)."""
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, not {text!r}")
    return int(first), int(count)


# ==== what to do ====


def plan_folders(videos, frames):
    """The frame folder of each video: dict Path -> Path.

    <class>/<name>, or <class>/<name>.<suffix> for each of several videos of a class that differ
    only in suffix. Raises UserError where an earlier run made <class>/<name> when there was only
    one of them.
    """
    names = Counter((video.parent.name, video.stem) for video in videos)
    folders = {}
    for video in videos:
        folder = frames / video.parent.name / video.stem
        is_unique = names[video.parent.name, video.stem] == 1
        folders[video] = folder if is_unique else folder.with_name(video.name)
    used = Counter(folders.values())
    for video, folder in folders.items():
        plain = frames / video.parent.name / video.stem
        if used[folder] > 1 or (folder != plain and plain not in used and plain.exists()):
            raise UserError(
                f"{video} differs from another video in its suffix only, and the frames in {plain} "
                "could be of either; rename one of the videos, delete that folder, and rerun"
            )
    return folders


def find_states(folders, num_frames):
    """The state of each video's frame folder, see `find_state`: dict Path -> str.

    Complete folders of earlier versions get their record. With all frames of a video (num_frames 0)
    that cannot be: how many there should be is not known.
    """
    states = {video: find_state(video, folder, num_frames) for video, folder in folders.items()}
    for video, state in states.items():
        if state == "unrecorded" and num_frames:
            add_record(video, folders[video])
            states[video] = "complete"
    return states


# ==== extraction ====


def extract_video(job, settings):
    """Decode one video into a temporary folder and rename that to the frame folder.

    job: (video, folder, temporary), paths. settings: {"num_frames", "size", "quality"}.
    Does nothing if another run has done it meanwhile.
    Returns (whether the disk is the cause of a failure, the reason of a failure or None).
    """
    video, folder, temporary = job
    num_frames, size, quality = (settings[key] for key in ("num_frames", "size", "quality"))
    try:
        if len(folder.name.splitlines()) > 1:
            raise VideoError("has a line break in its name, which no list can hold; rename it")
        if find_state(video, folder, num_frames) == "complete":
            return False, None
        temporary.mkdir(parents=True)
        source = describe(video)  # first: if the file changes now, the next run notices
        frames = sample_video(video, num_frames, size) if num_frames else iterate_video(video, size)
        count, decoded = write_frames(temporary, frames, quality)
        publish(temporary, folder, {**source, "frames": count, **decoded})
    except (UserError, OSError, cv2.error) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        return getattr(error, "errno", None) in DISK_ERRORS, " ".join(str(error).split())
    return False, None


def write_frames(folder, frames, quality):
    """Write the frames of a generator. Returns (their number, what the generator returns)."""
    count = 0
    while True:
        try:
            frame = next(frames)
        except StopIteration as end:
            return count, end.value
        write_frame(folder, count, frame, quality)
        count += 1


def write_frame(folder, index, frame, quality):
    """Write one (H, W, 3) RGB frame as <folder>/<index>.jpg."""
    bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    encoded, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise VideoError(f"frame {index} cannot be encoded as JPEG")
    (folder / f"{index:06d}.jpg").write_bytes(jpeg)


def extract_videos(folders, run, settings, args):
    """Extract the videos of a dict video -> frame folder in parallel. Returns {video: reason}.

    run: this run's temporary folder. Raises UserError when the disk is full or cannot be written,
    because all other videos would fail too.
    """
    items = enumerate(folders.items())
    jobs = [(video, folder, run / str(index)) for index, (video, folder) in items]
    failures, extract = {}, partial(extract_video, settings=settings)
    answers = run_jobs(extract, jobs, args.workers, args.timeout)
    with closing(answers), progress(None, "extracting", len(jobs), "video") as bar:
        for (video, _, temporary), disk_fails, reason in answers:
            if disk_fails:
                raise UserError(f"{reason}; fix this and rerun")
            if reason is not None:
                failures[video] = reason
                shutil.rmtree(temporary, ignore_errors=True)  # of a worker that was killed
            bar.update()
    return failures


def remove_stale_frames(failures, folders, run, num_frames):
    """Remove the frames of videos that changed and now fail: they are of the earlier video."""
    for index, video in enumerate(failures):
        if find_state(video, folders[video], num_frames) == "changed":
            with suppress(UserError):  # files of others stay
                move_away(folders[video], run / f"former-{index}")


def report(states, failures, num_ignored):
    """Print how many videos were extracted, complete before, or failed."""
    done = Counter(state for video, state in states.items() if video not in failures)
    num_complete = done.pop("complete", 0)
    again = ", ".join(f"{done[state]} {word}" for state, word in REASONS.items() if done[state])
    ignored = f"; {num_ignored} other files ignored" if num_ignored else ""
    print(
        f"{done.total()} videos done{again and f' ({again})'}, {num_complete} already there, "
        f"{len(failures)} failed{ignored}"
    )


def main(args):
    # ==== find the videos, and what is missing ====
    videos, num_ignored = find_class_videos(args.videos, skip=[args.frames])
    archives = [path for path in advice.find_archives(args.videos) if not advice.is_unpacked(path)]
    if archives:
        print(printable(f"note: {advice.advise_unpacking(archives)}"))
    folders = plan_folders(videos, args.frames)
    check_writable(args.frames, "--frames")
    settings = {"num_frames": args.num_frames, "size": args.size, "quality": args.quality}
    check_settings(args.frames, settings)
    first, count = args.shard
    folders = dict(list(folders.items())[first - 1 :: count])

    # ==== extract ====
    name = "failures.csv" if count == 1 else f"failures-{first}-of-{count}.csv"
    with run_folder(args.frames, args.shard) as run:
        states = find_states(folders, args.num_frames)
        todo = {video: folders[video] for video, state in states.items() if state != "complete"}
        failures = extract_videos(todo, run, settings, args) if todo else {}
        remove_stale_frames(failures, folders, run, args.num_frames)
        named = {str(video.relative_to(args.videos)): reason for video, reason in failures.items()}
        write_failures(args.frames / name, named)
        write_table(args.frames / name.replace("failures", "videos"), folders)

    # ==== report ====
    report(states, failures, num_ignored)
    if failures:
        sys.exit(f"extract_frames.py: the reasons are in {args.frames / name}")


if __name__ == "__main__":
    with safe_streams("extract_frames.py"):
        args = build_parser().parse_args()
        with exit_on_user_error("extract_frames.py", "--workers"):
            main(args)
