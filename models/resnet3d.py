"""3D ResNets with the stem of Hara et al. or that of Tran et al.

`resnet18`, `resnet34`: K. Hara, H. Kataoka, Y. Satoh, "Can Spatiotemporal 3D CNNs Retrace the
History of 2D CNNs and ImageNet?", CVPR 2018, https://arxiv.org/abs/1711.09577; official code:
https://github.com/kenshohara/3D-ResNets-PyTorch.
`r3d18`, `r3d34`: D. Tran, H. Wang, L. Torresani, J. Ray, Y. LeCun, M. Paluri, "A Closer Look at
Spatiotemporal Convolutions for Action Recognition", CVPR 2018, https://arxiv.org/abs/1711.11248;
in torchvision as VideoResNet.
The residual design is K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image
Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385.

Differences from the papers:
- Shortcut B, a 1x1x1 convolution, is the default; A, Hara's for ResNet-18 and -34, is an option.
- Shortcut A pads with zeros inside the autograd graph. The official code of 2017 pads `.data`, so
  that no gradient flows through the shortcut.
- No classifier: the output is the pooled features. A factor scales the width.
"""

import torch
from torch import nn
from torch.nn import functional

# Name -> (frames of the first kernel, whether max-pooling follows).
STEMS = {"hara": (7, True), "r3d": (3, False)}


def _conv3x3x3(in_channels, out_channels, stride):
    return nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


class ZeroPadShortcut(nn.Module):
    """Shortcut A: subsample, and fill the new channels with zeros; no parameters."""

    def __init__(self, new_channels, stride):
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x):
        x = x[:, :, :: self.stride, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, 0, 0, 0, self.new_channels))


def _shortcut(kind, in_channels, out_channels, stride):
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if kind == "A":
        return ZeroPadShortcut(out_channels - in_channels, stride)
    projection = nn.Conv3d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm3d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions and a shortcut: (B, C, T, H, W) -> (B, C', T/s, H/s, W/s)."""

    def __init__(self, in_channels, out_channels, stride, shortcut):
        super().__init__()
        self.conv1 = _conv3x3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm3d(out_channels)
        self.conv2 = _conv3x3x3(out_channels, out_channels, 1)
        self.bn2 = nn.BatchNorm3d(out_channels)
        self.downsample = _shortcut(shortcut, in_channels, out_channels, stride)

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.downsample(x))


class ResNet3D(nn.Module):
    """Clips (B, 3, T, H, W) -> features (B, feature_dim); any T, H, W >= 1.

    blocks: residual blocks in each of the four stages. stem: "hara" (7x7x7 and max-pool) or "r3d"
    (3x7x7). width: factor on 64, 128, 256, 512 channels. shortcut: "A" (zero padding, no
    parameters) or "B" (1x1x1 convolution).
    """

    def __init__(self, blocks, stem="hara", width=1.0, shortcut="B"):
        super().__init__()
        channels = [max(1, round(width * c)) for c in (64, 128, 256, 512)]
        frames, has_pool = STEMS[stem]
        kernel, padding = (frames, 7, 7), (frames // 2, 3, 3)
        self.conv1 = nn.Conv3d(
            3, channels[0], kernel, stride=(1, 2, 2), padding=padding, bias=False
        )
        self.bn1 = nn.BatchNorm3d(channels[0])
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1) if has_pool else nn.Identity()
        in_channels = channels[0]
        for stage, (out_channels, count) in enumerate(zip(channels, blocks, strict=True), start=1):
            layer = nn.Sequential()
            for i in range(count):
                stride = 2 if stage > 1 and i == 0 else 1
                layer.append(BasicBlock(in_channels, out_channels, stride, shortcut))
                in_channels = out_channels
            self.add_module(f"layer{stage}", layer)
        self.feature_dim = channels[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, clips):
        x = functional.relu(self.bn1(self.conv1(clips)))  # (B, 64, T, H/2, W/2)
        x = self.maxpool(x)  # "hara": (B, 64, T/2, H/4, W/4), and all sizes below are halved
        x = self.layer1(x)
        x = self.layer2(x)  # (B, 128, T/2, H/4, W/4)
        x = self.layer3(x)  # (B, 256, T/4, H/8, W/8)
        x = self.layer4(x)  # (B, 512, T/8, H/16, W/16)
        return torch.mean(x, dim=(2, 3, 4))  # (B, 512)
