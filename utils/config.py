"""A flat YAML file as defaults for the command line: one parser checks both."""

import argparse
import difflib
import os
import sys

import yaml


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each flag's default and leaves the script's docstring as it is written."""


def new_parser(doc, **options):
    """An argparse.ArgumentParser that shows `doc` and takes no abbreviated flags.

    With them `--conf x.yaml` would be taken for --config, but not by `parse_args`.
    """
    options = {"formatter_class": HelpFormatter, "allow_abbrev": False, **options}
    return argparse.ArgumentParser(description=doc, **options)


def parse_args(parser, argv=None):
    """Parse `argv`, with the keys of the file named by --config as tokens ahead of it.

    Every key of the file is a flag of `parser`, so that types, choices and misspellings are checked
    once and the command line wins. Required flags may stand in the file. On any mistake the parser
    exits with status 2 and one line.

    parser: from `new_parser`, with a --config flag. argv: list of str, sys.argv[1:] if
    None. Returns argparse.Namespace.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    config = finder.parse_known_args(argv)[0].config
    tokens = config_tokens(parser, config) if config else []
    return parser.parse_args(tokens + argv)


def config_tokens(parser, path):
    """The command-line tokens that say what the YAML file at `path` says."""
    flags = {
        action.dest: action
        for action in parser._actions
        if action.option_strings and action.dest not in ("help", "config")
    }
    tokens = []
    for key, value in _read_mapping(parser, path).items():
        name = str(key).replace("-", "_")
        if name not in flags:
            near = difflib.get_close_matches(name, flags, n=1, cutoff=0)
            parser.error(f"{path}: unknown key '{key}'; the nearest is '{near[0]}'")
        tokens += _flag_tokens(parser, flags[name], value, f"{path}: {key}")
    return tokens


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML lets the last of two equal keys win without a word; a config should not."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"key '{twice.pop()}' stands twice")
        return super().construct_mapping(node, deep)


def _read_mapping(parser, path):
    try:
        with open(path, encoding="utf-8-sig") as file:
            mapping = yaml.load(file, Loader=_UniqueKeyLoader)  # a SafeLoader
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
            parser.error(f"{where}: expected true or false, got {value!r}")
        return [action.option_strings[0 if value else 1]]
    if value is None or isinstance(value, (bool, dict)):
        parser.error(f"{where}: {value!r} is not a value; leave the key out for the default")
    if isinstance(value, list) != (action.nargs in ("+", "*") or isinstance(action.nargs, int)):
        kind = "one value" if isinstance(value, list) else "a list like [128, 171]"
        parser.error(f"{where}: expected {kind}, got {value!r}")
    values = value if isinstance(value, list) else [value]
    if action.nargs is None:  # '=' keeps a value that starts with a dash a value
        return [f"{action.option_strings[0]}={values[0]}"]
    return [action.option_strings[0], *map(str, values)]


def folder_name(text):
    """argparse type: a folder's name."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty; give a folder")
    return text


def processors():
    """Processors that this process may use, shared with the others that torchrun started here."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def positive_int(text):
    """argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def two_or_more(text):
    """argparse type: a whole number of at least 2."""
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{text} is not at least 2")
    return value


def random_seed(text):
    """argparse type: a whole number from 0 to 2**32 - 1."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to {2**32 - 1}")
    return value


def whole_number(text):
    """argparse type: a whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def positive_float(text):
    """argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def share(text):
    """argparse type: a number above 0 and up to 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def non_negative_float(text):
    """argparse type: a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def fraction(text):
    """argparse type: a number from 0 up to, not including, 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value
