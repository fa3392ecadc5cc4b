"""CSQ against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from hybridhash.losses import CSQLoss
from hybridhash.losses.functional import csq_loss
from tests.losses._oracles import H4, U, Y, assert_same_value_and_gradient, literal_centroid, random_batch

IDS = torch.tensor([0, 0, 2, 1])


def literal_csq(codes, labels, centers, tie_bits, weight):
    terms = []
    for u, row in zip(codes, labels, strict=True):
        if not row.any():
            continue
        center = literal_centroid(centers, row, tie_bits)
        for k, c in enumerate(center):
            p, t = (u[k] + 1) / 2, (c + 1) / 2
            terms.append(-(t * torch.log(p) + (1 - t) * torch.log(1 - p)) + weight * (u[k].abs() - 1) ** 2)
    return torch.stack(terms).mean()


def test_csq_center_term_of_a_worked_example():
    for codes, tanh in ((U.tanh(), False), (U, True)):
        loss = csq_loss(codes, IDS, centers=H4[:3], tanh=tanh, quantization=0.0)
        assert loss.item() == pytest.approx(0.9972759794, abs=1e-10)


def test_csq_quantiser_of_a_worked_example():
    for codes, tanh, expected in ((U.tanh(), False, 0.3499064273), (U, True, 0.3499064273), (U, False, 0.31)):
        with_term, without = (
            csq_loss(codes, IDS, centers=H4[:3], tanh=tanh, quantization=weight) for weight in (1.0, 0.0)
        )
        assert (with_term - without).item() == pytest.approx(expected, abs=1e-10)


def test_csq_centroids_of_a_worked_example_take_the_tie_bits_where_undecided():
    # The sums of the centers are [1,1,1,1], [2,0,2,0], [1,1,-1,-1], [1,-1,1,-1].
    tie_bits = torch.tensor([-1.0, 1.0, -1.0, -1.0])
    centroids = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, -1], [1, -1, 1, -1]])
    got = csq_loss(U, Y, centers=H4[:3], tie_bits=tie_bits, quantization=0.0)
    expected = -((1 + centroids * U) / 2).log().mean()
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("seed", range(3))
def test_csq_equals_the_literal_formula(seed):
    codes, labels, centers = random_batch(seed, bounded=True)
    tie_bits = torch.tensor([1.0, -1, 1, -1, -1, 1])
    loss = CSQLoss(5, 6, quantization=0.3)
    loss.centers.copy_(centers)
    loss.tie_bits.copy_(tie_bits)
    expected = literal_csq(codes, labels, centers, tie_bits, 0.3)
    assert_same_value_and_gradient(loss(codes, labels), expected, codes)


def test_csq_of_saturated_half_precision_codes_stays_finite_in_half_precision():
    for dtype in (torch.float16, torch.bfloat16):
        before = torch.full((1, 4), 30.0, dtype=dtype, requires_grad=True)
        loss = csq_loss(before.tanh(), torch.tensor([0]), centers=-torch.ones(1, 4))
        (grad,) = torch.autograd.grad(loss, before)
        assert loss.isfinite()
        assert loss.dtype == torch.float32
        assert grad.isfinite().all()


def test_csq_takes_the_exact_logarithm_up_to_the_last_code_below_one():
    codes = torch.tensor([[-0.99999994]])
    got = csq_loss(codes, torch.tensor([0]), centers=torch.ones(1, 1), quantization=0.0)
    assert got.item() == pytest.approx(-math.log(2**-25), rel=1e-6)


def test_csq_refuses_codes_of_an_unbounded_head():
    codes, ids = torch.tensor([[-3.0, 0.5]]), torch.tensor([0])
    with pytest.raises(ValueError, match=r"codes must be in \[-1, 1\].* size 3: set tanh=True"):
        CSQLoss(2, 2)(codes, ids)
    with pytest.raises(ValueError, match=r"got one of size inf"):
        csq_loss(codes / 0, ids, centers=torch.ones(1, 2))
    assert csq_loss(codes, ids, centers=torch.ones(1, 2), tanh=True).isfinite()
    assert csq_loss(codes * math.nan, ids, centers=torch.ones(1, 2)).isnan()


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("quantization must be 0 or a positive number, got -1", lambda: CSQLoss(3, 8, quantization=-1)),
        ("9 classes need different codes, but 3 bits", lambda: CSQLoss(9, 3)),
        ("unknown method 'random'", lambda: CSQLoss(3, 8, centers="random")),
        ("got 3 centers for 4 classes", lambda: CSQLoss(4, 4, centers=H4[:3])),
        ("centers have 4 bits, expected 8", lambda: CSQLoss(3, 8, centers=H4[:3])),
        ("centers must be -1 and 1 only", lambda: CSQLoss(3, 4, centers=torch.zeros(3, 4))),
        ("two centers are equal", lambda: CSQLoss(3, 4, centers=H4[[0, 1, 1]])),
    ],
)
def test_bad_settings_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()
