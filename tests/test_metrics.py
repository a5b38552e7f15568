"""Histogram evaluation against enumeration of every order of the tied items."""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.bootstrap import confidence_bands, resampled_means
from retrieval.codes import load_codes
from retrieval.hamming import hamming_histograms, nearest_labels
from retrieval.metrics import evaluate, evaluate_queries
from retrieval.tie_aware import ORDERS, Ties, precision_over_found, precision_sum

DATA = Path(os.environ.get("VIDEO_RETRIEVAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
CUTOFFS = (1, 2, 3, 5, 10)


def random_case(seed, multi_label=False, queries=4, bits=2):
    """A small case with many ties: 3..7 database items, codes of few bits, few labels."""
    generator = np.random.default_rng(seed)
    database = int(generator.integers(3, 8))
    codes = [torch.from_numpy(generator.random((n, bits)) < 0.5) for n in (queries, database)]
    if multi_label:
        labels = [torch.from_numpy(generator.random((n, 3)) < 0.4) for n in (queries, database)]
    else:
        labels = [torch.from_numpy(generator.integers(0, 3, n)) for n in (queries, database)]
    return codes[0], labels[0], codes[1], labels[1]


def naive_histograms(query_codes, query_labels, database_codes, database_labels):
    """For each query the relevance (bool) of the items at each distance, by literal loops."""
    result = []
    for code, label in zip(query_codes, query_labels, strict=True):
        ties = [[] for _ in range(query_codes.shape[1] + 1)]
        for other, other_label in zip(database_codes, database_labels, strict=True):
            distance = sum(bool(a) != bool(b) for a, b in zip(code, other, strict=True))
            if label.ndim:
                relevant = any(bool(a) and bool(b) for a, b in zip(label, other_label, strict=True))
            else:
                relevant = int(label) == int(other_label)
            ties[distance].append(relevant)
        result.append(ties)
    return result


def ranked_metrics(ranking, top_r):
    """Every rank metric of one ranking, a list of bools, straight from its definition."""
    total = sum(ranking)

    def precision_sum_at(depth):
        ranks = [i for i, relevant in enumerate(ranking[:depth], 1) if relevant]
        return sum(j / rank for j, rank in enumerate(ranks, 1))

    metrics = {
        "map": precision_sum_at(len(ranking)) / max(total, 1),
        f"map_at_{top_r}": precision_sum_at(top_r) / max(min(total, top_r), 1),
        f"map_at_{top_r}_found": precision_sum_at(top_r) / max(sum(ranking[:top_r]), 1),
        f"map_at_{top_r}_over_r": precision_sum_at(top_r) / top_r,
        "r_precision": sum(ranking[:total]) / max(total, 1),
    }
    for n in CUTOFFS:
        metrics[f"precision_at_{n}"] = sum(ranking[:n]) / n
        metrics[f"recall_at_{n}"] = sum(ranking[:n]) / max(total, 1)
    return metrics


def naive_metrics(ties, top_r):
    """Mean over all orders within ties, and the two extreme orders, of one query's metrics."""
    orders = itertools.product(*(list(itertools.permutations(tie)) for tie in ties))
    every = [ranked_metrics(list(itertools.chain(*order)), top_r) for order in orders]
    result = {key: sum(metrics[key] for metrics in every) / len(every) for key in every[0]}
    for suffix, first in (("_optimistic", True), ("_pessimistic", False)):
        ranking = itertools.chain(*(sorted(tie, reverse=first) for tie in ties))
        for key, value in ranked_metrics(list(ranking), top_r).items():
            result[key + suffix] = value
    return result


def is_cut(ties, depth):
    """Whether rank `depth` cuts a tie that has both relevant and other items."""
    ends = list(itertools.accumulate(len(tie) for tie in ties))
    return any(
        end - len(tie) < depth < end and 0 < sum(tie) < len(tie)
        for end, tie in zip(ends, ties, strict=True)
    )


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("top_r", [1, 2, 3, 4, 100])
def test_every_metric_matches_all_orders(top_r, multi_label):
    seen = {"tied": 0, "cut": 0, "without relevant": 0, "inside first tie": 0}
    for seed in range(12):
        case = random_case(seed, multi_label)
        result = evaluate(*case, top_r=top_r, cutoffs=CUTOFFS)
        naive = naive_histograms(*case)
        expected = [naive_metrics(ties, top_r) for ties in naive]
        for key in expected[0]:
            mean = sum(metrics[key] for metrics in expected) / len(expected)
            assert result[key] == pytest.approx(mean, abs=1e-12), (seed, key)
        empty = sum(not any(map(any, ties)) for ties in naive)
        assert result["queries_without_relevant"] == empty
        seen["without relevant"] += empty
        seen["tied"] += result["map_optimistic"] > result["map_pessimistic"]
        seen["cut"] += sum(is_cut(ties, top_r) for ties in naive)
        first = [next(len(tie) for tie in ties if tie) for ties in naive]
        seen["inside first tie"] += sum(top_r < size for size in first)
    assert seen["tied"] > 0 and seen["without relevant"] > 0
    if top_r < 100:
        assert seen["cut"] > 0
        assert seen["inside first tie"] > 0
    else:
        assert seen["cut"] == 0  # beyond the database: nothing to cut


def test_extreme_orders_do_not_bound_precision_over_found():
    """One relevant item first, then a tie of 1 relevant and 2 other items, cut at R = 3."""
    ties = Ties(counts=torch.tensor([[0, 4]]), relevant=torch.tensor([[0, 1]]))
    value = precision_over_found(ties, torch.tensor([2]))
    assert value.item() == pytest.approx((1 + 1 / 2) / 4)
    ties = Ties(counts=torch.tensor([[1, 3]]), relevant=torch.tensor([[1, 1]]))
    value = precision_over_found(ties, torch.tensor([3])).item()
    assert value == pytest.approx((1 + 1 + (1 + 2 / 3) / 2) / 3)
    case = [torch.tensor(x) for x in ([[True]], [0], [[True]] + [[False]] * 3, [0, 0, 1, 1])]
    result = evaluate(*case, top_r=3, cutoffs=(1,))
    assert result["map_at_3_found"] == pytest.approx(value)
    assert result["map_at_3_found"] < result["map_at_3_found_pessimistic"] == 1


@pytest.mark.parametrize("multi_label", [False, True])
def test_radius_metrics_match_loops(multi_label):
    empty_balls = 0
    for seed in range(12):
        case = random_case(seed, multi_label, bits=4)
        result = evaluate(*case, top_r=2, cutoffs=(1,))
        ties = naive_histograms(*case)
        for radius in range(5):
            balls = [sum(tie[: radius + 1], []) for tie in ties]
            totals = [sum(map(sum, tie)) for tie in ties]
            precision = np.mean([sum(ball) / max(len(ball), 1) for ball in balls])
            recall = np.mean([sum(b) / max(t, 1) for b, t in zip(balls, totals, strict=True)])
            assert result["precision_by_radius"][radius] == pytest.approx(precision)
            assert result["recall_by_radius"][radius] == pytest.approx(recall)
            nonempty = np.mean([len(ball) > 0 for ball in balls])
            assert result["nonempty_by_radius"][radius] == pytest.approx(nonempty)
            empty_balls += nonempty < 1
            found = [sum(ball) / len(ball) for ball in balls if ball]
            expected = pytest.approx(np.mean(found)) if found else None
            assert result["precision_found_by_radius"][radius] == expected
        for suffix in ORDERS.values():
            value = result["precision_radius_2" + suffix]
            assert value == pytest.approx(result["precision_by_radius"][2])
    assert empty_balls > 0


def test_precision_curve_and_classes_agree_with_single_figures():
    case = random_case(3, queries=20)
    depths = evaluate(*case)["precision_curve_n"]
    assert depths == list(range(1, len(case[2]) + 1))
    result = evaluate(*case, cutoffs=depths)
    single = [result[f"precision_at_{n}"] for n in depths]
    assert result["precision_curve"] == pytest.approx(single)
    for label in case[1].unique().tolist():
        rows = case[1] == label
        alone = evaluate(case[0][rows], case[1][rows], *case[2:])["map"]
        assert result["map_per_class"][str(label)] == pytest.approx(alone)


@pytest.mark.parametrize("multi_label", [False, True])
def test_chance_is_what_equal_codes_give(multi_label):
    case = random_case(4, multi_label, queries=20)
    result = evaluate(*case, top_r=3, cutoffs=(2,))
    equal = evaluate(case[0] & False, case[1], case[2] & False, case[3], top_r=3, cutoffs=(2,))
    for name, key in {"map": "map", "map_at_3": "map_at_3", "precision": "precision_at_2"}.items():
        assert result[f"chance_{name}"] == pytest.approx(equal[key])
    assert result["chance_map"] != result["map"]


def test_labels_of_the_nearest_are_the_mean_over_all_orders():
    for seed in range(6):
        queries, _, database, labels = random_case(seed)
        for count in (1, 2, 3, len(database), 99):
            found = nearest_labels(queries, database, labels, count, 5)
            for query, row in zip(queries, found.tolist(), strict=True):
                ties = [labels[(database != query).sum(1) == d].tolist() for d in range(3)]
                orders = itertools.product(*map(itertools.permutations, ties))
                orders = [list(itertools.chain(*order))[:count] for order in orders]
                expected = [sum(o.count(n) for o in orders) / len(orders) for n in range(5)]
                assert row == pytest.approx(expected, abs=1e-5)


def test_bands_are_those_of_the_bootstrap_over_queries():
    """The band of a mean of 400 normal numbers is 1.96 standard errors wide on each side."""
    values = torch.randn(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, high = resampled_means(values).quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
    width = 1.96 * values.std(0) / 20
    assert torch.allclose(values.mean(0) - low, width, rtol=0.15)
    assert torch.allclose(high - values.mean(0), width, rtol=0.15)


def test_bands_enclose_the_curves():
    case = random_case(2, queries=30, bits=6)
    result, bands = evaluate(*case), confidence_bands(evaluate_queries(*case)[1])
    for name in ("precision_curve", "precision_found_by_radius"):
        curve = zip(bands[f"{name}_low"], result[name], bands[f"{name}_high"], strict=True)
        curve = [point for point in curve if None not in point]
        assert len(curve) > 3 and all(low <= mean <= high for low, mean, high in curve)
        assert any(low < high for low, _, high in curve)


def test_classes_of_multi_label_queries_overlap():
    case = random_case(5, multi_label=True, queries=20)
    result = evaluate(*case)
    assert (case[1].sum(1) > 1).any()
    for label in range(3):
        rows = case[1][:, label]
        alone = evaluate(case[0][rows], case[1][rows], *case[2:])["map"]
        assert result["map_per_class"][str(label)] == pytest.approx(alone)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("bits", [1, 7, 8, 130])
def test_histograms_do_not_depend_on_chunks(bits, multi_label):
    generator = torch.Generator().manual_seed(bits)
    codes = [torch.rand(n, bits, generator=generator) < 0.5 for n in (33, 601)]
    labels = [torch.randint(5, (n,), generator=generator) for n in (33, 601)]
    if multi_label:
        labels = [torch.rand(n, 4, generator=generator) < 0.3 for n in (33, 601)]
    case = codes[0], labels[0], codes[1], labels[1]
    distances = (codes[0][:, None] != codes[1]).sum(2)
    if multi_label:
        relevance = (labels[0][:, None] & labels[1]).any(2)
    else:
        relevance = labels[0][:, None] == labels[1]
    every_bin = torch.arange(bits + 1)
    counts = (distances[:, :, None] == every_bin).sum(1)
    relevant = ((distances[:, :, None] == every_bin) & relevance[:, :, None]).sum(1)
    for chunks in ({}, {"query_chunk": 5, "database_chunk": 7}, {"database_chunk": 300}):
        result = hamming_histograms(*case, **chunks)
        assert torch.equal(result[0], counts) and torch.equal(result[1], relevant)
        assert result[0].dtype == result[1].dtype == torch.int64


def test_counts_are_exact_under_autocast():
    codes = torch.rand(3, 300) < 0.5, torch.rand(50, 300) < 0.5
    labels = torch.zeros(3, dtype=torch.int64), torch.arange(50) % 2
    case = codes[0], labels[0], codes[1], labels[1]
    exact = hamming_histograms(*case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, hamming_histograms(*case), exact))


def test_large_databases_keep_their_digits():
    """Two million items in two ties, against sums in exact-rounding arithmetic."""
    n, r, before, found = 200_000, 1_000, 1_800_000, 5_000
    ties = Ties(torch.tensor([[before, n]]), torch.tensor([[found, r]]))
    value = precision_sum(ties, torch.tensor([before + n]), "expected").item()

    def tie(n, r, before, found):
        slope = (r - 1) / (n - 1)
        ranks = np.arange(1, n + 1)
        return r / n * math.fsum((found + 1 + (ranks - 1) * slope) / (before + ranks))

    assert value == pytest.approx(tie(before, found, 0, 0) + tie(n, r, before, found), rel=1e-9)
    whole = precision_over_found(ties, torch.tensor([before + n // 2])).item()
    half = precision_sum(ties, torch.tensor([before + n // 2])).item() / (found + r / 2)
    assert whole == pytest.approx(half, rel=1e-5)  # here the denominator hardly varies


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same():
    case = random_case(0, queries=50, bits=6)
    assert evaluate(*(x.cuda() for x in case), top_r=3) == pytest.approx(evaluate(*case, top_r=3))


def test_result_is_json_and_flat():
    result = evaluate(*random_case(1))
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(4, 2), "bool tensor"),
        (2, torch.zeros(0, 2, dtype=torch.bool), "non-empty"),
        (0, torch.zeros(4, 3, dtype=torch.bool), "3 bits, database codes have 2"),
        (1, torch.zeros(5, dtype=torch.int64), r"query_labels must be \(4,\)"),
        (1, torch.zeros(4), "int64"),
        (1, torch.zeros(4, 3, dtype=torch.bool), "must both be vectors"),
    ],
)
def test_wrong_tensors_are_refused(position, value, message):
    case = list(random_case(0))
    case[position] = value
    with pytest.raises(ValueError, match=message):
        evaluate(*case)


def test_wrong_depths_are_refused():
    for arguments in ({"top_r": 0}, {"cutoffs": (1, 0)}):
        with pytest.raises(ValueError, match="at least 1"):
            evaluate(*random_case(0), **arguments)


def test_published_csq_codes():
    path = DATA / "codes" / "csq_ucf101_64bit.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent; set VIDEO_RETRIEVAL_DATA to the folder of test data")
    codes = load_codes(path)
    keys = ("query_codes", "query_labels", "database_codes", "database_labels")
    result = evaluate(*(codes[key] for key in keys), top_r=100)
    figures = {
        "map": 0.845848,
        "map_optimistic": 0.855675,
        "map_pessimistic": 0.837256,
        "map_at_100_found": 0.873955,
        "map_at_100_found_optimistic": 0.883765,
        "map_at_100_found_pessimistic": 0.866756,
        "map_at_100": 0.809913,
        "map_at_100_over_r": 0.749493,
        "precision_at_1": 0.888861,
        "precision_radius_2": 0.485209,
        "r_precision": 0.820033,
    }
    assert {key: result[key] for key in figures} == pytest.approx(figures, abs=2e-6)
    assert (result["queries"], result["database"], result["bits"]) == (3783, 9537, 64)
