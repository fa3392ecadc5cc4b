"""Triplet losses against triple loops over the formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybridhash.losses import DNNHLoss, DRSDHLoss, DSRHLoss, DTSHLoss
from hybridhash.losses._triplets import triplet_sums
from hybridhash.losses.functional import dnnh_loss, drsdh_loss, dsrh_loss, dtsh_loss
from tests.losses import _invariants
from tests.losses._invariants import LABELS, random_codes
from tests.losses._oracles import U, Y

FUNCTIONS = [dnnh_loss, dtsh_loss, drsdh_loss, dsrh_loss]
CLASSES = [DNNHLoss, DTSHLoss, lambda: DRSDHLoss(4), DSRHLoss]


def shares(labels):
    """Labels that each pair shares, by a double loop."""
    hot = labels if labels.ndim == 2 else (labels[:, None] == torch.arange(6)).long()
    return [[int((a * b).sum()) for b in hot] for a in hot]


def triplets(labels):
    """All (q, i, j) of different q, i and q, j in which i shares more labels with q than j does."""
    r, rows = shares(labels), range(labels.shape[0])
    return [(q, i, j) for q in rows for i in rows for j in rows if q not in (i, j) and r[q][i] > r[q][j]]


def binary_triplets(labels):
    r = shares(labels)
    return [(q, i, j) for q, i, j in triplets(labels) if r[q][j] == 0]


def mean_by_anchor(terms):
    anchors = sorted({q for q, _ in terms})
    return torch.stack([torch.stack([t for q, t in terms if q == a]).mean() for a in anchors]).mean()


def dnnh(u, labels, margin=1.0):
    terms = [
        F.relu(margin + (u[q] - u[i]).square().sum() - (u[q] - u[j]).square().sum())
        for q, i, j in binary_triplets(labels)
    ]
    return torch.stack(terms).mean()


def dtsh(u, labels):
    terms = []
    for q, i, j in binary_triplets(labels):
        x = u[q] @ u[i] / 2 - u[q] @ u[j] / 2 - u.shape[1] / 2
        terms.append((q, -(x - torch.log(1 + torch.exp(x)))))
    penalty = torch.stack([(u[i] - u[i].sign()).square().sum() for i in range(len(u))]).mean()
    return mean_by_anchor(terms) + 100 / 22500 * penalty


def drsdh(u, labels, margin=5.0, weights=None):
    v = u if weights is None else u * weights
    found = binary_triplets(labels)
    total = sum(
        torch.clamp((v[q] - v[i]).square().sum() - (v[q] - v[j]).square().sum(), min=-margin)
        for q, i, j in found
    )
    graph = torch.tensor([[1.0 if r else 0.001 for r in row] for row in shares(labels)], dtype=u.dtype)
    graph = graph - torch.diag(graph.diag())
    laplacian = torch.diag(graph.sum(1)) - graph
    return (total + 0.001 * torch.trace(v.T @ laplacian @ v)) / len(found)


def dsrh(u, labels, margin=5.0, top_k=None):
    r, terms = shares(labels), []
    for q, i, j in triplets(labels):
        ranked = sorted((r[q][k] for k in range(len(u)) if k != q), reverse=True)[:top_k]
        z = sum((2**level - 1) / math.log(1 + rank) for rank, level in enumerate(ranked, 1))
        distance_i, distance_j = (u.shape[1] - u[q] @ u[i]) / 2, (u.shape[1] - u[q] @ u[j]) / 2
        terms.append((q, (2 ** r[q][i] - 2 ** r[q][j]) / z * F.relu(distance_i - distance_j + margin)))
    return mean_by_anchor(terms) + u.mean(0).square().sum() / 2


@pytest.mark.parametrize(
    ("function", "oracle"), [(dnnh_loss, dnnh), (dtsh_loss, dtsh), (drsdh_loss, drsdh), (dsrh_loss, dsrh)]
)
@pytest.mark.parametrize("labels", ["two classes", "some unlabelled", "multi-hot"])
def test_loss_is_the_literal_formula(function, oracle, labels):
    got = _invariants.value_and_grad(function, random_codes(), LABELS[labels])
    expected = _invariants.value_and_grad(oracle, random_codes(), LABELS[labels])
    torch.testing.assert_close(got, expected)


def test_dnnh_vector():
    assert dnnh_loss(U, Y).item() == pytest.approx(0.3916666667, abs=1e-10)


def test_dtsh_vector():
    assert dtsh_loss(U, Y, quantization=0).item() == pytest.approx(1.5235173566, abs=1e-10)


def test_dtsh_quantization_is_the_squared_distance_to_the_signs():
    without, unit = dtsh_loss(U, Y, quantization=0), dtsh_loss(U, Y, quantization=1)
    assert (unit - without).item() == pytest.approx(0.31 * 4)


def test_dtsh_with_the_settings_of_deephash_pytorch():
    products, similar = U @ U.T, Y @ Y.T > 0
    anchors = []
    for q in range(4):
        positive, negative = products[q][similar[q]], products[q][~similar[q]]
        if len(positive) and len(negative):
            x = positive[:, None] - negative[None, :] - 5
            anchors.append(-(x - torch.log(1 + torch.exp(x))).mean())
    expected = torch.stack(anchors).mean() + (U - U.sign()).square().mean()
    got = DTSHLoss(margin=5, scale=1, quantization=1 / 4, exclude_self=False)(U, Y)
    torch.testing.assert_close(got, expected)


def test_margin_of_dnnh_scales_by_four_from_unit_to_signed_codes():
    torch.testing.assert_close(dnnh_loss(U, Y, margin=4), 4 * dnnh_loss((U + 1) / 2, Y, margin=1))


def test_dsrh_normalizer_counts_top_k_positions():
    labels = LABELS["multi-hot"]
    torch.testing.assert_close(dsrh_loss(U[:4], labels[:4], top_k=2), dsrh(U, labels[:4], top_k=2))
    assert dsrh_loss(U[:4], labels[:4], top_k=1) > dsrh_loss(U[:4], labels[:4])


def test_dsrh_stays_finite_with_hundreds_of_shared_labels():
    labels = torch.ones(4, 400, dtype=torch.int64)
    labels[1:, 200:] = 0
    labels[2:, 100:] = 0
    value, grad = _invariants.value_and_grad(dsrh_loss, U.float(), labels)
    assert value.isfinite()
    assert grad.isfinite().all()
    assert grad.abs().sum() > 0


def test_dsrh_and_its_layers():
    layer = nn.Linear(3, 4).double()
    with_layer, without = DSRHLoss(layers=layer, weight_decay=0.5), DSRHLoss()
    difference = with_layer(U, Y) - without(U, Y)
    torch.testing.assert_close(difference, 0.25 * layer.weight.square().sum())
    difference.backward()
    torch.testing.assert_close(layer.weight.grad, 0.5 * layer.weight.detach())
    assert list(with_layer.parameters()) == []
    assert with_layer.state_dict() == {}


def test_drsdh_learns_bit_weights_and_widens_its_margin():
    loss = DRSDHLoss(4, margin=0.5, margin_step=0.25).double()
    with torch.no_grad():
        loss.bit_weights.copy_(torch.tensor([1.5, 0.5, -1.0, 2.0]))
    weights = loss.bit_weights.detach().clone().requires_grad_()
    expected = drsdh(U, Y, 0.5, weights)
    value = loss(U, Y)
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(loss.bit_weights.grad, weights.grad)
    loss.epoch_end()
    torch.testing.assert_close(loss(U, Y), drsdh(U, Y, 0.75, weights))
    restored = DRSDHLoss(4).double()
    restored.load_state_dict(loss.state_dict())
    torch.testing.assert_close(restored(U, Y), loss(U, Y))
    assert restored.requires == {"parameters", "epoch_hook"}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_reference_codes_equal_the_items_of_a_joined_list(function):
    settings = {"balance": 0.0} if function is dsrh_loss else {}
    codes, labels = random_codes(), LABELS["multi-hot"]
    # Anchors against a second set: the same as rows of a loop over that set only.
    value = function(codes[:2], labels[:2], ref_codes=codes[2:], ref_labels=labels[2:], **settings)
    r = torch.tensor(shares(labels))[:2, 2:]
    counted = [(q, i, j) for q in range(2) for i in range(4) for j in range(4) if r[q, i] > r[q, j]]
    assert counted
    assert value.isfinite()
    refs = codes[2:].clone().requires_grad_()
    anchors = codes[:2].clone().requires_grad_()
    function(anchors, labels[:2], ref_codes=refs, ref_labels=labels[2:], **settings).backward()
    assert refs.grad is None
    assert anchors.grad is not None
    assert anchors.grad.abs().sum() > 0
    if function is dnnh_loss:
        terms = [
            F.relu(1 + (codes[q] - codes[2 + i]).square().sum() - (codes[q] - codes[2 + j]).square().sum())
            for q, i, j in counted
            if r[q, j] == 0
        ]
        torch.testing.assert_close(value, torch.stack(terms).mean())


@pytest.mark.parametrize("max_triplets", [1, 7, 10**6])
def test_chunks_of_anchors_do_not_change_the_sums(max_triplets):
    x = random_codes(6, 6)
    gains = torch.tensor(shares(LABELS["multi-hot"])).double()
    valid = ~torch.eye(6, dtype=torch.bool)
    found, expected = triplets(LABELS["multi-hot"]), torch.zeros(6, dtype=torch.float64)
    for q, i, j in found:
        expected[q] += (gains[q, i] - gains[q, j]) * F.relu(x[q, i] - x[q, j] + 0.3)
    sums, counts = triplet_sums(
        x, gains, valid, lambda difference: F.relu(difference + 0.3), max_triplets=max_triplets
    )
    torch.testing.assert_close(sums, expected)
    assert counts.tolist() == [sum(1 for t in found if t[0] == q) for q in range(6)]


def test_chunks_of_anchors_have_right_first_and_second_derivatives():
    gains = torch.tensor(shares(LABELS["multi-hot"])).double()
    valid = ~torch.eye(6, dtype=torch.bool)

    def total(x):
        sums, _ = triplet_sums(x, gains, valid, lambda difference: F.softplus(1 - difference), max_triplets=1)
        return sums.sum()

    x = random_codes(6, 6).requires_grad_()
    assert torch.autograd.gradcheck(total, x)
    assert torch.autograd.gradgradcheck(total, x)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_triplet_gives_only_what_is_not_a_triplet(function):
    settings = {"balance": 0.0} if function is dsrh_loss else {}
    settings = {"quantization": 0.0} if function is dtsh_loss else settings
    for labels in ("one class", "no two alike", "all unlabelled"):
        value, grad = _invariants.value_and_grad(
            lambda codes, given: function(codes, given, **settings), random_codes(), LABELS[labels]
        )
        assert value == 0
        assert not grad.any()
    assert function(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), **settings) == 0


@pytest.mark.parametrize("make", CLASSES)
def test_invariants(make):
    _invariants.assert_invariants(make())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DNNHLoss(margin=0), "margin must be a positive number, got 0"),
        (lambda: DTSHLoss(margin=-1), "margin must be a positive number, got -1"),
        (lambda: DTSHLoss(scale=0), "scale must be a positive number, got 0"),
        (lambda: DTSHLoss(quantization=-1), "quantization must be 0 or a positive number"),
        (lambda: DRSDHLoss(0), "bits must be >= 1, got 0"),
        (lambda: DRSDHLoss(4, margin=math.nan), "margin must be a positive number, got nan"),
        (lambda: DRSDHLoss(4, laplacian=-1), "laplacian must be 0 or a positive number"),
        (lambda: DSRHLoss(top_k=0), "top_k must be >= 1, got 0: use None for the whole list"),
        (lambda: DSRHLoss(layers=nn.ReLU()), r"at least one nn\.Linear, got ReLU"),
        (lambda: DRSDHLoss(8)(U, Y), "codes have 4 bits, expected 8"),
        (lambda: drsdh_loss(U, Y, bit_weights=torch.ones(3)), r"bit_weights must have shape \(4,\)"),
        (lambda: DNNHLoss()(U, Y, ref_codes=U), "ref_codes was given without ref_labels"),
        (lambda: DNNHLoss()(U, Y[:3]), "labels has 3 rows, expected 4"),
        (lambda: DNNHLoss()(U, Y, ref_codes=U[:, :2], ref_labels=Y), "ref_codes have 2 bits, expected 4"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_layers_that_are_no_modules_are_refused():
    with pytest.raises(TypeError, match=r"layers must be modules .* got int"):
        DSRHLoss(layers=[3])
