"""The experiments on features: train.py's steps on the hash layer alone, with other losses too."""

import re
from functools import cache, lru_cache

import numpy as np
import torch
from torch import nn

import train
from configs.flags import parse_train_flags
from datasets.features import FeatureDataset
from datasets.loaders import build_loaders
from experiments.comparisons import BASELINES, TERMS, score

DEFAULT = {
    # flags of train.py that differ from configs/features.yaml; margin is a fraction of the largest
    # distance
    "bits": 64,
    "distance": "hamming",
    "margin": 1 / 8,
    # classes that only queries and database have
    "unseen": 0,
    # length of the prefix of the codes that is measured; None is the whole code
    "prefix": None,
    # weights of the triplets (with the classification and nested codes of train.py), and of losses
    # that train.py does not have
    "triplet": 1.0,
    **dict.fromkeys(TERMS, 0.0),
}
SPLITS = ("choice", "final", "test")
CHOICE_GROUPS = 3  # the groups 1, 2, 3 of the test videos choose settings; the others report
LARGEST_DISTANCE = {
    "hamming": lambda bits: bits,
    "squared": lambda bits: 4 * bits,
    "euclidean": lambda bits: 2 * bits**0.5,
}
REFERENCE = {  # the margin is 20 at 64 bits
    "distance": "squared",
    "margin": 20 / 256,
    "average": "valid",
    "batches": "random",
}
REFERENCE_SGD = {
    **REFERENCE,
    "optimizer": "sgd",
    "lr": 1e-3,
    "weight_decay": 5e-4,
    "schedule": "step",
    "warmup_epochs": 0,
    "clip_gradient": 0,
}


def sweep(name, key, values):
    """{name with each value: change of `key` to it}."""
    return {name.format(value): {key: value} for value in values}


def margins(name, divisors, **changes):
    """{name with each divisor: margin of the largest distance over it, and other changes}."""
    return {name.format(n): {**changes, "margin": 1 / n} for n in divisors}


def alone(term):
    """Only this term, without triplets."""
    return {term: 1.0, "triplet": 0.0}


PREFIXES = sweep("first {} bits", "prefix", (16, 32))
# Name -> changes of DEFAULT; --names may combine several as "A + B".
SETTINGS = {
    "default": {},
    "reference method": REFERENCE,
    "reference method, its SGD": REFERENCE_SGD,
    "classification alone": alone("classifier"),
    "central similarity alone": alone("central"),
    "fixed centres alone": alone("fixed"),
    "proxies alone": alone("proxy"),
    "average precision alone": alone("average_precision"),
    **sweep("classification {}", "classification", (1.0, 5.0, 20.0)),
    **sweep("central similarity {}", "central", (10.0,)),
    **sweep("average precision {}", "average_precision", (10.0,)),
    **sweep("quantisation {}", "quantisation", (0.1, 1.0)),
    **sweep("bit balance {}", "balance", (0.1, 1.0)),
    **sweep("decorrelation {}", "decorrelation", (1.0, 10.0)),
    **margins("margin K/{}", (16, 6, 4)),
    "mean over valid triplets": {"average": "valid"},
    "batch-hard": {"mining": "batch-hard"},
    "semi-hard": alone("semi_hard"),
    "P 32, K 4": {"classes_per_batch": 32, "clips_per_class": 4},
    "P 64, K 2": {"classes_per_batch": 64, "clips_per_class": 2},
    "P 101, K 4": {"classes_per_batch": 101, "clips_per_class": 4},
    **sweep("dropout {}", "dropout", (0.1, 0.5)),
    **sweep("learning rate {}", "lr", (1e-3, 1e-2)),
    **sweep("weight decay {}", "weight_decay", (0.0, 0.5)),
    **sweep("{} epochs", "epochs", (10, 30, 60, 100)),
    **sweep("{} bits", "bits", (16, 32, 48, 128)),
    "nested 16, 32": {"nested_bits": [16, 32]},
    **PREFIXES,
    "25 classes unseen": {"unseen": 25},
}


def settings_of(name):
    """DEFAULT with the changes of a name such as "16 bits + dropout 0.1", or of a baseline."""
    settings = dict(DEFAULT)
    for change in name.split(" + "):
        settings |= {} if change in BASELINES else SETTINGS[change]
    return settings


def train_flags(settings, features, seed):
    """The flags of train.py for some settings: argparse.Namespace."""
    settings = {
        key: value for key, value in settings.items() if key not in ("unseen", "prefix", "triplet")
    }
    settings = {key: value for key, value in settings.items() if key not in TERMS}
    largest = LARGEST_DISTANCE[settings["distance"]](settings["bits"])
    flags = ["--config", "configs/features.yaml", "--features", features, "--output", "none"]
    for key, value in {**settings, "margin": settings["margin"] * largest, "seed": seed}.items():
        flags += [f"--{key.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
    return parse_train_flags(None, [str(flag) for flag in flags])


# ==== data ====


@cache
def read_features(path):
    """(features, labels, is_train, groups) of the file's videos."""
    with np.load(path) as file:
        features = torch.from_numpy(file["features"].astype(np.float32))
        labels, is_train = torch.from_numpy(file["labels"]).long(), file["is_train"].astype(bool)
        groups = np.array([int(re.search(r"_g(\d+)_", name)[1]) for name in file["names"]])
    return features, labels, is_train, groups


def divide(data, split, unseen, seed):
    """Bool masks (training, queries, database).

    split: "choice" has as queries the test videos of the first three groups of each class, "final"
    those of the others, "test" all. Training videos are the database. unseen: this many classes,
    others for each seed, are not trained on; only they are queries and database.
    """
    _, labels, is_train, groups = data
    is_chosen = {"choice": groups <= CHOICE_GROUPS, "final": groups > CHOICE_GROUPS, "test": True}
    queries = ~is_train & is_chosen[split]
    if not unseen:
        return is_train, queries, is_train
    classes = np.random.default_rng([seed, unseen]).permutation(labels.max().item() + 1)
    is_unseen = np.isin(labels.numpy(), classes[:unseen])
    return is_train & ~is_unseen, queries & is_unseen, is_train & is_unseen


# ==== training ====


class ComparedLoss(nn.Module):
    """The loss of train.py, weighted, and losses that it does not have.

    Returns what HashLoss returns.
    """

    def __init__(self, hash_loss, settings, num_classes, seed):
        super().__init__()
        self.hash_loss, self.weight = hash_loss, settings["triplet"]
        terms = {name: settings[name] for name in TERMS if settings[name]}
        self.weights = terms.values()
        self.terms = nn.ModuleList(
            TERMS[name](num_classes, settings["bits"], seed) for name in terms
        )

    def forward(self, codes, labels):
        loss, stats = self.hash_loss(codes, labels)
        loss = self.weight * loss
        for weight, term in zip(self.weights, self.terms, strict=True):
            loss = loss + weight * term(codes, labels)
        return loss, stats


def train_head(path, features, labels, settings, seed):
    """Train a hash layer on features (N, D) with the steps of train.py; returns the network."""
    classes, labels = labels.unique(return_inverse=True)
    device = torch.device("cpu")
    args = train_flags(settings, path, seed)
    train.fit_batches(args, labels.tolist())
    data = FeatureDataset([str(row) for row in range(len(labels))], labels.tolist(), features)
    loader, *_ = build_loaders(data, data, args)
    model, *_ = train.prepare_model(data, args, device)
    hash_loss = train.build_criterion(len(classes), device, args)
    criterion = ComparedLoss(hash_loss, settings, len(classes), seed)
    state = train.build_train_state(model, criterion, len(loader), device, args)
    for epoch in range(args.epochs):
        loader.batch_sampler.set_position(epoch)
        for batch, batch_labels in loader:
            train.train_step(state, model, batch, batch_labels, args)
            state.scheduler.step()
    return model.eval()


# ==== runs ====


def splits(args):
    """The sets of queries that are measured."""
    return args.splits


@lru_cache(maxsize=1)
def encode_all(path, name, seed):
    """Approximate codes (N, K) of all videos, by a setting or one of BASELINES, with one seed."""
    features, labels, *_ = data = read_features(path)
    settings, baselines = settings_of(name), [b for b in BASELINES if b in name.split(" + ")]
    training, *_ = divide(data, "test", settings["unseen"], seed)
    features_of_training, labels = features[training], labels[training]
    if baselines:
        encode = BASELINES[baselines[0]](features_of_training, settings["bits"], seed)
    else:
        encode = train_head(path, features_of_training, labels, settings, seed)
    with torch.no_grad():
        return encode(features)


def run(name, split, seed, args):
    """{"map", "map_real"} of a setting, or of one of BASELINES, with one seed.

    map_real is that of the cosine of the features, and None for all others.
    """
    data = read_features(args.features)
    trained = " + ".join(change for change in name.split(" + ") if change not in PREFIXES)
    settings = settings_of(name)
    codes = encode_all(args.features, trained, seed)[:, : settings["prefix"]]
    _, queries, database = divide(data, split, settings["unseen"], seed)
    labels = data[1]
    items = codes[queries], labels[queries], codes[database], labels[database]
    return score(*items, has_real="cosine of the features" in name)  # the slowest part of a run
