"""The log of a training."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_reports import METRICS

from reports import run_log
from reports.run_log import Clock, RunLog, describe_epoch, show_seconds

RECORD = {
    "epoch": 7,
    "seconds": 61.4,
    "train/loss": 3.9123,
    "train/loss_all": 1.2,
    "train/active_fraction": 0.308,
}


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (725, "12:05"), (10925, "3:02:05")])
def test_durations(seconds, text):
    assert show_seconds(seconds) == text


def test_the_line_of_an_epoch():
    line = "epoch   7/40  loss 3.912 (all 1.200)  violated 30.8%  1:01, 4:50 left"
    assert describe_epoch(RECORD, 40, 290, is_best=False) == line
    validated = {**RECORD, "val/map": 0.7412}
    assert describe_epoch(validated, 40, 290, is_best=False) == line + "  val mAP 0.7412"
    assert describe_epoch(validated, 40, 290, is_best=True) == line + "  val mAP 0.7412 ★"


def test_the_estimate_of_a_run_is_printed_once(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(run_log.time, "monotonic", lambda: now[0])
    clock = Clock(first=50, last=1000, earlier=30.0)
    now[0] += 20
    for _ in range(2):
        clock.announce(70)
    assert capsys.readouterr().out == "about 15:30 to train, by the first steps\n"
    assert clock.remaining(70) == pytest.approx(930) and clock.seconds() == pytest.approx(50)
    Clock(first=0, last=100).announce(90)
    assert capsys.readouterr().out == "", "a short run"


def test_logs_of_earlier_versions_count_epochs_from_0(tmp_path):
    lines = [json.dumps({"epoch": epoch, "val/map": epoch / 10}) for epoch in range(4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    log = RunLog(tmp_path, finished=2)
    assert [(r["epoch"], r["val/map"]) for r in log.read()] == [(1, 0.0), (2, 0.1)]
    log.write({"epoch": 3, "seconds": 5.0})
    log.close()
    log = RunLog(tmp_path, finished=3)
    assert [record["epoch"] for record in log.read()] == [1, 2, 3] and log.seconds == 5.0
    log.close()


def test_tensorboard_shows_validation_first_and_diagnostics_last(tmp_path):
    log = RunLog(tmp_path)
    log.write({**RECORD, "train/code_spread": 0.5, "step": 70, "val/map": 0.5})
    log.show_validation(7, METRICS, run_log.precision_recall_figure({"a": METRICS}))
    log.close()
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    scalars = ["1_val/map", "2_train/active_fraction", "2_train/loss", "2_train/loss_all"]
    assert sorted(tags["scalars"]) == [*scalars, "3_diagnostics/code_spread"]
    assert "1_val/retrieval" in tags["images"] and len(tags["images"]) == 3
