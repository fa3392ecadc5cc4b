"""The terms of a loss, and the losses of single rows."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch

from hybridhash.losses import CodeBank, WMLLoss, functional, list_losses
from tests._processes import run_on_ranks
from tests.losses.test_registry import BITS, CLASSES, FORMULAS, PAIRWISE, ROWS, batch, loss_class_of, make

HAS_ROWS = [
    name for name in list_losses() if "reduction" in inspect.signature(loss_class_of(name).forward).parameters
]
ROW_LOSSES = sorted(set(HAS_ROWS) - set(PAIRWISE))
INDICES = torch.arange(ROWS)


@pytest.mark.parametrize(("name", "more"), FORMULAS)
def test_the_parts_add_up_to_the_loss(name, more):
    codes, labels = batch()
    loss = make(name, **more)
    with pytest.raises(RuntimeError, match=f"{type(loss).__name__} has no parts before its first call"):
        loss.parts()
    for scale in (1.0, 0.3):
        value = loss((scale * codes).tanh().requires_grad_(), labels, indices=INDICES)
        parts = loss.parts()
        assert all(part.ndim == 0 and not part.requires_grad for part in parts.values())
        torch.testing.assert_close(sum(parts.values()), value.detach())
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other.parts() == parts
    parts.clear()  # the caller's own dict
    assert loss.parts()


def test_the_parts_are_the_terms_with_their_weights():
    codes, labels = batch()
    codes = codes.tanh()
    loss = make("csq", quantization=0.3)
    loss(codes, labels)
    penalty = 0.3 * (codes.abs() - 1).square().mean()
    torch.testing.assert_close(loss.parts()["quantization"], penalty)
    torch.testing.assert_close(loss.parts()["centers"], make("csq", quantization=0.0)(codes, labels))
    loss = make("dpsh", eta=70.0)
    loss(codes, labels)
    torch.testing.assert_close(loss.parts()["pairs"], make("dpsh", eta=0.0)(codes, labels))
    torch.testing.assert_close(loss.parts()["penalty"], 70 / 5000 * (codes.abs() - 1).square().sum(1).mean())
    loss = make("mdshc", bank=CodeBank(ROWS, BITS), pair_from=0, pair_weight=2.0)
    value = loss(codes.requires_grad_(), labels, indices=INDICES)
    assert list(loss.parts()) == ["centers", "quantization", "pairs"]
    torch.testing.assert_close(sum(loss.parts().values()), value.detach())


def test_functions_give_parts_too():
    codes, labels = batch()
    parts = {}
    value = functional.dtsh_loss(codes, labels, parts=parts)
    assert list(parts) == ["triplets", "quantization"]
    torch.testing.assert_close(sum(parts.values()), value)


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("kind", ["batch", "bank", "reference", "chunks"])
def test_the_rows_of_a_pairwise_loss_have_its_mean_and_its_gradients(name, kind):
    codes, labels = batch()
    codes = codes.tanh().requires_grad_()
    call = {}
    if kind == "reference":
        other, other_labels = batch(seed=4, n=9)
        call = {"ref_codes": other, "ref_labels": other_labels}
    if kind == "chunks":
        compare = make(name).compare
        other, _ = batch(seed=4, n=9)
        hot = torch.nn.functional.one_hot(torch.arange(9) % CLASSES).bool()
        mine = torch.nn.functional.one_hot(labels, CLASSES).bool()

        def loss(reduction):
            return compare(codes, mine, other, hot, chunk_size=4, reduction=reduction)
    else:
        bank = {"bank": CodeBank(ROWS, BITS, CLASSES, dtype=torch.float64)} if kind == "bank" else {}
        module = make(name, **bank)

        def loss(reduction):
            return module(codes, labels, indices=INDICES, reduction=reduction, **call)

    rows, value = loss("none"), loss("mean")
    assert rows.shape == (ROWS,)
    torch.testing.assert_close(rows.mean(), value)
    grads = [torch.autograd.grad(each, codes)[0] for each in (rows.mean(), value)]
    torch.testing.assert_close(*grads)
    weights = torch.linspace(0, 1, ROWS, dtype=codes.dtype)  # rows differ, so weights change the gradient
    (weighted,) = torch.autograd.grad(loss("none") @ weights, codes)
    assert not torch.allclose(weighted, grads[0])


@pytest.mark.parametrize("name", sorted(set(PAIRWISE) - {"dsdh"}))  # its discrete codes are those of a batch
def test_the_row_of_an_item_is_its_own_loss_against_fixed_codes(name):
    """Each row has as many similar pairs as the others here, so that the weights do not change."""
    codes, labels = batch()
    other, other_labels = batch(seed=4, n=9)
    call = {"ref_codes": other, "ref_labels": other_labels}
    loss = make(name)
    rows = loss(codes.tanh(), labels, reduction="none", **call)
    alone = [loss(codes[i : i + 1].tanh(), labels[i : i + 1], **call) for i in range(ROWS)]
    torch.testing.assert_close(rows, torch.stack(alone))


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_rows_without_a_label_are_zero_and_the_others_have_the_mean(name):
    codes, labels = batch()
    labels = labels.clone()
    labels[2] = -1
    codes, loss = codes.tanh().requires_grad_(), make(name)
    rows, value = loss(codes, labels, reduction="none"), loss(codes, labels)
    assert rows.shape == (ROWS,)
    assert rows[2] == 0
    torch.testing.assert_close(rows.sum() / (ROWS - 1), value)
    torch.testing.assert_close(
        torch.autograd.grad(rows.sum() / (ROWS - 1), codes)[0], torch.autograd.grad(value, codes)[0]
    )
    alone = [loss(codes[i : i + 1], labels[i : i + 1]) for i in range(ROWS)]
    torch.testing.assert_close(rows, torch.stack(alone))


def test_the_list_of_losses_with_rows():
    assert ROW_LOSSES == ["csq", "dlbhc", "dpn", "greedyhash", "mdshc", "orthohash"]
    assert set(PAIRWISE) <= set(HAS_ROWS)


@pytest.mark.parametrize("name", HAS_ROWS)
def test_another_reduction_is_refused(name):
    codes, labels = batch()
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'none', got 'sum'"):
        make(name)(codes.tanh(), labels, reduction="sum")


@pytest.mark.parametrize("name", sorted(set(list_losses()) - set(HAS_ROWS)))
def test_losses_that_are_no_mean_over_rows_refuse_a_reduction_by_name(name):
    codes, labels = batch()
    loss = make(name)
    with pytest.raises(
        TypeError, match=rf"{type(loss).__name__}.forward\(\) got an unexpected .*'reduction'"
    ):
        loss(codes.sigmoid(), labels, indices=INDICES, reduction="none")


def _on_rank(rank, case):
    codes, labels, rows = case
    mine, results = rows[rank], {}
    for name in ("csq", "dpsh", "wml"):
        for kind in ("batch", "bank") if name != "csq" else ("batch",):
            bank = {} if kind == "batch" else {"bank": CodeBank(12, BITS, CLASSES, dtype=torch.float64)}
            leaf = codes[mine].clone().requires_grad_()
            loss = make(name, **bank)
            values = loss(leaf, labels[mine], indices=mine, reduction="none")
            (values * torch.arange(7)).sum().backward()
            results[f"{name}-{kind}"] = values.detach(), leaf.grad, loss.parts()
    return results


def test_two_processes_give_the_rows_and_parts_of_the_joined_batch():
    codes, labels = batch(seed=1, n=7)
    codes, rows = codes.tanh(), [torch.arange(4), torch.arange(4, 7)]
    expected = _on_rank(0, (codes, labels, [torch.arange(7)]))
    first, second = run_on_ranks(_on_rank, (codes, labels, rows))
    for name, (values, grad, parts) in expected.items():
        for of_rank in (first, second):
            torch.testing.assert_close(of_rank[name][0], values, msg=name)
            torch.testing.assert_close(of_rank[name][2], parts, msg=name)
        joined = torch.cat((first[name][1], second[name][1])) / 2
        torch.testing.assert_close(joined, grad, msg=name)


def test_rows_of_many_pairs_take_chunks():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(20, 16, generator=generator).requires_grad_()
    refs, ref_labels = torch.randn(60_000, 16, generator=generator), torch.arange(60_000) % 7
    loss, labels = WMLLoss(), torch.arange(20) % 7
    call = {"ref_codes": refs, "ref_labels": ref_labels}
    rows, value = loss(codes, labels, reduction="none", **call), loss(codes, labels, **call)
    torch.testing.assert_close(rows.mean(), value)
    grads = [torch.autograd.grad(each, codes)[0] for each in (rows.mean(), value)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-7)
