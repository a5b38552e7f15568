"""The experiments: losses equal their definitions and learn, splits leak nothing, runs are kept."""

import csv
import itertools
import json
import subprocess

import cv2
import numpy as np
import pytest
import torch

from experiments import clips, comparisons, recipe
from experiments import features as on_features

# ==== losses and baselines ====


def random_batch(bits=64):
    """Real-valued codes of 9 clips of 3 classes, no two pairs at the same distance."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(9, bits, generator=generator) * 2 - 1, torch.arange(9) // 3


def test_semi_hard_equals_a_loop_over_its_triplets():
    codes, labels = random_batch(bits=8)
    distances = (8 - codes @ codes.T) / 2
    losses = []
    for a, p, n in itertools.product(range(9), repeat=3):
        if a != p and labels[a] == labels[p] != labels[n]:
            gap = (distances[a, n] - distances[a, p]).item()
            losses += [2.0 - gap] if 0 < gap < 2.0 else []
    assert 10 < len(losses) < 9 * 2 * 6
    ours = comparisons.semi_hard(codes, labels, 2.0, "hamming")
    assert ours.item() == pytest.approx(np.mean(losses))


def test_decorrelation_is_zero_for_independent_bits_and_largest_for_equal_ones():
    bits = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert comparisons.decorrelation(bits).item() == pytest.approx(0, abs=1e-6)
    assert comparisons.decorrelation(bits[:, [0, 0]]).item() == pytest.approx(0.5)  # off-diagonal


@pytest.mark.parametrize(("classes", "bits"), [(14, 16), (14, 64), (101, 128)])
def test_hadamard_centres_are_orthogonal(classes, bits):
    centres = comparisons.hadamard_centres(classes, bits, torch.Generator().manual_seed(0))
    assert centres.shape == (classes, bits)
    expected = bits * torch.eye(classes)
    assert torch.equal(centres @ centres.T, expected)


def test_tie_aware_ap_is_average_precision_where_no_distances_tie():
    """Codes of 0, 1, 4, 10, 12 and 17 ones: all their Hamming distances differ."""
    ones = torch.tensor([0, 1, 4, 10, 12, 17])
    codes = torch.where(torch.arange(17) < ones[:, None], 1.0, -1.0)
    labels = torch.tensor([0, 0, 1, 0, 1, 1])
    precisions = []
    for query in range(6):
        order = (ones - ones[query]).abs().argsort()[1:]
        ranks = 1 + (labels[order] == labels[query]).nonzero()[:, 0]
        precisions.append((torch.arange(1, len(ranks) + 1) / ranks).mean().item())
    assert len(set(precisions)) == 3
    loss = comparisons.tie_aware_ap(codes, labels)
    assert 1 - loss.item() == pytest.approx(np.mean(precisions))


def test_quantisation_and_balance_are_zero_for_binary_balanced_codes():
    codes = torch.tensor([[1.0, -1, 1, -1], [-1.0, 1, -1, 1]])
    for name, worse in (("quantisation", codes / 2), ("balance", codes[[0, 0]])):
        term = comparisons.TERMS[name](classes=2, bits=4, seed=0)
        assert term(codes, None).item() == 0
        assert term(worse, None).item() > 0.2


@pytest.fixture(scope="module")
def classes():
    """(features, labels, is_query, is_database) of 4 classes; 26 of 32 dimensions are noise."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 40)
    signal = 1.5 * rng.normal(size=(4, 6))[labels] + 0.5 * rng.normal(size=(160, 6))
    features = np.concatenate([signal, 2 * rng.normal(size=(160, 26))], axis=1)
    features = torch.from_numpy((features / features.std()).astype(np.float32))
    is_query = torch.arange(160) % 4 == 0
    return features, torch.from_numpy(labels), is_query, ~is_query


def search(encode, classes):
    """mAP of the queries' codes in the database."""
    features, labels, queries, database = classes
    with torch.no_grad():
        codes = encode(features[queries]), encode(features[database])
    return comparisons.score(codes[0], labels[queries], codes[1], labels[database])["map"]


def train(classes, **changes):
    """mAP after training on the database with DEFAULT and changes."""
    small = {"epochs": 30, "clips_per_class": 8, "bits": 32, "lr": 2e-2, "classification": 0.0}
    settings = {**on_features.DEFAULT, **small, "classes_per_batch": 4, **changes}
    features, labels, _, database = classes
    data = features[database], labels[database]
    return search(on_features.train_head("x.npz", *data, settings, seed=0), classes)


RANKING_LOSSES = {
    "batch-all": {},
    "batch-hard": {"mining": "batch-hard"},
    "semi-hard": {"triplet": 0.0, "semi_hard": 1.0},
    "reference method": on_features.REFERENCE,
    "average precision": {"triplet": 0.0, "average_precision": 1.0},
}


@pytest.mark.parametrize("changes", RANKING_LOSSES.values(), ids=RANKING_LOSSES)
def test_ranking_losses_separate_classes_and_their_negatives_do_not(changes, classes):
    terms = ("average_precision", "semi_hard")
    negative = {key: -weight for key, weight in changes.items() if key in terms}
    negative = negative or {"triplet": -1.0}
    assert train(classes, **changes) > 0.95
    assert train(classes, **{**changes, **negative}) < 0.35


@pytest.mark.parametrize("term", ["classifier", "central", "fixed", "proxy"])
def test_losses_of_class_targets_separate_classes(term, classes):
    assert train(classes, **on_features.alone(term)) > 0.8


def test_baselines_keep_the_neighbours_of_the_features(classes):
    """Without noise both reach the mAP of the features themselves; with noise neither does."""
    features, labels, *masks = classes
    signal = (features[:, :6].contiguous(), labels, *masks)
    for baseline in (comparisons.itq, comparisons.hyperplanes):
        bits = 6 if baseline is comparisons.itq else 64
        assert search(baseline(signal[0], bits, 0), signal) > 0.8
        assert search(baseline(features, 32, 0), classes) < 0.5


# ==== settings and data ====


def test_settings_are_flags_of_train_and_differ_from_the_default():
    default = vars(on_features.train_flags(on_features.DEFAULT, "x.npz", seed=0))
    own = ("unseen", "prefix", "triplet", *comparisons.TERMS)
    for name in on_features.SETTINGS:
        settings = on_features.settings_of(name)
        flags = vars(on_features.train_flags(settings, "x.npz", seed=0))
        changed = [key for key in own if settings[key] != on_features.DEFAULT[key]]
        assert flags != default or changed or name == "default", name
    both = on_features.settings_of("16 bits + margin K/4")
    assert both == {**on_features.DEFAULT, "bits": 16, "margin": 0.25}
    flags = on_features.train_flags(both, "x.npz", seed=3)
    assert (flags.margin, flags.bits, flags.seed) == (4.0, 16, 3)


@pytest.fixture
def features(tmp_path):
    """A feature file of four classes of ten groups; groups 1 to 4 are the test videos."""
    labels, groups = np.arange(120) // 30, np.arange(120) % 10 + 1
    names = [f"v_C{label}_g{g:02d}_c01.avi" for label, g in zip(labels, groups, strict=True)]
    values = np.random.default_rng(0).normal(size=(120, 8)) + labels[:, None]
    path = tmp_path / "features.npz"
    np.savez(path, features=values, labels=labels, is_train=groups > 4, names=names)
    return path


def test_settings_are_chosen_on_other_queries_than_are_reported(features):
    data = on_features.read_features(features)
    _, labels, is_train, groups = data
    queries = {}
    for split in on_features.SPLITS:
        training, queries[split], database = on_features.divide(data, split, unseen=0, seed=0)
        assert (training == database).all() and (training == is_train).all()
        assert queries[split].any() and not (queries[split] & is_train).any()
    assert not set(groups[queries["choice"]]) & set(groups[queries["final"]])
    assert (queries["test"] == (queries["choice"] | queries["final"])).all()


def test_unseen_classes_are_in_queries_and_database_only(features):
    data = on_features.read_features(features)
    labels, unseen = data[1].numpy(), set()
    for seed in range(8):
        training, queries, database = on_features.divide(data, "test", unseen=2, seed=seed)
        assert set(labels[queries]) == set(labels[database]) and not (queries & database).any()
        assert len(set(labels[queries])) == 2
        assert not set(labels[training]) & set(labels[queries])
        unseen.add(tuple(sorted(set(labels[queries]))))
    assert len(unseen) > 1


# ==== the runner ====


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run_recipe(tmp_path, monkeypatch):
    """A function that runs the experiments with flags: the rows of results.csv."""

    def run(*flags):
        output = tmp_path / "out"
        monkeypatch.setattr("sys.argv", ["recipe", flags[0], "--output", str(output), *flags[1:]])
        recipe.main()
        return read_csv(output / "results.csv")

    return run


def test_finished_runs_are_not_repeated(features, run_recipe, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(on_features.DEFAULT, "epochs", 3)
    flags = ["features", "--features", str(features), "--names", "default", "16 bits", "--seeds"]
    first = run_recipe(*flags, "2")
    names = [("default", "0"), ("16 bits", "0"), ("default", "1"), ("16 bits", "1")]
    assert [(row["setting"], row["seed"]) for row in first] == names
    again = run_recipe(*flags, "3")
    assert again[:4] == first and len(again) == 6
    summary = read_csv(tmp_path / "out" / "summary_choice.csv")
    assert {row["setting"]: row["runs"] for row in summary} == {"default": "3", "16 bits": "3"}
    assert summary[0]["map"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["features", "--features", "x", "--names", "16 bits + margins"], "setting 'margins'"),
        (["clips"], "required: --frames"),
    ],
)
def test_wrong_flags_are_refused(flags, message, run_recipe, capsys):
    with pytest.raises(SystemExit):
        run_recipe(*flags)
    assert message in capsys.readouterr().err


def test_results_with_other_columns_are_refused(tmp_path):
    (tmp_path / "results.csv").write_text("name,part,seed\n")
    with pytest.raises(ValueError, match="expected the columns setting, split"):
        recipe.read_results(tmp_path / "results.csv")


def test_settings_are_compared_with_the_same_runs_of_the_default():
    rows = [
        {"setting": name, "split": "val", "seed": str(seed), "map": value, "map_real": value}
        for name, maps in (("default", (0.5, 0.7, 0.9)), ("better", (0.6, 0.82)))
        for seed, value in enumerate(maps)
    ]
    better, default = (list(row.values()) for row in recipe.summarise(rows))
    assert default == ["default", "0.7000", "0.2000", "0.7000", "", "", "3"]
    assert better == ["better", "0.7100", "0.1556", "0.7100", "+0.1100", "0.0100", "2"]


@pytest.mark.scripts
def test_the_scripts_of_clips_must_succeed(capfd):
    clips.run_script("make_splits.py", "--help")
    with pytest.raises(subprocess.CalledProcessError):
        clips.run_script("make_splits.py")
    assert "required" in capfd.readouterr().err


def test_clips_are_trained_and_compared_with_codes_made_without_labels(
    tmp_path, run_recipe, run_script, monkeypatch
):
    """Two classes, light and dark, of 20 sequences each, as UT-Interaction names them."""
    monkeypatch.setattr(clips, "run_script", run_script)
    rng = np.random.default_rng(0)
    for label, sequence in itertools.product(range(2), range(1, 21)):
        folder = tmp_path / "frames" / f"class{label}" / f"{sequence}_{sequence}_{label}"
        folder.mkdir(parents=True)
        for number in range(4):
            frame = rng.integers(0, 256, (16, 16, 3), np.uint8) // 2 + 100 * label
            cv2.imwrite(str(folder / f"{number:06d}.jpg"), frame)
    train_flags = "--epochs 1 --size 16 --clip-frames 4 --width 0.125 --bits 8 --workers 0"
    train_flags += " --classes-per-batch 2 --clips-per-class 4 --device cpu --input rgb --views 1"
    names = ["default", *comparisons.BASELINES]
    flags = ["--folds", "1", "--seeds", "1", "--flags", train_flags, "--names", *names]
    rows = run_recipe("clips", "--frames", str(tmp_path / "frames"), *flags)
    queries = (tmp_path / "out" / "splits-1" / "test.txt").read_text().splitlines()
    assert {line.split("_")[1] for line in queries} == {"2", "7", "12", "17"}
    assert [row["setting"] for row in rows] == names
    metrics = json.loads((tmp_path / "out" / "default-1-0" / "test" / "metrics.json").read_text())
    assert float(rows[0]["map"]) == pytest.approx(metrics["metrics"]["map"])
    for row in rows[1:]:  # brightness alone separates the classes, which chance (0.5) does not
        is_real = row["setting"].startswith("cosine")  # the signs of raw features mean nothing
        assert float(row["map_real" if is_real else "map"]) > 0.8
