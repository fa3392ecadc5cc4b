"""Losses over a batch, under ``torch.distributed``: two processes give what one gives on the joined batch."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from hybridhash.losses import (
    ADSHLoss,
    CNNHLoss,
    DHLoss,
    DNNHLoss,
    DRSDHLoss,
    DSRHLoss,
    DTSHLoss,
    SupervisedDHLoss,
    TieAwareAPLoss,
    TieAwareNDCGLoss,
)
from tests.losses import _invariants
from tests.losses._invariants import random_codes

LABELS = torch.tensor([0, 0, 1, 1, 2, 0, 1])


class WithRows:
    """A loss that needs indices: the first bit of a code of the test batch finds its row."""

    def __init__(self, loss):
        self.loss = loss

    def __call__(self, codes, labels):
        rows = (codes[:, :1].detach() == random_codes(rows=7)[None, :, 0]).nonzero()[:, 1]
        # The processes share the memory of the tensors they were given.
        loss = copy.deepcopy(self.loss)
        value: Tensor = loss(codes, labels, indices=rows)
        if isinstance(loss, ADSHLoss):
            loss.update_database_codes(codes.detach(), rows)
            loss.epoch_end()
            value = value + loss(codes, labels, indices=rows)
        return value


def test_two_processes_equal_one_on_the_joined_batch():
    generator = torch.Generator().manual_seed(0)
    _invariants.assert_two_processes_equal_one(
        [
            DNNHLoss(),
            DTSHLoss(),
            DRSDHLoss(4),
            DSRHLoss(),
            TieAwareAPLoss(),
            TieAwareNDCGLoss(),
            DHLoss(),
            SupervisedDHLoss(),
            WithRows(ADSHLoss(LABELS, 4, generator=generator)),
            WithRows(ADSHLoss(LABELS, 4, dissimilarity="batch", generator=generator)),
            WithRows(CNNHLoss(random_codes(rows=7).sign())),
        ]
    )
