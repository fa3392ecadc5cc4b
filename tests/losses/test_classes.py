"""What holds for every loss on centers or on a classifier."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from hybridhash.losses import (
    CodeBank,
    CSQLoss,
    DLBHCLoss,
    DPNLoss,
    GreedyHashLoss,
    HyP2Loss,
    MDSHCLoss,
    OrthoHashLoss,
)
from tests._processes import run_on_ranks

CLASSES, BITS = 5, 12


def build(name):
    generator = torch.Generator().manual_seed(4)
    builders: dict[str, Callable[[], nn.Module]] = {
        "csq": lambda: CSQLoss(CLASSES, BITS, generator=generator),
        "csq tanh": lambda: CSQLoss(CLASSES, BITS, tanh=True, generator=generator),
        "mdshc": lambda: MDSHCLoss(CLASSES, BITS, generator=generator),
        "mdshc bank": lambda: MDSHCLoss(
            CLASSES, BITS, bank=CodeBank(20, BITS, num_classes=CLASSES), pair_from=0, generator=generator
        ),
        "dpn": lambda: DPNLoss(CLASSES, BITS, adaptive=True, generator=generator),
        "dpn centroid": lambda: DPNLoss(CLASSES, BITS, multi_label="centroid", generator=generator),
        "orthohash": lambda: OrthoHashLoss(CLASSES, BITS, quantization=0.1, generator=generator),
        "hyp2": lambda: HyP2Loss(CLASSES, BITS, generator=generator),
        "dlbhc": lambda: DLBHCLoss(CLASSES, BITS, generator=generator),
        "greedyhash": lambda: GreedyHashLoss(CLASSES, BITS, generator=generator),
    }
    return builders[name]()


MULTI_LABEL = ["csq", "csq tanh", "mdshc", "mdshc bank", "dpn", "dpn centroid", "orthohash", "hyp2"]
ALL = [*MULTI_LABEL, "dlbhc", "greedyhash"]
SMOOTH = [name for name in ALL if name != "greedyhash"]


def batch(rows=8, seed=0, dtype=torch.float32):
    """Codes in (-1, 1) and class ids, one of them -1."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(rows, BITS, generator=generator, dtype=dtype).mul(0.7).tanh()
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    labels[min(2, rows - 1)] = -1
    return codes.requires_grad_(), labels


def one_hot(ids):
    return (ids[:, None] == torch.arange(CLASSES)).float()


def value_and_grad(loss, codes, labels):
    value = loss(codes, labels, indices=torch.arange(codes.shape[0]))
    return value.detach(), torch.autograd.grad(value, codes)[0]


@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck(name):
    codes, labels = batch(4, dtype=torch.float64)
    loss = build(name).double()
    if name == "mdshc bank":
        loss(codes, labels, indices=torch.arange(4))
        loss.eval()
    assert torch.autograd.gradcheck(lambda u: loss(u, labels), codes)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_extreme_codes_give_a_finite_value_and_gradient(name, size, dtype):
    codes, labels = batch()
    size = min(size, 1.0) if name == "csq" else size  # it refuses codes outside [-1, 1]
    codes = (codes.detach().sign() * size).to(dtype).requires_grad_()
    value, grad = value_and_grad(build(name), codes, labels)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.isfinite()
    full = codes.detach().float().requires_grad_()
    _, full_grad = value_and_grad(build(name), full, labels)
    assert full_grad.isfinite().all()
    # In half precision a gradient is as finite as the format can hold: a gradient scaler must see the rest.
    if full_grad.abs().max() < torch.finfo(dtype).max:
        assert grad.isfinite().all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(name, dtype):
    codes, labels = batch()
    expected = value_and_grad(build(name), codes, labels)
    loss = build(name)
    with torch.autocast("cpu", dtype=dtype):
        value = loss(codes, labels, indices=torch.arange(8))
    assert value.dtype == torch.float32
    torch.testing.assert_close((value.detach(), torch.autograd.grad(value, codes)[0]), expected)


@pytest.mark.parametrize("name", ALL)
def test_unlabelled_rows_contribute_nothing(name):
    codes, labels = batch()
    keep = labels >= 0
    value, grad = value_and_grad(build(name), codes, labels)
    kept, kept_grad = value_and_grad(build(name), codes.detach()[keep].requires_grad_(), labels[keep])
    torch.testing.assert_close(value, kept)
    torch.testing.assert_close(grad[keep], kept_grad)
    assert not grad[~keep].any()


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("name", [name for name in ALL if name != "mdshc bank"])
def test_without_any_label_the_loss_is_zero(name, rows):
    codes = torch.rand(rows, BITS, requires_grad=True)
    value, grad = value_and_grad(build(name), codes, torch.full((rows,), -1))
    assert value == 0
    assert not grad.any()


@pytest.mark.parametrize("name", ALL)
def test_a_batch_of_one_has_a_finite_loss_and_gradient(name):
    value, grad = value_and_grad(build(name), torch.rand(1, BITS, requires_grad=True), torch.tensor([3]))
    assert value > 0
    assert grad.isfinite().all()
    assert grad.any()


@pytest.mark.parametrize("name", ALL)
def test_order_of_the_batch_does_not_matter(name):
    codes, labels = batch()
    value, grad = value_and_grad(build(name), codes, labels)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    other, other_grad = value_and_grad(build(name), codes.detach()[order].requires_grad_(), labels[order])
    torch.testing.assert_close(other, value)
    torch.testing.assert_close(other_grad, grad[order])


@pytest.mark.parametrize("name", ALL)
def test_class_ids_equal_their_one_hot_rows(name):
    codes, labels = batch()
    by_ids = value_and_grad(build(name), codes, labels)
    torch.testing.assert_close(value_and_grad(build(name), codes, one_hot(labels)), by_ids)


@pytest.mark.parametrize("name", ALL)
def test_the_callers_tensors_are_unchanged(name):
    codes, labels = batch()
    copies = codes.detach().clone(), labels.clone()
    value_and_grad(build(name), codes, labels)
    assert torch.equal(codes, copies[0])
    assert torch.equal(labels, copies[1])


@pytest.mark.parametrize("name", ["csq tanh", "mdshc", "dpn", "orthohash", "dlbhc", "greedyhash"])
def test_works_inside_a_compiled_function_and_as_a_pickled_copy(name):
    codes, labels = batch()
    expected = value_and_grad(build(name), codes, labels)
    loss = pickle.loads(pickle.dumps(build(name)))
    compiled = torch.compile(lambda u: loss(u, labels), backend="eager")(codes)
    torch.testing.assert_close((compiled.detach(), torch.autograd.grad(compiled, codes)[0]), expected)


@pytest.mark.parametrize("name", ALL)
def test_state_dict_carries_everything(name):
    codes, labels = batch()
    loss = build(name)
    other = type(loss)(CLASSES, BITS, generator=torch.Generator().manual_seed(77))
    for setting in ("pair_from", "tanh", "multi_label", "adaptive", "quantization"):
        if hasattr(loss, setting):
            setattr(other, setting, getattr(loss, setting))
    if name == "mdshc bank":
        other.bank = CodeBank(20, BITS, CLASSES)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(value_and_grad(loss, codes, labels)[0], value_and_grad(other, codes, labels)[0])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("error", "message", "codes", "labels"),
    [
        (ValueError, "codes have 8 bits, expected 12", torch.ones(2, 8), torch.tensor([0, 1])),
        (
            ValueError,
            "class id 5 does not fit labels of 5 classes",
            torch.ones(2, BITS),
            torch.tensor([0, 5]),
        ),
        (ValueError, "labels have 4 classes, the loss was made for", torch.ones(2, BITS), torch.ones(2, 4)),
        (ValueError, "labels has 3 rows, expected 2", torch.ones(2, BITS), torch.tensor([0, 1, 2])),
        (TypeError, "codes must be real-valued", torch.ones(2, BITS).long(), torch.tensor([0, 1])),
        (TypeError, "must be integers, got torch.float32", torch.ones(2, BITS), torch.tensor([0.0, 1.0])),
    ],
)
def test_bad_input_is_named(name, error, message, codes, labels):
    with pytest.raises(error, match=message):
        build(name)(codes, labels, indices=torch.arange(2))


@pytest.mark.parametrize("name", ALL)
def test_reference_codes_and_unknown_settings_are_refused(name):
    codes, labels = batch()
    with pytest.raises(ValueError, match="ref_codes"):
        build(name)(codes, labels, ref_codes=codes, ref_labels=labels)
    with pytest.raises(TypeError, match="alpah"):
        type(build(name))(CLASSES, BITS, alpah=1)


def _steps(rank, argument):
    """Loss, gradients of codes and parameters, and buffers of every loss, on this rank's rows."""
    codes, labels, parts = argument
    results = {}
    for name in ALL:
        loss = build(name)
        own = codes[parts[rank]].clone().requires_grad_()
        indices = torch.arange(codes.shape[0])[parts[rank]]
        value = loss(own, labels[parts[rank]], indices=indices)
        value.backward()
        if hasattr(loss, "epoch_end"):
            loss.epoch_end()
        buffers = [buffer.clone() for buffer in loss.buffers()]
        results[name] = [value.detach(), own.grad, *(p.grad for p in loss.parameters()), *buffers]
    return results


def test_two_processes_equal_one_on_the_joined_batch():
    codes, labels = batch(9)
    codes = codes.detach()
    parts = [slice(0, 6), slice(6, 9)]
    labels[6:] = torch.tensor([-1, -1, 4])
    whole = _steps(0, (codes, labels, [slice(0, 9)]))
    ranks = run_on_ranks(_steps, (codes, labels, parts))
    for name in ALL:
        count = len(list(build(name).parameters()))
        expected = whole[name]
        gathered = torch.cat([result[name][1] for result in ranks]) / 2
        torch.testing.assert_close(gathered, expected[1], msg=name)
        for index in range(count):
            mean = sum(result[name][2 + index] for result in ranks) / 2
            torch.testing.assert_close(mean, expected[2 + index], msg=name)
        for result in ranks:
            torch.testing.assert_close(result[name][0], expected[0], msg=name)
            for got, buffer in zip(result[name][2 + count :], expected[2 + count :], strict=True):
                assert torch.equal(got, buffer), name


@pytest.mark.parametrize("name", ["csq tanh", "mdshc", "dpn", "orthohash", "dlbhc", "greedyhash"])
def test_gradient_descent_on_the_codes_separates_the_classes(name):
    labels = torch.arange(CLASSES).repeat(4)
    codes = (0.1 * torch.randn(20, BITS, generator=torch.Generator().manual_seed(2))).requires_grad_()
    loss = build(name)
    optimizer = torch.optim.Adam([codes, *loss.parameters()], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss(codes, labels, indices=torch.arange(20)).backward()
        optimizer.step()
    words = codes.detach().sign()
    distances = (BITS - words @ words.T) / 2
    alike = labels[:, None] == labels
    assert distances[alike].mean() + 1 < distances[~alike].mean()


@pytest.mark.parametrize("name", ["csq", "mdshc", "dpn", "orthohash"])
def test_torchs_default_dtype_and_device_change_nothing(name):
    codes, labels = batch()
    expected = value_and_grad(build(name), codes, labels)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            loss = build(name)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(value_and_grad(loss, codes, labels), expected)
