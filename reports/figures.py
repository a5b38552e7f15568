"""Precision-recall and precision@N plots of what `retrieval.metrics.evaluate` returns.

`results` is {name: metrics} throughout, a curve for each name. Figures are made without pyplot, so
that no display is needed and nothing stays open; TensorBoard takes them by `add_figure`.
"""

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from utils.files import atomic_write

RIGHT, WRONG, QUERY = "#1a7f37", "#cf222e", "#57606a"
STYLES = ("-", "--", ":")  # the next one with every round of the ten default colours


def plot_precision_recall(results, path):
    """Write the precision-recall plot of {name: metrics} to `path` as PNG, aside and renamed."""
    save(precision_recall_figure(results), path)


def plot_precision_at(results, path):
    """Write the precision@N plot of {name: metrics} to `path` as PNG, aside and renamed."""
    save(precision_at_figure(results), path)


def precision_recall_figure(results):
    """Precision against recall with a point for each Hamming radius 0..K -> Figure.

    Both are means over queries, precision over those that find an item inside the radius: else a
    small radius in which many queries find nothing would look like one that finds wrong items.
    """
    figure, axes = new_axes("Precision and recall by Hamming radius")
    for index, (name, metrics) in enumerate(results.items()):
        shares = metrics["nonempty_by_radius"]
        first = next(radius for radius, share in enumerate(shares) if share > 0)
        pairs = zip(metrics["precision_by_radius"][first:], shares[first:], strict=True)
        precision = [mean / share for mean, share in pairs]
        draw(axes, index, metrics["recall_by_radius"][first:], precision, name, metrics)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("Recall (mean over queries)")
    axes.set_ylabel("Precision (mean over queries that find an item)")
    finish(axes, results)
    return figure


def precision_at_figure(results):
    """Precision of the first N items against N, expected over the order of ties -> Figure."""
    figure, axes = new_axes("Precision of the first N items")
    for index, (name, metrics) in enumerate(results.items()):
        depths, precision = metrics["precision_curve_n"], metrics["precision_curve"]
        draw(axes, index, depths, precision, name, metrics)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("N, items retrieved (log scale)")
    axes.set_ylabel("Precision@N (mean over queries)")
    finish(axes, results)
    return figure


def new_axes(title):
    """A figure of 6.4 × 4.8 inches and its axes, with a light grid."""
    figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw(axes, index, x, y, name, metrics):
    """One curve with its points; its label gives the bits."""
    style = STYLES[index // 10 % len(STYLES)]
    label = f"{name} ({metrics['bits']} bits)"
    axes.plot(x, y, style, color=f"C{index % 10}", marker="o", markersize=3, label=label)


def finish(axes, results):
    """Precision from 0 to 1; a legend for several curves, else the label in the title."""
    axes.set_ylim(-0.02, 1.02)
    if len(results) > 1:
        axes.legend(fontsize="small")
    else:
        axes.set_title(f"{axes.get_title()}\n{axes.lines[0].get_label()}")


def save(figure, path):
    """Write `figure` to `path` as PNG."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def save_retrieval_picture(rows, path):
    """Draw each query and its nearest items in one row and write a PNG to `path`.

    rows: list of rows; the first entry of a row is the query as (frame, title), the others its
    results as (frame, title, is_right), framed green or red. frame: (H, W, 3) uint8 RGB.
    """
    columns = max(map(len, rows))
    figure = Figure(figsize=(1.25 * columns, 1.55 * len(rows) + 0.4), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for axis, cell in zip(line, row, strict=False):
            colour = QUERY if len(cell) == 2 else (RIGHT if cell[2] else WRONG)
            axis.imshow(cell[0])
            axis.set_title(cell[1], fontsize=7, color=colour, parse_math=False)
            for spine in axis.spines.values():
                spine.set(edgecolor=colour, linewidth=3)
        for axis in line:
            axis.set(xticks=[], yticks=[])
        for axis in line[len(row) :]:
            axis.set_axis_off()
    figure.suptitle("query, then its nearest by Hamming distance (bits)", fontsize=9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
