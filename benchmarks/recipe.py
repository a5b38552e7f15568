"""Which loss, sampling and code settings retrieve best: settings x seeds -> results.csv, a table.

    python -m benchmarks.recipe features --features ucf101_vgg16_14classes.npz --output results
    python -m benchmarks.recipe clips --frames frames --splits splits --output results

The first trains the hash layer alone on features of real UCF101 videos (arrays features, labels,
is_train, names), seconds a run, one change at a time from the default, and measures on
every fifth UCF101 group of the training videos, a fifth for each seed; --final trains on all of
them and measures on the test videos. The second runs train.py and test.py on frame folders, with
every fifth sequence of UT-Interaction as queries. A run that is already in results.csv is not
repeated. RESULTS.md holds what came out.
"""

import argparse
import csv
import json
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from benchmarks.tried_losses import decorrelation, hadamard_centres, semi_hard, tie_aware_ap
from datasets import PKBatchSampler
from losses import MINING
from models import HashingNetwork
from utils.codes import binarize
from utils.metrics import evaluate

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


# ==== one run on features ====


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


def train_head(features, labels, s, seed):
    """Train a hash layer; returns it. s: DEFAULT with changes."""
    torch.manual_seed(seed)
    backbone = nn.Identity()
    backbone.feature_dim = features.shape[1]
    network = HashingNetwork(backbone, s["bits"], s["dropout"])
    classes, bits = int(labels.max()) + 1, s["bits"]
    classifier, proxies = nn.Linear(bits, classes), nn.Parameter(torch.randn(classes, bits) / 8)
    generator = torch.Generator().manual_seed(seed)
    centres = hadamard_centres(classes, bits, generator)
    parameters = [*network.parameters(), *classifier.parameters(), proxies]
    if "sgd" in s:
        optimizer = torch.optim.SGD(parameters, s["sgd"], momentum=0.9, weight_decay=5e-4)
    else:
        optimizer = torch.optim.AdamW(parameters, s["lr"], weight_decay=s["weight_decay"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, s["steps"])
    margin = s["margin"] * LARGEST[s["distance"]](bits)
    for step, rows in zip(range(s["steps"]), batches(labels, s, seed), strict=False):
        features_, y = features[rows], labels[rows]
        slope = 1 + (s["slope"] - 1) * step / s["steps"]
        codes = torch.tanh(slope * network.hash(network.dropout(features_)))
        loss = codes.new_zeros(())
        if s["triplet"] and s["mining"] == "semi-hard":
            loss = loss + semi_hard(codes, y, margin, s["distance"])
        elif s["triplet"]:
            loss = loss + MINING[s["mining"]](codes, y, margin, s["distance"], s["average"])[0]
        terms = {
            "quantisation": lambda c, y: bits / 4 * (1 - c.abs()).square().mean(),
            "balance": lambda c, y: bits / 4 * c.mean(0).square().mean(),
            "decorrelation": lambda c, y: bits / 4 * decorrelation(c),
            "classification": lambda c, y: functional.cross_entropy(classifier(c), y),
            "central": lambda c, y: functional.binary_cross_entropy(
                (c + 1) / 2, (centres[y] + 1) / 2),
            "fixed": lambda c, y: functional.cross_entropy(8 / bits * c @ centres.T, y),
            "proxy": lambda c, y: functional.cross_entropy(
                8 * functional.normalize(c) @ functional.normalize(proxies).T, y),
            "average_precision": tie_aware_ap,
        }  # fmt: skip
        for name, term in terms.items():
            if s.get(name):
                loss = loss + s[name] * term(codes, y)
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
def measure(network, data, rows):
    """mAP over all ranks of binary codes, and of real-valued codes under the same distance."""
    features, labels, _, _ = data
    query, database = (network(features[torch.from_numpy(r)]) for r in rows)
    y = [labels[torch.from_numpy(r)] for r in rows]
    metrics = evaluate(binarize(query), y[0], binarize(database), y[1])
    real = real_map(query, y[0], database, y[1])
    return {"map": metrics["map"], "map_real": real}


def real_map(query, query_labels, database, database_labels):
    """mAP over all ranks by (K - <u, v>) / 2 of real-valued codes."""
    order = (query @ database.T).argsort(dim=1, descending=True, stable=True)
    relevant = (database_labels[order] == query_labels[:, None]).double()
    ranks = torch.arange(1, relevant.shape[1] + 1)
    precision = relevant.cumsum(1) / ranks
    return ((precision * relevant).sum(1) / relevant.sum(1).clamp(min=1)).mean().item()


def itq(features, bits, seed):
    """Iterative quantisation (Gong & Lazebnik, CVPR 2011): PCA and the best rotation, by Faiss."""
    transform = faiss.ITQTransform(features.shape[1], bits, True)
    transform.itq.seed = seed
    transform.train(features.numpy())
    return lambda x: torch.from_numpy(transform.apply_py(x.contiguous().numpy()))


def hyperplanes(features, bits, seed):
    """Signs of random projections (Charikar 2002) of centred features."""
    planes = torch.randn(features.shape[1], bits, generator=torch.Generator().manual_seed(seed))
    return lambda x: (x - features.mean(0)) @ planes


BASELINES = {
    "ITQ of the features": itq,
    "random hyperplanes of the features": hyperplanes,
}
"""Name -> what makes codes of features without labels: (training features, bits, seed) -> f."""


def run_features(name, seed, args, data):
    s = settings_of(name)
    train, *rows = divide(data, args.final, s["unseen"], seed)
    train = torch.from_numpy(train)
    if name in BASELINES:
        return measure(BASELINES[name](data[0][train], s["bits"], seed), data, rows)
    network = train_head(data[0][train], data[1][train], s, seed)
    return measure(network, data, rows)


# ==== one run on clips ====

FOLDS = ["1,6,11,16", "2,7,12,17", "3,8,13,18", "4,9,14,19", "5,10,15,20"]  # UT-Interaction's 20
CLIP_CHANGES = {
    "default": "",
    "reference method": "--distance squared --margin 20 --average valid --batches random",
    "its SGD": "--optimizer sgd --lr 0.001 --weight-decay 0.0005 --schedule step --warmup-epochs 0 "
    "--clip-gradient 0",
    **{f"margin K/{n}": f"--margin {64 / n}" for n in (4, 16)},
    "mean over valid triplets": "--average valid",
    "random batches": "--batches random",
    "batch-hard": "--mining batch-hard",
    "SGD 0.05": "--optimizer sgd --lr 0.05 --weight-decay 0.0005",
    **{f"learning rate {lr}": f"--lr {lr}" for lr in (0.0005, 0.002)},
    "50 epochs": "--epochs 50",
    "width 0.5": "--width 0.5",
    "16 frames": "--clip-frames 16",
    **{f"{n} pixels": f"--size {n}" for n in (48, 64)},
    **{name: f"--backbone {name}" for name in ("resnet34", "r3d18", "c3d")},
    "shortcut A": "--shortcut A",
    "crops from 0.7": "--crop-scale 0.7 1.0",
    "no flip": "--no-flip",
    "no colours": "--colour-jitter 0",
    "dropout 0.5": "--dropout 0.5",
}
"""Name -> flags of train.py beside those of --config; --names may join several by ` + `."""


def run_clips(name, seed, args, fold):
    """make_splits.py, train.py and test.py with the sequences of FOLDS[fold] as queries."""
    flags = " ".join([*(CLIP_CHANGES[part] for part in name.split(" + ")), args.flags]).split()
    splits = args.output / f"splits-{fold}"
    run = args.output / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{fold}-{seed}"
    scripts = [
        ["make_splits.py", "--dataset", "folder", "--frames", args.frames, "--output", splits,
         "--group-pattern", r"_(\d+)_", "--test-groups", FOLDS[fold], "--val-fraction", 0],
        ["train.py", "--config", args.config, "--frames", args.frames, "--splits", splits,
         "--output", run, "--seed", seed, *flags],
        ["test.py", "--checkpoint", run / "last.pt", "--pictures", 0],
    ]  # fmt: skip
    for script in scripts:
        subprocess.run([sys.executable, *map(str, script)], check=True, stdout=subprocess.DEVNULL)
    return {"map": json.loads((run / "test" / "metrics.json").read_text())["map"]}


# ==== all runs ====


class Results:
    """results.csv: one line a run, written as soon as the run ends."""

    fields = ("name", "part", "seed", "map", "map_real", "seconds")

    def __init__(self, path):
        self.path = path
        self.rows = []
        if path.exists():
            with open(path, newline="") as file:
                self.rows = list(csv.DictReader(file))

    def has(self, name, part, seed):
        return any((r["name"], r["part"], r["seed"]) == (name, part, str(seed)) for r in self.rows)

    def add(self, **row):
        is_new = not self.path.exists()
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, self.fields)
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append({key: str(value) for key, value in row.items()})

    def table(self, part, baseline="default"):
        """Lines of a Markdown table, best first: mean and standard deviation of each setting, and
        the mean difference, with its standard error, from the same runs of the baseline."""
        scores = defaultdict(dict)
        for row in self.rows:
            if row["part"].startswith(part):
                pair = float(row["map"]), float(row["map_real"] or "nan")
                scores[row["name"]][row["part"], row["seed"]] = pair
        lines = ["| setting | mAP | ± | real-valued | against the default | runs |"]
        lines.append("|---|---|---|---|---|---|")
        means = {name: np.mean(list(runs.values()), axis=0) for name, runs in scores.items()}
        for name in sorted(scores, key=lambda name: -means[name][0]):
            runs = scores[name]
            common = runs.keys() & scores.get(baseline, {}).keys() if name != baseline else ()
            gains = [runs[key][0] - scores[baseline][key][0] for key in common]
            real = "" if np.isnan(means[name][1]) else f"{means[name][1]:.4f}"
            deviation = spread([value for value, _ in runs.values()])
            gain = f"{np.mean(gains):+.4f} ± {spread(gains, len(gains))}" if len(gains) > 1 else ""
            mean = f"{means[name][0]:.4f}"
            lines.append(f"| {name} | {mean} | {deviation} | {real} | {gain} | {len(runs)} |")
        return lines


def spread(values, runs=1):
    """Standard deviation, or standard error of the mean of several runs: text; "" of one value."""
    return f"{statistics.stdev(values) / runs**0.5:.4f}" if len(values) > 1 else ""


def settings_of(name):
    """DEFAULT with the changes that a name such as "16 bits + dropout 0.9" adds up."""
    parts = [] if name in BASELINES else name.split(" + ")
    return {**DEFAULT, **{k: v for part in parts for k, v in CHANGES[part].items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("kind", choices=("features", "clips"))
    add("--output", type=Path, required=True, help="folder of results.csv and of the runs")
    add("--names", nargs="+", help="settings to run, joined by ' + '; all when not given")
    add("--seeds", type=int, default=5, help="runs of each setting (default 5)")
    add("--features", help=".npz of features, labels, is_train, names")
    add("--final", action="store_true", help="train on all training videos, measure on test")
    add("--frames", help="frame folders of UT-Interaction")
    add("--config", default="configs/folder.yaml", help="of train.py (default configs/folder.yaml)")
    add("--flags", default="", help="more flags of train.py for all runs, such as '--cache disk'")
    add("--folds", type=int, nargs="+", default=range(5), help="numbers from 0 (default all five)")
    args = parser.parse_args()
    settings = {**CHANGES, **BASELINES} if args.kind == "features" else CLIP_CHANGES
    names = args.names or list(settings)
    for part in " + ".join(names).split(" + "):
        if part not in settings:
            parser.error(f"--names: {part!r} is none of {', '.join(settings)}")
    args.output.mkdir(parents=True, exist_ok=True)
    results = Results(args.output / "results.csv")
    if args.kind == "features":
        data, parts = read_features(args.features), ["test" if args.final else "val"]
    else:
        parts = [f"fold {fold}" for fold in args.folds]
    jobs = [(n, part, seed) for seed in range(args.seeds) for part in parts for n in names]
    for name, part, seed in tqdm([job for job in jobs if not results.has(*job)], unit="run"):
        started = time.perf_counter()
        if args.kind == "features":
            row = run_features(name, seed, args, data)
        else:
            row = run_clips(name, seed, args, int(part.split()[1]))
        seconds = round(time.perf_counter() - started, 1)
        results.add(name=name, part=part, seed=seed, seconds=seconds, **row)
    print("\n".join(results.table(parts[0].split()[0])))


if __name__ == "__main__":
    main()
