"""The four scripts one after the other, by subprocess, as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import EXTRACT, ROOT

import train
from datasets.synthetic import ACTIONS, make_dataset, write_clip
from retrieval.index import Index
from utils.config import parse_args

TINY = [
    "--clip-frames", 4, "--size", 16, "--width", 0.0625, "--bits", 12, "--epochs", 3,
    "--classes-per-batch", 2, "--clips-per-class", 3, "--eval-every", 2, "--warmup-epochs", 1,
    "--workers", 1,
]  # fmt: skip


def test_a_cache_gives_the_same_weights_as_the_frame_folders(demo, trained, tmp_path, run_script):
    """8 frames are extracted and 8 cached, so that every clip is the same."""
    run = tmp_path / "run"
    run_script(*train_command(demo, run, "--cache", "ram", "--cache-frames", 8, "--cache-folder",
                              tmp_path / "cache"))  # fmt: skip
    assert same_weights(weights(trained / "last.pt"), weights(run / "last.pt"))
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


def train_command(root, run, *flags):
    return ["train.py", "--config", "configs/demo.yaml", "--frames", root / "frames",
            "--splits", root / "splits", "--output", run, *TINY, *flags]  # fmt: skip


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def same_weights(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def trained(demo, run_script):
    run_script(*train_command(demo, demo / "run"))
    return demo / "run"


def test_training_writes_its_run_folder(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"last.pt", "best.pt", "metrics.jsonl", "config.yaml", "environment.jsonl"} <= names
    environment = json.loads((trained / "environment.jsonl").read_text().splitlines()[0])
    assert environment["packages"]["torch"] in torch.__version__ and "commit" in environment
    assert environment["command"][0] == "train.py"
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not any(name.endswith(".partial") for name in names)
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["epoch"] for record in records] == [0, 1, 2]
    assert ["val/map" in record for record in records] == [False, True, True]
    repeated = parse_args(train.build_parser(), ["--config", str(trained / "config.yaml")])
    assert (repeated.bits, repeated.size, repeated.flip) == (12, 16, True)
    best = torch.load(trained / "best.pt", weights_only=True)
    assert best["val_map"] == max(r["val/map"] for r in records if "val/map" in r)
    assert best["classes"] == list(ACTIONS)[:3]


def test_testing_writes_metrics_codes_and_a_picture(trained, run_script):
    result = run_script("test.py", "--checkpoint", trained / "best.pt", "--untrained")
    assert "untrained" in result.stdout and "mAP" in result.stdout
    output = trained / "test"
    metrics = json.loads((output / "metrics.json").read_text())
    assert (metrics["queries"], metrics["database"], metrics["bits"]) == (6, 18, 12)
    assert 0 < metrics["map"] <= 1
    codes = np.load(output / "codes.npz")
    assert codes["query_codes"].shape == (6, 12) and codes["database_codes"].shape == (18, 12)
    assert codes["query_labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert codes["query_names"][0] == "Bouncing/v_Bouncing_g01_c01"
    assert np.abs(codes["query_codes"]).max() < 1
    picture = (output / "retrieval.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
    first = codes["query_codes"].copy()
    run_script("test.py", "--checkpoint", trained / "best.pt", "--pictures", 0)
    assert np.array_equal(np.load(output / "codes.npz")["query_codes"], first)


def test_the_page_and_the_projector_show_what_was_found(trained, tmp_path, run_script):
    run_script("test.py", "--checkpoint", trained / "best.pt", "--html", "--projector",
               "--pictures", 2, "--output", tmp_path)  # fmt: skip
    page = (tmp_path / "retrieval.html").read_text()
    right, wrong = page.count('<li class="right">'), page.count('<li class="wrong">')
    assert right + wrong == 20 and right > 0 and page.count("data:image/webp") == 22
    per_class = json.loads((tmp_path / "metrics.json").read_text())["map_per_class"]
    for name, value in per_class.items():
        assert f"<td>{name}</td><td>{value:.3f}</td>" in page
    [folder] = (tmp_path / "projector").glob("*/codes")
    rows = (folder / "metadata.tsv").read_text().splitlines()
    assert rows[:2] == ["class\tset\tvideo", "Bouncing\tquery\tBouncing/v_Bouncing_g01_c01"]
    codes = np.load(tmp_path / "codes.npz")
    written = np.loadtxt(folder / "tensors.tsv")
    expected = np.concatenate([codes["query_codes"], codes["database_codes"]])
    assert len(rows) == 25 and np.allclose(written, expected, atol=1e-4)
    assert (folder / "sprite.png").read_bytes().startswith(b"\x89PNG")


def test_search_gives_the_codes_of_testing(demo, trained, tmp_path, run_script):
    """Frames from the file and from its JPEGs are not quite the same ones; the codes nearly are."""
    run_script("search.py", "index", "--checkpoint", trained / "best.pt", "--videos",
               demo / "videos", "--output", tmp_path / "index")  # fmt: skip
    run_script("test.py", "--checkpoint", trained / "best.pt", "--output", tmp_path)
    codes, index = np.load(tmp_path / "codes.npz"), Index(tmp_path / "index")
    packed = np.packbits(codes["database_codes"] >= 0, axis=1)
    expected = dict(zip(codes["database_names"].tolist(), packed, strict=True))
    own = {index.video(row)["path"][:-4]: index.codes.reconstruct(row) for row in range(30)}
    differ = [np.unpackbits(own[name] ^ code).sum() for name, code in expected.items()]
    assert len(differ) == 18 and np.mean(differ) < 2  # of 12; 6 by chance


def test_codes_from_elsewhere_are_compared_with_a_checkpoint(trained, tmp_path, run_script):
    run_script("test.py", "--checkpoint", trained / "best.pt", "--output", tmp_path / "own")
    result = run_script("test.py", "--checkpoint", trained / "best.pt", "--codes",
                        tmp_path / "own" / "codes.npz", "--top-r", 7, "--cutoffs", 1, 3,
                        "--output", tmp_path / "both")  # fmt: skip
    assert "R 7" in result.stdout and "precision@3" in result.stdout
    files = {str(f.relative_to(tmp_path / "both")) for f in tmp_path.glob("both/**/*.*")}
    assert files == {
        "precision_recall.png", "precision_at.png", "own_codes/metrics.json",
        "run_best/metrics.json", "run_best/codes.npz", "run_best/retrieval.png",
    }  # fmt: skip
    first, second = (
        json.loads((tmp_path / "both" / name / "metrics.json").read_text())
        for name in ("own_codes", "run_best")
    )
    assert set(first.pop("map_per_class")) == {"0", "1", "2"}
    assert set(second.pop("map_per_class")) == set(ACTIONS) & set(list(ACTIONS)[:3])
    assert first == second  # the saved codes give what the network gives


def test_training_goes_on_from_the_backbone_of_an_earlier_run(demo, trained, tmp_path, run_script):
    command = train_command(demo, tmp_path / "run", "--pretrained", trained / "best.pt", "--epochs",
                            1, "--warmup-epochs", 0, "--lr", 1e-9, "--freeze-until", "layer4",
                            "--bits", 5, "--backbone-lr-factor", 0.1)  # fmt: skip
    assert "checkpoint of train.py" in run_script(*command).stdout
    tuned = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    before = weights(trained / "best.pt")
    backbone = [name for name in before if name.startswith("backbone.")]
    assert len(backbone) > 50
    assert all(torch.equal(before[name], tuned["model"][name]) for name in backbone)
    assert tuned["model"]["hash.weight"].shape[0] == 5
    assert tuned["pretrained"]["file"] == "best.pt" and len(tuned["pretrained"]["sha256"]) == 64
    refused = run_script(*command, "--backbone", "resnet34", "--restart", status=1)
    assert "needs --backbone resnet18, not resnet34" in refused.stderr


def test_a_finished_run_stays_as_it_is_and_other_settings_are_refused(demo, trained, run_script):
    before = weights(trained / "last.pt")
    result = run_script(*train_command(demo, trained))
    assert "resuming" in result.stdout
    assert same_weights(before, weights(trained / "last.pt"))
    refused = run_script(*train_command(demo, trained, "--bits", 16), status=1)
    assert "--bits 16 instead of 12" in refused.stderr and "--restart" in refused.stderr
    assert "Traceback" not in refused.stderr


def start_and_signal(command, run, number, wait):
    """Start a run, wait for its first checkpoint and `wait` seconds more, and send a signal."""
    log = open(run.parent / "log", "a")  # noqa: SIM115, for the process
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=log,
                               stderr=log, start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + 120
    while not (run / "last.pt").exists() and time.monotonic() < deadline:
        assert process.poll() is None, (run.parent / "log").read_text()
        time.sleep(0.01)
    time.sleep(wait)
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    return process.wait(timeout=60)


def epochs_logged(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


def test_a_killed_run_ends_with_the_same_weights(demo, trained, tmp_path, run_script):
    """Killed at its first checkpoint, in the middle of an epoch."""
    command = train_command(demo, tmp_path / "run", "--save-steps", 1)
    assert start_and_signal(command, tmp_path / "run", signal.SIGKILL, 0) == -signal.SIGKILL
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["training"]
    assert state["epoch"] < 3 and (state["batch"] > 0 or state["epoch"] > 0)
    assert "resuming" in run_script(*command).stdout
    assert same_weights(weights(trained / "last.pt"), weights(tmp_path / "run" / "last.pt"))
    assert epochs_logged(tmp_path / "run") == [0, 1, 2]


@pytest.mark.slow
def test_five_kills_at_random_steps_change_nothing(demo, tmp_path, run_script):
    flags = ["--epochs", 30, "--save-steps", 1, "--eval-every", 10, "--dropout", 0.3]
    run_script(*train_command(demo, tmp_path / "whole", *flags))
    command, rng = train_command(demo, tmp_path / "run", *flags), np.random.default_rng()
    positions = []
    for _ in range(5):
        wait = rng.uniform(0, 1) if not positions else rng.uniform(4, 6)  # it starts in about 4 s
        start_and_signal(command, tmp_path / "run", signal.SIGKILL, wait)
        state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["training"]
        positions.append((state["epoch"], state["batch"]))
    assert len(set(positions)) >= 4, positions
    run_script(*command)
    whole, killed = weights(tmp_path / "whole" / "last.pt"), weights(tmp_path / "run" / "last.pt")
    assert same_weights(whole, killed)
    assert epochs_logged(tmp_path / "run") == list(range(30))


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(demo, tmp_path, run_script):
    command = train_command(demo, tmp_path / "run", "--save-steps", 1, "--optimizer", "sgd", "--lr",
                            1e30, "--clip-gradient", 0, "--warmup-epochs", 0)  # fmt: skip
    error = run_script(*command, status=1).stderr
    assert "the loss became nan" in error and "Lower --lr" in error and "Traceback" not in error
    assert all(w.isfinite().all() for w in weights(tmp_path / "run" / "last.pt").values())
    assert run_script(*train_command(demo, tmp_path / "run", "--restart")).returncode == 0


def test_sigterm_writes_a_checkpoint_and_leaves_with_a_message(demo, tmp_path, run_script):
    command = train_command(demo, tmp_path / "run", "--epochs", 200, "--eval-every", 200)
    status = start_and_signal(command, tmp_path / "run", signal.SIGTERM, 0.3)
    message = (tmp_path / "log").read_text()
    assert status == 1 and "the same command goes on there" in message
    assert "Traceback" not in message
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["training"]
    assert 0 < state["epoch"] < 200


def test_mistakes_end_in_one_line(demo, trained, tmp_path, run_script):
    cases = [
        (train_command(demo, tmp_path / "a", "--classes-per-batch", 9), 1, "--classes-per-batch"),
        (train_command(demo, tmp_path / "b", "--frames", "nowhere"), 1, "correct --frames"),
        (train_command(demo, tmp_path / "c", "--splits", "nowhere"), 1, "make_splits.py"),
        (train_command(demo, tmp_path / "d", "--distance", "squared"), 2, "needs --margin"),
        (train_command(demo, tmp_path / "e", "--backbone", "c3d"), 1, "at least 16 frames"),
        (train_command(demo, tmp_path / "f", "--sync-batch-norm"), 1, "GPUs only"),
        (["test.py", "--checkpoint", "nowhere.pt"], 1, "no such checkpoint"),
        (
            ["test.py", "--checkpoint", trained / "best.pt", "--splits", "nowhere"],
            1,
            "no such file",
        ),
    ]
    for command, status, message in cases:
        error = run_script(*command, status=status).stderr
        assert message in error.splitlines()[-1] and "Traceback" not in error


def write_hmdb51(root, classes=("brush_hair", "climb_stairs")):
    """Videos and official lists as HMDB51 has them, hard names among them."""
    films = ["April_09", "#20_Rhythm", "(challenge)_HARD!", "A [b] & c; d+e@f~g"]
    (root / "annotations").mkdir(parents=True)
    for label, name in enumerate(classes):
        lines = []
        for number, film in enumerate(films):
            for take in range(2):
                video = f"{film}_{name}_u_nm_np1_ba_goo_{take}.avi"
                write_clip(root / "videos" / name / video, list(ACTIONS)[label], number, take)
                lines.append(f"{video} {2 if number == 0 else 1} ")
        lines.append(f"unused_{name}_u_nm_np1_ba_goo_0.avi 0 ")
        (root / "annotations" / f"{name}_test_split1.txt").write_text("\n".join(lines) + "\n")


def write_ucf101(root):
    make_dataset(root, classes=2, groups=4, videos=16, test_groups=1)


@pytest.mark.parametrize(
    ("dataset", "write", "backbone"),
    [("ucf101", write_ucf101, "resnet34"), ("hmdb51", write_hmdb51, "resnet18")],
)
def test_the_configs_of_the_real_data_sets_run_end_to_end(
    dataset, write, backbone, tmp_path, run_script
):
    write(tmp_path)
    run_script("extract_frames.py", "--videos", tmp_path / "videos", "--frames",
               tmp_path / "frames", *EXTRACT)  # fmt: skip
    made = run_script("make_splits.py", "--dataset", dataset, "--annotations",
                      tmp_path / "annotations", "--frames", tmp_path / "frames", "--output",
                      tmp_path / "splits", "--val-fraction", 0.3)  # fmt: skip
    assert "no video and no group is in two lists" in made.stdout
    run_script("train.py", "--config", f"configs/{dataset}.yaml", "--frames", tmp_path / "frames",
               "--splits", tmp_path / "splits", "--output", tmp_path / "run", *TINY,
               "--epochs", 1, "--backbone", backbone, "--pretrained", "none")  # fmt: skip
    run_script("test.py", "--checkpoint", tmp_path / "run" / "best.pt")
    metrics = json.loads((tmp_path / "run" / "test" / "metrics.json").read_text())
    assert metrics["queries"] == 4 and metrics["database"] == 8


def test_a_run_without_validation_still_has_a_best_checkpoint(demo, tmp_path, run_script):
    run_script("make_splits.py", "--dataset", "folder", "--frames", demo / "frames", "--output",
               tmp_path / "splits", "--val-fraction", 0, "--group-pattern", "_(g[0-9]+)_",
               "--test-groups", "g01")  # fmt: skip
    run_script(*train_command(demo, tmp_path / "run", "--splits", tmp_path / "splits"))
    last, best = weights(tmp_path / "run" / "last.pt"), weights(tmp_path / "run" / "best.pt")
    assert same_weights(last, best)
