"""test.py against what the network was trained on, and codes without a network."""

import numpy as np
import pytest


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
    assert "has validation videos, by which best.pt was chosen" in warned
    assert "warning" not in run_test().stderr


def test_lists_of_two_folds_are_refused(demo, tmp_path, run_test):
    lists = copy_lists(demo, tmp_path / "lists")
    first = (lists / "train.txt").read_bytes().splitlines(keepends=True)[0]
    with open(lists / "test.txt", "ab") as file:
        file.write(first)
    error = run_test("--splits", lists, status=1).stderr
    assert "1 videos are in two of the lists" in error and "different folds" in error


def test_an_empty_list_is_refused(demo, tmp_path, run_test):
    lists = copy_lists(demo, tmp_path / "lists")
    (lists / "test.txt").write_text("")
    assert "must both name videos" in run_test("--splits", lists, status=1).stderr


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


def test_queries_of_absent_classes_are_counted(tmp_path, run_script):
    rng = np.random.default_rng(0)
    database = {"database_codes": rng.normal(size=(6, 9)), "database_labels": [0, 0, 1, 1, 2, 2]}
    queries = {"query_codes": rng.normal(size=(4, 9)), "query_labels": [0, 1, 7, 7]}
    np.savez(tmp_path / "codes.npz", **queries, **database)
    output = run_script("test.py", "--codes", tmp_path / "codes.npz", "--output", tmp_path).stdout
    assert "queries without relevant items 2" in output and "bits 9" in output
    queries = {"query_codes": np.zeros((0, 9)), "query_labels": np.zeros(0, int)}
    np.savez(tmp_path / "none.npz", **queries, **database)
    error = run_script("test.py", "--codes", tmp_path / "none.npz", status=1).stderr
    assert "not empty" in error and "Traceback" not in error
