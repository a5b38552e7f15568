"""The log of a training."""

import json

import cv2
import numpy as np
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
    figure = run_log.precision_recall_figure({"a": METRICS})
    log.show_validation(7, METRICS, figure)
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()
    scalars = ["1_val/map", "2_train/active_fraction", "2_train/loss", "2_train/loss_all"]
    assert sorted(tags["scalars"]) == [*scalars, "3_diagnostics/code_spread"]
    assert "1_val/retrieval" in tags["images"] and len(tags["images"]) == 3
    [shown] = events.Images("1_val/retrieval")
    assert shown.encoded_image_string.startswith(b"\xff\xd8"), "JPEG"
    picture = cv2.imdecode(np.frombuffer(shown.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (shown.height, shown.width, 3) and shown.step == 7
    figure.savefig(tmp_path / "figure.png")
    drawn = cv2.imread(str(tmp_path / "figure.png"))
    assert np.abs(picture.astype(int) - drawn).mean() < 3


def test_intact_lines_of_a_damaged_log_are_kept(tmp_path):
    lines = [json.dumps({"epoch": epoch, "seconds": 2.5 * epoch}) for epoch in (1, 2, 3)]
    damaged = [lines[0], lines[1][:9], "\xff", '{"epoch": "2"}', "[]", lines[2]]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(damaged).encode("latin-1"))
    log = RunLog(tmp_path, finished=3)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [lines[0], lines[2]]
    assert log.seconds == 7.5
