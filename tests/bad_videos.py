"""Videos that break video readers: each with what extraction is to make of it.

`make_all` writes them; ffmpeg writes the codecs that OpenCV cannot, where it is installed.
"""

import os
import shutil
import subprocess
import wave

import cv2
import numpy as np

from datasets.synthetic import write_clip

DECODED = "decoded"
NAMES = (
    "n" * 200,
    "quo'te\" \\",
    "ünï→",
    "--dash",
    "br[a]c*k?",
    " sp ace ",
    "%d",
    "a:b",
    "-",
    "t\tab",
)


def make_all(folder):
    """Write every bad video to `folder`. Returns {name: DECODED or the start of the reason}."""
    folder.mkdir(parents=True)
    write_clip(folder / "good.avi", "Sliding", 1, 1, side=40)
    good = (folder / "good.avi").read_bytes()
    frame_count = good.index(b"avih") + 24  # where the AVI header says how many frames follow
    image = np.full((48, 64, 3), 90, np.uint8)
    contents = {
        "good.avi": (good, DECODED),
        "empty.avi": (b"", "is empty"),
        "header.avi": (good[:100], "cannot be opened as a video"),
        "middle.avi": (good[: len(good) // 2], DECODED),
        "last_frame.avi": (good[:-3000], DECODED),
        "text.avi": (b"hello, this is no video\n" * 100, "cannot be opened as a video"),
        "noise.mp4": (np.random.default_rng(0).bytes(50_000), "cannot be opened as a video"),
        "image.mp4": (cv2.imencode(".png", image)[1].tobytes(), "cannot be opened as a video"),
        "playlist.mp4": (b"ffconcat version 1.0\nfile 'good.avi'\n", "cannot be opened as a video"),
        "says_a_million.avi": (said(good, frame_count, 10**6), DECODED),
        "says_one.avi": (said(good, frame_count, 1), DECODED),
        "line\nend.avi": (good, "has a line end in its name"),
        **{f"{name}.avi": (good, DECODED) for name in NAMES},
        os.fsdecode(b"bytes\xff.avi"): (good, DECODED),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    outcomes = {name: outcome for name, (_, outcome) in contents.items()}
    with wave.open(str(folder / "audio.mp4"), "wb") as sound:
        sound.setnchannels(1), sound.setsampwidth(2), sound.setframerate(8000)
        sound.writeframes(bytes(8000))
    (folder / "link.avi").symlink_to("nowhere")
    (folder / "circle.avi").symlink_to("circle.avi")
    (folder / "folder.avi").mkdir()
    os.mkfifo(folder / "pipe.avi")
    outcomes |= {
        "audio.mp4": "cannot be opened as a video",
        "link.avi": "cannot be opened: No such file",
        "circle.avi": "cannot be opened: Too many levels",
        "folder.avi": "is not a file",
        "pipe.avi": "is not a file",
    }
    return outcomes | (write_codecs(folder) if shutil.which("ffmpeg") else {})


def said(video, position, count):
    """An AVI file whose header says it has `count` frames."""
    return video[:position] + count.to_bytes(4, "little") + video[position + 4 :]


def write_codecs(folder):
    """Videos that only ffmpeg writes; those its build has no encoder for are left out."""
    h264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
    codecs = {
        "one_frame.mp4": ("-frames:v", "1", *h264),
        "one_pixel.mkv": ("-vf", "scale=1:1", "-c:v", "ffv1"),
        "odd_size.mkv": ("-vf", "scale=33:17", "-c:v", "ffv1"),
        "variable_rate.mp4": ("-vf", "select=not(mod(n\\,3))+lt(n\\,10)", "-vsync", "vfr", *h264),
        "grey.mkv": ("-pix_fmt", "gray", "-c:v", "ffv1"),
        "ten_bits.mp4": ("-c:v", "libx264", "-pix_fmt", "yuv420p10le"),
        "uhd.mp4": ("-vf", "scale=3840:2160", "-frames:v", "5", "-preset", "ultrafast", *h264),
        "vp9.webm": ("-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime"),
        "mpeg1.mpg": (),
        "wmv.wmv": (),
        "gif.gif": (),
        "rotated.mp4": h264,
    }
    source = ("-f", "lavfi", "-i", "testsrc=size=64x48:rate=25:duration=1")
    written = {}
    for name, options in codecs.items():
        command = ["ffmpeg", "-y", "-loglevel", "error", *source, *options, folder / name]
        if subprocess.run(command, capture_output=True).returncode == 0:
            written[name] = DECODED
    if "rotated.mp4" in written:
        turn(folder / "rotated.mp4")
    return written


def turn(path):
    """Set the display matrix of an MP4 file's track to a turn by 90 degrees."""
    data = path.read_bytes()
    identity = b"".join(n.to_bytes(4, "big") for n in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    quarter = (0, 1 << 16, 0, (1 << 32) - (1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    track = data.index(identity, data.index(b"tkhd"))
    matrix = b"".join(n.to_bytes(4, "big") for n in quarter)
    path.write_bytes(data[:track] + matrix + data[track + len(matrix) :])
