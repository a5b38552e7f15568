"""A small synthetic video data set that is named, foldered and listed as UCF101 is.

    python -m datasets.synthetic --output data/demo

Real .avi files of six actions that differ only in how one object moves. What it looks like, where
it is, how fast it goes, the background, a second object that stands still, a drifting camera and
noise are drawn the same way for every class, so that no single frame tells the class. As in UCF101
the clips of a group share their scene, and the official lists put whole groups into test.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

SIDE = 96  # pixels
FRAMES = (32, 48)  # least and most frames a clip
FPS = 25


# ==== the actions: phase (radians) -> x, y (of the amplitude), scale, angle (radians) ====


def _slide(phase):
    return np.sin(phase), 0, 1, 0


def _bounce(phase):
    return 0, np.sin(phase), 1, 0


def _orbit(phase):
    return np.cos(phase), np.sin(phase), 1, 0


def _spin(phase):
    return 0, 0, 1, phase


def _pulse(phase):
    return 0, 0, 1 + 0.5 * np.sin(phase), 0


def _swing(phase):
    return 0.5 * np.sin(phase), 0.25 * np.cos(2 * phase), 1, np.sin(phase)


ACTIONS = {
    "Bouncing": _bounce,
    "Orbiting": _orbit,
    "Pulsing": _pulse,
    "Sliding": _slide,
    "Spinning": _spin,
    "Swinging": _swing,
}


def _colour(rng):
    return tuple(int(c) for c in rng.integers(110, 256, 3))


def _background(rng):
    """A smooth random texture, larger than the frame so that a camera can drift over it."""
    coarse = rng.integers(0, 110, (5, 5, 3)).astype(np.float32)
    texture = cv2.resize(coarse, (2 * SIDE, 2 * SIDE), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        centre = tuple(int(c) for c in rng.integers(0, 2 * SIDE, 2))
        colour = tuple(int(c) for c in rng.integers(0, 130, 3))
        cv2.circle(texture, centre, int(rng.integers(3, 12)), colour, -1, cv2.LINE_AA)
    return texture.clip(0, 255).astype(np.uint8)


def _shape(rng):
    """A random polygon about the origin, longer than wide, so that a turn can be seen."""
    corners = int(rng.integers(3, 7))
    angles = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.25, 0.25, corners)) / corners
    points = np.stack([np.cos(angles), 0.55 * np.sin(angles)], axis=1)  # (corners, 2)
    turn = rng.uniform(0, 2 * np.pi)
    return points @ _rotation(turn).T


def _rotation(angle):
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


def _draw(frame, shape, centre, radius, angle, colour):
    points = centre + radius * shape @ _rotation(angle).T
    fixed = np.round(points * 16).astype(np.int32)  # four fractional bits
    cv2.fillPoly(frame, [fixed], colour, cv2.LINE_AA, shift=4)
    tip = fixed[:1].repeat(2, axis=0)
    cv2.polylines(frame, [tip], True, (255, 255, 255), 5, cv2.LINE_AA, shift=4)


def render_clip(action, scene_seed, clip_seed):
    """One clip of `action` (a key of ACTIONS): (T, SIDE, SIDE, 3) uint8 BGR.

    scene_seed fixes background, objects and colours; clip_seed where and how fast things move.
    """
    scene, rng = np.random.default_rng(scene_seed), np.random.default_rng(clip_seed)
    background = _background(scene)
    shape, colour, still, still_colour = (
        _shape(scene),
        _colour(scene),
        _shape(scene),
        _colour(scene),
    )
    frames = int(rng.integers(*FRAMES))
    radius, amplitude = rng.uniform(0.16, 0.22) * SIDE, rng.uniform(0.2, 0.28) * SIDE
    home, still_home = rng.uniform(0.4, 0.6, 2) * SIDE, rng.uniform(0.1, 0.9, 2) * SIDE
    cycles, start = rng.uniform(1.5, 3), rng.uniform(0, 2 * np.pi)
    direction = rng.choice([-1, 1])
    drift_from, drift_to = rng.uniform(0, SIDE / 8, (2, 2))
    clip = np.empty((frames, SIDE, SIDE, 3), np.uint8)
    for t in range(frames):
        drift = drift_from + (drift_to - drift_from) * t / frames
        x, y = np.round(drift).astype(int)
        frame = background[y : y + SIDE, x : x + SIDE].copy()
        _draw(frame, still, still_home - drift, 0.6 * radius, 0, still_colour)
        phase = start + direction * 2 * np.pi * cycles * t / frames
        dx, dy, scale, angle = ACTIONS[action](phase)
        centre = home - drift + amplitude * np.array([dx, dy])
        _draw(frame, shape, centre, radius * scale, angle, colour)
        noisy = frame + rng.normal(0, 6, frame.shape)
        clip[t] = noisy.clip(0, 255).astype(np.uint8)
    return clip


def write_clip(path, action, scene_seed, clip_seed):
    """Write one clip as Motion-JPEG AVI to `path`, aside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial.avi")
    codec = cv2.VideoWriter_fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(aside), cv2.CAP_OPENCV_MJPEG, codec, FPS, (SIDE, SIDE))
    if not writer.isOpened():
        raise OSError(f"{path}: OpenCV cannot write Motion-JPEG videos there")
    for frame in render_clip(action, scene_seed, clip_seed):
        writer.write(frame)
    writer.release()
    os.replace(aside, path)


def make_dataset(output, groups=30, clips=2, test_groups=6, seed=0, classes=tuple(ACTIONS)):
    """Write the videos that are not there yet, and the lists in UCF101's official format.

    <output>/videos/<Class>/v_<Class>_gNN_cMM.avi; <output>/annotations/classInd.txt,
    trainlist01.txt and testlist01.txt. The first `test_groups` groups of each class are the test
    set. The number of videos is len(classes) * groups * clips.
    """
    output = Path(output)
    jobs, train, test = [], [], []
    for label, action in enumerate(classes):
        for group in range(1, groups + 1):
            for clip in range(1, clips + 1):
                name = f"{action}/v_{action}_g{group:02d}_c{clip:02d}.avi"
                scene_seed, clip_seed = [seed, label, group], [seed, label, group, clip]
                if not (output / "videos" / name).exists():
                    jobs.append((output / "videos" / name, action, scene_seed, clip_seed))
                (test if group <= test_groups else train).append((name, label + 1))
    with ProcessPoolExecutor() as pool:
        results = [pool.submit(write_clip, *job) for job in jobs]
        for result in tqdm(results, unit="video", desc="drawing", disable=not jobs):
            result.result()
    annotations = output / "annotations"
    annotations.mkdir(parents=True, exist_ok=True)
    index = "".join(f"{label} {name}\n" for label, name in enumerate(classes, start=1))
    (annotations / "classInd.txt").write_text(index)
    (annotations / "trainlist01.txt").write_text("".join(f"{n} {c}\n" for n, c in train))
    (annotations / "testlist01.txt").write_text("".join(f"{n}\n" for n, _ in test))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, help="folder for videos/ and annotations/")
    parser.add_argument("--groups", type=int, default=30, help="scenes a class (default 30)")
    parser.add_argument("--clips", type=int, default=2, help="clips a scene (default 2)")
    parser.add_argument("--test-groups", type=int, default=6, help="scenes for test (default 6)")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (default 0)")
    args = parser.parse_args()
    make_dataset(args.output, args.groups, args.clips, args.test_groups, args.seed)


if __name__ == "__main__":
    main()
