r"""Write train.txt, val.txt, test.txt (lines `video_frames_path class_id`) and classes.txt.

    python make_splits.py --dataset ucf101 --annotations data/ucfTrainTestlist \
        --frames data/ucf101/frames --output data/ucf101/splits
    python make_splits.py --dataset hmdb51 --annotations data/testTrainMulti_7030_splits \
        --frames data/hmdb51/frames --output data/hmdb51/splits
    python make_splits.py --dataset folder --frames data/mine/frames --output data/mine/splits

Validation videos are taken from the training ones in whole groups (videos cut from one recording),
because near-duplicates leak between random splits.
"""

import argparse
import json
import random
import re
import sys
from collections import Counter, defaultdict, namedtuple
from pathlib import Path

from datasets.frame_folders import find_flaw
from utils.config import fraction, new_parser
from utils.errors import UserError, exit_on_user_error
from utils.files import printable, write_text
from utils.terminal import safe_streams

# name: path of the frame folder under the frames root. group: the videos that must stay together.
Video = namedtuple("Video", "name label group")


class AnnotationError(UserError):
    """An annotation file that is missing or not in its published format."""


def build_parser():
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--dataset", required=True, choices=READERS, help="which lists to read; 'folder' makes a "
        "split of any <frames>/<class>/<video> tree")  # fmt: skip
    add("--frames", required=True, type=Path, help="what extract_frames.py wrote")
    add("--annotations", type=Path, help="folder of the official lists (ucf101, hmdb51)")
    add("--output", required=True, type=Path, help="folder for the lists; made if absent")
    add("--fold", type=int, choices=(1, 2, 3), default=1, help="official fold (ucf101, hmdb51)")
    add("--val-fraction", type=fraction, default=0.1, help="share of each class's training videos "
        "to hold out for validation; 0 for none")  # fmt: skip
    add("--test-fraction", type=fraction, default=0.2, help="share of each class for test (folder)")
    add("--group-pattern", help="regular expression searched in the video's name; its first group, "
        "or the whole match, names the recording the video is from (folder)")  # fmt: skip
    add("--test-groups", help="these groups, separated by commas, are the test set (folder)")
    add("--seed", type=int, default=0, help="of the choice of groups")
    add("--check-frames", action=argparse.BooleanOptionalAction, default=True,
        help="look for the frame folders of all videos")  # fmt: skip
    add("--allow-missing", action="store_true", help="leave out videos without a complete frame "
        "folder instead of refusing")  # fmt: skip
    return parser


# ==== readers: each gives (classes, train, test), videos without validation held out ====


def read_lines(path):
    if not path.is_file():
        raise AnnotationError(f"{path}: no such file; point --annotations to the official lists")
    return [
        line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()
    ]


def read_ucf101(args):
    """classInd.txt, trainlist0F.txt and testlist0F.txt; classes count from 1 there, from 0 here.

    Source: https://www.crcv.ucf.edu/data/UCF101.php, the archive for action recognition.
    """
    folder = args.annotations
    numbered = [line.split(maxsplit=1) for line in read_lines(folder / "classInd.txt")]
    if any(len(parts) != 2 for parts in numbered):
        raise AnnotationError("classInd.txt: expected lines 'number name'")
    classes = [name for _, name in numbered]
    label_of = {name: label for label, name in enumerate(classes)}
    splits = []
    for part in ("train", "test"):
        videos = []
        for line in read_lines(folder / f"{part}list0{args.fold}.txt"):
            path = Path(line.rsplit(" ", 1)[0] if part == "train" else line)
            group = re.search(r"_(g\d+)_", path.name)
            if path.parent.name not in label_of or not group:
                raise AnnotationError(f"{part}list0{args.fold}.txt: not a UCF101 video: {line}")
            name = path.with_suffix("").as_posix()
            label = label_of[path.parent.name]
            videos.append(Video(name, label, f"{path.parent.name}/{group[1]}"))
        splits.append(videos)
    return classes, *splits


def read_hmdb51(args):
    """<class>_test_splitF.txt, lines `name.avi flag`: 1 train, 2 test, 0 unused.

    The group is the source film, the name before `_<class>_`. Films count per class: the official
    lists put clips of one film into train under one class and into test under another.
    Source: https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database.
    """
    suffix = f"_test_split{args.fold}.txt"
    lists = sorted(args.annotations.glob("*" + suffix))
    if not lists:
        raise AnnotationError(f"{args.annotations}: no *{suffix}; point --annotations to the lists")
    classes = [path.name.removesuffix(suffix) for path in lists]
    splits = {"1": [], "2": [], "0": []}
    for label, (name, path) in enumerate(zip(classes, lists, strict=True)):
        for line in read_lines(path):
            video, _, flag = line.rpartition(" ")
            film, found, _ = video.rpartition(f"_{name}_")
            if flag not in splits or not found:
                raise AnnotationError(f"{path.name}: not 'name.avi 0|1|2': {line}")
            stem = Path(video.strip()).stem
            splits[flag].append(Video(f"{name}/{stem}", label, f"{name}/{film}"))
    return classes, splits["1"], splits["2"]


def read_folder(args):
    """Every <frames>/<class>/<video>: test groups by name, or whole groups at random."""
    folders = sorted(f for f in args.frames.iterdir() if f.is_dir() and f.name[0] != ".")
    classes = [folder.name for folder in folders]
    for name in (*classes, *(video.name for folder in folders for video in folder.iterdir())):
        if len(name.splitlines()) > 1:
            raise AnnotationError(f"{name!r} has a line end, which no list can hold; rename it")
    videos = [
        Video(f"{folder.name}/{video.name}", label, find_group(video.name, args.group_pattern))
        for label, folder in enumerate(folders)
        for video in sorted(folder.iterdir())
        if video.is_dir()
    ]
    if not videos:
        raise AnnotationError(
            f"{args.frames}: no frame folders <class>/<video>; extract them first"
        )
    if args.test_groups is None:
        return classes, *hold_out(videos, args.test_fraction, args.seed)
    wanted = {group.strip() for group in args.test_groups.split(",")}
    unknown = wanted - {video.group for video in videos}
    if unknown:
        raise AnnotationError(f"--test-groups: no video has the group {sorted(unknown)[0]!r}")
    train = [video for video in videos if video.group not in wanted]
    return classes, train, [video for video in videos if video.group in wanted]


def find_group(name, pattern):
    if pattern is None:
        return name
    try:
        match = re.search(pattern, name)
    except re.error as error:
        raise AnnotationError(f"--group-pattern {pattern!r}: {error}") from error
    if match is None:
        raise AnnotationError(f"--group-pattern {pattern!r} does not match the video {name!r}")
    return match[1] if match.re.groups else match[0]


READERS = {"ucf101": read_ucf101, "hmdb51": read_hmdb51, "folder": read_folder}


# ==== the split ====


def hold_out(videos, share, seed):
    """Move about `share` of each class's videos, in whole groups, out of `videos`.

    Class by class, groups in a random order are moved until the class has its share: first those
    that fit what is still wanted, else the smallest if it brings the share nearer. The last group
    of a class is never moved.
    Returns (kept, held): lists of Video in the given order.
    """
    members = defaultdict(Counter)  # group -> videos by label
    for video in videos:
        members[video.group][video.label] += 1
    sizes = Counter(video.label for video in videos)
    left = Counter(label for counts in members.values() for label in counts)  # groups by label
    held, taken = set(), Counter()
    groups = sorted(members)
    random.Random(seed).shuffle(groups)
    for label in sorted(sizes):
        while taken[label] < round(share * sizes[label]):
            wanted = round(share * sizes[label]) - taken[label]
            free = [g for g in groups if label in members[g] and g not in held
                    and all(left[other] > 1 for other in members[g])]  # fmt: skip
            if not free:
                break
            group = next((g for g in free if members[g][label] <= wanted), None)
            group = group or min(free, key=lambda g: members[g][label])
            if members[group][label] >= 2 * wanted and taken[label]:
                break
            held.add(group)
            taken += members[group]
            left -= Counter(dict.fromkeys(members[group], 1))
    kept = [video for video in videos if video.group not in held]
    return kept, [video for video in videos if video.group in held]


def leave_out_missing(splits, args):
    """Drop the videos without a complete frame folder, or exit with a list of them."""
    record = args.frames / "extraction.json"
    try:
        expected = json.loads(record.read_text())["num_frames"] if record.exists() else 0
    except (ValueError, KeyError, TypeError) as error:
        raise AnnotationError(f"{record}: damaged; extract the frames again") from error
    flaws = {v.name: find_flaw(args.frames / v.name, expected)
             for videos in splits.values() for v in videos}  # fmt: skip
    bad = {name: flaw for name, flaw in flaws.items() if flaw}
    if bad:
        print(
            f"{len(bad)} of {len(flaws)} videos have no complete frame folder under {args.frames}:"
        )
        print("\n".join(f"  {printable(name)}: {bad[name]}" for name in sorted(bad)[:20]))
        if len(bad) > 20:
            print(f"  ... and {len(bad) - 20} more")
        if not args.allow_missing:
            sys.exit(f"make_splits.py: {advise(args.frames)}")
    kept = {part: [v for v in videos if v.name not in bad] for part, videos in splits.items()}
    if splits["train"] and not kept["train"]:
        raise AnnotationError(f"no training video has a frame folder under --frames {args.frames}")
    return kept


def note_lost_classes(classes, splits):
    """Say which test videos can find nothing, since no video of their class is left to train."""
    trained = {video.label for video in splits["train"]}
    lost = sum(video.label not in trained for video in splits["test"])
    if len(trained) < len(classes):
        print(f"note: {len(classes) - len(trained)} of {len(classes)} classes have no training "
              f"video, so {lost} test videos have nothing relevant to find")  # fmt: skip


def advise(frames):
    """What helps against incomplete frame folders below `frames`: a line."""
    failed = " and ".join(path.name for path in sorted(frames.glob("failures*.csv")))
    reasons = f" ({failed} there says which videos failed and why)" if failed else ""
    return (
        f"rerun extract_frames.py with --frames {frames}, which extracts missing and incomplete "
        f"videos{reasons}; to go on without them, add --allow-missing"
    )


def prove_disjoint(splits):
    """Exit if a video is listed twice, or a group of validation is in another list too.

    Returns the groups that the official lists have in train and test.
    """
    names = Counter(video.name for videos in splits.values() for video in videos)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        sys.exit(f"make_splits.py: {len(twice)} videos are listed twice, the first is {twice[0]}")
    groups = {part: {video.group for video in videos} for part, videos in splits.items()}
    shared = groups["val"] & (groups["train"] | groups["test"])
    if shared:
        sys.exit(f"make_splits.py: the group {sorted(shared)[0]} is in validation and elsewhere")
    return sorted(groups["train"] & groups["test"])


def main(args):
    # ==== read ====
    if args.dataset != "folder" and args.annotations is None:
        raise AnnotationError(f"--dataset {args.dataset} needs --annotations")
    if args.dataset == "folder" and not args.frames.is_dir():
        raise AnnotationError(f"--frames {args.frames}: no such folder")
    classes, train, test = READERS[args.dataset](args)

    # ==== divide and check ====
    train, val = hold_out(train, args.val_fraction, args.seed)
    splits = {"train": train, "val": val, "test": test}
    if args.check_frames:
        splits = leave_out_missing(splits, args)
    shared = prove_disjoint(splits)

    # ==== write ====
    for part, videos in splits.items():
        lines = "".join(f"{video.name} {video.label}\n" for video in videos)
        write_text(args.output / f"{part}.txt", lines)
        groups = len({video.group for video in videos})
        print(f"{part:5} {len(videos):6} videos {groups:5} groups  {args.output / part}.txt")
    write_text(args.output / "classes.txt", "".join(f"{name}\n" for name in classes))
    if shared:
        print(f"note: the official lists have {len(shared)} groups in train and test: {shared[0]}")
    else:
        print(f"{len(classes)} classes; no video and no group is in two lists")
    note_lost_classes(classes, splits)
    if args.dataset == "folder" and args.group_pattern is None:
        print("note: every video is its own group; if several come from one recording, give "
              "--group-pattern, or near-duplicates leak between the lists")  # fmt: skip


if __name__ == "__main__":
    with safe_streams("make_splits.py"):
        args = build_parser().parse_args()
        with exit_on_user_error("make_splits.py", "the number of videos"):
            main(args)
