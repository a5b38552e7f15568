"""Features that another program computed, such as those of CLIP, as training and test data.

An .npz file has the array `features` (N, D), and either `labels` (N,) and `is_train` (N,), or
`names` (N,) that the lists of make_splits.py contain.
"""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.frames import split_item
from datasets.splits import (
    SplitError,
    check_classes,
    check_disjoint,
    read_classes,
    read_split,
)
from utils.files import read_arrays

ARRAYS = ("labels", "is_train", "is_val", "names", "classes")  # beside `features`


class FeatureDataset(Dataset):
    """Rows of features in memory, read a whole batch at a time.

    names: list of str. labels: class ids, list of int. features: (N, D) float32 tensor.
    Items: features (B, D), labels (B,).
    """

    location = "ram"

    def __init__(self, names, labels, features):
        self.names, self.labels, self.features = names, labels, features
        self.label_tensor = torch.tensor(labels, dtype=torch.int64)

    def __len__(self):
        return len(self.names)

    def __getitems__(self, items):
        rows = torch.tensor([split_item(item)[0] for item in items])
        return self.features[rows], self.label_tensor[rows]


def read_features(path, splits=None, sets=("train", "val")):
    """([FeatureDataset of each of `sets`], class names) of an .npz file.

    splits: folder of the lists of make_splits.py, which then decide what is trained on and which
    class a name has. Without it the arrays of the file do: `labels`, whole numbers from 0;
    `is_train`; and, if they are there, `is_val`, `names` and `classes`, the names of the classes.
    Test videos are those of neither. sets: some of "train", "val", "test".
    Raises SplitError with one line that says what to change.
    """
    arrays = read_arrays(path, ["features"], ARRAYS, "features")
    try:
        features = _to_features(arrays["features"])
        if splits is not None:
            names = _to_names(arrays, len(features))
            datasets, classes = _divide_by_lists(features, names, Path(splits), sets)
        else:
            datasets, classes = _divide_by_arrays(features, arrays, sets)
        for first, second in itertools.combinations(datasets, 2):
            check_disjoint(splits or "names", first.names, second.names)
    except SplitError as error:
        raise SplitError(f"{path}: {error}") from None
    return datasets, classes


def hash_features(*datasets):
    """Hash (hex) of the features of FeatureDatasets."""
    digest = hashlib.sha256()
    for dataset in datasets:
        digest.update(dataset.features.numpy().tobytes())
    return digest.hexdigest()[:12]


def _to_features(array):
    """An array as a (N, D) float32 tensor of finite numbers."""
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "iuf":
        raise SplitError(
            f"features is {array.shape} {array.dtype}; it must be numbers (videos, values)"
        )
    with np.errstate(over="ignore"):
        features = array.astype(np.float32)
    if bad := np.flatnonzero(~np.isfinite(features).all(axis=1)).tolist():
        raise SplitError(
            f"features of {len(bad)} videos, the first in row {bad[0]}, have NaN, infinite values "
            "or values beyond float32; compute them again, or remove the rows"
        )
    return torch.from_numpy(features)


def _divide_by_arrays(features, arrays, sets):
    """What `read_features` returns, by `labels`, `is_train` and `is_val`."""
    count = len(features)
    if missing := [name for name in ("labels", "is_train") if name not in arrays]:
        raise SplitError(
            f"has no {' and no '.join(missing)}; add labels (class ids) and is_train (bool), or "
            "names and --splits FOLDER with the lists of make_splits.py"
        )
    labels = _to_labels(arrays["labels"], count)
    classes = _to_classes(arrays.get("classes"), labels.max().item() + 1)
    names = _to_names(arrays, count) if "names" in arrays else [f"row {i}" for i in range(count)]
    is_train = _to_mask("is_train", arrays["is_train"], count)
    is_val = _to_mask("is_val", arrays.get("is_val", np.zeros(count, bool)), count)
    if (is_train & is_val).any():
        raise SplitError("is_train and is_val have common rows; a video can be in one set only")
    masks = {"train": is_train, "val": is_val, "test": ~(is_train | is_val)}
    datasets = []
    for rows in (np.flatnonzero(masks[name]) for name in sets):
        chosen = [names[row] for row in rows], labels[rows].tolist(), features[rows]
        datasets.append(FeatureDataset(*chosen))
    return datasets, classes


def _divide_by_lists(features, names, splits, sets):
    """What `read_features` returns, by the lists in the folder `splits`."""
    rows = {name: row for row, name in enumerate(names)}
    if len(rows) < len(names):
        twice = next(name for row, name in enumerate(names) if rows[name] != row)
        raise SplitError(f"names has {twice!r} twice")
    classes, datasets = read_classes(splits), []
    for name in sets:
        listed, labels = read_split(splits / f"{name}.txt", len(classes))
        if absent := [video for video in listed if video not in rows]:
            raise SplitError(
                f"names lacks {len(absent)} of the {len(listed)} videos of {splits}/{name}.txt, "
                f"such as {absent[0]!r}"
            )
        chosen = torch.tensor([rows[video] for video in listed], dtype=torch.int64)
        datasets.append(FeatureDataset(listed, labels, features[chosen]))
    return datasets, classes


def _to_labels(labels, count):
    """The array `labels` as (N,) int64."""
    if labels.shape != (count,) or labels.dtype.kind not in "iuf":
        raise SplitError(
            f"labels is {labels.shape} {labels.dtype}; it must have a whole number for each of the "
            f"{count} videos"
        )
    if not ((labels >= 0) & (labels < 2**31) & (labels == np.floor(labels))).all():
        raise SplitError("labels must be whole numbers from 0, the ids of the classes")
    return labels.astype(np.int64)


def _to_mask(name, mask, count):
    """An array of bool, or 0 and 1, as (N,) bool."""
    if mask.shape != (count,) or mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise SplitError(
            f"{name} is {mask.shape} {mask.dtype}; it must be true or false for each of the "
            f"{count} videos"
        )
    return mask == 1


def _to_names(arrays, count):
    """The array `names` as a list of str."""
    if "names" not in arrays:
        raise SplitError("has no names, by which the lists of --splits could find its rows")
    names = arrays["names"]
    if names.shape != (count,) or names.dtype.kind != "U":
        raise SplitError(f"names is {names.shape} {names.dtype}; it must be {count} strings")
    return names.tolist()


def _to_classes(classes, least):
    """The array `classes` as a list of str; by default the ids themselves."""
    if classes is None:
        return [str(label) for label in range(least)]
    if classes.ndim != 1 or classes.dtype.kind != "U" or len(classes) < least:
        raise SplitError(
            f"classes is {classes.shape} {classes.dtype}; it must be the names of all {least} "
            "classes"
        )
    check_classes(classes.tolist(), "classes")
    return classes.tolist()
