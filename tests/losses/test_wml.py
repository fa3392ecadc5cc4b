"""WMLLoss: golden values of the public code, a literal oracle, the sum in chunks, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from hybridhash.losses import CodeBank, WMLLoss
from hybridhash.losses.functional import wml_loss
from tests import GOLDEN
from tests._processes import run_on_ranks
from tests.losses._oracles import U, Y, wml

GOLDEN_FILE = GOLDEN / "wml.safetensors"
CASES = {"single": (40, 16, 5, 0.5, 5), "multi": (48, 32, 7, 0.5, 5), "alpha1": (40, 48, 4, 1.0, 3)}


def value_and_grad(loss, codes):
    return loss.detach(), torch.autograd.grad(loss, codes)[0]


def random_batch(n, bits, classes, seed, multi=True):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(n, bits, generator=generator, dtype=torch.float64)
    if multi:
        return codes, (torch.rand(n, classes, generator=generator) < 0.4).long()
    return codes, F.one_hot(torch.randint(classes, (n,), generator=generator), classes)


@pytest.mark.parametrize("case", [*CASES, "single as class ids"])
def test_golden_sequence_of_steps_on_one_bank(case):
    case, as_ids, _ = case.partition(" as class ids")
    num_train, bits, classes, alpha, steps = CASES[case]
    bank = CodeBank(num_train, bits, None if as_ids else classes, count_unseen=True)
    loss = WMLLoss(alpha, bank=bank)
    with safe_open(GOLDEN_FILE, "pt") as golden:
        for step in range(steps):
            part = {
                k: golden.get_tensor(f"{case}/{step}/{k}")
                for k in ("codes", "labels", "index", "loss", "grad")
            }
            codes = part["codes"].requires_grad_()
            labels = part["labels"].argmax(1) if as_ids else part["labels"]
            # In the stored sequence a row changes its labels.
            bank.labels[part["index"]] = -1 if as_ids else False
            value, grad = value_and_grad(loss(codes, labels, indices=part["index"]), codes)
            torch.testing.assert_close(value, part["loss"][0], rtol=0, atol=1e-5)
            torch.testing.assert_close(grad, part["grad"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1.0149314142),
        ({"exclude_self": True}, 1.0787789250),
        ({"exclude_self": True, "jaccard": True}, 0.8064983433),
        ({"quantization": 2.0}, 1.0149314142 + 2 * 0.31),
    ],
)
def test_values_of_a_worked_example(options, expected):
    assert wml_loss(U, Y, **options).item() == pytest.approx(expected, abs=1e-9)
    assert WMLLoss(**options)(U, Y).item() == pytest.approx(expected, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 7),
    bits=st.integers(1, 9),
    seed=st.integers(0, 1000),
    multi=st.booleans(),
    jaccard=st.booleans(),
    exclude_self=st.booleans(),
)
def test_batch_equals_the_literal_formula(n, bits, seed, multi, jaccard, exclude_self):
    codes, labels = random_batch(n, bits, 3, seed, multi)
    skip = {(i, i) for i in range(n)} if exclude_self else None
    codes.requires_grad_()
    expected = value_and_grad(wml(codes, labels, codes, labels, jaccard=jaccard, skip=skip), codes)
    got = value_and_grad(wml_loss(codes, labels, jaccard=jaccard, exclude_self=exclude_self), codes)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    if not multi:
        ids = wml_loss(codes, labels.argmax(1), jaccard=jaccard, exclude_self=exclude_self)
        torch.testing.assert_close(value_and_grad(ids, codes), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 9),
    total=st.integers(1, 40),
    classes=st.integers(1, 6),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 1000),
    partly=st.booleans(),
)
def test_sum_in_chunks_equals_plain_autograd_for_any_chunk_size(batch, total, classes, chunk, seed, partly):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(batch, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(total, 5, generator=generator, dtype=torch.float64)
    ids = torch.randint(-1, classes, (batch,), generator=generator)
    ref_ids = torch.randint(-1, classes, (total,), generator=generator)
    valid = torch.rand(total, generator=generator) < 0.7 if partly else None
    hot, ref_hot = ((side[:, None] == torch.arange(classes)).long() for side in (ids, ref_ids))
    skip = {
        (i, j) for i in range(batch) for j in range(total) if partly and valid is not None and not valid[j]
    }
    expected = value_and_grad(wml(codes, hot, ref, ref_hot, alpha=1.0, skip=skip), codes)
    for labels, ref_labels in ((ids, ref_ids), (hot.bool(), ref_hot.bool()), (ids, ref_hot.bool())):
        loss = WMLLoss(1.0).compare(codes, labels, ref, ref_labels, counted=valid, chunk_size=chunk)
        torch.testing.assert_close(value_and_grad(loss, codes), expected, rtol=1e-9, atol=1e-12)


def test_own_pairs_of_a_bank_are_left_out_on_request():
    codes, labels = random_batch(4, 6, 3, 5)
    bank_codes, bank_labels = random_batch(9, 6, 3, 6)
    indices = torch.tensor([7, 0, 3, 8])
    loss = WMLLoss(bank=CodeBank(9, 6, 3, dtype=torch.float64), exclude_self=True)
    bank_labels[indices] = labels
    loss.bank.update(torch.arange(9), bank_codes, bank_labels)
    bank_codes[indices] = codes
    codes.requires_grad_()
    skip = {(i, int(j)) for i, j in enumerate(indices)}
    expected = value_and_grad(wml(codes, labels, bank_codes, bank_labels, skip=skip), codes)
    got = value_and_grad(loss(codes, labels, indices=indices), codes)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reference", ["batch", "bank", "bank_ids", "ref_codes"])
def test_gradcheck(reference):
    codes, labels = random_batch(5, 4, 3, 1, multi=reference != "bank_ids")
    ref_codes, ref_labels = random_batch(11, 4, 3, 2, multi=reference != "bank_ids")
    if reference == "bank_ids":
        labels, ref_labels = labels.argmax(1), ref_labels.argmax(1)
    loss, more = WMLLoss(quantization=0.3), {}
    if reference == "ref_codes":
        more = {"ref_codes": ref_codes, "ref_labels": ref_labels}
    elif reference != "batch":
        loss = WMLLoss(bank=CodeBank(11, 4, None if "ids" in reference else 3, dtype=torch.float64)).eval()
        loss.bank.update(torch.arange(11), ref_codes, ref_labels)
    assert torch.autograd.gradcheck(lambda u: loss(u, labels, **more), codes.requires_grad_())


def test_reference_codes_get_no_gradient():
    codes, labels = random_batch(3, 4, 2, 3)
    ref_codes = codes.clone().requires_grad_()
    wml_loss(codes.requires_grad_(), labels, ref_codes=ref_codes, ref_labels=labels).backward()
    assert codes.grad is not None
    assert ref_codes.grad is None


def test_unseen_rows_are_left_out_and_count_as_dissimilar_zeros_on_request():
    codes, labels = random_batch(4, 6, 3, 8)
    indices = torch.tensor([5, 1, 2, 9])
    left_out = WMLLoss(bank=CodeBank(10, 6, 3, dtype=torch.float64))(codes, labels, indices=indices)
    torch.testing.assert_close(left_out, wml_loss(codes, labels))
    zeros, none = torch.zeros(6, 6, dtype=torch.float64), torch.zeros(6, 3, dtype=torch.long)
    counted = WMLLoss(bank=CodeBank(10, 6, 3, count_unseen=True, dtype=torch.float64))
    expected = wml(codes, labels, torch.cat((codes, zeros)), torch.cat((labels, none)))
    torch.testing.assert_close(counted(codes, labels, indices=indices), expected)


def test_evaluation_mode_reads_the_bank_and_does_not_write_it():
    codes, labels = random_batch(4, 6, 3, 8)
    loss = WMLLoss(bank=CodeBank(10, 6, 3, dtype=torch.float64))
    loss(codes, labels, indices=torch.arange(4))
    before = {name: buffer.clone() for name, buffer in loss.state_dict().items()}
    other, other_labels = random_batch(3, 6, 3, 9)
    value = loss.eval()(other, other_labels)
    torch.testing.assert_close(value, wml(other, other_labels, codes, labels))
    assert all(torch.equal(before[name], buffer) for name, buffer in loss.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [0.0, 1.0, -1.0, 1e4])
def test_extreme_codes_give_finite_float32(dtype, size):
    codes = torch.full((4, 8), size, dtype=dtype, requires_grad=True)
    for labels in (
        torch.tensor([0, 0, 1, -1]),
        torch.tensor([-1, -1, -1, -1]),
        torch.zeros(4, dtype=torch.long),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = WMLLoss(quantization=0.1)(codes, labels)
        grad = torch.autograd.grad(loss, codes)[0]
        assert loss.dtype == torch.float32
        assert bool(loss.isfinite())
        assert bool(grad.isfinite().all())


def test_batch_of_one_and_unlabelled_rows():
    codes = torch.tensor([[0.5, -0.5]], requires_grad=True)
    assert wml_loss(codes, torch.tensor([3])).item() == pytest.approx(F.softplus(torch.tensor(-0.25)).item())
    assert wml_loss(codes, torch.tensor([3]), exclude_self=True).item() == 0
    assert wml_loss(codes, torch.tensor([[0, 0]])).item() == pytest.approx(
        F.softplus(torch.tensor(0.25)).item()
    )


def test_callers_tensors_are_unchanged():
    codes, labels = random_batch(4, 6, 3, 8)
    copies = codes.clone(), labels.clone()
    WMLLoss(bank=CodeBank(10, 6, 3))(codes, labels, indices=torch.arange(4))
    wml_loss(codes, labels, jaccard=True)
    assert torch.equal(codes, copies[0])
    assert torch.equal(labels, copies[1])


def test_saturated_pairs_keep_their_linear_loss():
    codes = torch.tensor([[1e3], [-1e3]])
    assert wml_loss(codes, torch.tensor([0, 0]), exclude_self=True).item() == pytest.approx(0.5e6)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "shape", lambda loss: loss(torch.zeros(3), torch.zeros(3).long())),
        (TypeError, "floating-point", lambda loss: loss(torch.zeros(3, 4).byte(), torch.zeros(3).long())),
        (TypeError, "integers", lambda loss: loss(torch.zeros(3, 4), torch.zeros(3))),
        (ValueError, "2 rows, expected 3", lambda loss: loss(torch.zeros(3, 4), torch.zeros(2).long())),
        (
            ValueError,
            "without ref_labels",
            lambda loss: loss(torch.zeros(3, 4), torch.zeros(3).long(), ref_codes=torch.zeros(2, 4)),
        ),
        (
            ValueError,
            "ref_codes have 5 bits, expected 4",
            lambda loss: loss(
                torch.zeros(3, 4),
                torch.zeros(3).long(),
                ref_codes=torch.zeros(2, 5),
                ref_labels=torch.zeros(2).long(),
            ),
        ),
        (ValueError, "alpha must be a positive number, got 0", lambda loss: WMLLoss(0)),
        (ValueError, "alpha must be a positive number, got nan", lambda loss: WMLLoss(float("nan"))),
        (ValueError, "quantization", lambda loss: WMLLoss(quantization=-1)),
    ],
)
def test_bad_input_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call(WMLLoss())


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "indices are needed", lambda loss, u, y: loss(u, y)),
        (
            IndexError,
            "index 10 .* bank of 10 rows",
            lambda loss, u, y: loss(u, y, indices=torch.tensor([0, 10])),
        ),
        (
            IndexError,
            "index -1 .* bank of 10 rows",
            lambda loss, u, y: loss(u, y, indices=torch.tensor([0, -1])),
        ),
        (TypeError, "integers", lambda loss, u, y: loss(u, y, indices=torch.tensor([0.0, 1.0]))),
        (ValueError, "shape", lambda loss, u, y: loss(u, y, indices=torch.tensor([0]))),
        (ValueError, "6 bits, the bank was made for 4", lambda loss, u, y: loss(torch.zeros(2, 6), y)),
        (ValueError, "without a bank", lambda loss, u, y: loss(u, y, ref_codes=u, ref_labels=y)),
        (
            ValueError,
            "num_classes=3",
            lambda loss, u, y: loss(u, torch.eye(2, 3), indices=torch.tensor([0, 1])),
        ),
        (ValueError, "NaN", lambda loss, u, y: loss(u * torch.nan, y, indices=torch.tensor([0, 1]))),
    ],
)
def test_bad_input_to_a_bank_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call(WMLLoss(bank=CodeBank(10, 4)), torch.zeros(2, 4), torch.tensor([0, 1]))


def _joined_training(rank, argument):
    """A linear network under DDP; each rank has its own rows, and the gradient is what DDP makes of it."""
    inputs, labels, rows, with_bank = argument
    network = torch.nn.Linear(3, 4, bias=False).double()
    torch.nn.init.constant_(network.weight, 0.3)
    network = torch.nn.parallel.DistributedDataParallel(network)
    bank = CodeBank(12, 4, labels.shape[1], dtype=torch.float64) if with_bank else None
    loss = WMLLoss(bank=bank, quantization=0.1)
    mine = rows[rank]
    value = loss(network(inputs[mine]), labels[mine], indices=mine)
    value.backward()
    return value.detach(), network.module.weight.grad


@pytest.mark.parametrize("with_bank", [False, True])
def test_two_processes_equal_one_on_the_joined_batch(with_bank):
    inputs = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # The second rank has fewer rows, and without the first rank's no similar pair.
    labels = torch.tensor(
        [[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]
    )
    rows = [torch.arange(5), torch.arange(5, 8)]
    network = torch.nn.Linear(3, 4, bias=False).double()
    torch.nn.init.constant_(network.weight, 0.3)
    bank = CodeBank(12, 4, 3, dtype=torch.float64) if with_bank else None
    value = WMLLoss(bank=bank, quantization=0.1)(network(inputs), labels, indices=torch.arange(8))
    value.backward()
    for got, grad in run_on_ranks(_joined_training, (inputs, labels, rows, with_bank)):
        torch.testing.assert_close(got, value.detach())
        torch.testing.assert_close(grad, network.weight.grad)
