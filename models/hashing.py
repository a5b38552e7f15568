"""The hashing head: one fully connected layer of K bits and tanh on top of a backbone.

After H. Lai, Y. Pan, Y. Liu, S. Yan, "Simultaneous Feature Learning and Hash Coding with Deep
Neural Networks", CVPR 2015, https://arxiv.org/abs/1504.03410.

Differences from the paper:
- The 2D network is a 3D one.
- The divide-and-encode module is one fully connected layer.
- tanh gives codes in (-1, 1), quantised by sign, in place of a sigmoid and a threshold at 0.5.
"""

from torch import nn

from utils.errors import UserError


class HashingNetwork(nn.Module):
    """clips (B, 3, T, H, W) float -> approximate hash codes (B, K) in (-1, 1)."""

    def __init__(self, backbone, bits, dropout=0.0):
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.hash = nn.Linear(backbone.feature_dim, bits)
        self.frozen = []  # modules that stay in evaluation mode

    def freeze(self, until=None, batch_norm=False):
        """Fix the backbone's layers up to and including `until`, as fine-tuning often does.

        until: name of a child of the backbone, such as "layer2" or "conv3b". Its parameters and
        those before it get no gradient. batch_norm: also keep the running statistics of every
        batch normalisation of the backbone. Raises UserError for an unknown layer.
        """
        names = [name for name, _ in self.backbone.named_children()]
        if until is not None and until not in names:
            raise UserError(f"--freeze-until {until}: the layers are {', '.join(names)}")
        fixed = names[: names.index(until) + 1] if until else []
        self.frozen = [self.backbone.get_submodule(name).requires_grad_(False) for name in fixed]
        if batch_norm:
            self.frozen += [m for m in self.backbone.modules() if isinstance(m, nn.BatchNorm3d)]

    def train(self, mode=True):
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, clips):
        features = self.backbone(clips)  # (B, D)
        return self.hash(self.dropout(features)).tanh()  # (B, K)
