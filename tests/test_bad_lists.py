"""Broken lists and frame folders, through the real train.py: one line, and nothing is written."""

import posixpath

import cv2
import numpy as np
import pytest
from helpers import read_log, same_weights, train_command, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.splits import SplitError, read_split


@pytest.fixture
def copy(demo, tmp_path):
    """The lists and frames of the demo in a folder of the test's own; frames are hard links."""
    (tmp_path / "splits").mkdir()
    for path in (demo / "splits").iterdir():
        (tmp_path / "splits" / path.name).write_bytes(path.read_bytes())
    for path in demo.glob("frames/*/*/*"):
        link = tmp_path / path.relative_to(demo)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(path)
    (tmp_path / "frames" / "extraction.json").hardlink_to(demo / "frames" / "extraction.json")
    return tmp_path


# ==== ways to break the copy: functions of its root ====


def first_folder(root):
    return root / "frames" / (root / "splits" / "train.txt").read_text().split(" ")[0]


def replace(path, data):
    """Write a new file instead of through the hard link."""
    path.unlink()
    path.write_bytes(data)


def edit(old, new):
    def change(root):
        path = root / "splits" / "train.txt"
        text = path.read_bytes()
        assert old in text
        path.write_bytes(text.replace(old, new, 1))

    return change


def repeat_line(root):
    path = root / "splits" / "train.txt"
    first = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(first + path.read_bytes())


def respell_line(root):
    path = root / "splits" / "train.txt"
    first = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(path.read_bytes() + b"./" + first.replace(b"/", b"//"))


def respell_class(root):
    path = root / "splits" / "classes.txt"
    path.write_text(path.read_text() + " " + path.read_text().splitlines()[0] + " \n")


def keep_one_class(root):
    path = root / "splits" / "train.txt"
    lines = [line for line in path.read_text().splitlines(True) if line.endswith(" 0\n")]
    path.write_text("".join(lines))


def copy_a_line_of_val(root):
    line = (root / "splits" / "val.txt").read_text().splitlines(True)[0]
    with open(root / "splits" / "train.txt", "a") as file:
        file.write(line)


def remove(name):
    return lambda root: (root / "splits" / name).unlink()


def empty_list(root):
    (root / "splits" / "train.txt").write_text("\n")


def remove_folder(root):
    first_folder(root).rename(root / "moved")


def remove_frames(root):
    for frame in first_folder(root).iterdir():
        frame.unlink()


def remove_frame(root):
    (first_folder(root) / "000003.jpg").unlink()


def resize_frame(root):
    jpeg = cv2.imencode(".jpg", np.zeros((9, 9, 3), np.uint8))[1]
    replace(first_folder(root) / "000003.jpg", jpeg.tobytes())


def truncate_frame(root):
    frame = first_folder(root) / "000003.jpg"
    replace(frame, frame.read_bytes()[:-40])


def empty_frame(root):
    replace(first_folder(root) / "000003.jpg", b"")


def damage_settings(root):
    replace(root / "frames" / "extraction.json", b"{")


BROKEN = {
    "a class id is missing": (edit(b" 0\n", b"\n"), "expected 'video_frames_path class_id'"),
    "a class id is negative": (edit(b" 0\n", b" -1\n"), "expected 'video_frames_path class_id'"),
    "a class id is no number": (edit(b" 0\n", b" zero\n"), "expected 'video_frames_path class_id'"),
    "a class id is out of range": (edit(b" 2\n", b" 3\n"), "class id 3 is out of range 0-2"),
    "a class id has 5000 digits": (
        edit(b" 2\n", b" " + b"2" * 5000 + b"\n"),
        "is out of range 0-2",
    ),
    "a line has 100 kB": (edit(b" 0\n", b"x" * 100_000 + b"\n"), "'..."),
    "a path is absolute": (edit(b"Bouncing/", b"/Bouncing/"), "leaves the folder of frames"),
    "a path has a NUL": (
        edit(b"Bouncing/", b"Bouncing/\0"),
        "expected 'video_frames_path class_id'",
    ),
    "a video is spelt in two ways": (respell_line, "the same video as in line 1"),
    "two classes differ in blanks": (respell_class, "two classes are called"),
    "a line is repeated": (repeat_line, "the same video as in line 1"),
    "a path leaves the root": (edit(b"Bouncing/", b"../Bouncing/"), "leaves the folder of frames"),
    "a video is in two lists": (copy_a_line_of_val, "1 videos are in two of the lists"),
    "a list is absent": (remove("val.txt"), "make_splits.py writes it"),
    "the classes are absent": (remove("classes.txt"), "writes it"),
    "a list is empty": (empty_list, "lists no videos"),
    "there is one class": (keep_one_class, "needs two classes"),
    "a frame folder is absent": (remove_folder, "1 of 18 frame folders are missing"),
    "a frame folder is empty": (remove_frames, "no frames; rerun extract_frames.py"),
    "a frame is missing": (remove_frame, "frames are missing"),
    "a frame is cut short": (truncate_frame, "000003.jpg: damaged"),
    "a frame is empty": (empty_frame, "damaged"),
    "a frame is of another size": (resize_frame, "extract all videos with one --size"),
    "extraction.json is damaged": (damage_settings, "extraction.json: damaged"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_lists_and_frames_are_refused_in_one_line(case, copy, run_script):
    change, message = BROKEN[case]
    change(copy)
    error = run_script(*train_command(copy, copy / "run"), status=1).stderr
    assert message in error and error.count("\n") == 1
    if not case.startswith("a frame is"):  # which is noticed when it is read
        assert not (copy / "run").exists()


def test_other_paths_line_ends_blank_lines_and_a_byte_order_mark_change_nothing(
    copy, trained, run_script
):
    path = copy / "splits" / "train.txt"
    lines = path.read_text().replace("/", "//").splitlines()
    path.write_text("".join(f"./{line}\n" for line in lines))
    for name in ("train", "val", "test", "classes"):
        path = copy / "splits" / f"{name}.txt"
        lines = path.read_bytes().replace(b"\n", b"  \r\n\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + lines + b"  \n")
    run_script(*train_command(copy, copy / "run"))
    assert same_weights(weights(trained / "last.pt"), weights(copy / "run" / "last.pt"))


def test_a_label_that_contradicts_the_folder_gives_a_warning(copy, run_script):
    lines = (copy / "splits" / "train.txt").read_text().splitlines()
    first = next(line for line in lines if line.endswith(" 2"))
    edit(b" 2\n", b" 0\n")(copy)
    output = run_script(*train_command(copy, copy / "run", "--epochs", 1)).stderr
    assert f"{first[:-2]!r} has the id of another class" in output


@settings(max_examples=200, deadline=None)
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_a_list_or_a_named_mistake(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("list") / "train.txt"
    path.write_bytes(content)
    try:
        names, labels = read_split(path, num_classes=5)
    except SplitError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert len(names) == len(labels) == len(set(names)) and set(labels) <= set(range(5))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(blacklist_characters="\n\r"), min_size=1), unique=True))
def test_any_names_come_back_from_a_list(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("list") / "train.txt"
    names = [f"Class/{name}x" for name in names if ".." not in name and "\0" not in name]
    names = list(dict.fromkeys(map(posixpath.normpath, names)))  # as they are read
    path.write_bytes("".join(f"{name} 1\n" for name in names).encode("utf-8", "surrogatepass"))
    assert read_split(path, num_classes=2)[1] == [1] * len(names)
    if not any(0xD800 <= ord(letter) < 0xE000 for name in names for letter in name):
        assert read_split(path, num_classes=2)[0] == names


def test_collapsed_codes_are_reported(copy, trained, run_script):
    """All videos grey and alike give equal codes, if no batch statistics blow up the rounding."""
    assert "warning" not in (trained / "stdout.txt").read_text()
    grey = cv2.imencode(".jpg", np.full((20, 24, 3), 90, np.uint8))[1].tobytes()
    for path in (copy / "frames").glob("*/*/*.jpg"):
        replace(path, grey)
    flags = ("--colour-jitter", 0, "--freeze-batch-norm", "--epochs", 13, "--eval-every", 13)
    command = train_command(copy, copy / "run", *flags)
    lines = run_script(*command).stderr.splitlines()
    warnings = [line for line in lines if line.startswith("warning: the codes have collapsed")]
    assert ["for 10 epochs" in line for line in warnings] == [True, False]  # and at the end
    assert "for 12 epochs" in warnings[1] and "try --clips-per-class 15, then --lr" in warnings[1]
    assert read_log(copy / "run")[-1]["train/code_spread"] < 0.02
    stopped = run_script(*command, "--restart", "--stop-when-collapsed", status=1)
    assert "have collapsed" in stopped.stderr and "--restart" in stopped.stderr
    assert len(read_log(copy / "run")) == 10
