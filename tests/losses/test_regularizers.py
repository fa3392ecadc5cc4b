"""Penalties on a batch against their formulas, one entry at a time."""

import math

import pytest
import torch

import hybridhash.losses as losses
from hybridhash.losses import (
    balance_penalty,
    bihalf_penalty,
    coding_rate_penalty,
    decorrelation_penalty,
    koleo_penalty,
)
from hybridhash.losses.regularizers import half_signs
from hybridhash.models.heads import BiHalfHead
from tests._processes import run_on_ranks

PENALTIES = [
    balance_penalty,
    bihalf_penalty,
    coding_rate_penalty,
    decorrelation_penalty,
    koleo_penalty,
]


def batch(seed=0, rows=7, bits=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, bits, generator=generator, dtype=torch.float64)


def literal_balance(u):
    return sum((sum(row[k] for row in u) / len(u)) ** 2 for k in range(u.shape[1])) / u.shape[1]


def literal_decorrelation(u):
    n, bits = u.shape
    pairs = [(k, j) for k in range(bits) for j in range(bits) if k != j]
    return sum((sum(row[k] * row[j] for row in u) / n) ** 2 for k, j in pairs) / len(pairs)


def literal_bihalf(u):
    total = 0.0
    for column in u.T:
        for position, row in enumerate(sorted(range(len(u)), key=lambda i: -column[i])):
            target = 1 if position < len(u) / 2 else -1
            total = total + (column[row] - target) ** 2 / 2
    return total / u.numel()


def literal_koleo(u):
    x = [row / row.norm() for row in u]
    nearest = [min((x[i] - x[j]).norm() for j in range(len(x)) if j != i) for i in range(len(x))]
    return -sum(d.log() for d in nearest) / len(x)


def literal_coding_rate(u, eps=0.05):
    n, bits = u.shape
    v = torch.stack([row / row.norm() for row in u])
    matrix = torch.eye(bits) + bits / (n * eps) * sum(torch.outer(row, row) for row in v)
    return -(bits + n) / (bits * n) * torch.logdet(matrix) / 2


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("seed", range(2))
def test_each_equals_its_literal_formula(penalty, seed):
    u = batch(seed).requires_grad_()
    literal = globals()[f"literal_{penalty.__name__.removesuffix('_penalty')}"]
    torch.testing.assert_close(penalty(u), literal(u), rtol=1e-6, atol=1e-7)
    assert torch.autograd.gradcheck(penalty, u)


def test_every_penalty_of_the_package_is_tested_here():
    assert [p.__name__ for p in PENALTIES] == [name for name in losses.__all__ if name.endswith("_penalty")]


def test_balanced_independent_codes_have_no_penalty():
    codes = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert [p(codes).item() for p in (balance_penalty, decorrelation_penalty, bihalf_penalty)] == [0, 0, 0]
    same = torch.ones(4, 2)
    assert [p(same).item() for p in (balance_penalty, decorrelation_penalty, bihalf_penalty)] == [1, 1, 1]
    assert coding_rate_penalty(codes) < coding_rate_penalty(same)
    assert koleo_penalty(codes) < koleo_penalty(same)


def test_the_bihalf_penalty_has_the_pull_of_the_head():
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    pulls = []
    for gamma in (6.0, 0.0):
        torch.manual_seed(0)
        head = BiHalfHead(5, 4, gamma=gamma)
        (head(x) * torch.arange(4.0)).sum().backward()
        pulls.append(head.fc.weight.grad)
    torch.manual_seed(0)
    head = BiHalfHead(5, 4).eval()
    (6 * bihalf_penalty(head(x))).backward()
    torch.testing.assert_close(head.fc.weight.grad, pulls[0] - pulls[1])


def test_half_signs_of_an_odd_number_have_one_more_above():
    assert half_signs(batch(rows=5)).sum(0).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_degenerate_batches_are_finite_in_every_precision(penalty, dtype):
    for codes in (torch.zeros(4, 3), torch.ones(4, 3), torch.ones(1, 1), torch.ones(0, 3)):
        codes = codes.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = penalty(codes)
        assert value.dtype == torch.float32
        assert bool(value.isfinite())
        assert bool(torch.autograd.grad(value, codes)[0].isfinite().all())
    assert math.isnan(penalty(torch.full((3, 2), math.nan)).item())


@pytest.mark.parametrize("penalty", PENALTIES)
def test_bad_codes_are_refused(penalty):
    with pytest.raises(TypeError, match="must be real-valued"):
        penalty(torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"must have shape \(N, bits\), got \(3,\)"):
        penalty(torch.ones(3))


@pytest.mark.parametrize("penalty", [koleo_penalty, coding_rate_penalty])
def test_eps_must_be_positive(penalty):
    with pytest.raises(ValueError, match="eps must be a positive number, got 0"):
        penalty(torch.ones(3, 2), eps=0)


def _on_rank(rank, case):
    codes, rows = case
    results = {}
    for penalty in PENALTIES:
        leaf = codes[rows[rank]].clone().requires_grad_()
        value = penalty(leaf)
        value.backward()
        results[penalty.__name__] = value.detach(), leaf.grad
    return results


def test_two_processes_equal_one_on_the_joined_batch():
    codes = batch(3)
    expected = _on_rank(0, (codes, [torch.arange(7)]))
    first, second = run_on_ranks(_on_rank, (codes, [torch.arange(4), torch.arange(4, 7)]))
    for name, (value, gradient) in expected.items():
        torch.testing.assert_close(first[name][0], value, msg=name)
        joined = torch.cat((first[name][1], second[name][1])) / 2
        torch.testing.assert_close(joined, gradient, msg=name)
