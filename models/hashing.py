"""The hashing head: one fully connected layer of K bits and tanh on top of a backbone.

After H. Lai, Y. Pan, Y. Liu, S. Yan, "Simultaneous Feature Learning and Hash Coding with Deep
Neural Networks", CVPR 2015, https://arxiv.org/abs/1504.03410.

Differences from the paper:
- The 2D network is a 3D one.
- The divide-and-encode module is one fully connected layer.
- Codes are tanh in (-1, 1), binarised by sign, instead of a sigmoid with a threshold at 0.5.
"""

from torch import nn

from utils.errors import UserError


class HashingNetwork(nn.Module):
    """Clips (B, 3, T, H, W) float -> approximate hash codes (B, K) in (-1, 1).

    backbone: a module from clips to features (B, backbone.feature_dim). bits: K. dropout: before
    the hash layer.
    """

    def __init__(self, backbone, bits, dropout=0.0):
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.hash = nn.Linear(backbone.feature_dim, bits)
        self.frozen = []  # modules that stay in evaluation mode

    def freeze(self, until=None, batch_norm=False):
        """Freeze the backbone's layers up to and including `until`, for fine-tuning.

        until: name of a child of the backbone, such as "layer2" or "conv3b"; None freezes no layer.
        batch_norm: also keep the running statistics of all batch normalisation in the backbone.
        Convert to SyncBatchNorm first, since that replaces the modules. Raises UserError for an
        unknown layer.
        """
        names = [name for name, _ in self.backbone.named_children()]
        if until is not None and until not in names:
            raise UserError(f"--freeze-until {until}: choose from {', '.join(names)}")
        frozen = names[: names.index(until) + 1] if until else []
        self.frozen = [self.backbone.get_submodule(name).requires_grad_(False) for name in frozen]
        if batch_norm:
            norms = (nn.BatchNorm3d, nn.SyncBatchNorm)
            self.frozen += [m for m in self.backbone.modules() if isinstance(m, norms)]

    def train(self, mode=True):
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, clips):
        features = self.backbone(clips)  # (B, D)
        return self.hash(self.dropout(features)).tanh()  # (B, K)
