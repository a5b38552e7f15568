"""The import rule: scripts use the packages; those use only `utils`, which uses none."""

import ast
import importlib

from helpers import ROOT

PACKAGES = {"datasets", "losses", "models", "reports", "retrieval", "utils"}
USERS = {"benchmarks", "experiments", "serving"}  # may import all packages


def imported(path):
    """The top-level names of every module that the file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or ".").split(".")[0])
    return names


def test_packages_import_only_utils():
    for package in PACKAGES:
        files = sorted((ROOT / package).glob("*.py"))
        assert len(files) > 1
        for path in files:
            assert not imported(path) & (PACKAGES | USERS) - {package, "utils"}, path
    for path in (ROOT / "utils").glob("*.py"):
        assert not imported(path) & (PACKAGES - {"utils"}), path


def test_no_script_or_package_imports_a_script():
    scripts = sorted(ROOT.glob("*.py"))
    names = {script.stem for script in scripts}
    assert names == {"train", "test", "search", "extract_frames", "make_splits"}
    for package in (".", *PACKAGES):
        for path in (ROOT / package).glob("*.py"):
            assert not imported(path) & names, path


def test_every_module_can_be_imported():
    """A name that was moved is noticed, also in what no other test imports."""
    for package in sorted(PACKAGES | USERS):
        for path in sorted((ROOT / package).glob("*.py")):
            importlib.import_module(f"{package}.{path.stem}")


def test_utils_stays_small():
    modules = {path.stem for path in (ROOT / "utils").glob("*.py")} - {"__init__"}
    assert len(modules) <= 12


def test_every_function_fits_a_screen():
    for path in ROOT.glob("**/*.py"):
        if path.relative_to(ROOT).parts[0].startswith("."):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                has_docstring = ast.get_docstring(node) is not None
                docstring = (
                    node.body[0].end_lineno - node.body[0].lineno + 1 if has_docstring else 0
                )
                lines = node.end_lineno - node.lineno + 1 - docstring
                assert lines <= 60, f"{path}: {node.name} has {lines} lines without its docstring"
