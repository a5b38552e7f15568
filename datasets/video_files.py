"""The video files below a folder."""

import os
from pathlib import Path

from datasets import advice
from utils.errors import UserError

VIDEO_SUFFIXES = (".avi", ".mp4", ".m4v", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".vob")
VIDEO_SUFFIXES += (".ts", ".m2ts", ".mts", ".wmv", ".flv", ".3gp", ".ogv", ".gif")


def is_video(name):
    """Whether a file has the suffix of a video."""
    return name.lower().endswith(VIDEO_SUFFIXES)


def has_videos(folder):
    """Whether there is a video directly in a folder."""
    return any(is_video(path.name) for path in advice.entries(folder))


def has_class_videos(folder):
    """Whether there is a video like <folder>/<class>/<name>.avi."""
    return any(has_videos(path) for path in advice.entries(folder) if path.is_dir())


def list_files(root, skip=()):
    """All files below `root` but hidden ones: sorted list of paths relative to it, str.

    Links are followed, and no folder is searched twice. skip: folders that are not searched.
    Raises UserError where there is no such folder, and OSError for a folder that cannot be read,
    whose files would seem to be deleted.
    """
    if not os.path.isdir(root):
        raise UserError(f"--videos {root}: {advice.explain_missing(root, has_class_videos)}")

    def fail(error):
        raise error

    files, seen = [], {os.path.realpath(folder) for folder in (root, *skip)}
    for folder, folders, names in os.walk(root, onerror=fail, followlinks=True):
        below = {
            os.path.realpath(os.path.join(folder, name)): name
            for name in sorted(folders, reverse=True)
            if not name.startswith(".")
        }
        folders[:] = [name for path, name in below.items() if path not in seen]
        seen |= below.keys()
        visible = [name for name in names if not name.startswith(".")]
        files += [os.path.relpath(os.path.join(folder, name), root) for name in visible]
    return sorted(files)


def find_videos(root):
    """Videos anywhere below `root`: sorted list of paths relative to it, str."""
    videos = [name for name in list_files(root) if is_video(name)]
    if not videos:
        raise UserError(f"--videos {root}: no video there{_explain_no_videos(Path(root))}")
    return videos


def _explain_no_videos(root):
    """What to do where there is no video at any depth below `root`."""
    if archives := advice.find_archives(root):
        return f"; {advice.advise_unpacking(archives)}"
    beside = [path for path in advice.entries(root.absolute().parent) if path.is_dir()]
    near = [root.with_name(path.name) for path in beside if has_class_videos(path)]
    return f"; {advice.did_you_mean(*near)}" if near else f" ({' '.join(VIDEO_SUFFIXES)})"


def find_class_videos(root, skip=()):
    """Videos <root>/<class>/<name>: (sorted list of Path, number of the other files below `root`).

    skip: folders that are not searched. Raises UserError, with the remedy, where there are none.
    """
    files = list_files(root, skip)
    videos = [name for name in files if is_video(name)]
    found = sorted(Path(root, name) for name in videos if name.count(os.sep) == 1)
    if not found:
        reason = _explain_no_class_videos(Path(root), videos)
        raise UserError(f"--videos {root}: no video like <class>/<name>.avi there; {reason}")
    return found, len(files) - len(found)


def _explain_no_class_videos(root, videos):
    """What to do where the videos below `root` are deeper, directly in it, or still in archives."""
    deeper = {os.path.dirname(os.path.dirname(name)) for name in videos if os.sep in name}
    if deeper:
        return advice.did_you_mean(*(root / folder for folder in sorted(deeper)))
    if videos:
        parent = Path(os.path.normpath(root / ".."))
        others = [path for path in advice.entries(parent) if path.is_dir() and has_videos(path)]
        is_class = any(not path.samefile(root) for path in others)
        advised = advice.did_you_mean(f"its parent {parent}") if is_class else "make one per class"
        return f"its videos are in no class folder; {advised}"
    archives = advice.find_archives(root)
    return advice.advise_unpacking(archives) if archives else "it holds no videos at all"
