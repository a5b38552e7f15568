"""The videos of a data set with classes and groups: of official lists, or of a tree of folders."""

import csv
import io
import os
import re
from pathlib import Path

from datasets import advice
from datasets.groups import Video
from datasets.video_files import is_video
from utils.errors import UserError
from utils.files import write_text


def read_official(dataset, folder, fold):
    """The official lists: (class names, training videos, test videos), lists of Video.

    dataset: a key of READERS. folder: where the lists are. fold: 1, 2 or 3. Raises
    UserError.
    """
    pattern, read = READERS[dataset]
    if not any(folder.glob(pattern)):
        raise UserError(f"--annotations {folder}: {_explain_no_lists(dataset, folder)}")
    return read(folder, fold)


def _explain_no_lists(dataset, folder):
    """What to do where `folder` has no lists of the data set."""
    pattern, _ = READERS[dataset]
    near = [path for path in (folder.parent, *advice.entries(folder)) if any(path.glob(pattern))]
    if near:
        return advice.did_you_mean(*near)
    if not folder.is_dir():
        return advice.explain_missing(folder, lambda path: any(path.glob(pattern)))
    for other, (its_pattern, _) in READERS.items():
        if any(folder.glob(its_pattern)):
            return f"holds the lists of {other}; {advice.did_you_mean(f'--dataset {other}')}"
    archives = advice.find_archives(folder)
    remedy = f"; {advice.advise_unpacking(archives)}" if archives else ""
    return f"no {pattern} there, so it is not the folder of the official lists{remedy}"


def read_ucf101(folder, fold):
    """classInd.txt, trainlist0F.txt and testlist0F.txt; class ids start at 1 there, at 0 here.

    Source: https://www.crcv.ucf.edu/data/UCF101.php, the archive for action recognition.
    """
    numbered = [line.split(maxsplit=1) for line in _read_lines(folder / "classInd.txt")]
    if any(len(fields) != 2 for fields in numbered):
        raise UserError("classInd.txt: expected lines 'number name'")
    classes = [name for _, name in numbered]
    train_list, test_list = (folder / f"{kind}list0{fold}.txt" for kind in ("train", "test"))
    train = [line.rsplit(" ", 1)[0] for line in _read_lines(train_list)]  # without the class id
    test = _read_lines(test_list)
    label_of = {name: label for label, name in enumerate(classes)}
    return (
        classes,
        [_parse_ucf101(path, label_of, train_list.name) for path in train],
        [_parse_ucf101(path, label_of, test_list.name) for path in test],
    )


def _parse_ucf101(path, label_of, source):
    """The Video of a path such as Archery/v_Archery_g01_c02.avi, whose group is Archery/g01."""
    path = Path(path)
    class_name, group = path.parent.name, re.search(r"_(g\d+)_", path.name)
    if class_name not in label_of or not group:
        raise UserError(f"{source}: not a UCF101 video: {path}")
    name = path.with_suffix("").as_posix()
    return Video(name, label_of[class_name], f"{class_name}/{group[1]}")


def read_hmdb51(folder, fold):
    """<class>_test_splitF.txt, lines `name.avi flag`: 1 train, 2 test, 0 unused.

    The group is the source film, the name before `_<class>_`. Films count per class: the official
    lists put clips of one film into train under one class and into test under another.
    Source: https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database.
    """
    suffix = f"_test_split{fold}.txt"
    lists = sorted(folder.glob("*" + suffix))
    if not lists:
        raise UserError(f"{folder}: no *{suffix} there; are all lists unpacked?")
    classes = [path.name.removesuffix(suffix) for path in lists]
    videos = {"0": [], "1": [], "2": []}  # by flag
    for label, (class_name, path) in enumerate(zip(classes, lists, strict=True)):
        for line in _read_lines(path):
            file, _, flag = line.rpartition(" ")
            film, found, _ = file.rpartition(f"_{class_name}_")
            if flag not in videos or not found:
                raise UserError(f"{path.name}: expected 'name.avi 0|1|2': {line}")
            name = f"{class_name}/{Path(file.strip()).stem}"
            videos[flag].append(Video(name, label, f"{class_name}/{film}"))
    return classes, videos["1"], videos["2"]


def _read_lines(path):
    """The lines of a file that are not empty: list of str."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; are all lists unpacked?")
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    return [line.strip() for line in lines if line.strip()]


READERS = {  # data set: a file that its lists always have, and their reader
    "ucf101": ("classInd.txt", read_ucf101),
    "hmdb51": ("*_test_split1.txt", read_hmdb51),
}


def read_tree(frames, group_pattern=None, groups=None):
    """The videos <frames>/<class>/<video>: (class names, list of Video).

    group_pattern: regular expression that finds the group in the name of a video. groups: instead,
    {video: group} of `read_groups`. Without them every video is its own group.
    """
    folders = [path for path in advice.entries(frames) if path.is_dir()]
    names = [
        (label, f"{folder.name}/{path.name}")
        for label, folder in enumerate(folders)
        for path in sorted(folder.iterdir())
        if path.is_dir()
    ]
    for name in [folder.name for folder in folders] + [name for _, name in names]:
        if len(name.splitlines()) > 1:
            raise UserError(f"{name!r} has a line break, which no list can hold; rename it")
    if groups is None:
        videos = [Video(name, label, _find_group(name, group_pattern)) for label, name in names]
    else:
        missing = [name for _, name in names if name not in groups]
        if missing:
            raise UserError(f"--groups: no line for {len(missing)} videos, such as {missing[0]}")
        videos = [Video(name, label, groups[name]) for label, name in names]
    return [folder.name for folder in folders], videos


def read_groups(path):
    """A CSV file with the columns video and recording: {video: recording}.

    A video is named <class>/<name>, with or without the suffix of its file.
    """
    if not path.is_file():
        raise UserError(f"--groups {path}: no such file; expected CSV with video,recording")
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        if not {"video", "recording"} <= set(reader.fieldnames or []):
            raise UserError(f"--groups {path}: its first line must be video,recording")
        groups = {}
        for row in reader:
            video, recording = row["video"], row["recording"]
            if not video or not recording:
                raise UserError(f"--groups {path}:{reader.line_num}: expected video,recording")
            if groups.setdefault(video, recording) != recording:
                raise UserError(f"--groups {path}:{reader.line_num}: {video} is in two recordings")
    stems = {
        os.path.splitext(video)[0]: group for video, group in groups.items() if is_video(video)
    }
    return stems | groups


def write_groups(path, names, groups):
    """Write a CSV file that --groups reads."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([("video", "recording"), *zip(names, groups, strict=True)])
    write_text(path, table.getvalue())


def _find_group(name, pattern):
    """The group of a video <class>/<name>: by default the video itself."""
    if pattern is None:
        return name
    name = name.partition("/")[2]
    try:
        match = re.search(pattern, name)
    except re.error as error:
        raise UserError(f"--group-pattern {pattern!r}: {error}") from error
    if match is None:
        raise UserError(f"--group-pattern {pattern!r} does not match the video {name!r}")
    return match[1] if match.re.groups else match[0]
