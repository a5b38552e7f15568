"""make_splits.py: the published counts, whole groups, and what it refuses."""

from collections import Counter

import pytest

import make_splits
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
    return split(tmp_path, "--dataset", "folder", "--frames", tmp_path / "frames", *flags)


def make_tree(root, names, frames=2):
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(frames):
            (root / name / f"{i:06d}.jpg").touch()


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


@pytest.mark.parametrize(("dataset", "folder"), [("ucf101", UCF101), ("hmdb51", HMDB51)])
def test_validation_takes_whole_groups_of_every_class(tmp_path, data, dataset, folder):
    lists, classes = official(tmp_path, data(folder), dataset, 1)

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

    assert val(0) == val(0)
    assert val(0) != val(1)


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
