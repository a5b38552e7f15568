"""Command-line flags, and flat YAML files of flags: one parser checks both."""

import argparse
import difflib
import os
import re
import shutil
import sys
from pathlib import Path

import yaml
from yaml.constructor import SafeConstructor

from utils.argtypes import folder_name
from utils.errors import printable
from utils.schema import is_text, show

MOST_COLUMNS = 80
MOST_BYTES = 2**16  # of a config
MOST_LETTERS = 500  # of a message
YAML = "tag:yaml.org,2002:"
NULL, BOOL, INT, FLOAT = (f"{YAML}{name}" for name in ("null", "bool", "int", "float"))
TAGS = {NULL, BOOL, INT, FLOAT, *(f"{YAML}{name}" for name in ("str", "timestamp", "value"))}
SEQUENCE = f"{YAML}seq"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line and which takes no abbreviated flags.

    doc: the docstring of the script, shown as it is written. main_flag: the flag to suggest for a
    value without a flag. `add` adds a flag to the current `group`.
    flags: {name: argparse.Action} of all flags but --help.
    """

    def __init__(self, doc=None, main_flag=None, **options):
        options = {"formatter_class": HelpFormatter, "allow_abbrev": False, **options}
        super().__init__(description=doc, **options)
        self.main_flag, self.flags, self.required = main_flag, {}, []
        self.target, self.config, self.commands = self, None, {}

    def group(self, title):
        """Start a group of flags; flags that `add` adds from now on are listed under `title`."""
        self.target = self.add_argument_group(title)

    def add(self, *names, **options):
        """Add a flag as `add_argument` does; its default is appended to the help."""
        if metavar := getattr(options.get("type"), "metavar", None):
            options.setdefault("metavar", metavar)
        action = self.target.add_argument(*names, **options)
        self.flags[action.dest] = action
        action.help = options["help"]
        has_default = action.default not in (None, []) and action.default is not False
        if has_default and not action.required:
            default = "on" if action.default is True else action.default
            shown = " ".join(map(str, default)) if isinstance(default, list) else default
            action.help += f" (default: {shown})"
        if action.required:
            self.required.append(f"{names[0]} {action.metavar or action.dest.upper()}")
            self.usage = " ".join(["%(prog)s", *self.required, "[other flags]"])
        return action

    def command(self, name, summary):
        """Add the parser of a subcommand and return it."""
        if not self.commands:
            self.choices = self.add_subparsers(dest="command", required=True, metavar="COMMAND")
        self.commands[name] = self.choices.add_parser(name, doc=summary, help=summary)
        return self.commands[name]

    def parse_args(self, argv=None, namespace=None):
        """As ArgumentParser does, but suggest a flag for what is not known."""
        argv = sys.argv[1:] if argv is None else list(argv)
        self.check_names(argv)
        args, unknown = self.parse_known_args(argv, namespace)
        if unknown:
            flag = f"; did you mean {self.main_flag} {unknown[0]}?" if self.main_flag else ""
            self.error(f"unexpected argument {unknown[0]!r}{flag}")
        return args

    def check_names(self, argv):
        """Exit with the nearest flag if `argv` has a flag that does not exist."""
        parsers = (self, *self.commands.values())
        known = ["help", *(name for parser in parsers for name in parser.flags)]
        known = [name.replace("_", "-") for name in known]
        for word in argv:
            name = word.removeprefix("--").removeprefix("no-").partition("=")[0]
            is_flag = word.startswith("--") and " " not in word.partition("=")[0]
            if is_flag and word != "--" and name not in known:
                self.error(f"unknown flag {word}{_suggest(name, known, '--')}")

    def error(self, message):
        """Print one line and exit with status 2."""
        message = printable(message.removeprefix("argument "))[:MOST_LETTERS]
        message = re.sub(r"--([\w-]+): expected \d+ arguments", self._name_values, message)
        source = f"{self.config} and " if self.config and os.path.exists(self.config) else ""
        self.exit(2, printable(f"{self.prog}: {message}; see {source}--help") + "\n")

    def _name_values(self, match):
        """The message of a flag that takes several values; match: in that of argparse."""
        return f"--{match[1]}: expected {' '.join(self.flags[match[1].replace('-', '_')].metavar)}"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the docstring, and all others within 80 columns."""

    def __init__(self, prog):
        columns = min(shutil.get_terminal_size().columns, MOST_COLUMNS)
        super().__init__(prog, max_help_position=26, width=columns - 1)


def _suggest(word, names, prefix=""):
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


# ==== configs ====


def parse_args(parser, argv=None):
    """Parse `argv`, with the keys of the YAML file of --config as flags before it.

    Every key of the file is a flag of `parser`, so that types, choices and misspellings are checked
    in one place; command-line flags override the file, which may hold required flags too. Any
    mistake exits with status 2 and one line.

    parser: a `Parser` with the flag --config. argv: list of str, sys.argv[1:] if None.
    Returns argparse.Namespace.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser.check_names(argv)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", nargs="?")
    parser.config = finder.parse_known_args(argv)[0].config
    if parser.config is None and (files := [word for word in argv if word.endswith(".yaml")]):
        parser.error(f"unexpected argument {files[0]!r}; did you mean --config {files[0]}?")
    if parser.config and not os.path.exists(parser.config):
        near = _suggest(parser.config, map(str, Path(parser.config).parent.glob("*.yaml")))
        parser.error(f"--config {parser.config}: no such file{near}")
    tokens = config_tokens(parser, parser.config) if parser.config else []
    return parser.parse_args(tokens + argv)


def config_tokens(parser, path):
    """The command-line arguments that are equal to the YAML file at `path`: list of str."""
    flags = {name: action for name, action in parser.flags.items() if name != "config"}
    tokens = []
    for key, node in _read_mapping(parser, path).items():
        name = key.replace("-", "_")
        if name not in flags:
            parser.error(f"{path}: unknown key {show(key)}{_suggest(name[:100], flags)}")
        tokens += _flag_tokens(parser, flags[name], node, f"{path}: {key}")
    return tokens


def _read_mapping(parser, path):
    """The keys of a YAML file with the nodes of their values: {str: yaml.Node}.

    Nodes are the parsed text before any object is made of it, so that aliases, dates and tags
    cannot expand into anything else than what the file shows.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            parser.error(f"--config {path}: has more than {MOST_BYTES} bytes")
        root = yaml.compose(text.decode("utf-8-sig"), yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        parser.error(f"--config {path}: {' '.join(str(error).split())[:300]}")
    if root is None or root.tag == NULL:
        return {}
    if not isinstance(root, yaml.MappingNode):
        parser.error(f"--config {path}: expected lines of 'key: value'")
    values = {}
    for key, value in root.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else f"a {key.id}"
        if name in values:
            parser.error(f"--config {path}: duplicate key {show(name)}")
        values[name] = value
    return values


def _flag_tokens(parser, action, node, where):
    """The command-line arguments of one key. node: its value."""
    is_list = isinstance(node, yaml.SequenceNode)
    items = node.value if is_list else [node]
    if is_list and node.tag != SEQUENCE or not all(isinstance(i, yaml.ScalarNode) for i in items):
        parser.error(f"{where}: expected a value or a list of values, not a {node.id} in it")
    values = [_read_scalar(parser, action, item, where) for item in items]
    shown = "a list" if is_list else show(values[0])
    if isinstance(action, argparse.BooleanOptionalAction):
        if is_list or not isinstance(values[0], bool):
            parser.error(f"{where}: expected true or false, not {shown}")
        return [action.option_strings[0 if values[0] else 1]]
    if any(value is None or isinstance(value, bool) for value in values):
        parser.error(f"{where}: {shown} is no value; remove the key to use the default")
    if is_list != (action.nargs in ("+", "*") or isinstance(action.nargs, int)):
        kind = "one value" if is_list else "a list such as [128, 171]"
        parser.error(f"{where}: expected {kind}, not {shown}")
    if action.nargs is None:  # "=" because a value may start with a dash
        return [f"{action.option_strings[0]}={values[0]}"]
    if any(str(value).startswith("--") for value in values):
        parser.error(f"{where}: a value must not start with two dashes")
    return [action.option_strings[0], *map(str, values)]


def _read_scalar(parser, action, node, where):
    """The value of a scalar node: None, bool, int or float, else text as it is written."""
    if node.tag not in TAGS:
        parser.error(f"{where}: the tag {show(node.tag)} is not supported; remove it")
    value = node.value
    is_text_flag = action.type in (None, folder_name)  # such as the folder 007
    if node.tag in (NULL, BOOL) or (node.tag in (INT, FLOAT) and not is_text_flag):
        try:
            value = SafeConstructor().construct_document(node)
        except (ValueError, KeyError):
            parser.error(f"{where}: {show(value)} is no {node.tag.rpartition(':')[2]}")
    if isinstance(value, str) and not is_text(value):
        parser.error(f"{where}: {show(value)} has a character that no file name can have")
    return value
