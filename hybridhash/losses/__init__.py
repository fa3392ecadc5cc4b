"""Losses that train hash codes: ``loss(codes, labels, *, indices=None, ref_codes=None, ref_labels=None)``."""

from hybridhash.losses import functional
from hybridhash.losses.bank import CodeBank
from hybridhash.losses.wml import WMLLoss

__all__ = ["CodeBank", "WMLLoss", "functional"]
