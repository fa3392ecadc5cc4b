"""Losses made for a training set: each gets the sizes, codes, layers and memory that its class asks for."""

import inspect

import pytest
import torch
from torch import nn

import hybridhash.losses as losses
from hybridhash.losses import CodeBank, create_loss_for, list_losses

BITS, CLASSES, ROWS = 8, 3, 12
IDS = torch.arange(ROWS) % CLASSES
MULTI_HOT = torch.nn.functional.one_hot(IDS, CLASSES)


def takes_bank(name):
    loss_class = next(getattr(losses, c) for c in losses.__all__ if c.lower() == f"{name}loss")
    return "bank" in inspect.signature(loss_class).parameters


WITH_BANK = [name for name in list_losses() if takes_bank(name)]


def codes_of(rows):
    return torch.rand(rows, BITS, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("name", list_losses())
def test_every_loss_can_be_made_and_called(name):
    loss = create_loss_for(name, IDS, BITS, generator=torch.Generator().manual_seed(0))
    codes = codes_of(6)
    value = loss(codes, IDS[:6], indices=torch.arange(6))
    value.backward()
    assert value.isfinite()
    assert codes.grad is not None


@pytest.mark.parametrize("labels", [IDS, MULTI_HOT], ids=["class ids", "multi-hot"])
@pytest.mark.parametrize("name", WITH_BANK)
def test_a_bank_has_a_row_for_each_training_image(name, labels):
    loss = create_loss_for(name, labels, BITS, bank=True)
    assert (loss.bank.num_samples, loss.bank.bits) == (ROWS, BITS)
    loss(codes_of(6), labels[:6], indices=torch.arange(6)).backward()
    assert loss.bank.seen.tolist() == [True] * 6 + [False] * 6
    if hasattr(loss, "epoch_end"):
        loss.epoch_end()


def test_a_bank_may_count_rows_never_visited():
    assert create_loss_for("wml", IDS, BITS, bank=True, count_unseen=True).bank.count_unseen
    assert not create_loss_for("wml", IDS, BITS, bank=True).bank.count_unseen


def test_the_number_of_classes_is_that_of_the_labels_unless_given():
    assert create_loss_for("csq", IDS, BITS).centers.shape == (3, BITS)
    assert create_loss_for("csq", MULTI_HOT, BITS).centers.shape == (3, BITS)
    assert create_loss_for("csq", IDS, BITS, num_classes=5).centers.shape == (5, BITS)


def test_arguments_of_the_class_win():
    bank = CodeBank(20, BITS)
    loss = create_loss_for("WML", IDS, BITS, bank=True, alpha=0.25)
    assert loss.alpha == 0.25
    assert create_loss_for("wml", IDS, BITS, bank=bank).bank is bank
    targets = torch.ones(ROWS, BITS)
    assert torch.equal(create_loss_for("cnnh", IDS, BITS, target_codes=targets).target_codes, targets)


def test_dtsh_gets_settings_that_fit_bounded_codes_unless_given():
    loss = create_loss_for("dtsh", IDS, BITS)
    assert (loss.margin, loss.scale, loss.quantization) == (5, 1, 1 / BITS)
    assert create_loss_for("dtsh", IDS, BITS, margin=2.0).margin == 2


def test_layers_are_those_of_the_model():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, BITS)

        def get_classifier(self):
            return self.fc

    model = Model()
    codes = torch.tanh(model.fc(torch.zeros(6, 4)))
    weights = [create_loss_for("dh", IDS, BITS, model=model), create_loss_for("dh", IDS, BITS)]
    first, second = (loss(codes, IDS[:6]) for loss in weights)
    assert first != second


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="no loss is called 'triplet'; use adsh, cnnh, contrastive, csq"):
        create_loss_for("triplet", IDS, BITS)
    with pytest.raises(TypeError, match="name must be a str such as 'wml', got NoneType"):
        create_loss_for(None, IDS, BITS)
    with pytest.raises(ValueError, match=r"labels of shape \(N, 1\) may be class ids or one class"):
        create_loss_for("wml", IDS[:, None], BITS)
    with pytest.raises(ValueError, match="no loss is called 'hashnt'; nearest: hashnet"):
        create_loss_for("hashnt", IDS, BITS)
    with pytest.raises(TypeError, match="WMLLoss takes no argument 'alhpa'"):
        create_loss_for("wml", IDS, BITS, alhpa=1)
    with pytest.raises(ValueError, match=r"CSQLoss has no bank; those with one: .*dch"):
        create_loss_for("csq", IDS, BITS, bank=True)
