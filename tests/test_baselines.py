"""Baselines see what they should; ranks equal a loop; intervals are those of recordings."""

import numpy as np
import pytest
import torch

from reports.comparison import format_comparison
from retrieval.baselines import compare, encode_baselines, interval, measure_baselines, rank

CLASSES, EACH = 4, 6


def moving_clips(seed=0):
    """Clips (24, 8, 32, 32, 3) of a spot; its class is the quarter in which it moves."""
    rng = np.random.default_rng(seed)
    clips = np.empty((CLASSES * EACH, 8, 32, 32, 3), np.uint8)
    background = rng.integers(0, 256, (CLASSES * EACH, 1, 8, 8, 1))  # of each clip
    clips[:] = background.repeat(4, axis=2).repeat(4, axis=3)
    labels = np.repeat(np.arange(CLASSES), EACH)
    for clip, label in zip(clips, labels, strict=True):
        for t in range(8):
            y, x = 16 * (label // 2) + 4, 16 * (label % 2) + t
            clip[t, y : y + 6, x : x + 6] = 255 if clip[t, y, x].mean() < 128 else 0
    return torch.from_numpy(clips), torch.from_numpy(labels)


def test_motion_energy_finds_where_things_move_and_raw_frames_find_backgrounds():
    clips, labels = moving_clips()
    features = encode_baselines(clips)
    queries, database = torch.arange(24) % EACH == 0, torch.arange(24) % EACH > 0
    sides = features[queries], labels[queries], features[database], labels[database]
    by_motion = measure_baselines(*sides)
    assert by_motion["motion energy"]["map"].mean() > 0.95
    assert by_motion["raw frames"]["map"].mean() < 0.7
    still = encode_baselines(clips[:, :1].expand(-1, 8, -1, -1, -1))
    width = features.shape[1] - 256
    nearest = (still[:, :width] @ features[:, :width].T).argmax(dim=1)
    assert torch.equal(nearest, torch.arange(24))
    assert still.isfinite().all() and not still[:, width:].any()  # no motion


def test_rank_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    relevant = torch.rand(20, 15, generator=generator) < 0.3
    relevant[0] = False
    average, first = rank(relevant)
    for row, value, at_1 in zip(relevant.tolist(), average.tolist(), first.tolist(), strict=True):
        hits = [sum(row[: k + 1]) / (k + 1) for k in range(15) if row[k]]
        assert value == pytest.approx(sum(hits) / max(len(hits), 1))
        assert at_1 == row[0]


def test_intervals_are_wide_where_recordings_differ_and_not_where_queries_do():
    groups = torch.arange(400) // 40  # ten recordings
    by_recording = (groups % 2).double()
    low, high = interval(by_recording, groups)
    assert low < 0.3 and high > 0.7
    by_query = (torch.arange(400) % 2).double()
    assert interval(by_query, groups) == pytest.approx((0.5, 0.5))
    spread = interval(torch.arange(400).double() % 2, torch.arange(400))
    error = 1.96 * 0.5 / 400**0.5  # of the mean of independent queries
    assert spread == pytest.approx((0.5 - error, 0.5 + error), abs=0.01)
    assert interval(by_query, torch.zeros(400, dtype=torch.int64)) is None


def test_recordings_count_by_their_queries():
    """One recording of 90 queries that fail and nine of one query that succeed."""
    groups = torch.tensor([0] * 90 + list(range(1, 10)))
    low, _ = interval((groups > 0).double(), groups)
    assert low < 0.05


def comparison_of(network, motion):
    """Of 40 queries of two classes and four recordings, with these chances to be right."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(3, 40, generator=generator)
    values = {"network": draw[0] < network, "motion energy": draw[1] < motion}
    values["raw frames"] = draw[2] < 0.2
    values = {
        name: {"map": v.double() / 2, "precision_at_1": v.double()} for name, v in values.items()
    }
    labels, groups = torch.arange(40) % 2, torch.arange(40) // 10
    return compare(values.pop("network"), values, labels, ["hug", "kick\n"], groups)


def test_the_comparison_has_all_and_each_class():
    rows = comparison_of(0.9, 0.5)
    assert {name: (row["queries"], row["recordings"]) for name, row in rows.items()} == {
        "all": (40, 4), "class hug": (20, 4), "class kick\n": (20, 4),
    }  # fmt: skip
    values = rows["all"]["precision_at_1"]
    assert values["interval"][0] < values["network"] < values["interval"][1]
    halves = [rows[f"class {name}"]["precision_at_1"]["network"] for name in ("hug", "kick\n")]
    assert sum(halves) / 2 == pytest.approx(values["network"])


def test_a_network_that_does_not_beat_a_baseline_is_told_so():
    good = format_comparison(comparison_of(0.9, 0.5), has_recordings=True)
    assert "Warning" not in good and "over the 4 recordings" in " ".join(good.split())
    assert all(word in good for word in ("hug", "kick", "motion energy", "mAP, all"))
    bad = format_comparison(comparison_of(0.4, 0.8), has_recordings=False)
    assert "is not better than motion energy" in bad and "over the queries" in " ".join(bad.split())
    assert max(map(len, f"{good}\n{bad}".splitlines())) <= 80
