"""Losses of several code lengths at once: each sees the first bits, and the targets of lengths agree."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hybridhash.losses import (
    CodeBank,
    CSQLoss,
    DPNLoss,
    DTSHLoss,
    GreedyHashLoss,
    NestedLoss,
    WMLLoss,
    create_loss_for,
    hash_centers,
    list_losses,
    minimum_distance,
)

LENGTHS, CLASSES, ROWS = (4, 8, 12), 3, 12
IDS = torch.arange(ROWS) % CLASSES
MULTI_HOT = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]] * 3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def codes_of(rows=6, bits=12):
    return torch.rand(rows, bits, generator=seeded()).requires_grad_()


def nested(name, labels=IDS, **more):
    return create_loss_for(name, labels, 12, lengths=LENGTHS, generator=seeded(), **more)


@pytest.mark.parametrize("labels", [IDS, MULTI_HOT], ids=["class ids", "multi-hot"])
@pytest.mark.parametrize("name", list_losses())
def test_every_loss_can_be_nested(name, labels):
    if labels is MULTI_HOT and name in ("dlbhc", "greedyhash"):
        pytest.skip("refuses several labels")
    loss, codes, rows = nested(name, labels), codes_of(), torch.arange(6)
    value = loss(codes, labels[:6], indices=rows)
    (grad,) = torch.autograd.grad(value, codes)
    parts = [
        loss.weights[k] * inner(codes[:, :k], labels[:6], indices=rows)
        for k, inner in zip(LENGTHS, loss.losses.values(), strict=True)
    ]
    torch.testing.assert_close(value, sum(parts))
    assert bool(grad.isfinite().all())
    assert loss.requires == create_loss_for(name, labels, 12).requires
    loss.epoch_end()


def test_the_weights_are_shares_and_by_default_equal():
    loss = NestedLoss({4: WMLLoss(), 16: WMLLoss()})
    assert loss.weights == {4: 0.5, 16: 0.5}
    codes = codes_of(6, 16)
    only_short = NestedLoss({4: WMLLoss(), 16: WMLLoss()}, weights={4: 2.0, 16: 0.0})
    assert torch.equal(only_short(codes, IDS[:6]), WMLLoss()(codes[:, :4], IDS[:6]))
    uneven = NestedLoss({4: WMLLoss(), 16: WMLLoss()}, weights={4: 1.0, 16: 3.0})
    assert uneven.weights == {4: 0.25, 16: 0.75}


@pytest.mark.parametrize("name", ["csq", "dpn", "mdshc", "orthohash"])
def test_centers_of_a_length_are_the_first_bits_of_the_longest(name):
    loss = nested(name, MULTI_HOT)
    longest = loss.losses["12"].centers
    for length in LENGTHS:
        assert torch.equal(loss.losses[str(length)].centers, longest[:, :length])
    if name in ("csq", "dpn"):
        ties = loss.losses["12"].tie_bits
        assert all(torch.equal(loss.losses[str(k)].tie_bits, ties[:k]) for k in LENGTHS)


def test_centers_may_be_given_and_target_codes_are_cut():
    centers = hash_centers(CLASSES, 12, "bernoulli", seeded(3))
    assert torch.equal(nested("csq", centers=centers).losses["8"].centers, centers[:, :8])
    targets = nested("cnnh").losses["12"].target_codes
    assert torch.equal(nested("cnnh").losses["4"].target_codes, targets[:, :4])
    with pytest.raises(ValueError, match=r"centers must have 12 bits, got shape \(3, 8\)"):
        nested("csq", centers=centers[:, :8])


def test_each_length_has_a_bank_and_a_classifier_of_its_own():
    loss = nested("wml", bank=True)
    loss(codes_of(), IDS[:6], indices=torch.arange(6)).backward()
    for length in LENGTHS:
        bank = loss.losses[str(length)].bank
        assert bank.bits == length
        assert bank.seen.tolist() == [True] * 6 + [False] * 6
        torch.testing.assert_close(bank.codes[:6], codes_of()[:, :length].detach())
    assert loss.requires == {"bank", "indices"}
    weights = [p.shape for p in nested("greedyhash").parameters() if p.ndim == 2]
    assert weights == [(CLASSES, length) for length in LENGTHS]


def test_a_second_side_is_cut_too():
    loss, codes, other = NestedLoss({4: WMLLoss(), 12: WMLLoss()}), codes_of(), -codes_of(5).detach()
    got = loss(codes, IDS[:6], ref_codes=other, ref_labels=IDS[:5])
    parts = [
        loss.weights[k] * WMLLoss()(codes[:, :k], IDS[:6], ref_codes=other[:, :k], ref_labels=IDS[:5])
        for k in (4, 12)
    ]
    torch.testing.assert_close(got, sum(parts))
    with pytest.raises(ValueError, match="ref_codes have 8 bits, expected 12"):
        loss(codes, IDS[:6], ref_codes=other[:, :8], ref_labels=IDS[:5])


def test_the_epoch_ends_for_every_loss():
    loss = nested("dpn", adaptive=True, update_every=1)
    before = loss.losses["12"].centers.clone()
    loss(-before.repeat(4, 1).requires_grad_(), IDS)
    loss.epoch_end()
    for length in LENGTHS:
        assert torch.equal(loss.losses[str(length)].centers, -before[:, :length])


def test_state_is_saved_and_compiles_to_one_graph():
    loss, other = nested("csq"), nested("csq", centers="bernoulli")
    other.load_state_dict(loss.state_dict())
    codes = codes_of()
    assert torch.equal(other(codes, IDS[:6]), loss(codes, IDS[:6]))
    assert copy.deepcopy(loss).to(torch.float64).losses["4"].centers.dtype == torch.float64
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(codes, IDS[:6]), loss(codes, IDS[:6]))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "losses must map lengths to losses, got str", lambda: NestedLoss("csq")),
        (ValueError, "at least one code length", lambda: NestedLoss({})),
        (
            ValueError,
            r"must ascend, each once, got \(16, 8\): use \(8, 16\)",
            lambda: NestedLoss({16: WMLLoss(), 8: WMLLoss()}),
        ),
        (TypeError, "lengths must be an int >= 1, got '8'", lambda: NestedLoss({"8": WMLLoss()})),
        (ValueError, "lengths must be >= 1, got 0", lambda: NestedLoss({0: WMLLoss()})),
        (TypeError, "loss of 8 bits must be a module, got str", lambda: NestedLoss({8: "csq"})),
        (
            ValueError,
            "the CSQLoss of length 8 was made for 16 bits",
            lambda: NestedLoss({8: CSQLoss(3, 16)}),
        ),
        (
            ValueError,
            "the CodeBank of length 8 was made for 4 bits",
            lambda: NestedLoss({8: WMLLoss(bank=CodeBank(9, 4))}),
        ),
        (
            ValueError,
            r"weights must be those of the lengths \(8,\), got \(16,\)",
            lambda: NestedLoss({8: WMLLoss()}, weights={16: 1.0}),
        ),
        (
            TypeError,
            "weights must map lengths to numbers, got list",
            lambda: NestedLoss({8: WMLLoss()}, weights=[1.0]),
        ),
        (
            TypeError,
            "the weight of 8 bits must be a number, got 'a'",
            lambda: NestedLoss({8: WMLLoss()}, weights={8: "a"}),
        ),
        (
            TypeError,
            "DTSHLoss has no values of rows, so reduction='none' cannot be had of it",
            lambda: NestedLoss({8: DTSHLoss()})(torch.zeros(2, 8), torch.zeros(2).long(), reduction="none"),
        ),
        (ValueError, "not all 0", lambda: NestedLoss({8: WMLLoss()}, weights={8: 0.0})),
        (ValueError, "weights must be 0 or positive", lambda: NestedLoss({8: WMLLoss()}, weights={8: -1.0})),
        (
            ValueError,
            "codes have 12 bits, expected 16",
            lambda: NestedLoss({8: WMLLoss(), 16: WMLLoss()})(codes_of(), IDS[:6]),
        ),
        (
            ValueError,
            r"must ascend, each once, got \(4, 4, 12\)",
            lambda: create_loss_for("wml", IDS, 12, lengths=(4, 4, 12)),
        ),
        (
            ValueError,
            r"lengths must end with the code length 12, got \(4, 8\)",
            lambda: create_loss_for("wml", IDS, 12, lengths=(4, 8)),
        ),
        (
            ValueError,
            "a bank of your own is of one length",
            lambda: create_loss_for("wml", IDS, 12, lengths=LENGTHS, bank=CodeBank(12, 12)),
        ),
    ],
)
def test_errors_say_what_is_wrong(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_a_trained_network_is_good_at_every_length():
    """Classes at corners of a cube: after a few steps each prefix alone tells them apart."""
    inputs = torch.eye(8).repeat(4, 1) + 0.1 * torch.randn(32, 8, generator=seeded())
    labels = torch.arange(8).repeat(4)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh())
    loss = create_loss_for("csq", labels, 16, lengths=(4, 8, 16), generator=seeded())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss(model(inputs), labels).backward()
        optimizer.step()
    codes = model(inputs).detach().sign()
    for length in (4, 8, 16):
        means = torch.stack([codes[labels == c, :length].mean(0).sign() for c in range(8)])
        assert minimum_distance(means) == minimum_distance(loss.losses["16"].centers[:, :length])


def test_the_classes_named_here_are_nested_by_hand_too():
    loss = NestedLoss({4: DPNLoss(3, 4), 8: GreedyHashLoss(3, 8)})
    assert loss.requires == {"epoch_hook", "parameters"}
    assert loss(codes_of(6, 8), IDS[:6]).isfinite()


def test_values_of_rows_are_the_weighted_means_of_all_lengths():
    loss = nested("csq")
    codes = torch.linspace(-1, 1, 6 * max(LENGTHS)).view(6, -1)
    rows = loss(codes, IDS[:6], reduction="none")
    expected = [
        loss.weights[k] * inner(codes[:, :k], IDS[:6], reduction="none")
        for k, inner in zip(LENGTHS, loss.losses.values(), strict=True)
    ]
    torch.testing.assert_close(rows, torch.stack(expected).sum(0))
    torch.testing.assert_close(rows.mean(), loss(codes, IDS[:6]))


def test_the_parts_of_all_lengths_add_up_to_the_loss():
    generator = torch.Generator().manual_seed(0)
    codes, labels = torch.randn(12, 16, generator=generator).tanh(), torch.arange(12) % 3
    loss = create_loss_for("csq", labels, 16, lengths=(8, 16))
    value = loss(codes, labels)
    parts = loss.parts()
    assert set(parts) == {f"{length}/{term}" for length in (8, 16) for term in ("centers", "quantization")}
    torch.testing.assert_close(sum(parts.values()), value)
