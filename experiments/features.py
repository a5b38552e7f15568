"""The recipe on features: the hash layer alone, with our sampler, loss and evaluation."""

import re
from functools import cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from datasets.samplers import PKBatchSampler
from experiments.comparisons import (
    BASELINES,
    decorrelation,
    hadamard_centres,
    scores,
    semi_hard,
    tie_aware_ap,
)
from losses import MINING
from models import HashingNetwork

NEEDS = "features"
DEFAULT = {
    "bits": 64, "steps": 300, "lr": 1e-3, "dropout": 0.5, "weight_decay": 0.05,
    "mining": "batch-all", "distance": "hamming", "margin": 1 / 8, "average": "active",
    "classes": 14, "clips": 8, "triplet": 1.0, "slope": 1.0, "unseen": 0,
}  # fmt: skip
# A margin is a fraction of the largest distance: K Hamming, 4K squared, 2 sqrt(K) plain.
LARGEST = {"hamming": lambda k: k, "squared": lambda k: 4 * k, "euclidean": lambda k: 2 * k**0.5}
REFERENCE = {  # squared distance and the margin of 20 at 64 bits, all valid triplets, plain batches
    "distance": "squared", "margin": 20 / 256, "average": "valid", "plain_batch": 120,
}  # fmt: skip
CHANGES = {
    "default": {},
    "reference method": REFERENCE,
    "reference method, its SGD": {**REFERENCE, "sgd": 1e-3},
    **{f"margin K/{n}": {"margin": 1 / n} for n in (32, 16, 6, 4, 3, 2)},
    **{f"squared, margin 4K/{n}": {"distance": "squared", "margin": 1 / n} for n in (16, 8, 4)},
    **{f"plain, margin 2√K/{n}": {"distance": "euclidean", "margin": 1 / n} for n in (8, 4, 2)},
    "mean over valid triplets": {"average": "valid"},
    "batch-hard": {"mining": "batch-hard"},
    "batch-hard, margin K/4": {"mining": "batch-hard", "margin": 0.25},
    "semi-hard": {"mining": "semi-hard"},
    **{
        f"P {p}, K {k}": {"classes": p, "clips": k}
        for p, k in ((4, 28), (7, 16), (14, 4), (14, 16))
    },
    **{f"quantisation {w}": {"quantisation": w} for w in (0.1, 1.0)},
    **{f"bit balance {w}": {"balance": w} for w in (0.1, 1.0)},
    **{f"decorrelation {w}": {"decorrelation": w} for w in (1.0, 10.0)},
    "tanh slope to 5": {"slope": 5.0},
    "tanh slope to 10": {"slope": 10.0},
    **{f"classification {w}": {"classification": w} for w in (1.0, 3.0, 10.0)},
    "classification alone": {"classification": 1.0, "triplet": 0.0},
    "central similarity alone": {"central": 1.0, "triplet": 0.0},
    **{f"central similarity {w}": {"central": w} for w in (10.0, 30.0)},
    "fixed centres alone": {"fixed": 1.0, "triplet": 0.0},
    "fixed centres 10.0": {"fixed": 10.0},
    "proxies alone": {"proxy": 1.0, "triplet": 0.0},
    "proxies 10.0": {"proxy": 10.0},
    "average precision alone": {"average_precision": 1.0, "triplet": 0.0},
    "average precision 10.0": {"average_precision": 10.0},
    **{f"dropout {p}": {"dropout": p} for p in (0.0, 0.25, 0.75, 0.9)},
    **{f"learning rate {lr}": {"lr": lr} for lr in (1e-4, 3e-4, 3e-3)},
    **{f"weight decay {w}": {"weight_decay": w} for w in (0.0, 0.5)},
    **{f"{n} steps": {"steps": n} for n in (100, 1000)},
    **{f"{k} bits": {"bits": k} for k in (12, 16, 32, 48, 128)},
    "3 classes unseen": {"unseen": 3},
}  # fmt: skip
"""Name -> what differs from DEFAULT; --names may join several, as `A + B`."""


def settings_of(name):
    """DEFAULT with the changes that a name such as "16 bits + dropout 0.9" adds up."""
    parts = [] if name in BASELINES else name.split(" + ")
    return {**DEFAULT, **{k: v for part in parts for k, v in CHANGES[part].items()}}


@cache
def read_features(path):
    """Arrays of the file, standardised by one number, with the UCF101 group of each video."""
    with np.load(path) as file:
        features = torch.from_numpy(file["features"].astype(np.float32))
        labels, is_train = torch.from_numpy(file["labels"]).long(), file["is_train"].astype(bool)
        groups = np.array([int(re.search(r"_g(\d+)_", name)[1]) for name in file["names"]])
    return features / features.std(), labels, is_train, groups


def divide(data, final, unseen, seed):
    """Rows (training, queries, database). Each seed validates with another fifth of the groups."""
    _, labels, is_train, groups = data
    held = ~is_train if final else is_train & (groups % 5 == seed % 5)
    kept = is_train if final else is_train & ~held
    hidden = labels.numpy() >= labels.max().item() + 1 - unseen
    if unseen:  # train on the other classes, search among those never trained on
        return kept & ~hidden, held & hidden, kept & hidden
    return kept, held, kept


def tried_terms(classes, bits, seed):
    """({name: function of (codes, labels)}, the parameters that some of them learn)."""
    classifier, proxies = nn.Linear(bits, classes), nn.Parameter(torch.randn(classes, bits) / 8)
    centres = hadamard_centres(classes, bits, torch.Generator().manual_seed(seed))
    terms = {
        "quantisation": lambda c, y: bits / 4 * (1 - c.abs()).square().mean(),
        "balance": lambda c, y: bits / 4 * c.mean(0).square().mean(),
        "decorrelation": lambda c, y: bits / 4 * decorrelation(c),
        "classification": lambda c, y: functional.cross_entropy(classifier(c), y),
        "central": lambda c, y: functional.binary_cross_entropy((c + 1) / 2, (centres[y] + 1) / 2),
        "fixed": lambda c, y: functional.cross_entropy(8 / bits * c @ centres.T, y),
        "proxy": lambda c, y: functional.cross_entropy(
            8 * functional.normalize(c) @ functional.normalize(proxies).T, y
        ),
        "average_precision": tie_aware_ap,
    }
    return terms, [*classifier.parameters(), proxies]


def train_head(features, labels, s, seed):
    """Train a hash layer; returns it. s: DEFAULT with changes."""
    torch.manual_seed(seed)
    backbone = nn.Identity()
    backbone.feature_dim = features.shape[1]
    network = HashingNetwork(backbone, s["bits"], s["dropout"])
    terms, learnt = tried_terms(int(labels.max()) + 1, s["bits"], seed)
    parameters = [*network.parameters(), *learnt]
    if "sgd" in s:
        optimizer = torch.optim.SGD(parameters, s["sgd"], momentum=0.9, weight_decay=5e-4)
    else:
        optimizer = torch.optim.AdamW(parameters, s["lr"], weight_decay=s["weight_decay"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, s["steps"])
    margin = s["margin"] * LARGEST[s["distance"]](s["bits"])
    for step, rows in zip(range(s["steps"]), batches(labels, s, seed), strict=False):
        y = labels[rows]
        slope = 1 + (s["slope"] - 1) * step / s["steps"]
        codes = torch.tanh(slope * network.hash(network.dropout(features[rows])))
        loss = codes.new_zeros(())
        if s["triplet"] and s["mining"] == "semi-hard":
            loss = loss + semi_hard(codes, y, margin, s["distance"])
        elif s["triplet"]:
            loss = loss + MINING[s["mining"]](codes, y, margin, s["distance"], s["average"])[0]
        for name in filter(s.get, terms):
            loss = loss + s[name] * terms[name](codes, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def batches(labels, s, seed):
    """P x K batches of the project's sampler, epoch after epoch; or plain random ones."""
    if "plain_batch" in s:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield from torch.randperm(len(labels), generator=generator).split(s["plain_batch"])
    present = len(labels.unique())
    sampler = PKBatchSampler(labels.numpy(), min(s["classes"], present), s["clips"], seed)
    for epoch in range(10**6):
        sampler.set_position(epoch)
        for batch in sampler:
            yield torch.tensor([index for index, _ in batch])


@torch.no_grad()
def measure(embed, data, rows):
    """`scores` of the codes that `embed` gives the features of (query rows, database rows)."""
    (query, query_labels), (database, database_labels) = (
        (embed(data[0][torch.from_numpy(r)]), data[1][torch.from_numpy(r)]) for r in rows
    )
    return scores(query, query_labels, database, database_labels)


def parts(args):
    """The one part that is measured, as it stands in results.csv."""
    return ["test" if args.final else "val"]


def run(name, part, seed, args):
    """One setting, or one of BASELINES, with one seed: {"map", "map_real"}."""
    data = read_features(args.features)
    s = settings_of(name)
    train, *rows = divide(data, part == "test", s["unseen"], seed)
    train = torch.from_numpy(train)
    if name in BASELINES:
        return measure(BASELINES[name](data[0][train], s["bits"], seed), data, rows)
    network = train_head(data[0][train], data[1][train], s, seed)
    return measure(network, data, rows)
