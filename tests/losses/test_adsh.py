"""ADSH against its literal objective, and the descent of its discrete step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridhash.losses import ADSHLoss
from tests.losses._invariants import random_codes, value_and_grad

IDS = torch.tensor([0, 0, 1, 2, 1, 0, -1, 2, 2])
MULTI_HOT = torch.tensor(
    [[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]]
)
ROWS = torch.tensor([4, 0, 7, 6])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def alike(labels, i, j):
    if labels.ndim == 2:
        return bool((labels[i] * labels[j]).sum())
    return bool(labels[i] == labels[j] and labels[i] >= 0)


def ratio(labels, rows):
    pairs = [alike(labels, i, j) for i in rows for j in range(len(labels))]
    return sum(pairs) / (len(pairs) - sum(pairs))


def adsh(u, rows, v, labels, r, gamma):
    """J / (m n) by a double loop."""
    total = torch.zeros((), dtype=u.dtype)
    bits = u.shape[1]
    for i, row in enumerate(rows.tolist()):
        for j in range(len(v)):
            s = 1.0 if alike(labels, row, j) else -r
            total = total + (u[i] @ v[j] - bits * s) ** 2
        total = total + gamma * (v[row] - u[i]).square().sum()
    return total / (len(rows) * len(v))


@pytest.mark.parametrize("labels", [IDS, MULTI_HOT], ids=["ids", "multi-hot"])
@pytest.mark.parametrize("dissimilarity", ["database", "batch", 1.0, 0.0])
def test_loss_is_the_literal_objective(labels, dissimilarity):
    loss = ADSHLoss(labels, 5, gamma=3.0, dissimilarity=dissimilarity, generator=seeded())
    codes = random_codes(4, 5)
    r = dissimilarity
    if isinstance(r, str):
        r = ratio(labels, list(range(9)) if r == "database" else ROWS.tolist())
    got = value_and_grad(lambda u, y: loss(u, y, indices=ROWS), codes, labels[ROWS])
    database = loss.database_codes.double()
    expected = value_and_grad(lambda u, y: adsh(u, ROWS, database, labels, r, 3.0), codes, labels[ROWS])
    torch.testing.assert_close(got, expected)
    assert torch.equal(loss.objective(codes, ROWS), got[0])


@pytest.mark.parametrize("labels", [IDS, MULTI_HOT], ids=["ids", "multi-hot"])
def test_update_is_the_published_column_rule(labels):
    loss = ADSHLoss(labels, 5, generator=seeded())
    u, gamma, n = random_codes(4, 5), 200.0, 9
    v = loss.database_codes.double()
    r = ratio(labels, list(range(n)))
    s = torch.tensor([[1.0 if alike(labels, int(i), j) else -r for j in range(n)] for i in ROWS]).double()
    u_bar = torch.zeros(n, 5, dtype=torch.float64)
    u_bar[ROWS] = u
    q = -2 * 5 * s.T @ u - 2 * gamma * u_bar
    for k in range(5):
        rest = [other for other in range(5) if other != k]
        v[:, k] = -torch.sign(2 * v[:, rest] @ (u[:, rest].T @ u[:, k]) + q[:, k])
    loss.update_database_codes(u, ROWS)
    assert torch.equal(loss.database_codes.double(), v)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(1, 6),
    gamma=st.sampled_from([0.0, 1.0, 200.0]),
    dissimilarity=st.sampled_from(["database", "batch", 1.0]),
    multi=st.booleans(),
    sample=st.integers(1, 9),
)
def test_no_update_makes_the_objective_larger(seed, bits, gamma, dissimilarity, multi, sample):
    labels = MULTI_HOT if multi else IDS
    loss = ADSHLoss(labels, bits, gamma=gamma, dissimilarity=dissimilarity, generator=seeded(seed))
    codes, rows = random_codes(sample, bits, seed), torch.randperm(9, generator=seeded(seed))[:sample]
    before = loss.objective(codes, rows)
    for _ in range(3):
        loss.update_database_codes(codes, rows)
        after = loss.objective(codes, rows)
        assert after <= before + 1e-9 * (1 + before.abs())
        assert bool((loss.database_codes.abs() == 1).all())
        before = after


def test_update_finds_the_best_column_of_all():
    loss = ADSHLoss(IDS, 1, generator=seeded(1))
    codes = random_codes(4, 1)
    loss.update_database_codes(codes, ROWS)
    best = loss.objective(codes, ROWS)
    start = loss.database_codes.clone()
    for number in range(2**9):
        signs = torch.tensor([1.0 if number >> bit & 1 else -1.0 for bit in range(9)])[:, None]
        loss.database_codes.copy_(signs)
        assert loss.objective(codes, ROWS) >= best - 1e-12
    assert bool((start.abs() == 1).all())


def test_an_entry_without_preference_keeps_its_value():
    loss = ADSHLoss(IDS, 3, generator=seeded())
    before = loss.database_codes.clone()
    loss.update_database_codes(torch.zeros(4, 3), ROWS)
    assert torch.equal(loss.database_codes, before)


def test_sweeps_repeat_the_update_and_epoch_end_is_one():
    codes = random_codes(4, 5, dtype=torch.float32)
    twice, by_hand, hook = (ADSHLoss(IDS, 5, generator=seeded()) for _ in range(3))
    twice.update_database_codes(codes, ROWS, sweeps=2)
    by_hand.update_database_codes(codes, ROWS)
    hook(codes / 2, IDS[ROWS], indices=ROWS)
    hook(codes[:3], IDS[ROWS[:3]], indices=ROWS[:3])
    # Within a batch the last occurrence of a row counts.
    twice_in_batch = torch.tensor([6, 6])
    hook(codes[[0, 3]], IDS[twice_in_batch], indices=twice_in_batch)
    hook.eval()
    hook(codes / 3, IDS[ROWS], indices=ROWS)
    hook.epoch_end()
    assert torch.equal(hook.database_codes, by_hand.database_codes)
    by_hand.update_database_codes(codes, ROWS)
    assert torch.equal(twice.database_codes, by_hand.database_codes)
    before = hook.database_codes.clone()
    hook.epoch_end()
    assert torch.equal(hook.database_codes, before)
    assert hook.requires == {"indices", "epoch_hook"}


def test_alternating_separates_the_classes():
    labels = torch.arange(30) % 3
    loss = ADSHLoss(labels, 8, gamma=1, generator=seeded())
    codes = torch.nn.Parameter(0.1 * random_codes(30, 8, dtype=torch.float32))
    rows = torch.arange(30)
    optimizer = torch.optim.Adam([codes], lr=0.05)
    first = loss.objective(codes.tanh(), rows)
    for _ in range(5):
        for _ in range(20):
            optimizer.zero_grad()
            loss(codes.tanh(), labels, indices=rows).backward()
            optimizer.step()
        loss.update_database_codes(codes.detach().tanh(), rows)
    products = loss.database_codes @ loss.database_codes.T
    same = labels[:, None] == labels
    assert loss.objective(codes.tanh(), rows) < first / 2
    assert products[same].mean() > 6
    assert products[~same].mean() < 0


def test_state_dict_restores_the_loss():
    loss, codes = ADSHLoss(IDS, 5, generator=seeded()), random_codes(4, 5)
    loss.update_database_codes(codes, ROWS)
    other = ADSHLoss(torch.zeros(9, dtype=torch.int64), 5, generator=seeded(9))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(codes, IDS[ROWS], indices=ROWS), loss(codes, IDS[ROWS], indices=ROWS))


def test_numerics():
    loss = ADSHLoss(IDS, 4, generator=seeded())
    signs = random_codes(4, 4, dtype=torch.float32).sign()
    for codes in (torch.zeros(4, 4), signs, 1e4 * signs, signs.half(), signs.bfloat16()):
        for number in (4, 1):
            value, grad = value_and_grad(
                lambda u, y, number=number: loss(u, y, indices=ROWS[:number]),
                codes[:number],
                IDS[ROWS[:number]],
            )
            assert value.dtype == torch.float32
            assert value.isfinite()
            assert grad.isfinite().all()
    assert loss(torch.zeros(0, 4), IDS[:0], indices=ROWS[:0]) == 0
    codes = random_codes(4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: loss(u, IDS[ROWS], indices=ROWS), codes)
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss(codes.float(), IDS[ROWS], indices=ROWS)
    torch.testing.assert_close(cast, loss(codes.float(), IDS[ROWS], indices=ROWS))


def test_labels_of_the_other_form_are_the_same_labels():
    codes = random_codes(4, 4)
    one_hot = IDS[:, None] == torch.arange(3)
    by_ids, by_hot = (ADSHLoss(given, 4, generator=seeded()) for given in (IDS, one_hot))
    values = [
        loss(codes, labels[ROWS], indices=ROWS) for loss in (by_ids, by_hot) for labels in (IDS, one_hot)
    ]
    for value in values:
        torch.testing.assert_close(value, values[0])


@pytest.mark.parametrize("labels", [IDS, MULTI_HOT], ids=["ids", "multi-hot"])
def test_inputs_stay(labels):
    codes, rows, given = random_codes(4, 4), ROWS.clone(), labels.clone()
    loss = ADSHLoss(given, 4, generator=seeded())
    before = codes.clone()
    loss(codes, given[rows], indices=rows)
    loss.update_database_codes(codes, rows)
    assert torch.equal(codes, before)
    assert torch.equal(rows, ROWS)
    assert torch.equal(given, labels)
    given.zero_()
    assert torch.equal(loss.database_labels.long(), labels)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda loss, u: loss(u, IDS[ROWS]), ValueError, "indices are needed"),
        (
            lambda loss, u: loss(u, IDS[ROWS], indices=ROWS + 5),
            IndexError,
            "index 12 is outside .* of 9 rows",
        ),
        (lambda loss, u: loss(u, IDS[ROWS], indices=ROWS - 1), IndexError, "index -1 is outside"),
        (lambda loss, u: loss(u, IDS[ROWS], indices=ROWS.float()), TypeError, "tensor of integers"),
        (lambda loss, u: loss(u, IDS[ROWS], indices=ROWS[:2]), ValueError, r"shape \(4,\)"),
        (lambda loss, u: loss(u, IDS[:4], indices=ROWS), ValueError, "labels of row 4 differ"),
        (lambda loss, u: loss(u[:, :3], IDS[ROWS], indices=ROWS), ValueError, "3 bits, expected 4"),
        (
            lambda loss, u: loss(u, IDS[ROWS], indices=ROWS, ref_codes=u, ref_labels=IDS[ROWS]),
            ValueError,
            "leave ref_codes and ref_labels out",
        ),
        (
            lambda loss, u: loss.update_database_codes(u, ROWS, sweeps=0),
            ValueError,
            "sweeps must be >= 1, got 0",
        ),
        (lambda loss, u: loss.update_database_codes(u / 0, ROWS), ValueError, "codes contain NaN"),
        (lambda _, u: ADSHLoss(IDS, 0), ValueError, "bits must be >= 1, got 0"),
        (lambda _, u: ADSHLoss(IDS[:0], 4), ValueError, "database_labels is empty"),
        (lambda _, u: ADSHLoss(IDS, 4, gamma=-1), ValueError, "gamma must be 0 or a positive number"),
        (lambda _, u: ADSHLoss(IDS, 4, dissimilarity=-1), ValueError, "dissimilarity must be 0 or"),
        (lambda _, u: ADSHLoss(IDS, 4, dissimilarity="all"), ValueError, "'database', 'batch' or a number"),
        (
            lambda _, u: ADSHLoss(MULTI_HOT, 4)(u, torch.zeros(4, 5), indices=ROWS),
            ValueError,
            "labels have 5 classes, the database has 3",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(ADSHLoss(IDS, 4, generator=seeded()), torch.zeros(4, 4))
