"""train.py, test.py and search.py on a GPU, and with NCCL on two.

    python -m pytest tests/test_gpu.py

The data are frame folders drawn with OpenCV, so neither PyAV nor Faiss is needed.
"""

import importlib
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from benchmarks.rehearsal import draw_frames
from datasets.frames import FrameDataset
from datasets.splits import read_split
from models import build_model
from utils.device import mixed_precision

DEVICE = "cuda"
ROOT = Path(__file__).resolve().parent.parent
SIZES = {"classes": 3, "groups": 5, "videos": 45, "test_groups": 1, "val_groups": 1}
BATCHES = 7  # of 4 clips in an epoch of the 27 training clips
TINY = "--backbone resnet18 --clip-frames 16 --size 24 --width 0.125 --bits 16 --epochs 1"
TINY += " --classes-per-batch 2 --clips-per-class 2 --warmup-epochs 0 --optimizer sgd --lr 0.001"
TINY += " --weight-decay 0.0005 --crop-scale 1 1 --no-flip --colour-jitter 0 --cache-frames 16"
TINY += " --workers 1"
pytestmark = pytest.mark.scripts
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]

if not torch.cuda.is_available():
    pytest.skip("PyTorch finds no CUDA GPU here", allow_module_level=True)


def run(*arguments, status=0):
    """Run Python in a new process, which starts CUDA for itself, and check its exit status."""
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == status, result.stdout + result.stderr
    return result


def training(data, output, *flags, device=DEVICE):
    """The command; for torchrun, device is None and train.py chooses it."""
    paths = ["--frames", data / "frames", "--splits", data / "splits", "--output", output]
    device = ["--device", device] if device else []
    return ["train.py", *paths, *device, *TINY.split(), *flags]


def patched(*patches):
    return ["tests/patched_script.py", *patches]


def load(path):
    return torch.load(path, weights_only=True, map_location="cpu")


def check_run(output, epochs=1):
    """Every epoch is logged once with a finite loss, validation ran, and weights are finite."""
    logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in logged] == list(range(1, epochs + 1))
    assert all(np.isfinite(record["train/loss"]) for record in logged)
    assert 0 < logged[-1]["val/map"] <= 1
    assert all(tensor.isfinite().all() for tensor in load(output / "last.pt")["model"].values())
    return logged


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Square frames: a crop of the full side is always the whole frame."""
    root = tmp_path_factory.mktemp("gpu")
    draw_frames(root, **SIZES, frames=16, size=(24, 24))
    return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run that has learnt something, in mixed precision, the default."""
    output = tmp_path_factory.mktemp("runs") / "run"
    flags = "--epochs 20 --eval-every 20 --optimizer adamw --lr 0.002 --cache device"
    run(*training(data, output, *flags.split()))
    logged = check_run(output, epochs=20)
    assert logged[-1]["train/active_fraction"] < logged[0]["train/active_fraction"]
    return output


# ==== precisions ====


def test_mixed_precision_is_bfloat16_where_the_hardware_has_it():
    has_bfloat16 = torch.cuda.get_device_capability() >= (8, 0)
    expected = torch.bfloat16 if has_bfloat16 else torch.float16
    assert mixed_precision(torch.device(DEVICE), True) == expected
    assert mixed_precision(torch.device(DEVICE), False) is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_epoch_in_half_precision_is_near_one_in_float32(dtype, data, tmp_path):
    run(*patched(f"precision={dtype}"), *training(data, tmp_path / "half"))
    run(*training(data, tmp_path / "single", "--no-amp"))
    half, single = check_run(tmp_path / "half")[0], check_run(tmp_path / "single")[0]
    assert half["train/loss"] != single["train/loss"], "both were float32"
    assert half["train/loss"] == pytest.approx(single["train/loss"], rel=0.2)
    scaler = load(tmp_path / "half" / "last.pt")["training"]["scaler"]
    assert bool(scaler) == (dtype == "float16"), "only float16 scales its loss"


def test_an_epoch_compiled(data, tmp_path):
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("torch.compile needs a C compiler")
    run(*training(data, tmp_path / "compiled", "--compile", "--no-amp"))
    run(*training(data, tmp_path / "eager", "--no-amp"))
    compiled, eager = check_run(tmp_path / "compiled")[0], check_run(tmp_path / "eager")[0]
    assert compiled["train/loss"] == pytest.approx(eager["train/loss"], rel=0.1)


# ==== caches ====


@pytest.mark.parametrize("cache", ["disk", "ram", "device"])
def test_an_epoch_from_each_cache_is_near_one_from_frame_folders(cache, data, tmp_path):
    folder = ["--cache-folder", tmp_path / "cache", "--no-amp"]
    run(*training(data, tmp_path / "run", "--cache", cache, *folder))
    run(*training(data, tmp_path / "folders", "--no-amp"))
    cached, read = check_run(tmp_path / "run")[0], check_run(tmp_path / "folders")[0]
    assert cached["train/loss"] == pytest.approx(read["train/loss"], rel=0.1)


@pytest.mark.parametrize("cache", ["none", "ram", "device"])
def test_steps_do_not_wait_for_the_gpu(cache, data, tmp_path):
    """Pinned batches of a worker and of the main process, and batches of a cache on the device.

    The first steps may wait, since they set up the GPU; the last step of an epoch reads the loss.
    """
    flags = ["--cache", cache, "--cache-folder", tmp_path / "cache"]
    command = training(data, tmp_path / "run", *flags)
    output = run(*patched(f"no_waiting=3:{BATCHES - 1}"), *command).stdout
    assert f"steps 3 to {BATCHES - 1} did not wait" in output
    check_run(tmp_path / "run")


def test_a_step_that_waits_is_noticed(data, tmp_path):
    """A checkpoint within an epoch reads the loss, which waits."""
    command = training(data, tmp_path / "run", "--save-steps", 4)
    error = run(*patched(f"no_waiting=3:{BATCHES - 1}"), *command, status=1).stderr
    assert "synchroniz" in error


# ==== resuming ====


def test_a_killed_run_resumes_at_its_step(data, tmp_path):
    """Killed after step 10, the third of the second epoch, when step 9 was the last one saved."""
    flags = ["--epochs", 2, "--eval-every", 2, "--save-steps", 1, "--no-amp", "--deterministic"]
    run(*training(data, tmp_path / "whole", *flags))
    command = training(data, tmp_path / "run", *flags)
    run(*patched("kill=10"), *command, status=-signal.SIGKILL)
    state = load(tmp_path / "run" / "last.pt")["training"]
    assert (state["epoch"], state["batch"]) == (1, 2)
    assert "at epoch 2, batch 3" in run(*command).stdout
    whole, resumed = check_run(tmp_path / "whole", 2), check_run(tmp_path / "run", 2)
    for one, other in zip(whole, resumed, strict=True):
        assert other["train/loss"] == pytest.approx(one["train/loss"], rel=0.1)


# ==== inference ====


def test_codes_of_test_py_in_mixed_precision_are_near_those_of_float32(trained, tmp_path):
    values = []
    for flag in ("--amp", "--no-amp"):
        paths = ["--checkpoint", trained / "last.pt", "--output", tmp_path / flag]
        run("test.py", *paths, "--device", DEVICE, flag)
        codes = np.load(tmp_path / flag / "codes.npz")
        values.append(np.concatenate([codes["query_codes"], codes["database_codes"]]))
    check_near(*values)


def check_near(mixed, single):
    assert mixed.shape == single.shape and mixed.dtype == single.dtype == np.float32
    if DEVICE == "cuda":
        assert (mixed != single).any(), "both were float32"
    assert np.abs(mixed - single).mean() < 0.05
    assert ((mixed >= 0) == (single >= 0)).mean() > 0.95


def import_search(monkeypatch):
    """search.py; its encoder needs neither Faiss nor PyAV, so these may be absent."""
    for name in ("faiss", "av", "av.filter", "av.video", "av.video.reformatter"):
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            monkeypatch.setitem(sys.modules, name, MagicMock())
    return importlib.import_module("search")


def test_codes_of_search_py_in_mixed_precision_are_near_those_of_float32(
    data, trained, monkeypatch
):
    search = import_search(monkeypatch)
    names, labels = read_split(data / "splits" / "train.txt", 3)
    frames = FrameDataset(names, labels, data / "frames", 16)
    clips = torch.stack([frames[i][0] for i in range(len(frames))])
    device, values = torch.device(DEVICE), []
    for amp in (True, False):
        encoder = search.load_encoder(trained / "last.pt", device, amp)
        values.append(encoder.encode(clips).cpu().numpy())
    check_near(*values)


# ==== several processes ====


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=two_gpus)])
def test_synchronised_batch_norm_with_frozen_layers_through_torchrun(processes, data, tmp_path):
    """Frozen layers keep their weights and running means; the others learn."""
    flags = ["--sync-batch-norm", "--freeze-until", "layer1", "--seed", 5]
    command = training(data, tmp_path / "run", *flags, device=None)
    run(*TORCHRUN, processes, *command)
    check_run(tmp_path / "run")
    torch.manual_seed(5)
    before = build_model("resnet18", 16, width=0.125).state_dict()
    after = load(tmp_path / "run" / "last.pt")["model"]
    frozen = ("backbone.conv1", "backbone.bn1", "backbone.layer1")
    is_same = {name: torch.equal(before[name], after[name]) for name in before}
    assert "backbone.layer1.0.bn1.running_mean" in is_same
    assert all(is_same[name] for name in before if name.startswith(frozen))
    assert not any(is_same[name] for name in before if name.startswith("backbone.layer4"))


@two_gpus
def test_two_gpus_have_the_loss_of_one(data, tmp_path):
    """C3D, which has no batch normalisation, without augmentation: the same batches."""
    losses = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        flags = ["--backbone", "c3d", "--no-amp"]
        command = training(data, folder / "run", *flags, device=None)
        run(*TORCHRUN, processes, *patched(f"losses={folder}"), *command)
        files = sorted(folder.glob("*.txt"))
        losses[processes] = [np.array(file.read_text().split(), float) for file in files]
    (one,), (first, second) = losses[1], losses[2]
    assert len(one) == BATCHES and one.any()
    assert np.array_equal(first, second)
    np.testing.assert_allclose(first, one, rtol=0.02)
