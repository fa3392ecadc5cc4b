"""MDSHC against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from hybridhash.losses import CodeBank, MDSHCLoss
from hybridhash.losses.functional import mdshc_loss
from tests.losses._oracles import H4, U, assert_same_value_and_gradient, cosine, random_batch


def literal_mdshc(codes, labels, centers, weight):
    centers, bits = centers.to(codes.dtype), codes.shape[1]
    terms, penalties = [], []
    for u, row in zip(codes, labels, strict=True):
        if row.any():
            p = torch.softmax(math.sqrt(bits) * torch.stack([cosine(u, c) for c in centers]), 0)
            terms += [torch.log(p[c]) if row[c] else torch.log(1 - p[c]) for c in range(len(row))]
            penalties += [(u[k].abs() - 1) ** 2 for k in range(bits)]
    return -torch.stack(terms).mean() + weight * torch.stack(penalties).mean()


@pytest.mark.parametrize("seed", range(3))
def test_mdshc_equals_the_literal_formula(seed):
    codes, labels, centers = random_batch(seed)
    got = mdshc_loss(codes, labels, centers=centers, quantization=0.2)
    assert_same_value_and_gradient(got, literal_mdshc(codes, labels, centers, 0.2), codes)


def test_mdshc_is_accurate_where_the_softmax_saturates():
    # One class at cosine 1, the other at -1: 1 - p = sigmoid(-2 sqrt(bits)), 5e-20, is lost in 1 - p.
    codes = torch.ones(1, 500, requires_grad=True)
    centers = torch.stack((torch.ones(500), -torch.ones(500)))
    wrong = mdshc_loss(codes, torch.tensor([1]), centers=centers, quantization=0.0)
    right = mdshc_loss(codes, torch.tensor([0]), centers=centers, quantization=0.0)
    assert wrong.item() == pytest.approx(2 * math.sqrt(500), rel=1e-6)
    assert right.item() == pytest.approx(math.exp(-2 * math.sqrt(500)), rel=1e-4)
    assert torch.autograd.grad(wrong, codes)[0].isfinite().all()


@pytest.mark.parametrize("multi", [False, True])
def test_pair_term_is_the_mean_over_similar_pairs_with_the_bank(multi):
    codes, labels, centers = random_batch(0)
    bank = CodeBank(20, 6, num_classes=5 if multi else None)
    labels = labels if multi else torch.tensor([0, 1, -1, 4, 4, 0, 2])
    loss = MDSHCLoss(5, 6, centers="mds", bank=bank, pair_weight=0.5, pair_from=0)
    loss.centers.copy_(centers)
    stored = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    stored_labels = labels[[0, 1, 6]]
    bank.update(torch.tensor([17, 18, 19]), stored, stored_labels)
    momentum = codes.detach() + 0.1
    got = loss(codes, labels, indices=torch.arange(7), ref_codes=momentum)
    everything = torch.cat((momentum.float(), stored)).double()
    all_labels = torch.cat((labels, stored_labels))
    terms = []
    for i in range(7):
        for j in range(10):
            alike = (labels[i] * all_labels[j]).sum() > 0 if multi else labels[i] == all_labels[j] >= 0
            if alike:
                terms.append(torch.log(1 + torch.exp((1 - cosine(codes[i], everything[j])) / 2)))
    expected = mdshc_loss(codes, labels, centers=centers) + 0.5 * torch.stack(terms).mean()
    assert_same_value_and_gradient(got, expected, codes)


def test_pair_term_begins_after_the_given_epochs_and_the_count_is_saved():
    codes, labels, _ = random_batch(1)
    loss = MDSHCLoss(5, 6, bank=CodeBank(7, 6, num_classes=5), pair_from=2)
    without = mdshc_loss(codes, labels, centers=loss.centers)
    indices = torch.arange(7)
    loss.epoch_end()
    torch.testing.assert_close(loss(codes, labels, indices=indices), without)
    loss.epoch_end()
    late = loss(codes, labels, indices=indices)
    assert late > without + 0.1
    resumed = MDSHCLoss(5, 6, bank=CodeBank(7, 6, num_classes=5), pair_from=2)
    resumed.load_state_dict(loss.state_dict())
    torch.testing.assert_close(resumed.eval()(codes, labels), late)


def test_a_bank_is_among_what_the_loss_requires():
    assert MDSHCLoss(5, 6).requires == {"epoch_hook"}
    assert MDSHCLoss(5, 6, bank=CodeBank(7, 6)).requires == {"epoch_hook", "bank", "indices"}


def test_mdshc_does_not_depend_on_the_length_of_the_codes():
    codes, labels, centers = random_batch(2)
    scale = torch.rand(7, 1, dtype=torch.float64) + 0.5
    one, other = (mdshc_loss(u, labels, centers=centers, quantization=0.0) for u in (codes * scale, codes))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("pair_weight must be 0 or a positive number", lambda: MDSHCLoss(3, 8, pair_weight=-1)),
        ("num_classes must be at least 2", lambda: MDSHCLoss(1, 8)),
        ("at least two classes, got 1", lambda: mdshc_loss(U, torch.zeros(4).long(), centers=H4[:1])),
        ("bank holds codes of 4 bits, the centers have 8", lambda: MDSHCLoss(3, 8, bank=CodeBank(5, 4))),
        ("bank holds labels of 4 classes", lambda: MDSHCLoss(3, 8, bank=CodeBank(5, 8, num_classes=4))),
        (
            "indices are needed with a bank",
            lambda: MDSHCLoss(3, 8, bank=CodeBank(5, 8))(torch.ones(1, 8), torch.tensor([0])),
        ),
    ],
)
def test_bad_settings_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()
