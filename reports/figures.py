"""Precision curves, ready for a paper.

`results` is always {name: metrics}, with metrics from `retrieval.metrics.evaluate`, and optionally
the bands of `retrieval.bootstrap.confidence_bands`: one curve per name. Figures are made without
pyplot, so they need no display and are freed with their last reference; TensorBoard accepts them
in `add_figure`.

Colours: M. Okabe, K. Ito, "Color Universal Design", 2008, https://jfly.uni-koeln.de/color/
"""

import math
from itertools import cycle

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from utils.errors import printable
from utils.files import atomic_write

FORMATS = ("png", "pdf", "svg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X<>h"  # no multiple of the colours: 77 different curves
CHANCE = "#767676"


def plot_precision_recall(results, path):
    """Write `precision_recall_figure` to `path`, in the format of its name."""
    save_figure(precision_recall_figure(results), path)


def plot_precision_at(results, path):
    """Write `precision_at_figure` to `path`, in the format of its name."""
    save_figure(precision_at_figure(results), path)


def precision_recall_figure(results):
    """Plot precision against recall, one point per Hamming radius 0..K -> Figure.

    Recall is the mean over all queries. Precision is the mean over the queries that find an item
    within the radius: with all queries, small radii that find nothing would seem imprecise.
    """
    figure, axes = new_axes("Precision and recall by Hamming radius", results)
    for style, name, metrics in styled(results):
        x, y = metrics["recall_by_radius"], "precision_found_by_radius"
        plot_curve(axes, x, metrics, y, style, label_of(name, metrics, results))
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("Recall (mean over queries)")
    axes.set_ylabel("Precision (mean over queries that find an item)")
    finish_axes(axes, results)
    return figure


def precision_at_figure(results):
    """Plot the precision of the first N items against N -> Figure.

    Precision is the expected value over all orders of tied items.
    """
    figure, axes = new_axes("Precision of the first N items", results)
    for style, name, metrics in styled(results):
        x, y = metrics["precision_curve_n"], "precision_curve"
        plot_curve(axes, x, metrics, y, style, label_of(name, metrics, results))
    most = max(metrics["precision_curve_n"][-1] for metrics in results.values())
    axes.set_xscale("log")
    axes.set_xlim(0.95, max(most, 2) * 1.05)
    axes.xaxis.set_major_locator(FixedLocator(round_numbers(most)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.set_xlabel("N, items retrieved (log scale)")
    axes.set_ylabel("Precision@N (mean over queries)")
    finish_axes(axes, results)
    return figure


def round_numbers(most):
    """1, 10, 100 and so on up to `most`; with 2 and 5 between them if those are fewer than 3."""
    powers = [10**k for k in range(int(math.log10(max(most, 1))) + 1)]
    if len(powers) >= 3:
        return powers
    return [digit * power for power in powers for digit in (1, 2, 5) if digit * power <= most]


def new_axes(title, results):
    """A new figure of 6.4 × 4.8 inches, with the protocol below its title -> (figure, axes)."""
    figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    figure.suptitle(title)
    axes.set_title(protocol(results), fontsize="small", color="#555555")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def protocol(results):
    """What was searched in what: one line for all curves, if it is the same for all."""
    sizes = {(metrics["queries"], metrics["database"]) for metrics in results.values()}
    if len(sizes) > 1:
        return "curves of different queries or databases: not comparable"
    queries, database = sizes.pop()
    band = any("precision_curve_low" in metrics for metrics in results.values())
    shades = "; shaded: 95 % bootstrap interval over queries" if band else ""
    return f"{queries:,} queries, {database:,} database items, ties exact{shades}"


def styled(results):
    """(style, name, metrics) of each curve, best first, each with a colour and marker of its own.

    The style belongs to the place in `results`, so that it is the same in both figures.
    """
    looks = zip(cycle(COLOURS), cycle(MARKERS))  # endless
    curves = [
        ({"color": colour, "marker": marker}, name, metrics)
        for (colour, marker), (name, metrics) in zip(looks, results.items(), strict=False)
    ]
    return sorted(curves, key=lambda curve: -curve[2]["map"])


def label_of(name, metrics, results):
    """The legend of a curve: its name, if there are several, bits and mAP."""
    text = f"{metrics['bits']} bits, mAP {metrics['map']:.2f}"
    text = f"{printable(name)}, {text}" if len(results) > 1 else text
    return text.replace("$", r"\$")  # not a formula


def plot_curve(axes, x, metrics, key, style, label):
    """Add a curve of metrics[key], without points that are None, and its band if there is one."""
    shown = [i for i, value in enumerate(metrics[key]) if value is not None]
    x, y = [x[i] for i in shown], [metrics[key][i] for i in shown]
    few = max(1, len(shown) // 12)
    axes.plot(x, y, label=label, linewidth=1.6, markersize=4.5, markevery=few, **style)
    if f"{key}_low" in metrics:
        low, high = ([metrics[f"{key}_{end}"][i] for i in shown] for end in ("low", "high"))
        none = float("nan")  # no query of a sample found an item
        low, high = ([none if value is None else value for value in end] for end in (low, high))
        axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)


def finish_axes(axes, results):
    """Add chance and the legend, and set the precision axis to 0–1."""
    for chance in sorted({metrics["chance_precision"] for metrics in results.values()})[:1]:
        axes.axhline(chance, color=CHANCE, linestyle="--", linewidth=1, label="chance", zorder=1)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(fontsize="small", framealpha=0.9)


def save_figure(figure, path):
    """Write a figure to `path`; the same figure gives the same bytes."""
    options = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "figure"}
    date = {"png": None, "pdf": "CreationDate", "svg": "Date"}[path.suffix[1:]]
    with atomic_write(path) as temporary, rc_context(options):
        metadata = {date: None} if date else None
        figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
