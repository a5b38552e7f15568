"""test.py against what the network was trained on, and codes without a network."""

import json
import shutil

import numpy as np
import pytest

from utils.checkpoint import load_checkpoint, save_checkpoint


def copy_lists(demo, folder, **changes):
    """The lists of the demo with some replaced: changes maps one list to another's name."""
    folder.mkdir()
    for name in ("train", "val", "test", "classes"):
        source = changes.get(name, name)
        (folder / f"{name}.txt").write_bytes((demo / "splits" / f"{source}.txt").read_bytes())
    return folder


@pytest.fixture
def run_test(trained, tmp_path, run_script):
    """A function that tests the trained network."""

    def run(*flags, status=0):
        paths = "--checkpoint", trained / "best.pt", "--output", tmp_path / "out"
        return run_script("test.py", *paths, "--pictures", 0, *flags, status=status)

    return run


def test_testing_on_training_videos_is_refused(demo, tmp_path, run_test):
    lists = copy_lists(demo, tmp_path / "lists", train="test", test="train")
    error = run_test("--splits", lists, status=1).stderr
    assert "was trained on 18 of its 18 videos" in error and "Traceback" not in error


def test_testing_on_validation_videos_gives_a_warning(demo, tmp_path, run_test):
    lists = copy_lists(demo, tmp_path / "lists", test="val")
    warned = run_test("--splits", lists).stderr
    assert "has validation videos, which selected best.pt" in warned
    assert "warning" not in run_test().stderr


def test_lists_of_two_folds_are_refused(demo, tmp_path, run_test):
    lists = copy_lists(demo, tmp_path / "lists")
    first = (lists / "train.txt").read_bytes().splitlines(keepends=True)[0]
    with open(lists / "test.txt", "ab") as file:
        file.write(first)
    error = run_test("--splits", lists, status=1).stderr
    assert "1 videos are in two of the lists" in error and "different folds" in error


def test_a_network_is_compared_with_retrieval_without_learning(demo, tmp_path, run_test):
    printed = run_test().stdout
    assert "motion energy" in printed and "bootstrap over the 3 recordings" in " ".join(
        printed.split()
    )
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    rows, metrics = content["comparison"], content["metrics"]
    assert len(rows) == 4 and rows["all"]["recordings"] == 3
    for key in ("map", "precision_at_1"):
        assert rows["all"][key]["network"] == pytest.approx(metrics[key])
    per_class = {name: rows[f"class {name}"]["map"]["network"] for name in metrics["map_per_class"]}
    assert per_class == pytest.approx(metrics["map_per_class"])
    with np.load(tmp_path / "out" / "codes.npz") as file:
        assert file["query_codes"].shape[1] == content["run"]["bits"]
    codes = (tmp_path / "out" / "codes.npz").read_bytes()
    printed = run_test("--no-baselines").stdout
    assert "motion energy" not in printed
    assert (tmp_path / "out" / "codes.npz").read_bytes() == codes
    assert "comparison" not in json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_other_classes_may_be_chosen(demo, tmp_path, run_test):
    lists = copy_lists(demo, tmp_path / "lists")
    classes = (lists / "classes.txt").read_text().splitlines()
    (lists / "classes.txt").write_text("\n".join(["Gliding", *classes[1:]]))
    warned = run_test("--splits", lists).stderr
    assert "other classes than those of the training; 1 of 3 are new" in warned
    assert "Gliding" in (tmp_path / "out" / "metrics.json").read_text()


@pytest.fixture
def moved(demo, trained, tmp_path):
    """A checkpoint whose lists are in a folder that the test may change: (checkpoint, folder)."""
    lists = copy_lists(demo, tmp_path / "lists")
    content = load_checkpoint(trained / "best.pt")
    content["settings"]["splits"] = str(lists)
    save_checkpoint(tmp_path / "best.pt", content)
    return tmp_path / "best.pt", lists


def test_lists_made_again_with_another_seed_are_refused(demo, moved, tmp_path, run_script):
    checkpoint, lists = moved
    command = "test.py", "--checkpoint", checkpoint, "--output", tmp_path / "out", "--pictures", 0
    assert "warning" not in run_script(*command).stderr
    paths = "--frames", demo / "frames", "--output", lists, "--seed", 3
    official = "--dataset", "ucf101", "--annotations", demo / "annotations"
    run_script("make_splits.py", *official, *paths)
    error = run_script(*command, status=1).stderr
    assert "are not the lists that the model was trained on; restore them" in error
    assert "are not the lists" in run_script(*command, "--splits", lists).stderr
    run_script("make_splits.py", "--dataset", "folder", *paths)
    error = run_script(*command, "--splits", lists, status=1).stderr
    assert "the model was trained on" in error and "Traceback" not in error


def test_other_labels_give_a_warning_or_are_refused(moved, tmp_path, run_script):
    """The names alone are those of the training."""
    checkpoint, lists = moved
    text = (lists / "train.txt").read_text().replace(" 1\n", " 0\n")
    (lists / "train.txt").write_text(text)
    command = "test.py", "--checkpoint", checkpoint, "--output", tmp_path / "out", "--pictures", 0
    assert "are not the lists" in run_script(*command, status=1).stderr
    warned = run_script(*command, "--splits", lists).stderr
    assert "are not the lists" in warned and "has the id of another class" in warned


def test_a_checkpoint_without_lists_gives_a_warning(moved, tmp_path, run_script):
    checkpoint, _ = moved
    content = load_checkpoint(checkpoint)
    del content["data"], content["videos"]
    save_checkpoint(checkpoint, content)
    command = "test.py", "--checkpoint", checkpoint, "--output", tmp_path / "out", "--pictures", 0
    assert "did not record the lists" in run_script(*command).stderr


def test_an_empty_list_is_refused(demo, tmp_path, run_test):
    lists = copy_lists(demo, tmp_path / "lists")
    (lists / "test.txt").write_text("")
    assert "must both list videos" in run_test("--splits", lists, status=1).stderr


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--num-frames", 8, "--size", 40, 48), 1, "trained on [20, 24]; extract with --size 20 2"),
        (("--num-frames", 3, "--size", 20, 24), 1, "3 frames per video, but a clip has 4"),
        (("--num-frames", 16, "--size", 20, 24), 0, "'num_frames': 16"),
    ],
)
def test_other_frames_are_refused_or_give_a_warning(
    flags, status, message, demo, tmp_path, run_script, run_test
):
    frames = tmp_path / "frames"
    run_script("extract_frames.py", "--videos", demo / "videos", "--frames", frames, *flags)
    error = run_test("--frames", frames, status=status).stderr
    assert message in error and ("warning" in error) == (status == 0)


def test_a_run_folder_means_its_best_checkpoint_or_else_its_last(trained, tmp_path, run_script):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("last.pt", "best.pt"):
        shutil.copy(trained / name, run / name)
        result = run_script("test.py", "--checkpoint", run, "--pictures", 0)
        assert f"using {run / name}\n" in result.stderr
        assert f"pictures: {run / 'test'}" in result.stdout
        codes = np.load(run / "test" / "codes.npz")["query_codes"]
        named = ("--checkpoint", run / name, "--output", tmp_path / name, "--pictures", 0)
        run_script("test.py", *named)
        assert np.array_equal(np.load(tmp_path / name / "codes.npz")["query_codes"], codes)


# ==== codes without a network ====


def test_queries_of_absent_classes_are_counted(tmp_path, run_script):
    rng = np.random.default_rng(0)
    database = {"database_codes": rng.normal(size=(6, 9)), "database_labels": [0, 0, 1, 1, 2, 2]}
    queries = {"query_codes": rng.normal(size=(4, 9)), "query_labels": [0, 1, 7, 7]}
    np.savez(tmp_path / "codes.npz", **queries, **database)
    output = run_script("test.py", "--codes", tmp_path / "codes.npz", "--output", tmp_path).stdout
    assert "2 queries without relevant items count as 0" in output and "9 bits" in output
    queries = {"query_codes": np.zeros((0, 9)), "query_labels": np.zeros(0, int)}
    np.savez(tmp_path / "none.npz", **queries, **database)
    error = run_script("test.py", "--codes", tmp_path / "none.npz", status=1).stderr
    assert "not empty" in error and "Traceback" not in error


def write_codes(path, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(30) % 3
    codes = rng.normal(size=(30, 16)) + np.eye(3, 16)[labels]
    queries = {"query_codes": codes[:9], "query_labels": labels[:9]}
    np.savez(path, **queries, database_codes=codes[9:], database_labels=labels[9:])
    return path


def test_each_file_has_its_own_folder(tmp_path, run_script):
    """x/y_z and x_y/z would both be called x_y_z."""
    files = [tmp_path / "x" / "y_z.npz", tmp_path / "x_y" / "z.npz"]
    for seed, path in enumerate(files):
        path.parent.mkdir()
        write_codes(path, seed)
    output = tmp_path / "results"
    run_script("test.py", "--codes", *files, files[0], "--output", output)
    found = [
        json.loads((output / name / "metrics.json").read_text()) for name in ("x_y_z", "x_y_z_")
    ]
    assert found[0]["metrics"]["map"] != found[1]["metrics"]["map"]
    assert sorted(path.name for path in output.iterdir() if path.is_dir()) == ["x_y_z", "x_y_z_"]


def test_several_files_of_codes_are_compared_in_one_table(tmp_path, run_script):
    files = [write_codes(tmp_path / f"{name}.npz", seed) for seed, name in enumerate("ab")]
    output, alone = tmp_path / "comparison", tmp_path / "alone"
    result = run_script("test.py", "--codes", *files, "--top-r", 5, "--output", output)
    for name in "ab":
        assert f"{tmp_path.name[-9:]}/{name}" in result.stdout
    assert "mAP@5" in result.stdout
    values = []
    for path in files:
        run_script("test.py", "--codes", path, "--top-r", 5, "--output", alone)
        compared = output / f"{tmp_path.name}_{path.stem}" / "metrics.json"
        measured = [json.loads(p.read_text()) for p in (compared, alone / "metrics.json")]
        assert measured[0]["metrics"] == measured[1]["metrics"]
        assert measured[0]["curves"] == measured[1]["curves"]
        values.append(measured[0]["metrics"]["map"])
    assert values[0] != values[1]
    curves = {path.name for path in output.glob("*.png")}
    assert curves == {"precision_recall.png", "precision_at.png"}


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        ([], 2, "give --checkpoint or --codes"),
        (["--codes", "{}/none.npz"], 1, "none.npz: no such file"),
        (["--codes", "{}/codes.npz", "--bits", 12], 1, "codes have 16 columns, not 12"),
        (["--codes", "{}/codes.npz", "--cutoffs", 0], 2, "--cutoffs: must be a whole number"),
        (["--codes", "{}/none.npz", "--output", "{}/codes.npz/x"], 1, "Not a directory"),
        (["--checkpoint", "{}/codes.npz", "--output", "{}"], 1, "not a checkpoint"),
        (["--checkpoint", "{}"], 1, "no best.pt or last.pt in this folder"),
        (["--checkpoints", "{}"], 2, "did you mean --checkpoint"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(flags, status, message, tmp_path, run_script):
    write_codes(tmp_path / "codes.npz", 0)
    flags = [str(flag).replace("{}", str(tmp_path)) for flag in flags]
    error = run_script("test.py", *flags, status=status).stderr
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["codes.npz"]
