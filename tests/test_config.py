"""Flags and configs: one parser checks both, and command-line flags override a config."""

import argparse
import sys

import pytest

import extract_frames
import make_splits
import search
import test
import train
from configs import flags, search_flags, test_flags
from losses import DISTANCES, MINING
from models import BACKBONES, NORMALISATIONS
from utils.argtypes import number
from utils.config import Parser, parse_args

# Each list holds the one before nine times: 300 bytes that stand for 9^8 words.
ALIASES = "frames: [&a [{}]".format(", ".join(["lol"] * 9)) + "".join(
    f", &{name} [{', '.join([f'*{before}'] * 9)}]"
    for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.fixture
def parser():
    parser = Parser("Doc.", prog="script.py")
    parser.add("--config", help="YAML file")
    parser.add("--frames", required=True, help="folder")
    parser.add("--batch-size", type=number(int, least=1), default=8, help="clips")
    size = {"type": int, "nargs": 2, "default": [128, 171], "metavar": ("HEIGHT", "WIDTH")}
    parser.add("--size", **size, help="pixels")
    parser.add("--flip", action=argparse.BooleanOptionalAction, default=True, help="mirror")
    parser.add("--mode", choices=("a", "b"), default="a", help="mode")
    return parser


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return ["--config", str(path)]


def test_command_line_flags_override_the_config(parser, tmp_path):
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
        ("frames: x\nbatchsize: 4", "unknown key 'batchsize'; did you mean batch_size?"),
        (
            "frames: x\nbatch_size: four",
            "--batch-size: must be a whole number of at least 1, not 'four'",
        ),
        ("frames: x\nbatch_size: 0", "must be a whole number of at least 1, not '0'"),
        ("frames: x\nsize: 3", "size: expected a list"),
        ("frames: x\nsize: [1, 2, 3]", "unexpected argument '3'"),
        ("frames: x\nmode: c", "invalid choice: 'c'"),
        ("frames: [x, y]", "frames: expected one value"),
        ("frames: x\nflip: 1", "flip: expected true or false"),
        ("frames: x\nmode:", "remove the key"),
        ("frames: x\nframes: y", "duplicate key 'frames'"),
        ("just words", "expected lines of 'key: value'"),
        ("a: [", "--config"),
        ("batch_size: 2", "required: --frames"),
        (
            "frames: !!python/object/apply:os.system ['true']",
            "expected a value or a list of values",
        ),
        ("frames: !!python/name:os.system ''", "is not supported; remove it"),
        ("frames: !!set {x}", "expected a value or a list of values"),
        ("frames: x\nbatch_size: 2026-13-45", "not '2026-13-45'"),
        ("frames: x\nbatch_size: !!int four", "'four' is no int"),
        ("frames: x\nflip: !!bool four", "'four' is no bool"),
        ("frames: x\nbatch_size: " + "9" * 5000, "no int"),
        ("frames: x\nbatch_size: " + "9" * 400, "must be a whole number of at least 1, not '999"),
        ("frames: x\nbatch_size: .inf", "must be a whole number"),
        ("frames: [[x]]", "expected a value or a list of values"),
        ("frames: x\nsize: [1, {a: 2}]", "expected a value or a list of values"),
        ("frames: x\nsize: [--flip, --no-flip]", "must not start with two dashes"),
        ('frames: "a\\0b"', "has a character that no file name can have"),
        ('frames: "\\ud800"', "has a character that no file name can have"),
        ("? [frames, x]\n: y", "unknown key 'a sequence'"),
        ("<<: {frames: x}", "unknown key '<<'"),
        ("frames: *nothing", "found undefined alias"),
        ("frames: x\nmode: " + "c" * 5000, "invalid choice"),
        ("[" * 9000, "--config"),
        ("frames: x #" + "x" * 2**16, "has more than 65536 bytes"),
        (ALIASES + "]", "expected a value or a list of values"),
    ],
)
def test_mistakes_end_in_one_line(parser, tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as stop:
        parse_args(parser, write(tmp_path, text))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("script.py: ") and message in lines[0]
    assert len(lines[0]) < 700 and lines[0].isprintable()


def test_text_is_taken_as_it_is_written(parser, tmp_path):
    """YAML makes 7, 8 and a date of these."""
    for text in ("007", "010", "2026-11-25", "1_000", "0x10"):
        assert parse_args(parser, write(tmp_path, f"frames: {text}")).frames == text
    text = "frames: &name x\nmode: *name\n"
    with pytest.raises(SystemExit):
        parse_args(parser, write(tmp_path, text))
    text = "frames: &name b\nmode: *name\nbatch_size: 0x10\nsize: [1_0, 2]\n"
    args = parse_args(parser, write(tmp_path, text))
    assert (args.frames, args.mode, args.batch_size, args.size) == ("b", "b", 16, [10, 2])


def test_a_missing_file_is_refused(parser, capsys):
    with pytest.raises(SystemExit):
        parse_args(parser, ["--config", "nowhere.yaml"])
    assert capsys.readouterr().err.endswith("--config nowhere.yaml: no such file; see --help\n")


def test_a_missing_file_is_refused_with_a_similar_one(parser, tmp_path, capsys):
    (tmp_path / "demo.yaml").touch(), (tmp_path / "other.yaml").touch()
    with pytest.raises(SystemExit):
        parse_args(parser, ["--config", f"{tmp_path}/demo.yml"])
    assert f"no such file; did you mean {tmp_path}/demo.yaml?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--frames", "x", "--batch-siz", "4"], "unknown flag --batch-siz; did you mean --batch-s"),
        (["--frames", "x", "--zzz"], "unknown flag --zzz; see --help"),
        (["--frame", "x"], "unknown flag --frame; did you mean --frames?"),
        (["--frames", "x", "y"], "unexpected argument 'y'"),
        (["configs/demo.yaml"], "did you mean --config configs/demo.yaml?"),
        (["--confg", "configs/demo.yaml"], "unknown flag --confg; did you mean --config?"),
        (["--batch-size", "nan"], "must be a whole number"),
        (["--size", "4"], "--size: expected HEIGHT WIDTH; see"),
    ],
)
def test_wrong_flags_end_in_one_line(parser, flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args(parser, flags)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0] and lines[0].endswith("see --help")


@pytest.mark.parametrize(
    ("kind", "bounds", "right", "wrong"),
    [
        (int, {"least": 1}, ["1", "7"], ["0", "-1", "1.5", "", "x"]),
        (float, {"above": 0, "most": 1}, ["1", "0.1"], ["0", "1.1", "nan", "inf"]),
        (float, {"least": 0, "below": 1}, ["0", "0.99"], ["1", "-0.1"]),
        (float, {}, ["-1e9"], ["inf", "-inf"]),
    ],
)
def test_numbers_are_in_their_range(kind, bounds, right, wrong):
    parse = number(kind, **bounds)
    assert [parse(text) for text in right] == [kind(text) for text in right]
    for text in wrong:
        with pytest.raises(argparse.ArgumentTypeError, match="must be a"):
            parse(text)


def test_help_fits_80_columns_and_names_every_default(parser, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["search.py"])
    assert "(default: 128 171)" in parser.format_help()
    assert "--batch-size N " in parser.format_help()
    parsers = [parser, flags.build_parser(train.__doc__), test_flags.build_parser(test.__doc__)]
    found = search_flags.build_parser(search.__doc__)
    parsers += [found, *found.commands.values()]
    parsers += [extract_frames.build_parser(), make_splits.build_parser()]
    for each in parsers:
        text = each.format_help()
        assert max(map(len, text.splitlines())) <= 80
        assert "None" not in text and "True" not in text and "False" not in text


@pytest.mark.parametrize("name", ["demo", "folder", "ucf101", "hmdb51", "reference"])
def test_the_shipped_configs_parse(name):
    args = flags.parse_train_flags(None, ["--config", f"configs/{name}.yaml"])
    assert args.output.startswith("runs/")
    assert args.epochs == {"demo": 40, "reference": 160}.get(name, 100)


def test_the_defaults_are_those_of_ucf101_without_its_weights():
    required = ["--frames", "x", "--splits", "y", "--output", "z"]
    defaults = vars(flags.parse_train_flags(None, required))
    config = vars(flags.parse_train_flags(None, ["--config", "configs/ucf101.yaml"]))
    different = {key for key in defaults if defaults[key] != config[key]}
    paths = {"config", "frames", "splits", "output", "given"}
    assert different == paths | {"pretrained", "backbone_lr_factor"}


def test_the_choices_are_those_of_the_packages():
    assert set(flags.BACKBONES) == set(BACKBONES)
    assert set(flags.NORMALISATIONS) == set(NORMALISATIONS)
    assert set(flags.MINING) == set(MINING) and set(flags.DISTANCES) == set(DISTANCES)
