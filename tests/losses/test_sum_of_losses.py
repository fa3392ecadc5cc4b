"""SumOfLosses: the sum, and that a training loop can treat it as one loss."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from hybridhash.losses import (
    CodeBank,
    CodeQueue,
    CSQLoss,
    DPNLoss,
    DSHSDLoss,
    DTSHLoss,
    SumOfLosses,
    WMLLoss,
    list_losses,
)
from tests.losses.test_registry import BITS, CLASSES, ROWS, batch, make

INDICES = torch.arange(ROWS)


def test_it_is_the_weighted_sum():
    codes, labels = batch()
    codes = codes.tanh().requires_grad_()
    losses = {name: make(name) for name in ("csq", "wml", "dtsh")}
    weights = {"wml": 0.5, "dtsh": 0.0}
    total = SumOfLosses(losses, weights)(codes, labels)
    expected = losses["csq"](codes, labels) + 0.5 * losses["wml"](codes, labels)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each, codes)[0] for each in (total, expected)))


def test_a_weight_can_be_changed_and_parts_carry_it():
    codes, labels = batch()
    loss = SumOfLosses({"csq": make("csq"), "wml": make("wml")})
    assert loss.weights == {"csq": 1.0, "wml": 1.0}
    before = loss(codes.tanh(), labels)
    loss.weights["wml"] = 3.0
    after = loss(codes.tanh(), labels)
    parts = loss.parts()
    assert list(parts) == ["csq/centers", "csq/quantization", "wml/pairs"]
    torch.testing.assert_close(sum(parts.values()), after)
    torch.testing.assert_close(parts["wml/pairs"], 3 / 2 * (after - before))


def test_what_it_requires_is_what_any_requires():
    bank = CodeBank(ROWS, BITS)
    loss = SumOfLosses(
        {"wml": WMLLoss(bank=bank), "dshsd": DSHSDLoss(CLASSES, BITS), "dpn": DPNLoss(CLASSES, BITS)}
    )
    assert loss.requires == {"bank", "indices", "parameters", "epoch_hook"}
    assert SumOfLosses({"wml": WMLLoss(bank=CodeQueue(ROWS, BITS))}).requires == {"bank"}
    assert SumOfLosses({"csq": CSQLoss(CLASSES, BITS)}).requires == frozenset()
    assert [tuple(p.shape) for p in loss.parameters()] == [(CLASSES, BITS)]
    assert SumOfLosses({"a": loss, "csq": CSQLoss(CLASSES, BITS)}).requires == loss.requires


def test_a_loop_that_goes_by_requires_drives_all_of_them():
    """As examples/train.py does: optimizer, indices, epoch hook, modes, and a state that resumes."""
    codes, labels = batch(dtype=torch.float32)

    def build():
        generator = torch.Generator().manual_seed(0)
        return SumOfLosses(
            {
                "wml": WMLLoss(bank=CodeBank(ROWS, BITS)),
                "dshsd": DSHSDLoss(CLASSES, BITS, generator=generator),
                "dpn": DPNLoss(CLASSES, BITS, adaptive=True, update_every=1, generator=generator),
            },
            weights={"dpn": 0.1},
        )

    loss, again = build(), build()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    leaf = codes.clone().requires_grad_()
    loss(leaf, labels, indices=INDICES).backward()
    optimizer.step()
    loss.epoch_end()
    assert loss.losses["wml"].bank.seen.all()
    assert int(loss.losses["dpn"].epochs) == 1
    assert not torch.equal(loss.losses["dshsd"].classifier.weight, again.losses["dshsd"].classifier.weight)
    again.load_state_dict(loss.state_dict())
    for other in (again, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(leaf, labels, indices=INDICES), loss(leaf, labels, indices=INDICES))
    loss.eval()
    loss(-leaf, labels)  # the bank is read only, and needs no indices
    assert torch.equal(loss.losses["wml"].bank.codes, codes)
    SumOfLosses({"csq": CSQLoss(CLASSES, BITS)}).epoch_end()  # nothing to do


def test_rows_are_summed_where_every_loss_has_them():
    codes, labels = batch()
    codes, losses = codes.tanh(), {"csq": make("csq"), "wml": make("wml")}
    rows = SumOfLosses(losses, {"wml": 2.0})(codes, labels, reduction="none")
    expected = [loss(codes, labels, reduction="none") for loss in losses.values()]
    torch.testing.assert_close(rows, expected[0] + 2 * expected[1])
    with pytest.raises(TypeError, match="DTSHLoss"):
        SumOfLosses({"csq": make("csq"), "dtsh": DTSHLoss()})(codes, labels, reduction="none")
    with pytest.raises(ValueError, match="CSQLoss compares nothing with ref_codes"):
        SumOfLosses(losses)(codes, labels, ref_codes=codes, ref_labels=labels)


def test_it_compiles_to_one_graph():
    codes, labels = batch(dtype=torch.float32)
    loss = SumOfLosses({"csq": make("csq"), "wml": make("wml")}, {"wml": 0.5})
    torch.compiler.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(codes.tanh(), labels), loss(codes.tanh(), labels))


def test_it_is_no_loss_of_the_registry():
    assert not [name for name in list_losses() if "sum" in name]


@pytest.mark.parametrize(
    ("error", "message", "build"),
    [
        (TypeError, "losses must map names to losses", lambda: SumOfLosses([WMLLoss()])),
        (ValueError, "losses is empty", lambda: SumOfLosses({})),
        (ValueError, "a weight for 'csq', but the losses are wml",
         lambda: SumOfLosses({"wml": WMLLoss()}, {"csq": 1})),
        (ValueError, "weight of 'wml' must be a finite number, got nan",
         lambda: SumOfLosses({"wml": WMLLoss()}, {"wml": float("nan")})),
        (RuntimeError, "WMLLoss has no parts before its first call",
         lambda: SumOfLosses({"wml": WMLLoss()}).parts()),
    ],
)  # fmt: skip
def test_bad_settings_are_named(error, message, build):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("name", ["", "a.b", "keys", 3])
def test_a_name_that_a_module_cannot_have_is_refused(name):
    with pytest.raises(ValueError, match="cannot be the name of a loss: give a string without dots"):
        SumOfLosses({name: WMLLoss()})


@pytest.mark.parametrize(
    ("losses", "weights", "message"),
    [
        ({"wml": WMLLoss}, None, "the loss 'wml' must be a module, got"),
        ({"wml": WMLLoss()}, [1], "weights must map names to numbers, got list"),
        ({"wml": WMLLoss()}, {"wml": "1"}, "the weight of 'wml' must be a number, got '1'"),
    ],
)
def test_what_is_no_loss_or_weight_is_named(losses, weights, message):
    with pytest.raises(TypeError, match=message):
        SumOfLosses(losses, weights)
