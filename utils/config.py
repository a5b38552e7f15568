"""Command-line flags, and flat YAML files of flags: one parser checks both."""

import argparse
import difflib
import shutil
import sys

import yaml

from utils.errors import printable

MOST_COLUMNS = 80


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
        parsers = (self, *self.commands.values())
        known = ["help", *(name for parser in parsers for name in parser.flags)]
        known = [name.replace("_", "-") for name in known]
        for word in argv:
            name = word.removeprefix("--").removeprefix("no-").partition("=")[0]
            is_flag = word.startswith("--") and " " not in word.partition("=")[0]
            if is_flag and word != "--" and name not in known:
                self.error(f"unknown flag {word}{_suggest(name, known, '--')}")
        args, unknown = self.parse_known_args(argv, namespace)
        if unknown:
            flag = f"; did you mean {self.main_flag} {unknown[0]}?" if self.main_flag else ""
            self.error(f"unexpected argument {unknown[0]!r}{flag}")
        return args

    def error(self, message):
        """Print one line and exit with status 2."""
        message = message.removeprefix("argument ")
        source = f"{self.config} and " if self.config else ""
        self.exit(2, printable(f"{self.prog}: {message}; see {source}--help") + "\n")


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
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", nargs="?")
    parser.config = finder.parse_known_args(argv)[0].config
    if parser.config is None and (files := [word for word in argv if word.endswith(".yaml")]):
        parser.error(f"unexpected argument {files[0]!r}; did you mean --config {files[0]}?")
    tokens = config_tokens(parser, parser.config) if parser.config else []
    return parser.parse_args(tokens + argv)


def config_tokens(parser, path):
    """The command-line arguments that are equal to the YAML file at `path`: list of str."""
    flags = {name: action for name, action in parser.flags.items() if name != "config"}
    tokens = []
    for key, value in _read_mapping(parser, path).items():
        name = str(key).replace("-", "_")
        if name not in flags:
            parser.error(f"{path}: unknown key {str(key)!r}{_suggest(name, flags)}")
        tokens += _flag_tokens(parser, flags[name], value, f"{path}: {key}")
    return tokens


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML silently takes the last of two equal keys; a config must not."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"duplicate key '{twice.pop()}'")
        return super().construct_mapping(node, deep)


def _read_mapping(parser, path):
    try:
        with open(path, encoding="utf-8-sig") as file:
            mapping = yaml.load(file, Loader=_UniqueKeyLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as error:
        parser.error(f"--config {path}: {' '.join(str(error).split())}")
    if mapping is None:
        return {}
    if not isinstance(mapping, dict):
        parser.error(f"--config {path}: expected lines of 'key: value'")
    return mapping


def _flag_tokens(parser, action, value, where):
    if isinstance(action, argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            parser.error(f"{where}: expected true or false, not {value!r}")
        return [action.option_strings[0 if value else 1]]
    if value is None or isinstance(value, (bool, dict)):
        parser.error(f"{where}: {value!r} is no value; remove the key to use the default")
    if isinstance(value, list) != (action.nargs in ("+", "*") or isinstance(action.nargs, int)):
        kind = "one value" if isinstance(value, list) else "a list such as [128, 171]"
        parser.error(f"{where}: expected {kind}, not {value!r}")
    values = value if isinstance(value, list) else [value]
    if action.nargs is None:  # "=" because a value may start with a dash
        return [f"{action.option_strings[0]}={values[0]}"]
    return [action.option_strings[0], *map(str, values)]
