"""Videos per second of extract_frames.py beside the usual ways, one process and one thread each.

    python -m benchmarks.extract --videos FOLDER     # <FOLDER>/<class>/<video>
    python -m benchmarks.extract                     # draws 40 small videos first

- ffmpeg program: every frame of a video as a JPEG of 320x240, as TSN's and Hara's tools do; only
  where the program is installed.
- OpenCV, two passes: counts the frames, since containers lie, decodes again and writes every n-th.
- OpenCV, one pass: holds every frame as BGR, large ones resized, as these scripts once did.
- ours: extract_frames.py.

All but the first write 32 JPEGs of 128x171 per video. Ways alternate, each run in a process of its
own as in the scripts: how a process allocates memory depends on what it did before. The time is
the median of the runs in CPU seconds, user and system, so that other jobs matter little.

Files stay until the end, and TMPDIR=/dev/shm leaves the disk out: ext4 avoids inodes that were
freed less than a minute ago, and the search for others can take longer than the JPEGs.
"""

import argparse
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

from datasets.synthetic import make_dataset
from datasets.video import even_positions
from datasets.video_files import find_class_videos
from extract_frames import extract_video, write_frame

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
    aside = folder.with_name(folder.name + ".aside")
    _, reason = extract_video((video, folder, aside), SETTINGS)
    if reason:
        raise SystemExit(f"{video}: {reason}")


def cpu_seconds():
    """CPU time of this process and of the programs that it has run."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def time_way(way, videos, output):
    """CPU seconds of all videos by one way, in a process that has done nothing else."""
    started = cpu_seconds()
    for number, video in enumerate(videos):
        way(video, output / str(number))
    return cpu_seconds() - started


def time_ways(ways, videos, runs, output):
    """{way: the median of its runs in CPU seconds}. output: folder for all that is written."""
    seconds = {way: [] for way in ways}
    for run in range(runs):
        for way in ways:
            with multiprocessing.get_context("fork").Pool(1) as pool:
                job = way, videos, output / f"{run}-{way.__name__}"
                seconds[way].append(pool.apply(time_way, job))
    return {way: np.median(times) for way, times in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--videos", type=Path, help="folder of class folders of videos")
    parser.add_argument("--runs", type=int, default=5, help="timed runs (default 5)")
    parser.add_argument("--every", type=int, default=1, help="only every n-th video (default 1)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    ways = [ffmpeg_program] if shutil.which("ffmpeg") else []
    ways += [opencv_two_passes, opencv_one_pass, ours]
    with tempfile.TemporaryDirectory() as temporary:
        if args.videos is None:
            make_dataset(Path(temporary), classes=2, groups=20, videos=40, side=240)
            args.videos = Path(temporary) / "videos"
        videos = find_class_videos(args.videos)[0][:: args.every]
        print(f"PyAV {av.__version__}, OpenCV {cv2.__version__}, one process, {len(videos)} videos "
              f"of {args.videos.name}")  # fmt: skip
        seconds = time_ways(ways, videos, args.runs, Path(temporary) / "output")
    print(f"{'way':<18} {'videos/s':>9} {'ours is x times':>16}")
    for way, total in seconds.items():
        name = way.__name__.replace("_", " ")
        print(f"{name:<18} {len(videos) / total:>9.1f} {total / seconds[ours]:>16.2f}")


if __name__ == "__main__":
    main()
