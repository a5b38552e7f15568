"""Tables and figures of made-up metrics."""

import json

import numpy as np
import pytest
import torch

from reports.examples import extremes, spread
from reports.figures import precision_at_figure, precision_recall_figure, round_numbers, save_figure
from reports.pictures import RIGHT, WRONG, retrieval_figure
from reports.projector import write_projector
from reports.results import write_metrics
from reports.results_page import confused_pairs, confusions
from reports.table import format_report, format_summary

METRICS = {
    "queries": 3,
    "database": 10,
    "bits": 2,
    "top_r": 5,
    "queries_without_relevant": 0,
    "map": 0.5,
    "map_optimistic": 0.75,
    "map_pessimistic": 0.25,
    "map_at_5": 0.4,
    "precision_at_1": 0.625,
    "precision_at_10": 0.125,
    "precision_at_10_optimistic": 0.125,
    "precision_at_10_pessimistic": 0.125,
    "chance_map": 0.2,
    "chance_map_at_5": 0.1,
    "chance_precision": 0.15,
    "recall_by_radius": [0.0, 0.2, 1.0],
    "precision_found_by_radius": [None, 0.5, 0.3],
    "precision_found_by_radius_low": [None, None, 0.2],
    "precision_found_by_radius_high": [None, 0.7, 0.4],
    "precision_curve_n": [1, 2, 10],
    "precision_curve": [0.625, 0.5, 0.125],
    "map_per_class": {"run": 0.9, "jump": 0.1, "kick": 0.3, "wave": 0.7},
}


# ==== tables ====


def test_the_summary_of_one_result():
    assert format_summary({"trained": METRICS}).splitlines() == [
        "3 queries, 10 database items, 2 bits",
        "",
        "                          chance        trained",
        "mAP                       0.2000         0.5000",
        "  by the order of ties            0.2500–0.7500",
        "mAP@5 ÷ min(5, relevant)  0.1000         0.4000",
        "precision@1               0.1500         0.6250",
        "precision@10              0.1500         0.1250",
        "",
        "Lowest mAP by class: jump 0.10, kick 0.30, wave 0.70",
    ]


def test_the_summary_names_the_weakest_classes_of_the_trained_network():
    others = {**METRICS, "map_per_class": {"run": 0.2}}
    text = format_summary({"untrained": others, "trained": METRICS})
    assert text.splitlines()[-1].startswith("Lowest mAP by class: jump") and "run" not in text


@pytest.mark.parametrize("count", [2, 5, 12])
def test_summaries_of_many_files_stay_within_80_columns(count):
    names = [f"a_folder_with_a_long_name/run{i}" for i in range(count)]
    results = {name: {**METRICS, "map": i / 16, "bits": 2 + i} for i, name in enumerate(names)}
    text = format_summary(results)
    assert max(map(len, text.splitlines())) <= 80
    for index, name in enumerate(names):
        assert name[-20:] in text and f"{index / 16:.4f}" in text


def test_the_table_of_all_metrics():
    lines = format_report({"ours": METRICS}).splitlines()
    assert lines[:5] == [
        "ours: queries 3, database 10, bits 2, R 5, queries without relevant items 0",
        "",
        "metric        expected  optimistic  pessimistic  ambiguity",
        "mAP           0.500000    0.750000     0.250000   0.500000",
        "precision@10  0.125000    0.125000     0.125000   0.000000",
    ]


@pytest.mark.parametrize("make", [format_report, format_summary])
def test_two_results_that_cannot_be_compared_give_a_warning(make):
    theirs = {**METRICS, "database": 11, "map": 0.25}
    text = make({"ours": METRICS, "theirs": theirs})
    assert "Warning: not comparable: they differ in database." in text
    assert "Warning" not in make({"ours": METRICS, "theirs": METRICS})


def test_the_table_of_two_results_has_a_row_for_each():
    theirs = {**METRICS, "map": 0.25}
    del theirs["precision_at_10"], theirs["precision_at_10_optimistic"]
    text = format_report({"ours": METRICS, "theirs": theirs})
    assert [line.split()[:3] for line in text.splitlines()[4:7]] == [
        ["mAP", "ours", "0.500000"],
        ["theirs", "0.250000", "0.750000"],
        ["precision@10", "ours", "0.125000"],
    ]


def test_metrics_are_divided_into_run_numbers_and_curves(tmp_path):
    write_metrics(tmp_path / "m.json", METRICS, {"epoch": 3}, {"untrained": METRICS})
    content = json.loads((tmp_path / "m.json").read_text())
    assert set(content) == {"run", "metrics", "curves", "untrained"}
    assert content["run"]["epoch"] == 3 and content["run"]["queries"] == 3
    assert content["metrics"]["map"] == 0.5 and content["curves"]["precision_curve"][0] == 0.625
    assert set(content["metrics"]) | set(content["curves"]) | set(content["run"]) == {
        *METRICS,
        "epoch",
    }


# ==== curves ====


def test_precision_is_the_mean_over_queries_that_find_an_item():
    (axes,) = precision_recall_figure({"ours": METRICS}).axes
    x, y = axes.lines[0].get_data()
    assert list(x) == [0.2, 1.0], "radius 0 finds nothing"
    assert list(y) == [0.5, 0.3]
    assert axes.lines[1].get_ydata() == [0.15, 0.15] and axes.lines[1].get_linestyle() == "--"


def test_curves_differ_in_more_than_colour_and_are_listed_best_first():
    results = {f"n{i}": {**METRICS, "map": i / 40} for i in range(30)}
    (axes,) = precision_at_figure(results).axes
    curves = axes.lines[:-1]
    assert len({(line.get_color(), line.get_marker()) for line in curves}) == 30
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[0] == "n29, 2 bits, mAP 0.72"
    assert labels[-2:] == ["n0, 2 bits, mAP 0.00", "chance"]


def test_a_name_is_no_formula():
    results = {"$x$": METRICS, "b": METRICS}
    (axes,) = precision_at_figure(results).axes
    assert axes.lines[0].get_label().startswith(r"\$x\$, 2 bits")


@pytest.mark.parametrize(
    ("most", "numbers"), [(1, [1]), (8, [1, 2, 5]), (84, [1, 2, 5, 10, 20, 50]), (1000, 4)]
)
def test_numbers_on_the_axis_are_plain(most, numbers):
    assert round_numbers(most) == (numbers if most < 1000 else [1, 10, 100, 1000])
    curve = {"precision_curve_n": [1, most], "precision_curve": [1.0, 0.5]}
    figure = precision_at_figure({"ours": {**METRICS, **curve}})
    figure.draw_without_rendering()
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown == [str(number) for number in round_numbers(most)]


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")]
)
def test_figures_are_written_in_the_format_of_their_name(name, start, tmp_path):
    contents = set()
    for _ in range(2):
        save_figure(precision_recall_figure({"ours": METRICS}), tmp_path / name)
        contents.add((tmp_path / name).read_bytes())
    assert len(contents) == 1 and contents.pop().startswith(start)


# ==== examples ====


def test_results_are_right_or_wrong_in_colour_and_sign():
    frame = np.zeros((4, 6, 3), np.uint8)
    rows = [[(frame, "query"), (frame, "1", True), (frame, "2", False)], [(frame, "alone")]]
    (axes,) = retrieval_figure(rows, "title").axes
    texts = [(text.get_text(), text.get_color()) for text in axes.texts]
    assert texts[2:4] == [("✓ 1", RIGHT), ("✗ 2", WRONG)]
    assert [text for text, _ in texts] == ["title", "query", "✓ 1", "✗ 2", "alone"]
    for image in axes.images:
        left, right, bottom, top = image.get_extent()
        assert (right - left) / (bottom - top) == pytest.approx(6 / 4), "the frame's own ratio"


def test_extremes_are_the_best_the_middle_and_the_worst():
    scores = torch.arange(100) / 100
    assert extremes(scores, 6) == {"best": [99, 98], "median": [50, 49], "worst": [1, 0]}
    for count in range(1, 12):
        for queries in range(1, 9):
            groups = extremes(scores[:queries], count)
            chosen = [row for rows in groups.values() for row in rows]
            assert len(chosen) == len(set(chosen)) == min(count, queries)
            assert chosen == sorted(chosen, reverse=True)


def test_spread_goes_from_the_worst_to_the_best():
    scores = torch.tensor([0.5, 0.1, 0.9, 0.3])
    assert spread(scores, 9) == [1, 3, 0, 2] and spread(scores, 2) == [1, 2]


def test_confusions_are_shares_of_what_a_class_finds():
    found = torch.tensor([[3.0, 1, 0, 0], [4, 0, 0, 0], [2, 2, 0, 0]])
    names, shares = confusions(found, [0, 0, 1], ["run", "jump", "kick", "wave"])
    assert names == ["run", "jump"]
    assert shares.tolist() == [[7 / 8, 1 / 8], [1 / 2, 1 / 2]]
    assert confused_pairs(names, shares) == [("jump", "run", 0.5), ("run", "jump", 0.125)]


def test_names_in_the_projector_are_one_cell_each(tmp_path):
    columns = {"class": ["a\tb", "c\r\nd"], "video": ["\udcff", " x\u2028y "]}
    frames = [np.zeros((4, 4, 3), np.uint8)] * 2
    write_projector(tmp_path / "projector", torch.eye(2), columns, frames)
    [path] = (tmp_path / "projector").rglob("metadata.tsv")
    assert path.read_text("utf-8") == "class\tvideo\na b\t\\udcff\nc d\tx y\n"
