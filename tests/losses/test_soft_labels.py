"""Labels of real numbers in [0, 1], as mixup and label smoothing give them."""

from __future__ import annotations

import math

import pytest
import torch

from hybridhash.losses import CodeBank, DPNLoss, MDSHCLoss, list_losses
from tests.losses._oracles import cosine
from tests.losses.test_registry import BITS, CLASSES, ROWS, make

# Losses whose value is linear in the target, so that soft labels mix the losses of the classes.
MIXED = [
    ("csq", {}),
    ("csq", {"tanh": True}),
    ("dpn", {}),
    ("dpn", {"multi_label": "centroid", "reduction": "mean"}),
    ("greedyhash", {}),
    ("dlbhc", {}),
    ("dlbhc", {"latent": "tanh"}),
    ("mdshc", {}),
]
SOFT = [*MIXED, ("orthohash", {}), ("orthohash", {"quantization": 0.5})]
MIXUP = torch.tensor(
    [[0.7, 0.3, 0.0], [1, 0, 0], [0, 0.25, 0.75], [0, 0, 0], [0.1, 0.8, 0.1], [0, 1, 0]], dtype=torch.float64
)


def codes_of(dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(ROWS, BITS, generator=generator, dtype=dtype).tanh().requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize(("name", "more"), MIXED)
def test_mixed_labels_mix_the_losses_of_the_classes(name, more, dtype):
    loss, codes = make(name, **more), codes_of()
    of_classes = [loss(codes, torch.full((ROWS,), of_class), reduction="none") for of_class in range(CLASSES)]
    expected = (MIXUP * torch.stack(of_classes, 1)).sum() / 5  # row 3 has no label
    got = loss(codes, MIXUP.to(dtype))
    tolerance = {} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(got, expected, **tolerance)
    grads = [torch.autograd.grad(each, codes)[0] for each in (got, expected)]
    torch.testing.assert_close(*grads, **tolerance)


@pytest.mark.parametrize("quantization", [0.0, 0.5])
def test_orthohash_equals_the_literal_formula(quantization):
    loss, codes = make("orthohash", quantization=quantization), codes_of()
    rows = []
    for u, y in zip(codes, MIXUP.tolist(), strict=True):
        if not any(y):
            continue
        logits = [8 * (cosine(u, c) - 0.2 * t) for c, t in zip(loss.centers.double(), y, strict=True)]
        total = sum(x.exp() for x in logits)
        entropy = -sum(t / sum(y) * (x.exp() / total).log() for x, t in zip(logits, y, strict=True))
        rows.append(entropy + quantization * (1 - cosine(u, u.sign())))
    torch.testing.assert_close(loss(codes, MIXUP), sum(rows) / 5)


@pytest.mark.parametrize(
    ("name", "more", "factor"),
    [
        ("csq", {}, 1),
        ("orthohash", {"margin": 0.0}, 1),  # the margin is one of y itself
        ("greedyhash", {}, 1),
        ("dlbhc", {}, 1),
        ("dpn", {"multi_label": "centroid"}, 1),
        ("dpn", {}, 0.5),  # a sum over the labels, as the paper has it
    ],
)
def test_a_row_shares_its_weight_whatever_its_labels_add_up_to(name, more, factor):
    loss, codes = make(name, **more), codes_of()
    soft = MIXUP[[0, 2, 4]]
    torch.testing.assert_close(loss(codes[:3], soft / 2), factor * loss(codes[:3], soft))


@pytest.mark.parametrize(("name", "more"), SOFT)
def test_zeros_and_ones_are_multi_hot_also_beside_soft_rows(name, more):
    hot = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    if name == "dlbhc":
        hot[[1, 4], 0], hot[4, 1] = 0, 0  # one label each
    loss, codes = make(name, **more), codes_of()
    expected = loss(codes, hot, reduction="none")
    torch.testing.assert_close(loss(codes, hot.double(), reduction="none"), expected)
    beside = hot.double()
    beside[0] = torch.tensor([0.5, 0.5, 0.0])
    torch.testing.assert_close(loss(codes, beside, reduction="none")[1:], expected[1:])
    torch.testing.assert_close(loss(codes, beside.numpy()), loss(codes, beside))


@pytest.mark.parametrize(("name", "more"), SOFT)
def test_soft_labels_compile_to_one_graph_and_differentiate_twice(name, more):
    loss, codes = make(name, **more), codes_of()
    torch.compiler.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(codes, MIXUP), loss(codes, MIXUP))
    if name != "greedyhash":  # whose gradient is not the derivative of its value
        assert torch.autograd.gradgradcheck(lambda u: loss(u, MIXUP), codes)


def test_several_labels_share_the_weight_in_greedyhash():
    loss, codes = make("greedyhash", alpha=0.0), codes_of()
    hot = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1], [0, 0, 1]])
    rows, weight = [], loss.classifier.weight.tolist()
    for u, y in zip(codes.tolist(), hot.tolist(), strict=True):
        logits = [sum((1 if a > 0 else -1) * b for a, b in zip(u, w, strict=True)) for w in weight]
        total = sum(math.exp(x) for x in logits)
        entropies = [-math.log(math.exp(x) / total) for x, own in zip(logits, y, strict=True) if own]
        rows += [sum(entropies) / len(entropies)] if entropies else []
    assert loss(codes, hot).item() == pytest.approx(sum(rows) / 5)


@pytest.mark.parametrize("value", [-0.1, 1.2, math.nan, math.inf])
@pytest.mark.parametrize(("name", "more"), SOFT)
def test_numbers_outside_0_to_1_are_refused(name, more, value):
    labels = MIXUP.clone()
    labels[1, 2] = value
    with pytest.raises(ValueError, match=r"must be in \[0, 1\] .*, got the entry"):
        make(name, **more)(codes_of(), labels)


@pytest.mark.parametrize("name", sorted(set(list_losses()) - {name for name, _ in SOFT}))
def test_losses_on_shared_labels_refuse_them(name):
    with pytest.raises(ValueError, match=r"must be multi-hot \(0 or 1\), got the entry 0.7"):
        make(name)(codes_of(torch.float32).sigmoid(), MIXUP, indices=torch.arange(ROWS))


def test_so_do_a_bank_and_targets_that_follow_the_codes():
    codes, rows = codes_of(torch.float32), torch.arange(ROWS)
    with pytest.raises(ValueError, match="must be multi-hot"):
        MDSHCLoss(CLASSES, BITS, bank=CodeBank(ROWS, BITS, CLASSES))(codes, MIXUP, indices=rows)
    with pytest.raises(ValueError, match="must be multi-hot"):
        DPNLoss(CLASSES, BITS, adaptive=True)(codes, MIXUP)
    with pytest.raises(ValueError, match=r"one label per image .* got a row with 1\.6 labels"):
        make("dlbhc")(codes, torch.tensor([[0.8, 0.8, 0.0]] * ROWS))
