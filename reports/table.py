"""Metrics of `retrieval.metrics.evaluate` as text for the terminal. `results`: {name: metrics}."""

import textwrap

from utils.errors import printable

COLUMNS = 80  # of the terminal
MOST_LETTERS = 24  # of a name above a column
PROTOCOL = {  # keys of the metrics that say what was searched in what
    "queries": "queries",
    "database": "database",
    "bits": "bits",
    "top_r": "R",
    "queries_without_relevant": "queries without relevant items",
}
COMPARABLE = ("queries", "database", "top_r", "queries_without_relevant")  # must be equal
TITLES = {
    "map": "mAP",
    "map_at_{r}": "mAP@{r} ÷ min({r}, relevant)",
    "map_at_{r}_found": "mAP@{r} ÷ found",
    "map_at_{r}_over_r": "mAP@{r} ÷ {r}",
    "r_precision": "R-precision",
    "precision_radius_2": "precision, radius 2",
}
ALL_COLUMNS = ["expected", "optimistic", "pessimistic", "ambiguity"]
LEGEND = """\
expected: mean over all orders of the items at equal distance; optimistic, pessimistic: relevant
items first or last among them; ambiguity: optimistic - pessimistic."""
WEAKEST = 3  # classes to name


# ==== the metrics that a reader wants ====


def format_summary(results):
    """The protocol, a table with a column per name, and the weakest classes, in 80 columns."""
    rows = summary_rows(results)
    return "\n".join([*describe_protocol(results), "", *in_blocks(rows), "", *weakest(results)])


def describe_protocol(results):
    """One line about the data, if all names have the same; else one per name and a warning."""
    different = different_keys(results)
    if different:
        lines = [describe_data(name, metrics) for name, metrics in results.items()]
        return [*lines, f"Warning: not comparable: they differ in {', '.join(different)}."]
    metrics = next(iter(results.values()))
    bits = " and ".join(map(str, sorted({m["bits"] for m in results.values()})))
    line = f"{metrics['queries']} queries, {metrics['database']} database items, {bits} bits"
    if missing := metrics["queries_without_relevant"]:
        line += f"; {missing} queries without relevant items count as 0"
    return textwrap.wrap(line, COLUMNS)


def summary_rows(results):
    """Rows of strings: title, chance, and each name. A value that a name lacks is empty."""
    first = next(iter(results.values()))
    keys = {"map": "chance_map", f"map_at_{first['top_r']}": f"chance_map_at_{first['top_r']}"}
    keys |= dict.fromkeys(("precision_at_1", "precision_at_10"), "chance_precision")
    rows = [["", "chance", *map(shorten, results)]]
    for key, chance in keys.items():
        cells = [format_value(metrics.get(key)) for metrics in results.values()]
        rows.append([title_of(key, first["top_r"]), format_value(first[chance]), *cells])
        if key == "map":
            ties = [
                f"{m['map_pessimistic']:.4f}–{m['map_optimistic']:.4f}" for m in results.values()
            ]
            rows.append(["  by the order of ties", "", *ties])
    return rows


def format_value(value):
    return "" if value is None else f"{value:.4f}"


def shorten(name):
    """A name of at most MOST_LETTERS: its end."""
    return name if len(name) <= MOST_LETTERS else "…" + name[1 - MOST_LETTERS :]


def in_blocks(rows):
    """Aligned lines; columns that do not fit into the terminal follow below, with the titles."""
    titles, *columns = zip(*rows, strict=True)
    lines, block = [], [titles]
    for column in columns:
        width = sum(max(map(len, cells)) + 2 for cells in [*block, column]) - 2
        if width > COLUMNS:
            lines += [*align(list(zip(*block, strict=True)), labels=1), ""]
            block = [titles]
        block.append(column)
    return lines + align(list(zip(*block, strict=True)), labels=1)


def weakest(results):
    """The classes with the lowest mAP, one line per name, but not of untrained networks."""
    lines = []
    trained = {k: v for k, v in results.items() if not k.endswith("untrained")} or results
    for name, metrics in trained.items():
        scores = sorted(metrics["map_per_class"].items(), key=lambda item: item[1])[:WEAKEST]
        shown = ", ".join(f"{printable(label)} {score:.2f}" for label, score in scores)
        of_name = f" of {shorten(name)}" if len(trained) > 1 else ""
        lines += textwrap.wrap(f"Lowest mAP by class{of_name}: {shown}", COLUMNS)
    return lines


# ==== all metrics ====


def format_report(results):
    """A line per name about the data, then a table of all metrics, with a row per name.

    The columns are the expected value over all orders of tied items, the value with relevant items
    first and last in each tie, and their difference.
    """
    lines = [describe_data(name, metrics) for name, metrics in results.items()]
    if different := different_keys(results):
        lines.append(f"Warning: not comparable: they differ in {', '.join(different)}.")
    labels = 1 + (len(results) > 1)
    return "\n".join([*lines, "", *align(table_rows(results), labels), "", LEGEND])


def different_keys(results):
    """Titles of the parts of the protocol in which the names differ."""
    return [PROTOCOL[key] for key in COMPARABLE if len({m[key] for m in results.values()}) > 1]


def describe_data(name, metrics):
    """One line: how many queries were searched in how many items, and how."""
    return f"{name}: " + ", ".join(f"{text} {metrics[key]}" for key, text in PROTOCOL.items())


def table_rows(results):
    """The header and one row per metric and name, with a column for the name if there are two."""
    names = len(results) > 1
    rows = [["metric", "codes", *ALL_COLUMNS] if names else ["metric", *ALL_COLUMNS]]
    for key in metrics_with_ties(results):
        having = {name: metrics for name, metrics in results.items() if key in metrics}
        for name, metrics in having.items():
            title = title_of(key, metrics["top_r"]) if name == next(iter(having)) else ""
            labels = [title, name] if names else [title]
            rows.append(labels + format_values(metrics, key))
    return rows


def metrics_with_ties(results):
    """Keys of the metrics that have an optimistic and a pessimistic value, in their order."""
    keys = [key for metrics in results.values() for key in metrics]
    return list(dict.fromkeys(key for key in keys if f"{key}_optimistic" in keys))


def title_of(key, top_r):
    """The title of a metric: `precision_at_10` becomes precision@10, others are in TITLES."""
    titles = {name.format(r=top_r): title.format(r=top_r) for name, title in TITLES.items()}
    return titles.get(key, key.replace("_at_", "@"))


def format_values(metrics, key):
    """The four columns of one metric, as strings."""
    best, worst = metrics[f"{key}_optimistic"], metrics[f"{key}_pessimistic"]
    return [f"{value:.6f}" for value in (metrics[key], best, worst, best - worst)]


def align(rows, labels):
    """Rows of strings -> lines: the first `labels` columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = list(zip(row, widths, strict=True))
        left = [cell.ljust(width) for cell, width in cells[:labels]]
        right = [cell.rjust(width) for cell, width in cells[labels:]]
        lines.append("  ".join(left + right).rstrip())
    return lines
