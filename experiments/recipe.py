r"""Compare settings of the loss, the batches, the codes, the network and the input.

    python -m experiments.recipe features --output results/features \
        --features ucf101_vgg16_14classes.npz
    python -m experiments.recipe clips --output results/clips --frames frames

"features" trains only the hash layer, in seconds per run, on features of real
UCF101 videos (.npz with features, labels, is_train, names). Queries are the test
videos of groups 1 to 3 to choose settings, and with --splits final those of
groups 4 to 7 to report them. "clips" runs train.py and test.py on the frame
folders of UT-Interaction, with every fifth sequence as queries.

Each run is a line of results.csv in --output, and runs found there are not
repeated. summary.csv has the mean of each setting and its difference from the
default over the same runs. docs/results.md discusses the results.
"""

import csv
import io
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments import clips, features
from experiments.comparisons import BASELINES
from utils.argtypes import number
from utils.config import Parser
from utils.errors import UserError, exit_on_user_error
from utils.files import write_text

# Each module has SETTINGS (name -> changes), splits(args) and run(name, split, seed, args).
EXPERIMENTS = {"features": features, "clips": clips}
RESULT_FIELDS = ["setting", "split", "seed", "map", "map_real", "seconds"]
SUMMARY_FIELDS = ["setting", "map", "map_std", "map_real", "gain", "gain_error", "runs"]


# ==== results ====


def read_results(path):
    """The rows of results.csv, as dicts of str; none if it does not exist."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != RESULT_FIELDS:
            raise UserError(f"{path}: expected the columns {', '.join(RESULT_FIELDS)}")
        return list(reader)


def append_result(path, row):
    """Write one run to results.csv; with a header if the file is new."""
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, RESULT_FIELDS)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def summarise(rows, baseline="default"):
    """One row per setting, best first, with the keys SUMMARY_FIELDS and values as str.

    map, map_real: means over the runs; map_std: standard deviation. gain: mean difference from the
    runs of `baseline` with the same split and seed; gain_error: its standard error.
    """
    found = defaultdict(dict)  # setting -> {(split, seed): (map, map_real)}
    for row in rows:
        values = float(row["map"]), float(row["map_real"] or "nan")
        found[row["setting"]][row["split"], row["seed"]] = values
    means = {setting: np.mean(list(runs.values()), axis=0) for setting, runs in found.items()}
    summary = []
    for setting in sorted(found, key=lambda setting: -means[setting][0]):
        runs = found[setting]
        common = runs.keys() & found.get(baseline, {}).keys() if setting != baseline else ()
        gains = [runs[key][0] - found[baseline][key][0] for key in common]
        mean, mean_real = means[setting]
        row = {
            "setting": setting,
            "map": f"{mean:.4f}",
            "map_std": format_deviation([value for value, _ in runs.values()]),
            "map_real": "" if np.isnan(mean_real) else f"{mean_real:.4f}",
            "gain": f"{np.mean(gains):+.4f}" if len(gains) > 1 else "",
            "gain_error": format_deviation(gains, divisor=len(gains) ** 0.5),
            "runs": str(len(runs)),
        }
        summary.append(row)
    return summary


def format_deviation(values, divisor=1):
    """Standard deviation over `divisor`; empty for a single value."""
    return f"{statistics.stdev(values) / divisor:.4f}" if len(values) > 1 else ""


def write_summary(path, summary):
    table = io.StringIO()
    writer = csv.DictWriter(table, SUMMARY_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(summary)
    write_text(path, table.getvalue())


def print_summary(summary):
    width = max(len(row["setting"]) for row in summary)
    form = "{:<" + str(width) + "} {:>7} {:>7} {:>8} {:>8} {:>10} {:>5}"
    for row in [{field: field for field in SUMMARY_FIELDS}, *summary]:
        print(form.format(*row.values()))


# ==== runs ====


def parse_flags():
    parser = Parser(__doc__)
    on_features = parser.command("features", "train the hash layer on features of UCF101 videos")
    on_clips = parser.command("clips", "run train.py and test.py on UT-Interaction")
    for command in (on_features, on_clips):
        command.add("--output", type=Path, required=True, help="folder for results and runs")
    on_features.add("--features", required=True, help=".npz of features, labels, is_train, names")
    splits = {"choices": features.SPLITS, "nargs": "+", "default": ["choice"]}
    help_splits = "queries: test videos of groups 1 to 3 (choice), of the others (final), or all"
    on_features.add("--splits", **splits, help=help_splits)
    on_clips.add("--frames", required=True, help="frame folders of UT-Interaction")
    config = "configs/folder.yaml"
    on_clips.add("--config", default=config, help="config of train.py")
    on_clips.add("--flags", default="", help="flags of train.py for all runs: '--cache disk'")
    fold = number(int, least=0, most=4)
    folds = list(range(5))
    on_clips.add("--folds", type=fold, nargs="+", default=folds, metavar="N", help="which folds")
    for command in (on_features, on_clips):
        command.add("--names", nargs="+", help="settings, combined by ' + '; all if not given")
        command.add("--seeds", type=number(int, least=1), default=5, help="runs of each setting")
    args = parser.parse_args()
    settings = [*EXPERIMENTS[args.command].SETTINGS, *BASELINES]
    args.names = args.names or settings
    for name in " + ".join(args.names).split(" + "):
        if name not in settings:
            parser.error(f"--names: unknown setting {name!r}; choose from {', '.join(settings)}")
    return args


def main():
    args = parse_flags()
    experiment = EXPERIMENTS[args.command]
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "results.csv"
    splits = experiment.splits(args)
    done = {(row["setting"], row["split"], row["seed"]) for row in read_results(path)}
    runs = [(n, split, seed) for seed in range(args.seeds) for n in args.names for split in splits]
    left = [(n, split, seed) for n, split, seed in runs if (n, split, str(seed)) not in done]
    for name, split, seed in tqdm(left, unit="run"):
        started = time.perf_counter()
        scores = experiment.run(name, split, seed, args)
        seconds = round(time.perf_counter() - started, 1)
        row = {"setting": name, "split": split, "seed": seed, "seconds": seconds}
        append_result(path, row | scores)
    rows = read_results(path)
    tables = {split: [split] for split in splits} if args.command == "features" else {"": splits}
    for title, shown in tables.items():
        summary = summarise([row for row in rows if row["split"] in shown])
        write_summary(args.output / f"summary{title and '_'}{title}.csv", summary)
        print_summary(summary)


if __name__ == "__main__":
    with exit_on_user_error("recipe.py", "--seeds"):
        main()
