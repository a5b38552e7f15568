"""Frame folders: their records, and how several runs write them without harm to each other.

A run writes the frames of a video into a temporary folder below <frames>/.partial and renames it to
<frames>/<class>/<video>. The record video.json is in that folder too, so that frames and record are
both complete or both absent, whenever a run is killed.
"""

import contextlib
import csv
import errno
import io
import json
import os
import platform
import re
import shutil
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from utils import schema
from utils.errors import UserError
from utils.files import file_lock, write_text
from utils.schema import SchemaError, read_json

EXTRACTION = "extraction.json"  # in the root: the settings of all frame folders
RECORD = "video.json"  # in each frame folder
PARTIAL = ".partial"
LOCK = ".lock"  # held for moments, while a run makes or removes what all runs use
LOCK_SECONDS = 60
MOST_FRAMES = 10**7  # of a video: days
SETTINGS = schema.record({"num_frames": schema.whole(0, MOST_FRAMES)}, others=schema.plain)
RECORD_SCHEMA = schema.record(
    {"frames": schema.whole(1, MOST_FRAMES)},
    {
        **{"video": schema.text, "size": schema.whole(), "mtime_ns": schema.whole(-(2**63), 2**63)},
        **{name: schema.whole(1, MOST_FRAMES) for name in ("decoded", "width", "height")},
        "seconds": schema.real(above=0),
    },
)
TABLE_KEYS = ("decoded", "seconds", "width", "height")  # of a record
OUR_FILES = re.compile(r"\d{6,}\.jpg|video\.json|\..*")


# ==== settings ====


def read_extraction(frames):
    """The settings with which extract_frames.py wrote `frames`: dict, or None for other folders.

    "num_frames" is the number of frames per video, 0 for all of them. Raises UserError.
    """
    path = Path(frames) / EXTRACTION
    if not path.exists():
        return None
    try:
        return read_json(path, SETTINGS)
    except SchemaError as error:
        raise UserError(
            f"{path}: damaged: {error}; delete {frames} and rerun extract_frames.py"
        ) from error


def check_settings(frames, settings):
    """Write the settings into a new `frames` folder. UserError if it was extracted with others."""
    with file_lock(frames / LOCK, LOCK_SECONDS):  # two first runs may have different settings
        earlier = read_extraction(frames)
        if earlier is None:
            write_text(frames / EXTRACTION, json.dumps(settings, indent=2) + "\n")
        elif earlier != settings:
            raise UserError(
                f"{frames} was extracted with {earlier}, not {settings}; use the earlier settings "
                "or another --frames, or delete the folder"
            )


# ==== records ====


def describe(video):
    """What differs between video files of one name: dict, empty if the file cannot be reached."""
    try:
        status = os.stat(video)
    except OSError:
        return {}
    return {"video": video.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def read_record(folder):
    """The record of a frame folder, or None if there is none or it is damaged.

    A dict with video (file name), size (bytes) and mtime_ns of the file, frames (how many), and
    what was decoded: decoded (number of frames), seconds, width, height. Other keys are allowed.
    Earlier versions of extract_frames.py wrote no record, or one without what was decoded.
    """
    try:
        return read_json(Path(folder) / RECORD, RECORD_SCHEMA)
    except (FileNotFoundError, NotADirectoryError, SchemaError):
        return None


def add_record(video, folder):
    """Write the record of a complete frame folder of an earlier version."""
    record = {**describe(video), "frames": len(frame_numbers(folder))}
    write_text(folder / RECORD, json.dumps(record) + "\n")


def recorded_frames(folder):
    """The number of frames that a frame folder must have by its record, or None."""
    record = read_record(folder)
    return record and record["frames"]


def frame_numbers(folder):
    """The numbers of the frames 000000.jpg, 000001.jpg, ... that exist: sorted list of int."""
    stems = (Path(name).stem for name in os.listdir(folder) if name.endswith(".jpg"))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _is_range(numbers, count):
    """Whether sorted numbers are 0 to `count` - 1; `count` may be huge."""
    return len(numbers) == count and numbers == list(range(count))


def find_flaw(folder, num_frames):
    """Why a frame folder is not complete, or None. num_frames: frames per video, 0 if they vary."""
    if not folder.is_dir():
        return "no folder"
    numbers = frame_numbers(folder)
    expected = num_frames or recorded_frames(folder) or max(numbers, default=0) + 1
    return None if _is_range(numbers, expected) else f"{len(numbers)} of {expected} frames"


def find_state(video, folder, num_frames):
    """The state of a video's frame folder: one word.

    "new": there is none. "changed": the frames are of another video file or, without a record,
    older than the video. "incomplete": frames are missing. "unrecorded": complete, but without a
    record. "complete": nothing to do. num_frames: frames per video, or 0 for all.
    """
    if not folder.is_dir():
        return "new"
    record, numbers, source = read_record(folder), frame_numbers(folder), describe(video)
    if record and any(record.get(key) != value for key, value in source.items()):
        return "changed"
    if not record and source.get("mtime_ns", 0) > folder.stat().st_mtime_ns:
        return "changed"
    expected = record["frames"] if record else num_frames or len(numbers)
    if not numbers or not _is_range(numbers, expected):
        return "incomplete"
    return "complete" if record else "unrecorded"


def median_seconds(frames, names):
    """The median duration of videos by the records of their frame folders, or None without them."""
    with ThreadPoolExecutor(8) as pool:  # a network disk answers many requests at once
        records = pool.map(read_record, (Path(frames) / name for name in names))
        seconds = [record["seconds"] for record in records if record and "seconds" in record]
    return statistics.median(seconds) if seconds else None


def write_table(path, folders):
    """Write the records of frame folders as a CSV table. folders: dict video -> folder."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["video", *TABLE_KEYS])
    for video, folder in folders.items():
        if record := read_record(folder):
            name = os.path.join(video.parent.name, video.name)
            rows.writerow([name, *(record.get(key, "") for key in TABLE_KEYS)])
    write_text(path, table.getvalue())


# ==== writing ====


def publish(temporary, folder, record):
    """Write the record into the folder `temporary` and rename it to `folder`, which it replaces.

    record: dict as `read_record` returns it. If another run has meanwhile put the same frames
    there, those stay. Raises UserError if `folder` has files that we did not write, and OSError.
    """
    (temporary / RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
    former = temporary.with_name(f"{temporary.name}-former")
    folder.parent.mkdir(parents=True, exist_ok=True)
    while read_record(folder) != record or frame_numbers(folder) != list(range(record["frames"])):
        shutil.rmtree(former, ignore_errors=True)
        move_away(folder, former)
        try:
            temporary.rename(folder)
            break
        except OSError as error:  # another run was faster: look at what it put there
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    for rest in (temporary, former):
        shutil.rmtree(rest, ignore_errors=True)


def move_away(folder, former):
    """Rename a frame folder, if it exists, to `former`. UserError if it has files of others."""
    with contextlib.suppress(FileNotFoundError):
        others = [name for name in os.listdir(folder) if not OUR_FILES.fullmatch(name)]
        if others:
            raise UserError(
                f"{folder} has the file {min(others)}, which extract_frames.py did not write; move "
                "the folder away and rerun"
            )
        folder.rename(former)


# ==== several runs ====


@contextlib.contextmanager
def run_folder(frames, shard):
    """Yield a temporary folder below <frames>/.partial for this run only; it is removed at the end.

    Folders of dead runs are removed first. frames: Path. shard: (I, N). Raises UserError if another
    run extracts the same shard, also on another machine that shares the disk.
    """
    shard = f"{shard[0]}-of-{shard[1]}"
    reason = "another run extracts the same videos; wait until it ends, or stop it"
    with file_lock(frames / f"{LOCK}-{shard}", reason=reason):
        run = _make_run_folder(frames, shard)
        try:
            yield run
        finally:
            shutil.rmtree(run, ignore_errors=True)
            with file_lock(frames / LOCK, LOCK_SECONDS), contextlib.suppress(OSError):
                (frames / PARTIAL).rmdir()  # fails while other runs use it


def _make_run_folder(frames, shard):
    """Make the temporary folder of a run and remove those of dead runs."""
    with file_lock(frames / LOCK, LOCK_SECONDS):
        (frames / PARTIAL).mkdir(exist_ok=True)
        others = list((frames / PARTIAL).iterdir())
        prefix = f"{shard}@{platform.node()}@"
        run = Path(tempfile.mkdtemp(prefix=prefix, dir=frames / PARTIAL))
        for number, other in enumerate(others):
            if _is_dead(other, shard):
                # Renamed before it is emptied: a worker of that run, which may survive for a moment
                # on systems that do not end it, can then not publish half of a folder.
                other.rename(run / f"dead-{number}")
    for dead in run.iterdir():
        shutil.rmtree(dead, ignore_errors=True)
    return run


def _is_dead(other, shard):
    """Whether the run of the folder `other` has ended; this process holds the lock of `shard`.

    Locks may not reach other machines, so runs of other shards there are taken to be alive.
    """
    other_shard, _, rest = other.name.partition("@")
    if other_shard == shard or not rest:  # without "@" it is of an earlier version
        return True
    if rest.rpartition("@")[0] != platform.node():
        return False
    try:
        with file_lock(other.parent.parent / f"{LOCK}-{other_shard}", seconds=0):
            return True
    except UserError:
        return False
