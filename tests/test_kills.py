"""Each script killed at random moments and run again: the result is that of an undisturbed run."""

import random
import shutil
import time

import numpy as np
import pytest
import torch
from conftest import EXTRACT, SERVER, run_as_main
from test_chain import train_command
from test_search import index_command, write_checkpoint

from datasets.synthetic import make_dataset


def tree(root):
    """Every file below a folder with its content, but for logs, which hold times."""
    logs = ("events.out", "metrics.jsonl", "environment.jsonl", "config.yaml", "previous.pt")
    return {
        str(path.relative_to(root)): comparable(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(logs)
    }


def comparable(path):
    """A file's bytes, or of a checkpoint its weights, since it also holds its own path."""
    if path.suffix != ".pt":
        return path.read_bytes() if path.suffix != ".npz" else arrays(path)
    content = torch.load(path, weights_only=True)["model"]
    return b"".join(tensor.numpy().tobytes() for tensor in content.values())


def arrays(path):
    with np.load(path) as file:
        return {name: file[name].tobytes() for name in file.files}


@pytest.fixture(scope="module")
def material(tmp_path_factory, run_script):
    """Videos, frames, lists and a checkpoint that the killed scripts start from."""
    root = tmp_path_factory.mktemp("material")
    make_dataset(root, classes=3, groups=5, videos=90, test_groups=1)
    run_script("extract_frames.py", "--videos", root / "videos", "--frames", root / "frames",
               *EXTRACT)  # fmt: skip
    run_script("make_splits.py", "--dataset", "ucf101", "--annotations", root / "annotations",
               "--frames", root / "frames", "--output", root / "splits")  # fmt: skip
    run_script(*train_command(root, root / "run", "--epochs", 1))
    write_checkpoint(root / "best.pt")
    return root


COMMANDS = {
    "extraction": lambda m, output: [
        "extract_frames.py", "--videos", m / "videos", "--frames", output, "--workers", 2,
        "--num-frames", 0, "--size", 120, 160],
    "caching": lambda m, output: train_command(
        m, output / "run", "--cache", "disk", "--cache-frames", 400, "--epochs", 1,
        "--cache-folder", output / "cache"),
    "training": lambda m, output: train_command(m, output, "--epochs", 8, "--save-steps", 2),
    "evaluation": lambda m, output: [
        "test.py", "--checkpoint", m / "run" / "best.pt", "--output", output, "--html"],
    "indexing": lambda m, output: index_command(
        m / "best.pt", m / "videos", output, "--batch-size", 4),
}  # fmt: skip


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("stage", COMMANDS)
def test_killed_and_repeated_equals_undisturbed(stage, kind, kills, material, tmp_path, run_script):
    started = time.monotonic()
    run_script(*COMMANDS[stage](material, tmp_path / "whole"))
    duration = time.monotonic() - started
    rng, hits, output = random.Random(f"{stage} {kind}"), 0, tmp_path / "killed"
    for _ in range(5 * kills):
        arguments = tuple(map(str, COMMANDS[stage](material, output)))
        paths = tmp_path / "out", tmp_path / "err"
        process = SERVER.Process(target=run_as_main, args=(arguments, None, *paths))
        process.start()
        process.join(timeout=rng.uniform(0.05, duration))
        if process.exitcode is None:
            (process.kill if kind == "SIGKILL" else process.terminate)()
            process.join()
            hits += process.exitcode != 0
            assert "Traceback" not in paths[1].read_text()
        elif process.exitcode == 0:  # it went through between two kills: from the beginning
            shutil.rmtree(output)
        if hits == kills:
            break
    assert hits == kills
    run_script(*COMMANDS[stage](material, output))
    assert tree(output) == tree(tmp_path / "whole")
