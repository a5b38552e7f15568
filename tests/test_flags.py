"""Flags, configs and paths that cannot be right are refused in one line, before any work."""

import subprocess
import sys

import pytest
from helpers import ROOT, train_command
from hypothesis import given, settings
from hypothesis import strategies as st

import extract_frames
import make_splits
from configs import search_flags, test_flags
from configs.flags import BACKBONES, build_parser, parse_train_flags
from utils.config import parse_args


@pytest.mark.parametrize(
    ("build", "flags"),
    [
        (build_parser, ["--conf", "configs/demo.yaml"]),
        (build_parser, ["--config", "configs/demo.yaml", "--epoch", "3"]),
        (build_parser, ["--config", "configs/demo.yaml", "--bit", "16"]),
        (test_flags.build_parser, ["--check", "best.pt"]),
        (extract_frames.build_parser, ["--videos", "v", "--frames", "f", "--worker", "2"]),
        (make_splits.build_parser, ["--data", "folder", "--frames", "f", "--output", "o"]),
        (search_flags.build_parser, ["query", "--index", "i", "--vid", "v"]),
        (
            search_flags.build_parser,
            ["index", "--checkpoint", "c", "--video", "v", "--output", "o"],
        ),
    ],
)
def test_abbreviated_flags_are_refused(build, flags, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", *flags])
    with pytest.raises(SystemExit) as stop:
        parse_args(build(), flags) if "--config" in flags else build().parse_args(flags)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.scripts
@pytest.mark.parametrize("script", ["train.py", "test.py", "search.py"])
def test_help_does_not_wait_for_pytorch(script):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{script}', '--help']\n"
        f"try: runpy.run_path('{script}', run_name='__main__')\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


# ==== values that are wrong whatever the data are ====


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", ""], "--output: must be the name of a folder"),
        (["--seed", 2**32], "--seed: must be a whole number of at least 0 and below"),
        (["--bits", 0], "--bits: must be a whole number of at least 1, not '0'"),
        (["--classes-per-batch", 1], "must be a whole number of at least 2, not '1'"),
        (["--clips-per-class", 1], "must be a whole number of at least 2, not '1'"),
        (["--crop", 1.5], "--crop: must be a number above 0 and of at most 1, not '1.5'"),
        (["--crop-scale", 0.5, 1.5], "must be a number above 0 and of at most 1, not '1.5'"),
        (["--crop-scale", 0.9, 0.5], "--crop-scale: LEAST must not be above MOST"),
        (["--lr", "nan"], "--lr: must be a number above 0, not 'nan'"),
        (["--distance", "squared"], "--distance squared needs --margin"),
    ],
)
def test_impossible_values_are_refused(flags, message, capsys):
    required = ["--frames", "f", "--splits", "s", "--output", "o"]
    with pytest.raises(SystemExit) as stop:
        parse_train_flags("", [*required, *map(str, flags)])
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
FLAGS = sorted(build_parser().flags)


@settings(max_examples=100, deadline=None)
@given(values=st.dictionaries(st.sampled_from(FLAGS), YAML, max_size=4), cut=st.integers(0, 60))
def test_any_config_is_read_or_ends_in_status_2(tmp_path_factory, values, cut):
    import yaml

    path = tmp_path_factory.mktemp("config") / "config.yaml"
    text = yaml.safe_dump(values)
    path.write_text(text[: len(text) - cut if cut < 10 else None], encoding="utf-8")
    try:
        args = parse_args(build_parser(), ["--config", str(path)])
    except SystemExit as stop:
        assert stop.code == 2
    else:
        assert args.bits >= 1 and args.backbone in BACKBONES


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=100))
def test_any_bytes_as_a_config_end_in_status_2(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as stop:  # at the least, --frames is missing
        parse_args(build_parser(), ["--config", str(path)])
    assert stop.value.code == 2


# ==== values that do not fit the data or the machine ====


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "toaster"], "toaster"),
        (["--classes-per-batch", 9], "--classes-per-batch is 9"),
        (["--clip-frames", 9], "only 8 frames per video; lower it or raise extract_frames.py"),
        (
            ["--clip-frames", 9, "--cache", "ram", "--cache-frames", 8],
            "only 8 frames per video; lower it or raise --cache",
        ),
        (["--backbone", "c3d"], "at least 16 frames"),
        (["--freeze-until", "layer9"], "choose from conv1, bn1"),
        (["--pretrained", "nowhere.pth"], "file not found"),
        (["--frames", "nowhere"], "correct --frames"),
        (["--splits", "nowhere"], "make_splits.py"),
        (["--sync-batch-norm"], "GPUs only"),
    ],
)
def test_training_with_what_does_not_fit_is_refused(flags, message, demo, tmp_path, run_script):
    error = run_script(*train_command(demo, tmp_path / "run", *flags), status=1).stderr
    assert message in error.splitlines()[-1] and "Traceback" not in error
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint", "nowhere.pt"], "no such checkpoint"),
        (["--checkpoint", "RUN/best.pt", "--splits", "nowhere"], "no such file"),
    ],
)
def test_testing_what_is_not_there_is_refused(flags, message, trained, run_script):
    flags = [flag.replace("RUN", str(trained)) for flag in flags]
    error = run_script("test.py", *flags, status=1).stderr
    assert message in error.splitlines()[-1] and "Traceback" not in error
