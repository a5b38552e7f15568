"""The loss that training minimises: triplets, alone or with a weighted term beside them.

Classification beside triplets: Y. Dong, J. Li, "Video retrieval based on deep convolutional neural
network", 2017, https://arxiv.org/abs/1712.00133.
Nested codes: A. Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022,
https://arxiv.org/abs/2205.13147; for hash codes, the Nested Hash Layer of
https://arxiv.org/abs/2412.08922, 2024.

Straight-through gradients: Y. Bengio, N. Léonard, A. Courville, "Estimating or Propagating
Gradients Through Stochastic Neurons for Conditional Computation", 2013,
https://arxiv.org/abs/1308.3432.

Differences from the papers:
- All prefixes of nested codes have the same weight; one linear classifier serves all of them, by
  its first columns.
- The loss of nested codes is that of their bits, ±1, with the gradient of tanh: binarisation makes
  all bits count the same, as in search (docs/results.md has the difference).
"""

import torch
from torch import nn
from torch.nn import functional

from losses.triplet import MINING


def binarize_straight_through(codes):
    """Codes of ±1, whose gradient is that of the real-valued codes (B, K)."""
    bits = torch.where(codes >= 0, 1.0, -1.0).to(codes.dtype)
    return codes + (bits - codes).detach()


class HashLoss(nn.Module):
    """(codes (B, K), labels (B,)) -> (loss, stats of the triplets of whole codes).

    margin: for whole codes; that of a prefix is proportional to its length. mining, distance,
    average: see `losses.triplet`. classification: weight of the cross-entropy of a linear
    classifier on the codes, 0 for none. classes: number of classes. prefixes: lengths of nested
    codes, whose losses are averaged; K alone for a single code.
    """

    def __init__(
        self, bits, classes, margin, mining, distance, average, classification=0.0, prefixes=()
    ):
        super().__init__()
        self.bits, self.margin, self.triplet_loss = bits, margin, MINING[mining]
        self.distance, self.average = distance, average
        self.classification, self.prefixes = classification, prefixes or (bits,)
        self.classifier = nn.Linear(bits, classes) if classification else None

    def forward(self, codes, labels):
        if len(self.prefixes) > 1:
            codes = binarize_straight_through(codes)
        total = 0.0
        for length in self.prefixes:
            prefix, margin = codes[:, :length], self.margin * length / self.bits
            loss, stats = self.triplet_loss(prefix, labels, margin, self.distance, self.average)
            if self.classifier:
                scores = functional.linear(
                    prefix, self.classifier.weight[:, :length], self.classifier.bias
                )
                loss = loss + self.classification * functional.cross_entropy(scores, labels)
            total = total + loss
        return total / len(self.prefixes), stats
