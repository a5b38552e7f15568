"""Videos that break video readers, each with the expected result of extraction.

`make_all` writes them; ffmpeg writes the codecs that OpenCV cannot, where it is installed.
"""

import os
import shutil
import subprocess
import wave

import cv2
import numpy as np
from video_charts import encoders

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
        "says_a_million.avi": (with_count(good, frame_count, 10**6), DECODED),
        "says_one.avi": (with_count(good, frame_count, 1), DECODED),
        "line\nend.avi": (good, "has a line break in its name"),
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
        "pipe.avi": "is not a file",
    }
    return outcomes | (write_codecs(folder) if shutil.which("ffmpeg") else {})


def with_count(video, position, count):
    """An AVI file whose header says it has `count` frames."""
    return video[:position] + count.to_bytes(4, "little") + video[position + 4 :]


def codecs():
    """{name: ffmpeg options} of videos that only ffmpeg writes."""
    h264 = "-c:v libx264 -pix_fmt yuv420p"
    field = "-vf tinterlace=interleave_top,setfield=tff"
    woven = "-flags +ildct+ilme"
    return {
        "one_frame.mp4": f"-frames:v 1 {h264}",
        "one_pixel.mkv": "-vf scale=1:1 -c:v ffv1",
        "odd_size.mkv": "-vf scale=33:17 -c:v ffv1",
        "variable_rate.mp4": f"-vf select=not(mod(n\\,3))+lt(n\\,10) -vsync vfr {h264}",
        "grey.mkv": "-pix_fmt gray -c:v ffv1",
        "ten_bits.mp4": "-c:v libx264 -pix_fmt yuv420p10le",
        "uhd.mp4": f"-vf scale=3840:2160 -frames:v 5 -preset ultrafast {h264}",
        "vp9.webm": "-c:v libvpx-vp9 -cpu-used 8 -deadline realtime",
        "mpeg1.mpg": "",
        "wmv.wmv": "",
        "gif.gif": "",
        "rotated.mp4": h264,
        "vp8.webm": "-c:v libvpx -deadline realtime",
        "hevc.mp4": "-c:v libx265 -x265-params log-level=none",
        "av1.mkv": "-c:v libsvtav1 -preset 12 -s 64x64",  # the least that the encoder takes
        "theora.ogv": "",
        "flash.flv": "",
        "h263.3gp": "-c:v h263 -s 176x144",
        "mjpeg.avi": "-c:v mjpeg",
        "mpeg4_b_frames.avi": "-c:v mpeg4 -bf 2",
        "prores.mov": "-c:v prores_ks",
        "alpha.webm": "-c:v libvpx-vp9 -pix_fmt yuva420p -cpu-used 8",
        "pixel_shape.mp4": f"-aspect 16:9 {h264}",
        "camera.mts": f"{field} {h264} -x264opts tff=1",
        "disc.m2ts": f"{field} {h264} -x264opts bff=1",
        "interlaced_h264.mp4": f"{field} {h264} -x264opts tff=1",
        "interlaced_mpeg4.avi": f"{field} -c:v mpeg4 {woven}",
        "broadcast.ts": f"{field} -c:v mpeg2video {woven}",
        "dvd.vob": f"{field} -c:v mpeg2video {woven} -aspect 16:9",
        "dv.avi": "-vf scale=720:576 -frames:v 8 -c:v dvvideo",
        "constant_luminance.mp4": f"{h264} -x264opts colormatrix=bt2020c",
        "log.mp4": f"{h264} -x264opts transfer=log100",
    }


def draw(path, options, size="64x48"):
    """Write FFmpeg's test picture of one second as a video. Returns whether ffmpeg can."""
    source = ("-f", "lavfi", "-i", f"testsrc=size={size}:rate=25:duration=1")
    command = ["ffmpeg", "-y", "-loglevel", "error", *source, *options.split(), path]
    return subprocess.run(command, capture_output=True).returncode == 0


def write_codecs(folder):
    """Write `codecs()`; those that this ffmpeg has no encoder for are left out."""
    written = {name: DECODED for name, options in codecs().items() if draw(folder / name, options)}
    if "rotated.mp4" in written:
        turn(folder / "rotated.mp4")
    return written


def write_every_encoder(folder):
    """A video by each encoder of ffmpeg, in the first container that takes it: list of paths."""
    folder.mkdir()
    paths = []
    for encoder in encoders():
        for suffix in (".mkv", ".avi", ".mov", ".gif"):
            path = folder / f"{encoder}{suffix}"
            if draw(path, f"-c:v {encoder} -frames:v 8 -strict -2", size="176x144"):
                paths.append(path)
                break
    return paths


def turn(path, matrix=(0, 1, -1, 0)):
    """Set a, b, c, d of the display matrix of an MP4 file's track; by default a quarter turn."""
    data = path.read_bytes()
    identity = b"".join(n.to_bytes(4, "big") for n in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    a, b, c, d = (number << 16 for number in matrix)
    track = data.index(identity, data.index(b"tkhd"))
    numbers = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    matrix = b"".join(n.to_bytes(4, "big", signed=True) for n in numbers)
    path.write_bytes(data[:track] + matrix + data[track + len(matrix) :])
