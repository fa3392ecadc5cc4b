"""What must hold of every loss ``loss(codes, labels)`` over a batch, whatever its formula."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests._processes import run_on_ranks

Loss = Callable[[Tensor, Tensor], Tensor]

LABELS = {
    "two classes": torch.tensor([0, 0, 1, 1, 0, 1]),
    "one class": torch.zeros(6, dtype=torch.int64),
    "no two alike": torch.arange(6),
    "some unlabelled": torch.tensor([0, -1, 0, 1, -1, 1]),
    "all unlabelled": torch.full((6,), -1),
    "multi-hot": torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0], [1, 1, 1]]),
}


def random_codes(rows=6, bits=4, seed=0, dtype=torch.float64):
    return 1.8 * torch.rand(rows, bits, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 0.9


def value_and_grad(loss, codes, labels):
    codes = codes.detach().clone().requires_grad_()
    value = loss(codes, labels)
    (grad,) = torch.autograd.grad(value, codes)
    return value.detach(), grad


def assert_invariants(loss):
    assert_finite_everywhere(loss)
    assert_autocast_changes_nothing(loss)
    assert_order_does_not_matter(loss)
    assert_ids_equal_one_hot(loss)
    assert_inputs_stay(loss)
    assert_gradient_is_right(loss)


def assert_finite_everywhere(loss):
    """Value and gradient at extreme codes, for all kinds of labels, in half precision, for a batch of one."""
    signs = random_codes(seed=1, dtype=torch.float32).sign()
    batches = [torch.zeros(6, 4), signs, -signs, 1e4 * signs, random_codes(dtype=torch.float32)]
    for codes in batches:
        for name, labels in LABELS.items():
            for number in (6, 1):
                value, grad = value_and_grad(loss, codes[:number], labels[:number])
                assert value.ndim == 0
                assert value.dtype == torch.float32
                assert value.isfinite(), (name, codes)
                assert grad.isfinite().all(), (name, codes)
    for dtype in (torch.float16, torch.bfloat16):
        for codes in batches:
            value, grad = value_and_grad(loss, codes.to(dtype), LABELS["two classes"])
            assert value.dtype == torch.float32
            assert value.isfinite()
            assert grad.isfinite().all()


def assert_autocast_changes_nothing(loss):
    codes, labels = random_codes(dtype=torch.float32), LABELS["multi-hot"]
    plain = value_and_grad(loss, codes, labels)
    for dtype in (torch.float16, torch.bfloat16):
        given = codes.clone().requires_grad_()
        with torch.autocast("cpu", dtype):
            value = loss(given, labels)
        value.backward()
        torch.testing.assert_close((value.detach(), given.grad), plain)


def assert_order_does_not_matter(loss):
    codes = random_codes()
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    for labels in (LABELS["two classes"], LABELS["multi-hot"]):
        value, grad = value_and_grad(loss, codes, labels)
        shuffled, shuffled_grad = value_and_grad(loss, codes[order], labels[order])
        torch.testing.assert_close(shuffled, value)
        torch.testing.assert_close(shuffled_grad, grad[order])


def assert_ids_equal_one_hot(loss):
    codes = random_codes()
    for ids in (LABELS["two classes"], LABELS["some unlabelled"]):
        one_hot = ids[:, None] == torch.arange(3)
        torch.testing.assert_close(value_and_grad(loss, codes, one_hot), value_and_grad(loss, codes, ids))


def assert_inputs_stay(loss):
    codes = random_codes().requires_grad_()
    for labels in (LABELS["two classes"], LABELS["multi-hot"]):
        before, labels_before = codes.detach().clone(), labels.clone()
        loss(codes, labels).backward()
        assert torch.equal(codes, before)
        assert torch.equal(labels, labels_before)


def assert_gradient_is_right(loss, labels=None):
    for given in labels or (LABELS["two classes"], LABELS["multi-hot"]):
        assert torch.autograd.gradcheck(
            lambda codes, given=given: loss(codes, given), random_codes().requires_grad_()
        )


def _on_rank(rank, argument):
    losses, codes, labels = argument
    return [value_and_grad(loss, codes[rank], labels[rank]) for loss in losses]


def assert_two_processes_equal_one(losses):
    """Uneven batches; the second rank has no positive pair of its own. ``losses`` must be picklable."""
    codes, labels = random_codes(rows=7), torch.tensor([0, 0, 1, 1, 2, 0, 1])
    parts = [slice(0, 4), slice(4, 7)]
    argument = (losses, [codes[part] for part in parts], [labels[part] for part in parts])
    results = run_on_ranks(_on_rank, argument)
    for number, loss in enumerate(losses):
        value, grad = value_and_grad(loss, codes, labels)
        for part, of_rank in zip(parts, results, strict=True):
            torch.testing.assert_close(of_rank[number][0], value)
            # DistributedDataParallel averages over the ranks, hence the factor 2.
            torch.testing.assert_close(of_rank[number][1], 2 * grad[part])
