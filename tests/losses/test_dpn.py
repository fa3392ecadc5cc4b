"""DPN against its formula, and its adaptive targets."""

from __future__ import annotations

import pytest
import torch

from hybridhash.losses import DPNLoss
from hybridhash.losses.functional import dpn_loss
from tests.losses._oracles import H4, U, assert_same_value_and_gradient, literal_centroid, random_batch

IDS = torch.tensor([0, 0, 2, 1])


def literal_dpn(codes, labels, targets, margin):
    images = []
    for v, row in zip(codes, labels, strict=True):
        terms = [
            (margin - v[k] * targets[c, k]).clamp(min=0)
            for c in range(len(row))
            if row[c]
            for k in range(len(v))
        ]
        if terms:
            images.append(torch.stack(terms).sum())
    return torch.stack(images).mean()


def test_dpn_of_a_worked_example():
    for reduction, expected in (("sum", 4.6), ("mean", 1.15)):
        loss = dpn_loss(U, IDS, centers=H4[:3], reduction=reduction)
        assert loss.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_dpn_equals_the_literal_formula(seed):
    codes, labels, centers = random_batch(seed, bounded=True)
    expected = literal_dpn(codes, labels, centers, 0.7)
    got = dpn_loss(codes, labels, centers=centers, margin=0.7)
    assert_same_value_and_gradient(got, expected, codes)


def test_dpn_with_centroids_equals_the_literal_formula():
    codes, labels, centers = random_batch(5, bounded=True)
    tie_bits = torch.tensor([1.0, -1, 1, -1, -1, 1])
    targets = torch.tensor([literal_centroid(centers, row, tie_bits) for row in labels])
    images = [
        sum((1 - v[k] * t[k]).clamp(min=0) for k in range(6))
        for v, t, row in zip(codes, targets, labels, strict=True)
        if row.any()
    ]
    got = dpn_loss(codes, labels, centers=centers, multi_label="centroid", tie_bits=tie_bits)
    torch.testing.assert_close(got, torch.stack(images).mean())


def test_adaptive_targets_become_the_majority_of_the_epochs_codes():
    loss = DPNLoss(3, 4, centers=H4[:3], adaptive=True, update_every=1)
    codes = torch.tensor([[-3.0, -1, 2, 1], [-1, 0, -1, 2], [1, -1, -2, -2], [4, 4, 4, 4]])
    for part in (slice(0, 1), slice(1, 4)):
        loss(codes[part], torch.tensor([0, 0, 0, -1])[part])
    loss.eval()
    loss(-codes, torch.tensor([0, 0, 0, 1]))
    loss.epoch_end()
    # A code of exactly 0 counts as -1; classes 1 and 2 did not occur.
    assert loss.centers.tolist() == [[-1.0, -1.0, -1.0, 1.0], *H4[1:3].tolist()]
    assert not loss.class_sums.any()


def test_tied_bits_keep_the_target_and_an_image_counts_for_all_its_labels():
    loss = DPNLoss(3, 4, centers=H4[:3], adaptive=True, update_every=1)
    loss(torch.tensor([[-1.0, 1, -1, 1], [-1, -1, 1, -1]]), torch.tensor([[1, 1, 0], [1, 0, 0]]))
    loss.epoch_end()
    assert loss.centers.tolist() == [[-1.0, 1, 1, 1], [-1, 1, -1, 1], H4[2].tolist()]


def test_targets_that_are_not_adaptive_stay():
    loss = DPNLoss(3, 4, centers=H4[:3])
    loss(-torch.ones(1, 4), torch.tensor([0]))
    loss.epoch_end()
    assert torch.equal(loss.centers, H4[:3])


def test_an_interrupted_adaptive_epoch_resumes_from_the_state_dict():
    first = DPNLoss(3, 4, centers=H4[:3], adaptive=True, update_every=1)
    first(-torch.ones(1, 4), torch.tensor([0]))
    resumed = DPNLoss(3, 4, adaptive=True, update_every=1, generator=torch.Generator().manual_seed(9))
    resumed.load_state_dict(first.state_dict())
    for loss in (first, resumed):
        loss(torch.tensor([[1.0, 1, 1, -1]]), torch.tensor([2]))
        loss.epoch_end()
    assert torch.equal(first.centers, resumed.centers)
    assert first.centers[0].tolist() == [-1.0] * 4


def test_adaptive_targets_wait_for_their_epochs_and_see_only_the_last_one():
    loss = DPNLoss(3, 4, centers=H4[:3], adaptive=True, update_every=2)
    loss(-torch.ones(1, 4), torch.tensor([0]))
    loss.epoch_end()
    assert torch.equal(loss.centers, H4[:3])
    resumed = DPNLoss(3, 4, adaptive=True, update_every=2, generator=torch.Generator().manual_seed(9))
    resumed.load_state_dict(loss.state_dict())
    for each in (loss, resumed):
        each(torch.tensor([[1.0, 1, 1, -1]]), torch.tensor([0]))
        each.epoch_end()
        assert each.centers.tolist() == [[1.0, 1, 1, -1], *H4[1:3].tolist()]


def test_targets_of_two_classes_never_become_equal():
    loss = DPNLoss(3, 4, centers=H4[:3], adaptive=True, update_every=1)
    loss(-torch.ones(2, 4), torch.tensor([0, 1]))
    with pytest.warns(UserWarning, match="two classes have the same majority: the targets stay"):
        loss.epoch_end()
    assert torch.equal(loss.centers, H4[:3])
    assert not loss.class_sums.any()


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("update_every must be >= 1, got 0", lambda: DPNLoss(3, 8, adaptive=True, update_every=0)),
        ("margin must be a positive number, got 0", lambda: DPNLoss(3, 8, margin=0)),
        (
            "reduction .over the bits. must be one of 'sum', 'mean', got 'none'",
            lambda: DPNLoss(3, 8, reduction="none"),
        ),
        ("multi_label must be one of 'sum', 'centroid'", lambda: DPNLoss(3, 8, multi_label="max")),
    ],
)
def test_bad_settings_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()
