"""CSQ and DPN against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hybridhash.losses import CSQLoss, DPNLoss
from hybridhash.losses._hadamard import hadamard_matrix
from hybridhash.losses.functional import csq_loss, dpn_loss
from tests.losses._oracles import U, Y

H4 = hadamard_matrix(4)
IDS = torch.tensor([0, 0, 2, 1])


def literal_centroid(centers: Tensor, row: Tensor, tie_bits: Tensor) -> list[float]:
    bits = []
    for k in range(centers.shape[1]):
        total = sum(float(centers[c, k]) for c in range(centers.shape[0]) if row[c])
        bits.append(float(tie_bits[k]) if total == 0 else math.copysign(1.0, total))
    return bits


def literal_csq(codes: Tensor, labels: Tensor, centers: Tensor, tie_bits: Tensor, weight: float) -> Tensor:
    terms = []
    for u, row in zip(codes, labels, strict=True):
        if not row.any():
            continue
        center = literal_centroid(centers, row, tie_bits)
        for k, c in enumerate(center):
            p, t = (u[k] + 1) / 2, (c + 1) / 2
            terms.append(-(t * torch.log(p) + (1 - t) * torch.log(1 - p)) + weight * (u[k].abs() - 1) ** 2)
    return torch.stack(terms).mean()


def literal_dpn(codes: Tensor, labels: Tensor, targets: Tensor, margin: float) -> Tensor:
    images = []
    for v, row in zip(codes, labels, strict=True):
        terms = [
            (margin - v[k] * targets[c, k]).clamp(min=0)
            for c in range(len(row))
            if row[c]
            for k in range(len(v))
        ]
        if terms:
            images.append(torch.stack(terms).sum())
    return torch.stack(images).mean()


def random_batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = (2 * torch.rand(7, 6, generator=generator, dtype=torch.float64) - 1).requires_grad_()
    labels = (torch.rand(7, 5, generator=generator) < 0.4).long()
    labels[2] = 0
    centers = torch.randint(0, 2, (5, 6), generator=generator).float() * 2 - 1
    return codes, labels, centers


def test_csq_center_term_of_a_worked_example() -> None:
    for codes, tanh in ((U.tanh(), False), (U, True)):
        loss = csq_loss(codes, IDS, centers=H4[:3], tanh=tanh, quantization=0.0)
        assert loss.item() == pytest.approx(0.9972759794, abs=1e-10)


def test_csq_quantiser_of_a_worked_example() -> None:
    for codes, tanh, expected in ((U.tanh(), False, 0.3499064273), (U, True, 0.3499064273), (U, False, 0.31)):
        with_term, without = (
            csq_loss(codes, IDS, centers=H4[:3], tanh=tanh, quantization=weight) for weight in (1.0, 0.0)
        )
        assert (with_term - without).item() == pytest.approx(expected, abs=1e-10)


def test_csq_centroids_of_a_worked_example_take_the_tie_bits_where_undecided() -> None:
    # The sums of the centers are [1,1,1,1], [2,0,2,0], [1,1,-1,-1], [1,-1,1,-1].
    tie_bits = torch.tensor([-1.0, 1.0, -1.0, -1.0])
    centroids = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, -1], [1, -1, 1, -1]])
    got = csq_loss(U, Y, centers=H4[:3], tie_bits=tie_bits, quantization=0.0)
    expected = -((1 + centroids * U) / 2).log().mean()
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("seed", range(3))
def test_csq_equals_the_literal_formula(seed: int) -> None:
    codes, labels, centers = random_batch(seed)
    tie_bits = torch.tensor([1.0, -1, 1, -1, -1, 1])
    loss = CSQLoss(5, 6, quantization=0.3)
    loss.centers.copy_(centers)
    loss.tie_bits.copy_(tie_bits)
    expected = literal_csq(codes, labels, centers, tie_bits, 0.3)
    torch.testing.assert_close(loss(codes, labels), expected)
    (grad,) = torch.autograd.grad(loss(codes, labels), codes)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, codes)[0])


def test_csq_of_saturated_half_precision_codes_stays_finite_in_half_precision() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        before = torch.full((1, 4), 30.0, dtype=dtype, requires_grad=True)
        loss = csq_loss(before.tanh(), torch.tensor([0]), centers=-torch.ones(1, 4))
        (grad,) = torch.autograd.grad(loss, before)
        assert loss.isfinite()
        assert loss.dtype == torch.float32
        assert grad.isfinite().all()


def test_csq_takes_the_exact_logarithm_up_to_the_last_code_below_one() -> None:
    codes = torch.tensor([[-0.99999994]])
    got = csq_loss(codes, torch.tensor([0]), centers=torch.ones(1, 1), quantization=0.0)
    assert got.item() == pytest.approx(-math.log(2**-25), rel=1e-6)


def test_csq_refuses_codes_of_an_unbounded_head() -> None:
    codes, ids = torch.tensor([[-3.0, 0.5]]), torch.tensor([0])
    with pytest.raises(ValueError, match=r"codes must be in \[-1, 1\].* size 3: set tanh=True"):
        CSQLoss(2, 2)(codes, ids)
    with pytest.raises(ValueError, match=r"got one of size inf"):
        csq_loss(codes / 0, ids, centers=torch.ones(1, 2))
    assert csq_loss(codes, ids, centers=torch.ones(1, 2), tanh=True).isfinite()
    assert csq_loss(codes * math.nan, ids, centers=torch.ones(1, 2)).isnan()


def test_dpn_of_a_worked_example() -> None:
    for reduction, expected in (("sum", 4.6), ("mean", 1.15)):
        loss = dpn_loss(U, IDS, centers=H4[:3], reduction=reduction)
        assert loss.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_dpn_equals_the_literal_formula(seed: int) -> None:
    codes, labels, centers = random_batch(seed)
    expected = literal_dpn(codes, labels, centers, 0.7)
    got = dpn_loss(codes, labels, centers=centers, margin=0.7)
    torch.testing.assert_close(got, expected)
    grads = [torch.autograd.grad(loss, codes)[0] for loss in (got, expected)]
    torch.testing.assert_close(*grads)


def test_dpn_with_centroids_equals_the_literal_formula() -> None:
    codes, labels, centers = random_batch(5)
    tie_bits = torch.tensor([1.0, -1, 1, -1, -1, 1])
    targets = torch.tensor([literal_centroid(centers, row, tie_bits) for row in labels])
    images = [
        sum((1 - v[k] * t[k]).clamp(min=0) for k in range(6))
        for v, t, row in zip(codes, targets, labels, strict=True)
        if row.any()
    ]
    got = dpn_loss(codes, labels, centers=centers, multi_label="centroid", tie_bits=tie_bits)
    torch.testing.assert_close(got, torch.stack(images).mean())


def test_adaptive_targets_become_the_majority_of_the_epochs_codes() -> None:
    loss = DPNLoss(3, 4, centers=H4[:3], adaptive=True, update_every=1)
    codes = torch.tensor([[-3.0, -1, 2, 1], [-1, 0, -1, 2], [1, -1, -2, -2], [4, 4, 4, 4]])
    for part in (slice(0, 1), slice(1, 4)):
        loss(codes[part], torch.tensor([0, 0, 0, -1])[part])
    loss.eval()
    loss(-codes, torch.tensor([0, 0, 0, 1]))
    loss.epoch_end()
    # A code of exactly 0 counts as -1; classes 1 and 2 did not occur.
    assert loss.centers.tolist() == [[-1.0, -1.0, -1.0, 1.0], *H4[1:3].tolist()]
    assert not loss.class_sums.any()


def test_tied_bits_keep_the_target_and_an_image_counts_for_all_its_labels() -> None:
    loss = DPNLoss(3, 4, centers=H4[:3], adaptive=True, update_every=1)
    loss(torch.tensor([[-1.0, 1, -1, 1], [-1, -1, 1, -1]]), torch.tensor([[1, 1, 0], [1, 0, 0]]))
    loss.epoch_end()
    assert loss.centers.tolist() == [[-1.0, 1, 1, 1], [-1, 1, -1, 1], H4[2].tolist()]


def test_targets_that_are_not_adaptive_stay() -> None:
    loss = DPNLoss(3, 4, centers=H4[:3])
    loss(-torch.ones(1, 4), torch.tensor([0]))
    loss.epoch_end()
    assert torch.equal(loss.centers, H4[:3])


def test_an_interrupted_adaptive_epoch_resumes_from_the_state_dict() -> None:
    first = DPNLoss(3, 4, centers=H4[:3], adaptive=True, update_every=1)
    first(-torch.ones(1, 4), torch.tensor([0]))
    resumed = DPNLoss(3, 4, adaptive=True, update_every=1, generator=torch.Generator().manual_seed(9))
    resumed.load_state_dict(first.state_dict())
    for loss in (first, resumed):
        loss(torch.tensor([[1.0, 1, 1, -1]]), torch.tensor([2]))
        loss.epoch_end()
    assert torch.equal(first.centers, resumed.centers)
    assert first.centers[0].tolist() == [-1.0] * 4


def test_adaptive_targets_wait_for_their_epochs_and_see_only_the_last_one() -> None:
    loss = DPNLoss(3, 4, centers=H4[:3], adaptive=True, update_every=2)
    loss(-torch.ones(1, 4), torch.tensor([0]))
    loss.epoch_end()
    assert torch.equal(loss.centers, H4[:3])
    resumed = DPNLoss(3, 4, adaptive=True, update_every=2, generator=torch.Generator().manual_seed(9))
    resumed.load_state_dict(loss.state_dict())
    for each in (loss, resumed):
        each(torch.tensor([[1.0, 1, 1, -1]]), torch.tensor([0]))
        each.epoch_end()
        assert each.centers.tolist() == [[1.0, 1, 1, -1], *H4[1:3].tolist()]


def test_targets_of_two_classes_never_become_equal() -> None:
    loss = DPNLoss(3, 4, centers=H4[:3], adaptive=True, update_every=1)
    loss(-torch.ones(2, 4), torch.tensor([0, 1]))
    with pytest.warns(UserWarning, match="two classes have the same majority: the targets stay"):
        loss.epoch_end()
    assert torch.equal(loss.centers, H4[:3])
    assert not loss.class_sums.any()


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("update_every must be >= 1, got 0", lambda: DPNLoss(3, 8, adaptive=True, update_every=0)),
        ("margin must be a positive number, got 0", lambda: DPNLoss(3, 8, margin=0)),
        (
            "reduction .over the bits. must be one of 'sum', 'mean', got 'none'",
            lambda: DPNLoss(3, 8, reduction="none"),
        ),
        ("multi_label must be one of 'sum', 'centroid'", lambda: DPNLoss(3, 8, multi_label="max")),
        ("quantization must be 0 or a positive number, got -1", lambda: CSQLoss(3, 8, quantization=-1)),
        ("9 classes need different codes, but 3 bits", lambda: CSQLoss(9, 3)),
        ("unknown method 'random'", lambda: CSQLoss(3, 8, centers="random")),
        ("got 3 centers for 4 classes", lambda: CSQLoss(4, 4, centers=H4[:3])),
        ("centers have 4 bits, expected 8", lambda: CSQLoss(3, 8, centers=H4[:3])),
        ("centers must be -1 and 1 only", lambda: CSQLoss(3, 4, centers=torch.zeros(3, 4))),
        ("two centers are equal", lambda: CSQLoss(3, 4, centers=H4[[0, 1, 1]])),
    ],
)
def test_bad_settings_are_named(message: str, call) -> None:
    with pytest.raises(ValueError, match=message):
        call()
