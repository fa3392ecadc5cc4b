"""DSHSD against its formula."""

from __future__ import annotations

import pytest
import torch

from hybridhash.losses import CodeBank, DSHSDLoss
from hybridhash.losses.functional import dshsd_loss
from tests.losses import _oracles as oracle
from tests.losses._oracles import U, Y

WEIGHT = torch.tensor(
    [[0.5, -1.0, 0.2, 0.1], [0.3, 0.4, -0.7, 0.9], [-0.2, 0.6, 0.8, -0.5]], dtype=torch.float64
)


def literal(codes, labels, weight, *, margin=8, alpha=0.05, classification="softmax", tanh=False):
    """alpha times the mean of the contrastive term over all pairs, plus the mean entropy over the rows."""
    if tanh:
        codes = (codes.exp() - (-codes).exp()) / (codes.exp() + (-codes).exp())
    pairs, rows = [], []
    for i, j in oracle.pairs(len(codes), False):
        distance = sum((a - b) ** 2 for a, b in zip(codes[i], codes[j], strict=True))
        hinge = torch.relu(margin - distance)
        pairs.append(distance / 2 if bool((labels[i] * labels[j]).any()) else hinge / 2)
    for u, y in zip(codes, labels.tolist(), strict=True):
        logits = [(w * u).sum() for w in weight]
        for logit, of_class in zip(logits, y, strict=True):
            if classification == "sigmoid" and sum(y):
                p = 1 / (1 + (-logit).exp())
                rows.append(-p.log() if of_class else -(1 - p).log())
            elif of_class:
                rows.append(-(logit.exp() / sum(x.exp() for x in logits)).log() / sum(y))
    return alpha * sum(pairs) / len(pairs) + sum(rows) / len(codes)


@pytest.mark.parametrize(
    "labels", [Y, torch.eye(3)[[0, 1, 1, 2]].long(), Y * torch.tensor([1, 1, 0, 1])[:, None]]
)
@pytest.mark.parametrize(
    "settings",
    [{}, {"margin": 2.0, "alpha": 1.5}, {"classification": "sigmoid"}, {"tanh": True}],
    ids=str,
)
def test_value_and_gradients_equal_the_literal_formula(labels, settings):
    codes, weight = U.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    got = dshsd_loss(codes, labels, weight=weight, **settings)
    expected = literal(codes, labels, weight, **settings)
    torch.testing.assert_close(got, expected)
    grads = [torch.autograd.grad(loss, (codes, weight)) for loss in (got, expected)]
    torch.testing.assert_close(*grads)


def test_the_class_computes_the_same_and_its_classifier_learns():
    state = torch.get_rng_state()
    loss, again = (DSHSDLoss(3, 4, generator=torch.Generator().manual_seed(5)) for _ in "ab")
    assert torch.equal(loss.classifier.weight, again.classifier.weight)
    torch.testing.assert_close(loss(U, Y), dshsd_loss(U, Y, weight=loss.classifier.weight))
    assert torch.equal(torch.get_rng_state(), state)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    before = loss(U, Y)
    before.backward()
    optimizer.step()
    assert loss(U, Y) < before


@pytest.mark.parametrize("tanh", [False, True])
def test_a_full_bank_gives_the_pairs_of_the_batch(tanh):
    loss = DSHSDLoss(3, 4, tanh=tanh, bank=CodeBank(4, 4, 3, dtype=torch.float64))
    codes = U.clone().requires_grad_()
    expected = literal(U, Y, loss.classifier.weight.double(), tanh=tanh)
    torch.testing.assert_close(loss(codes, Y, indices=torch.arange(4)), expected)
    assert torch.equal(loss.bank.codes, U)
    assert {"bank", "indices", "parameters"} == loss.requires


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("num_classes must be >= 1, got 0", lambda: DSHSDLoss(0, 4)),
        ("margin must be a positive number, got 0", lambda: DSHSDLoss(3, 4, margin=0)),
        ("alpha must be 0 or a positive number, got -1", lambda: DSHSDLoss(3, 4, alpha=-1)),
        ("classification must be one of 'softmax', 'sigmoid', got 'tanh'",
         lambda: DSHSDLoss(3, 4, classification="tanh")),
        ("codes have 4 bits, expected 8", lambda: DSHSDLoss(3, 8)(U, Y)),
        ("labels have 3 classes, the loss was made for 5", lambda: DSHSDLoss(5, 4)(U, Y)),
        ("class id 7 does not fit labels of 5", lambda: DSHSDLoss(5, 4)(U, torch.tensor([0, 7, 1, 1]))),
    ],
)  # fmt: skip
def test_bad_settings_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()
