"""Figures of results: precision curves, and pictures of queries with what they found.

`results` is always {name: metrics}, with metrics from `retrieval.metrics.evaluate`: one curve per
name. Figures are made without pyplot, so they need no display and are freed with their last
reference; TensorBoard accepts them in `add_figure`.
"""

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from utils.errors import printable
from utils.files import atomic_write

RIGHT, WRONG, QUERY = "#1a7f37", "#cf222e", "#57606a"
LINE_STYLES = ("-", "--", ":")  # one for every ten curves, since there are ten default colours


# ==== precision curves ====


def plot_precision_recall(results, path):
    """Write `precision_recall_figure` to `path` as PNG."""
    save_png(precision_recall_figure(results), path)


def plot_precision_at(results, path):
    """Write `precision_at_figure` to `path` as PNG."""
    save_png(precision_at_figure(results), path)


def precision_recall_figure(results):
    """Plot precision against recall, one point per Hamming radius 0..K -> Figure.

    Recall is the mean over all queries. Precision is the mean over the queries that find an item
    within the radius: with all queries, small radii that find nothing would seem imprecise.
    """
    figure, axes = new_axes("Precision and recall by Hamming radius")
    for index, (name, metrics) in enumerate(results.items()):
        # the fraction of queries that find an item, from the first radius at which any query does
        nonempty = metrics["nonempty_by_radius"]
        first = next(radius for radius, fraction in enumerate(nonempty) if fraction > 0)
        means = metrics["precision_by_radius"][first:]  # with 0 where a query finds nothing
        precision = [mean / found for mean, found in zip(means, nonempty[first:], strict=True)]
        plot_curve(axes, index, metrics["recall_by_radius"][first:], precision, name, metrics)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("Recall (mean over queries)")
    axes.set_ylabel("Precision (mean over queries that find an item)")
    finish_axes(axes)
    return figure


def precision_at_figure(results):
    """Plot the precision of the first N items against N -> Figure.

    Precision is the expected value over all orders of tied items.
    """
    figure, axes = new_axes("Precision of the first N items")
    for index, (name, metrics) in enumerate(results.items()):
        depths, precision = metrics["precision_curve_n"], metrics["precision_curve"]
        plot_curve(axes, index, depths, precision, name, metrics)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("N, items retrieved (log scale)")
    axes.set_ylabel("Precision@N (mean over queries)")
    finish_axes(axes)
    return figure


def new_axes(title):
    """A new figure of 6.4 × 4.8 inches -> (figure, axes)."""
    figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_curve(axes, index, x, y, name, metrics):
    """Add curve number `index`, with a marker per point and the bits in its label."""
    style = LINE_STYLES[index // 10 % len(LINE_STYLES)]
    label = f"{printable(name)} ({metrics['bits']} bits)".replace("$", r"\$")  # not a formula
    axes.plot(x, y, style, color=f"C{index % 10}", marker="o", markersize=3, label=label)


def finish_axes(axes):
    """Set the precision axis to 0–1 and name the curves: in a legend, or one in the title."""
    axes.set_ylim(-0.02, 1.02)
    if len(axes.lines) > 1:
        axes.legend(fontsize="small")
    else:
        axes.set_title(f"{axes.get_title()}\n{axes.lines[0].get_label()}")


# ==== pictures of what queries found ====


def save_retrieval_picture(rows, path):
    """Write `retrieval_figure` to `path` as PNG."""
    title = "query, then its nearest by Hamming distance (bits)"
    save_png(retrieval_figure(rows, title), path)


def retrieval_figure(rows, title):
    """Draw each query and its nearest items in one row -> Figure.

    rows: list of rows. The first entry of a row is the query (frame, text), the others are its
    results (frame, text, is_right), framed green or red. frame: (H, W, 3) uint8 RGB.
    """
    columns = max(map(len, rows))
    figure = Figure(figsize=(1.25 * columns, 1.55 * len(rows) + 0.4), dpi=110, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, (frame, text, *is_right) in zip(axes_row, row, strict=False):
            colour = {(): QUERY, (True,): RIGHT, (False,): WRONG}[tuple(is_right)]
            draw_cell(axes, frame, text, colour)
        for axes in axes_row[len(row) :]:
            axes.set_axis_off()
    figure.suptitle(title, fontsize=9)
    return figure


def draw_cell(axes, frame, text, colour):
    """Show one frame with its text above, both in the colour of the verdict."""
    axes.imshow(frame)
    axes.set(xticks=[], yticks=[])
    axes.set_title(printable(text), fontsize=7, color=colour, parse_math=False)
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=3)


def save_png(figure, path):
    """Write a figure to `path` as PNG."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
