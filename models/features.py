"""The place of the backbone in a network whose input are features that another program computed."""

import torch
from torch import nn


class StandardisedFeatures(nn.Module):
    """Features (B, D) -> (B, D) with mean 0 and, over all values, standard deviation 1.

    Dropout needs the mean 0: it would otherwise add noise of the size of the mean. `fit` sets mean
    and deviation to those of the training features; they are part of the checkpoint.
    """

    def __init__(self, feature_dim):
        super().__init__()
        self.feature_dim = feature_dim
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("std", torch.ones(()))

    def fit(self, features):
        """Set mean and deviation to those of features (N, D)."""
        self.mean.copy_(features.double().mean(dim=0))
        std = (features - self.mean).double().square().mean().sqrt()
        self.std.fill_(std.item() or 1.0)  # 0 where all features are equal

    def forward(self, features):
        return (features - self.mean) / self.std
