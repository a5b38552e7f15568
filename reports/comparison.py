"""A network beside retrieval without learning, as text for the terminal."""

import textwrap

from utils.errors import printable

COLUMNS = 80
MOST_CLASSES = 10  # of which there are rows: the worst
MOST_LETTERS = 22  # of the name of a class
NAMES = ("network", "95 % interval", "motion energy", "raw frames")


def format_comparison(comparison, has_recordings):
    """A table of precision@1, and a warning where the network is no better than a baseline.

    comparison: of `retrieval.baselines.compare`. has_recordings: whether recordings are known.
    """
    total = comparison["all"]
    unit = f"the {total['recordings']} recordings" if has_recordings else "the queries"
    title = (
        "Precision@1, the class of the nearest video, beside that of nearest neighbours on simple "
        f"features without learning. Intervals: bootstrap over {unit}."
    )
    classes = {name: row for name, row in comparison.items() if name != "all"}
    worst = sorted(classes, key=lambda name: classes[name]["precision_at_1"]["network"])
    rows = [("", "queries", *NAMES), ("all", *cells(total, "precision_at_1"))]
    rows += [
        (shorten(name), *cells(classes[name], "precision_at_1")) for name in worst[:MOST_CLASSES]
    ]
    rows.append(("mAP, all", *cells(total, "map")))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [*textwrap.wrap(title, COLUMNS), ""]
    for first, *others in rows:
        aligned = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *aligned]))
    if len(worst) > MOST_CLASSES:
        lines.append(f"{len(worst) - MOST_CLASSES} other classes are better, see metrics.json.")
    return "\n".join([*lines, *warn(total)])


def cells(row, metric):
    """The values of a row as text, in the order of NAMES."""
    values = row[metric]
    low_high = "–".join(f"{x:.2f}" for x in values["interval"]) if values["interval"] else "one"
    numbers = [f"{values[name]:.2f}" for name in ("network", "motion energy", "raw frames")]
    return str(row["queries"]), numbers[0], low_high, *numbers[1:]


def shorten(name):
    name = printable(name.removeprefix("class "))
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"


def warn(row):
    """Lines that say where the network does not beat a baseline; none if it does."""
    values = row["precision_at_1"]
    better = [name for name in NAMES[2:] if values[name] >= values["network"]]
    if not better:
        return []
    shown = " and ".join(f"{name} ({values[name]:.2f})" for name in better)
    text = (
        f"Warning: the network ({values['network']:.2f}) is not better than {shown}, which needs "
        "no training. It has learnt too little for new recordings: use more recordings per class, "
        "or try --input motion."
    )
    return ["", *textwrap.wrap(text, COLUMNS)]
