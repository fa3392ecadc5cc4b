"""ContrastiveLoss against its formula, its views, and the public form of CIBHash."""

import math

import pytest
import torch
import torch.nn.functional as F

from hybridhash.losses import ContrastiveLoss
from hybridhash.losses.functional import contrastive_loss
from tests._processes import run_on_ranks
from tests.losses._oracles import cosine


def views(seed=0, images=4, number=2, bits=6):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(images * number, bits, generator=generator, dtype=torch.float64).tanh()
    return codes.requires_grad_(), torch.arange(images).repeat(number)


def literal(codes, labels, ref_codes, ref_labels, tau, similarity, beta, same):
    """One row, one positive, one other at a time; ``same`` tells that both sides are the batch."""

    def alike(a, b):
        return cosine(a, b) / tau if similarity == "cosine" else (a * b).sum() / (len(a) * tau)

    def divergence(u, v):
        total = 0.0
        for p, q in zip((1 + u) / 2, (1 + v.detach()) / 2, strict=True):
            total = total + p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
        return total

    of_rows = []
    for i, (u, y) in enumerate(zip(codes, labels, strict=True)):
        others = [k for k in range(len(ref_codes)) if not (same and k == i)]
        positives = [k for k in others if ref_labels[k] == y and y >= 0]
        total = sum(alike(u, ref_codes[k]).exp() for k in others)
        terms = [
            -torch.log(alike(u, ref_codes[j]).exp() / total) + beta * divergence(u, ref_codes[j])
            for j in positives
        ]
        if terms:
            of_rows.append(sum(terms) / len(terms))
    return sum(of_rows) / len(of_rows)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 2], [3, 3, -1, -1, 7, 3]], ids=str)
def test_it_equals_the_literal_formula(labels, similarity):
    codes, _ = views(images=3)
    labels = torch.tensor(labels)
    settings = {"temperature": 0.4, "similarity": similarity, "bottleneck": 0.3}
    got = contrastive_loss(codes, labels, **settings)
    expected = literal(codes, labels, codes, labels, 0.4, similarity, 0.3, True)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)  # 1e-8 is in the logarithms
    gradients = [torch.autograd.grad(value, codes)[0] for value in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


def test_reference_codes_are_another_side_without_gradient():
    (codes, labels), (others, numbers) = views(1), views(2, images=5)
    got = contrastive_loss(codes, labels, ref_codes=others, ref_labels=numbers, bottleneck=0.1)
    fixed = others.detach()
    expected = literal(codes, labels, fixed, numbers, 0.3, "cosine", 0.1, False)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert torch.autograd.grad(got, others, allow_unused=True) == (None,)


def test_two_views_are_the_cross_entropy_of_simclr_and_cibhash():
    codes, labels = views(3)
    n = len(codes) // 2
    logits = F.cosine_similarity(codes[:, None], codes[None], dim=2) / 0.3
    logits = logits.masked_fill(torch.eye(2 * n, dtype=torch.bool), -math.inf)
    partner = torch.cat((torch.arange(n, 2 * n), torch.arange(n)))
    torch.testing.assert_close(contrastive_loss(codes, labels), F.cross_entropy(logits, partner))


def test_signs_are_compared_and_pass_their_gradient_on():
    codes, labels = views(4)
    signs = codes.detach().sign().requires_grad_()
    got, expected = contrastive_loss(codes, labels, binary="sign"), contrastive_loss(signs, labels)
    torch.testing.assert_close(got, expected)
    gradients = torch.autograd.grad(got, codes)[0], torch.autograd.grad(expected, signs)[0]
    torch.testing.assert_close(*gradients)
    of_dot = contrastive_loss(codes, labels, binary="sign", similarity="dot")
    torch.testing.assert_close(of_dot, expected)  # for ±1 codes both similarities are one


def test_sampled_bits_follow_their_probabilities():
    u = torch.tensor([[0.5, -0.8, 0.0, 1.0]]).expand(20_000, 4)
    torch.manual_seed(0)
    from hybridhash.losses.contrastive import _drawn

    bits = _drawn(u)
    assert set(bits.unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(bits.mean(0), u[0], atol=0.03, rtol=0)
    assert bool((bits[:, 3] == 1).all())
    codes, labels = views(5)
    values = {float(contrastive_loss(codes, labels, binary="sample").detach()) for _ in range(5)}
    assert len(values) > 1
    torch.manual_seed(1)
    first = contrastive_loss(codes, labels, binary="sample")
    torch.manual_seed(1)
    assert torch.equal(first, contrastive_loss(codes, labels, binary="sample"))
    assert bool(torch.autograd.grad(first, codes)[0].any())


def test_more_views_of_an_image_are_all_positives():
    codes, labels = views(6, number=3)
    assert contrastive_loss(codes, labels).isfinite()
    order = torch.randperm(len(codes))
    torch.testing.assert_close(contrastive_loss(codes[order], labels[order]), contrastive_loss(codes, labels))


def test_a_lone_view_is_one_more_negative():
    codes, labels = views(7)
    alone = torch.full((1, 6), 0.9, dtype=torch.float64, requires_grad=True)
    value = contrastive_loss(torch.cat((codes, alone)), torch.cat((labels, torch.tensor([99]))))
    assert value > contrastive_loss(codes, labels)
    assert bool(torch.autograd.grad(value, alone)[0].any())


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [-1, -1, -1, -1]])
def test_a_batch_without_two_views_of_any_image_is_refused(labels):
    codes, _ = views(images=2)
    with pytest.raises(ValueError, match="no two of the 4 rows are views of one image: give the codes of at"):
        contrastive_loss(codes, torch.tensor(labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("binary", ["none", "sign", "sample"])
def test_half_precision_is_as_float32(dtype, size, binary):
    codes = torch.full((4, 8), size, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ContrastiveLoss(binary=binary, bottleneck=0.5)(codes, torch.tensor([0, 1, 0, 1]))
    assert value.dtype == torch.float32
    assert bool(value.isfinite())
    assert bool(torch.autograd.grad(value, codes)[0].isfinite().all())


def test_saturated_codes_have_a_finite_bottleneck():
    codes = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], requires_grad=True)
    value = contrastive_loss(codes, torch.tensor([0, 0]), bottleneck=1.0)
    assert value.item() == pytest.approx(-math.log(1e-8), rel=1e-3)  # one bit is certain and wrong
    assert bool(torch.autograd.grad(value, codes)[0].isfinite().all())


@pytest.mark.parametrize(
    ("message", "setting"),
    [
        ("temperature must be a positive number, got 0", {"temperature": 0}),
        ("similarity must be one of 'cosine', 'dot', got 'l2'", {"similarity": "l2"}),
        ("binary must be one of 'none', 'sign', 'sample', got True", {"binary": True}),
        ("bottleneck must be 0 or a positive number, got -1", {"bottleneck": -1}),
    ],
)
def test_bad_settings_are_named(message, setting):
    with pytest.raises(ValueError, match=message):
        ContrastiveLoss(**setting)


def _on_rank(rank, case):
    codes, labels, rows = case
    mine, results = rows[rank], {}
    for binary in ("none", "sign"):
        leaf = codes[mine].clone().requires_grad_()
        value = contrastive_loss(leaf, labels[mine], binary=binary, bottleneck=0.2)
        value.backward()
        results[binary] = value.detach(), leaf.grad
    return results


def test_two_processes_equal_one_on_the_joined_batch():
    codes, labels = views(8)
    codes = codes.detach()
    rows = [torch.arange(3), torch.arange(3, 8)]  # the views of an image are in different processes
    expected = _on_rank(0, (codes, labels, [torch.arange(8)]))
    first, second = run_on_ranks(_on_rank, (codes, labels, rows))
    for name, (value, gradient) in expected.items():
        torch.testing.assert_close(first[name][0], value)
        torch.testing.assert_close(second[name][0], value)
        torch.testing.assert_close(torch.cat((first[name][1], second[name][1])) / 2, gradient)
