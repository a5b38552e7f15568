"""Known pictures through every codec and colour tag: ours, and those of the ffmpeg program.

python -m pytest tests/test_video_colours.py -s      # prints the tables
"""

import av
import cv2
import numpy as np
import pytest
from bad_videos import turn
from video_charts import (
    HAS_FFMPEG,
    HEIGHT,
    WIDTH,
    chart,
    encode,
    encoders,
    ffmpeg_picture,
    fields,
    interlace,
    moment_of,
    patches,
)

from datasets.picture import _orientation
from datasets.video import read_video

pytestmark = [
    pytest.mark.scripts,
    pytest.mark.skipif(not HAS_FFMPEG, reason="no ffmpeg program"),
]

X264 = "-c:v libx264 -qp 4"
MATRICES = {  # as ffmpeg's scale filter calls them: as its tag is called
    "bt709": "bt709",
    "fcc": "fcc",
    "bt470bg": "bt470bg",
    "smpte170m": "smpte170m",
    "smpte240m": "smpte240m",
    "bt2020": "bt2020nc",
}
FORMATS = ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le")


def tagged(matrix, tag, full):
    """Options that convert to a matrix and range, and name them in the video."""
    span = "pc" if full else "tv"
    scale = f"scale=out_color_matrix={matrix}:out_range={span}"
    scale += f",setparams=colorspace={tag}:range={span}"
    return f"-vf {scale} -colorspace {tag} -color_range {span}"


def tag_cases():
    """{name: (suffix, options)} of videos whose chart must come out as it was drawn."""
    cases = {}
    for matrix, tag in MATRICES.items():
        for full in (False, True):
            options = f"{tagged(matrix, tag, full)} {X264} -pix_fmt yuv420p"
            cases[f"H.264 {tag} {'full' if full else 'limited'}"] = ".mp4", options
    bt709, bt2020 = tagged("bt709", "bt709", False), tagged("bt2020", "bt2020nc", False)
    for name in FORMATS:
        cases[f"H.264 bt709 {name}"] = ".mkv", f"{bt709} {X264} -pix_fmt {name}"
    hdr = f"{bt2020} {X264} -pix_fmt yuv420p10le"
    cases |= {
        "H.264 no tag": (".mp4", f"{X264} -pix_fmt yuv420p"),
        "HEVC bt709": (".mp4", f"{bt709} -pix_fmt yuv420p -c:v libx265 -qp 4"),
        "HEVC bt2020 10 bits": (".mp4", f"{bt2020} -c:v libx265 -pix_fmt yuv420p10le"),
        "VP9 bt709": (".webm", f"{bt709} -pix_fmt yuv420p -c:v libvpx-vp9 -cpu-used 8 -crf 5"),
        "AV1 bt709": (".mp4", f"{bt709} -pix_fmt yuv420p -c:v libsvtav1 -qp 5 -preset 12"),
        "MPEG-2 bt709": (".ts", f"{bt709} -pix_fmt yuv420p -c:v mpeg2video -q:v 2"),
        "ProRes bt709": (".mov", f"{bt709} -c:v prores_ks -pix_fmt yuv422p10le"),
        "FFV1 yuv420p12le": (".mkv", "-c:v ffv1 -pix_fmt yuv420p12le"),
        "FFV1 with alpha": (".mkv", "-c:v ffv1 -pix_fmt yuva420p"),
        "RGB": (".mkv", "-c:v ffv1 -pix_fmt gbrp"),
        "RGB 16 bits": (".mkv", "-c:v ffv1 -pix_fmt gbrp16le"),
        "RGB with alpha": (".mov", "-c:v png -pix_fmt rgba"),
        "PQ and bt2020 primaries": (".mkv", f"{hdr} -color_trc smpte2084 -color_primaries bt2020"),
        "HLG": (".mkv", f"{hdr} -color_trc arib-std-b67"),
        "log transfer": (".mkv", f"{bt709} -pix_fmt yuv420p -color_trc log {X264}"),
        "GIF": (".gif", ""),
    }
    return cases


UNKNOWN_TO_SCALER = ["bt2020c", "YCgCo", "smpte2085", "ICtCp"]
UNKNOWN_TO_SCALER += ["chroma-derived-nc", "chroma-derived-c"]


def show(name, picture, other):
    levels = [
        [int(value[1, 0, 0]), int(value[0, 2, 1]), int(value[1, 2, 2])]
        for value in (patches(picture), patches(other))
    ]
    worst = np.abs(patches(picture) - patches(other)).max()
    print(f"{name:<40} red, grey, blue: ours {levels[0]}, ffmpeg {levels[1]}, worst {worst:.1f}")


@pytest.mark.parametrize("name", tag_cases())
def test_a_colour_chart_comes_out_as_it_was_drawn(tmp_path, name):
    suffix, options = tag_cases()[name]
    path = tmp_path / f"chart{suffix}"
    if not encode(path, np.stack([chart()] * 3), options):
        pytest.skip("ffmpeg here cannot write it")
    picture, reference = read_video(path, 1, (HEIGHT, WIDTH))[0], ffmpeg_picture(path)
    show(name, picture, reference)
    assert np.abs(patches(picture) - patches(chart())).max() < (16 if name == "GIF" else 6)
    assert np.abs(patches(picture) - patches(reference)).max() < 4


@pytest.mark.parametrize("tag", UNKNOWN_TO_SCALER)
def test_matrices_that_the_scaler_lacks_are_taken_as_the_ffmpeg_program_takes_them(tmp_path, tag):
    path = tmp_path / "chart.mp4"
    options = f"{X264} -pix_fmt yuv420p -x264opts colormatrix={tag}"
    if not encode(path, np.stack([chart()] * 3), options):
        pytest.skip("ffmpeg here cannot write it")
    picture, reference = read_video(path, 1, (HEIGHT, WIDTH))[0], ffmpeg_picture(path)
    assert np.abs(patches(picture)[0] - patches(chart())[0]).max() < 4, "the greys"
    if reference is not None:  # later versions of the program refuse these matrices
        show(f"H.264 {tag}", picture, reference)
        assert np.abs(patches(picture) - patches(reference)).max() < 4


def test_grey_video_is_grey(tmp_path):
    for name in ("gray", "gray10le", "gray16le", "ya8"):
        path = tmp_path / f"{name}.mkv"
        assert encode(path, chart()[None], f"-c:v ffv1 -pix_fmt {name}")
        picture = read_video(path, 1, (HEIGHT, WIDTH))[0]
        show(name, picture, ffmpeg_picture(path))
        assert np.abs(patches(picture)[0] - patches(chart())[0]).max() < 3
        assert np.ptp(picture.astype(int), axis=2).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("encoder", encoders())
def test_every_encoder_gives_the_picture_that_the_ffmpeg_program_reads(tmp_path, encoder):
    for suffix in (".mkv", ".avi", ".mov", ".gif"):
        path = tmp_path / f"chart{suffix}"
        if encode(path, np.stack([chart()] * 3), f"-c:v {encoder} -strict -2"):
            break
    else:
        pytest.skip("ffmpeg here cannot write it into a container of videos")
    reference = ffmpeg_picture(path)
    if reference is None:
        pytest.skip("ffmpeg here cannot read it")
    picture = read_video(path, 1, reference.shape[:2])[0]
    show(f"{encoder} {suffix}", picture, reference)
    most = 8 if encoder == "msvideo1" else 4  # 5 bits a colour, which ffmpeg widens otherwise
    assert np.abs(patches(picture) - patches(reference)).max() < most


# ==== interlaced ====

MPEG2 = "-c:v mpeg2video -q:v 2 -flags +ildct+ilme"
TOP, BOTTOM = f"{X264} -x264opts tff=1 -pix_fmt", f"{X264} -x264opts bff=1 -pix_fmt"
HEVC = "-c:v libx265 -x265-params interlace=tff:log-level=none -pix_fmt yuv420p"
WEAVES = {  # name: (suffix, whether the top field is first, options)
    "H.264 top first": (".mp4", True, f"{TOP} yuv420p"),
    "H.264 bottom first": (".mkv", False, f"{BOTTOM} yuv420p"),
    "H.264 top first, MTS": (".mts", True, f"{TOP} yuv420p"),
    "H.264 top first, 10 bits": (".mkv", True, f"{TOP} yuv422p10le"),
    "HEVC": (".mp4", True, HEVC),
    "MPEG-2": (".mpg", True, f"{MPEG2} -top 1"),
    "MPEG-2 bottom first": (".ts", False, f"{MPEG2} -top 0"),
    "MPEG-2, DVD": (".vob", True, f"{MPEG2} -top 1 -aspect 16:9"),
    "MPEG-4": (".avi", True, "-c:v mpeg4 -q:v 2 -flags +ildct+ilme -top 1"),
    "DV": (".avi", False, "-c:v dvvideo -pix_fmt yuv420p"),
    "DV in MOV": (".mov", False, "-c:v dvvideo -pix_fmt yuv420p"),
    "ProRes": (".mov", True, "-vf setfield=tff -c:v prores_ks -flags +ildct"),
    "FFV1": (".mkv", True, "-vf setfield=tff -c:v ffv1"),
}


@pytest.mark.parametrize("name", WEAVES)
def test_an_interlaced_video_gives_pictures_of_one_moment(tmp_path, name):
    suffix, top_first, options = WEAVES[name]
    path, moments = tmp_path / f"woven{suffix}", fields(24)
    field = "tff" if top_first else "bff"
    options = options if "-vf" in options else f"-vf setfield={field} {options}"
    if not encode(path, interlace(moments, top_first), options):
        pytest.skip("ffmpeg here cannot write it")
    clip = read_video(path, 12, (128, 171))
    assert [moment_of(picture) for picture in clip] == [
        2 * frame + (0 if top_first else 1) for frame in range(12)
    ]
    shown = moments[[moment_of(picture) for picture in clip]]
    shown = np.stack([cv2.resize(p, (171, 128), interpolation=cv2.INTER_AREA) for p in shown])
    difference = np.abs(clip.astype(int) - shown)
    worst = np.percentile(difference, 99)
    print(f"{name:<26} from the drawn moments: mean {difference.mean():.2f}, 99 % {worst:.0f}")
    assert difference.mean() < 3 and worst < 40
    assert np.array_equal(clip, read_video(path, 12, (128, 171))), "read twice, the same bytes"


# ==== turned ====

TURNS = {  # a, b, c, d of the display matrix: what a player shows of the picture
    (1, 0, 0, 1): lambda picture: picture,
    (0, 1, -1, 0): lambda picture: np.rot90(picture, -1),
    (-1, 0, 0, -1): lambda picture: np.rot90(picture, 2),
    (0, -1, 1, 0): lambda picture: np.rot90(picture, 1),
    (-1, 0, 0, 1): lambda picture: picture[:, ::-1],
    (1, 0, 0, -1): lambda picture: picture[::-1],
    (0, 1, 1, 0): lambda picture: picture.swapaxes(0, 1),
    (0, -1, -1, 0): lambda picture: np.rot90(picture, 2).swapaxes(0, 1),
}


@pytest.mark.parametrize("matrix", TURNS, ids=str)
def test_turned_and_mirrored_videos_are_shown_upright(tmp_path, matrix):
    path = tmp_path / "chart.mp4"
    if not encode(path, np.stack([chart()] * 3), f"{X264} -pix_fmt yuv420p"):
        pytest.skip("no ffmpeg with libx264")
    turn(path, matrix)
    expected = TURNS[matrix](chart())
    picture = read_video(path, 1, expected.shape[:2])[0]
    assert np.abs(patches(picture) - patches(expected)).max() < 6
    assert np.abs(patches(picture) - patches(ffmpeg_picture(path))).max() < 4
    assert read_video(path, 1, (96, None)).shape[2] == round(
        96 * expected.shape[1] / expected.shape[0]
    )


def test_side_data_that_pyav_does_not_know_does_not_hide_the_rotation(tmp_path, monkeypatch):
    path = tmp_path / "chart.mp4"
    if not encode(path, chart()[None], f"{X264} -pix_fmt yuv420p"):
        pytest.skip("no ffmpeg with libx264")

    def unlisted(_):  # as of MJPEG with EXIF
        raise ValueError("31 is not a valid Type")

    for matrix in list(TURNS)[:4]:
        turned = tmp_path / f"{matrix}.mp4"
        turned.write_bytes(path.read_bytes())
        turn(turned, matrix)
        with av.open(str(turned)) as container:
            frame = next(container.decode(video=0))
            expected = _orientation(frame)
            with monkeypatch.context() as patch:
                patch.setattr("datasets.picture.SideDataContainer", unlisted)
                assert _orientation(frame) == expected


def test_pixels_that_are_not_square_are_shown_in_shape(tmp_path):
    path = tmp_path / "wide.mp4"
    if not encode(path, chart()[None], f"{X264} -pix_fmt yuv420p -aspect 16:9"):
        pytest.skip("no ffmpeg with libx264")
    assert read_video(path, 1, (90, None)).shape == (1, 90, 160, 3)
