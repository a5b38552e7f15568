"""Clips per second of the usual loader, of our frame folders and of our caches.

    python -m benchmarks.load                  # draws 64 videos first

The usual way opens each JPEG (240x320, the size of UCF101) with PIL, resizes it
to 128x171, crops 112x112, normalises and stacks frame by frame in Python; a
second row reads frames of 128x171, as extract_frames.py writes them. Ours
returns uint8 clips, which the device crops and normalises for a whole batch; on
a GPU that runs while the next batch is loaded, and it has a row of its own, on
the CPU. Every row makes the same clips of 16 of 32 frames in one process with
one thread; medians of --runs.
"""

import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.cache import CachedDataset, build_cache
from datasets.frames import FrameDataset
from datasets.transforms import augment
from models import KINETICS
from utils.argtypes import number
from utils.config import Parser

PREPROCESSING = {"size": 112, "crop": 0.875, **KINETICS}
BATCH = 16


def draw_frames(root, videos, height, width):
    """Frame folders of smooth moving textures, at the quality of extract_frames.py."""
    rng = np.random.default_rng(0)
    for video in range(videos):
        folder = root / f"{video:03d}"
        folder.mkdir(parents=True)
        texture = cv2.resize(rng.integers(0, 256, (24, 32, 3), np.uint8), (width + 32, height + 32))
        for t in range(32):
            frame = texture[t : t + height, t : t + width]
            cv2.imwrite(str(folder / f"{t:06d}.jpg"), frame, [cv2.IMWRITE_JPEG_QUALITY, 95])


def usual_clip(folder):
    """A training clip as most published loaders make it, (3, 16, 112, 112) float32."""
    from PIL import Image
    from torchvision.transforms import functional

    paths = sorted(folder.glob("*.jpg"))
    top, left = random.randrange(17), random.randrange(60)
    frames = []
    for path in paths[::2]:
        image = Image.open(path).convert("RGB").resize((171, 128), Image.BILINEAR)
        image = functional.crop(image, top, left, 112, 112)
        frame = functional.to_tensor(image)
        frames.append(functional.normalize(frame, KINETICS["mean"], KINETICS["std"]))
    return torch.stack(frames, dim=1)


def build_ways(root, original, names):
    """{label: function of the indices of a batch}; every function loads or augments the batch."""
    data = FrameDataset(names, [0] * len(names), root, 16)
    path = build_cache(data, 32, root.parent / "cache", 1)
    ram = CachedDataset(data, path, "ram", torch.device("cpu"))
    disk = CachedDataset(data, path, "disk", torch.device("cpu"))
    transform = partial(
        augment,
        preprocessing=PREPROCESSING,
        crop_scale=(0.7, 1.0),
        flip=True,
        colour_jitter=0.2,
        generator=torch.Generator(),
    )
    clips = ram.__getitems__([(i, i) for i in range(BATCH)])[0]

    def usual(folder):
        return lambda batch: torch.stack([usual_clip(folder / names[i]) for i in batch])

    def with_seeds(batch):
        return [(i, i) for i in batch]

    return {
        "usual: PIL, 240x320": usual(original),
        "usual: PIL, 128x171": usual(root),
        "ours: JPEG frame folders": lambda b: torch.stack([data[i][0] for i in with_seeds(b)]),
        "ours: --cache disk": lambda b: disk.__getitems__(with_seeds(b)),
        "ours: --cache ram": lambda b: ram.__getitems__(with_seeds(b)),
        "(augment a batch, CPU)": lambda b: transform(clips),
    }


def clips_per_second(way, clips, runs):
    """Median over the runs, after one warm-up, of loading all clips in batches."""
    batches = [range(clips)[first : first + BATCH] for first in range(0, clips, BATCH)]
    times = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        for batch in batches:
            way(batch)
        times.append(time.perf_counter() - started)
    return clips / statistics.median(times[1:])


def main():
    parser = Parser(__doc__)
    parser.add("--videos", type=number(int, least=BATCH), default=64, help="frame folders")
    parser.add("--runs", type=number(int, least=1), default=5, help="timed runs of each way")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    versions = f"torch {torch.__version__}, OpenCV {cv2.__version__}"
    print(f"{versions}, one thread, {args.videos} clips of 16 frames of 128x171")
    print(f"{'way':<28} {'clips/s':>10} {'x usual':>9}")
    with tempfile.TemporaryDirectory() as temporary:
        root, original = Path(temporary) / "128x171", Path(temporary) / "240x320"
        draw_frames(root, args.videos, 128, 171)
        draw_frames(original, args.videos, 240, 320)
        names = sorted(folder.name for folder in root.iterdir())
        usual = None
        for name, way in build_ways(root, original, names).items():
            speed = clips_per_second(way, len(names), args.runs)
            usual = usual or speed
            print(f"{name:<28} {speed:>10.1f} {speed / usual:>9.1f}")


if __name__ == "__main__":
    main()
