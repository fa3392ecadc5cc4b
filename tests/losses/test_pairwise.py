"""Pairwise losses of the literature against literal transcriptions and worked examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hybridhash.losses import (
    CodeBank,
    DBDHLoss,
    DCHLoss,
    DFHLoss,
    DHNLoss,
    DPSHLoss,
    DSDHLoss,
    DSHLoss,
    HashNetLoss,
    IDHNLoss,
    LCDSHLoss,
    MDSHCLoss,
    PairwiseLoss,
    WMLLoss,
    balanced,
    functional,
    list_losses,
)
from tests.losses import _oracles as oracle
from tests.losses._oracles import SIX_LABELS, U, Y


def random_codes(rows, bits, dtype=torch.float64, *, seed=0):
    return torch.randn(rows, bits, generator=torch.Generator().manual_seed(seed), dtype=dtype)


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
    (DPSHLoss, functional.dpsh_loss, oracle.dpsh, {}, {"eta": 10.0, "num_train": 5000}),
    (DPSHLoss, functional.dpsh_loss, oracle.dpsh, {"eta": 3.0, "num_train": 6}, {}),
    (DHNLoss, functional.dhn_loss, oracle.dhn, {}, {"alpha": 1.0, "quantization": 0.2, "variant": None}),
    (DHNLoss, functional.dhn_loss, oracle.dhn, {"variant": "Q"}, {"alpha": 1.0, "quantization": 0.2}),
    (DHNLoss, functional.dhn_loss, oracle.dhn, {"variant": "E", "alpha": 0.5}, {"quantization": 0.2}),
    (DHNLoss, functional.dhn_loss, oracle.dhn, {"variant": "B"}, {"alpha": 1.0, "quantization": 0.2}),
    (IDHNLoss, functional.idhn_loss, oracle.idhn, {}, {"alpha": 0.5, "gamma": 0.1, "quantization": 0.1}),
    (DBDHLoss, functional.dbdh_loss, oracle.dbdh, {}, {"balance": 0.1, "power": 2}),
    (DBDHLoss, functional.dbdh_loss, oracle.dbdh, {"balance": 2.0, "power": 1}, {}),
    (LCDSHLoss, functional.lcdsh_loss, oracle.lcdsh, {}, {"locality": 3.0}),
    (LCDSHLoss, functional.lcdsh_loss, oracle.lcdsh, {"locality": 0.5}, {}),
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
def test_value_and_gradient_equal_the_literal_formula(case, n, seed, exclude_self):
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
def test_worked_examples(loss, expected):
    assert loss(U, Y).item() == pytest.approx(expected, abs=1e-9)


def test_quantisers_of_the_worked_example():
    from hybridhash.losses import quantizers

    assert quantizers.squared(U).mean().item() == pytest.approx(0.31)
    assert quantizers.log_cosh(U).mean().item() == pytest.approx(0.1426957077)
    assert quantizers.absolute(U).mean().item() == pytest.approx(0.4875)
    torch.testing.assert_close(quantizers.summed(U), 4 * quantizers.squared(U))
    torch.testing.assert_close(quantizers.absolute_sum(U), 4 * quantizers.absolute(U))


def official_dch(codes, labels):
    """The authors' code: the balance is that of the whole matrix, of which the diagonal is then masked."""
    codes, labels = codes.double(), labels.double()
    similar = (labels @ labels.T).clamp(0, 1)
    squares = codes.square().sum(1)
    d = squares[:, None] - 2 * codes @ codes.T + squares[None] + 0.001
    cauchy = 20 / (d + 20)
    balance = (similar - 1).abs() + similar * (2 * similar - 1).abs().sum() / similar.sum()
    mask = ~torch.eye(len(codes), dtype=torch.bool)
    s, c = similar[mask], cauchy[mask]
    losses = -s * torch.log(c) - (1 - s) * torch.log(1 - c)
    return (losses * balance[mask]).mean()


@pytest.mark.parametrize("labels", [Y, torch.eye(4)[[0, 0, 1, 2]], torch.eye(4)[[3, 3, 3, 3]]])
def test_official_form_of_dch(labels):
    got = DCHLoss(form="official", quantization=0.5)(U, labels)
    torch.testing.assert_close(got, official_dch(U, labels) + 0.5 * ((U.abs() - 1) ** 2).mean())
    with_bank = DCHLoss(
        form="official", quantization=0, bank=CodeBank(9, 4, labels.shape[1], dtype=torch.float64)
    )
    rows = torch.tensor([7, 2, 0, 5])
    torch.testing.assert_close(
        with_bank(U.clone().requires_grad_(), labels, indices=rows), official_dch(U, labels)
    )


@pytest.mark.parametrize(
    "loss_class", [DBDHLoss, LCDSHLoss, DCHLoss, DHNLoss, DPSHLoss, DSHLoss, HashNetLoss, IDHNLoss]
)
@pytest.mark.parametrize("multi", [True, False])
def test_bank_and_reference_codes_give_the_same_loss(loss_class, multi):
    generator = torch.Generator().manual_seed(3)
    ref_codes = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    ref_labels = (torch.rand(9, 4, generator=generator) < 0.4).long() if multi else torch.randint(3, (9,))
    codes, labels = ref_codes[:4].clone(), ref_labels[:4]
    # Without a bank, DPSH does not take the 9 codes for the training set.
    more = {"num_train": 9} if loss_class is DPSHLoss else {}
    without_bank = loss_class(exclude_self=False, **more)
    expected = without_bank(codes, labels, ref_codes=ref_codes, ref_labels=ref_labels)
    bank = CodeBank(9, 6, 4 if multi else None, dtype=torch.float64)
    loss = loss_class(bank=bank, exclude_self=False)
    for rows in torch.arange(9).split(4):
        value = loss(ref_codes[rows], ref_labels[rows], indices=rows)
    value = loss(codes, labels, indices=torch.arange(4))
    torch.testing.assert_close(value, expected)


FORMS: dict[str, Callable[[], torch.nn.Module]] = {
    "wml": WMLLoss,
    "wml-jaccard": lambda: WMLLoss(jaccard=True, exclude_self=True, quantization=0.1),
    "hashnet": HashNetLoss,
    "hashnet-pytorch": lambda: HashNetLoss(weighting="pytorch", similar_weight=3.0),
    "hashnet-caffe": lambda: HashNetLoss(weighting="caffe"),
    "dpsh": DPSHLoss,
    "dhn": DHNLoss,
    "dhn-E": lambda: DHNLoss("E"),
    "dhn-Q": lambda: DHNLoss("Q"),
    "idhn": IDHNLoss,
    "dch": DCHLoss,
    "dch-official": lambda: DCHLoss(form="official"),
    "dsh": lambda: DSHLoss(margin=4.0),
    "dsdh": lambda: DSDHLoss(0.5),
    "dfh": lambda: DFHLoss(3, 4, generator=torch.Generator().manual_seed(0)),
    "mdshc": lambda: MDSHCLoss(3, 4, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("labels", SIX_LABELS.values(), ids=SIX_LABELS)
@pytest.mark.parametrize("name", FORMS)
def test_second_derivatives(name, labels):
    codes = random_codes(6, 4).requires_grad_()
    loss = FORMS[name]()
    assert torch.autograd.gradgradcheck(lambda u: loss(u, labels), codes)


def graph_breaks(step):
    torch._dynamo.reset()
    return torch._dynamo.explain(step)(random_codes(6, 4, torch.float32)).graph_break_count


@pytest.fixture(scope="module")
def breaks_of_update():
    labels, indices = SIX_LABELS["multi-hot"], torch.arange(6)
    return graph_breaks(lambda u: CodeBank(9, 4, 3).update(indices, torch.tanh(u), labels))


@pytest.mark.parametrize("name", FORMS)
def test_a_bank_breaks_a_compiled_graph_no_more_often_than_its_own_update(name, breaks_of_update):
    labels, indices, loss = SIX_LABELS["multi-hot"], torch.arange(6), FORMS[name]()
    loss.bank = CodeBank(9, 4, 3)
    assert graph_breaks(lambda u: loss(torch.tanh(u), labels, indices=indices)) <= min(breaks_of_update, 2)


@pytest.mark.parametrize("name", sorted(set(FORMS) - {"mdshc"}))
def test_in_chunks_value_and_gradient_are_the_same_and_a_second_derivative_is_refused(name):
    loss = FORMS[name]()
    codes = random_codes(6, 4).requires_grad_()
    labels = SIX_LABELS["multi-hot"].bool()
    ref_codes, ref_labels = random_codes(7, 4, seed=1), labels[[0, 1, 2, 3, 4, 5, 0]]
    self_index = torch.tensor([6, 0, 1, 4, 5, 3])
    counted = torch.tensor([True, True, False, True, True, False, True])
    more = {"self_index": self_index, "counted": counted}
    plain = loss.compare(codes, labels, ref_codes, ref_labels, **more)
    in_chunks = loss.compare(codes, labels, ref_codes, ref_labels, chunk_size=3, **more)
    torch.testing.assert_close(in_chunks, plain)
    (expected,) = torch.autograd.grad(plain, codes)
    torch.testing.assert_close(torch.autograd.grad(in_chunks, codes, retain_graph=True)[0], expected)
    with pytest.raises(RuntimeError, match="differentiable only once"):
        torch.autograd.grad(in_chunks, codes, create_graph=True)


def test_many_pairs_with_given_codes_are_computed_in_chunks():
    codes = random_codes(64, 4, torch.float32).requires_grad_()
    ref_codes = random_codes(20_000, 4, torch.float32, seed=1)
    labels, ref_labels = torch.arange(64) % 3, torch.arange(20_000) % 3
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.untyped_storage().nbytes())
            return result

    with Largest():
        value = WMLLoss()(codes, labels, ref_codes=ref_codes, ref_labels=ref_labels)
        value.backward()
    assert largest < 4 * 64 * 20_000 / 2  # of all pairs in float32
    whole = WMLLoss().compare(codes, labels, ref_codes, ref_labels, chunk_size=20_000)
    torch.testing.assert_close(value, whole)


@pytest.mark.parametrize("num_samples", [20, 300_000])
def test_steps_may_be_added_up_before_the_backward_pass(num_samples):
    labels, codes = torch.tensor([0, 0, 1, 2]), random_codes(8, 4, torch.float32)
    losses = [WMLLoss(bank=CodeBank(num_samples, 4)) for _ in range(2)]
    leaves = [codes.clone().requires_grad_() for _ in range(2)]
    values = [[loss(u[:4], labels, indices=torch.arange(4))] for loss, u in zip(losses, leaves, strict=True)]
    values[0][0].backward()
    for row, loss, u in zip(values, losses, leaves, strict=True):
        row.append(loss(u[4:], labels, indices=torch.arange(4)))  # writes the same rows again
    values[0][1].backward()
    sum(values[1]).backward()
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad)


class AgreementLoss(PairwiseLoss):
    """A loss as a user may write it: squared error of the mean agreement, similar pairs weighted balanced."""

    weights = staticmethod(balanced)
    affinity = "jaccard"

    def __init__(self, pull, **more):
        super().__init__(**more)
        self.pull = pull

    def pair_losses(self, codes, ref_codes, s):
        return (codes @ ref_codes.T / codes.shape[1] - s).square()

    def penalty(self, codes, labels):
        return self.pull * (codes.abs() - 1).square().sum(1)


@pytest.mark.parametrize("kind", ["batch", "ref_codes", "bank"])
def test_a_loss_of_ones_own_states_its_formula_and_works_in_all_forms(kind):
    codes, labels = random_codes(6, 4).requires_grad_(), SIX_LABELS["multi-hot"]
    ref_codes, ref_labels = codes.detach(), labels
    if kind == "batch":
        ref_codes, got = codes, AgreementLoss(0.3)(codes, labels)
    elif kind == "ref_codes":
        got = AgreementLoss(0.3)(codes, labels, ref_codes=ref_codes, ref_labels=ref_labels)
    else:
        bank = CodeBank(10, 4, 3, dtype=torch.float64)
        got = AgreementLoss(0.3, bank=bank)(codes, labels, indices=torch.tensor([9, 1, 2, 3, 5, 7]))
    similar, dissimilar = [], []
    for u, y in zip(codes, labels, strict=True):
        for v, z in zip(ref_codes, ref_labels, strict=True):
            s = int((y & z).sum()) / max(int((y | z).sum()), 1)
            (similar if s else dissimilar).append(((u * v).mean() - s) ** 2)
    expected = sum(similar) / len(similar) + sum(dissimilar) / len(dissimilar)
    expected = expected + 0.3 * sum(((u.abs() - 1) ** 2).sum() for u in codes) / 6
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, codes)[0] for value in (got, expected)))


def test_the_base_cannot_be_made_and_is_no_registered_loss():
    with pytest.raises(TypeError, match="abstract"):
        PairwiseLoss()
    assert "pairwise" not in list_losses()


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
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
