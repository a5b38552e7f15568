"""The experiment runner: every setting trains, finished runs are kept, splits leak no group."""

import csv
import itertools
import json

import cv2
import numpy as np
import pytest
import torch

from benchmarks import comparisons, recipe, recipe_features


@pytest.fixture
def features(tmp_path):
    """Four classes as far apart as their noise, ten groups each; four groups are the test part."""
    rng = np.random.default_rng(0)
    labels, groups = np.divmod(np.arange(120), 30)[0], np.arange(120) % 10 + 1
    centres = rng.normal(size=(4, 32))
    names = [
        f"v_C{label}_g{group:02d}_c01.avi" for label, group in zip(labels, groups, strict=True)
    ]
    path = tmp_path / "features.npz"
    np.savez(path, features=centres[labels] + rng.normal(size=(120, 32)), labels=labels,
             is_train=groups > 4, names=names)  # fmt: skip
    return path


def test_validation_and_test_share_no_group_with_training(features):
    data = recipe_features.read_features(features)
    groups = data[3]
    for final, seed in ((False, 0), (False, 3), (True, 0)):
        train, queries, database = recipe_features.divide(data, final, unseen=0, seed=seed)
        assert (train == database).all() and queries.sum() and train.sum()
        assert not set(groups[queries]) & set(groups[train])
    train, queries, database = recipe_features.divide(data, True, unseen=2, seed=0)
    labels = data[1].numpy()
    assert set(labels[train]) == {0, 1} and set(labels[queries]) == set(labels[database]) == {2, 3}


@pytest.mark.parametrize("name", [*recipe_features.CHANGES, *comparisons.BASELINES])
def test_every_setting_trains(name, features):
    data = recipe_features.read_features(features)
    settings = recipe_features.settings_of(name) | {"steps": 30}
    train, *rows = recipe_features.divide(data, True, settings["unseen"], 0)
    x, y = data[0][torch.from_numpy(train)], data[1][torch.from_numpy(train)]
    if name in comparisons.BASELINES:
        encode = comparisons.BASELINES[name](x, 16, 0)
    else:
        encode = recipe_features.train_head(x, y, settings, seed=0)
    result = recipe_features.measure(encode, data, rows)
    chance = 0.5 if settings["unseen"] else 0.25
    assert chance + 0.05 < result["map"] <= 1 and chance < result["map_real"] <= 1


def test_finished_runs_are_not_repeated(features, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(recipe_features.DEFAULT, "steps", 5)
    command = ["recipe", "features", "--features", str(features), "--output", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*command, "--names", "default", "16 bits", "--seeds", "2"])
    recipe.main()
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        first = list(csv.DictReader(file))
    assert [(r["name"], r["seed"]) for r in first] == [
        ("default", "0"), ("16 bits", "0"), ("default", "1"), ("16 bits", "1")
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", [*command, "--names", "default", "16 bits", "--seeds", "3"])
    recipe.main()
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        again = list(csv.DictReader(file))
    assert again[:4] == first and len(again) == 6
    assert "| default | 0." in capsys.readouterr().out


def test_unknown_settings_are_refused(features, tmp_path, monkeypatch, capsys):
    command = ["recipe", "features", "--features", str(features), "--output", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*command, "--names", "default", "16 bits + margins"])
    with pytest.raises(SystemExit):
        recipe.main()
    assert "--names: 'margins' is none of default," in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["recipe", "clips", "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        recipe.main()
    assert "clips needs --frames" in capsys.readouterr().err


def test_settings_are_compared_with_the_same_runs_of_the_default(tmp_path):
    results = recipe.Results(tmp_path / "results.csv")
    for name, maps in (("default", (0.5, 0.7, 0.9)), ("better", (0.6, 0.82))):
        for seed, value in enumerate(maps):
            results.add(name=name, part="val", seed=seed, map=value, map_real=value, seconds=1)
    _, _, better, default = recipe.Results(tmp_path / "results.csv").table("val")
    assert default == "| default | 0.7000 | 0.2000 | 0.7000 |  | 3 |"
    assert better == "| better | 0.7100 | 0.1556 | 0.7100 | +0.1100 ± 0.0100 | 2 |"


def test_clips_are_trained_and_compared_with_codes_made_without_labels(
    tmp_path, monkeypatch, capsys
):
    rng = np.random.default_rng(0)
    for label, sequence in itertools.product(range(2), range(1, 21)):
        folder = tmp_path / "frames" / f"class{label}" / f"{sequence}_{sequence}_{label}"
        folder.mkdir(parents=True)
        for number in range(4):
            frame = rng.integers(0, 256, (16, 16, 3), np.uint8) // 2 + 100 * label
            cv2.imwrite(str(folder / f"{number:06d}.jpg"), frame)
    flags = "--epochs 1 --size 16 --clip-frames 4 --width 0.125 --bits 8 --workers 0"
    flags += " --classes-per-batch 2 --clips-per-class 4 --device cpu"
    monkeypatch.setattr("sys.argv", [
        "recipe", "clips", "--frames", str(tmp_path / "frames"), "--output", str(tmp_path / "out"),
        "--names", "default", *comparisons.BASELINES, "--folds", "1", "--seeds", "1",
        "--flags", flags,
    ])  # fmt: skip
    recipe.main()
    test_list = (tmp_path / "out" / "splits-1" / "test.txt").read_text().split("\n")
    assert {line.split("_")[1] for line in test_list if line} == {"2", "7", "12", "17"}
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["default", *comparisons.BASELINES]
    assert all(0.4 < float(row["map"]) <= 1 and 0.4 < float(row["map_real"]) <= 1 for row in rows)
    metrics = json.loads((tmp_path / "out" / "default-1-0" / "test" / "metrics.json").read_text())
    assert float(rows[0]["map"]) == pytest.approx(metrics["map"])
    assert "| default | 0." in capsys.readouterr().out
