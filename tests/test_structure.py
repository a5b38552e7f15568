"""The import rule: scripts use the packages; those use only `utils`, which uses none."""

import ast

from conftest import ROOT

PACKAGES = {"datasets", "losses", "models", "utils"}


def imported(path):
    """The first part of every module that the file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or ".").split(".")[0])
    return names


def test_packages_import_only_utils_of_each_other():
    for package in PACKAGES:
        files = sorted((ROOT / package).glob("*.py"))
        assert files
        for path in files:
            allowed = {package} if package == "utils" else {package, "utils"}
            assert not imported(path) & (PACKAGES - allowed), path


def test_no_script_imports_another():
    scripts = sorted(ROOT.glob("*.py"))
    names = {script.stem for script in scripts}
    assert {"train", "test", "extract_frames", "make_splits"} <= names
    for script in scripts:
        assert not imported(script) & names, script
