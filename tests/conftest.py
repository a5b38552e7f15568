"""Paths, and the real scripts run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from datasets.synthetic import make_dataset

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("VIDEO_RETRIEVAL_DATA", ROOT.parent / "shared" / "data"))


EXTRACT = ["--num-frames", 8, "--size", 20, 24, "--workers", 2]


@pytest.fixture(scope="session")
def data():
    """A function from a path below the folder of real data to that path; skips where absent."""

    def path_of(relative):
        if not (DATA / relative).exists():
            pytest.skip(f"no {DATA / relative}; VIDEO_RETRIEVAL_DATA may name the folder")
        return DATA / relative

    return path_of


@pytest.fixture(scope="session")
def run_script():
    """A function that runs a script of the repository by subprocess and checks its exit status."""

    def run(*arguments, status=0, cwd=ROOT):
        command = [sys.executable, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
        result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        assert result.returncode == status, result.stdout + result.stderr
        return result

    return run


@pytest.fixture(scope="session")
def demo(tmp_path_factory, run_script):
    """A small demo data set, extracted and split: its folder."""
    root = tmp_path_factory.mktemp("demo")
    make_dataset(root, classes=3, groups=5, videos=30, test_groups=1)
    run_script("extract_frames.py", "--videos", root / "videos", "--frames", root / "frames",
               *EXTRACT)  # fmt: skip
    run_script("make_splits.py", "--dataset", "ucf101", "--annotations", root / "annotations",
               "--frames", root / "frames", "--output", root / "splits")  # fmt: skip
    return root
