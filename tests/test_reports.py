"""Tables and figures of made-up metrics."""

import numpy as np

from reports.figures import RIGHT, WRONG, precision_recall_figure, retrieval_figure
from reports.table import format_report

METRICS = {
    "queries": 3,
    "database": 10,
    "bits": 2,
    "top_r": 5,
    "queries_without_relevant": 0,
    "map": 0.5,
    "map_optimistic": 0.75,
    "map_pessimistic": 0.25,
    "precision_at_10": 0.125,
    "precision_at_10_optimistic": 0.125,
    "precision_at_10_pessimistic": 0.125,
    "recall_by_radius": [0.0, 0.2, 1.0],
    "precision_by_radius": [0.0, 0.25, 0.3],
    "nonempty_by_radius": [0.0, 0.5, 1.0],
}


def test_table_of_one_result():
    lines = format_report({"ours": METRICS}).splitlines()
    assert lines[:5] == [
        "ours: queries 3, database 10, bits 2, R 5, queries without relevant items 0",
        "",
        "metric        expected  optimistic  pessimistic  ambiguity",
        "mAP           0.500000    0.750000     0.250000   0.500000",
        "precision@10  0.125000    0.125000     0.125000   0.000000",
    ]


def test_table_of_two_results_warns_when_they_cannot_be_compared():
    theirs = {**METRICS, "database": 11, "map": 0.25}
    del theirs["precision_at_10"], theirs["precision_at_10_optimistic"]
    text = format_report({"ours": METRICS, "theirs": theirs})
    assert "Warning: not comparable: they differ in database." in text
    assert [line.split()[:3] for line in text.splitlines()[5:8]] == [
        ["mAP", "ours", "0.500000"],
        ["theirs", "0.250000", "0.750000"],
        ["precision@10", "ours", "0.125000"],
    ]


def test_precision_is_the_mean_over_queries_that_find_an_item():
    (axes,) = precision_recall_figure({"ours": METRICS}).axes
    x, y = axes.lines[0].get_data()
    assert list(x) == [0.2, 1.0], "radius 0 finds nothing"
    assert list(y) == [0.5, 0.3]


def test_results_are_framed_as_right_or_wrong():
    frame = np.zeros((4, 6, 3), np.uint8)
    rows = [[(frame, "query"), (frame, "1", True), (frame, "2", False)], [(frame, "alone")]]
    axes = retrieval_figure(rows, "title").axes
    titles = [(ax.get_title(), ax.title.get_color()) for ax in axes if ax.axison]
    assert titles[1:3] == [("1", RIGHT), ("2", WRONG)]
    assert [title for title, _ in titles] == ["query", "1", "2", "alone"]
