"""Metrics other than average precision as closed forms over a histogram.

Each function returns one float64 number per query, NaN where the metric is not defined (the query has no
relevant item, or nothing lies within the radius), and knows nothing of codes or labels. Notation: see
:mod:`hybridhash.eval.blocks`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hybridhash.eval.blocks import TieRule, cumulative, cut_blocks, effective_cut, ordered
from hybridhash.eval.histogram import DistanceHistogram

__all__ = [
    "average_cumulative_gain",
    "hit_rate",
    "hits_at",
    "ndcg",
    "precision",
    "precision_at",
    "precision_by_radius",
    "precision_within",
    "recall",
    "recall_at",
    "recall_by_radius",
    "recall_within",
    "reciprocal_rank",
]

# Doubles in one table of (queries, ranks in a block).
_TABLE = 1 << 20
# A first hit this deep in a block is too unlikely to change a double.
_NEGLIGIBLE = 1e-18


def precision(
    histogram: DistanceHistogram, top_k: int | None = None, *, ties: TieRule = "expected"
) -> Tensor:
    """Share of relevant items among the first ``min(top_k, Nd)``: float64 ``(Nq,)``."""
    return precision_at(histogram, [effective_cut(histogram, top_k)], ties=ties)[0]


def recall(histogram: DistanceHistogram, top_k: int | None = None, *, ties: TieRule = "expected") -> Tensor:
    """Share of all relevant items that are among the first ``top_k``: float64 ``(Nq,)``."""
    return recall_at(histogram, [effective_cut(histogram, top_k)], ties=ties)[0]


def precision_at(histogram: DistanceHistogram, ranks: Sequence[int], *, ties: TieRule = "expected") -> Tensor:
    """:func:`precision` at each of many ranks: float64 ``(ranks, Nq)``."""
    depth = torch.tensor(ranks, device=histogram.counts.device)[:, None].clamp(max=histogram.total_items)
    return _no_relevant_is_nan(hits_at(histogram, ranks, ties=ties) / depth.clamp(min=1), histogram)


def recall_at(histogram: DistanceHistogram, ranks: Sequence[int], *, ties: TieRule = "expected") -> Tensor:
    """:func:`recall` at each of many ranks: float64 ``(ranks, Nq)``."""
    hits = hits_at(histogram, ranks, ties=ties)
    return _no_relevant_is_nan(hits / histogram.total_relevant.clamp(min=1), histogram)


def hits_at(histogram: DistanceHistogram, ranks: Sequence[int], *, ties: TieRule = "expected") -> Tensor:
    """Mean number of relevant items among the first ``ranks``: float64 ``(ranks, Nq)``."""
    split = ordered(histogram, ties)
    items, relevant = split.items.cumsum(1), split.relevant.cumsum(1)
    rank = torch.tensor(ranks, device=items.device).expand(len(histogram), -1).contiguous()
    block = torch.searchsorted(items, rank).clamp(max=items.shape[1] - 1)
    n, r = split.items.gather(1, block), split.relevant.gather(1, block)
    taken = n - (items.gather(1, block) - rank).clamp(min=0)
    return (relevant.gather(1, block) - r + taken * r / n.clamp(min=1).double()).T


def hit_rate(histogram: DistanceHistogram, top_k: int | None = None, *, ties: TieRule = "expected") -> Tensor:
    """Probability that one of the first ``top_k`` items is relevant: float64 ``(Nq,)``."""
    return _no_relevant_is_nan(_first_hit(histogram, top_k, ties)[0], histogram)


def reciprocal_rank(
    histogram: DistanceHistogram, top_k: int | None = None, *, ties: TieRule = "expected"
) -> Tensor:
    """Mean of 1 / (rank of the first relevant item), 0 if it lies beyond ``top_k``: float64 ``(Nq,)``."""
    return _no_relevant_is_nan(_first_hit(histogram, top_k, ties)[1], histogram)


def average_cumulative_gain(
    histogram: DistanceHistogram, top_k: int | None = None, *, ties: TieRule = "expected"
) -> Tensor:
    """Mean number of shared labels of the first ``min(top_k, Nd)`` items (ACG): float64 ``(Nq,)``."""
    split = ordered(histogram, ties)
    blocks = cut_blocks(split, effective_cut(histogram, top_k), gains=split.gains())
    gain = (blocks.m * blocks.g / blocks.n.clamp(min=1)).sum(1)
    return _no_relevant_is_nan(gain / _depth(histogram, top_k), histogram)


def ndcg(
    histogram: DistanceHistogram,
    top_k: int | None = None,
    *,
    ties: TieRule = "expected",
    exponential: bool = True,
) -> Tensor:
    """Discounted cumulative gain of the first ``top_k`` items, divided by that of the ideal ranking.

    ``DCG = sum_{t <= k} gain_t / log2(1 + t)``; the gain of an item that shares r labels is ``2^r - 1``
    (``exponential``) or r. Tied items take their mean gain at each rank of the tie.

    Returns:
        float64 ``(Nq,)``.
    """
    k = effective_cut(histogram, top_k)
    ranks = torch.arange(1, k + 1, dtype=torch.float64, device=histogram.counts.device)
    discount = cumulative((1 + ranks).log2().reciprocal())

    def gained(ranking: DistanceHistogram) -> Tensor:
        blocks = cut_blocks(ranking, k, gains=ranking.gains(exponential=exponential))
        step = discount[(blocks.a + blocks.m).long()] - discount[blocks.a.long()]
        return (blocks.g / blocks.n.clamp(min=1) * step).sum(1)

    everything = DistanceHistogram(histogram.grades[:, None], histogram.grades)
    ideal = gained(everything.sorted_ties(best=True))
    return gained(ordered(histogram, ties)) / ideal.where(ideal > 0, math.nan)


def precision_within(histogram: DistanceHistogram, radius: int) -> Tensor:
    """Share of relevant items among those at distance ``<= radius``: ``(Nq,)``; NaN for an empty ball."""
    return precision_by_radius(histogram)[min(radius, histogram.counts.shape[1] - 1)]


def recall_within(histogram: DistanceHistogram, radius: int) -> Tensor:
    """Share of all relevant items that lie at distance ``<= radius``: float64 ``(Nq,)``."""
    return recall_by_radius(histogram)[min(radius, histogram.counts.shape[1] - 1)]


def precision_by_radius(histogram: DistanceHistogram) -> Tensor:
    """:func:`precision_within` every radius 0..bits: float64 ``(bits + 1, Nq)``."""
    items = histogram.items.cumsum(1).double()
    return (histogram.relevant.cumsum(1) / items.where(items > 0, math.nan)).T


def recall_by_radius(histogram: DistanceHistogram) -> Tensor:
    """:func:`recall_within` every radius 0..bits: float64 ``(bits + 1, Nq)``."""
    hits = histogram.relevant.cumsum(1).T
    return _no_relevant_is_nan(hits / histogram.total_relevant.clamp(min=1).double(), histogram)


def _depth(histogram: DistanceHistogram, top_k: int | None) -> Tensor:
    """How many items the cut keeps of each query's ranking."""
    size = histogram.total_items.clamp(min=1)
    return (size if top_k is None else size.clamp(max=top_k)).double()


def _no_relevant_is_nan(values: Tensor, histogram: DistanceHistogram) -> Tensor:
    return values.masked_fill(histogram.total_relevant == 0, math.nan)


def _first_hit(histogram: DistanceHistogram, top_k: int | None, ties: TieRule) -> tuple[Tensor, Tensor]:
    """Probability of a hit within the cut, and the mean of 1 / its rank.

    The first hit lies in the first block with a relevant item. Its first i items hold none with probability
    ``prod_{j < i} (n - r - j) / (n - j)``.
    """
    blocks = cut_blocks(ordered(histogram, ties), effective_cut(histogram, top_k))
    first = (blocks.r > 0).byte().argmax(1, keepdim=True)
    a, n, m, r = (value.gather(1, first) for value in (blocks.a, blocks.n, blocks.m, blocks.r))
    m = torch.where(r > 0, m, 0)
    missed = torch.ones_like(a)  # probability that no item so far is relevant
    reciprocal = torch.zeros_like(a)
    done, deepest = 0, int(m.max()) if len(histogram) else 0
    width = max(64, _TABLE // max(1, len(histogram)))
    while done < deepest and float((missed * (m > done)).max()) > _NEGLIGIBLE:
        i = done + torch.arange(min(width, deepest - done), device=a.device)
        step = ((n - r - i) / (n - i).clamp(min=1)).clamp(min=0).masked_fill(i >= m, 1.0)
        survival = missed * step.cumprod(1)
        before = torch.cat([missed, survival[:, :-1]], 1)
        reciprocal += ((before - survival) / (a + i + 1)).sum(1, keepdim=True)
        missed = survival[:, -1:]
        done += len(i)
    missed = torch.where(m > done, 0.0, missed)
    return 1 - missed[:, 0], reciprocal[:, 0]
