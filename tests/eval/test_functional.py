"""The public closed forms: one histogram gives every metric, and what they refuse."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from hybridhash import eval as evaluation
from hybridhash.eval import DistanceHistogram, distance_histogram, functional
from tests.eval._oracles import random_case

CUT: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "average_precision": (functional.average_precision, evaluation.mean_average_precision),
    "weighted": (partial(functional.average_precision, weighted=True), evaluation.weighted_map),
    "precision": (functional.precision, evaluation.precision_at_k),
    "recall": (functional.recall, evaluation.recall_at_k),
    "hit_rate": (functional.hit_rate, evaluation.hit_rate_at_k),
    "reciprocal_rank": (functional.reciprocal_rank, evaluation.mean_reciprocal_rank),
    "average_cumulative_gain": (functional.average_cumulative_gain, evaluation.acg_at_k),
    "ndcg": (functional.ndcg, evaluation.ndcg_at_k),
}


def test_every_closed_form_with_a_cut_is_under_test():
    public = {
        name
        for name in functional.__all__
        if {"histogram", "top_k"} <= set(inspect.signature(getattr(functional, name)).parameters)
    }
    assert public <= set(CUT)


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("ties", ["expected", "best", "worst"])
def test_one_histogram_gives_every_metric(name, ties):
    case = random_case(seed=90)
    histogram = distance_histogram(*case, graded=True)
    form, metric = CUT[name]
    for top_k in (1, 9, None):
        want = metric(*case, top_k=top_k, ties=ties, empty="skip", aggregation=None)
        got = form(histogram, top_k, ties=ties)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12, equal_nan=True)


def test_one_histogram_gives_the_metrics_by_radius():
    case = random_case(seed=91)
    histogram = distance_histogram(*case)
    for radius in (0, 2, 99):
        precision = evaluation.precision_within_radius(*case, radius=radius, aggregation=None)
        recall = evaluation.recall_within_radius(*case, radius=radius, aggregation=None)
        assert torch.equal(functional.precision_within(histogram, radius).nan_to_num(0.0), precision)
        assert torch.equal(functional.recall_within(histogram, radius).nan_to_num(0.0), recall)


@pytest.mark.parametrize("name", CUT)
def test_bad_cuts_and_rules_are_refused(name):
    histogram = DistanceHistogram(torch.tensor([[[2, 3]]]), torch.tensor([[2, 3]]))
    form = CUT[name][0]
    with pytest.raises(ValueError, match="top_k must be >= 1, got 0"):
        form(histogram, 0)
    with pytest.raises(ValueError, match="ties must be one of"):
        form(histogram, 2, ties="mean")
    with pytest.raises(ValueError, match="does not know the order of tied items"):
        form(histogram, 2, ties="stable")


def test_pieces_of_queries_change_nothing(monkeypatch):
    case = random_case(seed=92)
    want = evaluation.evaluate(*case, top_k=40)
    monkeypatch.setattr(functional, "_TABLE", 100)
    monkeypatch.setattr(evaluation.metrics, "_COUNTS", 100)
    got = evaluation.evaluate(*case, top_k=40)
    assert got.metrics == pytest.approx(want.metrics, abs=1e-12)
