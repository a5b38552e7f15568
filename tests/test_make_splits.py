"""make_splits.py: the published counts, whole groups, and what it refuses."""

import random
import time
from collections import Counter

import cv2
import numpy as np
import pytest
from helpers import ROOT

import make_splits
from datasets.groups import Video, hold_out
from datasets.splits import read_split
from utils.errors import UserError

UCF101 = "splits/ucfTrainTestlist"
HMDB51 = "splits/testTrainMulti_7030_splits"


def split(tmp_path, *flags):
    """Run main on `flags`; the lists as {"train": [(name, label)], ...} and the class names."""
    parser = make_splits.build_parser()
    make_splits.main(parser.parse_args([*map(str, flags), "--output", str(tmp_path / "splits")]))
    classes = (tmp_path / "splits" / "classes.txt").read_text(encoding="utf-8").split("\n")[:-1]
    splits = ("train", "val", "test")
    lists = {p: read_split(tmp_path / "splits" / f"{p}.txt", len(classes)) for p in splits}
    return {p: list(zip(*lists[p], strict=True)) for p in splits}, classes


def official(tmp_path, annotations, dataset, fold, *flags):
    lists = "--dataset", dataset, "--annotations", annotations, "--fold", fold
    return split(tmp_path, *lists, "--frames", tmp_path, "--no-check-frames", *flags)


def split_folder(tmp_path, *flags):
    lists = "--dataset", "folder", "--frames", tmp_path / "frames", "--val-fraction", 0.1
    return split(tmp_path, *lists, *flags)


def make_tree(root, names, frames=2):
    for index, name in enumerate(names):
        draw_frames(root / name, np.random.default_rng(index).random(3), frames)


def draw_frames(folder, colour, frames=2):
    """A frame folder with pictures of noise about a colour, three numbers from 0 to 1."""
    folder.mkdir(parents=True)
    for index in range(frames):
        noise = np.random.default_rng(index).normal(0, 8, (16, 16, 3))
        picture = np.clip(255 * np.array(colour) + noise, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{index:06d}.jpg"), picture)


@pytest.mark.parametrize(
    ("dataset", "folder", "fold", "train", "test"),
    [
        ("ucf101", UCF101, 1, 9537, 3783),
        ("ucf101", UCF101, 2, 9586, 3734),
        ("ucf101", UCF101, 3, 9624, 3696),
        ("hmdb51", HMDB51, 1, 3570, 1530),
        ("hmdb51", HMDB51, 2, 3570, 1530),
        ("hmdb51", HMDB51, 3, 3570, 1530),
    ],
)
def test_official_counts(tmp_path, data, dataset, folder, fold, train, test):
    lists, classes = official(tmp_path, data(folder), dataset, fold, "--val-fraction", 0)
    assert (len(lists["train"]), len(lists["val"]), len(lists["test"])) == (train, 0, test)
    assert len(classes) == {"ucf101": 101, "hmdb51": 51}[dataset]
    for subset in ("train", "test"):
        assert {label for _, label in lists[subset]} == set(range(len(classes)))
        for name, label in lists[subset]:
            assert name.split("/")[0] == classes[label]


@pytest.mark.parametrize(
    ("dataset", "folder", "readme"),
    [
        ("ucf101", UCF101, "{} training, {} validation and {} test videos for UCF101 fold 1"),
        ("hmdb51", HMDB51, "{}, {} and {} for HMDB51"),
    ],
)
def test_validation_takes_whole_groups_of_every_class(tmp_path, data, dataset, folder, readme):
    lists, classes = official(tmp_path, data(folder), dataset, 1)
    counts = [len(lists[name]) for name in ("train", "val", "test")]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.format(*counts) in " ".join(text.split())

    def group(name):
        folder, _, video = name.partition("/")
        if dataset == "ucf101":
            return folder, video.rsplit("_", 1)[0]
        return folder, video.rpartition(f"_{folder}_")[0]

    train, val, test = ({group(name) for name, _ in lists[p]} for p in ("train", "val", "test"))
    assert not train & val and not val & test and not train & test
    total = Counter(label for subset in ("train", "val") for _, label in lists[subset])
    held = Counter(label for _, label in lists["val"])
    assert set(held) == set(range(len(classes)))
    assert all(0.04 <= held[c] / total[c] <= 0.16 for c in total)
    assert sum(held.values()) / sum(total.values()) == pytest.approx(0.1, abs=0.01)


def test_the_seed_chooses_the_groups(tmp_path, data):
    def val(seed):
        return official(tmp_path, data(UCF101), "ucf101", 1, "--seed", seed)[0]["val"]

    first = val(0)
    assert first == val(0)
    assert first != val(1)


def test_folder_with_named_test_groups(tmp_path):
    names = [f"{c}/{i}_{i % 10}_x" for c in ("hug", "kick it") for i in range(20)]
    make_tree(tmp_path / "frames", names)
    groups = "--group-pattern", r"_(\d+)_", "--test-groups", "3,7"
    lists, classes = split_folder(tmp_path, *groups)
    groups = {p: {name.split("_")[1] for name, _ in lists[p]} for p in lists}
    assert classes == ["hug", "kick it"]
    assert groups["test"] == {"3", "7"} and len(lists["test"]) == 8
    assert len(groups["val"]) == 1 and not groups["val"] & groups["train"]
    assert groups["val"] | groups["train"] == set("01245689")


def test_folder_without_a_pattern_splits_by_class(tmp_path, capsys):
    make_tree(tmp_path / "frames", [f"{c}/v{i}" for c in "abc" for i in range(20)])
    lists, _ = split_folder(tmp_path)
    assert Counter(label for _, label in lists["test"]) == {0: 4, 1: 4, 2: 4}
    assert Counter(label for _, label in lists["val"]) == {0: 2, 1: 2, 2: 2}
    assert "every video is its own group" in capsys.readouterr().out


def test_the_last_group_of_a_class_stays_in_train(tmp_path):
    make_tree(tmp_path / "frames", ["a/v_1_0", "a/v_1_1", "b/v_1_0", "b/v_2_0"])
    lists, _ = split_folder(tmp_path, "--group-pattern", r"_(\d+)_", "--test-fraction", 0.9)
    assert {label for _, label in lists["train"]} == {0, 1}


def test_missing_and_incomplete_frame_folders_are_refused(tmp_path, capsys):
    frames, lists = tmp_path / "frames", tmp_path / "lists"
    lists.mkdir()
    names = [f"A/v_A_g0{g}_c0{c}" for g in (1, 2, 3) for c in (1, 2)]
    (lists / "classInd.txt").write_text("1 A\r\n")
    (lists / "trainlist01.txt").write_text("".join(f"{n}.avi 1\r\n" for n in names[2:]))
    (lists / "testlist01.txt").write_text("".join(f"{n}.avi\r\n" for n in names[:2]))
    make_tree(frames, names[:-1], frames=4)
    (frames / "extraction.json").write_text('{"num_frames": 4}')
    (frames / names[0] / "000002.jpg").unlink()
    flags = ["--dataset", "ucf101", "--annotations", lists, "--frames", frames, "--val-fraction", 0]
    with pytest.raises(SystemExit, match="--allow-missing"):
        split(tmp_path, *flags)
    out = capsys.readouterr().out
    assert "2 of 6 videos" in out and names[0] in out and names[-1] in out
    assert not (tmp_path / "splits").exists()
    lists, _ = split(tmp_path, *flags, "--allow-missing")
    assert [len(lists[p]) for p in ("train", "val", "test")] == [3, 0, 1]
    flags[flags.index(frames)] = tmp_path / "elsewhere"
    with pytest.raises(UserError, match="no frame folder of any video; no such folder"):
        split(tmp_path, *flags, "--allow-missing")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "ucf101"], "needs --annotations"),
        (
            ["--dataset", "ucf101", "--annotations", "nowhere"],
            "nowhere: no such folder",
        ),
        (
            ["--dataset", "hmdb51", "--annotations", "nowhere"],
            "nowhere: no such folder",
        ),
        (["--dataset", "folder", "--test-groups", "9"], "no video has the group '9'"),
        (["--dataset", "folder", "--group-pattern", "x"], "does not match the video"),
        (["--dataset", "folder", "--group-pattern", "("], "unterminated"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, flags, message):
    make_tree(tmp_path / "frames", ["a/v1", "a/v2"])
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        split(tmp_path, *flags, "--frames", tmp_path / "frames")


def test_classes_that_differ_in_blanks_are_refused(tmp_path):
    make_tree(tmp_path / "frames", [f"{name}/v{i}" for name in ("a", "a ", "b") for i in range(4)])
    with pytest.raises(UserError, match="two classes are called 'a'"):
        split_folder(tmp_path)
    assert not (tmp_path / "splits").exists()


# ==== groups ====


def test_groups_of_a_file(tmp_path):
    names = [f"{c}/v{i}" for c in "ab" for i in range(6)]
    make_tree(tmp_path / "frames", names)
    rows = [("night, rain" if name[-1] in "13" else name[-1], f"{name}.mp4") for name in names]
    csv = tmp_path / "groups.csv"
    csv.write_text("recording,video\n" + "".join(f'"{group}",{video}\n' for group, video in rows))
    lists, _ = split_folder(tmp_path, "--groups", csv, "--test-groups", "0,2", "--val-fraction", 0)
    assert {name[-1] for name, _ in lists["test"]} == {"0", "2"}
    again, _ = split_folder(tmp_path, "--groups", tmp_path / "splits" / "groups.csv", "--seed", 3)
    sides = [{name for name, _ in again[split]} for split in ("train", "val", "test")]
    night = {"a/v1", "a/v3", "b/v1", "b/v3"}
    assert any(night <= side for side in sides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,group\na/v1,1\n", "its first line must be video,recording"),
        ("video,recording\na/v1,1\n", "no line for 1 videos, such as a/v2"),
        ("video,recording\na/v1,1\na/v2\n", ":3: expected video,recording"),
        ("video,recording\na/v1,1\na/v1,2\n", "a/v1 is in two recordings"),
    ],
)
def test_mistakes_in_a_file_of_groups(tmp_path, text, message):
    make_tree(tmp_path / "frames", ["a/v1", "a/v2"])
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        split_folder(tmp_path, "--groups", tmp_path / "groups.csv")


def test_groups_are_shown(tmp_path, capsys):
    make_tree(tmp_path / "frames", [f"{c}/{i}_{i % 5}" for c in "ab" for i in range(10)])
    split_folder(tmp_path, "--group-pattern", r"_(\d+)")
    out = capsys.readouterr().out
    assert "5 groups of 4 videos, such as" in out and "a/0_0, a/5_0, b/0_0, ... (4)" in out
    split_folder(tmp_path)
    assert "every video is its own group" in capsys.readouterr().out


def test_the_share_is_kept_where_groups_have_several_classes():
    """31 people, who do seven things unequally often, as in a set of tennis strokes."""
    rng, videos = random.Random(0), []
    people = [rng.random() ** 2 + 0.05 for _ in range(31)]
    for i in range(371):
        person = rng.choices(range(31), people)[0]
        videos.append(Video(f"v{i}", (person + int(rng.expovariate(0.5))) % 7, f"p{person}"))
    for seed in range(3):
        train, test = hold_out(videos, 0.2, seed)
        assert not {v.group for v in train} & {v.group for v in test}
        assert 0.15 <= len(test) / len(videos) <= 0.25
        rest, val = hold_out(train, 0.1, seed)
        assert 0.05 <= len(val) / len(train) <= 0.15
        assert {v.label for v in rest} == set(range(7))


def test_many_videos_are_divided_in_seconds():
    videos = [Video(f"v{i}", i % 101, f"v{i}") for i in range(64000)]
    started = time.process_time()
    _, held = hold_out(videos, 0.2, 0)
    assert time.process_time() - started < 10  # it took 290 s
    assert 0.19 < len(held) / len(videos) < 0.21


# ==== leaks ====


def scenes(root, group):
    """12 scenes of their own colours, three videos each; group: name of a video (scene, number)."""
    for scene in range(12):
        colour = np.random.default_rng(scene).random(3)
        for number in range(3):
            draw_frames(root / "ab"[number % 2] / group(scene, number), colour)


def test_a_recording_in_two_lists_is_found(tmp_path, capsys):
    """Grouped by scene, but for one scene, whose third video has a group of its own."""
    scenes(tmp_path / "frames", lambda s, n: f"{99 if (s, n) == (4, 2) else s}_s{s}n{n}")
    flags = "--group-pattern", r"^(\d+)_", "--test-groups", "99,1,2"
    split_folder(tmp_path, *flags, "--val-fraction", 0)
    out = capsys.readouterr().out
    pairs = {
        line.split()[1] + " " + line.split()[4] for line in out.splitlines() if "(test)" in line
    }
    assert pairs == {"a/4_s4n0 a/99_s4n2", "b/4_s4n1 a/99_s4n2"}, out
    assert "do not look alike" not in out
    suggested = tmp_path / "splits" / "suggested_groups.csv"
    assert f"--groups {suggested}" in out
    lists, _ = split_folder(tmp_path, "--groups", suggested)
    assert "look as if" not in capsys.readouterr().out
    for names in ({name for name, _ in videos} for videos in lists.values()):
        assert len({name for name in names if "_s4" in name}) in (0, 3)


def test_a_number_of_clips_taken_for_a_recording_is_noticed(tmp_path, capsys):
    scenes(tmp_path / "frames", lambda s, n: f"{(s + 4 * n) % 12}_s{s}n{n}")
    split_folder(tmp_path, "--group-pattern", r"^(\d+)_")
    assert "the videos of a group do not look alike" in capsys.readouterr().out
    split_folder(tmp_path, "--group-pattern", r"s(\d+)n")
    out = capsys.readouterr().out
    assert "warning" not in out and "12 groups of 3 videos" in out


def test_videos_of_one_camera_are_no_suspects(tmp_path, capsys):
    for index in range(60):
        draw_frames(tmp_path / "frames" / "ab"[index % 2] / f"v{index}", (0.4, 0.5, 0.3))
    split_folder(tmp_path)
    out = capsys.readouterr().out
    assert "most videos look alike" in out and "warning" not in out


@pytest.mark.parametrize(("pattern", "is_right"), [(r"_(\d+)_", True), (r"^(\d+)_", False)])
def test_groupings_of_real_clips(tmp_path, data, capsys, pattern, is_right):
    """UT-Interaction: the second number names the recording, the first is that of a clip."""
    for video in sorted(data("ut_interaction").glob("*/*.avi")):
        capture = cv2.VideoCapture(str(video))
        folder = tmp_path / "frames" / video.parent.name / video.stem
        folder.mkdir(parents=True)
        frame = cv2.resize(capture.read()[1], (64, 64), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / "000000.jpg"), frame)
    split_folder(tmp_path, "--group-pattern", pattern)
    assert ("warning" not in capsys.readouterr().out) == is_right


def test_few_videos_make_no_validation_list_unless_it_is_wanted(tmp_path, capsys):
    """A tenth of 72 videos would choose the epoch by chance."""
    make_tree(tmp_path / "frames", [f"{c}/v{i}" for c in "abc" for i in range(30)])
    folder = "--dataset", "folder", "--frames", tmp_path / "frames"
    lists, _ = split(tmp_path, *folder)
    assert [len(lists[name]) for name in ("train", "val", "test")] == [72, 0, 18]
    assert "note: no validation list" in capsys.readouterr().out
    lists, _ = split(tmp_path, *folder, "--val-fraction", 0.1)
    assert len(lists["val"]) == 6
    make_tree(tmp_path / "frames", [f"d/v{i}" for i in range(1200)], frames=1)
    lists, _ = split(tmp_path, *folder, "--no-leak-check")
    assert len(lists["val"]) == 102
