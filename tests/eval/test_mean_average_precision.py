"""mean_average_precision against all orders of the ties, worked fractions and reference values."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridhash.codes import HashCodes, pack_codes
from hybridhash.eval import DistanceHistogram, functional, mean_average_precision
from tests import GOLDEN
from tests.eval._oracles import average_precision, instance, over_orders

TIES = ("expected", "stable", "best", "worst")
ITEMS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 0, 1, 1, 2])), min_size=1, max_size=6)


def golden_case(case):
    arrays = np.load(GOLDEN / "map.npz")
    keys = ("query_codes", "query_labels", "db_codes", "db_labels")
    return [torch.from_numpy(arrays[f"{case}/{key}"]) for key in keys]


@pytest.mark.parametrize("case", ["single", "multi", "wide", "coarse"])
@pytest.mark.parametrize("ties", ["expected", "stable"])
def test_reference_values_are_matched(case, ties):
    want = json.loads((GOLDEN / "map.json").read_text())[case][f"map_{ties}"]
    got = mean_average_precision(*golden_case(case), ties=ties, top_k=[int(k) for k in want])
    assert got.tolist() == pytest.approx(list(want.values()), abs=1e-9)


@pytest.mark.parametrize(
    ("levels", "fraction"),
    [
        ([(3, 2), (4, 1)], Fraction(10991, 15120)),
        ([(1, 0), (4, 2), (2, 2)], Fraction(4919, 10080)),
        ([(5, 3)], Fraction(437, 600)),
    ],
)
def test_worked_fractions_of_tied_levels(levels, fraction):
    counts = torch.tensor([[[n - r, r] for n, r in levels]])
    value = functional.average_precision(DistanceHistogram(counts, counts.sum(1)))
    assert value.item() == pytest.approx(float(fraction), abs=1e-15)


def test_worked_example_of_a_ranking_with_a_cut():
    distances, grades = [0, 1, 2, 3, 4], [1, 0, 1, 1, 0]
    value = mean_average_precision(*instance(distances, grades), top_k=4)
    assert value.item() == pytest.approx((1 + 2 / 3 + 3 / 4) / 3, abs=1e-15)


@pytest.mark.filterwarnings("ignore:all .* codes are the same")
@settings(max_examples=60, deadline=None)
@given(items=ITEMS, top_k=st.integers(1, 7), denominator=st.sampled_from(["hits", "relevant"]))
def test_every_tie_rule_equals_the_enumeration_of_all_orders(items, top_k, denominator):
    distances, grades = [d for d, _ in items], [g for _, g in items]
    want = over_orders(
        lambda ranked: average_precision(ranked, min(top_k, len(ranked)), denominator), distances, grades
    )
    arguments = instance(distances, grades)
    for ties in TIES:
        got = mean_average_precision(*arguments, top_k=top_k, ties=ties, denominator=denominator)
        assert got.item() == pytest.approx(want[ties], abs=1e-12), ties


@settings(max_examples=40, deadline=None)
@given(items=ITEMS, top_k=st.integers(1, 7), denominator=st.sampled_from(["hits", "relevant"]))
def test_weighted_average_precision_equals_the_enumeration_of_all_orders(items, top_k, denominator):
    distances, grades = [d for d, _ in items], [g for _, g in items]
    want = over_orders(
        lambda ranked: average_precision(ranked, min(top_k, len(ranked)), denominator, weighted=True),
        distances,
        grades,
    )
    counts = torch.zeros(1, 3, 3, dtype=torch.int64)
    for distance, grade in items:
        counts[0, distance, grade] += 1
    histogram = DistanceHistogram(counts, counts.sum(1))
    for ties in ("expected", "best", "worst"):
        got = functional.average_precision(
            histogram, top_k, ties=ties, denominator=denominator, weighted=True
        )
        assert got.nan_to_num(0.0).item() == pytest.approx(want[ties], abs=1e-12), ties


def test_large_tie_groups_at_the_cut_agree_with_random_orders():
    # 4,000 tied items, cut at 500: the tails of the hit distribution are left out, the mean must not notice.
    generator = torch.Generator().manual_seed(0)
    relevant = torch.zeros(4000)
    relevant[:1200] = 1
    counts = torch.tensor([[[2800, 1200]]])
    got = functional.average_precision(DistanceHistogram(counts, counts.sum(1)), 500).item()
    values = []
    for _ in range(2000):
        head = relevant[torch.randperm(4000, generator=generator)][:500].double()
        precision = head.cumsum(0) / torch.arange(1, 501)
        values.append(float((precision * head).sum() / head.sum()))
    error = float(np.std(values)) / len(values) ** 0.5
    assert abs(got - float(np.mean(values))) < 4 * error


def test_order_of_the_database_does_not_move_expected_but_moves_stable():
    query, query_labels, codes, labels = golden_case("coarse")
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(1))
    shuffled = (query, query_labels, codes[order], labels[order])
    kept = (query, query_labels, codes, labels)
    for ties in ("expected", "best", "worst"):
        before, after = (mean_average_precision(*a, top_k=50, ties=ties).item() for a in (kept, shuffled))
        assert before == pytest.approx(after, abs=1e-12)
    before, after = (mean_average_precision(*a, top_k=50, ties="stable").item() for a in (kept, shuffled))
    assert abs(before - after) > 1e-3


def test_hash_codes_carry_their_bits_and_labels():
    query, query_labels, codes, labels = golden_case("single")
    want = mean_average_precision(query, query_labels, codes, labels, top_k=100)
    packed = mean_average_precision(
        query_codes=pack_codes(query),
        query_labels=query_labels,
        database_codes=pack_codes(codes),
        database_labels=labels,
        bits=16,
        top_k=100,
    )
    queries = HashCodes(pack_codes(query), 16, query_labels.argmax(1))
    database = HashCodes(pack_codes(codes), 16, labels.argmax(1))
    assert packed == want
    assert mean_average_precision(queries, database, top_k=100) == want
    assert mean_average_precision(queries, database_codes=database, top_k=100) == want


def test_excluded_queries_do_not_find_themselves():
    _, _, codes, labels = golden_case("multi")
    rows = torch.tensor([3, 10, 77])
    for ties in TIES:
        values = mean_average_precision(
            codes[rows], labels[rows], codes, labels, exclude_self=rows, top_k=40, ties=ties, aggregation=None
        )
        for row, value in zip(rows.tolist(), values.tolist(), strict=True):
            rest = torch.arange(len(codes)) != row
            alone = mean_average_precision(
                codes[row : row + 1], labels[row : row + 1], codes[rest], labels[rest], top_k=40, ties=ties
            )
            assert value == pytest.approx(alone.item(), abs=1e-12)
    ids = torch.arange(len(codes)) + 1000
    database = HashCodes(pack_codes(codes), 32, labels.bool(), ids)
    queries = HashCodes(pack_codes(codes[rows]), 32, labels[rows].bool(), ids[rows])
    by_id = mean_average_precision(queries, database, exclude_self=True, top_k=40)
    by_row = mean_average_precision(queries, database, exclude_self=rows, top_k=40)
    assert by_id == by_row
    assert by_id < mean_average_precision(queries, database, top_k=40)


def test_queries_without_labels_count_zero_or_are_skipped():
    query, query_labels, codes, labels = golden_case("multi")
    query_labels = query_labels.clone()
    query_labels[:5] = 0
    per_query = mean_average_precision(query, query_labels, codes, labels, aggregation=None)
    assert per_query[:5].tolist() == [0.0] * 5
    labelled = query_labels.any(1)
    skipped = mean_average_precision(query, query_labels, codes, labels, empty="skip")
    assert skipped.item() == pytest.approx(per_query[labelled].mean().item(), abs=1e-12)
    alone = mean_average_precision(query, query_labels, codes, labels, empty="skip", aggregation=None)
    assert torch.equal(alone.isnan(), ~labelled)
    nothing = mean_average_precision(query, torch.zeros_like(query_labels), codes, labels)
    assert nothing.item() == 0.0
