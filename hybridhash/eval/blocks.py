"""What a cut at a rank takes from each block of tied items: the terms of all closed forms.

A block holds ``n`` items, ``r`` of them relevant, with gains that sum to ``g``; ``a`` items, of which ``R``
relevant with gains ``G``, come before it; ``m`` of its items lie within the cut.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hybridhash.eval.histogram import DistanceHistogram

__all__ = ["Blocks", "TieRule", "cumulative", "cut_blocks", "effective_cut", "ordered"]

TieRule = Literal["expected", "best", "worst"]


class Blocks(NamedTuple):
    """The quantities of the module's notation: float64 ``(Nq, blocks)``; ``a`` is at most the cut."""

    a: Tensor
    n: Tensor
    m: Tensor
    r: Tensor
    g: Tensor
    R: Tensor
    G: Tensor


def cut_blocks(histogram: DistanceHistogram, k: int, *, gains: Tensor | None = None) -> Blocks:
    """The blocks of a histogram, cut after rank ``k``; ``gains`` (of each block) are ``relevant`` if None."""
    n, r = histogram.items, histogram.relevant
    a = n.cumsum(1) - n
    g = r.double() if gains is None else gains
    m = torch.minimum(n, k - torch.clamp(a, max=k))
    a = a.clamp(max=k)  # nothing is looked up beyond the cut
    R = r.cumsum(1) - r
    return Blocks(a.double(), n.double(), m.double(), r.double(), g, R.double(), g.cumsum(1) - g)


def effective_cut(histogram: DistanceHistogram, top_k: int | None) -> int:
    """``top_k`` within the size of the largest database of the histogram."""
    size = int(histogram.total_items.max()) if len(histogram) else 0
    return max(1, size if top_k is None else min(top_k, size))


def ordered(histogram: DistanceHistogram, ties: TieRule) -> DistanceHistogram:
    """The histogram with ties as its blocks (``expected``), or split by grade (``best``, ``worst``)."""
    return histogram if ties == "expected" else histogram.sorted_ties(best=ties == "best")


def cumulative(weights: Tensor) -> Tensor:
    """Sums of the first 0..k of ``k`` weights of ranks, float64 ``(k + 1,)``."""
    return torch.cat([weights.new_zeros(1), weights.cumsum(0)])
