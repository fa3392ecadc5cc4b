"""Pairwise losses of the literature against literal transcriptions and worked examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridhash.losses import (
    CodeBank,
    DCHLoss,
    DHNLoss,
    DPSHLoss,
    DSHLoss,
    HashNetLoss,
    IDHNLoss,
    functional,
)
from tests.losses import _oracles as oracle
from tests.losses._oracles import U, Y

CASES: list[tuple[Any, Any, Any, dict[str, Any], dict[str, Any]]] = [
    (
        HashNetLoss,
        functional.hashnet_loss,
        oracle.hashnet,
        {},
        {"alpha": 10 / 5, "jaccard": True, "weighting": "paper"},
    ),
    (
        HashNetLoss,
        functional.hashnet_loss,
        oracle.hashnet,
        {"alpha": 0.1, "jaccard": False, "weighting": "paper"},
        {},
    ),
    (
        HashNetLoss,
        functional.hashnet_loss,
        oracle.hashnet,
        {"alpha": 0.7, "weighting": "pytorch", "similar_weight": 3.0},
        {"jaccard": False},
    ),
    (
        HashNetLoss,
        functional.hashnet_loss,
        oracle.hashnet,
        {"alpha": 0.7, "weighting": "caffe", "similar_weight": 5.0},
        {"jaccard": False},
    ),
    (DPSHLoss, functional.dpsh_loss, oracle.dpsh, {}, {"eta": 10.0}),
    (DHNLoss, functional.dhn_loss, oracle.dhn, {}, {"alpha": 1.0, "quantization": 0.2, "variant": None}),
    (DHNLoss, functional.dhn_loss, oracle.dhn, {"variant": "Q"}, {"alpha": 1.0, "quantization": 0.2}),
    (DHNLoss, functional.dhn_loss, oracle.dhn, {"variant": "E", "alpha": 0.5}, {"quantization": 0.2}),
    (DHNLoss, functional.dhn_loss, oracle.dhn, {"variant": "B"}, {"alpha": 1.0, "quantization": 0.2}),
    (IDHNLoss, functional.idhn_loss, oracle.idhn, {}, {"alpha": 0.5, "gamma": 0.1, "quantization": 0.1}),
    (DSHLoss, functional.dsh_loss, oracle.dsh, {}, {"margin": 10.0, "alpha": 0.01}),
    (DSHLoss, functional.dsh_loss, oracle.dsh, {"margin": 3.0, "alpha": 0.2}, {}),
    (
        DCHLoss,
        functional.dch_loss,
        oracle.dch,
        {},
        {"gamma": 20.0, "quantization": 0.1, "max_cosine": 1 - 1e-9},
    ),
    (DCHLoss, functional.dch_loss, oracle.dch, {"max_cosine": 0.99}, {"gamma": 20.0, "quantization": 0.1}),
]
IDS = [f"{case[0].__name__}-{case[3]}" for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=IDS)
@settings(max_examples=8, deadline=None)
@given(n=st.integers(2, 6), seed=st.integers(0, 1000), exclude_self=st.booleans())
def test_value_and_gradient_equal_the_literal_formula(
    case: Any, n: int, seed: int, exclude_self: bool
) -> None:
    loss_class, function, literal, settings_of_loss, more_of_oracle = case
    exclude_self = exclude_self or (literal is oracle.dch and settings_of_loss == {})
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(n, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = (torch.rand(n, 4, generator=generator) < 0.4).long()
    expected = literal(codes, labels, exclude_self=exclude_self, **settings_of_loss, **more_of_oracle)
    expected_grad = torch.autograd.grad(expected, codes)[0]
    for loss in (
        loss_class(exclude_self=exclude_self, **settings_of_loss)(codes, labels),
        function(codes, labels, exclude_self=exclude_self, **settings_of_loss),
    ):
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(loss, codes)[0], expected_grad, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (DPSHLoss(eta=0), 0.5074657071),
        (DPSHLoss(eta=0, exclude_self=True), 0.5376655623),
        (DSHLoss(alpha=0, exclude_self=False), 1.19),
        (DSHLoss(alpha=0), 1.5866666667),
        (DCHLoss(quantization=0, max_cosine=0.99, exclude_self=False), 2.0607856735),
        (DCHLoss(quantization=0), 2.0868127556),
        (DCHLoss(), 2.0868127556 + 0.1 * 0.0108355667),
    ],
    ids=str,
)
def test_worked_examples(loss: torch.nn.Module, expected: float) -> None:
    assert loss(U, Y).item() == pytest.approx(expected, abs=1e-9)


def test_quantisers_of_the_worked_example() -> None:
    from hybridhash.losses import quantizers

    assert quantizers.squared(U).mean().item() == pytest.approx(0.31)
    assert quantizers.log_cosh(U).mean().item() == pytest.approx(0.1426957077)
    assert quantizers.absolute(U).mean().item() == pytest.approx(0.4875)
    torch.testing.assert_close(quantizers.summed(U), 4 * quantizers.squared(U))
    torch.testing.assert_close(quantizers.absolute_sum(U), 4 * quantizers.absolute(U))


def test_official_form_of_dch() -> None:
    loss = 0.0
    similar = (Y @ Y.T) > 0
    pairs = oracle.pairs(4, True)
    count = sum(bool(similar[p]) for p in pairs)
    for i, j in pairs:
        d = ((U[i] - U[j]) ** 2).sum() + 1e-3
        weight = len(pairs) / count if similar[i, j] else 1.0
        loss += weight * (float(similar[i, j]) * torch.log(d / 20) + torch.log(1 + 20 / d)) / len(pairs)
    got = DCHLoss(form="official", quantization=0.5)(U, Y)
    torch.testing.assert_close(got, loss + 0.5 * ((U.abs() - 1) ** 2).mean())


@pytest.mark.parametrize("loss_class", [DCHLoss, DHNLoss, DPSHLoss, DSHLoss, HashNetLoss, IDHNLoss])
@pytest.mark.parametrize("multi", [True, False])
def test_bank_and_reference_codes_give_the_same_loss(loss_class: Any, multi: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    ref_codes = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    ref_labels = (torch.rand(9, 4, generator=generator) < 0.4).long() if multi else torch.randint(3, (9,))
    codes, labels = ref_codes[:4].clone(), ref_labels[:4]
    expected = loss_class(exclude_self=False)(codes, labels, ref_codes=ref_codes, ref_labels=ref_labels)
    bank = CodeBank(9, 6, 4 if multi else None, dtype=torch.float64)
    loss = loss_class(bank=bank, exclude_self=False)
    for rows in torch.arange(9).split(4):
        value = loss(ref_codes[rows], ref_labels[rows], indices=rows)
    value = loss(codes, labels, indices=torch.arange(4))
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: HashNetLoss(weighting="tf"),
            "weighting must be one of 'paper', 'pytorch', 'caffe', got 'tf'",
        ),
        (lambda: HashNetLoss(-1.0), "alpha must be a positive number, got -1"),
        (lambda: HashNetLoss(similar_weight=0), "similar_weight must be a positive number"),
        (lambda: DHNLoss("X"), "variant must be one of None, 'B', 'Q', 'E', got 'X'"),
        (lambda: DSHLoss(0), "margin must be a positive number, got 0"),
        (lambda: DSHLoss(alpha=-1), "alpha must be 0 or a positive number, got -1"),
        (lambda: DCHLoss(0), "gamma must be a positive number, got 0"),
        (lambda: DCHLoss(form="tf"), "form must be one of"),
        (lambda: DPSHLoss(-1), "eta must be 0 or a positive number"),
        (lambda: IDHNLoss(gamma=0), "gamma must be a positive number"),
    ],
)
def test_bad_settings_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
