"""Which loss, sampling and code settings retrieve best: settings x seeds -> results.csv, a table.

    python -m experiments.recipe features --features ucf101_vgg16_14classes.npz --output results
    python -m experiments.recipe clips --frames frames --output results

The first trains the hash layer alone on features of real UCF101 videos (arrays features, labels,
is_train, names), seconds a run, one change at a time from the default, and measures on
every fifth UCF101 group of the training videos, a fifth for each seed; --final trains on all of
them and measures on the test videos. The second runs train.py and test.py on frame folders, with
every fifth sequence of UT-Interaction as queries. A run that is already in results.csv is not
repeated. RESULTS.md holds what came out.
"""

import argparse
import csv
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks import recipe_clips, recipe_features
from experiments.comparisons import BASELINES

KINDS = {"features": recipe_features, "clips": recipe_clips}
"""Name -> module of NEEDS (a flag), CHANGES (settings), parts(args) and run(name, part, ...)."""


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
        found = defaultdict(dict)
        for row in self.rows:
            if row["part"].startswith(part):
                pair = float(row["map"]), float(row["map_real"] or "nan")
                found[row["name"]][row["part"], row["seed"]] = pair
        lines = ["| setting | mAP | ± | real-valued | against the default | runs |"]
        lines.append("|---|---|---|---|---|---|")
        means = {name: np.mean(list(runs.values()), axis=0) for name, runs in found.items()}
        for name in sorted(found, key=lambda name: -means[name][0]):
            runs = found[name]
            common = runs.keys() & found.get(baseline, {}).keys() if name != baseline else ()
            gains = [runs[key][0] - found[baseline][key][0] for key in common]
            real = "" if np.isnan(means[name][1]) else f"{means[name][1]:.4f}"
            deviation = spread([value for value, _ in runs.values()])
            gain = f"{np.mean(gains):+.4f} ± {spread(gains, len(gains))}" if len(gains) > 1 else ""
            mean = f"{means[name][0]:.4f}"
            lines.append(f"| {name} | {mean} | {deviation} | {real} | {gain} | {len(runs)} |")
        return lines


def spread(values, runs=1):
    """Standard deviation, or standard error of the mean of several runs: text; "" of one value."""
    return f"{statistics.stdev(values) / runs**0.5:.4f}" if len(values) > 1 else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("kind", choices=KINDS)
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
    kind = KINDS[args.kind]
    if getattr(args, kind.NEEDS) is None:
        parser.error(f"{args.kind} needs --{kind.NEEDS}")
    settings = {**kind.CHANGES, **BASELINES}
    names, parts = args.names or list(settings), kind.parts(args)
    for change in " + ".join(names).split(" + "):
        if change not in settings:
            parser.error(f"--names: {change!r} is none of {', '.join(settings)}")
    args.output.mkdir(parents=True, exist_ok=True)
    results = Results(args.output / "results.csv")
    jobs = [(n, part, seed) for seed in range(args.seeds) for part in parts for n in names]
    for name, part, seed in tqdm([job for job in jobs if not results.has(*job)], unit="run"):
        started = time.perf_counter()
        row = kind.run(name, part, seed, args)
        seconds = round(time.perf_counter() - started, 1)
        results.add(name=name, part=part, seed=seed, seconds=seconds, **row)
    print("\n".join(results.table(parts[0].split()[0])))


if __name__ == "__main__":
    main()
