"""How well the bits of a set of codes are used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hybridhash._hamming import unpack_bits
from hybridhash.codes import HashCodes, as_packed
from hybridhash.eval.histogram import Array

__all__ = ["CodeStatistics", "code_statistics", "packed_statistics"]

_ROWS = 1 << 16


@dataclass(frozen=True)
class CodeStatistics:
    """How well the bits of a set of codes are used.

    Attributes:
        items: number of codes.
        distinct: number of different codes.
        largest_bucket: how many items share the most frequent code.
        ones: for each bit the share of items in which it is 1; 0.5 is balanced.
        mean_correlation: mean over pairs of bits of the absolute Pearson correlation; 0 is best. A bit that
            never changes counts as uncorrelated.
        max_correlation: the largest of these; 1 means that a bit repeats (or negates) another.
        constant_bits: number of bits that are the same in all items, and so carry nothing.
    """

    items: int
    distinct: int
    largest_bucket: int
    ones: tuple[float, ...]
    mean_correlation: float
    max_correlation: float
    constant_bits: int


def code_statistics(codes: Tensor | Array | HashCodes, *, bits: int | None = None) -> CodeStatistics:
    """Measure the balance and correlation of the bits of codes, and how many items share a code.

    Args:
        codes: real-valued or ±1 ``(N, bits)``, packed uint8 ``(N, ceil(bits / 8))``, or HashCodes.
        bits: code length; needed only for a packed tensor.

    Raises:
        TypeError, ValueError: as :func:`hybridhash.codes.as_packed`; no codes.

    Example:
        >>> statistics = code_statistics(torch.tensor([[1.0, 1], [1, 1], [-1, -1], [-1, 1]]))
        >>> statistics.distinct, statistics.largest_bucket, statistics.ones
        (3, 2, (0.5, 0.75))
    """
    packed, bits = as_packed(codes, bits=bits)
    if len(packed) == 0:
        raise ValueError("codes are empty: statistics need at least one code")
    return packed_statistics(packed, bits)


def packed_statistics(packed: Tensor, bits: int) -> CodeStatistics:
    """Compute :func:`code_statistics` of checked codes, uint8 ``(N, ceil(bits / 8))`` with ``N >= 1``."""
    total = torch.zeros(bits, dtype=torch.float64, device=packed.device)
    product = torch.zeros(bits, bits, dtype=torch.float64, device=packed.device)
    for start in range(0, len(packed), _ROWS):
        ones = unpack_bits(packed[start : start + _ROWS], bits).float()
        total += ones.sum(0)
        product += ones.T @ ones  # whole numbers up to 65,536: exact
    mean = total / len(packed)
    covariance = product / len(packed) - mean[:, None] * mean
    deviation = (mean * (1 - mean)).sqrt()
    scale = deviation[:, None] * deviation
    correlation = torch.where(scale > 0, covariance / scale.where(scale > 0, 1.0), 0.0).abs()
    pairs = correlation[~torch.eye(bits, dtype=torch.bool, device=packed.device)]
    rows = np.ascontiguousarray(packed.cpu().numpy())
    _, sizes = np.unique(rows.view(f"V{rows.shape[1]}"), return_counts=True)
    return CodeStatistics(
        items=len(packed),
        distinct=len(sizes),
        largest_bucket=int(sizes.max()),
        ones=tuple(mean.tolist()),
        mean_correlation=float(pairs.mean()) if bits > 1 else 0.0,
        max_correlation=float(pairs.max().clamp(max=1.0)) if bits > 1 else 0.0,
        constant_bits=int((deviation == 0).sum()),
    )
