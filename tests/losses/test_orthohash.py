"""OrthoHash against its formula."""

from __future__ import annotations

import pytest
import torch

from hybridhash.losses import OrthoHashLoss
from hybridhash.losses.functional import orthohash_loss
from tests.losses._oracles import H4, U, assert_same_value_and_gradient, cosine, random_batch


def literal_orthohash(codes, labels, centers, s, m, q):
    images = []
    for v, row in zip(codes, labels, strict=True):
        if row.any():
            logits = [
                s * (cosine(v, c) - (m if y else 0)) for c, y in zip(centers.to(v.dtype), row, strict=True)
            ]
            log_p = torch.log_softmax(torch.stack(logits), 0)
            share = row.double() / row.sum()
            images.append(-(share * log_p).sum() + q * (1 - cosine(v, v.sign())))
    return torch.stack(images).mean()


def test_orthohash_of_a_worked_example():
    loss = orthohash_loss(U, torch.tensor([0, 0, 2, 1]), centers=H4[:3])
    assert loss.item() == pytest.approx(8.5972179777, abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_orthohash_equals_the_literal_formula(seed):
    codes, labels, centers = random_batch(seed)
    got = orthohash_loss(codes, labels, centers=centers, scale=5, margin=0.3, quantization=0.7)
    assert_same_value_and_gradient(got, literal_orthohash(codes, labels, centers, 5, 0.3, 0.7), codes)


def test_orthohash_does_not_depend_on_the_length_of_the_codes():
    codes, labels, centers = random_batch(2)
    scale = torch.rand(7, 1, dtype=torch.float64) + 0.5
    torch.testing.assert_close(
        orthohash_loss(codes * scale, labels, centers=centers), orthohash_loss(codes, labels, centers=centers)
    )


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("scale must be a positive number, got 0", lambda: OrthoHashLoss(3, 8, scale=0)),
        ("margin must be 0 or a positive number, got -1", lambda: OrthoHashLoss(3, 8, margin=-1)),
    ],
)
def test_bad_settings_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()
