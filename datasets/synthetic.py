r"""A small synthetic video data set with the names, folders and lists of UCF101.

    python -m datasets.synthetic --output data/demo
    python -m datasets.synthetic --output data/rehearsal --classes 101 \
        --videos 13320 --groups 25 --test-groups 7 --side 240    # like UCF101

Real .avi files of six actions that differ only in how one object moves. Its
look, position and speed, the background, a second object that does not move, a
moving camera and noise are drawn in the same way for every class, so that no
single frame shows the class. As in UCF101, the clips of a group have the same
scene, and the official lists put whole groups into test.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from utils.argtypes import number
from utils.config import Parser
from utils.errors import UserError, exit_on_user_error
from utils.terminal import progress

FRAMES = (32, 48)  # frames per clip: the minimum, and the first number above the maximum
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


def class_names(count):
    """`count` classes: the actions or, if these are not enough, variants such as "Sliding7"."""
    if count <= len(ACTIONS):
        return list(ACTIONS)[:count]
    names = [f"{action}{number}" for number in range(1, 21) for action in ACTIONS]
    if count > len(names):
        raise UserError(f"--classes {count}: there are only {len(names)} variants of the actions")
    return names[:count]


def _variant(name):
    """(action, minimum and maximum of cycles per clip, size of the object) of a class name."""
    action = name.rstrip("0123456789")
    if name == action:
        return ACTIONS[action], (1.5, 3), 1
    speed, size = divmod(int(name[len(action) :]) - 1, 5)
    return ACTIONS[action], (0.8 * speed + 0.6, 0.8 * speed + 1), 0.5 + 0.2 * size


def _colour(rng):
    return tuple(int(c) for c in rng.integers(110, 256, 3))


def _background(rng, side):
    """A smooth random texture, twice the frame's side so that a camera can drift over it."""
    coarse = rng.integers(0, 110, (5, 5, 3)).astype(np.float32)
    texture = cv2.resize(coarse, (2 * side, 2 * side), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        centre = tuple(int(c) for c in rng.integers(0, 2 * side, 2))
        radius = int(rng.uniform(0.03, 0.12) * side)
        colour = tuple(int(c) for c in rng.integers(0, 130, 3))
        cv2.circle(texture, centre, radius, colour, -1, cv2.LINE_AA)
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
    thickness = max(1, len(frame) // 20)
    cv2.polylines(frame, [tip], True, (255, 255, 255), thickness, cv2.LINE_AA, shift=4)


def render_clip(name, scene_seed, clip_seed, side=96):
    """One clip of the class `name` (see `class_names`): (T, side, side, 3) uint8 BGR.

    scene_seed fixes background, objects and colours; clip_seed where and how fast things move.
    """
    scene, rng = np.random.default_rng(scene_seed), np.random.default_rng(clip_seed)
    background = _background(scene, side)
    shape, colour = _shape(scene), _colour(scene)
    still, still_colour = _shape(scene), _colour(scene)
    action, cycle_range, size = _variant(name)
    frames = int(rng.integers(*FRAMES))
    radius, amplitude = size * rng.uniform(0.16, 0.22) * side, rng.uniform(0.2, 0.28) * side
    home, still_home = rng.uniform(0.4, 0.6, 2) * side, rng.uniform(0.1, 0.9, 2) * side
    cycles, start = rng.uniform(*cycle_range), rng.uniform(0, 2 * np.pi)
    direction = rng.choice([-1, 1])
    drift_from, drift_to = rng.uniform(0, side / 8, (2, 2))
    clip = np.empty((frames, side, side, 3), np.uint8)
    for t in range(frames):
        drift = drift_from + (drift_to - drift_from) * t / frames
        x, y = np.round(drift).astype(int)
        frame = background[y : y + side, x : x + side].copy()
        _draw(frame, still, still_home - drift, 0.6 * radius, 0, still_colour)
        phase = start + direction * 2 * np.pi * cycles * t / frames
        dx, dy, scale, angle = action(phase)
        centre = home - drift + amplitude * np.array([dx, dy])
        _draw(frame, shape, centre, radius * scale, angle, colour)
        noisy = frame + rng.normal(0, 6, frame.shape)
        clip[t] = noisy.clip(0, 255).astype(np.uint8)
    return clip


def write_clip(path, name, scene_seed, clip_seed, side=96):
    """Write one clip to `path` as a Motion-JPEG AVI, which is complete whenever it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial.avi")  # OpenCV needs the suffix .avi
    codec = cv2.VideoWriter_fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(temporary), cv2.CAP_OPENCV_MJPEG, codec, FPS, (side, side))
    if not writer.isOpened():
        raise OSError(f"{path}: OpenCV cannot write Motion-JPEG videos there")
    for frame in render_clip(name, scene_seed, clip_seed, side):
        writer.write(frame)
    writer.release()
    os.replace(temporary, path)


def make_dataset(output, classes=6, groups=50, videos=600, test_groups=10, side=96, seed=0):
    """Write the videos that are not there yet, and the lists in UCF101's official format.

    <output>/videos/<Class>/v_<Class>_gNN_cMM.avi; <output>/annotations/classInd.txt,
    trainlist01.txt and testlist01.txt. The `videos` are divided evenly among `groups` scenes of
    each of `classes` classes; the first `test_groups` groups of each class are the test set.
    side: pixels. Raises UserError for more classes than there are variants.
    """
    output, names = Path(output), class_names(classes)
    num_scenes, jobs, train, test = classes * groups, [], [], []
    for scene in range(num_scenes):
        label, group = scene // groups, scene % groups + 1
        num_clips = videos * (scene + 1) // num_scenes - videos * scene // num_scenes
        for clip in range(1, 1 + num_clips):
            name = names[label]
            video = f"{name}/v_{name}_g{group:02d}_c{clip:02d}.avi"
            scene_seed, clip_seed = [seed, label, group], [seed, label, group, clip]
            if not (output / "videos" / video).exists():
                jobs.append((output / "videos" / video, name, scene_seed, clip_seed, side))
            (test if group <= test_groups else train).append((video, label + 1))
    with ProcessPoolExecutor() as pool:
        results = [pool.submit(write_clip, *job) for job in jobs]
        for result in progress(results, "drawing", unit="video", is_shown=bool(jobs)):
            result.result()
    _write_lists(output / "annotations", names, train, test)


def _write_lists(folder, names, train, test):
    """The official lists; train, test: pairs (video, class id), which start at 1."""
    lists = {
        "classInd": [f"{class_id} {name}\n" for class_id, name in enumerate(names, start=1)],
        "trainlist01": [f"{video} {class_id}\n" for video, class_id in train],
        "testlist01": [f"{video}\n" for video, _ in test],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("".join(lines))


def build_parser():
    parser, positive = Parser(__doc__), number(int, least=1)
    add = parser.add
    add("--output", required=True, metavar="DIR", help="folder for videos/ and annotations/")
    add("--classes", type=positive, default=6, help="number of classes, at most 120")
    add("--groups", type=positive, default=50, help="scenes per class")
    add("--videos", type=positive, default=600, help="number of videos of all classes")
    add("--test-groups", type=number(int, least=0), default=10, help="scenes per class for test")
    add("--side", type=number(int, least=16), default=96, help="height and width in pixels")
    add("--seed", type=number(int, least=0), default=0, help="random seed for everything drawn")
    return parser


if __name__ == "__main__":
    args = build_parser().parse_args()
    with exit_on_user_error("datasets.synthetic", "--side"):
        make_dataset(**vars(args))
