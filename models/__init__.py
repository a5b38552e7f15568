"""Backbones and the hashing network built on them."""

from functools import partial

from models.c3d import C3D
from models.hashing import HashingNetwork
from models.resnet3d import ResNet3D

BACKBONES = {
    "c3d": C3D,
    "resnet18": partial(ResNet3D, blocks=(2, 2, 2, 2)),
    "resnet34": partial(ResNet3D, blocks=(3, 4, 6, 3)),
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


__all__ = ["BACKBONES", "HashingNetwork", "build_model"]
