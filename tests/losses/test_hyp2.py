"""HyP2 against its formula, and the cosine up to which codes of different classes may be alike."""

from __future__ import annotations

import math

import pytest
import torch

from hybridhash.losses import HyP2Loss, hash_centers, minimum_distance
from hybridhash.losses.functional import hyp2_loss
from hybridhash.losses.hyp2 import hyp2_threshold
from tests.losses import _invariants as check
from tests.losses._oracles import cosine

# Rows 0, 2 and 3 have several labels; of their pairs only (0, 2) shares none. Row 4 has none.
LABELS = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
PROXIES = torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def literal(codes, labels, proxies, threshold, beta):
    """The three means, one image and class, or one pair of images, at a time."""
    positive, negative, pairs = [], [], []
    for u, y in zip(codes, labels, strict=True):
        for p, own in zip(proxies, y.tolist(), strict=True):
            if own:
                positive.append(1 - cosine(u, p))
            elif y.any():
                negative.append((cosine(u, p) - threshold).clamp(min=0))
    for u, y in zip(codes, labels, strict=True):
        for v, z in zip(codes, labels, strict=True):
            if y.sum() > 1 and z.sum() > 1 and not (y * z).any():
                pairs.append((cosine(u, v) - threshold).clamp(min=0))
    parts = [torch.stack(terms).mean() if terms else 0 for terms in (positive, negative, pairs)]
    return parts[0] + parts[1] + beta * parts[2]


@pytest.mark.parametrize("threshold", [-0.4, 0.0, 0.3])
@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
@pytest.mark.parametrize(
    "labels", [LABELS, torch.eye(4)[[0, 1, 1, 3, 2, 0]].long(), torch.zeros_like(LABELS)]
)
def test_value_and_gradients_equal_the_literal_formula(threshold, beta, labels):
    codes = check.random_codes().requires_grad_()
    proxies = PROXIES.clone().requires_grad_()
    got = hyp2_loss(codes, labels, proxies=proxies, threshold=threshold, beta=beta)
    if not labels.any():
        assert got == 0
        return
    expected = literal(codes, labels, proxies, threshold, beta)
    torch.testing.assert_close(got, expected)
    grads = [torch.autograd.grad(loss, (codes, proxies)) for loss in (got, expected)]
    torch.testing.assert_close(*grads)


def test_the_class_has_proxies_that_learn_and_start_from_the_generator():
    loss, again = (HyP2Loss(4, 4, generator=torch.Generator().manual_seed(5)) for _ in "ab")
    assert torch.equal(loss.proxies, again.proxies)
    codes = check.random_codes(dtype=torch.float32)
    expected = hyp2_loss(codes, LABELS, proxies=loss.proxies, threshold=loss.threshold, beta=0.5)
    assert torch.equal(loss(codes, LABELS), expected)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    before = loss(codes, LABELS)
    before.backward()
    optimizer.step()
    assert loss(codes, LABELS) < before


def test_the_threshold_is_that_of_known_codes():
    # [n, k, d] of the tables of best linear codes: repetition, simplex, Hadamard and Golay codes.
    for bits, dimensions, distance in (
        (9, 1, 9),
        (7, 3, 4),
        (15, 4, 8),
        (16, 5, 8),
        (64, 7, 32),
        (32, 6, 16),
    ):
        assert hyp2_threshold(2**dimensions, bits) == 1 - 2 * distance / bits
        assert hyp2_threshold(2 ** (dimensions - 1) + 1, bits) == 1 - 2 * distance / bits
    assert hyp2_threshold(1, 8) == -1
    assert hyp2_threshold(1000, 8) == 1 - 2 / 8  # more classes than codes: 1, the least distance
    # As far apart as the centers that can be constructed for these.
    centers = hash_centers(32, 16, "hadamard")
    assert 1 - 2 * minimum_distance(centers) / 16 == hyp2_threshold(32, 16)
    assert all(math.isfinite(hyp2_threshold(c, b)) for c in (2, 10, 81, 1000) for b in (1, 12, 48, 128))


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("num_classes must be >= 1, got 0", lambda: HyP2Loss(0, 4)),
        ("bits must be >= 1, got 0", lambda: HyP2Loss(3, 0)),
        (r"threshold is a cosine and must be in \[-1, 1\], got 1.5", lambda: HyP2Loss(3, 4, threshold=1.5)),
        ("beta must be 0 or a positive number, got -1", lambda: HyP2Loss(3, 4, beta=-1)),
        (
            "HyP2Loss compares nothing",
            lambda: HyP2Loss(3, 4)(PROXIES, torch.arange(4) % 3, ref_codes=PROXIES),
        ),
    ],
)
def test_bad_settings_are_named(message, make):
    with pytest.raises(ValueError, match=message):
        make()
