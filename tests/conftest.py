"""Fixtures that many files use, and the marks that tests get by the fixtures they use."""

import itertools
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from helpers import (
    ROOT,
    STARTED,
    Process,
    draw_large_pictures,
    extract_and_split,
    run_main,
    train_command,
)

from datasets.synthetic import make_dataset

DATA = Path(os.environ.get("VIDEO_RETRIEVAL_DATA", ROOT.parent / "shared" / "data"))


def pytest_configure():
    """Let Ctrl-C reach the scripts, also where a shell started the tests in the background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Mark the tests that start scripts, which `make test-fast` leaves out."""
    for item in items:
        if {"run_script", "start_script"} & set(item.fixturenames):
            item.add_marker(pytest.mark.scripts)


@pytest.fixture(autouse=True)
def no_unmarked_programs(request, monkeypatch):
    """A test without the mark `scripts` fails when it starts a program."""

    def refuse(*_, **__):
        raise AssertionError("mark this test with pytest.mark.scripts, since it starts a program")

    if not request.node.get_closest_marker("scripts"):
        monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


@pytest.fixture(autouse=True)
def usual_excepthook(monkeypatch):
    """pytest reports exceptions of threads; a RunLog replaces its hook."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)


@pytest.fixture(autouse=True)
def end_processes():
    """Kill what a test has started and not waited for."""
    yield
    while STARTED:
        STARTED.pop().kill()


@pytest.fixture(scope="session")
def data():
    """A function from a path below the folder of real data to that path; skips where absent."""

    def path_of(relative):
        if not (DATA / relative).exists():
            pytest.skip(f"no {DATA / relative}; VIDEO_RETRIEVAL_DATA may name the folder")
        return DATA / relative

    return path_of


@pytest.fixture(scope="session")
def run_script(tmp_path_factory):
    """A function that runs a script of the repository and checks its exit status."""
    folder, number = tmp_path_factory.mktemp("output"), itertools.count()

    def run(*arguments, status=0, patch=None, **environment):
        """patch: function called in the script's process before the script."""
        arguments = tuple(map(str, arguments)), patch
        process = Process(run_main, arguments, folder / str(next(number)), environment)
        assert process.wait() == status, process.output()
        return process

    return run


@pytest.fixture
def start_script(tmp_path):
    """A function that starts a script and returns its Process."""
    number = itertools.count()

    def start(*arguments, patch=None, **environment):
        arguments = tuple(map(str, arguments)), patch
        return Process(run_main, arguments, tmp_path / f"process{next(number)}", environment)

    return start


@pytest.fixture(scope="session")
def demo(tmp_path_factory, run_script):
    """A small demo data set, extracted and split: its folder."""
    root = tmp_path_factory.mktemp("demo")
    make_dataset(root, classes=3, groups=5, videos=30, test_groups=1)
    extract_and_split(root, run_script)
    return root


@pytest.fixture(scope="session")
def drawn_videos(tmp_path_factory):
    """Folder of 45 videos of 40 to 60 frames in three classes."""
    root = tmp_path_factory.mktemp("drawn")
    make_dataset(root, classes=3, groups=5, videos=45, test_groups=1)
    return root / "videos"


@pytest.fixture
def few_videos(drawn_videos, tmp_path):
    """A copy of four of the videos, which a test may change."""
    for video in sorted(drawn_videos.glob("*/*_c01.avi"))[:4]:
        copy = tmp_path / "videos" / video.relative_to(drawn_videos)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(video, copy)
    return tmp_path / "videos"


@pytest.fixture(scope="session")
def trained(demo, run_script):
    """The run folder of the small training on the demo data, which no test changes."""
    run = demo / "run"
    command = train_command(demo, run, "--eval-every", 2)
    process = run_script(*command, patch=draw_large_pictures)
    (run / "stdout.txt").write_text(process.stdout)
    return run


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium, driven by Playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium; apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
