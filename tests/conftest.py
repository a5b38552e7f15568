"""Paths, and the real scripts run as a user runs them."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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


# Scripts run in processes forked from one that has imported PyTorch and the like and done nothing
# else: importing them takes three seconds, which a hundred runs would each spend.
os.environ |= {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["train", "test", "search", "make_splits", "torch._dynamo", "matplotlib.pyplot"]
)


def run_as_main(arguments, cwd, output, error):
    """What `python ARGUMENTS` does, in a process of its own."""
    multiprocessing.set_start_method("fork", force=True)  # Linux's default before Python 3.14
    os.chdir(cwd or ROOT)
    for path, stream in ((output, 1), (error, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = list(arguments)
    sys.path.insert(0, str(ROOT))
    script = arguments[0] if cwd in (None, ROOT) else str(ROOT / arguments[0])
    runpy.run_path(script, run_name="__main__")


@pytest.fixture(scope="session")
def run_script(tmp_path_factory):
    """A function that runs a script of the repository in a process and checks its exit status."""
    folder = tmp_path_factory.mktemp("output")

    def run(*arguments, status=0, cwd=ROOT):
        arguments = tuple(map(str, arguments))
        if arguments[0] == "-m":
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            result = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment,
                                    capture_output=True, text=True)  # fmt: skip
        else:
            paths = folder / "out", folder / "err"
            process = SERVER.Process(target=run_as_main, args=(arguments, cwd, *paths))
            process.start()
            process.join()
            texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
            result = SimpleNamespace(returncode=process.exitcode, stdout=texts[0], stderr=texts[1])
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
