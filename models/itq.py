"""A hash layer without labels: PCA and the rotation with the least quantisation error.

Y. Gong, S. Lazebnik, "Iterative Quantization: A Procrustean Approach to Learning Binary Codes",
CVPR 2011, https://slazebni.cs.illinois.edu/publications/ITQ.pdf. Computed by Faiss.

Differences from the paper:
- Centred features have length 1 before the PCA, so that no single video dominates.
- The result is one linear layer with a scale, so that tanh of it is an approximate code, and
  training can continue from it.
"""

import faiss
import numpy as np
import torch

from utils.errors import UserError

MOST_ITEMS = 10_000  # that a layer is fitted to
LEAST_SPREAD = 1e-5  # of features in a direction, relative to their norm


class FitError(UserError):
    """Features to which no hash layer can be fitted; the message says what to change."""


def fit_hash_layer(layer, features, seed=0):
    """Set a linear layer from D features to K bits so that the signs of its outputs are ITQ codes.

    layer: torch.nn.Linear with a bias. features: (N, D) float32 on the CPU. The outputs have a
    standard deviation of 1 over the features. Raises FitError if the features have fewer than K
    independent directions, as those of fewer than K + 1 videos have.
    """
    bits, dimensions = layer.weight.shape
    check_directions(features, bits)
    transform = faiss.ITQTransform(dimensions, bits, True)  # True: PCA first
    transform.itq.seed = seed
    transform.train(np.ascontiguousarray(features.numpy()))
    weight = faiss.vector_to_array(transform.pca_then_itq.A).reshape(bits, dimensions)
    weight = torch.from_numpy(weight)
    bias = -weight @ torch.from_numpy(faiss.vector_to_array(transform.mean))
    scale = (features @ weight.T + bias).std()
    with torch.no_grad():
        layer.weight.copy_(weight / scale)
        layer.bias.copy_(bias / scale)


def check_directions(features, bits):
    """Raise FitError unless features (N, D) differ in at least `bits` independent directions."""
    most = min(len(features) - 1, features.shape[1])
    found = 0
    if most > 0:
        _, spread, _ = torch.svd_lowrank(features - features.mean(0), q=min(bits, most))
        found = int((spread > LEAST_SPREAD * features.norm()).sum())
    if found == 0:
        raise FitError(f"the features of all {len(features)} items are equal: codes need variety")
    if found < bits:
        raise FitError(
            f"--bits {bits}: {len(features)} items with {features.shape[1]} features differ in "
            f"only {found} directions; use --bits {found} or less, or more videos"
        )
