"""The data of a training as its flags say: data sets, the shape of batches, transforms."""

from functools import partial
from pathlib import Path

from datasets.cache import CachedDataset, build_cache
from datasets.features import hash_features, read_features
from datasets.frames import FrameDataset
from datasets.samplers import fit_batch_shape
from datasets.splits import (
    SplitError,
    check_disjoint,
    find_other_class,
    hash_lists,
    read_classes,
    read_split,
)
from datasets.transforms import augment, prepare
from utils import distributed
from utils.terminal import print_main, warn


def build_datasets(args, device):
    """(training set, validation set, class names), of features, frame folders or the cache."""
    if args.features:
        (train_set, val_set), classes = read_features(args.features, args.splits)
        if not len(train_set):
            raise SplitError(f"{args.features}: no training videos")
        return train_set, val_set, classes
    splits = Path(args.splits)
    classes = read_classes(splits)
    datasets = []
    for split in ("train", "val"):
        names, labels = read_split(splits / f"{split}.txt", len(classes))
        if moved := find_other_class(names, labels, classes):
            warn(f"{splits}/{split}.txt: {moved!r} has the id of another class")
        dataset = FrameDataset(names, labels, args.frames, args.clip_frames, args.views)
        check_clip_frames(dataset, args)
        if names and args.cache != "none":
            folder = args.cache_folder or Path(args.frames) / ".cache"
            path = build_cache(dataset, args.cache_frames, folder, args.workers)
            dataset = CachedDataset(dataset, path, args.cache, device)
        datasets.append(dataset)
    train_set, val_set = datasets
    if not len(train_set):
        raise SplitError(f"{splits}/train.txt: lists no videos")
    check_disjoint(splits, train_set.names, val_set.names)
    return train_set, val_set, classes


def check_clip_frames(dataset, args):
    """Raise SplitError if a video has fewer frames than its clips."""
    if args.cache == "none":
        stored, remedy = dataset.extracted, "extract_frames.py --num-frames"
    else:
        stored, remedy = args.cache_frames, "--cache-frames"
    if stored and stored < args.clip_frames * args.views:
        views = f" x --views {args.views}" if args.views > 1 else ""
        raise SplitError(
            f"--clip-frames {args.clip_frames}{views}: there are only {stored} frames per video; "
            f"lower it or raise {remedy}"
        )


def fit_batches(args, labels):
    """Change P and K of `args`, unless they are on the command line, to fit the classes."""
    before = args.classes_per_batch, args.clips_per_class
    flags = {"P": "--classes-per-batch", "K": "--clips-per-class"}
    fixed = {letter for letter, flag in flags.items() if flag in args.given}
    shape = fit_batch_shape(labels, *before, fixed, distributed.world_size())
    if shape != before and args.batches == "balanced":
        args.classes_per_batch, args.clips_per_class = shape
        print_main(f"batches of {shape[0]} classes x {shape[1]} clips, to fit the training list")


def describe_data(train_set, val_set, args):
    """What the batches depend on, apart from the flags: a dict that must be equal to resume."""
    lists = hash_lists(*((dataset.names, dataset.labels) for dataset in (train_set, val_set)))
    if args.features:
        features = hash_features(train_set, val_set)
        return {"lists": lists, "features": features, "processes": distributed.world_size()}
    extraction = train_set.extraction or {"num_frames": None}
    is_cached = args.cache != "none"
    return {
        "lists": lists,
        "frame size": list(train_set.frame_size[:2]),
        "extraction": train_set.extraction,
        "frames per video": args.cache_frames if is_cached else extraction["num_frames"],
        "processes": distributed.world_size(),
    }


def build_transforms(args, train_set, normalisation):
    """(preprocessing, training transform, test transform).

    The transforms turn uint8 clips (B, T, H, W, 3) into float32 (B, 3, T, S, S); preprocessing is
    the dict that test.py and search.py need to do the same. Features stay as they are.
    """
    if args.features:
        return None, keep_features, keep_features
    preprocessing = {
        "clip_frames": args.clip_frames * args.views,  # that are read, for all views
        "views": args.views,
        "frame_size": list(train_set.frame_size[:2]),
        "size": args.size,
        "crop": args.crop,
        "input": args.input,
        **normalisation,
    }
    train_transform = partial(
        augment,
        preprocessing=preprocessing,
        crop_scale=args.crop_scale,
        flip=args.flip,
        colour_jitter=args.colour_jitter,
    )
    return preprocessing, train_transform, partial(prepare, preprocessing=preprocessing)


def keep_features(features, generator=None):
    """The transform of features, which need none."""
    return features
