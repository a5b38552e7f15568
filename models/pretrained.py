"""Pretrained backbones: the file decides its own architecture and preprocessing, or is refused.

A file is recognised by its keys alone. Every backbone key must be used and every parameter filled;
only the classifier may be left over. The source of each family's layout is beside it.
"""

import hashlib
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.errors import UserError
from utils.files import file_lock

NAMES = {"r3d18_kinetics400": "R3D_18_Weights.KINETICS400_V1"}
C3D_LAYERS = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b")


class PretrainedError(UserError):
    """Weights that do not fit; the message is one line that says what to do."""


@dataclass
class Pretrained:
    """Weights for a backbone of `models.BACKBONES` and what they must be used with."""

    family: str
    backbone: str
    shortcut: str | None  # None where the backbone has none
    width: float
    normalisation: dict  # "mean", "std", "channels" ("RGB", "BGR"), "range" (of white: 1, 255)
    weights: dict  # our key -> tensor
    file: str
    sha256: str

    def source(self):
        """What a checkpoint records of where its weights came from."""
        return {"family": self.family, "file": self.file, "sha256": self.sha256}


def _rename(patterns):
    """A function from a file's key to ours by the first pattern that matches it whole, or None."""

    def rename(key):
        for pattern, ours in patterns:
            if re.fullmatch(pattern, key):
                return re.sub(pattern, ours, key)
        return None

    return rename


def _rgb(mean, std, input_range):
    return {"mean": mean, "std": std, "channels": "RGB", "range": input_range}


def _c3d_bgr(mean):
    return {"mean": mean, "std": [1.0] * 3, "channels": "BGR", "range": 255.0}


_BLOCK = r"(layer\d\.\d+)"
_TORCHVISION_KEYS = [
    (r"stem\.0\.weight", r"conv1.weight"),
    (r"stem\.1\.(\w+)", r"bn1.\1"),
    (_BLOCK + r"\.conv([12])\.0\.weight", r"\1.conv\2.weight"),
    (_BLOCK + r"\.conv([12])\.1\.(\w+)", r"\1.bn\2.\3"),
    (_BLOCK + r"\.downsample\.(.+)", r"\1.downsample.\2"),
]
_HARA_KEYS = [
    (r"((?:conv1|bn1)\.\w+)", r"\1"),
    (_BLOCK + r"\.((?:conv|bn)[12]\.\w+)", r"\1.\2"),
    (_BLOCK + r"\.downsample\.(.+)", r"\1.downsample.\2"),
]
_C3D_KEYS = [(r"((?:conv\d[ab]?|fc[67])\.\w+)", r"\1")]
_SEQUENTIAL_C3D_KEYS = [
    *(
        (rf"features\.{index}\.(\w+)", rf"{layer}.\1")
        for index, layer in zip((0, 3, 6, 8, 11, 13, 16, 18), C3D_LAYERS, strict=True)
    ),
    (r"classifier\.0\.(\w+)", r"fc6.\1"),
    (r"classifier\.3\.(\w+)", r"fc7.\1"),
]
_MMACTION_KEYS = [
    (r"(conv[12])a\.conv\.(\w+)", r"\1.\2"),
    (r"(conv[345][ab])\.conv\.(\w+)", r"\1.\2"),
    (r"(fc[67]\.\w+)", r"\1"),
]

# name: (a key that only this family has, keys it never has, renaming, classifier, normalisation)
FAMILIES = {
    # torchvision.models.video.R3D_18_Weights.KINETICS400_V1: keys and transforms()
    "torchvision R3D": (
        r"stem\.0\.weight",
        None,
        _TORCHVISION_KEYS,
        r"fc\..+",
        _rgb([0.43216, 0.394666, 0.37645], [0.22803, 0.22145, 0.216989], 1.0),
    ),
    # github.com/kenshohara/3D-ResNets-PyTorch, release of 2018/2019: --mean_dataset kinetics and
    # --value_scale 1 of its opts.py
    "Hara 2018": (
        r"layer2\.0\.downsample\.0\.weight",
        r"stem\..+",
        _HARA_KEYS,
        r"fc\..+",
        _rgb([0.4345, 0.4051, 0.3775], [0.2768, 0.2713, 0.2737], 1.0),
    ),
    # github.com/kenshohara/video-classification-3d-cnn-pytorch, release of 2017: its mean.py, with
    # pixels in 0..255 and no division by a standard deviation; shortcut A leaves no keys
    "Hara 2017": (
        r"layer2\.0\.conv1\.weight",
        r".+\.(downsample|num_batches_tracked)(\..+)?",
        _HARA_KEYS,
        r"fc\..+",
        _rgb([114.7748, 107.7354, 99.4750], [1.0] * 3, 255.0),
    ),
    # github.com/DavideA/c3d-pytorch (c3d.pickle): converted from the Caffe model; mean of its
    # sport1m data, in the BGR order that Caffe works in
    "C3D pickle": (
        r"conv1\.weight",
        r"(bn1|layer1)\..+",
        _C3D_KEYS,
        r"fc8\..+",
        _c3d_bgr([90.25, 97.66, 101.41]),
    ),
    # github.com/jfzhang95/pytorch-video-recognition (c3d-pretrained.pth): normalize() of its
    # dataset.py subtracts 90, 98, 102 from frames that OpenCV read, which are BGR
    "C3D sequential": (
        r"features\.0\.weight",
        None,
        _SEQUENTIAL_C3D_KEYS,
        r"classifier\.6\..+",
        _c3d_bgr([90.0, 98.0, 102.0]),
    ),
    # mmaction2, configs/recognition/c3d: data_preprocessor mean 104, 117, 128, std 1, to RGB
    "C3D mmaction2": (
        r"conv1a\.conv\.weight",
        None,
        _MMACTION_KEYS,
        r"(cls_head\.)?fc(_cls|8)?\..+",
        _rgb([104.0, 117.0, 128.0], [1.0] * 3, 255.0),
    ),
}
RESNETS = {(2, 2, 2, 2): "18", (3, 4, 6, 3): "34"}


def load_pretrained(name_or_path):
    """Read, recognise and rename the weights of a file, or of a name that torchvision downloads.

    Returns Pretrained. Raises PretrainedError when the file is absent, needs arbitrary pickle, is
    of no known family, or has keys that its family does not.
    """
    path = _download(name_or_path) if name_or_path in NAMES else Path(name_or_path)
    if not path.is_file():
        raise PretrainedError(
            f"--pretrained {name_or_path}: no such file, nor one of the names {', '.join(NAMES)}"
        )
    content = _read(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if isinstance(content, dict) and "network" in content and "preprocessing" in content:
        return _from_checkpoint(content, path.name, sha256)
    state = _tensors(content, path)
    family = recognise(state, path)
    _, _, patterns, classifier, normalisation = FAMILIES[family]
    backbone, shortcut = architecture(family, state, path)
    rename = _rename(patterns)
    weights, unused = {}, []
    for key, tensor in state.items():
        ours = rename(key)
        if ours is not None:
            weights[ours] = tensor
        elif not re.fullmatch(classifier, key):
            unused.append(key)
    if unused:
        raise PretrainedError(
            f"{path}: looks like {family}, but has {len(unused)} keys that it does not: "
            f"{', '.join(unused[:3])}"
        )
    return Pretrained(family, backbone, shortcut, 1.0, normalisation, weights, path.name, sha256)


def _download(name):
    """The file of a torchvision weight enum, in torch.hub's cache; downloaded when not there."""
    from torchvision.models import get_weight

    url = get_weight(NAMES[name]).url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.exists():
        return path
    with file_lock(path.parent / ".lock", seconds=-1):  # of several processes one downloads
        prefix = path.stem.rpartition("-")[2]
        try:
            if not path.exists():
                torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix)
        except (OSError, RuntimeError) as error:
            raise PretrainedError(
                f"--pretrained {name}: {url} cannot be downloaded ({error}); fetch it on another "
                "machine and give its path"
            ) from error
    return path


def _read(path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise PretrainedError(
            f"{path}: refused, because reading it could run code: it is not only tensors ({reason})"
        ) from error
    except Exception as error:  # the unpickler raises all kinds on bytes that are no pickle
        raise PretrainedError(f"{path}: damaged, or not a PyTorch file") from error


def _tensors(content, path):
    """The flat {key: tensor} of a file, without the wrappers and prefixes that training adds."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise PretrainedError(f"{path}: holds no state_dict")
    if not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise PretrainedError(f"{path}: holds more than a state_dict; save model.state_dict()")
    for prefix in ("module.", "backbone."):
        content = {key.removeprefix(prefix): value for key, value in content.items()}
    return content


def recognise(state, path):
    """The family whose telling key is there and whose forbidden ones are not. PretrainedError."""
    found = [
        family
        for family, (has, never, *_) in FAMILIES.items()
        if any(re.fullmatch(has, key) for key in state)
        and not any(re.fullmatch(never, key) for key in state if never)
    ]
    if len(found) != 1:
        raise PretrainedError(
            f"{path}: its keys ({', '.join(list(state)[:3])}, ...) are of no family that is known: "
            f"{', '.join(FAMILIES)}"
        )
    return found[0]


def architecture(family, state, path):
    """(backbone, shortcut) that a state dict is of; the depth follows from its blocks."""
    if family.startswith("C3D"):
        return "c3d", None
    if any(re.search(r"\.conv3\.", key) for key in state):
        raise PretrainedError(f"{path}: a ResNet of bottlenecks (50 or more); give an 18 or 34")
    blocks = tuple(
        len({key.split(".")[1] for key in state if key.startswith(f"layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    if blocks not in RESNETS:
        raise PretrainedError(f"{path}: a ResNet with {blocks} blocks; give an 18 or 34")
    stem = "r3d" if family == "torchvision R3D" else "resnet"
    return stem + RESNETS[blocks], "A" if family == "Hara 2017" else "B"


def _from_checkpoint(content, file, sha256):
    """The backbone of a checkpoint that train.py wrote; its hash layer is left."""
    network, ours = content["network"], "backbone."
    weights = {k.removeprefix(ours): v for k, v in content["model"].items() if k.startswith(ours)}
    shortcut = None if network["backbone"] == "c3d" else network["shortcut"]
    keys = ("mean", "std", "channels", "range")
    normalisation = {key: content["preprocessing"][key] for key in keys}
    return Pretrained(
        "checkpoint of train.py",
        network["backbone"],
        shortcut,
        network["width"],
        normalisation,
        weights,
        file,
        sha256,
    )


def fill_backbone(backbone, pretrained):
    """Copy the weights into `backbone`, every one of them, and leave none of its own unfilled.

    Only the batch counters, which files of 2017 lack, may stay as they are. Raises
    PretrainedError with the first few keys that are missing, left over or of another shape.
    """
    own = backbone.state_dict()
    missing = [k for k in own if k not in pretrained.weights and "num_batches_tracked" not in k]
    unused = [k for k in pretrained.weights if k not in own]
    shapes = [
        f"{k} {tuple(pretrained.weights[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in pretrained.weights and pretrained.weights[k].shape != own[k].shape
    ]
    for problem, keys in (
        ("missing", missing),
        ("left over", unused),
        ("of another shape", shapes),
    ):
        if keys:
            raise PretrainedError(
                f"{pretrained.file} ({pretrained.family}): {len(keys)} keys are {problem}: "
                f"{', '.join(keys[:3])}"
            )
    backbone.load_state_dict(pretrained.weights, strict=False)
