"""search.py index without a checkpoint: a hash layer that is fitted to the videos."""

import json
import shutil

import pytest
import torch
from helpers import run_main, start_ranks
from test_search import content, write_checkpoint
from weight_files import TINY_WIDTH, file_layout, tiny_state

from datasets.synthetic import make_dataset
from models import build_model, label_free
from retrieval.index import Index
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError

pytestmark = pytest.mark.scripts
BITS = 8


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.pt", bits=12)


@pytest.fixture
def videos(tmp_path):
    """Twelve videos of three classes."""
    make_dataset(tmp_path, classes=3, groups=2, videos=12, test_groups=1, side=40)
    return tmp_path / "videos"


def index_command(videos, output, *flags):
    common = ["--workers", 2, "--device", "cpu", "--window", "whole"]
    return ["search.py", "index", "--videos", videos, "--output", output, *common, *flags]


def test_one_command_makes_updates_and_searches_an_index(weights, videos, tmp_path, run_script):
    index = tmp_path / "index"
    command = index_command(videos, index)
    output = run_script(*command, "--pretrained", weights, "--bits", BITS).stdout
    assert "8 bits, fitted without labels to 12 windows" in output and "12 encoded" in output

    checkpoint = load_checkpoint(index / "encoder.pt", "settings")
    backbone = load_checkpoint(weights)["model"]
    assert checkpoint["classes"] == [] and checkpoint["network"]["bits"] == BITS
    assert all(
        torch.equal(checkpoint["model"][key], backbone[key])
        for key in backbone
        if key.startswith("backbone.")
    )
    table = Index(index).table.to_table()
    assert set(table["class"].to_pylist()) == {None}
    codes = set(table["code"].to_pylist())
    assert len(codes) > 3, "the codes tell videos apart"

    first = next(path for path in sorted(videos.glob("*/*.avi")))
    shutil.copy(first, videos / "new.avi")
    before = (index / "encoder.pt").read_bytes()
    assert "1 encoded, 12 already there" in run_script(*command).stdout
    assert (index / "encoder.pt").read_bytes() == before, "an update fits nothing again"

    shutil.move(index, tmp_path / "moved")  # the encoder is in it
    query = ["search.py", "query", "--index", tmp_path / "moved", "--json", "--video", first]
    (found,) = json.loads(run_script(*query, "--device", "cpu").stdout)
    assert found["results"][0]["distance"] == 0

    moved = index_command(videos, tmp_path / "moved")
    for flags in (["--bits", 16], ["--pretrained", weights]):
        message = run_script(*moved, *flags, status=1).stderr
        assert "already has an encoder, of 8 bits" in message


def test_its_codes_are_measured_without_false_warnings(weights, demo, tmp_path, run_script):
    """The frames of the demo have another size than the weights want, which is refused first."""
    run_script(
        *index_command(demo / "videos", tmp_path / "index"), "--pretrained", weights, "--bits", 8
    )
    data = ["--frames", demo / "frames", "--splits", demo / "splits", "--output", tmp_path / "out"]
    command = [
        "test.py",
        "--checkpoint",
        tmp_path / "index" / "encoder.pt",
        *data,
        "--device",
        "cpu",
    ]
    assert "the size of the frames is" in run_script(*command, status=1).stderr
    content = load_checkpoint(tmp_path / "index" / "encoder.pt")
    content["preprocessing"]["frame_size"] = [20, 24]
    save_checkpoint(tmp_path / "index" / "encoder.pt", content)
    result = run_script(*command)
    assert "mAP" in result.stdout and "warning" not in result.stderr


def test_two_processes_fit_one_encoder(weights, videos, tmp_path, run_script):
    flags = ["--pretrained", weights, "--bits", BITS]
    command = tuple(map(str, index_command(videos, tmp_path / "two", *flags)))
    processes = start_ranks(2, tmp_path, run_main, command)
    assert [process.wait() for process in processes] == [0, 0]
    run_script(*index_command(videos, tmp_path / "one"), *flags)
    one, two = (content(tmp_path / name)[0] for name in ("one", "two"))
    assert [row["path"] for row in one] == [row["path"] for row in two] and len(one) == 12


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bits", 12], "differ in only 11 directions; use --bits 11 or less, or more videos"),
        (["--bits", 500], "features, so at most"),
        (["--pretrained", "missing.pth"], "missing.pth: file not found"),
        (["--checkpoint", "missing.pt", "--bits", 8], "are for indexes without --checkpoint"),
    ],
)
def test_what_cannot_work_is_one_line(flags, message, weights, videos, tmp_path, run_script):
    flags = ["--pretrained", weights, *flags] if "--bits" in flags[:1] else flags
    output = run_script(*index_command(videos, tmp_path / "index", *flags), status=1)
    assert message in output.stderr and output.stderr.count("\n") == 1
    left = {path.name for path in (tmp_path / "index").glob("*")}
    assert left <= {".lock"}, "nothing half-written"


def test_equal_videos_are_refused(weights, videos, tmp_path, run_script):
    first = next(videos.glob("*/*.avi"))
    (tmp_path / "equal").mkdir()
    for number in range(12):
        shutil.copy(first, tmp_path / "equal" / f"{number}.avi")
    flags = ["--pretrained", weights, "--bits", BITS]
    output = run_script(*index_command(tmp_path / "equal", tmp_path / "index", *flags), status=1)
    assert "the features of all 12 items are equal" in output.stderr


def test_weights_of_others_get_their_own_input(tmp_path, monkeypatch):
    path = tmp_path / "hara.pth"
    torch.save(file_layout("Hara 2018", tiny_state()), path)
    monkeypatch.setattr(
        label_free,
        "build_model",
        lambda **settings: build_model(**settings | {"width": TINY_WIDTH}),
    )
    model, content = label_free.build_label_free(str(path), 8)
    assert content["network"]["backbone"] == "resnet18" and model.hash.out_features == 8
    assert label_free.CLIPS.items() <= content["preprocessing"].items()
    assert content["preprocessing"]["channels"] == "RGB"
    with pytest.raises(UserError, match="10 features, so at most 10 bits"):
        label_free.build_label_free(str(path), 16)
