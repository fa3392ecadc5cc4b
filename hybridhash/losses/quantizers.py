"""Penalties that pull real-valued codes to ±1; each maps codes ``(N, bits)`` to ``(N,)``.

With sign(0) = -1, as everywhere in the package, ``(u - sign u)^2 = (|u| - 1)^2``: the two forms in which the
literature writes the squared penalty are one.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

__all__ = ["absolute", "absolute_sum", "log_cosh", "squared", "summed"]


def squared(codes: Tensor) -> Tensor:
    """Return the mean over the bits of ``(|u| - 1)^2``."""
    return (codes.abs() - 1).square().mean(1)


def absolute(codes: Tensor) -> Tensor:
    """Return the mean over the bits of ``||u| - 1|``."""
    return (codes.abs() - 1).abs().mean(1)


def log_cosh(codes: Tensor) -> Tensor:
    """Return the mean over the bits of ``log cosh(|u| - 1)``, a smooth form of :func:`absolute`."""
    # log cosh x = |x| + log(1 + e^(-2|x|)) - log 2, which does not overflow.
    distance = (codes.abs() - 1).abs()
    return (distance + F.softplus(-2 * distance) - math.log(2)).mean(1)


def summed(codes: Tensor) -> Tensor:
    """Return the sum over the bits of ``(|u| - 1)^2``, that is ``|u - sign(u)|^2``."""
    return (codes.abs() - 1).square().sum(1)


def absolute_sum(codes: Tensor) -> Tensor:
    """Return the sum over the bits of ``||u| - 1|``."""
    return (codes.abs() - 1).abs().sum(1)
