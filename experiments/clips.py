"""experiments/recipe.py on clips: train.py and test.py on frame folders of UT-Interaction."""

import re
import subprocess
import sys
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader

from datasets.frames import FrameDataset
from datasets.splits import read_split
from datasets.transforms import prepare
from experiments.comparisons import BASELINES, scores
from models import build_model
from retrieval.encode import build_encoder, encode
from utils.checkpoint import load_checkpoint

NEEDS = "frames"
FOLDS = ["1,6,11,16", "2,7,12,17", "3,8,13,18", "4,9,14,19", "5,10,15,20"]  # UT-Interaction's 20
CHANGES = {
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
    **{f"{n} epochs": f"--epochs {n}" for n in (50, 200)},
    "width 0.5": "--width 0.5",
    "16 frames": "--clip-frames 16",
    "16 bits": "--bits 16",
    **{f"{n} pixels": f"--size {n}" for n in (48, 64)},
    **{name: f"--backbone {name}" for name in ("resnet34", "r3d18", "c3d")},
    "shortcut A": "--shortcut A",
    "crops from 0.7": "--crop-scale 0.7 1.0",
    "crops of 0.95": "--crop-scale 0.95 0.95",
    "no flip": "--no-flip",
    "no colours": "--colour-jitter 0",
    "dropout 0.5": "--dropout 0.5",
}
"""Name -> flags of train.py beside those of --config; --names may join several by ` + `."""


def parts(args):
    """The folds that --folds names, as they stand in results.csv."""
    return [f"fold {fold}" for fold in args.folds]


def run(name, part, seed, args):
    """One setting, or one of BASELINES, with one seed on one fold: {"map", "map_real"}."""
    fold = int(part.split()[1])
    return (run_baseline if name in BASELINES else run_scripts)(name, seed, args, fold)


def run_scripts(name, seed, args, fold):
    """make_splits.py, train.py and test.py with the sequences of FOLDS[fold] as queries."""
    flags = " ".join([*(CHANGES[part] for part in name.split(" + ")), args.flags]).split()
    splits, folder = args.output / f"splits-{fold}", run_folder(name, seed, args, fold)
    scripts = [
        ["make_splits.py", "--dataset", "folder", "--frames", args.frames, "--output", splits,
         "--group-pattern", r"_(\d+)_", "--test-groups", FOLDS[fold], "--val-fraction", 0],
        ["train.py", "--config", args.config, "--frames", args.frames, "--splits", splits,
         "--output", folder, "--seed", seed, *flags],
        ["test.py", "--checkpoint", folder / "last.pt", "--pictures", 0],
    ]  # fmt: skip
    for script in scripts:
        subprocess.run([sys.executable, *map(str, script)], check=True, stdout=subprocess.DEVNULL)
    with np.load(folder / "test" / "codes.npz") as file:
        parts = ("query_codes", "query_labels", "database_codes", "database_labels")
        return scores(*(torch.from_numpy(file[part]) for part in parts))


def run_folder(name, seed, args, fold):
    return args.output / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{fold}-{seed}"


def run_baseline(name, seed, args, fold):
    """Codes, made without labels, of the features before the hash layer of the default's run."""
    checkpoint = load_checkpoint(run_folder("default", seed, args, fold) / "last.pt")
    model = build_model(**checkpoint["network"])
    model.load_state_dict(checkpoint["model"])
    preprocessing = checkpoint["preprocessing"]
    features, labels = [], []
    for part in ("test", "train"):
        split = args.output / f"splits-{fold}" / f"{part}.txt"
        names, ids = read_split(split, len(checkpoint["classes"]))
        clips = DataLoader(FrameDataset(names, ids, args.frames, preprocessing["clip_frames"]), 32)
        transform = partial(prepare, preprocessing=preprocessing)
        encoder = build_encoder(model.backbone, transform, torch.device("cpu"))
        features.append(encode(encoder, clips))
        labels.append(torch.tensor(ids))
    embed = BASELINES[name](features[1], checkpoint["network"]["bits"], seed)
    return scores(embed(features[0]), labels[0], embed(features[1]), labels[1])
