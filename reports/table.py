"""The results of `retrieval.metrics.evaluate` as a table for the terminal."""

PROTOCOL = {
    "queries": "queries",
    "database": "database",
    "bits": "bits",
    "top_r": "R",
    "queries_without_relevant": "queries without relevant items",
}
COMPARED = ("queries", "database", "top_r", "queries_without_relevant")
TITLES = {
    "map": "mAP",
    "map_at_r": "mAP@R ÷ min(R, relevant)",
    "map_at_r_found": "mAP@R ÷ found",
    "map_at_r_over_r": "mAP@R ÷ R",
    "r_precision": "R-precision",
    "precision_radius_2": "precision, radius 2",
}
LEGEND = """\
expected: mean over all orders of the items at equal distance; optimistic, pessimistic: relevant
items first, last among them; ambiguity: optimistic - pessimistic."""


def format_report(results):
    """{name: metrics of `evaluate`} -> text: the protocol, then a row for each metric and name.

    A row has the expectation over the order of tied items, the values with relevant items first and
    last in each tie, and their difference, which is how far the order of ties alone can move it.
    """
    lines = [protocol(name, metrics) for name, metrics in results.items()]
    different = [PROTOCOL[key] for key in COMPARED if len({m[key] for m in results.values()}) > 1]
    if different:
        lines.append(f"Warning: not comparable, different in {', '.join(different)}.")
    several = len(results) > 1
    header = ["metric"] + ["codes"] * several
    header += ["expected", "optimistic", "pessimistic", "ambiguity"]
    rows = []
    for key in ranked_keys(results):
        for index, (name, metrics) in enumerate(results.items()):
            if key not in metrics:
                continue
            title = title_of(key) if index == 0 else ""
            rows.append([title] + [name] * several + figures(metrics, key))
    lines += ["", *align([header, *rows]), ""]
    return "\n".join([*lines, LEGEND])


def protocol(name, metrics):
    """One line that says what was ranked against what."""
    return f"{name}: " + ", ".join(f"{text} {metrics[key]}" for key, text in PROTOCOL.items())


def ranked_keys(results):
    """The keys that have an optimistic and a pessimistic value, in the order of the results."""
    keys = [key for metrics in results.values() for key in metrics]
    return list(dict.fromkeys(key for key in keys if f"{key}_optimistic" in keys))


def title_of(key):
    """`precision_at_10` -> precision@10; others from TITLES."""
    return TITLES.get(key, key.replace("_at_", "@"))


def figures(metrics, key):
    """The four columns of one metric, as strings."""
    best, worst = metrics[f"{key}_optimistic"], metrics[f"{key}_pessimistic"]
    return [f"{value:.6f}" for value in (metrics[key], best, worst, best - worst)]


def align(rows):
    """Rows of strings -> lines: the columns of text to the left, the last four to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = len(widths) - 4
    return [
        "  ".join(
            cell.ljust(width) if index < numbers else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
