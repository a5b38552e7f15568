"""Weight files in the layout of each published family, and the features of their authors' code."""

import io

import pytest
import torch
from torch.nn import functional

import models
from models.resnet3d import ResNet3D

TINY_WIDTH = 0.02
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
C3D_SHAPES = {  # name: (output channels, input channels)
    "conv1": (64, 3),
    "conv2": (128, 64),
    "conv3a": (256, 128),
    "conv3b": (256, 256),
    "conv4a": (512, 256),
    "conv4b": (512, 512),
    "conv5a": (512, 512),
    "conv5b": (512, 512),
}


def hara_state(depth, shortcut):
    """Random weights under the keys of 3D-ResNets-PyTorch."""
    state = {"conv1.weight": torch.randn(64, 3, 7, 7, 7) * 0.03}

    def batch_norm(name, channels):
        state[f"{name}.weight"] = torch.rand(channels) + 0.5
        state[f"{name}.bias"] = torch.randn(channels) * 0.1
        state[f"{name}.running_mean"] = torch.randn(channels) * 0.1
        state[f"{name}.running_var"] = torch.rand(channels) + 0.5

    batch_norm("bn1", 64)
    before = 64
    for stage, (channels, blocks) in enumerate(
        zip((64, 128, 256, 512), DEPTHS[depth], strict=True), start=1
    ):
        for i in range(blocks):
            name = f"layer{stage}.{i}"
            scale = (27 * channels) ** -0.5
            state[f"{name}.conv1.weight"] = torch.randn(channels, before, 3, 3, 3) * scale
            batch_norm(f"{name}.bn1", channels)
            state[f"{name}.conv2.weight"] = torch.randn(channels, channels, 3, 3, 3) * scale
            batch_norm(f"{name}.bn2", channels)
            if i == 0 and stage > 1 and shortcut == "B":
                kernel = torch.randn(channels, before, 1, 1, 1) * before**-0.5
                state[f"{name}.downsample.0.weight"] = kernel
                batch_norm(f"{name}.downsample.1", channels)
            before = channels
    state["fc.weight"], state["fc.bias"] = torch.randn(400, 512), torch.randn(400)
    return state


def hara_features(state, x, depth):
    """The forward pass of 3D-ResNets-PyTorch in functions: 7x7x7, max-pool, four stages, mean."""

    def norm(name, x):
        running = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return functional.batch_norm(x, *running, state[f"{name}.weight"], state[f"{name}.bias"])

    x = functional.conv3d(x, state["conv1.weight"], stride=(1, 2, 2), padding=3)
    x = functional.max_pool3d(functional.relu(norm("bn1", x)), 3, 2, 1)
    for stage, blocks in enumerate(DEPTHS[depth], start=1):
        for i in range(blocks):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = functional.conv3d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = functional.relu(norm(f"{name}.bn1", y))
            y = norm(f"{name}.bn2", functional.conv3d(y, state[f"{name}.conv2.weight"], padding=1))
            if f"{name}.downsample.0.weight" in state:
                kernel = state[f"{name}.downsample.0.weight"]
                x = norm(f"{name}.downsample.1", functional.conv3d(x, kernel, stride=stride))
            elif stride == 2:  # shortcut A as its authors write it
                x = functional.avg_pool3d(x, kernel_size=1, stride=2)
                x = torch.cat([x, torch.zeros_like(x)], dim=1)
            x = functional.relu(x + y)
    return x.mean(dim=(2, 3, 4))


def c3d_state():
    """Random weights under the names of the C3D paper."""
    state = {}
    for name, (out, into) in C3D_SHAPES.items():
        state[f"{name}.weight"] = torch.randn(out, into, 3, 3, 3) * (2 / (27 * into)) ** 0.5
        state[f"{name}.bias"] = torch.randn(out) * 0.01
    for name, into in (("fc6", 8192), ("fc7", 4096)):
        state[f"{name}.weight"] = torch.randn(4096, into) * (2 / into) ** 0.5
        state[f"{name}.bias"] = torch.randn(4096) * 0.01
    return state


def c3d_features(state, x):
    """C3D in functions: eight convolutions, five max-pools, fc6 on 512x1x4x4 = 8192, fc7."""
    pools = {"conv1": 1, "conv2": 2, "conv3b": 2, "conv4b": 2, "conv5b": 2}
    for name in C3D_SHAPES:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        x = functional.relu(functional.conv3d(x, weight, bias, padding=1))
        if name in pools:
            padding = (0, 1, 1) if name == "conv5b" else 0
            x = functional.max_pool3d(x, (pools[name], 2, 2), (pools[name], 2, 2), padding)
    x = functional.relu(functional.linear(x.reshape(len(x), 8192), *fc(state, "fc6")))
    return functional.relu(functional.linear(x, *fc(state, "fc7")))


def fc(state, name):
    return state[f"{name}.weight"], state[f"{name}.bias"]


def file_layout(family, state):
    """The content of a file of that family, with its names and wrappers."""
    if family == "Hara 2018":
        counters = {
            key.replace("running_var", "num_batches_tracked"): torch.tensor(1)
            for key in state
            if key.endswith("running_var")
        }
        return {"state_dict": {**state, **counters}, "epoch": 200, "arch": "resnet-18"}
    if family == "Hara 2017":
        return {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    if family == "C3D pickle":
        return {**state, "fc8.weight": torch.randn(487, 4096), "fc8.bias": torch.randn(487)}
    if family == "C3D sequential":
        names = dict(zip(C3D_SHAPES, (0, 3, 6, 8, 11, 13, 16, 18), strict=True))
        names = {name: f"features.{index}" for name, index in names.items()}
        names |= {"fc6": "classifier.0", "fc7": "classifier.3"}
        return {f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in state.items()}
    names = {"conv1": "conv1a.conv", "conv2": "conv2a.conv", "fc6": "fc6", "fc7": "fc7"}
    names |= {n: f"{n}.conv" for n in C3D_SHAPES if n not in names}
    flat = {f"backbone.{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in state.items()}
    return {"state_dict": {**flat, "cls_head.fc_cls.weight": torch.randn(101, 4096)}}


def random_state(backbone, shortcut):
    return c3d_state() if backbone == "c3d" else hara_state(int(backbone[-2:]), shortcut)


# (mean, std or None, channels, range) from the code and issues of each repository
PUBLISHED = {
    "Hara 2018": ([0.4345, 0.4051, 0.3775], [0.2768, 0.2713, 0.2737], "RGB", 1),
    "Hara 2017": ([114.7748, 107.7354, 99.4750], None, "RGB", 255),
    "C3D pickle": ([90.25, 97.66, 101.41], None, "BGR", 255),
    "C3D sequential": ([90, 98, 102], None, "BGR", 255),
    "C3D mmaction2": ([104, 117, 128], None, "RGB", 255),
}


def published_input(family, clips):
    """The network input that the family's own code makes of clips (B, T, H, W, 3) uint8 RGB."""
    mean, std, channels, white = PUBLISHED[family]
    x = clips.double() * white / 255
    if channels == "BGR":
        x = x[..., [2, 1, 0]]
    x = (x - torch.tensor(mean, dtype=torch.double)) / torch.tensor(std or [1.0] * 3)
    return x.permute(0, 4, 1, 2, 3).float()


# ==== small files ====


def tiny_backbone(shortcut="B"):
    """`resnet18` with one to ten channels; its keys are those of the format Hara 2018."""
    return ResNet3D(blocks=(2, 2, 2, 2), stem="hara", width=TINY_WIDTH, shortcut=shortcut)


def tiny_state(shortcut="B"):
    """Weights of `tiny_backbone` and of a classifier."""
    torch.manual_seed(0)
    classifier = {"fc.weight": torch.randn(5, 10), "fc.bias": torch.randn(5)}
    return {**tiny_backbone(shortcut).state_dict(), **classifier}


def build_tiny_models():
    """Have `models` build networks of TINY_WIDTH whatever the settings are."""
    build_model = models.build_model
    models.build_model = lambda **settings: build_model(**{**settings, "width": TINY_WIDTH})


def saved(content, **options):
    """What torch.save writes: bytes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def safetensors_bytes(state):
    """A file in that format: bytes. Skips the test without the package, which is optional."""
    safetensors = pytest.importorskip("safetensors.torch")
    return safetensors.save({key: tensor.contiguous() for key, tensor in state.items()})


def check_message(message, path):
    """The error of a weight file: one line that names the file."""
    assert message.isprintable() and len(message) < 500, message
    assert path.name in message
