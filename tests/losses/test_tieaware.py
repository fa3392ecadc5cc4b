"""Tie-aware losses against the definitions of average precision and NDCG."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch

from hybridhash.losses import TieAwareAPLoss, TieAwareNDCGLoss
from hybridhash.losses.functional import tie_aware_ap_loss, tie_aware_ndcg_loss
from tests.losses import _invariants
from tests.losses._invariants import LABELS, random_codes

CLASSES = [TieAwareAPLoss, TieAwareNDCGLoss, lambda: TieAwareAPLoss(3, gamma=1.0)]


def triangle(distance, center, width):
    return torch.clamp(1 - (distance - center).abs() / width, min=0)


def shared(labels, i, j):
    if labels.ndim == 2:
        return int((labels[i] * labels[j]).sum())
    return int(labels[i] == labels[j] and labels[i] >= 0)


def talr(u, labels, bins, *, ndcg):
    """1 - mean measure, by loops over queries, levels and items."""
    bits, number = u.shape[1], u.shape[0]
    losses = []
    for q in range(number):
        others = [i for i in range(number) if i != q]
        levels = {i: shared(labels, q, i) for i in others}
        if not any(levels.values()):
            continue
        before = before_relevant = torch.zeros((), dtype=u.dtype)
        measure = torch.zeros((), dtype=u.dtype)
        for level in range(bins + 1):
            pulse = {i: triangle((bits - u[q] @ u[i]) / 2, level * bits / bins, bits / bins) for i in others}
            count = sum(pulse.values())
            relevant = sum((pulse[i] for i in others if levels[i]), torch.zeros((), dtype=u.dtype))
            if ndcg:
                gain = sum((2 ** levels[i] - 1) * pulse[i] for i in others)
                measure = measure + gain / torch.log2(before + (count + 1) / 2 + 1)
            else:
                upper = before_relevant + before_relevant + relevant + 1
                measure = measure + relevant * upper / (before + before + count + 1)
            before, before_relevant = before + count, before_relevant + relevant
        if ndcg:
            ranked = sorted(levels.values(), reverse=True)
            ideal = sum((2**level - 1) / math.log2(1 + rank) for rank, level in enumerate(ranked, 1))
        else:
            ideal = sum(1 for level in levels.values() if level)
        losses.append(1 - measure / ideal)
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("function", "ndcg"), [(tie_aware_ap_loss, False), (tie_aware_ndcg_loss, True)])
@pytest.mark.parametrize("labels", ["two classes", "some unlabelled", "multi-hot"])
@pytest.mark.parametrize("bins", [1, 3, 4])
def test_loss_is_the_literal_formula(function, ndcg, labels, bins):
    def oracle(codes, given):
        return talr(codes, given, bins, ndcg=ndcg)

    got = _invariants.value_and_grad(lambda u, y: function(u, y, bins=bins), random_codes(), LABELS[labels])
    torch.testing.assert_close(got, _invariants.value_and_grad(oracle, random_codes(), LABELS[labels]))


def ranked_list(groups, bits=8):
    """A query and a list with (items, relevant items) at distance 0, 1, ...; binary codes."""
    codes, labels = [], []
    for distance, (items, relevant) in enumerate(groups):
        code = torch.ones(bits, dtype=torch.float64)
        code[:distance] = -1
        codes += [code] * items
        labels += [0] * relevant + [1] * (items - relevant)
    return (
        torch.ones(1, bits, dtype=torch.float64),
        torch.tensor([0]),
        torch.stack(codes),
        torch.tensor(labels),
    )


def measure(function, groups):
    codes, labels, ref_codes, ref_labels = ranked_list(groups)
    return 1 - function(codes, labels, ref_codes=ref_codes, ref_labels=ref_labels, bins=8).item()


def mean_over_orders(groups, score):
    """Mean of a measure over all orders inside the ties."""
    parts = [set(itertools.permutations([1] * hits + [0] * (items - hits))) for items, hits in groups]
    lists = [sum(order, ()) for order in itertools.product(*parts)]
    return sum((score(list(order)) for order in lists), Fraction(0)) / len(lists)


def average_precision(relevant):
    hits = [rank for rank, hit in enumerate(relevant, 1) if hit]
    return sum(Fraction(number, rank) for number, rank in enumerate(hits, 1)) / len(hits)


@pytest.mark.parametrize("relevant", [(1, 0, 1, 1, 0), (0, 0, 1), (1, 1, 1), (0, 1, 0, 0, 1, 1)])
def test_without_ties_it_is_the_average_precision(relevant):
    groups = [(1, hit) for hit in relevant]
    exact = average_precision(list(relevant))
    assert measure(tie_aware_ap_loss, groups) == pytest.approx(float(exact), abs=1e-12)


@pytest.mark.parametrize("relevant", [(1, 0, 1, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_without_ties_it_is_the_ndcg(relevant):
    dcg = sum(hit / math.log2(1 + rank) for rank, hit in enumerate(relevant, 1))
    ideal = sum(1 / math.log2(1 + rank) for rank in range(1, sum(relevant) + 1))
    got = measure(tie_aware_ndcg_loss, [(1, hit) for hit in relevant])
    assert got == pytest.approx(dcg / ideal, abs=1e-12)


@pytest.mark.parametrize(
    ("groups", "exact", "relaxed"),
    [
        ([(3, 2), (4, 1)], Fraction(10991, 15120), Fraction(15, 22)),
        ([(1, 0), (4, 2), (2, 2)], Fraction(4919, 10080), Fraction(44, 91)),
        ([(5, 3)], Fraction(437, 600), Fraction(2, 3)),
    ],
)
def test_with_ties_it_is_the_papers_simplification_of_the_mean_over_all_orders(groups, exact, relaxed):
    assert mean_over_orders(groups, average_precision) == exact
    assert measure(tie_aware_ap_loss, groups) == pytest.approx(float(relaxed), abs=1e-12)
    assert abs(relaxed - exact) < Fraction(7, 100)


def test_gamma_is_the_papers_relaxation():
    codes, labels = 3 * random_codes(), LABELS["multi-hot"]
    phi = 2 * torch.sigmoid(1.5 * codes) - 1
    for function in (tie_aware_ap_loss, tie_aware_ndcg_loss):
        torch.testing.assert_close(function(codes, labels, gamma=1.5), function(phi, labels))


@pytest.mark.parametrize(("bits", "bins"), [(16, 16), (32, 16), (64, 32)])
def test_bins_default_to_half_the_bits_from_32_on(bits, bins):
    codes, labels = random_codes(6, bits), LABELS["two classes"]
    for function in (tie_aware_ap_loss, tie_aware_ndcg_loss):
        assert torch.equal(function(codes, labels), function(codes, labels, bins=bins))
        assert not torch.equal(function(codes, labels), function(codes, labels, bins=bins // 2))


def test_perfect_ranking_has_no_ndcg_loss_and_no_query_has_none():
    codes = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    assert tie_aware_ndcg_loss(codes, torch.tensor([0, 0, 1])).item() == pytest.approx(0, abs=1e-6)
    for labels in ("no two alike", "all unlabelled"):
        for function in (tie_aware_ap_loss, tie_aware_ndcg_loss):
            value, grad = _invariants.value_and_grad(function, random_codes(), LABELS[labels])
            assert value == 0
            assert not grad.any()
    assert tie_aware_ap_loss(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)) == 0
    assert tie_aware_ndcg_loss(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)) == 0


def test_ndcg_stays_finite_with_hundreds_of_shared_labels():
    labels = torch.ones(4, 400, dtype=torch.int64)
    labels[1:, 200:] = 0
    value, grad = _invariants.value_and_grad(
        tie_aware_ndcg_loss, random_codes(4, dtype=torch.float32), labels
    )
    assert value.isfinite()
    assert grad.isfinite().all()


def test_nan_codes_give_a_nan_loss():
    codes = random_codes()
    codes[2, 1] = math.nan
    for function in (tie_aware_ap_loss, tie_aware_ndcg_loss):
        assert function(codes, LABELS["two classes"]).isnan()


@pytest.mark.parametrize("make", CLASSES)
def test_invariants(make):
    _invariants.assert_invariants(make())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"bins": 0}, "bins must be >= 1, got 0"), ({"gamma": 0.0}, "gamma must be a positive number, got 0")],
)
def test_bad_settings_are_refused(settings, message):
    for make in (TieAwareAPLoss, TieAwareNDCGLoss):
        with pytest.raises(ValueError, match=message):
            make(**settings)
