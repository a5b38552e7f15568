r"""Write the lists train.txt, val.txt and test.txt, and classes.txt.

    python make_splits.py --dataset ucf101 --annotations data/ucfTrainTestlist \
        --frames data/ucf101/frames --output data/ucf101/splits
    python make_splits.py --dataset hmdb51 \
        --annotations data/testTrainMulti_7030_splits \
        --frames data/hmdb51/frames --output data/hmdb51/splits
    python make_splits.py --dataset folder --frames data/mine/frames \
        --output data/mine/splits

Each line of a list is `video_frames_path class_id`. Validation videos are taken
from the training videos in whole groups (videos cut from one recording),
because near-duplicates leak between random splits.
"""

from utils.errors import die_on_ctrl_c

if __name__ == "__main__":  # imports take seconds
    die_on_ctrl_c()

import argparse
import sys
from collections import Counter
from pathlib import Path

from datasets import advice
from datasets.annotations import READERS, read_groups, read_official, read_tree, write_groups
from datasets.frame_folders import EXTRACTION, find_flaw, read_extraction
from datasets.groups import describe_groups, divide, hold_out
from datasets.leaks import (
    chance_of_own_group,
    describe_colours,
    describe_leaks,
    look_alike,
    merge_groups,
)
from datasets.splits import check_classes
from datasets.video_files import has_class_videos
from utils.argtypes import number, processors
from utils.config import Parser
from utils.errors import UserError, exit_on_user_error, printable
from utils.files import check_writable, write_text
from utils.terminal import safe_streams

SMALLEST_VALIDATION = 100  # videos


def build_parser():
    parser = Parser(__doc__)
    add = parser.add
    add(
        "--dataset",
        required=True,
        choices=[*READERS, "folder"],
        help="which official lists to read; 'folder' splits any tree <frames>/<class>/<video>",
    )
    add("--frames", required=True, type=Path, metavar="DIR", help="what extract_frames.py wrote")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the lists")
    fraction = number(float, least=0, below=1)
    add(
        "--val-fraction",
        type=fraction,
        metavar="X",
        help="validation videos, as a fraction of each class's training videos; 0 for none "
        "(default: 0.1; for a folder in which that is fewer than 100 videos, none)",
    )
    add("--seed", type=number(int), default=0, help="random seed for the choice of groups")
    add(
        "--check-frames",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="check that the frame folders of all videos are complete",
    )
    add(
        "--allow-missing",
        action="store_true",
        help="leave out videos without a complete frame folder instead of stopping",
    )
    parser.group("ucf101 and hmdb51")
    add("--annotations", type=Path, metavar="DIR", help="folder of the official lists")
    add("--fold", type=int, choices=(1, 2, 3), default=1, help="official fold")
    parser.group("folder")
    help_test = "test videos, as a fraction of each class's videos"
    add("--test-fraction", type=fraction, default=0.2, help=help_test)
    add(
        "--group-pattern",
        metavar="REGEX",
        help="regular expression searched in the names of videos; its first group, or the whole "
        "match, names the recording that the video was cut from",
    )
    add(
        "--groups",
        type=Path,
        metavar="FILE",
        help="instead of --group-pattern: CSV with columns video (<class>/<name>) and recording",
    )
    add("--test-groups", metavar="NAMES", help="groups for test, separated by commas")
    add(
        "--leak-check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare the colours of all videos, to find recordings that are in two lists",
    )
    return parser


def choose_val_fraction(args, train):
    """--val-fraction, or its default: few videos choose no epoch well, and training needs them."""
    if args.val_fraction is not None:
        return args.val_fraction
    if args.dataset == "folder" and 0.1 * len(train) < SMALLEST_VALIDATION:
        print(
            f"note: no validation list: a tenth of {len(train)} training videos could not tell "
            "which epoch is best, so train.py keeps the last; --val-fraction 0.1 makes one"
        )
        return 0.0
    return 0.1


def read_folder(args):
    """(class names, training videos, test videos); test groups are named, or chosen at random."""
    if args.groups and args.group_pattern is not None:
        raise UserError("--groups and --group-pattern: give only one of them")
    groups = read_groups(args.groups) if args.groups else None
    classes, videos = read_tree(args.frames, args.group_pattern, groups)
    if not videos:
        reason = explain_no_frames(args.frames) or "extract them first"
        raise UserError(f"--frames {args.frames}: no frame folders <class>/<video>; {reason}")
    if args.test_groups is None:
        return classes, *hold_out(videos, args.test_fraction, args.seed)
    test_groups = {group.strip() for group in args.test_groups.split(",")}
    unknown = test_groups - {video.group for video in videos}
    if unknown:
        raise UserError(f"--test-groups: no video has the group {min(unknown)!r}")
    return classes, *divide(videos, test_groups)


# ==== checks ====


def check_groups(splits):
    """Exit if a video is listed twice, or if a validation group is in another list too.

    Returns the groups that are both in train and test, as some of the official lists have them.
    """
    names = Counter(video.name for videos in splits.values() for video in videos)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise UserError(f"{len(twice)} videos are listed twice, such as {twice[0]}")
    groups = {split: {video.group for video in videos} for split, videos in splits.items()}
    shared = groups["val"] & (groups["train"] | groups["test"])
    if shared:
        raise UserError(f"the group {min(shared)} is in validation and in another list")
    return sorted(groups["train"] & groups["test"])


def leave_out_missing(splits, args):
    """Leave out videos without a complete frame folder, or exit with a list of them."""
    settings = read_extraction(args.frames)
    num_frames = settings["num_frames"] if settings else 0
    names = [video.name for videos in splits.values() for video in videos]
    flaws = {name: find_flaw(args.frames / name, num_frames) for name in names}
    missing = {name: flaw for name, flaw in flaws.items() if flaw}
    if len(missing) == len(flaws) and (reason := explain_no_frames(args.frames)):
        raise UserError(f"--frames {args.frames}: no frame folder of any video; {reason}")
    if missing:
        print_missing(missing, len(flaws), args)
        if not args.allow_missing:
            sys.exit(f"make_splits.py: {advise_extraction(args.frames)}")
    kept = {
        split: [video for video in videos if video.name not in missing]
        for split, videos in splits.items()
    }
    if splits["train"] and not kept["train"]:
        raise UserError(f"no training video has a frame folder under --frames {args.frames}")
    return kept


def explain_no_frames(frames):
    """What to do where `frames` holds no frame folders at all, or None."""

    def is_extracted(folder):
        return (folder / EXTRACTION).is_file()

    if not frames.is_dir():
        return advice.explain_missing(frames, is_extracted)
    near = [path for path in (*advice.entries(frames), frames.parent) if is_extracted(path)]
    if near and not is_extracted(frames):
        return advice.did_you_mean(*near)
    if has_class_videos(frames):
        return f"it holds videos: run extract_frames.py --videos {frames} first"
    return None


def print_missing(missing, count, args):
    print(f"{len(missing)} of {count} videos have no complete frame folder under {args.frames}:")
    for name in sorted(missing)[:20]:
        print(f"  {printable(name)}: {missing[name]}")
    if len(missing) > 20:
        print(f"  ... and {len(missing) - 20} more")


def advise_extraction(frames):
    """What to do about incomplete frame folders: one line."""
    failed = " and ".join(path.name for path in sorted(frames.glob("failures*.csv")))
    reasons = f" ({failed} there lists the videos that failed, with reasons)" if failed else ""
    return (
        f"rerun extract_frames.py with --frames {frames}, which extracts missing and incomplete "
        f"videos{reasons}; to continue without them, add --allow-missing"
    )


# ==== groups ====


def check_leaks(splits, args):
    """Print what the colours of the videos say against the groups and the division."""
    videos = [(split, video) for split, videos in splits.items() for video in videos]
    names, groups = [video.name for _, video in videos], [video.group for _, video in videos]
    colours = describe_colours(args.frames, names, processors())
    own, suspects = look_alike(colours, groups)
    if suspects is None:
        print("note: most videos look alike, so that the leak check cannot tell recordings apart")
        return
    chance = chance_of_own_group(groups)
    if own is not None and own < chance + 0.1:
        print(
            f"warning: the videos of a group do not look alike: the one with the most similar "
            f"colours is of the same group for {own:.0%} of the videos, by chance {chance:.0%}; do "
            "the groups name recordings, or the clips in them?"
        )
        groups = names  # suggestions start from single videos
    leaks = [pair for pair in suspects if videos[pair[1]][0] != videos[pair[2]][0]]
    if leaks:
        path = args.output / "suggested_groups.csv"
        write_groups(path, names, merge_groups(groups, [pair[1:] for pair in suspects]))
        print(describe_leaks(leaks, videos))
        print(printable(f"if they are, keep them together: rerun with --groups {path}"))


# ==== the lists ====


def write_lists(folder, classes, splits):
    for split, videos in splits.items():
        path = folder / f"{split}.txt"
        write_text(path, "".join(f"{video.name} {video.label}\n" for video in videos))
        groups = len({video.group for video in videos})
        print(f"{split:5} {len(videos):6} videos {groups:5} groups  {printable(path)}")
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in classes))
    videos = sorted(video for videos in splits.values() for video in videos)
    write_groups(folder / "groups.csv", *zip(*((v.name, v.group) for v in videos), strict=True))


def print_notes(classes, splits, shared):
    """What a user should know about the lists. shared: groups both in train and test."""
    if shared:
        print(
            f"note: in the official lists {len(shared)} groups are both in train and test, such as "
            f"{printable(shared[0])}"
        )
    else:
        print(f"{len(classes)} classes; no video and no group is in two lists")
    trained = {video.label for video in splits["train"]}
    if len(trained) < len(classes):
        lost = sum(video.label not in trained for video in splits["test"])
        print(
            f"note: {len(classes) - len(trained)} of {len(classes)} classes have no training "
            f"video, so {lost} test videos have nothing relevant to find"
        )
    videos = [video for videos in splits.values() for video in videos]
    if len({video.group for video in videos}) < len(videos):
        print(describe_groups(videos))
    else:
        print(
            "note: every video is its own group; if several come from one recording, use "
            "--group-pattern or --groups, or near-duplicates leak between the lists"
        )


def main(args):
    # ==== read ====
    if args.dataset != "folder" and args.annotations is None:
        raise UserError(f"--dataset {args.dataset} needs --annotations")
    check_writable(args.output, "--output")
    if args.dataset == "folder":
        classes, train, test = read_folder(args)
    else:
        classes, train, test = read_official(args.dataset, args.annotations, args.fold)

    check_classes(classes, args.frames)

    # ==== divide and check ====
    train, val = hold_out(train, choose_val_fraction(args, train), args.seed)
    splits = {"train": train, "val": val, "test": test}
    if args.check_frames:
        splits = leave_out_missing(splits, args)
    shared = check_groups(splits)

    # ==== write ====
    write_lists(args.output, classes, splits)
    print_notes(classes, splits, shared)
    if args.dataset == "folder" and args.leak_check and args.check_frames:
        check_leaks(splits, args)


if __name__ == "__main__":
    with safe_streams("make_splits.py"):
        args = build_parser().parse_args()
        with exit_on_user_error("make_splits.py", "the number of videos"):
            main(args)
