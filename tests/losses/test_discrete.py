"""DSDH and DFH: their discrete steps, and the loss against literal transcriptions."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from hybridhash.losses import CodeBank, DFHLoss, DSDHLoss
from hybridhash.losses.dfh import fisher_centers
from hybridhash.shallow.discrete import dsdh_codes, ridge_classifier


def example(seed=0, n=6, bits=4, classes=3):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(n, bits, generator=generator, dtype=torch.float64)
    return codes, (torch.rand(n, classes, generator=generator) < 0.4).long()


def test_ridge_classifier_is_the_minimum():
    codes, labels = example()
    signs, hot = codes.sign(), labels.double()
    classifier = ridge_classifier(signs, hot, 0.3).requires_grad_()
    objective = (hot - signs @ classifier).square().sum() + 0.3 * classifier.square().sum()
    torch.testing.assert_close(torch.autograd.grad(objective, classifier)[0], torch.zeros(4, 3).double())


@pytest.mark.parametrize("seed", range(5))
def test_coordinate_descent_lowers_the_objective_and_no_single_bit_can_lower_it_further(seed):
    codes, labels = example(seed)
    hot = labels.double()
    classifier = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def objective(signs):
        return (hot - signs @ classifier).square().sum(1) + 0.7 * (signs - codes).square().sum(1)

    found = dsdh_codes(codes, hot, classifier, 0.7, iterations=50)
    assert bool((objective(found) <= objective(codes.sign()) + 1e-12).all())
    for k in range(4):
        flipped = found.clone()
        flipped[:, k] *= -1
        assert bool((objective(found) <= objective(flipped) + 1e-12).all())


def pair_mean(codes, labels, margin=0.0):
    terms = []
    for i, j in itertools.product(range(len(codes)), repeat=2):
        theta = 0.5 * codes[i] @ codes[j]
        terms.append(F.softplus(margin - theta) if labels[i] @ labels[j] > 0 else F.softplus(margin + theta))
    return torch.stack(terms).mean()


def test_dsdh_in_a_batch_is_likelihood_plus_distance_to_the_alternated_codes():
    codes, labels = example()
    hot, signs = labels.double(), codes.sign()
    for _ in range(10):
        classifier = torch.linalg.inv(signs.T @ signs + 0.5 * torch.eye(4)) @ signs.T @ hot
        signs = dsdh_codes(codes, hot, classifier, 0.4)
    codes.requires_grad_()
    expected = pair_mean(codes, labels) + 0.4 * ((signs - codes) ** 2).sum() / (6 * 17)
    got = DSDHLoss(0.4, nu=0.5, num_train=17)(codes, labels)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, codes)[0] for loss in (got, expected)))


def test_dsdh_fits_its_classifier_to_the_bank_and_keeps_it_in_the_state_dict():
    codes, labels = example(n=8)
    loss, resumed = (DSDHLoss(0.1, bank=CodeBank(8, 4, 3, dtype=torch.float64)) for _ in "ab")
    loss(codes, labels, indices=torch.arange(8))
    assert not bool(loss.classifier.any())
    loss.epoch_end()
    assert bool(loss.classifier.any())
    resumed.load_state_dict(loss.state_dict())
    values = [each(codes, labels, indices=torch.arange(8)) for each in (loss, resumed)]
    assert torch.equal(*values)


def test_dfh_equals_the_literal_formula():
    codes, labels = example()
    loss = DFHLoss(3, 4, margin=1.5, mu=0.3, eta=0.7, generator=torch.Generator().manual_seed(1))
    codes.requires_grad_()
    target = torch.stack(
        [(0.3 * (y.double() @ loss.centers.double()) + u).sign() for u, y in zip(codes, labels, strict=True)]
    )
    expected = pair_mean(codes, labels, 1.5) + 0.7 * ((target.detach() - codes) ** 2).mean()
    got = loss(codes, labels)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each, codes)[0] for each in (got, expected)))


@pytest.mark.parametrize(("classes", "bits"), [(1, 8), (10, 16), (100, 48)])
def test_fisher_centers_of_different_classes_point_away_from_each_other(classes, bits):
    centers = fisher_centers(classes, bits, generator=torch.Generator().manual_seed(0))
    products = centers @ centers.T
    off = products[~torch.eye(classes, dtype=torch.bool)]
    assert centers.shape == (classes, bits)
    assert bool(centers.isfinite().all())
    assert classes == 1 or off.mean() < 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DSDHLoss(0), "eta must be a positive number, got 0"),
        (lambda: DSDHLoss(iterations=0), "iterations must be >= 1, got 0"),
        (lambda: DSDHLoss(bank=CodeBank(5, 4)), "num_classes=C"),
        (lambda: DFHLoss(0, 4), "num_classes must be >= 1, got 0"),
        (lambda: DFHLoss(3, 4, margin=-1), "margin must be a positive number, got -1"),
        (lambda: DFHLoss(3, 4)(torch.zeros(2, 5), torch.tensor([0, 1])), "5 bits, expected 4"),
        (lambda: DFHLoss(3, 4)(torch.zeros(2, 4), torch.eye(2)), "2 classes, the loss was made for 3"),
        (lambda: DFHLoss(3, 4)(torch.zeros(2, 4), torch.tensor([0, 3])), "class id 3 does not fit"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
