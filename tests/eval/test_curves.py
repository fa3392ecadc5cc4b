"""Metrics by radius and precision-recall curves, against literal counting."""

from __future__ import annotations

import pytest
import torch

from hybridhash.codes import hamming_distance
from hybridhash.eval import (
    precision_at_k,
    precision_recall_curve,
    precision_within_radius,
    recall_at_k,
    recall_within_radius,
)
from hybridhash.labels import similar
from tests.eval._oracles import random_case


def literal_within(case, radius):
    query, query_labels, codes, labels = case
    near = hamming_distance(query, codes) <= radius
    relevant = similar(query_labels, labels)
    precision, recall = [], []
    for row in range(len(query)):
        found = int((near[row] & relevant[row]).sum())
        precision.append(found / int(near[row].sum()) if near[row].any() else None)
        recall.append(found / int(relevant[row].sum()) if relevant[row].any() else None)
    return precision, recall


@pytest.mark.parametrize("empty", ["zero", "skip"])
def test_precision_and_recall_within_a_radius_equal_literal_counts(empty):
    case = random_case(seed=7, bits=12, density=0.15)
    for radius in (0, 1, 2, 5, 12, 99):
        precision, recall = literal_within(case, radius)
        for metric, values in ((precision_within_radius, precision), (recall_within_radius, recall)):
            kept = [v or 0.0 for v in values] if empty == "zero" else [v for v in values if v is not None]
            got = metric(*case, radius=radius, empty=empty)
            assert got.item() == pytest.approx(sum(kept) / len(kept), abs=1e-12) if kept else got.isnan()


def test_the_case_has_empty_balls_so_that_the_rule_for_them_is_tested():
    precision, recall = literal_within(random_case(seed=7, bits=12, density=0.15), 1)
    assert None in precision
    assert None in recall


def test_several_radii_share_a_pass_and_default_to_two():
    case = random_case(seed=8)
    many = precision_within_radius(*case, radius=[0, 2, 4])
    assert many.tolist() == [precision_within_radius(*case, radius=r).item() for r in (0, 2, 4)]
    assert precision_within_radius(*case) == many[1]


def test_curve_by_radius_equals_the_metrics_at_each_radius():
    case = random_case(seed=9)
    curve = precision_recall_curve(*case)
    assert curve.thresholds.tolist() == list(range(9))
    assert torch.equal(curve.precision, precision_within_radius(*case, radius=range(9)))
    assert torch.equal(curve.recall, recall_within_radius(*case, radius=range(9)))
    assert precision_recall_curve(*case, empty="skip").recall[-1] == 1.0


@pytest.mark.parametrize("ties", ["expected", "stable", "best", "worst"])
def test_curve_by_rank_equals_the_metrics_at_each_rank(ties):
    case = random_case(seed=10)
    curve = precision_recall_curve(*case, by="rank", ties=ties, empty="zero", top_k=[1, 5, 50, 150])
    assert torch.equal(curve.precision, precision_at_k(*case, top_k=[1, 5, 50, 150], ties=ties))
    assert torch.equal(curve.recall, recall_at_k(*case, top_k=[1, 5, 50, 150], ties=ties))
    whole = precision_recall_curve(*case, by="rank", ties=ties)
    assert whole.thresholds[0] == 1
    assert whole.thresholds[-1] == 150
    assert len(whole.thresholds) <= 100
    assert precision_recall_curve(*case, by="rank", ties=ties, top_k=30).thresholds[-1] == 30


def test_recall_never_falls_along_a_curve():
    for by in ("radius", "rank"):
        assert bool((precision_recall_curve(*random_case(seed=11), by=by).recall.diff() >= -1e-12).all())


def test_curve_for_each_query():
    case = random_case(seed=12)
    curve = precision_recall_curve(*case, aggregation=None)
    assert curve.precision.shape == curve.recall.shape == (9, 12)
