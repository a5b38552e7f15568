"""Metrics of `retrieval.metrics.evaluate` as a table for the terminal."""

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
    "map_at_r": "mAP@R ÷ min(R, relevant)",
    "map_at_r_found": "mAP@R ÷ found",
    "map_at_r_over_r": "mAP@R ÷ R",
    "r_precision": "R-precision",
    "precision_radius_2": "precision, radius 2",
}
COLUMNS = ["expected", "optimistic", "pessimistic", "ambiguity"]
LEGEND = """\
expected: mean over all orders of the items at equal distance; optimistic, pessimistic: relevant
items first or last among them; ambiguity: optimistic - pessimistic."""


def format_report(results):
    """{name: metrics} -> text: one line per name about the data, then a table of the metrics.

    The table has one row per metric and name. Its columns are the expected value over all orders
    of tied items, the value with relevant items first and last in each tie, and their difference.
    """
    lines = [describe_data(name, metrics) for name, metrics in results.items()]
    different = [PROTOCOL[key] for key in COMPARABLE if len({m[key] for m in results.values()}) > 1]
    if different:
        lines.append(f"Warning: not comparable: they differ in {', '.join(different)}.")
    return "\n".join([*lines, "", *align(table_rows(results)), "", LEGEND])


def describe_data(name, metrics):
    """One line: how many queries were searched in how many items, and how."""
    return f"{name}: " + ", ".join(f"{text} {metrics[key]}" for key, text in PROTOCOL.items())


def table_rows(results):
    """The header and one row per metric and name, with a column for the name if there are two."""
    names = len(results) > 1
    rows = [["metric", "codes", *COLUMNS] if names else ["metric", *COLUMNS]]
    first = next(iter(results))
    for key in metrics_with_ties(results):
        for name, metrics in results.items():
            if key in metrics:
                title = title_of(key) if name == first else ""
                labels = [title, name] if names else [title]
                rows.append(labels + format_values(metrics, key))
    return rows


def metrics_with_ties(results):
    """Keys of the metrics that have an optimistic and a pessimistic value, in their order."""
    keys = [key for metrics in results.values() for key in metrics]
    return list(dict.fromkeys(key for key in keys if f"{key}_optimistic" in keys))


def title_of(key):
    """The title of a metric: `precision_at_10` becomes precision@10, others are in TITLES."""
    return TITLES.get(key, key.replace("_at_", "@"))


def format_values(metrics, key):
    """The four columns of one metric, as strings."""
    best, worst = metrics[f"{key}_optimistic"], metrics[f"{key}_pessimistic"]
    return [f"{value:.6f}" for value in (metrics[key], best, worst, best - worst)]


def align(rows):
    """Rows of strings -> lines: labels aligned to the left, the numeric columns to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    labels = len(widths) - len(COLUMNS)
    lines = []
    for row in rows:
        cells = list(zip(row, widths, strict=True))
        left = [cell.ljust(width) for cell, width in cells[:labels]]
        right = [cell.rjust(width) for cell, width in cells[labels:]]
        lines.append("  ".join(left + right))
    return lines
