"""Losses that train hash codes: ``loss(codes, labels, *, indices=None, ref_codes=None, ref_labels=None)``."""

from hybridhash.losses import functional
from hybridhash.losses.bank import CodeBank
from hybridhash.losses.discrete import DFHLoss, DSDHLoss
from hybridhash.losses.distance import DCHLoss, DSHLoss
from hybridhash.losses.pairwise import DHNLoss, DPSHLoss, HashNetLoss, IDHNLoss
from hybridhash.losses.registry import create_loss, list_losses
from hybridhash.losses.wml import WMLLoss

__all__ = [
    "CodeBank",
    "DCHLoss",
    "DFHLoss",
    "DHNLoss",
    "DPSHLoss",
    "DSDHLoss",
    "DSHLoss",
    "HashNetLoss",
    "IDHNLoss",
    "WMLLoss",
    "create_loss",
    "functional",
    "list_losses",
]
