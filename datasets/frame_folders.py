"""Frame folders: what each records of its video, and how runs write them side by side.

A run writes every video into a folder of its own below <frames>/.partial and renames it to
<frames>/<class>/<video>. The record video.json lies inside and is renamed with the frames, so that
a frame folder and its record are both complete or both absent, whichever run is killed.
"""

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import tempfile
from pathlib import Path

from utils.errors import UserError
from utils.files import file_lock, write_text

RECORD = "video.json"
PARTIAL = ".partial"
LOCK = ".lock"  # held for moments, by whoever makes or removes what all runs use
LOCK_SECONDS = 60
OUR_FILES = re.compile(r"\d{6,}\.jpg|video\.json|\..*")


# ==== the record ====


def describe(video):
    """What tells a video file from another of the same name: dict, empty if it is unreachable."""
    try:
        status = os.stat(video)
    except OSError:
        return {}
    return {"video": video.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _write_record(folder, record):
    (folder / RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")


def read_record(folder):
    """The record of a frame folder, or None where there is none that can be used.

    A dict with video (file name), size (bytes) and mtime_ns of the file, frames (their number);
    other keys may be there. Earlier versions of extract_frames.py wrote no record.
    """
    try:
        record = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    is_usable = isinstance(record, dict) and isinstance(record.get("frames"), int)
    return record if is_usable else None


def recorded_frames(folder):
    """The number of frames that a frame folder must have by its own record, or None."""
    record = read_record(folder)
    return record and record["frames"]


def frame_numbers(folder):
    """The sorted numbers of the frames 000000.jpg, 000001.jpg, ... that are there: list of int."""
    stems = (Path(name).stem for name in os.listdir(folder) if name.endswith(".jpg"))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def find_flaw(folder, num_frames):
    """Why a frame folder is not complete, or None. num_frames: frames per video, 0 if they vary."""
    if not folder.is_dir():
        return "no folder"
    numbers = frame_numbers(folder)
    expected = num_frames or recorded_frames(folder) or max(numbers, default=0) + 1
    return None if numbers == list(range(expected)) else f"{len(numbers)} of {expected} frames"


def find_state(video, folder, num_frames):
    """The state of a video's frame folder, a word.

    "new": absent. "changed": the frames are of another video file or, without a record, older than
    the video. "incomplete": frames are lost. "unrecorded": complete, but without a record.
    "there": nothing is to be done. num_frames: frames per video, or 0 for all.
    """
    if not folder.is_dir():
        return "new"
    record, numbers, source = read_record(folder), frame_numbers(folder), describe(video)
    if record and any(record.get(key) != value for key, value in source.items()):
        return "changed"
    if not record and source.get("mtime_ns", 0) > folder.stat().st_mtime_ns:
        return "changed"
    expected = record["frames"] if record else num_frames or len(numbers)
    if not numbers or numbers != list(range(expected)):
        return "incomplete"
    return "there" if record else "unrecorded"


def add_record(video, folder, run):
    """Give a complete frame folder of an earlier version its record, made in the folder `run`.

    The folder's time is kept: a cache of its frames is still right.
    """
    times = folder.stat().st_atime_ns, folder.stat().st_mtime_ns
    _write_record(run, {**describe(video), "frames": len(frame_numbers(folder))})
    os.replace(run / RECORD, folder / RECORD)
    os.utime(folder, ns=times)


# ==== runs ====


def check_settings(frames, settings):
    """Write the settings into a new `frames` folder. UserError if it was extracted with others."""
    path = frames / "extraction.json"
    with file_lock(frames / LOCK, LOCK_SECONDS):  # two first runs may differ
        if not path.exists():
            write_text(path, json.dumps(settings, indent=2) + "\n")
            return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged; delete the folder and extract again") from error
    if earlier != settings:
        raise UserError(
            f"{frames} was extracted with {earlier}, not {settings}; give the earlier settings, "
            "another --frames, or delete the folder"
        )


@contextlib.contextmanager
def partial_folder(frames, shard):
    """Yield a folder below <frames>/.partial that is this run's alone; removed in the end.

    Those of dead runs are removed first. frames: Path. shard: (I, N). Raises UserError if another
    run extracts the same shard, also on another machine that shares the disk.
    """
    shard = f"{shard[0]}-of-{shard[1]}"
    reason = "another run extracts the same videos; wait until it ends, or stop it"
    with file_lock(frames / f"{LOCK}-{shard}", reason=reason):
        run = _make_folder(frames, shard)
        try:
            yield run
        finally:
            shutil.rmtree(run, ignore_errors=True)
            with file_lock(frames / LOCK, LOCK_SECONDS), contextlib.suppress(OSError):
                (frames / PARTIAL).rmdir()  # fails while other runs use it


def _make_folder(frames, shard):
    """Make the folder of a run and remove those of dead runs."""
    with file_lock(frames / LOCK, LOCK_SECONDS):
        (frames / PARTIAL).mkdir(exist_ok=True)
        others = list((frames / PARTIAL).iterdir())
        prefix = f"{shard}@{platform.node()}@"
        run = Path(tempfile.mkdtemp(prefix=prefix, dir=frames / PARTIAL))
        for number, other in enumerate(others):
            if _is_dead(other, shard):
                # Renamed before it is emptied: an orphan of that run, which may live for a moment
                # where the system does not end it, can then no longer publish what is left of it.
                other.rename(run / f"dead-{number}")
    for dead in run.iterdir():
        shutil.rmtree(dead, ignore_errors=True)
    return run


def _is_dead(other, shard):
    """Whether the run of the folder `other` has ended; this process holds the lock of `shard`.

    Locks may not reach other machines, so their runs of other shards are taken for alive.
    """
    other_shard, _, rest = other.name.partition("@")
    if other_shard == shard or not rest:  # without "@" an earlier version made it
        return True
    if rest.rpartition("@")[0] != platform.node():
        return False
    try:
        with file_lock(other.parent.parent / f"{LOCK}-{other_shard}", seconds=0):
            return True
    except UserError:
        return False


def publish(aside, folder, record):
    """Give the frame folder `aside` its record and rename it to `folder` in place of what is there.

    record: dict as `read_record` gives it. Where another run has put the same frames there
    meanwhile, those stay. Raises UserError if `folder` holds files of others, and OSError.
    """
    _write_record(aside, record)
    former = aside.with_name(f"{aside.name}-former")
    folder.parent.mkdir(parents=True, exist_ok=True)
    while read_record(folder) != record or frame_numbers(folder) != list(range(record["frames"])):
        shutil.rmtree(former, ignore_errors=True)
        set_aside(folder, former)
        try:
            aside.rename(folder)
            break
        except OSError as error:  # another run was faster: look at what it put there
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    for rest in (aside, former):
        shutil.rmtree(rest, ignore_errors=True)


def set_aside(folder, former):
    """Rename a frame folder to `former` if it is there. UserError if it holds files of others."""
    with contextlib.suppress(FileNotFoundError):
        others = [name for name in os.listdir(folder) if not OUR_FILES.fullmatch(name)]
        if others:
            raise UserError(
                f"{folder} holds {min(others)}, which extract_frames.py did not write; move the "
                "folder away and rerun"
            )
        folder.rename(former)
