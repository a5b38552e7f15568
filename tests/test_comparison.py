"""test.py on files of codes, and its mistakes that need no model."""

import json

import numpy as np
import pytest


def write_codes(path, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(30) % 3
    codes = rng.normal(size=(30, 16)) + 3 * np.eye(3, 16)[labels]
    np.savez(
        path,
        query_codes=codes[:9],
        query_labels=labels[:9],
        database_codes=codes[9:],
        database_labels=labels[9:],
    )
    return path


def test_several_files_of_codes_are_compared_in_one_table(tmp_path, run_script):
    files = [write_codes(tmp_path / f"{name}.npz", seed) for seed, name in enumerate("ab")]
    output = tmp_path / "comparison"
    result = run_script("test.py", "--codes", *files, "--top-r", 5, "--output", output)
    assert f"{tmp_path.name}/a" in result.stdout and "R 5" in result.stdout
    values = []
    for path in files:
        folder = output / f"{tmp_path.name}_{path.stem}"
        alone = run_script("test.py", "--codes", path, "--top-r", 5, "--output", tmp_path / "one")
        assert f"results in {tmp_path / 'one'}" in alone.stdout
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics == json.loads((tmp_path / "one" / "metrics.json").read_text())
        values.append(metrics["map"])
    assert values[0] != values[1]
    assert {path.name for path in output.glob("*.png")} == {
        "precision_recall.png",
        "precision_at.png",
    }


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        ([], 2, "give --checkpoint or --codes"),
        (["--codes", "none.npz"], 1, "none.npz: no such file"),
        (["--codes", "codes.npz", "--bits", 12], 1, "codes have 16 columns, not 12"),
        (["--codes", "codes.npz", "--cutoffs", 0], 2, "--cutoffs: must be a whole number"),
        (["--codes", "none.npz", "--output", "codes.npz/below"], 1, "Not a directory"),
        (["--checkpoint", "codes.npz"], 1, "codes.npz: "),
        (["--checkpoint", "."], 1, ".: no best.pt or last.pt in this folder"),
        (["--checkpoints", "."], 2, "did you mean --checkpoint"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(flags, status, message, tmp_path, run_script):
    write_codes(tmp_path / "codes.npz", 0)
    error = run_script("test.py", *flags, status=status, cwd=tmp_path).stderr
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["codes.npz"]
