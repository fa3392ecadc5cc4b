"""CNNH: its solver against the written-out objective, and the regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridhash.losses import CNNHLoss, cnnh_codes, cnnh_objective
from hybridhash.losses.cnnh import _improve_row
from tests.losses._invariants import random_codes, value_and_grad

IDS = torch.tensor([0, 0, 1, 2, 1, 0, -1, 2, 2, 1])
MULTI_HOT = (torch.arange(30).reshape(10, 3) * 7 % 5 < 2).long()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def matrix(labels):
    """S by a double loop."""
    hot = labels if labels.ndim == 2 else (labels[:, None] == torch.arange(5)).long()
    return torch.tensor([[1.0 if int((a * b).sum()) else -1.0 for b in hot] for a in hot]).double()


def objective(codes, similarity):
    codes = codes.double()
    return (similarity - codes @ codes.T / codes.shape[1]).square().sum().item()


@pytest.mark.parametrize("labels", [IDS, MULTI_HOT], ids=["ids", "multi-hot"])
def test_objective_is_the_written_out_one(labels):
    codes = random_codes(10, 6)
    expected = objective(codes, matrix(labels))
    assert cnnh_objective(codes, labels) == pytest.approx(expected)
    assert cnnh_objective(codes, similarity=matrix(labels)) == pytest.approx(expected)
    assert cnnh_objective(codes, similarity=matrix(labels) > 0) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(1, 7), multi=st.booleans(), at_bounds=st.booleans())
def test_no_sweep_makes_the_objective_larger(seed, bits, multi, at_bounds):
    labels, generator = MULTI_HOT if multi else IDS, seeded(seed)
    start = 2 * torch.rand(10, bits, generator=generator, dtype=torch.float64) - 1
    codes = start.sign() if at_bounds else start
    before = objective(codes, matrix(labels))
    for _ in range(4):
        codes = cnnh_codes(labels, bits, generator, sweeps=1, start=codes, relaxed=True)
        after = objective(codes, matrix(labels))
        assert after <= before + 1e-9
        assert bool((codes.abs() <= 1).all())
        before = after


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), small=st.booleans())
def test_an_entry_takes_the_newton_step_or_the_better_bound(seed, small):
    """One entry, against derivatives of the written-out objective and its values at the bounds."""
    bits, generator = 4, seeded(seed)
    codes = (2 * torch.rand(10, bits, generator=generator, dtype=torch.float64) - 1) * (0.05 if small else 1)
    similarity, i, j = matrix(IDS), seed % 10, seed % bits

    def along(entry):
        moved = codes.clone()
        moved[i, j] = entry
        return (bits * similarity - moved @ moved.T).square().sum()

    at = codes[i, j].clone().requires_grad_()
    (g1,) = torch.autograd.grad(along(at), at, create_graph=True)
    (g2,) = torch.autograd.grad(g1, at)
    h = float(codes[i, j])
    bounds = [1.0, -1.0]
    if g2 > 0:
        newton = min(max(h - float((g1 / g2).detach()), -1.0), 1.0)
        expected = newton if along(torch.tensor(newton)) < along(at) else None
    else:
        expected = None
    if expected is None:
        best = min(bounds, key=lambda entry: float(along(torch.tensor(entry))))
        expected = best if along(torch.tensor(best)) < along(at) else h
    old = codes[i].numpy()
    rest = (codes.T @ codes).numpy() - np.outer(old, old)
    others = [k for k in range(10) if k != i]
    pull = bits * (similarity[i, others] @ codes[others]).numpy()
    new = _improve_row(old, rest, pull, bits * float(similarity[i, i]), [j])
    assert new[j] == pytest.approx(expected, abs=1e-9)
    assert np.array_equal(np.delete(new, j), np.delete(old, j))


def test_second_derivative_can_be_negative():
    """The case that a plain Newton step gets wrong occurs: small codes of items that should be alike."""
    old = np.full(4, 0.1)
    new = _improve_row(old, np.zeros((4, 4)), np.zeros(4), 4.0, [0])
    assert abs(new[0]) == 1.0
    assert new[1:].tolist() == [0.1] * 3


@pytest.mark.parametrize("labels", [IDS, MULTI_HOT], ids=["ids", "multi-hot"])
def test_labels_and_their_matrix_give_the_same_codes(labels):
    by_labels = cnnh_codes(labels, 6, seeded(), relaxed=True)
    by_matrix = cnnh_codes(None, 6, seeded(), similarity=matrix(labels), relaxed=True)
    torch.testing.assert_close(by_labels, by_matrix)


def test_ids_and_one_hot_give_the_same_codes():
    one_hot = IDS[:, None] == torch.arange(3)
    torch.testing.assert_close(
        cnnh_codes(IDS, 6, seeded(), relaxed=True), cnnh_codes(one_hot, 6, seeded(), relaxed=True)
    )


def test_classes_get_codes_of_their_own():
    labels = torch.arange(60) % 4
    codes = cnnh_codes(labels, 12, seeded())
    assert codes.dtype == torch.float32
    assert bool((codes.abs() == 1).all())
    products, same = codes @ codes.T, labels[:, None] == labels
    assert products[same].min() > products[~same].max()
    random = (torch.rand(60, 12, generator=seeded(1)) - 0.5).sign()
    assert cnnh_objective(codes, labels) < cnnh_objective(random, labels) / 2


def test_a_seed_repeats_the_codes_and_labels_stay():
    labels = MULTI_HOT.clone()
    first = cnnh_codes(labels, 5, seeded(4))
    assert torch.equal(first, cnnh_codes(labels, 5, seeded(4)))
    assert not torch.equal(first, cnnh_codes(labels, 5, seeded(5)))
    assert torch.equal(labels, MULTI_HOT)
    start = random_codes(10, 5)
    before = start.clone()
    cnnh_codes(labels, 5, seeded(), start=start)
    assert torch.equal(start, before)


def test_no_sweep_is_the_rounded_start_with_zero_to_minus_one():
    start = torch.tensor([[0.3, 0.0], [-0.2, 1.0]])
    codes = cnnh_codes(torch.tensor([0, 1]), 2, sweeps=0, start=start)
    assert codes.tolist() == [[1.0, -1.0], [-1.0, 1.0]]


def test_degenerate_sets():
    assert cnnh_codes(torch.zeros(0, dtype=torch.int64), 3, seeded()).shape == (0, 3)
    for labels in (
        torch.tensor([0]),
        torch.tensor([-1]),
        torch.full((5,), -1),
        torch.zeros(5, dtype=torch.int64),
    ):
        codes = cnnh_codes(labels, 3, seeded())
        assert codes.shape == (len(labels), 3)
        assert bool((codes.abs() == 1).all())


def test_no_matrix_over_all_pairs_is_made_from_labels():
    # 200,000 items: their matrix would take 320 GB.
    labels = torch.arange(200_000) % 10
    codes = cnnh_codes(labels, 8, seeded(), sweeps=0)
    assert cnnh_objective(codes, labels) > 0


@pytest.mark.parametrize("target", ["squared", "cross_entropy"])
def test_loss_regresses_the_target_codes(target):
    targets = cnnh_codes(IDS, 4, seeded())
    loss, rows, codes = CNNHLoss(targets, target=target), torch.tensor([3, 0, 9]), random_codes(3, 4)
    total = torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(rows.tolist()):
        for k in range(4):
            h, u = targets[row, k].double(), codes[i, k]
            total = total + ((u - h) ** 2 if target == "squared" else torch.log(1 + torch.exp(-h * u)))
    torch.testing.assert_close(loss(codes, IDS[rows], indices=rows), total / 12)
    assert torch.autograd.gradcheck(lambda u: loss(u, indices=rows), codes.requires_grad_())


@pytest.mark.parametrize("target", ["squared", "cross_entropy"])
def test_numerics(target):
    loss = CNNHLoss(cnnh_codes(IDS, 4, seeded()), target=target)
    signs = random_codes(3, 4, dtype=torch.float32).sign()
    rows = torch.tensor([3, 0, 9])
    for codes in (torch.zeros(3, 4), signs, -1e4 * signs, signs.half(), signs.bfloat16()):
        for number in (3, 1):
            value, grad = value_and_grad(
                lambda u, y, number=number: loss(u, indices=rows[:number]), codes[:number], rows
            )
            assert value.dtype == torch.float32
            assert value.isfinite()
            assert grad.isfinite().all()
    assert loss(torch.zeros(0, 4), indices=rows[:0]) == 0


def test_state_dict_restores_the_targets():
    loss = CNNHLoss(cnnh_codes(IDS, 4, seeded()))
    other = CNNHLoss(torch.ones(10, 4))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.target_codes, loss.target_codes)
    assert loss.requires == {"indices"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cnnh_codes(None, 4), ValueError, "give either labels or similarity"),
        (lambda: cnnh_codes(IDS, 4, similarity=matrix(IDS)), ValueError, "give either labels or similarity"),
        (lambda: cnnh_codes(IDS, 0), ValueError, "bits must be >= 1, got 0"),
        (lambda: cnnh_codes(IDS, 4, sweeps=-1), ValueError, "sweeps must be >= 0, got -1"),
        (lambda: cnnh_codes(IDS, 4, start=torch.ones(3, 4)), ValueError, r"got shape \(3, 4\)"),
        (lambda: cnnh_codes(IDS, 4, start=torch.full((10, 4), 2.0)), ValueError, r"in \[-1, 1\]"),
        (lambda: cnnh_codes(None, 4, similarity=torch.eye(3)), ValueError, "got the entry 0"),
        (lambda: cnnh_codes(None, 4, similarity=torch.ones(2, 3)), ValueError, "square matrix"),
        (lambda: cnnh_codes(None, 4, similarity=torch.ones(3, 3).triu() > 0), ValueError, "symmetric"),
        (lambda: cnnh_codes(None, 4, similarity=[[1.0]]), TypeError, "similarity must be a tensor, got list"),
        (lambda: cnnh_objective(torch.ones(3, 4), IDS), ValueError, "codes have 3 rows"),
        (lambda: CNNHLoss(torch.zeros(3, 4)), ValueError, "target_codes must be 1 and -1"),
        (lambda: CNNHLoss(torch.ones(3, 4, dtype=torch.int64)), TypeError, "must be real-valued"),
        (
            lambda: CNNHLoss(torch.ones(3, 4), target="mse"),
            ValueError,
            "target must be one of 'squared', 'cross_entropy', got 'mse'",
        ),
        (lambda: CNNHLoss(torch.ones(3, 4))(torch.ones(1, 4)), ValueError, "indices are needed"),
        (
            lambda: CNNHLoss(torch.ones(3, 4))(torch.ones(1, 4), indices=torch.tensor([3])),
            IndexError,
            "index 3 is outside the training set of 3 rows",
        ),
        (
            lambda: CNNHLoss(torch.ones(3, 4))(torch.ones(1, 5), indices=torch.tensor([0])),
            ValueError,
            "codes have 5 bits, expected 4",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
