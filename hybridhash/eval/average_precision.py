"""Average precision as a closed form over a histogram: exact under ties, wherever the cut falls.

Notation: see :mod:`hybridhash.eval.blocks`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from hybridhash.eval.blocks import (
    Blocks,
    TieRule,
    cumulative,
    cut_blocks,
    effective_cut,
    ordered,
)
from hybridhash.eval.histogram import DistanceHistogram

__all__ = ["Denominator", "average_precision"]

Denominator = Literal["hits", "relevant"]

# Doubles in one table of (queries, hits in the cut block).
_TABLE = 1 << 20
# Half width, in units of sqrt(m (1 - (m - 1) / n)), outside which a hypergeometric distribution holds less
# than 1e-21 (Serfling 1974: P(|X - E X| >= t) <= 2 exp(-2 t^2 / (m (1 - (m - 1) / n)))).
_TAIL = 5.0


def average_precision(
    histogram: DistanceHistogram,
    top_k: int | None = None,
    *,
    ties: TieRule = "expected",
    denominator: Denominator = "hits",
    weighted: bool = False,
) -> Tensor:
    """Average precision of each query.

    For an order with relevance ``rel_t`` at rank t, ``AP = (1/D) sum_{t<=k} rel_t (1/t) sum_{s<=t} rel_s``;
    D is the number of relevant items within the cut (``hits``) or ``min(k, all relevant)`` (``relevant``).
    Its mean over the orders of a block is, with h the harmonic numbers,
    ``sum_{t=a+1..a+m} (1/t) [R r/n + r/n + (t-a-1) r (r-1) / (n (n-1))]``; where the block of the cut leaves
    the number of hits open, the mean is the mixture over its hypergeometric distribution.

    Args:
        histogram: as :class:`DistanceHistogram`.
        top_k: the cut, None for the whole ranking.
        ties: ``expected``, ``best`` or ``worst``.
        denominator: ``hits`` or ``relevant``.
        weighted: sum the number of shared labels instead of ``rel_s`` (the weighted mAP of DSRH).

    Returns:
        float64 ``(Nq,)``; NaN for a query without a relevant item (``relevant``), or one that has no relevant
        item within the cut in any order (``hits``).

    Source: He, Cakir, Bargal, Sclaroff, "Hashing as Tie-Aware Learning to Rank", CVPR 2018, without a cut.

    Example:
        >>> counts = torch.tensor([[[2, 3]]])  # one block of five items, three of them relevant
        >>> average_precision(DistanceHistogram(counts, counts.sum(1)))  # 437 / 600
        tensor([0.7283], dtype=torch.float64)
    """
    k = effective_cut(histogram, top_k)
    ranks = torch.arange(1, k + 1, dtype=torch.float64, device=histogram.counts.device)
    harmonic = cumulative(ranks.reciprocal())
    if denominator == "relevant":
        total = _precision_sums(ordered(histogram, ties), k, weighted, harmonic).sum(1)
        value = total / histogram.total_relevant.clamp(1, k)
        return value.masked_fill(histogram.total_relevant == 0, math.nan)
    width = k if ties != "expected" else min(k, int(2 * _TAIL * math.sqrt(k)) + 4)
    size = max(1, _TABLE // width)
    parts = [
        _hit_precision(histogram[start : start + size], k, ties, weighted, harmonic)
        for start in range(0, len(histogram), size)
    ]
    return torch.cat(parts) if parts else harmonic.new_zeros(0)


def _hit_precision(
    histogram: DistanceHistogram, k: int, ties: TieRule, weighted: bool, harmonic: Tensor
) -> Tensor:
    """Average precision divided by the hits within the cut."""
    blocks = cut_blocks(histogram, k, gains=histogram.gains() if weighted else None)
    cut = ((blocks.a < k) & (blocks.n > 0)).long().cumsum(1).argmax(1, keepdim=True)
    before = torch.arange(blocks.n.shape[1], device=cut.device) < cut
    sums = _precision_sums(ordered(histogram, ties), k, weighted, harmonic)
    full = (sums.view(*before.shape, -1).sum(2) * before).sum(1, keepdim=True)
    block = Blocks(*(value.gather(1, cut) for value in blocks))
    low = (block.m - (block.n - block.r)).clamp(min=0)
    high = torch.minimum(block.m, block.r)
    if ties == "expected":
        n = block.n.clamp(min=1)
        centre = block.m * block.r / n
        width = _TAIL * (block.m * (1 - (block.m - 1).clamp(min=0) / n)).sqrt() + 1
        low = torch.maximum(low, (centre - width).floor())
        high = torch.minimum(high, (centre + width).ceil())
    hits = low + torch.arange(int((high - low).max()) + 1, device=low.device)
    possible = hits <= high
    hits = torch.minimum(hits, high)
    if ties == "expected":
        drawn = block._replace(n=block.m, r=hits, g=hits * block.g / block.r.clamp(min=1))
        tail = _precision_sum(drawn, harmonic)
    else:
        grades = histogram.counts.gather(1, cut[:, :, None].expand(-1, -1, histogram.counts.shape[2]))
        tail = _extreme_tail(block, hits, grades[:, 0].double(), harmonic, ties == "best", weighted)
    value = (full + tail) / (block.R + hits).clamp(min=1)
    if ties == "best":
        value = value.masked_fill(~possible, -math.inf).amax(1)
    elif ties == "worst":
        value = value.masked_fill(~possible, math.inf).amin(1)
    else:
        value = (value * _hypergeometric(block, hits, possible)).sum(1)
    return value.masked_fill((block.R + high == 0)[:, 0], math.nan)


def _extreme_tail(
    block: Blocks, hits: Tensor, grades: Tensor, harmonic: Tensor, best: bool, weighted: bool
) -> Tensor:
    """Largest or smallest sum of precisions in the block of the cut, for each number of hits in it.

    The best order puts the hits first, high grades before low ones; the worst puts the lowest grades last.
    """
    shift = block.a.expand_as(hits) if best else block.a + block.m - hits  # rank of the i-th hit is shift + i
    total = torch.zeros_like(hits)
    count, gain = torch.zeros_like(block.a), block.G
    levels = range(1, grades.shape[1])
    for level in reversed(levels) if best else levels:
        worth = level if weighted else 1
        first = torch.minimum(hits, count)
        last = torch.minimum(hits, count + grades[:, level : level + 1])
        step = harmonic[(shift + last).long()] - harmonic[(shift + first).long()]
        total += worth * (last - first) + (gain - worth * (shift + count)) * step
        gain = gain + worth * grades[:, level : level + 1]
        count = count + grades[:, level : level + 1]
    return total


def _precision_sums(histogram: DistanceHistogram, k: int, weighted: bool, harmonic: Tensor) -> Tensor:
    """:func:`_precision_sum` of the blocks of a histogram."""
    return _precision_sum(cut_blocks(histogram, k, gains=histogram.gains() if weighted else None), harmonic)


def _precision_sum(b: Blocks, harmonic: Tensor) -> Tensor:
    """Mean over the orders of a block of ``sum_{t=a+1..a+m} rel_t (1/t) (gains of the ranks up to t)``."""
    n = b.n.clamp(min=1)
    slope = b.g * (b.r - 1).clamp(min=0) / (n * (n - 1).clamp(min=1))
    constant = (b.r * b.G + b.g) / n - (b.a + 1) * slope
    return constant * (harmonic[(b.a + b.m).long()] - harmonic[b.a.long()]) + slope * b.m


def _hypergeometric(block: Blocks, hits: Tensor, possible: Tensor) -> Tensor:
    """P(``hits`` relevant items among the first m of n), r of them relevant; rows of consecutive hits."""
    x, m, r, n = hits, block.m, block.r, block.n
    ratio = ((r - x) * (m - x)) / ((x + 1) * (n - r - m + x + 1))
    log = ratio[:, :-1].clamp(min=torch.finfo(torch.float64).tiny).log().cumsum(1)
    log = torch.cat([torch.zeros_like(x[:, :1]), log], 1).masked_fill(~possible, -math.inf)
    return log.softmax(1)
