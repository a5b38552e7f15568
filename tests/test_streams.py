"""Scripts whose standard streams are closed, full, narrow or no terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from conftest import ROOT
from test_chain import train_command

from utils.terminal import progress


@pytest.fixture(scope="module")
def commands(demo, tmp_path_factory):
    """Functions from a folder to the arguments that make a script write there."""
    videos = tmp_path_factory.mktemp("few") / "videos"
    for video in sorted(demo.glob("videos/*/*_c01.avi"))[:3]:
        (videos / video.parent.name).mkdir(parents=True, exist_ok=True)
        (videos / video.parent.name / video.name).hardlink_to(video)
    return {
        "extract_frames.py": lambda output: [
            "--videos", videos, "--frames", output, "--num-frames", 4, "--size", 20, 24],
        "make_splits.py": lambda output: [
            "--dataset", "folder", "--frames", demo / "frames", "--output", output],
    }  # fmt: skip


def run(script, arguments, redirection="", **environment):
    """Run a script behind a shell's redirection, as a user does."""
    line = f'exec "$@" {redirection}'
    command = ["sh", "-c", line, "sh", sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment},
                          capture_output=True, text=True, timeout=60)  # fmt: skip


def files(root):
    return {path.name: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


SCRIPTS = ["extract_frames.py", "make_splits.py"]


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_closed_streams_change_nothing(script, closed, commands, tmp_path):
    result = run(script, commands[script](tmp_path / "usual"))
    assert result.returncode == 0, result.stderr
    result = run(script, commands[script](tmp_path / "closed"), closed)
    assert result.returncode == 0 and result.stderr == ""
    assert bool(result.stdout) == (">&-" not in closed.split())
    assert files(tmp_path / "closed") == files(tmp_path / "usual")


@pytest.mark.parametrize("script", SCRIPTS)
def test_letters_that_the_encoding_lacks_are_escaped(script, commands, tmp_path):
    output = tmp_path / "Übung 東京"
    result = run(script, commands[script](output), PYTHONIOENCODING="ascii")
    assert result.returncode == 0 and files(output), result.stderr
    assert "\\xdcbung" in result.stdout or script == "extract_frames.py"
    wrong = run(script, commands[script](output / "Ü")[:-1], PYTHONIOENCODING="ascii")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    missing = ["--dataset", "folder", "--frames", tmp_path / "Ü", "--output", output]
    result = run("make_splits.py", missing, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_full_device_loses_no_work_and_is_told(script, commands, tmp_path):
    run(script, commands[script](tmp_path / "usual"))
    result = run(script, commands[script](tmp_path / "full"), ">/dev/full")
    assert result.returncode == 1
    assert result.stderr == f"{script}: write error: No space left on device\n"
    assert files(tmp_path / "full") == files(tmp_path / "usual")
    result = run(script, commands[script](tmp_path / "both"), ">/dev/full 2>/dev/full")
    assert result.returncode == 1 and files(tmp_path / "both") == files(tmp_path / "usual")
    assert run(script, ["--help"], ">/dev/full").returncode == 1
    assert run(script, ["--no-such-flag"], ">/dev/full").returncode == 2


@pytest.mark.parametrize(
    ("redirection", "status"),
    [
        ("<&- >&- 2>&-", 0),
        pytest.param("2>&-", 0, marks=pytest.mark.slow),
        pytest.param(">/dev/full 2>/dev/full", 1, marks=pytest.mark.slow),
    ],
)
def test_training_testing_and_indexing_do_their_work(redirection, status, demo, tmp_path):
    """With PYTHONIOENCODING=ascii and a folder whose name that lacks."""
    run_folder, index = tmp_path / "Übung", tmp_path / "index"
    videos = next((demo / "videos").iterdir())
    steps = [
        train_command(demo, run_folder, "--epochs", 1),
        ["test.py", "--checkpoint", run_folder / "best.pt"],
        ["search.py", "index", "--checkpoint", run_folder / "best.pt", "--videos", videos,
         "--output", index],
    ]  # fmt: skip
    for script, *arguments in steps:
        result = run(script, arguments, redirection, PYTHONIOENCODING="ascii")
        assert result.returncode == status, result.stderr
    assert (run_folder / "last.pt").exists() and (run_folder / "test" / "metrics.json").exists()
    assert (index / "index.json").exists()


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
def test_work_goes_on_after_a_failed_print_and_a_status_stays(status, tmp_path):
    (tmp_path / "long.py").write_text(LONG)
    status = [] if status is None else [status]
    arguments = [tmp_path / "done", *status]
    result = run(tmp_path / "long.py", arguments, ">/dev/full", PYTHONPATH=str(ROOT))
    assert result.returncode == (3 if status == [3] else 1)
    assert (tmp_path / "done").read_text() == "done"
    assert result.stderr == "long.py: write error: No space left on device\n"
    result = run(tmp_path / "long.py", arguments, PYTHONPATH=str(ROOT))
    assert result.returncode == sum(status) and len(result.stdout) == 500_005


def test_who_has_seen_enough_ends_the_script(tmp_path):
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
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=theirs, check=True,
                   env={**os.environ, **environment})  # fmt: skip
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
