"""Pictures that are known, written as videos by the ffmpeg program, and what it reads from them."""

import shutil
import subprocess

import numpy as np

HEIGHT, WIDTH = 288, 352  # CIF, which H.261 and H.263 take too
COLOURS = np.array(
    [
        [(16, 16, 16), (64, 64, 64), (128, 128, 128), (235, 235, 235)],
        [(191, 0, 0), (0, 191, 0), (0, 0, 191), (191, 191, 0)],
        [(191, 0, 191), (0, 191, 191), (224, 172, 105), (90, 56, 37)],
        [(30, 60, 120), (200, 120, 40), (120, 200, 160), (250, 240, 60)],
    ],
    np.uint8,
)  # 4 x 4 patches
HAS_FFMPEG = shutil.which("ffmpeg") is not None
HARDWARE = ("_vaapi", "_v4l2m2m", "_qsv", "_omx", "_nvenc", "_cuvid", "_vulkan")


def chart():
    """The (HEIGHT, WIDTH, 3) uint8 RGB picture of COLOURS."""
    return COLOURS.repeat(HEIGHT // 4, axis=0).repeat(WIDTH // 4, axis=1)


def patches(picture):
    """Mean colour in the middle of each patch of a (H, W, 3) picture: (4, 4, 3) float."""
    rows, columns = picture.shape[0] // 4, picture.shape[1] // 4
    grid = picture[: 4 * rows, : 4 * columns].reshape(4, rows, 4, columns, 3)
    middle = grid[:, rows // 4 : -(rows // 4), :, columns // 4 : -(columns // 4)]
    return middle.mean(axis=(1, 3))


def encode(path, pictures, options, rate=25):
    """Write (T, H, W, 3) uint8 RGB pictures as a video. Returns whether ffmpeg can.

    options: of the ffmpeg program, as one string.
    """
    height, width = pictures.shape[1:3]
    command = ["ffmpeg", "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", str(rate), "-i", "-", *options.split(), str(path)]
    run = subprocess.run(command, input=pictures.tobytes(), capture_output=True)
    return run.returncode == 0 and path.stat().st_size > 0


def ffmpeg_picture(path):
    """The first picture that the ffmpeg program reads, (H, W, 3) uint8 RGB, or None."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-frames:v", "1", "-pix_fmt", "rgb24"]
    run = subprocess.run([*command, "-f", "image2pipe", "-c:v", "ppm", "-"], capture_output=True)
    if run.returncode or not run.stdout:
        return None
    _, size, _, data = run.stdout.split(b"\n", 3)
    width, height = map(int, size.split())
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def encoders():
    """Names of the video encoders of the ffmpeg program, those of hardware left out."""
    if not HAS_FFMPEG:
        return []
    command = ["ffmpeg", "-v", "error", "-encoders"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    names = [line.split()[1] for line in lines if line.startswith(" V") and "=" not in line]
    return [name for name in names if not name.endswith(HARDWARE)]


def fields(count):
    """`count` moments of a moving scene, (count, 576, 720, 3) uint8 RGB; each shows its number.

    Eight blocks at the top are the bits of i; a bar below moves by 12 pixels a moment.
    """
    scene = np.empty((count, 576, 720, 3), np.uint8)
    scene[:] = np.linspace(60, 160, 720).astype(np.uint8)[:, None]  # a ramp
    for moment in range(count):
        for bit in range(8):
            scene[moment, :96, 90 * bit : 90 * bit + 90] = 220 if moment >> bit & 1 else 30
        scene[moment, 192:, 12 * moment + 60 : 12 * moment + 180] = (220, 40, 40)
    return scene


def interlace(moments, top_first):
    """Frames of two moments each, (T, 576, 720, 3): the earlier one in the top field or bottom."""
    frames = moments[0::2].copy()
    first, second = (0, 1) if top_first else (1, 0)
    frames[:, first::2] = moments[0::2, first::2]
    frames[:, second::2] = moments[1::2, second::2]
    return frames


def moment_of(picture):
    """The number that the blocks of a picture of `fields` show."""
    height, width = picture.shape[:2]
    row = picture[height // 12, [width * (2 * bit + 1) // 16 for bit in range(8)]].mean(axis=1)
    return sum(1 << bit for bit in range(8) if row[bit] > 125)
