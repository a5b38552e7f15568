"""Pretrained backbones. The weight file decides the architecture and the preprocessing.

A file is recognised by its keys alone (see `models.pretrained_formats`). Every key of the file must
be used, except those of its classifier, and every parameter of the backbone must be filled;
otherwise the file is refused with the reason.
"""

import hashlib
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from models.pretrained_formats import FORMATS
from utils.errors import UserError
from utils.files import file_lock

DOWNLOADS = {"r3d18_kinetics400": "R3D_18_Weights.KINETICS400_V1"}  # name -> torchvision's enum
RESNET_DEPTHS = {(2, 2, 2, 2): "18", (3, 4, 6, 3): "34"}  # blocks per stage -> depth
WRAPPERS = ("module.", "backbone.")  # prefixes that DataParallel and mmaction2 add to keys


class PretrainedError(UserError):
    """Unsuitable weights; the message is one line that says what to do."""


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

    def source(self):
        """Where the weights came from, as checkpoints record it."""
        return {"family": self.family, "file": self.file, "sha256": self.sha256}


def load_pretrained(name_or_path):
    """Read a weight file, or download one of DOWNLOADS, and return it as `Pretrained`.

    Raises PretrainedError when the file is missing, contains more than tensors, has no known format
    or has keys that its format does not have.
    """
    path = _download(name_or_path) if name_or_path in DOWNLOADS else Path(name_or_path)
    if not path.is_file():
        raise PretrainedError(
            f"--pretrained {name_or_path}: file not found; these names can be downloaded: "
            f"{', '.join(DOWNLOADS)}"
        )
    content = _read(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if isinstance(content, dict) and "network" in content and "preprocessing" in content:
        return _from_checkpoint(content, path.name, sha256)
    state_dict = _find_state_dict(content, path)
    weight_format = recognise(state_dict, path)
    return Pretrained(
        family=weight_format.name,
        backbone=_find_backbone(weight_format, state_dict, path),
        shortcut=weight_format.shortcut,
        width=1.0,
        normalisation=weight_format.normalisation,
        weights=_rename_keys(weight_format, state_dict, path),
        file=path.name,
        sha256=sha256,
    )


def fill_backbone(backbone, pretrained):
    """Load the weights into `backbone`; all weights are used and all parameters are filled.

    Only `num_batches_tracked`, which files of 2017 lack, may be missing. Raises PretrainedError
    with the first few keys that are missing, unexpected or of another shape.
    """
    ours, theirs = backbone.state_dict(), pretrained.weights
    problems = {
        "missing": [k for k in ours if k not in theirs and "num_batches_tracked" not in k],
        "unexpected": [k for k in theirs if k not in ours],
        "mismatched": [
            f"{k} {tuple(theirs[k].shape)} instead of {tuple(ours[k].shape)}"
            for k in ours
            if k in theirs and theirs[k].shape != ours[k].shape
        ],
    }
    for problem, keys in problems.items():
        if keys:
            raise PretrainedError(
                f"{pretrained.file} ({pretrained.family}): {len(keys)} {problem} keys: "
                f"{', '.join(keys[:3])}"
            )
    backbone.load_state_dict(theirs, strict=False)


# ==== reading a file ====


def _download(name):
    """Path of torchvision's file in the cache of torch.hub; downloads it on the first call."""
    from torchvision.models import get_weight

    url = get_weight(DOWNLOADS[name]).url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.exists():
        return path
    with file_lock(path.parent / ".lock", seconds=-1):  # one of several processes downloads
        prefix = path.stem.rpartition("-")[2]
        try:
            if not path.exists():
                torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix)
        except (OSError, RuntimeError) as error:
            raise PretrainedError(
                f"--pretrained {name}: cannot download {url} ({error}); download it on another "
                "machine and pass its path"
            ) from error
    return path


def _read(path):
    """The content of a file that torch.save wrote; no code in it is run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise PretrainedError(
            f"{path}: refused, because loading it could run code: it contains more than tensors "
            f"({reason})"
        ) from error
    except Exception as error:  # bytes that are no pickle can raise any exception
        raise PretrainedError(f"{path}: damaged, or not a PyTorch file") from error


def _find_state_dict(content, path):
    """The flat {key: tensor} of a file, without WRAPPERS."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise PretrainedError(f"{path}: contains no state_dict")
    if not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise PretrainedError(f"{path}: contains more than tensors; save only model.state_dict()")
    for prefix in WRAPPERS:
        content = {key.removeprefix(prefix): value for key, value in content.items()}
    return content


def _from_checkpoint(content, file, sha256):
    """The backbone of a checkpoint of train.py, without the hash layer."""
    network, model, prefix = content["network"], content["model"], "backbone."
    return Pretrained(
        family="checkpoint of train.py",
        backbone=network["backbone"],
        shortcut=None if network["backbone"] == "c3d" else network["shortcut"],
        width=network["width"],
        normalisation={
            key: content["preprocessing"][key] for key in ("mean", "std", "channels", "range")
        },
        weights={k.removeprefix(prefix): v for k, v in model.items() if k.startswith(prefix)},
        file=file,
        sha256=sha256,
    )


# ==== recognising its format ====


def recognise(state_dict, path):
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
            f"{path}: unknown weight format, with the keys {', '.join(list(state_dict)[:3])}, ...; "
            f"known formats: {', '.join(weight_format.name for weight_format in FORMATS)}"
        )
    return matches[0]


def _find_backbone(weight_format, state_dict, path):
    """The key of `models.BACKBONES`; the depth of a ResNet follows from its blocks."""
    if weight_format.network == "c3d":
        return "c3d"
    if any(".conv3." in key for key in state_dict):
        raise PretrainedError(
            f"{path}: ResNets with bottleneck blocks (50 layers or more) are not supported; use a "
            "ResNet-18 or ResNet-34"
        )
    blocks = tuple(
        len({key.split(".")[1] for key in state_dict if key.startswith(f"layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    if blocks not in RESNET_DEPTHS:
        raise PretrainedError(
            f"{path}: a ResNet with {blocks} blocks per stage is not supported; use a ResNet-18 or "
            "ResNet-34"
        )
    return weight_format.network + RESNET_DEPTHS[blocks]


def _rename_keys(weight_format, state_dict, path):
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
            f"{path}: recognised as {weight_format.name}, but it has {len(unexpected)} unexpected "
            f"keys: {', '.join(unexpected[:3])}"
        )
    return weights


def _rename(key, renames):
    """Our key, by the first pattern that matches `key`; None where no pattern does."""
    for pattern, ours in renames:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, ours, key)
    return None
