"""Backbones and the hashing network built on them."""

from functools import partial

from models.c3d import C3D
from models.hashing import HashingNetwork
from models.pretrained import fill_backbone, load_pretrained
from models.resnet3d import ResNet3D
from utils.errors import UserError

BACKBONES = {
    "c3d": C3D,
    "resnet18": partial(ResNet3D, blocks=(2, 2, 2, 2), stem="hara"),
    "resnet34": partial(ResNet3D, blocks=(3, 4, 6, 3), stem="hara"),
    "r3d18": partial(ResNet3D, blocks=(2, 2, 2, 2), stem="r3d"),
    "r3d34": partial(ResNet3D, blocks=(3, 4, 6, 3), stem="r3d"),
}


def build_model(backbone, bits, *, width=1.0, shortcut="B", dropout=0.0):
    """The network from a clip to its approximate hash code.

    backbone: a key of BACKBONES. bits: K >= 1. width: factor on every channel count.
    shortcut: "A" or "B", for ResNets only. dropout: probability, before the hash layer and, in
    C3D, after fc6.
    """
    options = {"width": width}
    if backbone == "c3d":
        options["dropout"] = dropout
    else:
        options["shortcut"] = shortcut
    return HashingNetwork(BACKBONES[backbone](**options), bits, dropout=dropout)


# Of Kinetics-400, as torchvision publishes it; for networks that start from random weights.
KINETICS = {
    "mean": [0.43216, 0.394666, 0.37645],
    "std": [0.22803, 0.22145, 0.216989],
    "channels": "RGB",
    "range": 1.0,
}


def build_network(settings, pretrained=None):
    """A new network, with the backbone's weights from a file where one is given.

    settings: arguments of `build_model`; a shortcut of None is what the weights need, else B.
    pretrained: name or path for `load_pretrained`; None or "none" for random weights.
    Returns (model, settings as used, normalisation of the input, source of the weights or None).
    Raises UserError where weights and settings do not agree.
    """
    if pretrained in (None, "none"):
        settings = {**settings, "shortcut": settings["shortcut"] or "B"}
        return build_model(**settings), settings, KINETICS, None
    weights = load_pretrained(pretrained)
    for key in ("backbone", "width", "shortcut"):
        needed, given = getattr(weights, key), settings[key]
        if given != needed and None not in (given, needed):
            raise UserError(
                f"--pretrained {pretrained} ({weights.family}) needs --{key} {needed}, not {given}"
            )
    settings = {**settings, "shortcut": weights.shortcut or "B"}
    model = build_model(**settings)
    fill_backbone(model.backbone, weights)
    return model, settings, weights.normalisation, weights.source()


__all__ = [
    "BACKBONES",
    "KINETICS",
    "HashingNetwork",
    "build_model",
    "build_network",
    "load_pretrained",
]
