"""Names that are not UTF-8 or hold terminal escapes, from the lists to the page of a query."""

import json
import os
import shutil

import numpy as np
import pytest
from helpers import train_command
from test_reports import METRICS
from test_search import index_command, query_command

from reports.figures import precision_at_figure, save_figure
from reports.pictures import retrieval_figure
from utils.errors import printable

CLASS = os.fsdecode(b"a\xff\x1b[31mred")
SHOWN = r"a\udcff\x1b[31mred"


@pytest.fixture(scope="module")
def odd(demo, tmp_path_factory):
    """The demo data below a folder that is not UTF-8, with such a class and terminal escapes."""
    root = tmp_path_factory.mktemp("odd") / os.fsdecode(b"\xfe")
    shutil.copytree(demo / "frames", root / "frames")
    shutil.copytree(demo / "splits", root / "splits")
    shutil.copytree(demo / "videos", root / "videos")
    first = sorted(os.listdir(demo / "videos"))[0]
    for kind in ("frames", "videos"):
        (root / kind / first).rename(root / kind / CLASS)
    for path in (root / "splits").iterdir():
        lines = path.read_bytes().splitlines(keepends=True)
        old, new = first.encode(), os.fsencode(CLASS)
        path.write_bytes(b"".join(new + x[len(old) :] if x.startswith(old) else x for x in lines))
    return root


def test_training_testing_and_searching(odd, tmp_path, run_script):
    run = odd / "run"
    trained = run_script(*train_command(odd, run, "--epochs", 1))
    assert "not UTF-8; no TensorBoard files" in trained.output() and "val mAP" in trained.output()
    assert not list(run.glob("events*")) and (run / "metrics.jsonl").exists()
    tested = run_script("test.py", "--checkpoint", run, "--html")
    metrics = json.loads((run / "test" / "metrics.json").read_text())["metrics"]
    assert CLASS in metrics["map_per_class"] and (run / "test" / "retrieval.png").exists()
    refused = run_script("test.py", "--checkpoint", run, "--projector", status=1).stderr
    assert "--projector" in refused.splitlines()[-1] and "UTF-8" in refused.splitlines()[-1]
    refused = run_script(*index_command(run, odd / "videos", run / "index"), status=1).stderr
    assert "its name is not UTF-8, as an index requires" in refused.splitlines()[-1]
    index = tmp_path / "index %20#?ü"
    indexed = run_script(*index_command(run, odd / "videos", index))
    video = next((odd / "videos" / CLASS).iterdir())
    query = [word for word in query_command(index, video) if word != "--json"]
    found = run_script(*query, "--html", run / "found.html", "--top", 30)
    assert SHOWN in found.stdout and (run / "found.html").exists()
    for process in (trained, tested, indexed, found):
        assert "\x1b[31m" not in process.output() and "Traceback" not in process.output()


ESCAPES = "\x1b]0;title\x07\x9b31m\u202e\u2028x"


@pytest.mark.parametrize(
    "command",
    [
        ["extract_frames.py", "--videos", ESCAPES, "--frames", "x"],
        ["extract_frames.py", "--videos", ".", "--frames", "x", f"--{ESCAPES}"],
        ["make_splits.py", "--dataset", "folder", "--frames", ESCAPES, "--output", "x"],
        ["train.py", "--config", ESCAPES],
        ["train.py", "--frames", "x", "--splits", ESCAPES, "--output", "{folder}/x"],
        ["test.py", "--checkpoint", ESCAPES],
        ["test.py", "--codes", ESCAPES],
        ["search.py", "query", "--index", ESCAPES, "--video", "x"],
        ["search.py", "index", "--checkpoint", ESCAPES, "--videos", "x", "--output", "{folder}/x"],
    ],
)
def test_errors_escape_names(command, tmp_path, start_script):
    """One line, in which nothing controls the terminal."""
    command = [word.format(folder=tmp_path) if "{" in word else word for word in command]
    process = start_script(*command)
    assert process.wait() in (1, 2)
    line = process.stderr.removesuffix("\n")
    assert line.isprintable(), repr(line)
    assert r"\x1b]0;title\x07\x9b31m\u202e\u2028x" in line


def test_printable_keeps_what_can_be_printed():
    assert printable("käse 動画 a'b\\n") == "käse 動画 a'b\\n"
    assert printable("a\nb\udcff\x7f") == r"a\nb\udcff\x7f"


def test_figures_show_every_name(tmp_path):
    names, frame = (CLASS, r"$\x$", "a$b", "\ud800"), np.zeros((2, 2, 3), np.uint8)
    for file in ("a.png", "a.pdf", "a.svg"):
        save_figure(precision_at_figure(dict.fromkeys(names, METRICS)), tmp_path / file)
        rows = [[(frame, name)] for name in names]
        save_figure(retrieval_figure(rows, "title"), tmp_path / file)
