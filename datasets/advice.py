"""What to do where a folder of videos, lists or frames is missing or not the one that was meant."""

import difflib
import re
import shlex
from collections import Counter
from pathlib import Path

TAR = "tar -xf {archive} -C {folder}"
UNPACK = {  # suffix of an archive: the command that unpacks it
    ".rar": "unrar x {archive} {folder}/",
    ".zip": "unzip {archive} -d {folder}",
    ".7z": "7z x {archive} -o{folder}",
    ".tar": TAR,
    ".tgz": TAR,
    ".tar.gz": TAR,
    ".tar.bz2": TAR,
    ".tar.xz": TAR,
}


def did_you_mean(*folders):
    """A question that names at most three folders."""
    return f"did you mean {' or '.join(map(str, folders[:3]))}?"


def explain_missing(folder, is_wanted):
    """Why `folder` cannot be used, with what its neighbours suggest: a line without its name.

    is_wanted: function, whether a folder beside it is one of the kind that was meant.
    """
    folder = Path(folder)
    if folder.is_file():
        is_archive = _suffix(folder.name) is not None
        return advise_unpacking([folder]) if is_archive else "is a file, not a folder"
    wanted = [path for path in entries(folder.parent) if path.is_dir() and is_wanted(path)]
    similar = _nearest(folder.name, wanted)
    archive = _nearest(folder.name, find_archives(folder.parent))
    reasons = ["no such folder"]
    reasons += [did_you_mean(similar)] if similar else []
    reasons += [advise_unpacking([archive])] if archive else []
    return "; ".join(reasons)


def entries(folder):
    """What is directly in a folder, without hidden files: sorted list of Path, empty if closed."""
    try:
        return sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def find_archives(folder):
    """The archives directly in `folder`: sorted list of Path."""
    return [path for path in entries(folder) if _suffix(path.name) and path.is_file()]


def is_unpacked(archive):
    """Whether there is a folder of an archive's name beside it."""
    return archive.with_name(archive.name[: -len(_suffix(archive.name))]).is_dir()


def advise_unpacking(archives):
    """A line for archives of one folder, at least one: that they are there, and the command."""
    folder = shlex.quote(str(archives[0].parent))
    if len(archives) == 1:
        quoted = shlex.quote(str(archives[0]))
        command = UNPACK[_suffix(archives[0].name)].format(archive=quoted, folder=folder)
        return f"{archives[0]} is there; unpack it: {command}"
    suffixes = Counter(_suffix(archive.name) for archive in archives)
    suffix, count = suffixes.most_common(1)[0]
    command = UNPACK[suffix].format(archive='"$f"', folder=folder)
    loop = f"for f in {folder}/*{suffix}; do {command}; done"
    return f"{count} {suffix} archives are there, such as {archives[0]}; unpack them: {loop}"


def _suffix(name):
    """The suffix of an archive's name, or None for other files."""
    return next((suffix for suffix in UNPACK if name.lower().endswith(suffix)), None)


def _nearest(name, paths):
    """The path whose name has the letters and digits most like those of `name`, or None."""
    plain = {_plain(path.name): path for path in paths}
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.5)
    return plain[near[0]] if near else None


def _plain(name):
    return re.sub(r"[\W_]", "", name.lower())
