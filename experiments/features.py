"""The experiments on features: train the hash layer with our sampler and loss, then evaluate."""

import itertools
import re
from functools import cache

import numpy as np
import torch
from torch import nn

from datasets.samplers import PKBatchSampler
from experiments.comparisons import BASELINES, other_terms, score, semi_hard
from losses import MINING
from models import HashingNetwork

DEFAULT = {
    # codes and loss; a margin is a fraction of the largest distance
    "bits": 64,
    "mining": "batch-all",
    "distance": "hamming",
    "margin": 1 / 8,
    "average": "active",
    # batches: P classes with K clips each, or, if random_batch is set, as many clips at random
    "classes": 14,
    "clips": 8,
    "random_batch": None,
    # training; dropout is before the hash layer, slope is that of tanh in the last step
    "steps": 300,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.05,
    "dropout": 0.5,
    "slope": 1.0,
    "unseen": 0,  # classes that only queries and database have
    # weights of the loss terms; see `comparisons.other_terms`
    "triplet": 1.0,
    "quantisation": 0.0,
    "balance": 0.0,
    "decorrelation": 0.0,
    "classification": 0.0,
    "central": 0.0,
    "fixed": 0.0,
    "proxy": 0.0,
    "average_precision": 0.0,
}
LARGEST_DISTANCE = {
    "hamming": lambda bits: bits,
    "squared": lambda bits: 4 * bits,
    "euclidean": lambda bits: 2 * bits**0.5,
}
REFERENCE = {  # the margin is 20 at 64 bits
    "distance": "squared",
    "margin": 20 / 256,
    "average": "valid",
    "random_batch": 120,
}
REFERENCE_SGD = {**REFERENCE, "optimizer": "sgd", "lr": 1e-3, "weight_decay": 5e-4}


def sweep(name, key, values):
    """{name with each value: change of `key` to it}."""
    return {name.format(value): {key: value} for value in values}


def margins(name, divisors, **changes):
    """{name with each divisor: margin of the largest distance over it, and other changes}."""
    return {name.format(n): {**changes, "margin": 1 / n} for n in divisors}


def alone(term):
    """Only this term, without triplets."""
    return {term: 1.0, "triplet": 0.0}


# Name -> changes of DEFAULT; --names may combine several as "A + B".
SETTINGS = {
    "default": {},
    "reference method": REFERENCE,
    "reference method, its SGD": REFERENCE_SGD,
    **margins("margin K/{}", (32, 16, 6, 4, 3, 2)),
    **margins("squared, margin 4K/{}", (16, 8, 4), distance="squared"),
    **margins("plain, margin 2√K/{}", (8, 4, 2), distance="euclidean"),
    "mean over valid triplets": {"average": "valid"},
    "batch-hard": {"mining": "batch-hard"},
    "batch-hard, margin K/4": {"mining": "batch-hard", "margin": 0.25},
    "semi-hard": {"mining": "semi-hard"},
    "P 4, K 28": {"classes": 4, "clips": 28},
    "P 7, K 16": {"classes": 7, "clips": 16},
    "P 14, K 4": {"classes": 14, "clips": 4},
    "P 14, K 16": {"classes": 14, "clips": 16},
    **sweep("quantisation {}", "quantisation", (0.1, 1.0)),
    **sweep("bit balance {}", "balance", (0.1, 1.0)),
    **sweep("decorrelation {}", "decorrelation", (1.0, 10.0)),
    "tanh slope to 5": {"slope": 5.0},
    "tanh slope to 10": {"slope": 10.0},
    **sweep("classification {}", "classification", (1.0, 3.0, 10.0)),
    "classification alone": alone("classification"),
    "central similarity alone": alone("central"),
    **sweep("central similarity {}", "central", (10.0, 30.0)),
    "fixed centres alone": alone("fixed"),
    "fixed centres 10.0": {"fixed": 10.0},
    "proxies alone": alone("proxy"),
    "proxies 10.0": {"proxy": 10.0},
    "average precision alone": alone("average_precision"),
    "average precision 10.0": {"average_precision": 10.0},
    **sweep("dropout {}", "dropout", (0.0, 0.25, 0.75, 0.9)),
    **sweep("learning rate {}", "lr", (1e-4, 3e-4, 3e-3)),
    **sweep("weight decay {}", "weight_decay", (0.0, 0.5)),
    **sweep("{} steps", "steps", (100, 1000)),
    **sweep("{} bits", "bits", (12, 16, 32, 48, 128)),
    "3 classes unseen": {"unseen": 3},
}


def settings_of(name):
    """DEFAULT with the changes of a name such as "16 bits + dropout 0.9", or of a baseline."""
    settings = dict(DEFAULT)
    for change in [] if name in BASELINES else name.split(" + "):
        settings |= SETTINGS[change]
    return settings


# ==== data ====


@cache
def read_features(path):
    """(features, labels, is_train, groups) of the file's videos; the features have deviation 1."""
    with np.load(path) as file:
        features = torch.from_numpy(file["features"].astype(np.float32))
        labels, is_train = torch.from_numpy(file["labels"]).long(), file["is_train"].astype(bool)
        groups = np.array([int(re.search(r"_g(\d+)_", name)[1]) for name in file["names"]])
    return features / features.std(), labels, is_train, groups


def divide(data, final, unseen, seed):
    """Bool masks (training, queries, database); each seed has another fifth of groups as queries.

    final: the test videos are the queries. unseen: this many classes are not trained on, and only
    they are queries and database.
    """
    _, labels, is_train, groups = data
    queries = ~is_train if final else is_train & (groups % 5 == seed % 5)
    training = is_train & ~queries
    is_unseen = labels.numpy() >= labels.max().item() + 1 - unseen
    if unseen:
        return training & ~is_unseen, queries & is_unseen, training & is_unseen
    return training, queries, training


def batches(labels, settings, seed):
    """Endless index tensors: P x K batches of our sampler, or random batches."""
    if settings["random_batch"]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(labels), generator=generator)
            yield from order.split(settings["random_batch"])
    classes = min(settings["classes"], len(labels.unique()))
    sampler = PKBatchSampler(labels.numpy(), classes, settings["clips"], seed)
    for epoch in itertools.count():
        sampler.set_position(epoch)
        for batch in sampler:
            yield torch.tensor([index for index, _ in batch])


# ==== training ====


def triplet_term(codes, labels, settings):
    margin = settings["margin"] * LARGEST_DISTANCE[settings["distance"]](settings["bits"])
    if settings["mining"] == "semi-hard":
        return semi_hard(codes, labels, margin, settings["distance"])
    loss_function = MINING[settings["mining"]]
    return loss_function(codes, labels, margin, settings["distance"], settings["average"])[0]


def build_optimizer(parameters, settings):
    lr, weight_decay = settings["lr"], settings["weight_decay"]
    if settings["optimizer"] == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=weight_decay)
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)


def train_head(features, labels, settings, seed):
    """Train a hash layer on features (N, D); returns a HashingNetwork without a backbone."""
    torch.manual_seed(seed)
    backbone = nn.Identity()
    backbone.feature_dim = features.shape[1]
    model = HashingNetwork(backbone, settings["bits"], settings["dropout"])
    terms, learnt = other_terms(int(labels.max()) + 1, settings["bits"], seed)
    optimizer = build_optimizer([*model.parameters(), *learnt], settings)
    steps = settings["steps"]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step, rows in zip(range(steps), batches(labels, settings, seed), strict=False):
        slope = 1 + (settings["slope"] - 1) * step / steps
        codes = torch.tanh(slope * model.hash(model.dropout(features[rows])))  # (B, K)
        loss = codes.new_zeros(())
        if settings["triplet"]:
            loss = loss + settings["triplet"] * triplet_term(codes, labels[rows], settings)
        for name, term in terms.items():
            if settings[name]:
                loss = loss + settings[name] * term(codes, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


# ==== runs ====


def splits(args):
    """The one split that is measured."""
    return ["test" if args.final else "val"]


def run(name, split, seed, args):
    """{"map", "map_real"} of a setting, or of one of BASELINES, with one seed."""
    data = read_features(args.features)
    features, labels, *_ = data
    settings = settings_of(name)
    masks = divide(data, split == "test", settings["unseen"], seed)
    training, queries, database = map(torch.from_numpy, masks)
    if name in BASELINES:
        encode = BASELINES[name](features[training], settings["bits"], seed)
    else:
        encode = train_head(features[training], labels[training], settings, seed)
    with torch.no_grad():
        query_codes, database_codes = encode(features[queries]), encode(features[database])
    return score(query_codes, labels[queries], database_codes, labels[database])
