"""YAML as defaults for the command line: checked once, and the command line wins."""

import argparse

import pytest

import train
from utils.config import parse_args, positive_int


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--frames", required=True)
    parser.add_argument("--batch-size", type=positive_int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=[128, 171])
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--mode", choices=("a", "b"), default="a")
    return parser


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return ["--config", str(path)]


def test_the_file_gives_defaults_and_the_command_line_wins(parser, tmp_path):
    text = "frames: -odd name\nbatch_size: 4\nsize: [1, 2]\nflip: false\nmode: b\n"
    args = parse_args(parser, write(tmp_path, text))
    assert vars(args) | {"config": None} == {
        "config": None, "frames": "-odd name", "batch_size": 4, "size": [1, 2], "flip": False,
        "mode": "b",
    }  # fmt: skip
    args = parse_args(parser, [*write(tmp_path, text), "--batch-size", "2", "--flip"])
    assert (args.batch_size, args.flip, args.mode) == (2, True, "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frames: x\nbatchsize: 4", "unknown key 'batchsize'; the nearest is 'batch_size'"),
        ("frames: x\nbatch_size: four", "--batch-size: invalid"),
        ("frames: x\nbatch_size: 0", "0 is not at least 1"),
        ("frames: x\nsize: 3", "size: expected a list"),
        ("frames: x\nsize: [1, 2, 3]", "unrecognized arguments: 3"),
        ("frames: x\nmode: c", "invalid choice: 'c'"),
        ("frames: [x, y]", "frames: expected one value"),
        ("frames: x\nflip: 1", "flip: expected true or false"),
        ("frames: x\nmode:", "leave the key out"),
        ("frames: x\nframes: y", "key 'frames' stands twice"),
        ("just words", "expected lines of 'key: value'"),
        ("a: [", "--config"),
        ("batch_size: 2", "required: --frames"),
        ("frames: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)
def test_mistakes_end_in_one_line(parser, tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as stop:
        parse_args(parser, write(tmp_path, text))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_file_is_refused(parser, capsys):
    with pytest.raises(SystemExit):
        parse_args(parser, ["--config", "nowhere.yaml"])
    assert "nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["demo", "folder", "ucf101", "hmdb51", "reference"])
def test_the_shipped_configs_parse(name):
    args = parse_args(train.build_parser(), ["--config", f"configs/{name}.yaml"])
    assert args.output.startswith("runs/")
    assert args.epochs == {"demo": 40, "reference": 160}.get(name, 100)
