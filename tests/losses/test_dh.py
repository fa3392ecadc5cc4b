"""The losses of Liong et al. against loops over their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybridhash.losses import DHLoss, SupervisedDHLoss
from hybridhash.losses.functional import dh_loss, supervised_dh_loss
from tests.losses import _invariants
from tests.losses._invariants import LABELS, random_codes


def dh(h, _=None, variance=2.0):
    number = len(h)
    b = h.detach().sign()
    return (b - h).square().sum() / (2 * number) - variance * torch.trace(h @ h.T) / (2 * number)


def supervised_dh(h, labels, variance=2.0, alpha=0.7):
    hot = labels if labels.ndim == 2 else (labels[:, None] == torch.arange(6)).long()
    bits = h.shape[1]
    scatter = {True: [], False: []}
    for i in range(len(h)):
        for j in range(len(h)):
            if i != j:
                difference = h[i] - h[j]
                scatter[bool((hot[i] * hot[j]).sum())].append(torch.outer(difference, difference))
    nothing = torch.zeros(bits, bits, dtype=h.dtype)
    within = torch.stack(scatter[True]).mean(0) if scatter[True] else nothing
    between = torch.stack(scatter[False]).mean(0) if scatter[False] else nothing
    return dh(h, variance=variance) - variance * alpha * torch.trace(between - within) / 2


@pytest.mark.parametrize("labels", LABELS)
def test_loss_is_the_literal_formula(labels):
    codes, given = random_codes(), LABELS[labels]
    got = _invariants.value_and_grad(lambda u, y: dh_loss(u, quantization=1.0, variance=2.0), codes, given)
    torch.testing.assert_close(got, _invariants.value_and_grad(dh, codes, given))
    got = _invariants.value_and_grad(
        lambda u, y: supervised_dh_loss(u, y, quantization=1.0, variance=2.0, alpha=0.7), codes, given
    )
    torch.testing.assert_close(got, _invariants.value_and_grad(supervised_dh, codes, given))


@pytest.mark.parametrize("bias", [True, False])
def test_weights_are_kept_orthogonal_and_small(bias):
    network = nn.Sequential(nn.Linear(5, 4, bias=bias), nn.Tanh(), nn.Linear(4, 3, bias=bias)).double()
    codes = network(random_codes(6, 5))
    with_layers = DHLoss(layers=network, orthogonality=0.3, weight_decay=0.2)
    penalty = with_layers(codes) - DHLoss()(codes)
    expected = torch.zeros((), dtype=torch.float64)
    for layer in (network[0], network[2]):
        weight = layer.weight
        expected = expected + 0.3 * (weight @ weight.T - torch.eye(len(weight))).square().sum() / 2
        expected = expected + 0.2 * weight.square().sum() / 2
        if bias:
            expected = expected + 0.2 * layer.bias.square().sum() / 2
    torch.testing.assert_close(penalty, expected)
    gradients = torch.autograd.grad(penalty, list(network.parameters()), retain_graph=True)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, list(network.parameters())))


def test_supervised_loss_takes_layers_too():
    layer = nn.Linear(5, 4)
    codes, labels = torch.tanh(layer(random_codes(6, 5, dtype=torch.float32))), LABELS["two classes"]
    difference = SupervisedDHLoss(layers=[layer])(codes, labels) - SupervisedDHLoss()(codes, labels)
    torch.testing.assert_close(
        difference, DHLoss(layers=layer)(codes) - DHLoss()(codes), rtol=1e-3, atol=1e-4
    )


def test_layers_stay_the_networks_own():
    loss = DHLoss(layers=nn.Linear(3, 2))
    assert list(loss.parameters()) == []
    assert loss.state_dict() == {}


def test_labels_may_be_given_to_the_unsupervised_loss():
    codes = random_codes()
    assert torch.equal(DHLoss()(codes, LABELS["two classes"], indices=torch.arange(6)), DHLoss()(codes))


@pytest.mark.parametrize("loss", [DHLoss(), SupervisedDHLoss()], ids=["dh", "supervised"])
def test_invariants(loss):
    _invariants.assert_invariants(loss)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda u: DHLoss(variance=-1), "variance must be 0 or a positive number"),
        (lambda u: SupervisedDHLoss(alpha=-1), "alpha must be 0 or a positive number"),
        (lambda u: DHLoss(layers=[]), "at least one nn.Linear, got an empty collection"),
        (lambda u: SupervisedDHLoss()(u), "labels are needed"),
        (lambda u: DHLoss()(u, ref_codes=u), "leave ref_codes and ref_labels out"),
        (lambda u: SupervisedDHLoss()(u, LABELS["two classes"][:3]), "labels has 3 rows, expected 6"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_codes())
