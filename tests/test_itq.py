"""The hash layer that is fitted without labels."""

import faiss
import numpy as np
import pytest
import torch
from test_features import FLAGS, write_features

from models.itq import FitError, fit_hash_layer
from utils.checkpoint import load_checkpoint


def make_features(items, dimensions, seed=0):
    """Correlated features (N, D) whose mean is far from zero."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimensions, dimensions, generator=generator)
    return torch.randn(items, dimensions, generator=generator) @ mix + 10


def test_signs_are_those_of_faiss():
    features = make_features(400, 24)
    layer = torch.nn.Linear(24, 16)
    fit_hash_layer(layer, features, seed=3)
    transform = faiss.ITQTransform(24, 16, True)
    transform.itq.seed = 3
    transform.train(features.numpy())
    with torch.no_grad():
        outputs = layer(features)
    assert np.array_equal(outputs.numpy() > 0, transform.apply_py(features.numpy()) > 0)
    assert outputs.std().item() == pytest.approx(1, abs=1e-4)
    balance = (outputs > 0).float().mean(0)
    assert balance.min() > 0.2 and balance.max() < 0.8


def test_codes_keep_neighbours_better_than_random_planes():
    centres = 4 * torch.randn(10, 32, generator=torch.Generator().manual_seed(1))
    features = centres.repeat_interleave(30, 0) + make_features(300, 32) / 4
    groups = torch.arange(10).repeat_interleave(30)
    layer = torch.nn.Linear(32, 8)
    torch.manual_seed(0)
    random = features @ torch.randn(32, 8)
    fit_hash_layer(layer, features)

    def precision(outputs):
        codes = outputs.sign()
        nearest = (codes @ codes.T).fill_diagonal_(-99).argmax(1)
        return (groups[nearest] == groups).float().mean().item()

    assert precision(layer(features).detach()) > precision(random) + 0.2


@pytest.mark.parametrize(
    ("features", "bits", "message"),
    [
        (make_features(12, 32), 16, "differ in only 11 directions; use --bits 11 or less"),
        (make_features(4, 32).repeat(20, 1), 16, "differ in only 3 directions"),
        (make_features(50, 8), 16, "differ in only 8 directions"),
        (make_features(1, 32).repeat(50, 1), 16, "features of all 50 items are equal"),
        (torch.zeros(50, 32), 16, "features of all 50 items are equal"),
        (make_features(1, 32), 16, "features of all 1 items are equal"),
    ],
)
def test_too_few_directions_are_refused(features, bits, message):
    with pytest.raises(FitError, match=message):
        fit_hash_layer(torch.nn.Linear(features.shape[1], bits), features)


@pytest.mark.scripts
def test_training_starts_from_the_fitted_layer(tmp_path, run_script):
    """With a learning rate of nearly zero the trained layer is the fitted one; rerun resumes it."""
    file = write_features(tmp_path / "features.npz")
    flags = ["--features", file, "--output", tmp_path / "run", *FLAGS, "--init-hash", "itq"]
    flags += ["--bits", 8, "--lr", 1e-12]
    run_script("train.py", *flags)
    saved = load_checkpoint(tmp_path / "run" / "last.pt")["model"]
    with np.load(file) as arrays:
        features = torch.from_numpy(arrays["features"][:60].astype(np.float32))
    standardised = (features - saved["backbone.mean"]) / saved["backbone.std"]
    expected = torch.nn.Linear(12, 8)
    fit_hash_layer(expected, standardised, seed=0)
    assert torch.allclose(saved["hash.weight"], expected.weight, atol=1e-4)
    assert torch.allclose(saved["hash.bias"], expected.bias, atol=1e-4)
    output = run_script("train.py", *flags).output()
    assert "resuming" in output
