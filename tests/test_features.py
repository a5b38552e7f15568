"""Training and testing on the features of another encoder: the same chain, and bad files."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import read_log, same_weights, weights

from configs.flags import parse_train_flags
from datasets.features import FeatureDataset, hash_features, read_features
from datasets.loaders import build_loaders
from datasets.splits import SplitError
from models import build_model, load_pretrained
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError

FLAGS = ["--epochs", 4, "--bits", 16, "--classes-per-batch", 3, "--warmup-epochs", 1]
FLAGS += ["--device", "cpu", "--lr", 0.01]


def write_features(path, **changes):
    """Features of 90 videos of 3 classes, of which 4 of 12 values tell the class; arrays changed.

    The mean of the features is far from zero, as that of real encoders is. A change to None leaves
    an array out.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    signal = np.eye(4)[labels] + 0.3 * rng.normal(size=(90, 4))
    arrays = {
        "features": np.hstack([signal, rng.normal(size=(90, 8))]).astype(np.float16) + 5,
        "labels": labels,
        "is_train": np.arange(90) < 60,
        **changes,
    }
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.fixture
def file(tmp_path):
    return write_features(tmp_path / "features.npz")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_script):
    """The features and the run folder of a short training, which tests copy: the folder of both."""
    folder = tmp_path_factory.mktemp("features")
    file = write_features(folder / "features.npz")
    run_script("train.py", "--features", file, "--output", folder / "run", *FLAGS)
    return folder


@pytest.fixture
def run(trained, file, tmp_path):
    """A copy of the run folder of `trained`, whose features are those of `file`."""
    shutil.copytree(trained / "run", tmp_path / "run")
    for name in ("best.pt", "last.pt"):
        content = load_checkpoint(tmp_path / "run" / name)
        content["settings"]["features"] = str(file)
        save_checkpoint(tmp_path / "run" / name, content)
    return tmp_path / "run"


# ==== reading ====


def test_rows_are_divided_by_is_train_and_is_val(tmp_path):
    is_train, is_val = np.arange(90) % 2 == 0, np.arange(90) % 6 == 1
    names, classes = [f"video {i}" for i in range(90)], ["run", "sit", "eat"]
    masks = {"is_train": is_train, "is_val": is_val, "names": names, "classes": classes}
    path = write_features(tmp_path / "features.npz", **masks)
    (train, val, test), found = read_features(path, sets=("train", "val", "test"))
    assert [len(train), len(val), len(test)] == [45, 15, 30] and found == classes
    assert train.names == names[::2] and val.names[:2] == ["video 1", "video 7"]
    everything = np.load(path)["features"].astype(np.float32)
    assert np.array_equal(train.features.numpy(), everything[::2])
    assert test.labels == [i % 3 for i in range(90) if i % 2 and i % 6 != 1]


def test_rows_are_found_by_the_names_of_lists(tmp_path):
    """Lists in another order than the rows, with other ids of the classes."""
    names = [f"c{i % 3}/v{i}" for i in range(90)]
    path = write_features(tmp_path / "features.npz", names=names, labels=None, is_train=None)
    lists = {"train": range(59, -1, -1), "val": range(60, 70), "test": range(70, 90)}
    for split, rows in lists.items():
        lines = [f"{names[i]} {2 - i % 3}\n" for i in rows]
        (tmp_path / f"{split}.txt").write_text("".join(lines))
    (tmp_path / "classes.txt").write_text("c2\nc1\nc0\n")
    (train, val), classes = read_features(path, tmp_path)
    assert classes == ["c2", "c1", "c0"] and len(val) == 10
    assert train.names[:2] == ["c2/v59", "c1/v58"] and train.labels[:2] == [0, 1]
    everything = np.load(path)["features"].astype(np.float32)
    assert np.array_equal(train.features.numpy(), everything[59::-1])


def test_batches_are_rows_of_the_array(file):
    (train, val), _ = read_features(file)

    class Args:
        batches, classes_per_batch, clips_per_class, seed, workers = "balanced", 3, 2, 0, 4

    loader, _, database = build_loaders(train, val, Args)
    features, labels = next(iter(loader))
    rows = [(train.features == row).all(dim=1).nonzero().item() for row in features]
    assert len(set(rows)) == 6 and labels.tolist() == [train.labels[row] for row in rows]
    assert torch.equal(torch.cat([batch for batch, _ in database]), train.features)
    assert loader.num_workers == 0  # the rows are in memory


BAD_FILES = {
    "NaN": ({"features": np.full((90, 12), np.nan)}, "90 videos, the first in row 0, have NaN"),
    "too large": ({"features": np.full((90, 12), 1e60)}, "beyond float32"),
    "one dimension": ({"features": np.ones(90)}, "features is (90,) float64"),
    "text": ({"features": np.full((90, 12), "x")}, "it must be numbers"),
    "no features": ({"features": None}, "features missing"),
    "no labels": ({"labels": None}, "has no labels; add labels (class ids) and is_train"),
    "no is_train": ({"is_train": None}, "has no is_train"),
    "few labels": ({"labels": np.zeros(3, int)}, "for each of the 90 videos"),
    "fractions": ({"labels": np.full(90, 0.5)}, "whole numbers from 0"),
    "negative labels": ({"labels": np.full(90, -1)}, "whole numbers from 0"),
    "NaN as label": ({"labels": np.full(90, np.nan)}, "whole numbers from 0"),
    "is_train of 2": ({"is_train": np.full(90, 2)}, "is_train is (90,) int64; it must be true or"),
    "both sets": ({"is_val": np.ones(90, bool)}, "a video can be in one set only"),
    "few names": ({"names": ["a"]}, "it must be 90 strings"),
    "few classes": ({"classes": ["a", "b"]}, "must be the names of all 3 classes"),
    "equal classes": ({"classes": ["a", "b", "b"]}, "two classes are called 'b'"),
    "leak": ({"names": ["a"] * 90, "is_val": np.arange(90) >= 60}, "1 videos are in two"),
    "objects": ({"labels": np.array([None] * 90)}, "without objects"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_refused_in_one_line(changes, message, tmp_path):
    path = write_features(tmp_path / "features.npz", **changes)
    with pytest.raises(ValueError, match="features.npz") as error:
        read_features(path)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


def test_lists_with_other_names_are_refused(tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text(f"a/{split} 0\n")
    (tmp_path / "classes.txt").write_text("a\n")
    path = write_features(tmp_path / "features.npz")
    with pytest.raises(SplitError, match="has no names, by which the lists"):
        read_features(path, tmp_path)
    names = [f"v{i}" for i in range(90)]
    path = write_features(tmp_path / "features.npz", names=names)
    with pytest.raises(SplitError, match=r"names lacks 1 of the 1 videos of .*, such as 'a/train'"):
        read_features(path, tmp_path)
    path = write_features(tmp_path / "features.npz", names=[*names[1:], "v5"])
    with pytest.raises(SplitError, match="names has 'v5' twice"):
        read_features(path, tmp_path)


def test_the_hash_of_features_is_of_every_value():
    features = torch.rand(4, 3)
    before = hash_features(FeatureDataset(["a"] * 4, [0] * 4, features))
    features[3, 2] += 1e-3
    assert hash_features(FeatureDataset(["a"] * 4, [0] * 4, features)) != before


# ==== the network ====


def test_features_are_standardised_by_those_of_training():
    features = 3 + 7 * torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    model = build_model("features", 8, feature_dim=5)
    model.backbone.fit(features)
    standardised = model.backbone(features)
    assert standardised.mean(dim=0).abs().max() < 1e-5
    assert standardised.std().item() == pytest.approx(1, abs=1e-3)
    assert torch.equal(model(features), model.hash(standardised).tanh())
    model.backbone.fit(torch.ones(4, 5))
    assert model.backbone(torch.ones(1, 5)).abs().max() == 0


# ==== training and testing ====


@pytest.fixture
def train(file, tmp_path, run_script):
    """A function that trains on the features; returns the run folder."""

    def run(name, *flags, status=0):
        paths = "--features", file, "--output", tmp_path / name
        process = run_script("train.py", *paths, *FLAGS, *flags, status=status)
        return tmp_path / name if status == 0 else process.stderr.splitlines()[-1]

    return run


def test_the_hash_layer_is_trained_and_measured(train, run_script, file):
    run = train("run", "--epochs", 8, "--lr", 0.03)
    assert read_log(run)[-1]["train/loss"] < read_log(run)[0]["train/loss"]
    assert set(weights(run / "best.pt")) == {
        *("backbone.mean", "backbone.std", "hash.weight", "hash.bias")
    }
    run_script("test.py", "--checkpoint", run, "--untrained")
    measured = json.loads((run / "test" / "metrics.json").read_text())
    assert measured["run"]["queries"] == 30 and measured["run"]["database"] == 60
    assert measured["metrics"]["map"] > 0.9
    codes = np.load(run / "test" / "codes.npz")
    assert codes["query_labels"].tolist() == np.load(file)["labels"][60:].tolist()
    assert not (run / "test" / "retrieval.png").exists()


def test_validation_chooses_the_best_checkpoint(train, file):
    write_features(file, is_train=np.arange(90) < 40, is_val=np.arange(90) >= 70)
    run = train("run", "--eval-every", 2)
    assert [("val/map" in record) for record in read_log(run)] == [False, True] * 2
    assert load_checkpoint(run / "best.pt")["val_map"] == max(
        record.get("val/map", 0) for record in read_log(run)
    )


def test_an_interrupted_run_resumes_to_the_same_weights(train, file):
    whole = train("whole", "--dropout", 0.5)
    run = train("run", "--dropout", 0.5, "--save-steps", 1)
    checkpoint = run / "last.pt"
    shutil.copy(run / "previous.pt", checkpoint)  # before the last steps
    (run / "best.pt").unlink()
    train("run", "--dropout", 0.5, "--save-steps", 1)
    assert same_weights(weights(whole / "best.pt"), weights(run / "best.pt"))
    write_features(file, features=np.random.default_rng(1).normal(size=(90, 12)))
    shutil.copy(run / "previous.pt", checkpoint)
    assert "features is" in train("run", "--dropout", 0.5, status=1)


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"features": np.ones((90, 5))}, [], "5 features per video, but the model was trained on"),
        ({"features": np.ones((90, 12))}, [], "not the features or lists that the model was"),
        ({"is_train": np.arange(90) >= 30}, [], "was trained on 30 of its 30 test videos"),
        ({"is_train": np.ones(90, bool)}, [], "needs test videos"),
        ({"classes": ["a", "b", "c"]}, [], "has other classes than the model"),
        ({"labels": None}, [], "has no labels"),
        ({}, ["--html"], "features have no pictures"),
        ({}, ["--features", "nowhere.npz"], "nowhere.npz: no such file; expected an .npz file of"),
    ],
)
def test_testing_with_what_does_not_fit_is_refused(changes, flags, message, run, file, run_script):
    write_features(file, **changes)
    error = run_script("test.py", "--checkpoint", run, *flags, status=1).stderr.splitlines()[-1]
    assert message in error and error.startswith("test.py: ")
    assert not (run / "test" / "metrics.json").exists()


def test_moved_features_are_tested_and_changed_ones_warned_of(run, file, tmp_path, run_script):
    moved = file.rename(tmp_path / "moved.npz")
    flags = "--checkpoint", run, "--features", moved
    assert "warning" not in run_script("test.py", *flags).stderr
    write_features(moved, features=np.random.default_rng(1).normal(size=(90, 12)))
    assert "warning: " in run_script("test.py", *flags).stderr


def test_a_network_of_features_cannot_encode_videos(run, tmp_path, run_script):
    (tmp_path / "videos").mkdir()
    flags = "--checkpoint", run, "--videos", tmp_path / "videos", "--output", tmp_path / "index"
    assert "was trained on features" in run_script("search.py", "index", *flags, status=1).stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--features", "x.npz", "--size", 64], "--size is for videos; leave it out"),
        (["--features", "x.npz", "--frames", "f"], "--frames is for videos"),
        (
            ["--features", "x.npz", "--pretrained", "r3d18_kinetics400"],
            "--pretrained is for videos",
        ),
        (["--splits", "s"], "required: --frames"),
        (["--features", "x.npz", "--bits", 16, "--nested-bits", 32], "at most --bits, which is 16"),
        (
            ["--features", "x", "--distance", "euclidean", "--margin", 1, "--nested-bits", 8],
            "--nested-bits needs --distance hamming or squared",
        ),
    ],
)
def test_flags_of_videos_are_refused_with_features(flags, message, capsys):
    with pytest.raises(SystemExit):
        parse_train_flags("", ["--output", "o", *map(str, flags)])
    assert message in capsys.readouterr().err


def test_a_checkpoint_of_features_has_no_backbone_to_start_from(run):
    with pytest.raises(UserError, match="was trained on features"):
        load_pretrained(str(run / "best.pt"), None)


def test_nested_codes_are_trained_resumed_and_measured(train, run_script):
    flags = ["--nested-bits", 8, 4, "--classification", 1, "--epochs", 20]
    run = train("run", *flags)
    run_script("test.py", "--checkpoint", run)
    measured = json.loads((run / "test" / "metrics.json").read_text())
    maps = [measured[key]["metrics"]["map"] for key in ("4 bits", "8 bits")]
    assert measured["metrics"]["map"] > maps[0] > 0.5 and maps[1] > 0.6
    assert measured["run"]["bits"] == 16
    shutil.copy(run / "previous.pt", run / "last.pt")
    whole = weights(run / "best.pt")
    (run / "best.pt").unlink()
    train("run", *flags)
    assert same_weights(whole, weights(run / "best.pt"))


def test_real_features_retrieve(data, tmp_path, run_script):
    """All 101 classes of UCF101 in seconds; the cosine of the features has 0.476."""
    flags = ["--features", data("features/ucf101_clip_101classes.npz"), "--lr", 0.003]
    run_script("train.py", *flags, "--epochs", 6, "--output", tmp_path / "run", "--threads", 1)
    run_script("test.py", "--checkpoint", tmp_path / "run", "--threads", 1)
    measured = json.loads((tmp_path / "run/test/metrics.json").read_text())
    assert measured["metrics"]["map"] > 0.65
