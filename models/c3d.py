"""C3D.

D. Tran, L. Bourdev, R. Fergus, L. Torresani, M. Paluri, "Learning Spatiotemporal Features with 3D
Convolutional Networks", ICCV 2015, https://arxiv.org/abs/1412.0767; official code:
https://github.com/facebookarchive/C3D.

Differences from the paper:
- Clips of any size from 16 frames and 16x16 pixels: adaptive average pooling after pool5 makes the
  output 1x4x4. At the paper's 16x112x112 it changes nothing.
- pool5 pads height and width by one pixel, as all ports to PyTorch do. Caffe does not pad, and
  rounds the size up. The output is 4x4 in both, but the windows differ by one pixel.
- Initialisation of He et al. (2015) instead of N(0, 0.01), from which a network of this depth
  without batch normalisation hardly trains.
- No classifier: the output is fc7 after its ReLU. A factor scales the width.
"""

from torch import nn
from torch.nn import functional

from utils.errors import UserError

MIN_FRAMES, MIN_PIXELS = 16, 16


class C3D(nn.Module):
    """Clips (B, 3, T, H, W) -> features (B, feature_dim); T >= 16, H and W >= 16.

    width: factor on every channel count and on the 4096 units of fc6 and fc7. dropout: after fc6.
    Raises UserError for a smaller clip.
    """

    def __init__(self, width=1.0, dropout=0.5):
        super().__init__()
        channels = [max(1, round(width * c)) for c in (64, 128, 256, 256, 512, 512, 512, 512)]
        names = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b")
        in_channels = 3
        for name, out_channels in zip(names, channels, strict=True):
            self.add_module(name, nn.Conv3d(in_channels, out_channels, 3, padding=1))
            in_channels = out_channels
        self.feature_dim = max(1, round(width * 4096))
        self.fc6 = nn.Linear(in_channels * 16, self.feature_dim)
        self.fc7 = nn.Linear(self.feature_dim, self.feature_dim)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, (nn.Conv3d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, clips):
        if clips.shape[2] < MIN_FRAMES or min(clips.shape[3:]) < MIN_PIXELS:
            raise UserError(
                f"C3D needs clips of at least {MIN_FRAMES} frames of {MIN_PIXELS}x{MIN_PIXELS} "
                f"pixels, got {tuple(clips.shape[2:])}"
            )
        relu, pool = functional.relu, functional.max_pool3d
        x = pool(relu(self.conv1(clips)), (1, 2, 2))  # (B, 64, T, H/2, W/2)
        x = pool(relu(self.conv2(x)), 2)  # (B, 128, T/2, H/4, W/4)
        x = pool(relu(self.conv3b(relu(self.conv3a(x)))), 2)  # (B, 256, T/4, H/8, W/8)
        x = pool(relu(self.conv4b(relu(self.conv4a(x)))), 2)  # (B, 512, T/8, H/16, W/16)
        x = pool(relu(self.conv5b(relu(self.conv5a(x)))), 2, padding=(0, 1, 1))  # (B, 512, T/16, …)
        x = functional.adaptive_avg_pool3d(x, (1, 4, 4))  # (B, 512, 1, 4, 4)
        x = relu(self.fc6(x.flatten(1)))
        return relu(self.fc7(self.dropout(x)))  # (B, 4096)
