"""The experiment runner: every setting trains, finished runs are kept, splits leak no group."""

import csv

import numpy as np
import pytest
import torch

from benchmarks import recipe


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
    data = recipe.read_features(features)
    groups = data[3]
    for final, seed in ((False, 0), (False, 3), (True, 0)):
        train, queries, database = recipe.divide(data, final, unseen=0, seed=seed)
        assert (train == database).all() and queries.sum() and train.sum()
        assert not set(groups[queries]) & set(groups[train])
    train, queries, database = recipe.divide(data, True, unseen=2, seed=0)
    labels = data[1].numpy()
    assert set(labels[train]) == {0, 1} and set(labels[queries]) == set(labels[database]) == {2, 3}


@pytest.mark.parametrize("name", [*recipe.CHANGES, *recipe.BASELINES])
def test_every_setting_trains(name, features):
    data = recipe.read_features(features)
    settings = recipe.settings_of(name) | {"steps": 30}
    train, *rows = recipe.divide(data, True, settings["unseen"], 0)
    x, y = data[0][torch.from_numpy(train)], data[1][torch.from_numpy(train)]
    if name in recipe.BASELINES:
        encode = recipe.BASELINES[name](x, 16, 0)
    else:
        encode = recipe.train_head(x, y, settings, seed=0)
    result = recipe.measure(encode, data, rows)
    chance = 0.5 if settings["unseen"] else 0.25
    assert chance + 0.05 < result["map"] <= 1 and chance < result["map_real"] <= 1


def test_finished_runs_are_not_repeated(features, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(recipe.DEFAULT, "steps", 5)
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


def test_settings_are_compared_with_the_same_runs_of_the_default(tmp_path):
    results = recipe.Results(tmp_path / "results.csv")
    for name, maps in (("default", (0.5, 0.7, 0.9)), ("better", (0.6, 0.82))):
        for seed, value in enumerate(maps):
            results.add(name=name, part="val", seed=seed, map=value, map_real=value, seconds=1)
    _, _, better, default = recipe.Results(tmp_path / "results.csv").table("val")
    assert default == "| default | 0.7000 | 0.2000 | 0.7000 |  | 3 |"
    assert better == "| better | 0.7100 | 0.1556 | 0.7100 | +0.1100 ± 0.0100 | 2 |"
