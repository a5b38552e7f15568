"""The data that test.py measures, compared with what the network was trained on."""

from pathlib import Path

from datasets.features import hash_features, read_features
from datasets.frames import FrameDataset
from datasets.splits import (
    SplitError,
    check_disjoint,
    find_other_class,
    hash_lists,
    read_classes,
    read_split,
)
from utils.errors import UserError
from utils.terminal import warn


def build_datasets(checkpoint, args):
    """(queries, database, classes): the datasets of the test and training lists, class names."""
    if checkpoint["preprocessing"] is None:
        return build_feature_datasets(checkpoint, args)
    settings = checkpoint["settings"]
    frames, splits = args.frames or settings["frames"], Path(args.splits or settings["splits"])
    classes = read_classes(splits)
    check_same_classes(checkpoint, classes, splits, is_chosen=bool(args.splits))
    lists = {name: read_split(splits / f"{name}.txt", len(classes)) for name in ("test", "train")}
    for name, (names, labels) in lists.items():
        if moved := find_other_class(names, labels, classes):
            warn(f"{splits}/{name}.txt: {moved!r} has the id of another class")
    queries, database = (
        FrameDataset(*lists[name], frames, checkpoint["preprocessing"]["clip_frames"])
        for name in ("test", "train")
    )
    if not len(queries) or not len(database):
        raise SplitError(f"{splits}: test.txt and train.txt must both list videos")
    check_disjoint(splits, queries.names, database.names)
    check_frames(checkpoint, queries)
    val = read_val(splits, len(classes))
    check_lists(checkpoint, queries, database, val, splits, is_chosen=bool(args.splits))
    return queries, database, classes


def build_feature_datasets(checkpoint, args):
    """As `build_datasets`: the test and training videos of the file that --features named."""
    settings, feature_dim = checkpoint["settings"], checkpoint["network"]["feature_dim"]
    path, splits = args.features or settings["features"], args.splits or settings.get("splits")
    (queries, val, database), classes = read_features(path, splits, ("test", "val", "train"))
    if args.pictures or args.html or args.projector:
        flags = "--pictures, --html and --projector"
        raise UserError(f"{path}: features have no pictures; leave out {flags}")
    if not len(queries) or not len(database):
        raise SplitError(f"{path}: needs test videos, as queries, and training videos")
    if queries.features.shape[1] != feature_dim:
        raise UserError(
            f"{path}: {queries.features.shape[1]} features per video, but the model was trained on "
            f"{feature_dim}; use features of the same encoder"
        )
    is_chosen = bool(args.features or args.splits)
    check_same_classes(checkpoint, classes, path, is_chosen)
    check_features(checkpoint, queries, database, val, path, is_chosen)
    return queries, database, classes


def check_features(checkpoint, queries, database, val, path, is_chosen):
    """As `check_lists`. database, val: the datasets that the model was to be trained on."""
    trained = set(queries.names) & set(checkpoint["videos"]["train"])
    if trained:
        raise UserError(
            f"{path}: the model was trained on {len(trained)} of its {len(queries)} test videos, "
            f"such as {min(trained)!r}; restore is_train, names and lists"
        )
    lists = ((dataset.names, dataset.labels) for dataset in (database, val))
    found = {"lists": hash_lists(*lists), "features": hash_features(database, val)}
    if all(checkpoint["data"].get(key) == value for key, value in found.items()):
        return
    problem = f"{path}: not the features or lists that the model was trained on"
    if not is_chosen:
        raise UserError(f"{problem}; restore them, or use --features {path} to test with these")
    warn(problem)


def check_frames(checkpoint, queries):
    """Raise UserError if the frames do not fit the model; warn if they were extracted otherwise."""
    clip_frames = checkpoint["preprocessing"]["clip_frames"]
    trained_size = checkpoint["preprocessing"].get("frame_size")  # not in early checkpoints
    size, stored = list(queries.frame_size[:2]), queries.extracted
    if trained_size and size != trained_size:
        raise UserError(
            f"{queries.root}: the size of the frames is {size}, but the model was trained on "
            f"{trained_size}; extract with --size {trained_size[0]} {trained_size[1]}"
        )
    if stored and stored < clip_frames:
        raise UserError(f"{queries.root}: {stored} frames per video, but a clip has {clip_frames}")
    extraction = checkpoint.get("data", {}).get("extraction")
    if extraction and queries.extraction != extraction:
        warn(f"{queries.root}: extracted with {queries.extraction}, not {extraction}")


def check_same_classes(checkpoint, classes, where, is_chosen):
    """Raise SplitError if the classes are not those of the training; warn if they were chosen.

    Retrieval needs no equal classes. where: the lists or features, for the message.
    """
    trained = checkpoint["classes"]
    if classes == trained or not trained:  # none without labels
        return
    if not is_chosen:
        raise SplitError(
            f"{where}: has other classes than the model was trained on; if that is intended, name "
            "it by --splits or --features"
        )
    new = [name for name in classes if name not in trained]
    warn(f"{where}: other classes than those of the training; {len(new)} of {len(classes)} are new")


def check_lists(checkpoint, queries, database, val, splits, is_chosen):
    """Raise UserError if the lists are not those of the training; warn where that may be intended.

    is_chosen: whether --splits names the folder. Lists that the checkpoint names must be unchanged.
    """
    videos = checkpoint.get("videos", {"train": [], "val": []})
    trained = set(queries.names) & set(videos["train"])
    if trained:
        raise UserError(
            f"{splits}/test.txt: the model was trained on {len(trained)} of its {len(queries)} "
            f"videos, such as {min(trained)!r}; set --splits to the lists of the training"
        )
    if set(queries.names) & set(videos["val"]):
        warn(f"{splits}/test.txt has validation videos, which selected best.pt")
    trained_hash = checkpoint.get("data", {}).get("lists")
    if not checkpoint["classes"]:  # made without labels, so without lists
        return
    if trained_hash is None:
        warn(
            "the checkpoint is of an early version, which did not record the lists of the training"
        )
    elif hash_lists((database.names, database.labels), val) != trained_hash:
        problem = f"{splits}: train.txt and val.txt are not the lists that the model was trained on"
        if not is_chosen:
            raise UserError(
                f"{problem}; restore them with make_splits.py and its earlier flags, or use "
                f"--splits {splits} to test with these"
            )
        warn(problem)


def read_val(splits, num_classes):
    """(names, labels) of val.txt; empty where there is none."""
    path = splits / "val.txt"
    return read_split(path, num_classes) if path.is_file() else ([], [])
