"""The experiments on clips: train.py and test.py on the frame folders of UT-Interaction."""

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
from experiments.comparisons import BASELINES, score
from models import build_model
from retrieval.encode import build_encoder, encode
from utils.checkpoint import load_checkpoint

# Sequences, of UT-Interaction's 20, that are the queries of each fold.
FOLDS = ("1,6,11,16", "2,7,12,17", "3,8,13,18", "4,9,14,19", "5,10,15,20")


def sweep(name, flag, values):
    """{name with each value: the flag with it}."""
    return {name.format(value): f"{flag} {value}" for value in values}


# Name -> flags of train.py besides --config; --names may combine several as "A + B".
SETTINGS = {
    "default": "",
    "RGB": "--input rgb",
    "one view": "--views 1",
    "56 pixels": "--size 56",
    "reference method": "--distance squared --margin 20 --average valid --batches random",
    "its SGD": "--optimizer sgd --lr 0.001 --weight-decay 0.0005 --schedule step --warmup-epochs 0 "
    "--clip-gradient 0",
    "margin K/4": "--margin 16.0",
    "margin K/16": "--margin 4.0",
    "mean over valid triplets": "--average valid",
    "random batches": "--batches random",
    "batch-hard": "--mining batch-hard",
    "SGD 0.05": "--optimizer sgd --lr 0.05 --weight-decay 0.0005",
    **sweep("learning rate {}", "--lr", (0.0005, 0.002)),
    **sweep("{} epochs", "--epochs", (50, 200)),
    "width 0.5": "--width 0.5",
    "16 frames": "--clip-frames 16",
    "16 bits": "--bits 16",
    **sweep("{} pixels", "--size", (48, 64)),
    **sweep("{}", "--backbone", ("resnet34", "r3d18", "c3d")),
    "shortcut A": "--shortcut A",
    "crops from 0.7": "--crop-scale 0.7 1.0",
    "crops of 0.95": "--crop-scale 0.95 0.95",
    "no flip": "--no-flip",
    "no colours": "--colour-jitter 0",
    "dropout 0.5": "--dropout 0.5",
}


def splits(args):
    """The folds of --folds."""
    return [f"fold {fold}" for fold in args.folds]


def run(name, split, seed, args):
    """{"map", "map_real"} of a setting, or of one of BASELINES, with one seed on one fold."""
    fold = int(split.split()[1])
    return (run_baseline if name in BASELINES else run_scripts)(name, fold, seed, args)


def run_folder(name, fold, seed, args):
    return args.output / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{fold}-{seed}"


def run_script(*arguments):
    command = [sys.executable, *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def run_scripts(name, fold, seed, args):
    """make_splits.py, train.py and test.py with the sequences of FOLDS[fold] as queries."""
    splits, folder = args.output / f"splits-{fold}", run_folder(name, fold, seed, args)
    data = ["--frames", args.frames, "--output", splits]
    groups = ["--group-pattern", r"_(\d+)_", "--test-groups", FOLDS[fold], "--val-fraction", 0]
    run_script("make_splits.py", "--dataset", "folder", *data, *groups)
    flags = " ".join([*(SETTINGS[change] for change in name.split(" + ")), args.flags]).split()
    data = ["--frames", args.frames, "--splits", splits, "--output", folder, "--seed", seed]
    run_script("train.py", "--config", args.config, *data, *flags)
    run_script("test.py", "--checkpoint", folder / "last.pt", "--pictures", 0)
    with np.load(folder / "test" / "codes.npz") as file:
        keys = ("query_codes", "query_labels", "database_codes", "database_labels")
        return score(*(torch.from_numpy(file[key]) for key in keys))


def run_baseline(name, fold, seed, args):
    """Codes made without labels, of the features before the hash layer of the default's model."""
    checkpoint = load_checkpoint(run_folder("default", fold, seed, args) / "last.pt")
    model = build_model(**checkpoint["network"])
    model.load_state_dict(checkpoint["model"])
    preprocessing = checkpoint["preprocessing"]
    transform = partial(prepare, preprocessing=preprocessing)
    encoder = build_encoder(model.backbone, transform, torch.device("cpu"))
    features, labels = {}, {}
    for split in ("test", "train"):
        path = args.output / f"splits-{fold}" / f"{split}.txt"
        names, ids = read_split(path, len(checkpoint["classes"]))
        clips = DataLoader(FrameDataset(names, ids, args.frames, preprocessing["clip_frames"]), 32)
        features[split], labels[split] = encode(encoder, clips), torch.tensor(ids)
    embed = BASELINES[name](features["train"], checkpoint["network"]["bits"], seed)
    queries, database = embed(features["test"]), embed(features["train"])
    return score(queries, labels["test"], database, labels["train"])
