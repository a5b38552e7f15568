"""Shapes, gradients, and the parameters and strides that the papers state for each backbone."""

import itertools

import pytest
import torch
from torchvision.models.video import resnet

from losses import batch_all_triplet_loss
from models import BACKBONES, build_model
from models.resnet3d import BasicBlock, ZeroPadShortcut


def clips(batch=2, frames=16, side=32):
    return torch.randn(batch, 3, frames, side, side)


@pytest.mark.parametrize("bits", [1, 48, 128])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_codes_have_any_number_of_bits_and_lie_between_minus_one_and_one(backbone, bits):
    torch.manual_seed(0)
    model = build_model(backbone, bits, width=0.125).train()  # batch statistics keep tanh in range
    codes = model(clips())
    assert codes.shape == (2, bits)
    assert codes.abs().max() < 1


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_parameter_receives_a_gradient(backbone, shortcut):
    torch.manual_seed(0)
    model = build_model(backbone, 16, width=0.0625, shortcut=shortcut)
    model(clips()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_zero_padding_shortcut_carries_the_gradient():
    """Hara's code of 2017 pads `.data`, so that this gradient would be None or zero."""
    x = torch.randn(1, 4, 4, 4, 4, requires_grad=True)
    y = ZeroPadShortcut(new_channels=4, stride=2)(x)
    assert y.shape == (1, 8, 2, 2, 2)
    assert torch.equal(y[:, :4], x[:, :, ::2, ::2, ::2]) and y[:, 4:].eq(0).all()
    y.sum().backward()
    expected = torch.zeros_like(x)
    expected[:, :, ::2, ::2, ::2] = 1
    assert torch.equal(x.grad, expected)


def test_a_block_whose_convolutions_are_zero_still_passes_the_gradient():
    block = BasicBlock(4, 8, stride=2, shortcut="A")
    for name in ("bn1", "bn2"):
        torch.nn.init.zeros_(getattr(block, name).weight)
    x = torch.rand(2, 4, 4, 4, 4, requires_grad=True)
    block(x).sum().backward()
    assert x.grad.abs().sum() > 0


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34"])
def test_resnets_have_the_parameters_of_torchvisions_with_another_stem(backbone):
    """torchvision's VideoResNet differs in its 3x7x7 stem and its classifier."""
    blocks = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3]}[backbone]
    with torch.device("meta"):  # parameters without memory
        theirs = resnet.VideoResNet(
            resnet.BasicBlock, [resnet.Conv3DSimple] * 4, blocks, resnet.BasicStem
        )
        ours, with_a = BACKBONES[backbone](), BACKBONES[backbone](shortcut="A")
    stems = 3 * 64 * 7 * 7 * (7 - 3)
    assert count(ours) == count(theirs) - count(theirs.fc) + stems
    projections = sum(64 * i * (64 * 2 * i) + 2 * (64 * 2 * i) for i in (1, 2, 4))
    assert count(with_a) == count(ours) - projections


def test_c3d_has_the_parameters_of_the_paper():
    """Kernels of 3x3x3 with 64 ... 512 channels, and fc6 and fc7 of 4096 units on 8192 inputs."""
    channels = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    convolutions = sum(27 * i * o + o for i, o in itertools.pairwise(channels))
    with torch.device("meta"):
        ours = BACKBONES["c3d"]()
    assert count(ours) == convolutions + (8192 + 1) * 4096 + (4096 + 1) * 4096


def test_resnet_strides_are_those_of_the_paper():
    model = build_model("resnet18", 8, width=0.0625).backbone.eval()
    shapes = []
    for name in ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        module = getattr(model, name)
        module.register_forward_hook(lambda _, __, out: shapes.append(list(out.shape[2:])))
    model(clips(1, 16, 112))
    strided = [[16, 56, 56], [8, 28, 28], [8, 28, 28], [4, 14, 14], [2, 7, 7], [1, 4, 4]]
    assert shapes == strided


def test_c3d_takes_other_sizes_and_refuses_clips_that_are_too_small():
    model = build_model("c3d", 8, width=0.0625).eval()
    assert model(clips(1, 16, 112)).shape == model(clips(1, 32, 40)).shape == (1, 8)
    with pytest.raises(ValueError, match="at least 16 frames"):
        model(clips(1, 8, 112))


@pytest.mark.parametrize("backbone", ["c3d", "resnet18"])
def test_a_few_steps_from_random_weights_separate_two_motions(backbone):
    """Clips that differ only in the direction of time: brighter or darker from frame to frame."""
    torch.manual_seed(0)
    model = build_model(backbone, 16, width=0.0625)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    ramp = torch.linspace(-1, 1, 16).view(1, 1, 16, 1, 1)
    labels = torch.arange(8) % 2
    x = torch.randn(8, 3, 16, 16, 16) * 0.3 + ramp * (2 * labels - 1).view(-1, 1, 1, 1, 1)
    losses = []
    for _ in range(20):
        loss, _ = batch_all_triplet_loss(model(x), labels, 4.0, average="valid")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 3 and losses[-1] < 0.5
