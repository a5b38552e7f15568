r"""Codes without labels, for classes that the backbone has not seen.

    python -m experiments.label_free --frames frames --output results/label_free

A backbone is trained on three classes of UT-Interaction's sequences 1-10. The
videos of the three other classes in sequences 11-20 are the folder of somebody
who has no labels: the hash layer is fitted to them all. Each half of them then
searches in the other one, and mAP is the mean of both. Every seed takes other
classes for training. frames: UT-Interaction by extract_frames.py --size 64 64.
"""

import csv
import io
import re
from functools import partial
from pathlib import Path

import numpy as np
import torch

from datasets.frames import FrameDataset
from datasets.loaders import ClipLoader
from datasets.transforms import prepare
from experiments.clips import run_script
from experiments.comparisons import hyperplanes, itq, real_map
from models import build_model
from retrieval.codes import binarize
from retrieval.encode import build_encoder, encode
from retrieval.metrics import evaluate
from utils.argtypes import number
from utils.checkpoint import load_checkpoint
from utils.config import Parser
from utils.files import write_text

BITS = (8, 16, 24)  # below the 30 videos


def divide(frames, seed):
    """The videos to train on and without labels, by another choice of classes for each seed.

    Returns (training videos, their classes, videos without labels, (N,) 0 or 1, the half of each
    of those).
    """
    names = sorted(f"{path.parent.name}/{path.name}" for path in Path(frames).glob("*/*"))
    names = [name for name in names if (Path(frames) / name).is_dir()]
    classes = sorted({name.split("/")[0] for name in names})
    seen = np.random.default_rng(seed).permutation(classes)[:3].tolist()
    sequence = {name: int(re.search(r"_(\d+)_", name)[1]) for name in names}
    training = [n for n in names if n.split("/")[0] in seen and sequence[n] <= 10]
    unlabelled = [n for n in names if n.split("/")[0] not in seen and sequence[n] > 10]
    halves = torch.tensor([sequence[name] % 2 for name in unlabelled])
    return training, seen, unlabelled, halves


def train_backbone(frames, training, seen, folder, seed):
    """Train configs/folder.yaml on the videos `training`; returns the checkpoint."""
    lines = [f"{name} {seen.index(name.split('/')[0])}\n" for name in training]
    for name, text in (("train", "".join(lines)), ("val", ""), ("test", "")):
        write_text(folder / "splits" / f"{name}.txt", text)
    write_text(folder / "splits" / "classes.txt", "".join(f"{name}\n" for name in seen))
    data = ["--frames", frames, "--splits", folder / "splits", "--output", folder / "run"]
    flags = ["--classes-per-batch", 3, "--clips-per-class", 10, "--seed", seed]
    run_script("train.py", "--config", "configs/folder.yaml", *data, *flags)
    return load_checkpoint(folder / "run" / "last.pt")


def encode_features(model, preprocessing, names, args):
    """The features (N, D) of the frame folders `names`."""
    transform = partial(prepare, preprocessing=preprocessing)
    encoder = build_encoder(model.backbone, transform, torch.device("cpu"))
    dataset = FrameDataset(names, [0] * len(names), args.frames, preprocessing["clip_frames"])
    return encode(encoder, ClipLoader(dataset, 0, batch_size=32))


def measure(outputs, labels, halves, by=None):
    """mAP (%) where each half searches in the other: by Hamming distance, or by function `by`."""
    scores = []
    for half in (0, 1):
        queries, database = halves == half, halves != half
        sides = outputs[queries], labels[queries], outputs[database], labels[database]
        if by:
            scores.append(by(*sides))
        else:
            codes = binarize(sides[0]), sides[1], binarize(sides[2]), sides[3]
            scores.append(evaluate(*codes)["map"])
    return sum(scores) / 2


def run(seed, args):
    """{way of encoding: mAP} for one seed."""
    training, seen, unlabelled, halves = divide(args.frames, seed)
    checkpoint = train_backbone(args.frames, training, seen, args.output / str(seed), seed)
    classes = sorted({name.split("/")[0] for name in unlabelled})
    labels = torch.tensor([classes.index(name.split("/")[0]) for name in unlabelled])
    torch.manual_seed(seed)
    model = build_model(**checkpoint["network"])
    scores = {}
    for name in ("untrained", "trained"):
        features = encode_features(model, checkpoint["preprocessing"], unlabelled, args)
        centred = torch.nn.functional.normalize(features - features.mean(0))
        scores[f"{name}, cosine of the centred features"] = measure(
            centred, labels, halves, by=real_map
        )
        for bits in BITS:
            for way in (itq, hyperplanes):
                outputs = way(features, bits, seed)(features)
                scores[f"{name}, {way.__name__}, {bits} bits"] = measure(outputs, labels, halves)
        model.load_state_dict(checkpoint["model"])
    return scores


def main():
    parser = Parser(__doc__)
    parser.add("--frames", required=True, type=Path, help="frame folders of UT-Interaction")
    parser.add("--output", required=True, type=Path, help="folder for results and runs")
    parser.add("--seeds", type=number(int, least=1), default=5, help="number of runs")
    args = parser.parse_args()
    runs = [run(seed, args) for seed in range(args.seeds)]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["setting", "map", "map_std", "runs"])
    for name in runs[0]:
        scores = np.array([scores[name] for scores in runs])
        deviation = f"{scores.std(ddof=1):.4f}" if len(scores) > 1 else ""
        writer.writerow([name, f"{scores.mean():.4f}", deviation, len(scores)])
    write_text(args.output / "summary.csv", table.getvalue())
    print(table.getvalue(), end="")


if __name__ == "__main__":
    main()
