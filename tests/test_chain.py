"""The scripts one after the other, as a user runs them, and the files that they write."""

import argparse
import json
import re
import shutil

import numpy as np
import pytest
import torch
from helpers import (
    EXTRACT,
    TINY,
    draw_large_pictures,
    read_log,
    same_weights,
    train_command,
    weights,
)

from configs.flags import parse_train_flags
from datasets.synthetic import ACTIONS, make_dataset, write_clip
from experiments import animate
from retrieval.index import Index


def test_training_writes_its_run_folder(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"last.pt", "best.pt", "metrics.jsonl", "config.yaml", "environment.jsonl"} <= names
    environment = json.loads((trained / "environment.jsonl").read_text().splitlines()[0])
    assert environment["packages"]["torch"] in torch.__version__ and "commit" in environment
    assert environment["command"][0] == "train.py"
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not any(name.endswith(".partial") for name in names)
    records = read_log(trained)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    for name in ("val/map", "val/precision_at_10"):
        assert [name in record for record in records] == [False, True, True]
    steps = [record["step"] for record in records]
    assert steps == [steps[0], 2 * steps[0], 3 * steps[0]]
    seconds = [record["seconds"] for record in records]
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    for record in records:
        assert 0 < record["train/loss_all"] < 1.01 * record["train/loss"]
    repeated = parse_train_flags("", ["--config", str(trained / "config.yaml")])
    assert (repeated.bits, repeated.size, repeated.flip) == (12, 16, True)
    best = torch.load(trained / "best.pt", weights_only=True)
    assert best["val_map"] == max(r["val/map"] for r in records if "val/map" in r)
    assert best["classes"] == list(ACTIONS)[:3]


def test_a_finished_run_stays_as_it_is_and_other_settings_are_refused(demo, trained, run_script):
    before = weights(trained / "last.pt")
    result = run_script(*train_command(demo, trained))
    assert "resuming" in result.stdout
    assert same_weights(before, weights(trained / "last.pt"))
    refused = run_script(*train_command(demo, trained, "--bits", 16), status=1)
    assert "--bits is 16, was 12" in refused.stderr and "--restart" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_training_continues_from_the_backbone_of_an_earlier_run(
    demo, trained, tmp_path, run_script
):
    flags = "--epochs", 1, "--warmup-epochs", 0, "--lr", 1e-9, "--freeze-until", "layer4"
    more = "--bits", 5, "--backbone-lr-factor", 0.1, "--pretrained", trained / "best.pt"
    command = train_command(demo, tmp_path / "run", *flags, *more)
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


def test_a_run_without_validation_still_has_a_best_checkpoint(demo, tmp_path, run_script):
    groups = "--val-fraction", 0, "--group-pattern", "_(g[0-9]+)_", "--test-groups", "g01"
    paths = "--frames", demo / "frames", "--output", tmp_path / "splits"
    run_script("make_splits.py", "--dataset", "folder", *paths, *groups)
    command = train_command(demo, tmp_path / "run", "--splits", tmp_path / "splits")
    printed = run_script(*command).stdout
    assert printed.count("no validation list") == 1
    last, best = weights(tmp_path / "run" / "last.pt"), weights(tmp_path / "run" / "best.pt")
    assert same_weights(last, best) and "★" not in printed


# ==== testing ====


@pytest.fixture(scope="module")
def tested(trained, run_script):
    """What test.py writes with all that it can: (folder, stdout)."""
    flags = "--untrained", "--html", 2, "--projector", "--pictures", 2
    command = "test.py", "--checkpoint", trained / "best.pt", *flags
    return trained / "test", run_script(*command, patch=draw_large_pictures).stdout


def test_testing_writes_metrics_codes_and_a_picture(tested):
    output, printed = tested
    assert "untrained" in printed and "mAP" in printed
    content = json.loads((output / "metrics.json").read_text())
    run, metrics = content["run"], content["metrics"]
    assert (run["queries"], run["database"], run["bits"]) == (6, 18, 12)
    assert run["checkpoint"].endswith("best.pt") and run["epoch"] in (2, 3) and "commit" in run
    assert run["data"]["source"].endswith("frames") and run["data"]["lists"]
    assert 0 < metrics["map"] <= 1 and len(content["curves"]["precision_by_radius"]) == 13
    assert content["untrained"]["metrics"]["map"] != metrics["map"]
    codes = np.load(output / "codes.npz")
    assert codes["query_codes"].shape == (6, 12) and codes["database_codes"].shape == (18, 12)
    assert codes["query_labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert codes["query_names"][0] == "Bouncing/v_Bouncing_g01_c01"
    assert np.abs(codes["query_codes"]).max() < 1
    picture = (output / "retrieval.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


def test_the_page_and_the_projector_show_what_was_found(tested):
    output, _ = tested
    page = (output / "retrieval.html").read_text()
    right, wrong = page.count('<li class="right">'), page.count('<li class="wrong">')
    assert right + wrong == 20 and right > 0 and page.count("<img") == 22
    metrics = json.loads((output / "metrics.json").read_text())["metrics"]
    for name, value in metrics["map_per_class"].items():
        assert re.search(rf"<span>{name}</span>.*{value:.3f}</span>", page)
    assert f"<dt>mAP</dt><dd>{metrics['map']:.3f}</dd>" in page
    assert "run/best.pt, epoch" in page and str(output.parent.parent) not in page
    [folder] = (output / "projector").glob("*/codes")
    rows = (folder / "metadata.tsv").read_text().splitlines()
    assert rows[:2] == ["class\tset\tvideo", "Bouncing\tquery\tBouncing/v_Bouncing_g01_c01"]
    codes = np.load(output / "codes.npz")
    written = np.loadtxt(folder / "tensors.tsv")
    expected = np.concatenate([codes["query_codes"], codes["database_codes"]])
    assert len(rows) == 25 and np.allclose(written, expected, atol=1e-4)
    assert (folder / "sprite.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_the_readme_is_made_from_a_run(tested, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(animate, "FRAMES", 2)
    output = tmp_path / "demo.webp"
    animate.main(argparse.Namespace(run=trained, output=output, queries=2, results=2))
    assert output.read_bytes()[8:16] == b"WEBPVP8X" and b"ANIM" in output.read_bytes()[:64]


def test_codes_from_elsewhere_are_compared_with_a_checkpoint(trained, tested, tmp_path, run_script):
    """Also: the codes are the same the second time."""
    codes = tmp_path / "own" / "codes.npz"
    codes.parent.mkdir()
    codes.write_bytes((tested[0] / "codes.npz").read_bytes())
    compared = "--checkpoint", trained / "best.pt", "--codes", codes
    flags = "--all-metrics", "--top-r", 7, "--cutoffs", 3, "--output", tmp_path / "both"
    result = run_script("test.py", *compared, *flags)
    assert "R 7" in result.stdout and "precision@3" in result.stdout
    files = {str(f.relative_to(tmp_path / "both")) for f in tmp_path.glob("both/**/*.*")}
    of_checkpoint = {f"run_best/{name}" for name in ("metrics.json", "codes.npz", "retrieval.png")}
    curves = {"precision_recall.png", "precision_at.png"}
    assert files == {*curves, "own_codes/metrics.json", *of_checkpoint}
    first, second = (
        json.loads((tmp_path / "both" / name / "metrics.json").read_text())
        for name in ("own_codes", "run_best")
    )
    assert set(first["metrics"].pop("map_per_class")) == {"0", "1", "2"}
    assert set(second["metrics"].pop("map_per_class")) == set(list(ACTIONS)[:3])
    for part in ("metrics", "curves"):
        assert first[part] == second[part], "the saved codes give what the network gives"
    again = np.load(tmp_path / "both" / "run_best" / "codes.npz")
    for name, array in np.load(codes).items():
        assert np.array_equal(again[name], array), name


def test_search_gives_the_codes_of_testing(demo, trained, tested, tmp_path, run_script):
    """Frames from the file and from its JPEGs are not quite the same ones; the codes nearly are."""
    paths = "--videos", demo / "videos", "--output", tmp_path / "index"
    run_script("search.py", "index", "--checkpoint", trained / "best.pt", *paths)
    codes, index = np.load(tested[0] / "codes.npz"), Index(tmp_path / "index")
    packed = np.packbits(codes["database_codes"] >= 0, axis=1)
    expected = dict(zip(codes["database_names"].tolist(), packed, strict=True))
    rows = index.table.to_table().to_pylist()
    own = {row["path"][:-4]: np.frombuffer(row["code"], np.uint8) for row in rows}
    differ = [np.unpackbits(own[name] ^ code).sum() for name, code in expected.items()]
    assert len(differ) == 18 and np.mean(differ) < 2  # of 12; 6 by chance


# ==== the configs of the real data sets ====


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
    frames, splits, run = (tmp_path / name for name in ("frames", "splits", "run"))
    run_script("extract_frames.py", "--videos", tmp_path / "videos", "--frames", frames, *EXTRACT)
    lists = "--annotations", tmp_path / "annotations", "--val-fraction", 0.3
    paths = "--frames", frames, "--output", splits
    made = run_script("make_splits.py", "--dataset", dataset, *lists, *paths)
    assert "no video and no group is in two lists" in made.stdout
    paths = "--frames", frames, "--splits", splits, "--output", run
    network = "--epochs", 1, "--backbone", backbone, "--pretrained", "none"
    run_script("train.py", "--config", f"configs/{dataset}.yaml", *paths, *TINY, *network)
    run_script("test.py", "--checkpoint", run / "best.pt", patch=draw_large_pictures)
    tested = json.loads((run / "test" / "metrics.json").read_text())["run"]
    assert tested["queries"] == 4 and tested["database"] == 8


def test_motion_is_what_test_py_encodes_too(demo, tmp_path, run_script):
    """The clips of a still picture have no motion, so all get the same code."""
    run = tmp_path / "run"
    run_script(*train_command(demo, run, "--input", "motion", "--epochs", 1))
    shutil.copytree(demo / "frames", tmp_path / "frames")
    for folder in (tmp_path / "frames").glob("*/*/"):
        frames = sorted(folder.glob("*.jpg"))
        for frame in frames[1:]:
            shutil.copy(frames[0], frame)
    test = "test.py", "--checkpoint", run, "--pictures", 0
    moving, still = tmp_path / "moving", tmp_path / "still"
    run_script(*test, "--output", moving)
    run_script(*test, "--output", still, "--frames", tmp_path / "frames")
    codes = [np.load(folder / "codes.npz")["query_codes"] for folder in (moving, still)]
    assert np.ptp(codes[1], axis=0).max() < 1e-5 < np.ptp(codes[0], axis=0).min()
