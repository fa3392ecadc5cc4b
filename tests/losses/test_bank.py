"""CodeBank: what is stored, in what form, and that a run can be resumed."""

from __future__ import annotations

import copy

import pytest
import torch

from hybridhash.losses import (
    CodeBank,
    DCHLoss,
    DFHLoss,
    DHNLoss,
    DPSHLoss,
    DSHLoss,
    HashNetLoss,
    IDHNLoss,
    MDSHCLoss,
    WMLLoss,
)
from tests._processes import run_on_ranks

WITH_BANK = [DCHLoss, DHNLoss, DPSHLoss, DSHLoss, HashNetLoss, IDHNLoss]


def test_rows_are_written_detached_and_marked_as_seen():
    bank = CodeBank(5, 3)
    codes = torch.arange(6.0).view(2, 3).requires_grad_()
    bank.update(torch.tensor([4, 1]), codes, torch.tensor([7, 8]))
    assert bank.seen.tolist() == [False, True, False, False, True]
    assert bank.labels.tolist() == [-1, 8, -1, -1, 7]
    torch.testing.assert_close(bank.codes[[4, 1]], codes.detach())
    assert not bank.codes.requires_grad


def test_the_last_of_duplicate_indices_counts():
    bank = CodeBank(3, 1)
    bank.update(
        torch.tensor([2, 0, 2, 2]), torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([4, 2, 4, 4])
    )
    assert bank.codes[:, 0].tolist() == [2, 0, 4]
    assert bank.labels.tolist() == [2, -1, 4]


def test_class_ids_enter_a_multi_hot_bank_as_one_hot():
    bank = CodeBank(3, 2, num_classes=4)
    bank.update(torch.tensor([0, 2]), torch.zeros(2, 2), torch.tensor([3, -1]))
    assert bank.labels.long().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert bank.seen.tolist() == [True, False, True]


def test_state_dict_resumes_a_run():
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(4, 6, generator=generator), torch.randint(3, (4,), generator=generator)) for _ in "ab"
    ]
    first, second = (WMLLoss(bank=CodeBank(12, 6)) for _ in "ab")
    for step, (codes, labels) in enumerate(batches[:2]):
        first(codes, labels, indices=torch.arange(4) + 4 * step)
    second.load_state_dict(first.state_dict())
    codes, indices = torch.randn(4, 6, generator=generator), torch.tensor([1, 5, 8, 9])
    labels = torch.tensor([batches[0][1][1], batches[1][1][1], 0, 2])
    assert torch.equal(first(codes, labels, indices=indices), second(codes, labels, indices=indices))


def test_half_precision_storage_rounds_codes_but_not_the_loss():
    loss = WMLLoss(bank=CodeBank(4, 8, dtype=torch.float16))
    value = loss(torch.linspace(-1, 1, 32).view(4, 8), torch.tensor([0, 1, 0, 1]), indices=torch.arange(4))
    assert loss.bank.codes.dtype == torch.float16
    assert value.dtype == torch.float32


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (ValueError, "num_samples must be >= 1, got 0", lambda: CodeBank(0, 4)),
        (ValueError, "bits must be >= 1, got -1", lambda: CodeBank(5, -1)),
        (ValueError, "num_classes must be >= 1, got 0", lambda: CodeBank(5, 4, 0)),
        (TypeError, "floating-point", lambda: CodeBank(5, 4, dtype=torch.int64)),
    ],
)
def test_bad_sizes_are_named(error, message, make):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (IndexError, "index 5 is outside the bank of 5 rows", ([5], (1, 4), [[1, 0]])),
        (ValueError, "3 bits, the bank was made for 4", ([0], (1, 3), [[1, 0]])),
        (ValueError, "3 classes, the bank was made for 2", ([0], (1, 4), [[1, 0, 1]])),
        (ValueError, "class id 2 does not fit labels of 2 classes", ([0], (1, 4), [2])),
        (ValueError, r"shape \(1,\)", ([0, 1], (1, 4), [[1, 0]])),
        (ValueError, "1 rows, expected 2", ([0, 1], (2, 4), [[1, 0]])),
    ],
)
def test_bad_updates_are_named_and_write_nothing(error, message, arguments):
    indices, shape, labels = arguments
    bank = CodeBank(5, 4, 2)
    with pytest.raises(error, match=message):
        bank.update(torch.tensor(indices), torch.ones(shape), torch.tensor(labels))
    assert not bool(bank.seen.any())


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.float32, torch.inf), (torch.float32, torch.nan), (torch.float16, 7e4), (torch.float16, -7e4)],
)
def test_codes_that_would_not_be_finite_in_the_bank_are_refused(dtype, value):
    loss = WMLLoss(bank=CodeBank(20, 4, dtype=dtype))
    codes = torch.ones(2, 4)
    codes[0, 0] = value
    with pytest.raises(ValueError, match="would stay in the bank"):
        loss(codes, torch.tensor([0, 1]), indices=torch.tensor([3, 4]))
    clean = torch.linspace(-1, 1, 8).view(2, 4).requires_grad_()
    loss(clean, torch.tensor([0, 1]), indices=torch.tensor([5, 6])).backward()
    assert bool(clean.grad.isfinite().all())


@pytest.mark.parametrize("make", [lambda bank: WMLLoss(bank=bank), lambda bank: MDSHCLoss(5, 4, bank=bank)])
def test_a_batch_without_gradients_is_not_written(make):
    bank = CodeBank(20, 4)
    loss, labels = make(bank), torch.tensor([0, 1])
    loss(torch.ones(2, 4), labels, indices=torch.tensor([3, 4]))
    before = {name: buffer.clone() for name, buffer in bank.state_dict().items()}
    with torch.no_grad():
        loss(-torch.ones(2, 4), labels, indices=torch.tensor([3, 5]))
    assert all(torch.equal(before[name], buffer) for name, buffer in bank.state_dict().items())


@pytest.mark.parametrize("num_classes", [None, 3])
@pytest.mark.parametrize("make", [lambda bank: WMLLoss(bank=bank), lambda bank: MDSHCLoss(3, 4, bank=bank)])
def test_a_label_that_contradicts_the_stored_one_is_refused(make, num_classes):
    bank = CodeBank(20, 4, num_classes)
    loss, codes = make(bank), torch.ones(2, 4, requires_grad=True)
    loss(codes, torch.tensor([0, -1]), indices=torch.tensor([3, 4]))
    loss(codes, torch.tensor([0, 2]), indices=torch.tensor([3, 4]))  # a label may become known
    with pytest.raises(ValueError, match=r"label of row 4 differs from the one in the bank.*validation"):
        loss(-codes, torch.tensor([0, 1]), indices=torch.tensor([3, 4]))
    with pytest.raises(ValueError, match="label of row 3 differs"):
        bank.update(torch.tensor([3]), codes[:1], torch.tensor([-1]))
    assert bool((bank.codes[[3, 4]] == 1).all())
    with torch.no_grad():  # images of another set may be compared with the bank
        assert loss(-codes, torch.tensor([0, 1]), indices=torch.tensor([3, 4])).isfinite()


@pytest.mark.parametrize("num_classes", [None, 3])
@pytest.mark.parametrize("make", [lambda bank: WMLLoss(bank=bank), lambda bank: MDSHCLoss(3, 4, bank=bank)])
def test_a_row_with_two_labels_in_one_batch_is_refused(make, num_classes):
    bank = CodeBank(20, 4, num_classes)
    loss, codes = make(bank), torch.ones(4, 4, requires_grad=True)
    for labels in ([0, 1, 2, 1], [0, -1, 2, 1], [0, 1, 2, -1]):
        with pytest.raises(ValueError, match="row 4 occurs twice in the batch, with two labels"):
            loss(codes, torch.tensor(labels), indices=torch.tensor([3, 4, 4, 2]))
    assert not bool(bank.seen.any())
    assert bank.kind is None
    loss(codes, torch.tensor([0, 1, 1, 2]), indices=torch.tensor([3, 4, 4, 2]))
    assert bank.seen.nonzero()[:, 0].tolist() == [2, 3, 4]
    loss(codes[:1], torch.tensor([0]), indices=torch.tensor([9]))  # a batch of one


@pytest.mark.parametrize("other", [DFHLoss(3, 4), *(make() for make in WITH_BANK)])
def test_losses_that_share_a_bank_may_be_called_in_any_order(other):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(6, 4, generator=generator) for _ in range(3)]
    labels, values = torch.arange(6) % 3, []
    for wml_first in (True, False):
        wml, second = WMLLoss(bank=CodeBank(6, 4, 3)), copy.deepcopy(other)
        second.bank = wml.bank
        for codes in batches:
            pair = (wml, second) if wml_first else (second, wml)
            losses = {loss: loss(codes, labels, indices=torch.arange(6)) for loss in pair}
        values.append(torch.stack([losses[wml], losses[second]]))
    assert torch.equal(*values)


def test_losses_that_store_different_codes_cannot_share_a_bank():
    bank, rows, labels = CodeBank(6, 4), torch.arange(2), torch.tensor([0, 1])
    codes = torch.ones(2, 4, requires_grad=True)
    MDSHCLoss(3, 4, bank=bank)(codes, labels, indices=rows, ref_codes=codes / 2)
    with pytest.raises(ValueError, match="holds the ref_codes of MDSHCLoss, and this loss would store codes"):
        WMLLoss(bank=bank)(codes, labels, indices=rows)


def _update_from_ranks(rank, argument):
    bank = CodeBank(6, 2)
    indices = torch.tensor([[0, 3, 4], [3]][rank])
    bank.update(indices, torch.full((len(indices), 2), rank + 1.0), torch.tensor([[5, 6, 7], [6]][rank]))
    state = {name: value.clone() for name, value in bank.state_dict().items()}
    # A row that the ranks label differently is refused on all of them.
    with pytest.raises(ValueError, match="row 1 occurs twice in the batch, with two labels"):
        bank.update(torch.tensor([1]), torch.ones(1, 2), torch.tensor([rank]))
    assert all(torch.equal(value, state[name]) for name, value in bank.state_dict().items())
    return state


def test_banks_of_all_ranks_hold_the_rows_of_all_ranks():
    for state in run_on_ranks(_update_from_ranks):
        assert state["codes"][:, 0].tolist() == [1, 0, 0, 2, 1, 0]
        assert state["labels"].tolist() == [5, -1, -1, 6, 7, -1]
        assert state["seen"].tolist() == [True, False, False, True, True, False]
