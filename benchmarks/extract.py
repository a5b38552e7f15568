"""Videos a second of extract_frames.py beside the usual two-pass OpenCV loop, on one core.

    python -m benchmarks.extract --videos FOLDER     # <FOLDER>/<class>/<video>
    python -m benchmarks.extract                     # draws 40 small videos first

The usual way counts the frames of a video in a first pass, since containers lie, decodes it again
and writes every n-th frame with cv2.imwrite. Both write 32 JPEGs of 128x171 a video.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from datasets.synthetic import make_dataset
from extract_frames import extract_video, find_videos

SETTINGS = {"num_frames": 32, "size": [128, 171], "quality": 95}


def two_passes(video, folder):
    """The usual loop: count, then decode again and keep every n-th frame."""
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


def one_pass(video, folder):
    aside = folder.with_name(folder.name + ".aside")
    _, reason = extract_video((video, folder, aside), SETTINGS)
    if reason:
        raise SystemExit(f"{video}: {reason}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--videos", type=Path, help="folder of class folders of videos")
    parser.add_argument("--runs", type=int, default=3, help="timed runs (default 3)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if args.videos is None:
            make_dataset(root / "drawn", classes=2, groups=20, videos=40, side=240)
            args.videos = root / "drawn" / "videos"
        videos = find_videos(args.videos)
        print(f"OpenCV {cv2.__version__}, one process, {len(videos)} videos of {args.videos.name}")
        print(f"{'way':<14} {'videos/s':>9} {'x usual':>8}")
        times = {two_passes: [], one_pass: []}
        for run in range(args.runs + 1):
            for way in times:
                started = time.perf_counter()
                for number, video in enumerate(videos):
                    way(video, root / way.__name__ / str(run) / str(number))
                times[way].append(time.perf_counter() - started)
        usual = statistics.median(times[two_passes][1:])
        for way, name in ((two_passes, "usual, two"), (one_pass, "ours, one")):
            seconds = statistics.median(times[way][1:])
            print(f"{name:<14} {len(videos) / seconds:>9.1f} {usual / seconds:>8.2f}")


if __name__ == "__main__":
    main()
