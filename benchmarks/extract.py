"""Videos per second of extract_frames.py beside the usual ways, one process each.

    python -m benchmarks.extract --videos FOLDER    # <FOLDER>/<class>/<video>
    python -m benchmarks.extract                    # draws 40 videos first

- ffmpeg program: every frame of a video as a JPEG of 320x240, as the tools of
  TSN and Hara et al. do; only where the program is installed.
- OpenCV, two passes: counts the frames, since containers lie, then decodes
  again and writes every n-th.
- OpenCV, one pass: keeps every frame as BGR, large ones resized, as these
  scripts once did.
- ours: extract_frames.py.

All but the first write 32 JPEGs of 128x171 per video, with one thread. The ways
alternate, and each run has a process of its own, since earlier work changes how
a process allocates memory. The time is the median of the runs in CPU seconds,
user and system, which other jobs change little.

Files are kept until the end. TMPDIR=/dev/shm leaves out the disk: ext4 avoids
inodes that were freed less than a minute ago, and its search for others can
take longer than writing the JPEGs.
"""

import multiprocessing
import os
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path

import av
import cv2
import numpy as np

from datasets.sampling import even_positions
from datasets.synthetic import make_dataset
from datasets.video_files import find_class_videos
from extract_frames import extract_video, write_frame
from utils.argtypes import number
from utils.config import Parser

os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "threads;1"  # read when a video is opened
SETTINGS = {"num_frames": 32, "size": [128, 171], "quality": 95}


def ffmpeg_program(video, folder):
    folder.mkdir(parents=True)
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", video, "-s", "320x240", "-q:v", "2"]
    command += ["-filter_threads", "1", "-threads", "1", folder / "%06d.jpg"]
    subprocess.run(command, check=True)


def opencv_two_passes(video, folder):
    capture, count = cv2.VideoCapture(str(video)), 0
    while capture.read()[0]:
        count += 1
    wanted = set(np.linspace(0, count - 1, 32).astype(int).tolist())
    capture, index = cv2.VideoCapture(str(video)), 0
    folder.mkdir(parents=True)
    while True:
        decoded, frame = capture.read()
        if not decoded:
            return
        if index in wanted:
            path = str(folder / f"{index:06d}.jpg")
            cv2.imwrite(path, cv2.resize(frame, (171, 128)), [cv2.IMWRITE_JPEG_QUALITY, 95])
        index += 1


def resize(frame):
    frame = cv2.resize(frame, (171, 128), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def opencv_one_pass(video, folder):
    capture, frames = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG), []
    while capture.grab():
        capture.get(cv2.CAP_PROP_POS_MSEC)
        frame = capture.retrieve()[1]
        frames.append(resize(frame) if frame.nbytes > 600_000 else frame)  # bounds the memory
    chosen = [frames[position] for position in even_positions(len(frames), 32)]
    clip = np.stack([frame if frame.shape[0] == 128 else resize(frame) for frame in chosen])
    folder.mkdir(parents=True)
    for index, frame in enumerate(clip):
        write_frame(folder, index, frame, SETTINGS["quality"])


def ours(video, folder):
    temporary = folder.with_name(folder.name + ".partial")
    _, reason = extract_video((video, folder, temporary), SETTINGS)
    if reason:
        raise SystemExit(f"{video}: {reason}")


def cpu_seconds():
    """CPU time of this process and of its child processes."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def time_way(way, videos, output):
    """CPU seconds of one way for all videos; to be called in a new process."""
    started = cpu_seconds()
    for index, video in enumerate(videos):
        way(video, output / str(index))
    return cpu_seconds() - started


def time_ways(ways, videos, runs, output):
    """{way: median CPU seconds of its runs}. output: folder for all files written."""
    seconds = {way: [] for way in ways}
    for run in range(runs):
        for way in ways:
            with multiprocessing.get_context("fork").Pool(1) as pool:
                job = way, videos, output / f"{run}-{way.__name__}"
                seconds[way].append(pool.apply(time_way, job))
    return {way: np.median(times) for way, times in seconds.items()}


def parse_flags():
    parser = Parser(__doc__)
    parser.add("--videos", type=Path, help="folder of class folders of videos")
    parser.add("--runs", type=number(int, least=1), default=5, help="timed runs of each way")
    parser.add("--every", type=number(int, least=1), default=1, help="use only every n-th video")
    return parser.parse_args()


def main():
    args = parse_flags()
    cv2.setNumThreads(1)
    ways = [ffmpeg_program] if shutil.which("ffmpeg") else []
    ways += [opencv_two_passes, opencv_one_pass, ours]
    with tempfile.TemporaryDirectory() as temporary:
        if args.videos is None:
            make_dataset(Path(temporary), classes=2, groups=20, videos=40, side=240)
            args.videos = Path(temporary) / "videos"
        videos = find_class_videos(args.videos)[0][:: args.every]
        versions = f"PyAV {av.__version__}, OpenCV {cv2.__version__}"
        print(f"{versions}, one process, {len(videos)} videos of {args.videos.name}")
        seconds = time_ways(ways, videos, args.runs, Path(temporary) / "output")
    print(f"{'way':<18} {'videos/s':>9} {'ours is x times':>16}")
    for way, total in seconds.items():
        name = way.__name__.replace("_", " ")
        print(f"{name:<18} {len(videos) / total:>9.1f} {total / seconds[ours]:>16.2f}")


if __name__ == "__main__":
    main()
