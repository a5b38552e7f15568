"""README.md, docs/ and docstrings: links lead somewhere, and the scripts accept the commands."""

import ast
import importlib.util
import re
import shlex

import pytest
from helpers import ROOT

from configs import search_flags, test_flags
from configs.flags import parse_train_flags
from reports.moments import format_search

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST_WORDS = 1200
SHELL_VARIABLES = {
    "$SLURM_CPUS_PER_TASK": "8",
    "$SLURM_ARRAY_TASK_ID": "1",
    "$SLURM_ARRAY_TASK_COUNT": "16",
}


MAKE_VARIABLES = {
    **{"$(RUN)": "python", "$(VIDEOS)": "my_videos", "$(DATA)": "data/mine", "$(NAME)": "mine"},
    **{"$(SPLITS)": "", "$(TRAIN)": ""},
}


def make_commands():
    """The commands of the Makefile that run Python, as `make folder VIDEOS=my_videos` does."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    for variable, value in MAKE_VARIABLES.items():
        text = text.replace(variable, value)
    return "\n".join(line.strip() for line in text.splitlines() if line.startswith("\tpython "))


def blocks():
    """(name, shell commands) of the documents' blocks of bash, the Makefile and the docstrings."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            yield path.name, block
    yield "Makefile", make_commands()
    for path in sorted(ROOT.glob("*.py")):
        lines = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()
        yield path.name, "\n".join(line for line in lines if line.startswith("    "))


def commands():
    """The commands that run one of our scripts: {"README.md: train.py …": words}."""
    found = {}
    for name, block in blocks():
        for variable, value in SHELL_VARIABLES.items():
            block = block.replace(variable, value)
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            scripts = [i for i, word in enumerate(words) if re.fullmatch(r"\w+\.py", word)]
            if scripts:
                words = words[scripts[0] :]
                found[f"{name}: {' '.join(words)}"] = words
    return found


def anchors(path):
    """The anchors that GitHub gives the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


PARSERS = {"test.py": test_flags.build_parser, "search.py": search_flags.build_parser}


def load_script(name):
    spec = importlib.util.spec_from_file_location(f"script_{name[:-3]}", ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path):
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)
    for link in links:
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_documents_have_commands_of_every_script():
    scripts = {words[0] for words in commands().values()}
    assert scripts == {path.name for path in ROOT.glob("*.py")}


@pytest.mark.parametrize("words", commands().values(), ids=commands().keys())
def test_scripts_accept_the_commands(words, monkeypatch):
    monkeypatch.chdir(ROOT)  # configs are named relative to it
    script, *arguments = words
    if script == "train.py":
        parse_train_flags(None, arguments)
    elif script in PARSERS:
        PARSERS[script]().parse_args(arguments)
    else:
        load_script(script).build_parser().parse_args(arguments)


def test_the_readme_stays_short():
    words = (ROOT / "README.md").read_text(encoding="utf-8").split()
    assert len(words) <= MOST_WORDS


def test_make_folder_runs_the_commands_of_the_readme(monkeypatch):
    monkeypatch.chdir(ROOT)
    [readme] = [block for name, block in blocks() if name == "README.md" and "my_videos" in block]
    makefile = [
        line for line in make_commands().splitlines() if re.search(r"\bm(y_videos|ine)\b", line)
    ]
    (*data, train, test), (*own_data, own_train, own_test) = (
        [shlex.split(line)[2:] for line in lines] for lines in (readme.splitlines(), makefile)
    )
    assert len(data) == 2 and own_data == data
    settings = [vars(parse_train_flags(None, flags)) for flags in (train, own_train)]
    assert all(settings[0][key] == settings[1][key] for key in settings[0].keys() - {"given"})
    assert [f"{own_test[-1]}/best.pt"] == test[1:]


def test_the_answer_in_the_readme_is_in_the_format_of_search_py():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [answer] = re.findall(
        r"^```text\n(data/.*?rank  bits.*?)^```", readme, re.DOTALL | re.MULTILINE
    )
    results = []
    for line in answer.splitlines()[2:-1]:
        rank, bits, _, name, times, path = line.split()
        end = float(times.rpartition(":")[2])
        found = {"rank": int(rank), "distance": int(bits), "share": 98 / 600, "class": name}
        found |= {"start": 0.0, "end": end, "query_start": 0.0, "query_end": 1.5, "path": path}
        results.append(found)
    ties = [{"first": 1, "last": 5, "windows": 98, "distance": 0}]
    query = answer.splitlines()[0]
    found = {"path": query, "results": results, "ties": ties, "unlike": None}
    assert format_search(found) == f"\n{answer}" and len(results) == 5


def test_every_row_of_robustness_names_its_tests():
    text = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) > 100
    for case, _, files in rows:
        for name in files.split(", "):
            assert name == "tests" or (ROOT / "tests" / f"test_{name}.py").exists(), case
