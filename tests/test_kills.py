"""Each script killed at random moments and run again: the result is that of an undisturbed run."""

import json
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from helpers import extract_and_split, train_command
from test_search import content, index_command, write_checkpoint

from datasets.synthetic import make_dataset
from retrieval.index import TABLE


def read_tree(root):
    """Every file below a folder with its content, but for logs, which hold times.

    Of an index, whose files have random names, the rows.
    """
    if (root / TABLE).is_dir():
        return content(root)
    logs = ("events.out", "metrics.jsonl", "environment.jsonl", "config.yaml", "previous.pt")
    return {
        str(path.relative_to(root)): read_comparable(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(logs)
    }


def read_comparable(path):
    """The bytes of a file; of a checkpoint only its weights, since it also holds its own path."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: file[name].tobytes() for name in file.files}
    if path.suffix == ".pt":
        content = torch.load(path, weights_only=True)["model"]
        return b"".join(tensor.numpy().tobytes() for tensor in content.values())
    if path.name == "metrics.json":
        return {**json.loads(path.read_text()), "run": None}  # it has the time and the command
    return path.read_bytes()


@pytest.fixture(scope="module")
def material(tmp_path_factory, run_script):
    """Videos, frames, lists and a checkpoint that the killed scripts start from."""
    root = tmp_path_factory.mktemp("material")
    make_dataset(root, classes=3, groups=5, videos=30, test_groups=1)
    extract_and_split(root, run_script)
    write_checkpoint(root / "best.pt")
    run_script(*train_command(root, root / "run", "--epochs", 1))
    return root


# ==== the stages: functions of the material and of an output folder to a command ====


def extraction(material, output):
    paths = "--videos", material / "videos", "--frames", output
    return ["extract_frames.py", *paths, "--workers", 2, "--num-frames", 0, "--size", 120, 160]


def caching(material, output):
    cache = "--cache", "disk", "--cache-frames", 400, "--cache-folder", output / "cache"
    return train_command(material, output / "run", *cache, "--epochs", 1)


def training(material, output):
    return train_command(material, output, "--epochs", 8, "--eval-every", 8, "--save-steps", 2)


def evaluation(material, output):
    checkpoint = material / "run" / "best.pt"
    return ["test.py", "--checkpoint", checkpoint, "--output", output, "--html"]


def indexing(material, output):
    return index_command(material / "best.pt", material / "videos", output, "--batch-size", 4)


@pytest.fixture(scope="module")
def undisturbed(material, tmp_path_factory, run_script):
    """A function: stage -> (what it writes undisturbed, seconds), made when first asked for."""
    results, folder = {}, tmp_path_factory.mktemp("undisturbed")

    def result_of(stage):
        if stage not in results:
            started, output = time.monotonic(), folder / stage.__name__
            run_script(*stage(material, output))
            results[stage] = read_tree(output), time.monotonic() - started
        return results[stage]

    return result_of


STAGES = [extraction, caching, training, evaluation, indexing]
QUICK = [*((stage, "SIGKILL") for stage in STAGES), (extraction, "SIGTERM"), (training, "SIGTERM")]
LONG = [(stage, name) for stage in STAGES for name in ("SIGKILL", "SIGTERM")]


@pytest.mark.parametrize(
    ("stage", "name", "kills"),
    [(*case, 1) for case in QUICK]
    + [pytest.param(*case, 10, marks=pytest.mark.slow) for case in LONG],
)
def test_killed_and_repeated_equals_undisturbed(
    stage, name, kills, material, undisturbed, tmp_path, run_script, start_script
):
    whole, duration = undisturbed(stage)
    rng, hits, output = random.Random(f"{stage.__name__} {name}"), 0, tmp_path / "killed"
    for _ in range(5 * kills):
        process = start_script(*stage(material, output))
        status = process.status(rng.uniform(0.05, duration))
        if status is None:
            process.signal(signal.Signals[name])
            hits += process.wait() != 0
            assert not process.stderr or "rerun to resume" in process.stderr
        elif status == 0:  # it ended before the kill: from the beginning
            shutil.rmtree(output)
        if hits == kills:
            break
    assert hits == kills
    run_script(*stage(material, output))
    assert read_tree(output) == whole
