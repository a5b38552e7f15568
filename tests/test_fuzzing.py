"""Damaged and hostile files: read right or refused by one line, never a crash, never different.

The quick tests try some dozens of files of each kind, the slow ones thousands.
"""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from fuzzing import ODD_VALUES, cases, change_bytes, change_value, flip_bit
from helpers import checkpoint_content, same_weights, train_command, weights
from test_frames import write_frames

from configs.flags import parse_train_flags
from datasets.cache import build_cache
from datasets.frame_folders import find_flaw, find_state, read_extraction, read_record
from datasets.frames import FrameDataset
from datasets.splits import read_classes, read_split
from models import build_model, build_saved_model
from reports.run_log import RunLog
from utils.checkpoint import FORMAT, append_hash, load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.files import write_text
from utils.train_state import NUM_TOTALS, RunCheckpoints, TrainState

SIZES = pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.slow)])


def read_or_refuse(read, *arguments):
    """(what `read(*arguments)` returns, None), or (None, its message), which is one short line."""
    try:
        return read(*arguments), None
    except UserError as error:
        message = str(error)
        assert message.isprintable() and len(message) < 1000, message[:2000]
        return None, message


def flatten(content):
    """The content of a checkpoint, with bytes instead of tensors."""
    if isinstance(content, dict):
        return {key: flatten(value) for key, value in content.items()}
    return content.numpy().tobytes() if isinstance(content, torch.Tensor) else content


# ==== checkpoints ====

ODD_TENSORS = (
    *(torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.int32), torch.ones(())),
    *(torch.eye(2).to_sparse(), torch.ones(2, device="meta"), torch.ones(1).expand(10**9)),
    *(torch.full((2,), torch.nan), torch.ones(0), torch.ones(2, dtype=torch.bfloat16)),
)


def make_state(seed=0):
    """A TrainState of a small network after one step of AdamW."""
    torch.manual_seed(seed)
    model = build_model("c3d", 4, width=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    scheduler.step()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(model, optimizer, scheduler, scaler, 1, 0, (1.0,) * NUM_TOTALS, 0.5)


METADATA = {
    **checkpoint_content(),
    "network": {"backbone": "c3d", "bits": 4, "width": 0.02, "shortcut": "B", "dropout": 0.0},
    "data": {"lists": "x", "frame size": [20, 24], "extraction": None, "processes": 1},
    "videos": {"train": ["a/b"], "val": []},
    "pretrained": None,
}


@SIZES
@pytest.mark.parametrize("has_hash", [True, False])
def test_damaged_bytes_of_a_checkpoint(count, has_hash, tmp_path):
    """Without a hash, as earlier versions wrote, the content is equal or refused."""
    path = tmp_path / "best.pt"
    content = checkpoint_content({"w": torch.randn(300), "b": torch.arange(5.0)})
    save_checkpoint(path, content)
    if not has_hash:
        torch.save({"format": FORMAT, **content}, path)
    whole, expected, refused = path.read_bytes(), flatten(load_checkpoint(path)), 0
    for rng in cases(1, count):
        path.write_bytes(change_bytes(whole, rng))
        loaded, message = read_or_refuse(load_checkpoint, path)
        refused += message is not None
        assert message or flatten(loaded) == expected
    assert refused == count if has_hash else refused > count / 2


@pytest.mark.parametrize("count", [20, pytest.param(1500, marks=pytest.mark.slow)])
def test_odd_values_in_a_checkpoint(count, tmp_path):
    """With the right hash. What is loaded can be built, and resumed as it is."""
    path = tmp_path / "last.pt"
    RunCheckpoints(tmp_path, make_state(), METADATA).save_last()
    content, loaded = load_checkpoint(path), 0
    run = RunCheckpoints(tmp_path, make_state(1), METADATA)
    for rng in cases(2, count):
        changed, _, _ = change_value(content, rng, ODD_VALUES + ODD_TENSORS)
        torch.save(changed, path)
        append_hash(path)
        checkpoint, message = read_or_refuse(load_checkpoint, path, "settings")
        if message is None:
            model, _ = read_or_refuse(build_saved_model, checkpoint, path)
            if model:
                model.load_state_dict(checkpoint["model"])
            _, message = read_or_refuse(run.resume, set())
            if message is None:
                loaded += 1
                run.state.optimizer.step()
                run.state.scheduler.step()
    assert 0 < loaded < count / 2


@pytest.mark.parametrize("count", [20, pytest.param(600, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_the_last_checkpoint_means_the_one_before(count, tmp_path):
    run = RunCheckpoints(tmp_path, make_state(), METADATA)
    run.save_last()
    run.state.epoch = 2
    run.save_last()
    whole = run.last.read_bytes()
    resumed = RunCheckpoints(tmp_path, make_state(1), METADATA)
    for rng in cases(3, count):
        run.last.write_bytes(flip_bit(whole, rng))
        assert "damaged" in resumed.resume(set()) and resumed.state.epoch == 1
        expected = run.state.model.state_dict()
        assert same_weights(expected, resumed.state.model.state_dict())


@pytest.mark.parametrize("count", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_the_last_checkpoint_changes_no_final_weight(
    count, demo, trained, tmp_path, run_script
):
    run = tmp_path / "run"
    for rng in cases(4, count):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(trained, run)
        (run / "last.pt").write_bytes(flip_bit((trained / "last.pt").read_bytes(), rng))
        output = run_script(*train_command(demo, run)).stdout
        assert "previous.pt instead" in output and "epoch   3/3" in output
        assert same_weights(weights(trained / "last.pt"), weights(run / "last.pt"))


# ==== lists ====


def read_list_literally(text, num_classes):
    """What a list says, read in another way than the code does; None where a line is wrong."""
    text, videos = text.decode("utf-8", "surrogateescape").removeprefix("\ufeff"), {}
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if line.strip():
            name, label = line.rstrip()[::-1].split(" ", 1)[::-1]
            name = "/".join(step for step in name[::-1].split("/") if step not in ("", "."))
            videos[name] = int(label[::-1])
    assert all(0 <= label < num_classes for label in videos.values())
    return videos


@SIZES
def test_damaged_lists(count, tmp_path):
    path = tmp_path / "train.txt"
    lines = [f"Class {i % 3}/v ü {i} {i % 3}\n" for i in range(12)]
    whole, read = "".join(lines).encode(), 0
    for rng in cases(5, count):
        path.write_bytes(change_bytes(whole, rng))
        result, message = read_or_refuse(read_split, path, 3)
        if message is None:
            expected = read_list_literally(path.read_bytes(), 3)
            assert dict(zip(*result, strict=True)) == expected
            assert not any(name.startswith("/") or ".." in name.split("/") for name in expected)
            read += 1
    assert 0 < read < count


@SIZES
def test_damaged_lists_of_classes(count, tmp_path):
    path = tmp_path / "classes.txt"
    for rng in cases(6, count):
        path.write_bytes(change_bytes(b"Archery\nBowling\nDiving\nSki jet\n", rng))
        classes, _ = read_or_refuse(read_classes, tmp_path)
        assert classes is None or len(classes) == len({name.strip() for name in classes})


# ==== frame folders and caches ====


@SIZES
def test_damaged_records_of_frame_folders(count, tmp_path):
    folder = tmp_path / "Class" / "video"
    write_frames(folder, range(3))
    settings = {"num_frames": 3, "size": [8, 12], "quality": 95}
    record = {"video": "video.avi", "size": 100, "mtime_ns": 10**18, "frames": 3}
    for rng in cases(7, count):
        for path, value in (
            (tmp_path / "extraction.json", settings),
            (folder / "video.json", record),
        ):
            damaged = change_value(value, rng)[0] if rng.random() < 0.5 else value
            text = json.dumps(damaged).encode()
            path.write_bytes(change_bytes(text, rng) if damaged is value else text)
        extraction, _ = read_or_refuse(read_extraction, tmp_path)
        assert extraction is None or type(extraction["num_frames"]) is int
        read_record(folder), find_flaw(folder, 0), find_state(tmp_path / "video.avi", folder, 0)
        read_or_refuse(lambda: FrameDataset(["Class/video"], [0], tmp_path, 2)[0])


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_caches(count, tmp_path):
    """A cache is used as it was written, or built again."""
    write_frames(tmp_path / "a", range(6))
    write_frames(tmp_path / "b", range(2, 8))
    data = FrameDataset(["a", "b"], [0, 1], tmp_path, 3)
    path = build_cache(data, 4, tmp_path / "cache", 1)
    whole = path.read_bytes()
    for rng in cases(8, count):
        path.write_bytes(change_bytes(whole, rng))
        with contextlib.redirect_stdout(io.StringIO()):
            build_cache(data, 4, tmp_path / "cache", 1)
        assert np.load(path, mmap_mode="r").tobytes() in whole


@SIZES
def test_damaged_logs(count, tmp_path):
    lines = "".join(f'{{"epoch": {i}, "train/loss": 0.5, "val/map": 0.1}}\n' for i in range(3))
    for rng in cases(9, count):
        (tmp_path / "metrics.jsonl").write_bytes(change_bytes(lines.encode(), rng))
        log = RunLog.__new__(RunLog)
        log.path = tmp_path / "metrics.jsonl"
        assert all(type(record["epoch"]) is int for record in log.read())


# ==== configs ====

CONFIG = """\
frames: data/frames
splits: "data/splits"
output: runs/x
bits: 48
lr: 0.001
crop_scale: [0.5, 1.0]
flip: false
backbone: resnet18
"""


def parse_config(path):
    """The flags of a config. Raises UserError with the one line on stderr."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return vars(parse_train_flags(None, ["--config", str(path)]))
    except SystemExit as stop:
        assert stop.code == 2 and errors.getvalue().endswith("\n")
        raise UserError(errors.getvalue()[:-1]) from stop


@SIZES
def test_damaged_configs(count, tmp_path):
    """A config that is read means what PyYAML and its text say."""
    path, read = tmp_path / "config.yaml", 0
    for rng in cases(10, count):
        if rng.random() < 0.5:
            path.write_bytes(change_bytes(CONFIG.encode(), rng))
        else:
            changed = change_value(yaml.safe_load(CONFIG), rng)[0]
            write_text(path, yaml.dump(changed, allow_unicode=bool(rng.integers(2))))
        args, message = read_or_refuse(parse_config, path)
        if message is None:
            read += 1
            text = path.read_text(encoding="utf-8-sig")
            written = yaml.load(text, yaml.BaseLoader)  # noqa: S506 - it makes strings only
            for key, value in yaml.safe_load(text).items():
                used, raw = args[key.replace("-", "_")], written[key]
                assert used == value or str(used) == raw or float(used) == float(value), key
    assert 0 < read < count
