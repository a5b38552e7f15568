"""Clips a second of the usual loader, of our frame folders and of our caches, on one core.

    python -m benchmarks.load                  # draws 64 videos first

The usual way opens each JPEG (240x320, as UCF101 is) with PIL, resizes to 128x171, crops 112x112,
normalises and stacks frame by frame in Python; a second row gives it frames of 128x171, as
extract_frames.py makes them. Ours gives uint8 clips, which the device crops and normalises for a
whole batch; that has a row of its own, on the CPU, and on a GPU runs beside the loading. Every row
makes the same clips of 16 frames from 32 in one process with one thread; medians of --runs.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.cache import CachedDataset, build_cache
from datasets.frames import FrameDataset
from datasets.transforms import augment

KINETICS = {"mean": [0.43216, 0.394666, 0.37645], "std": [0.22803, 0.22145, 0.216989]}
PREPROCESSING = {"size": 112, "crop": 0.875, "channels": "RGB", "range": 1.0, **KINETICS}
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
    """A training clip as most published loaders make it: (3, 16, 112, 112) float32."""
    from PIL import Image
    from torchvision.transforms import functional

    paths = sorted(folder.glob("*.jpg"))
    top, left = random.randrange(17), random.randrange(60)
    frames = []
    for path in paths[::2]:
        image = Image.open(path).convert("RGB").resize((171, 128), Image.BILINEAR)
        image = functional.crop(image, top, left, 112, 112)
        frames.append(functional.normalize(functional.to_tensor(image), **KINETICS))
    return torch.stack(frames, dim=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--videos", type=int, default=64, help="frame folders (default 64)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs (default 5)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root, original = Path(temporary) / "128x171", Path(temporary) / "240x320"
        draw_frames(root, args.videos, 128, 171)
        draw_frames(original, args.videos, 240, 320)
        names = sorted(folder.name for folder in root.iterdir())
        data = FrameDataset(names, [0] * len(names), root, 16)
        path = build_cache(data, 32, Path(temporary) / "cache", 1)
        ram = CachedDataset(data, path, "ram", torch.device("cpu"))
        disk = CachedDataset(data, path, "disk", torch.device("cpu"))
        batches = [
            [(i, i) for i in range(first, min(first + BATCH, len(names)))]
            for first in range(0, len(names), BATCH)
        ]
        clips = ram.__getitems__(batches[0])[0]
        generator = torch.Generator()
        ways = {
            "usual: PIL, 240x320": lambda b: torch.stack(
                [usual_clip(original / names[i]) for i, _ in b]
            ),
            "usual: PIL, 128x171": lambda b: torch.stack(
                [usual_clip(root / names[i]) for i, _ in b]
            ),
            "ours: JPEG frame folders": lambda b: torch.stack([data[item][0] for item in b]),
            "ours: --cache disk": disk.__getitems__,
            "ours: --cache ram": ram.__getitems__,
            "(augment a batch, CPU)": lambda b: augment(
                clips, PREPROCESSING, crop_scale=(0.7, 1.0), flip=True, colour_jitter=0.2,
                generator=generator,
            ),
        }  # fmt: skip
        print(f"torch {torch.__version__}, OpenCV {cv2.__version__}, one thread, "
              f"{len(names)} clips of 16 frames of 128x171")  # fmt: skip
        print(f"{'way':<28} {'clips/s':>10} {'x usual':>9}")
        usual = None
        for name, way in ways.items():
            times = []
            for _ in range(args.runs + 1):
                started = time.perf_counter()
                for batch in batches:
                    way(batch)
                times.append(time.perf_counter() - started)
            speed = len(names) / statistics.median(times[1:])
            usual = usual or speed
            print(f"{name:<28} {speed:>10.1f} {speed / usual:>9.1f}")


if __name__ == "__main__":
    main()
