"""Scripts whose standard streams are closed, full, narrow or no terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from helpers import ROOT, train_command

from utils.terminal import progress

pytestmark = pytest.mark.scripts


@pytest.fixture(scope="module")
def commands(demo, tmp_path_factory):
    """Functions from a folder to the arguments that make a script write there."""
    videos = tmp_path_factory.mktemp("few") / "videos"
    for video in sorted(demo.glob("videos/*/*_c01.avi"))[:3]:
        (videos / video.parent.name).mkdir(parents=True, exist_ok=True)
        (videos / video.parent.name / video.name).hardlink_to(video)
    extraction = ["--videos", videos, "--num-frames", 4, "--size", 20, 24, "--frames"]
    division = ["--dataset", "folder", "--frames", demo / "frames", "--output"]
    return {
        "extract_frames.py": lambda output: [*extraction, output],
        "make_splits.py": lambda output: [*division, output],
    }


@pytest.fixture(scope="module")
def usual(commands, tmp_path_factory):
    """The files that each script writes with its streams as usual: {script: {name: bytes}}."""
    folder = tmp_path_factory.mktemp("usual")
    for script in SCRIPTS:
        result = run(script, commands[script](folder / script))
        assert result.returncode == 0, result.stderr
    return {script: read_files(folder / script) for script in SCRIPTS}


def run(script, arguments, redirection="", **environment):
    """Run a script behind a shell's redirection, as a user does."""
    line = f'exec "$@" {redirection}'
    command = ["sh", "-c", line, "sh", sys.executable, script, *map(str, arguments)]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def read_files(root):
    return {path.name: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


SCRIPTS = ["extract_frames.py", "make_splits.py"]


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_closed_streams_change_nothing(script, closed, commands, usual, tmp_path):
    result = run(script, commands[script](tmp_path / "closed"), closed)
    assert result.returncode == 0 and result.stderr == ""
    assert bool(result.stdout) == (">&-" not in closed.split())
    assert read_files(tmp_path / "closed") == usual[script]


@pytest.mark.parametrize("script", SCRIPTS)
def test_letters_that_the_encoding_lacks_are_escaped(script, commands, tmp_path):
    output = tmp_path / "Übung 東京"
    result = run(script, commands[script](output), PYTHONIOENCODING="ascii")
    assert result.returncode == 0 and read_files(output), result.stderr
    assert "\\xdcbung" in result.stdout or script == "extract_frames.py"
    wrong = run(script, commands[script](output / "Ü")[:-1], PYTHONIOENCODING="ascii")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    missing = ["--dataset", "folder", "--frames", tmp_path / "Ü", "--output", output]
    result = run("make_splits.py", missing, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_full_device_loses_no_work_and_is_reported(script, commands, usual, tmp_path):
    result = run(script, commands[script](tmp_path / "full"), ">/dev/full")
    assert result.returncode == 1
    assert result.stderr == f"{script}: write error: No space left on device\n"
    assert read_files(tmp_path / "full") == usual[script]
    result = run(script, commands[script](tmp_path / "both"), ">/dev/full 2>/dev/full")
    assert result.returncode == 1 and read_files(tmp_path / "both") == usual[script]
    assert run(script, ["--help"], ">/dev/full").returncode == 1
    assert run(script, ["--no-such-flag"], ">/dev/full").returncode == 2


@pytest.fixture
def steps(demo, tmp_path):
    """Training, testing and indexing in a folder whose name ASCII lacks; checks their files."""
    run_folder, index = tmp_path / "Übung", tmp_path / "index"
    videos, best = next((demo / "videos").iterdir()), run_folder / "best.pt"
    yield [
        train_command(demo, run_folder, "--epochs", 1),
        ["test.py", "--checkpoint", best],
        ["search.py", "index", "--checkpoint", best, "--videos", videos, "--output", index],
    ]
    assert (run_folder / "last.pt").exists() and (run_folder / "test" / "metrics.json").exists()
    assert (index / "checksums.json").exists()


def close_streams():
    """What Python starts with after <&- >&- 2>&-."""
    for descriptor in (0, 1, 2):
        os.close(descriptor)
    sys.stdin = sys.stdout = sys.stderr = None


def test_training_testing_and_indexing_work_without_streams(steps, run_script):
    for command in steps:
        run_script(*command, patch=close_streams)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "status"), [("<&- >&- 2>&-", 0), ("2>&-", 0), (">/dev/full 2>/dev/full", 1)]
)
def test_training_testing_and_indexing_do_their_work(redirection, status, steps):
    for script, *arguments in steps:
        result = run(script, arguments, redirection, PYTHONIOENCODING="ascii")
        assert result.returncode == status, result.stderr


LONG = """
import sys
from utils.terminal import safe_streams
with safe_streams("long.py"):
    for _ in range(5):
        print("x" * 100_000, flush=True)
    open(sys.argv[1], "w").write("done")
    sys.exit(*map(int, sys.argv[2:]))
"""


@pytest.mark.parametrize("status", [None, 0, 3])
def test_work_continues_after_a_failed_print_and_a_status_stays(status, tmp_path):
    (tmp_path / "long.py").write_text(LONG)
    status = [] if status is None else [status]
    arguments = [tmp_path / "done", *status]
    result = run(tmp_path / "long.py", arguments, ">/dev/full", PYTHONPATH=str(ROOT))
    assert result.returncode == (3 if status == [3] else 1)
    assert (tmp_path / "done").read_text() == "done"
    assert result.stderr == "long.py: write error: No space left on device\n"
    result = run(tmp_path / "long.py", arguments, PYTHONPATH=str(ROOT))
    assert result.returncode == sum(status) and len(result.stdout) == 500_005


def test_a_reader_that_has_seen_enough_ends_the_script():
    command = f'"{sys.executable}" extract_frames.py --help | head -n 1'
    result = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.startswith("usage") and result.stderr == ""


# ==== progress bars ====


def show_bar(environment, terminal, **arguments):
    """What `progress` writes to stderr, a terminal or a pipe."""
    code = (
        "from utils.terminal import progress\n"
        f"for _ in progress(range(3), 'counting', **{arguments!r}): pass\n"
    )
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        rows_and_columns = struct.pack("HHHH", 24, 80, 0, 0)
        fcntl.ioctl(ours, termios.TIOCSWINSZ, rows_and_columns)
    environment = {**os.environ, **environment}
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=ROOT, stderr=theirs, check=True, env=environment)
    os.set_blocking(ours, False)
    try:
        return os.read(ours, 10_000).decode()
    except BlockingIOError:
        return ""
    finally:
        os.close(ours), os.close(theirs)


@pytest.mark.parametrize(
    ("environment", "terminal", "arguments", "is_seen"),
    [
        ({}, True, {}, True),
        ({}, False, {}, False),
        ({"TQDM_DISABLE": "1"}, True, {}, False),
        ({"TQDM_DISABLE": "0"}, True, {}, True),
        ({"RANK": "0"}, True, {}, True),
        ({"RANK": "1"}, True, {}, False),
        ({}, True, {"is_shown": False}, False),
    ],
)
def test_a_bar_is_seen_by_who_watches(environment, terminal, arguments, is_seen):
    assert ("counting" in show_bar(environment, terminal, **arguments)) == is_seen


def test_a_hidden_bar_counts_nothing_and_passes_everything_on():
    assert list(progress(iter("abc"), is_shown=False)) == ["a", "b", "c"]
    with progress(total=3, is_shown=False) as bar:
        bar.update()
