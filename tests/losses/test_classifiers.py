"""DLBHC and GreedyHash against their formulas."""

from __future__ import annotations

import pytest
import torch

from hybridhash.losses import DLBHCLoss, GreedyHashLoss
from hybridhash.losses.functional import dlbhc_loss, greedyhash_loss
from tests.losses._oracles import U

IDS = torch.tensor([0, -1, 2, 1])
WEIGHT = torch.tensor([[0.5, -1.0, 0.2, 0.1], [0.3, 0.4, -0.7, 0.9], [-0.2, 0.6, 0.8, -0.5]])
BIAS = torch.tensor([0.1, -0.2, 0.3])


def literal_cross_entropy(inputs, weight, bias):
    terms = []
    for a, y in zip(inputs, IDS.tolist(), strict=True):
        if y >= 0:
            logits = [(w.double() * a).sum() + b.double() for w, b in zip(weight, bias, strict=True)]
            terms.append(-torch.log(torch.exp(logits[y]) / sum(torch.exp(x) for x in logits)))
    return torch.stack(terms).mean()


def test_dlbhc_equals_the_literal_formula():
    codes = U.clone().requires_grad_()
    got = dlbhc_loss(codes, IDS, weight=WEIGHT, bias=BIAS)
    expected = literal_cross_entropy(1 / (1 + torch.exp(-codes)), WEIGHT, BIAS)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, codes)[0] for loss in (got, expected)))


def test_dlbhc_takes_tanh_outputs_as_the_same_latent_units():
    expected = dlbhc_loss(U, IDS, weight=WEIGHT, bias=BIAS)
    got = dlbhc_loss((U / 2).tanh(), IDS, weight=WEIGHT, bias=BIAS, latent="tanh")
    torch.testing.assert_close(got, expected)


def test_greedyhash_equals_the_literal_formula():
    penalty = torch.stack([(u.abs() - 1).abs() ** 3 for i in (0, 2, 3) for u in U[i]]).mean()
    expected = literal_cross_entropy(U.sign(), WEIGHT, torch.zeros(3)) + 0.4 * penalty
    torch.testing.assert_close(greedyhash_loss(U, IDS, weight=WEIGHT, alpha=0.4), expected)


def test_greedyhash_passes_the_gradient_of_the_signs_to_the_codes():
    codes, signs = U.clone().requires_grad_(), U.sign().requires_grad_()
    (got,) = torch.autograd.grad(greedyhash_loss(codes, IDS, weight=WEIGHT, alpha=0.0), codes)
    (expected,) = torch.autograd.grad(literal_cross_entropy(signs, WEIGHT, torch.zeros(3)), signs)
    torch.testing.assert_close(got, expected)


def test_greedyhash_takes_zero_for_minus_one():
    zero, minus = (
        greedyhash_loss(torch.full((1, 4), value), torch.tensor([1]), weight=WEIGHT, alpha=0.0)
        for value in (0.0, -1.0)
    )
    assert torch.equal(zero, minus)


def test_several_labels_are_refused_with_the_reason():
    loss = DLBHCLoss(3, 4)
    assert loss(U, torch.tensor([[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]])).isfinite()
    with pytest.raises(ValueError, match=r"DLBHCLoss is defined for one label per image .* with 2 labels"):
        loss(U, torch.tensor([[1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 1, 0]]))


@pytest.mark.parametrize("build", [DLBHCLoss, GreedyHashLoss])
def test_classifier_is_a_parameter_that_learns_and_starts_from_the_generator(build):
    state = torch.get_rng_state()
    loss, again = (build(3, 4, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(loss.classifier.weight, again.classifier.weight)
    assert loss.classifier.weight.abs().max() <= 0.5
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    before = loss(U, IDS)
    before.backward()
    optimizer.step()
    assert loss(U, IDS) < before


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("num_classes must be >= 1, got 0", lambda: DLBHCLoss(0, 4)),
        ("bits must be >= 1, got 0", lambda: GreedyHashLoss(3, 0)),
        ("latent must be one of 'sigmoid', 'tanh', got 'relu'", lambda: DLBHCLoss(3, 4, latent="relu")),
        ("alpha must be 0 or a positive number, got -0.1", lambda: GreedyHashLoss(3, 4, alpha=-0.1)),
    ],
)
def test_bad_settings_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()
