"""Pretrained backbones. The weight file decides the architecture and the preprocessing.

A file is recognised by its keys alone (see `models.pretrained_formats`). Every key of the file must
be used, except those of its classifier, and every parameter of the backbone must be filled;
otherwise the file is refused with the reason.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from models.pretrained_formats import FORMATS
from models.weight_files import DOWNLOADS, PretrainedError, download, read_weight_file
from utils.checkpoint import load_checkpoint
from utils.errors import printable

RESNET_DEPTHS = {(2, 2, 2, 2): "18", (3, 4, 6, 3): "34"}  # blocks per stage -> depth
WRAPPERS = ("module.", "backbone.")  # prefixes that DataParallel and mmaction2 add to keys
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32)  # of the counters of batch normalisation
COUNTER = "num_batches_tracked"
LONGEST_KEY = 80  # characters shown


@dataclass(frozen=True)
class Pretrained:
    """Weights for one of `models.BACKBONES`, and the settings they need."""

    family: str  # name of the weight format
    backbone: str
    shortcut: str | None  # None for C3D
    width: float
    normalisation: dict  # "mean", "std", "channels", "range"; see `WeightFormat`
    weights: dict  # our key -> tensor
    file: str
    sha256: str
    preprocessing: dict | None = None  # of a checkpoint of train.py, complete

    @property
    def clip_input(self):
        """What the backbone was trained on: "rgb" or "motion"."""
        return (self.preprocessing or {}).get("input", "rgb")

    def source(self):
        """Where the weights came from, as checkpoints record it."""
        return {"family": self.family, "file": self.file, "sha256": self.sha256}


def load_pretrained(name_or_path, shortcut=None):
    """Read a weight file, or download one of DOWNLOADS, and return it as `Pretrained`.

    shortcut: "A" if the user says that the weights have shortcut A, which leaves no keys; else any.
    Raises PretrainedError when the file is missing, contains more than tensors, has no known format
    or has keys that its format does not have.
    """
    path = download(name_or_path) if name_or_path in DOWNLOADS else Path(name_or_path)
    if not path.is_file():
        raise PretrainedError(
            f"--pretrained {name_or_path}: file not found; these names can be downloaded: "
            f"{', '.join(DOWNLOADS)}"
        )
    try:
        return _load(path, shortcut)
    except PretrainedError as error:
        raise PretrainedError(f"{printable(path)}: {error}") from error


def _load(path, shortcut):
    """`load_pretrained` of an existing file; the messages of its errors lack the path."""
    content, sha256 = read_weight_file(path)
    if isinstance(content, dict) and {"format", "network", "preprocessing"} <= content.keys():
        return _from_checkpoint(load_checkpoint(path), path.name, sha256)
    state_dict = _find_state_dict(content)
    weight_format = recognise(state_dict)
    if weight_format.shortcut == "A" != shortcut and any(COUNTER in key for key in state_dict):
        raise PretrainedError(
            "has no weights of shortcuts, though it is of PyTorch 0.4.1 or later; pass "
            "--shortcut A if the network has shortcut A, otherwise the file is incomplete"
        )
    return Pretrained(
        family=weight_format.name,
        backbone=_find_backbone(weight_format, state_dict),
        shortcut=weight_format.shortcut,
        width=1.0,
        normalisation=weight_format.normalisation,
        weights=_rename_keys(weight_format, state_dict),
        file=path.name,
        sha256=sha256,
    )


def fill_backbone(backbone, pretrained):
    """Load the weights into `backbone`; all weights are used and all parameters are filled.

    Only `num_batches_tracked`, which files of 2017 lack, may be missing. Raises PretrainedError
    with the first few keys that are missing, unexpected, of another shape or not finite.
    """
    ours, theirs = backbone.state_dict(), pretrained.weights
    shapes = {key: tuple(tensor.shape) for key, tensor in ours.items()}
    problems = {
        "missing": [key for key in ours if key not in theirs and COUNTER not in key],
        "unexpected": [key for key in theirs if key not in ours],
        "mismatched": [
            f"{key} {tuple(tensor.shape)} instead of {shapes[key]}"
            for key, tensor in theirs.items()
            if key in shapes and tuple(tensor.shape) != shapes[key]
        ],
    }
    if not any(problems.values()):  # their sizes are known: a file can claim any shape
        problems["NaN, infinite or negative"] = [k for k in ours if _is_impossible(k, theirs)]
    for problem, keys in problems.items():
        if keys:
            raise PretrainedError(
                f"{printable(pretrained.file)} ({pretrained.family}): {len(keys)} {problem} keys: "
                f"{show(keys)}"
            )
    backbone.load_state_dict(theirs, strict=False)


def _is_impossible(key, weights):
    """Whether a tensor is not finite as float32, or a variance below zero."""
    tensor = weights.get(key, torch.zeros(1)).float()
    return not tensor.isfinite().all() or ("running_var" in key and bool((tensor < 0).any()))


def show(keys):
    """The first keys as one line."""
    return ", ".join(printable(key)[:LONGEST_KEY] for key in keys[:3])


# ==== the tensors of a file ====


def _find_state_dict(content):
    """The flat {key: tensor} of a file, without WRAPPERS."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise PretrainedError("contains no state_dict")
    return _check_tensors(content)


def _check_tensors(state_dict):
    """The same tensors with keys without WRAPPERS. PretrainedError if one cannot be a weight."""
    found = {}  # key without WRAPPERS -> key
    for key, value in state_dict.items():
        if problem := _tensor_problem(key, value):
            raise PretrainedError(f"{problem}; save only model.state_dict()")
        name = key
        for prefix in WRAPPERS:
            name = name.removeprefix(prefix)
        if name in found:
            raise PretrainedError(
                f"has both {show([found[name]])} and {show([key])}; save only one network"
            )
        found[name] = key
    return {name: state_dict[key] for name, key in found.items()}


def _tensor_problem(key, value):
    """Why an entry of a state_dict cannot be a weight; None if it can be."""
    if not isinstance(key, str):
        return f"the key {show([key])} is not a text"
    if not isinstance(value, torch.Tensor):
        return f"contains more than tensors ({show([key])} is of type {type(value).__name__})"
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        return f"{show([key])} is a sparse, quantised or empty (meta) tensor"
    is_counter = key.endswith(COUNTER) and value.dtype in INTEGERS
    if value.dtype not in FLOATS and not is_counter:
        return f"{show([key])} has the type {value.dtype} instead of torch.float32"
    return None


def _from_checkpoint(content, file, sha256):
    """The backbone of a checkpoint of train.py, without the hash layer."""
    network, weights = content["network"], _check_tensors(content["model"])
    if content["preprocessing"] is None:
        raise PretrainedError("a checkpoint that was trained on features; it has no backbone")
    return Pretrained(
        family="checkpoint of train.py",
        backbone=network["backbone"],
        shortcut=None if network["backbone"] == "c3d" else network.get("shortcut", "B"),
        width=network.get("width", 1.0),
        normalisation={
            key: content["preprocessing"][key] for key in ("mean", "std", "channels", "range")
        },
        weights={key: tensor for key, tensor in weights.items() if not key.startswith("hash.")},
        file=file,
        sha256=sha256,
        preprocessing=content["preprocessing"],
    )


# ==== recognising its format ====


def recognise(state_dict):
    """The WeightFormat whose required key is there and whose forbidden keys are not."""

    def has_key(pattern):
        return any(re.fullmatch(pattern, key) for key in state_dict)

    matches = [
        weight_format
        for weight_format in FORMATS
        if has_key(weight_format.required_key)
        and not (weight_format.forbidden_key and has_key(weight_format.forbidden_key))
    ]
    if len(matches) != 1:
        raise PretrainedError(
            f"unknown weight format, with the keys {show(list(state_dict))}, ...; "
            f"known formats: {', '.join(weight_format.name for weight_format in FORMATS)}"
        )
    return matches[0]


def _find_backbone(weight_format, state_dict):
    """The key of `models.BACKBONES`; the depth of a ResNet follows from its blocks."""
    if weight_format.network == "c3d":
        return "c3d"
    if any(".conv3." in key for key in state_dict):
        raise PretrainedError(
            "ResNets with bottleneck blocks (50 layers or more) are not supported; use a "
            "ResNet-18 or ResNet-34"
        )
    blocks = tuple(
        len({key.split(".")[1] for key in state_dict if key.startswith(f"layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    if blocks not in RESNET_DEPTHS:
        raise PretrainedError(
            f"a ResNet with {blocks} blocks per stage is not supported; use a ResNet-18 or "
            "ResNet-34"
        )
    return weight_format.network + RESNET_DEPTHS[blocks]


def _rename_keys(weight_format, state_dict):
    """The tensors under our keys, without the classifier."""
    weights, unexpected = {}, []
    for key, tensor in state_dict.items():
        ours = _rename(key, weight_format.renames)
        if ours is not None:
            weights[ours] = tensor
        elif not re.fullmatch(weight_format.classifier, key):
            unexpected.append(key)
    if unexpected:
        raise PretrainedError(
            f"recognised as {weight_format.name}, but it has {len(unexpected)} unexpected "
            f"keys: {show(unexpected)}"
        )
    return weights


def _rename(key, renames):
    """Our key, by the first pattern that matches `key`; None where no pattern does."""
    for pattern, ours in renames:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, ours, key)
    return None
