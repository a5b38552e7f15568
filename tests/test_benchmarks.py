"""The benchmarks of training steps and of GPUs run with today's code."""

import argparse
import json
import time

import pytest
import torch

from benchmarks import gpu, gpu_measurements, step
from models import BACKBONES

pytestmark = pytest.mark.scripts


@pytest.fixture(autouse=True)
def one_thread():
    """Several threads would mostly wait for each other in small steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_backbone_is_timed_on_one_batch_and_on_the_cache(monkeypatch, capsys):
    """Steps run; the clock says 1 s for the peak, then 1 s and 0.5 s for each backbone."""
    seconds = iter([1.0] + [1.0, 0.5] * len(BACKBONES))

    def run_once(function, *_, **__):
        function()
        return next(seconds)

    monkeypatch.setattr(step, "median_seconds", run_once)
    flags = "step --batch 4 --clip-frames 16 --size 16 --width 0.0625 --runs 1"
    monkeypatch.setattr("sys.argv", flags.split())
    step.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == list(BACKBONES)
    for _, speed, _, cache_speed, ratio in rows:
        assert (speed, cache_speed, ratio) == ("4.0", "8.0", "200.0%")


@pytest.fixture
def run_gpu(tmp_path, monkeypatch):
    """A function that runs `benchmarks.gpu --tiny`: (status, content of gpu.json, gpu.md)."""

    def run():
        monkeypatch.setattr("sys.argv", ["gpu", "--tiny", "--output", str(tmp_path)])
        status = gpu.main()
        assert not list(tmp_path.glob(".*"))
        return status, json.loads((tmp_path / "gpu.json").read_text()), tmp_path / "gpu.md"

    return run


@pytest.mark.scripts
def test_every_measurement_of_the_gpu_benchmark_returns_figures(run_gpu, capsys):
    status, report, table = run_gpu()
    records = report["measurements"]
    assert {record["state"] for record in records.values()} == {"done"}, records
    assert status == 0 and {f"step {name}" for name in BACKBONES} <= records.keys()
    figures = {name: record["figures"] for name, record in records.items()}
    for name in BACKBONES:
        steps = figures[f"step {name}"]
        ratio = steps["cache_clips_per_second"] / steps["one_batch_clips_per_second"]
        assert steps["cache_over_one_batch"] == pytest.approx(ratio)
        assert steps["one_batch_fraction_of_peak"] > 0
    assert figures["evaluation"]["database"] == 1000 and figures["loss"]["milliseconds"] > 0
    assert figures["cache"]["clips"] == 8 and figures["rehearsal"]["epoch_2_seconds"] > 0
    assert 0 < figures["precision"]["float32_map"] <= 1
    if not torch.cuda.is_available():
        assert figures["precision"]["equal_bits"] == 1  # both are float32
    environment = report["environment"]
    assert {"torch", "torchvision"} <= environment["packages"].keys() and environment["device"]
    assert table.read_text() in capsys.readouterr().out
    assert "| step c3d | cache clips per second |" in table.read_text()


def fail(settings):
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")


def hang(settings):
    time.sleep(60)


def succeed(settings):
    assert settings.figures == {"fails": {}}
    return {"speed": 2.0}


def test_measurements_end_in_time(monkeypatch):
    measurements = {"fails": (fail, 0), "hangs": (hang, 0), "does not fit": (succeed, 60)}
    monkeypatch.setattr(gpu, "MEASUREMENTS", measurements)
    settings = argparse.Namespace(figures={}, device=torch.device("cpu"))
    records = {}
    gpu.run_measurements(settings, time.monotonic() + 3, records, save=lambda: None)
    assert [record["state"] for record in records.values()] == ["failed", "failed", "skipped"]
    assert records["fails"]["reason"] == "OutOfMemoryError: CUDA out of memory."
    assert records["hangs"]["reason"].startswith("OutOfTimeError: stopped after ")
    assert records["does not fit"]["reason"] == "0 s were left and it may take 60 s"


def test_the_gpu_benchmark_continues_after_a_failure(run_gpu, monkeypatch):
    monkeypatch.setattr(gpu, "MEASUREMENTS", {"fails": (fail, 0), "succeeds": (succeed, 0)})
    status, report, table = run_gpu()
    assert status == 1
    assert report["measurements"]["succeeds"]["figures"] == {"speed": 2.0}
    assert "| fails | not measured | OutOfMemoryError: CUDA out of memory. |" in table.read_text()


def test_a_killed_gpu_benchmark_keeps_the_earlier_figures(run_gpu, monkeypatch, tmp_path):
    def kill(settings):
        raise KeyboardInterrupt

    measurements = {"one": (lambda settings: {"speed": 1.0}, 0), "two": (kill, 0)}
    monkeypatch.setattr(gpu, "MEASUREMENTS", measurements)
    with pytest.raises(KeyboardInterrupt):
        run_gpu()
    records = json.loads((tmp_path / "gpu.json").read_text())["measurements"]
    assert records["one"]["figures"] == {"speed": 1.0}
    assert records["two"] == {"state": "started"}


@pytest.mark.scripts
def test_a_failed_script_in_the_gpu_benchmark_is_reported_by_its_last_line():
    with pytest.raises(RuntimeError, match="make_splits.py ended with status 2: .*required"):
        gpu_measurements.run_script(["make_splits.py"], {})
