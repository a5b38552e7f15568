"""The benchmarks of training steps and of a GPU run on what this code is today."""

import json
import time

import pytest
import torch

from benchmarks import gpu, gpu_parts, step
from models import BACKBONES


@pytest.fixture(autouse=True)
def one_thread():
    """Small steps of several threads mostly wait for each other beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_backbone_is_timed_from_one_batch_and_from_the_cache(monkeypatch, capsys):
    flags = "step --batch 4 --clip-frames 16 --size 16 --width 0.0625 --runs 1"
    monkeypatch.setattr("sys.argv", flags.split())
    step.main()
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[:2] for line in lines] == [
        [backbone, source] for backbone in BACKBONES for source in ("synthetic", "cache")
    ]
    assert all(float(line.split()[2]) > 0 for line in lines)
    assert {line.split()[-1] for line in lines[::2]} == {"100.0%"}


@pytest.fixture
def run_gpu(tmp_path, monkeypatch):
    """A function that runs `benchmarks.gpu --tiny` -> (status, content of gpu.json, gpu.md)."""

    def run(*flags):
        flags = ["gpu", "--tiny", "--output", str(tmp_path), *flags]
        monkeypatch.setattr("sys.argv", flags)
        status = gpu.main()
        assert not list(tmp_path.glob(".*"))
        return status, json.loads((tmp_path / "gpu.json").read_text()), tmp_path / "gpu.md"

    return run


def test_every_part_of_the_gpu_benchmark_gives_figures(run_gpu, capsys):
    status, report, table = run_gpu()
    assert {part["state"] for part in report["parts"].values()} == {"done"}, report["parts"]
    assert status == 0 and {f"step {name}" for name in BACKBONES} <= report["parts"].keys()
    figures = {name: part["figures"] for name, part in report["parts"].items()}
    for name in BACKBONES:
        assert figures[f"step {name}"]["cache_clips_per_second"] > 0
        assert figures[f"step {name}"]["synthetic_share_of_peak"] > 0
    assert figures["evaluation"]["database"] == 1000 and figures["loss"]["milliseconds"] > 0
    assert figures["cache"]["clips"] == 8 and figures["rehearsal"]["epoch_2_seconds"] > 0
    assert 0 < figures["precision"]["float32_map"] <= 1
    if not torch.cuda.is_available():
        assert figures["precision"]["equal_bits"] == 1  # both are float32
    about = report["environment"]
    assert {"torch", "torchvision"} <= about["packages"].keys() and about["device"]
    assert table.read_text() in capsys.readouterr().out
    assert "| step c3d | cache clips per second |" in table.read_text()


def test_the_gpu_benchmark_goes_on_after_failures_and_ends_in_time(run_gpu, monkeypatch):
    def fail(settings):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    def last(settings):
        assert settings.figures == {"fails": {}, "is slow": {}}
        return {"speed": 2.0}

    def slow(settings):
        time.sleep(30)

    parts = {"fails": (fail, 0), "is slow": (slow, 0), "does not fit": (last, 60)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    status, report, table = run_gpu("--minutes", "0.01")
    states = {name: part["state"] for name, part in report["parts"].items()}
    assert states == {"fails": "failed", "is slow": "failed", "does not fit": "skipped"}
    assert status == 1 and report["seconds"] < 10
    assert report["parts"]["fails"]["reason"] == "OutOfMemoryError: CUDA out of memory."
    assert "it was stopped after" in report["parts"]["is slow"]["reason"]
    assert "it may take 60 s" in table.read_text()
    monkeypatch.setattr(gpu, "PARTS", {"fails": (fail, 0), "is slow": (fail, 0), "last": (last, 0)})
    _, report, _ = run_gpu()
    assert report["parts"]["last"]["figures"] == {"speed": 2.0}


def test_a_kill_leaves_the_figures_of_the_parts_before(run_gpu, monkeypatch, tmp_path):
    def kill(settings):
        raise KeyboardInterrupt

    parts = {"one": (lambda settings: {"speed": 1.0}, 0), "two": (kill, 0)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    with pytest.raises(KeyboardInterrupt):
        run_gpu()
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["parts"]["one"]["figures"] == {"speed": 1.0}
    assert report["parts"]["two"] == {"state": "started"}


def test_a_script_that_fails_within_the_gpu_benchmark_gives_its_last_line():
    with pytest.raises(RuntimeError, match="make_splits.py ended with status 2: .*required"):
        gpu_parts.run_script("make_splits.py")
