"""Broken lists, frames, configs, checkpoints, disks and processes, through the real scripts."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from conftest import EXTRACT, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chain import same_weights, train_command, weights

import train
from datasets.splits import SplitError, read_split
from utils.config import parse_args
from utils.errors import explain


@pytest.fixture
def copy(demo, tmp_path):
    """The demo's lists and frames in a folder of the test's own; frames are links."""
    (tmp_path / "splits").mkdir()
    for path in (demo / "splits").iterdir():
        (tmp_path / "splits" / path.name).write_bytes(path.read_bytes())
    for path in demo.glob("frames/*/*/*"):
        link = tmp_path / path.relative_to(demo)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(path)
    (tmp_path / "frames" / "extraction.json").hardlink_to(demo / "frames" / "extraction.json")
    return tmp_path


# ==== lists and frame folders ====


def first_folder(root):
    return root / "frames" / (root / "splits" / "train.txt").read_text().split(" ")[0]


def replace(path, data):
    """Write a file anew instead of through its hard link."""
    path.unlink()
    path.write_bytes(data)


def edit(old, new):
    def change(root):
        path = root / "splits" / "train.txt"
        text = path.read_bytes()
        assert old in text
        path.write_bytes(text.replace(old, new, 1))

    return change


def one_class(root):
    path = root / "splits" / "train.txt"
    lines = [line for line in path.read_text().splitlines(True) if line.endswith(" 0\n")]
    path.write_text("".join(lines))


def shared_line(root):
    line = (root / "splits" / "val.txt").read_text().splitlines(True)[0]
    with open(root / "splits" / "train.txt", "a") as file:
        file.write(line)


def other_size(root):
    frame = first_folder(root) / "000003.jpg"
    replace(frame, cv2.imencode(".jpg", np.zeros((9, 9, 3), np.uint8))[1].tobytes())


def truncated(root):
    frame = first_folder(root) / "000003.jpg"
    replace(frame, frame.read_bytes()[:-40])


BROKEN = {
    "a class id is missing": (edit(b" 0\n", b"\n"), "expected 'video_frames_path class_id'"),
    "a class id is negative": (edit(b" 0\n", b" -1\n"), "expected 'video_frames_path class_id'"),
    "a class id is no number": (edit(b" 0\n", b" zero\n"), "expected 'video_frames_path class_id'"),
    "a class id is beyond the classes": (edit(b" 2\n", b" 3\n"), "class id 3 is out of range 0-2"),
    "a line stands twice": (
        lambda r: edit((first := (r / "splits/train.txt").read_bytes().split(b"\n")[0]),
                       first + b"\n" + first)(r), "the same video as in line 1"),
    "a path leaves the root": (edit(b"Bouncing/", b"../Bouncing/"), "leaves the folder of frames"),
    "a video is in two lists": (shared_line, "1 videos are in two of the lists"),
    "a list is absent": (lambda r: (r / "splits/val.txt").unlink(), "make_splits.py writes it"),
    "the classes are absent": (lambda r: (r / "splits/classes.txt").unlink(), "writes it"),
    "a list is empty": (lambda r: (r / "splits/train.txt").write_text("\n"), "names no videos"),
    "there is one class": (one_class, "the training list has 1; lower --classes-per-batch"),
    "a frame folder is absent": (
        lambda r: first_folder(r).rename(r / "away"), "1 of 18 frame folders are missing"),
    "a frame folder is empty": (
        lambda r: [f.unlink() for f in first_folder(r).iterdir()],
        "no frames; rerun extract_frames.py"),
    "a frame is missing": (
        lambda r: (first_folder(r) / "000003.jpg").unlink(), "frames are missing"),
    "a frame is cut short": (truncated, "000003.jpg: damaged"),
    "a frame is empty": (lambda r: replace(first_folder(r) / "000003.jpg", b""), "damaged"),
    "a frame is of another size": (other_size, "extract all videos with one --size"),
    "extraction.json is damaged": (
        lambda r: replace(r / "frames/extraction.json", b"{"), "extraction.json: damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_lists_and_frames_are_refused_in_one_line(case, copy, run_script):
    change, message = BROKEN[case]
    change(copy)
    error = run_script(*train_command(copy, copy / "run"), status=1).stderr
    assert message in error.splitlines()[-1] and "Traceback" not in error


def test_other_line_ends_blank_lines_and_a_byte_order_mark_change_nothing(copy, run_script):
    run_script(*train_command(copy, copy / "plain"))
    for part in ("train", "val", "test", "classes"):
        path = copy / "splits" / f"{part}.txt"
        lines = path.read_bytes().replace(b"\n", b"  \r\n\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + lines + b"  \n")
    run_script(*train_command(copy, copy / "odd"))
    assert same_weights(weights(copy / "plain" / "last.pt"), weights(copy / "odd" / "last.pt"))


def test_lists_of_two_folds_are_refused_by_testing(copy, demo, run_script):
    run_script(*train_command(copy, copy / "run", "--epochs", 1))
    edit(b"", (copy / "splits" / "test.txt").read_bytes())(copy)
    error = run_script("test.py", "--checkpoint", copy / "run" / "best.pt", status=1).stderr
    assert "6 videos are in two of the lists" in error and "different folds" in error
    (copy / "splits" / "test.txt").write_text("")
    error = run_script("test.py", "--checkpoint", copy / "run" / "best.pt", status=1).stderr
    assert "must both name videos" in error


@settings(max_examples=300, deadline=None)
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_a_list_or_a_named_mistake(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("list") / "train.txt"
    path.write_bytes(content)
    try:
        names, labels = read_split(path, num_classes=5)
    except SplitError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert len(names) == len(labels) == len(set(names)) and set(labels) <= set(range(5))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(blacklist_characters="\n\r"), min_size=1), unique=True))
def test_any_names_come_back_from_a_list(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("list") / "train.txt"
    names = [f"Class/{name}x" for name in names if ".." not in name]
    path.write_bytes("".join(f"{name} 1\n" for name in names).encode("utf-8", "surrogatepass"))
    assert read_split(path, num_classes=2)[1] == [1] * len(names)
    if not any(0xD800 <= ord(letter) < 0xE000 for name in names for letter in name):
        assert read_split(path, num_classes=2)[0] == names


# ==== configs and flags ====

YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
FLAGS = [action.dest for action in train.build_parser()._actions if action.dest != "help"]


@settings(max_examples=300, deadline=None)
@given(values=st.dictionaries(st.sampled_from(FLAGS), YAML, max_size=4), cut=st.integers(0, 60))
def test_any_config_is_read_or_ends_in_status_2(tmp_path_factory, values, cut):
    import yaml

    path = tmp_path_factory.mktemp("config") / "config.yaml"
    text = yaml.safe_dump(values)
    path.write_text(text[: len(text) - cut if cut < 10 else None], encoding="utf-8")
    try:
        args = parse_args(train.build_parser(), ["--config", str(path)])
    except SystemExit as stop:
        assert stop.code == 2
    else:
        assert args.bits >= 1 and args.backbone in train.BACKBONES


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=100))
def test_any_bytes_as_a_config_end_in_status_2(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as stop:  # at the least, --frames is missing
        parse_args(train.build_parser(), ["--config", str(path)])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--bits", 0], 2, "0 is not at least 1"),
        (["--classes-per-batch", 4], 1, "--classes-per-batch is 4"),
        (["--classes-per-batch", 1], 2, "1 is not at least 2"),
        (["--clips-per-class", 1], 2, "1 is not at least 2"),
        (["--crop", 1.5], 2, "1.5 is not above 0 and at most 1"),
        (["--crop-scale", 0.5, 1.5], 2, "1.5 is not above 0 and at most 1"),
        (["--crop-scale", 0.9, 0.5], 2, "the least is above the most"),
        (["--clip-frames", 9], 1, "only 8 a video (extract_frames.py --num-frames)"),
        (["--clip-frames", 9, "--cache", "ram", "--cache-frames", 8], 1, "8 a video (--cache"),
        (["--backbone", "c3d", "--clip-frames", 4], 1, "at least 16 frames"),
        (["--lr", "nan"], 2, "nan is not a number above 0"),
        (["--device", "cuda:99"], 1, ""),
        (["--device", "toaster"], 1, "toaster"),
        (["--freeze-until", "layer9"], 1, "choose from conv1, bn1"),
        (["--pretrained", "nowhere.pth"], 1, "file not found"),
    ],
)
def test_impossible_flags_are_refused_in_one_line(
    flags, status, message, demo, tmp_path, run_script
):
    error = run_script(*train_command(demo, tmp_path / "run", *flags), status=status).stderr
    assert message in error.splitlines()[-1] and "Traceback" not in error
    assert not (tmp_path / "run" / "last.pt").exists()


# ==== checkpoints ====


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(demo, tmp_path, run_script):
    run_script(*train_command(demo, tmp_path / "whole", "--epochs", 6))
    command = train_command(demo, tmp_path / "run", "--epochs", 6, "--save-steps", 1)
    run_script(*command[:-4], "--epochs", 6)
    last = tmp_path / "run" / "last.pt"
    previous = torch.load(tmp_path / "run" / "previous.pt", weights_only=True)
    assert previous["epoch"] == 5
    for damage in (b"", last.read_bytes()[:5000], None):
        if damage is None:
            last.unlink()  # as after a power cut between two renames
        else:
            last.write_bytes(damage)
        output = run_script(*command[:-2]).stdout
        assert "resuming" in output and "epoch 6" in output
        assert damage is None or "damaged" in output and "previous.pt instead" in output
        assert same_weights(weights(last), weights(tmp_path / "whole" / "last.pt"))
    last.write_bytes(b"")
    (tmp_path / "run" / "previous.pt").write_bytes(b"")
    error = run_script(*command[:-2], status=1).stderr
    assert "previous.pt" in error and "damaged" in error


def test_half_written_files_of_a_killed_run_are_removed(demo, tmp_path, run_script):
    stale = tmp_path / "run" / ".last.pt.123.partial"
    stale.parent.mkdir()
    stale.write_bytes(b"half")
    command = train_command(demo, tmp_path / "run", "--epochs", 1, "--cache", "disk",
                            "--cache-frames", 8, "--cache-folder", tmp_path / "cache")  # fmt: skip
    (tmp_path / "cache").mkdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    abandoned = tmp_path / "cache" / f".k.npy.{os.uname().nodename}.{dead.pid}.partial"
    foreign = tmp_path / "cache" / f".k.npy.another-machine.{dead.pid}.partial"
    abandoned.write_bytes(b"half"), foreign.write_bytes(b"at work")
    run_script(*command)
    assert not stale.exists() and not abandoned.exists() and foreign.exists()


# ==== full disks ====


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 400 kB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_extraction_on_a_full_disk_stops_and_goes_on(demo, small_disk, run_script):
    command = ["extract_frames.py", "--videos", demo / "videos", "--frames", small_disk / "frames",
               *EXTRACT]  # fmt: skip
    error = run_script(*command, status=1).stderr
    assert "No space left" in error and "fix this and rerun" in error and "Traceback" not in error
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    run_script(*command)
    for path in demo.glob("frames/*/*/*"):
        assert (small_disk / path.relative_to(demo)).read_bytes() == path.read_bytes()
    assert not (small_disk / "frames" / ".partial").exists()


def test_a_cache_on_a_full_disk_is_refused_and_leaves_nothing(demo, small_disk, run_script):
    command = train_command(demo, demo / "no_run", "--cache", "disk", "--cache-frames", 64,
                            "--cache-folder", small_disk)  # fmt: skip
    error = run_script(*command, status=1).stderr
    assert "GB free and the clips need" in error and os.listdir(small_disk) == [".lock"]


def test_a_disk_that_fills_while_the_cache_is_made_is_an_error_not_a_crash(
    demo, small_disk, run_script, monkeypatch
):
    """The check of free space passes, another program fills the disk; a memory map would kill."""
    from datasets import cache
    from datasets.cache import build_cache
    from datasets.frames import FrameDataset

    names, labels = read_split(demo / "splits" / "train.txt", 3)
    data = FrameDataset(names, labels, demo / "frames", 4)
    usage = cache.shutil.disk_usage(small_disk)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=10**12))
    with pytest.raises(OSError, match="No space left"):
        build_cache(data, 64, small_disk, 1)
    assert os.listdir(small_disk) == [".lock"]


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(demo, tmp_path, run_script):
    """A limit on the size of files stands for a full disk, so that any user can run this."""
    run_script(*train_command(demo, tmp_path / "whole"))
    last = tmp_path / "run" / "last.pt"
    last.parent.mkdir()
    (tmp_path / "whole" / "previous.pt").rename(last)
    before = last.read_bytes()
    script = (
        "import resource, signal, runpy, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "sys.argv = sys.argv[1:]; runpy.run_path('train.py', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", script, *map(str, train_command(demo, tmp_path / "run"))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "resuming" in result.stdout and "the earlier one is kept" in result.stderr
    assert last.read_bytes() == before and not list(last.parent.glob(".*.partial"))
    run_script(*train_command(demo, tmp_path / "run"))
    assert same_weights(weights(last), weights(tmp_path / "whole" / "last.pt"))


def test_a_folder_that_cannot_be_written_is_named(demo, tmp_path, run_script):
    """A file stands where the folder would be, which not even the root user can write into."""
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "below"
    for command in (
        ["extract_frames.py", "--videos", demo / "videos", "--frames", output],
        ["make_splits.py", "--dataset", "folder", "--frames", demo / "frames", "--output", output],
        train_command(demo, output),
        train_command(demo, tmp_path / "run", "--cache", "disk", "--cache-folder", output),
    ):
        error = run_script(*command, status=1).stderr
        assert "Not a directory" in error.splitlines()[-1] and "Traceback" not in error


# ==== processes ====


def children(pid):
    """Process ids of the children of a process."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def start_training(demo, run, *flags, launcher=()):
    command = [sys.executable, *launcher, *map(str, train_command(demo, run, "--epochs", 5000,
               "--eval-every", 5000, *flags))]  # fmt: skip
    with open(run.parent / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log)
    while not (run / "last.pt").exists():
        assert process.poll() is None, (run.parent / "log").read_text()
        time.sleep(0.05)
    return process


def test_a_dead_loader_worker_is_named(demo, tmp_path):
    process = start_training(demo, tmp_path / "run", "--workers", 2)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    last = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert "a process that reads frames was killed" in last and "--workers" in last


def test_when_one_of_two_processes_dies_the_other_leaves(demo, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    process = start_training(demo, tmp_path / "run", "--clips-per-class", 2,
                             launcher=map(str, launcher))  # fmt: skip
    ranks = children(process.pid)
    started = time.monotonic()
    os.kill(ranks[-1], signal.SIGKILL)
    assert process.wait(timeout=90) != 0 and time.monotonic() - started < 60
    log = (tmp_path / "log").read_text()
    assert "another process of this run has ended" in log and "Traceback (most" not in log.split(
        "another process")[0], log  # fmt: skip
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["epoch"] >= 1


def test_a_lack_of_memory_is_told_with_what_to_lower():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60)
    assert explain(error.value, "--size") == "out of memory; lower --size"
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert explain(gpu, "--size") == explain(MemoryError(), "--size")
    assert explain(RuntimeError("shapes differ"), "--size") is None


def test_a_script_that_runs_out_of_memory_says_what_to_lower(demo, tmp_path):
    """With an address space that holds the program but not the batch."""
    command = train_command(demo, tmp_path / "run", "--size", 2000, "--workers", 0, "--width", 0.5)
    limit = 6 * 2**30
    result = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert "out of memory; lower --classes-per-batch" in result.stderr.splitlines()[-1]


# ==== numbers ====


def test_collapsed_codes_are_reported(copy, run_script):
    """All videos grey and alike give equal codes, if no batch statistics blow up the rounding."""
    healthy = run_script(*train_command(copy, copy / "healthy")).stdout
    assert "warning" not in healthy
    grey = cv2.imencode(".jpg", np.full((20, 24, 3), 90, np.uint8))[1].tobytes()
    for path in (copy / "frames").glob("*/*/*.jpg"):
        replace(path, grey)
    flags = ("--colour-jitter", 0, "--freeze-batch-norm")
    output = run_script(*train_command(copy, copy / "run", *flags)).stdout
    assert "warning: the codes have collapsed" in output and "lower --lr" in output
    records = (copy / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(records[-1])["train/code_spread"] < 0.02


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
