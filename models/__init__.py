"""Backbones and the hashing network built on them."""

from functools import partial

import torch
from torch.overrides import TorchFunctionMode

from models.c3d import C3D
from models.features import StandardisedFeatures
from models.hashing import HashingNetwork
from models.pretrained import fill_backbone, load_pretrained
from models.pretrained_formats import KINETICS, NORMALISATIONS, describe_normalisation
from models.resnet3d import ResNet3D
from utils.checkpoint import CheckpointError
from utils.checkpoint_schema import check_weights
from utils.errors import UserError
from utils.schema import SchemaError, show

BACKBONES = {
    "c3d": C3D,
    "resnet18": partial(ResNet3D, blocks=(2, 2, 2, 2), stem="hara"),
    "resnet34": partial(ResNet3D, blocks=(3, 4, 6, 3), stem="hara"),
    "r3d18": partial(ResNet3D, blocks=(2, 2, 2, 2), stem="r3d"),
    "r3d34": partial(ResNet3D, blocks=(3, 4, 6, 3), stem="r3d"),
}
FEATURES = "features"  # in place of a backbone: the input are features (B, D) instead of clips


def build_model(backbone, bits, *, width=1.0, shortcut="B", dropout=0.0, feature_dim=None):
    """The network from clips, or features, to approximate hash codes, with random weights.

    backbone: a key of BACKBONES, or FEATURES. bits: K >= 1. width: factor on every channel count.
    shortcut: "A" or "B", for ResNets only. dropout: probability, before the hash layer and, in
    C3D, after fc6. feature_dim: D, for FEATURES only.
    """
    if backbone == FEATURES:
        return HashingNetwork(StandardisedFeatures(feature_dim), bits, dropout=dropout)
    options = {"width": width}
    if backbone == "c3d":
        options["dropout"] = dropout
    else:
        options["shortcut"] = shortcut
    return HashingNetwork(BACKBONES[backbone](**options), bits, dropout=dropout)


class _NoInitialisation(TorchFunctionMode):
    """Skip in-place operations on new tensors; the random ones would import half of PyTorch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__.endswith("_") and not func.__name__.endswith("__"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build_saved_model(checkpoint, path):
    """`build_model` for a checkpoint of `load_checkpoint`, still with random weights.

    Raises CheckpointError unless the backbone is known and the saved weights fit the network.
    path: for the message.
    """
    network = checkpoint["network"]
    if network["backbone"] not in (*BACKBONES, FEATURES):
        raise CheckpointError(
            f"{path}: unknown backbone {show(network['backbone'])}; known: {', '.join(BACKBONES)}"
        )
    with torch.device("meta"), _NoInitialisation():  # of any size, this takes no memory
        expected = build_model(**network).state_dict()
    try:
        check_weights(checkpoint["model"], expected, "model")
    except SchemaError as error:
        raise CheckpointError(f"{path}: {error}; use another checkpoint") from error
    return build_model(**network)


def build_initial_model(settings, pretrained=None, normalisation=None, clip_input="rgb"):
    """The network that training starts from: `build_model`, and pretrained weights if wanted.

    settings: arguments of `build_model`; shortcut None means what the weights need, otherwise B.
    pretrained: name or path for `load_pretrained`; None or "none" for random weights.
    normalisation: a key of NORMALISATIONS; None for that of the weights. clip_input: "rgb" or
    "motion", which must be what the weights were trained on.
    Returns (model, the settings used, normalisation of the input, source of the weights or None).
    Raises UserError where the weights contradict the settings.
    """
    chosen = NORMALISATIONS.get(normalisation)
    if pretrained in (None, "none"):
        settings = {**settings, "shortcut": settings["shortcut"] or "B"}
        return build_model(**settings), settings, chosen or KINETICS, None
    weights = load_pretrained(pretrained, settings["shortcut"])
    if weights.clip_input != clip_input:
        raise UserError(
            f"--input {clip_input}: the weights of --pretrained {pretrained} were trained on "
            f"{weights.clip_input}; use --input {weights.clip_input} or --pretrained none"
        )
    for key in ("backbone", "width", "shortcut"):
        needed, given = getattr(weights, key), settings[key]
        if given != needed and None not in (given, needed):
            raise UserError(
                f"--pretrained {pretrained} ({weights.family}) needs --{key} {needed}, not {given}"
            )
    settings = {**settings, "shortcut": weights.shortcut or "B"}
    model = build_model(**settings)
    fill_backbone(model.backbone, weights)
    return model, settings, chosen or weights.normalisation, weights.source()


__all__ = [
    "BACKBONES",
    "FEATURES",
    "KINETICS",
    "NORMALISATIONS",
    "HashingNetwork",
    "build_initial_model",
    "build_model",
    "build_saved_model",
    "describe_normalisation",
    "load_pretrained",
]
