"""Every retrieval metric as a closed form over a :class:`~hybridhash.eval.histogram.DistanceHistogram`.

Each function takes a histogram and returns one float64 number per query, NaN where the metric is not defined
for the query. None of them sorts, samples or looks at codes. Whoever wants five metrics makes one histogram:

    >>> from hybridhash.eval import distance_histogram, functional
    >>> codes, labels = torch.tensor([[1.0, 1], [1, -1], [-1, -1]]), torch.tensor([0, 1, 0])
    >>> histogram = distance_histogram(codes, labels, codes, labels)
    >>> functional.average_precision(histogram, top_k=2).mean(), functional.recall(histogram, top_k=2).mean()
    (tensor(1., dtype=torch.float64), tensor(0.6667, dtype=torch.float64))

Items at the same distance form a *tie group*; ``ties`` says what is done with the orders inside of it:

- ``"expected"``: the exact mean over all orders.
- ``"best"``, ``"worst"``: the largest and the smallest value that an order can give.
- ``"stable"``: database order, only for the histogram of a ranking, which has no ties; all others need codes.

Notation in formulas and code, for one query and one tie group:

====== =========================================== ====== ==========================================
``a``  items in the groups before it               ``R``  relevant items in the groups before it
``n``  items in the group                          ``G``  sum of the gains of the groups before it
``m``  items of the group within the cut           ``g``  sum of the gains of the group
``r``  relevant items in the group                 ``k``  the cut: how many ranks count
====== =========================================== ====== ==========================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from hybridhash._checks import check_choice, check_integer
from hybridhash.eval.histogram import DistanceHistogram

__all__ = [
    "Denominator",
    "Ties",
    "average_cumulative_gain",
    "average_precision",
    "geometric_ranks",
    "hit_rate",
    "ndcg",
    "precision",
    "precision_by_radius",
    "precision_within",
    "recall",
    "recall_by_radius",
    "recall_within",
    "reciprocal_rank",
]

Ties = Literal["expected", "stable", "best", "worst"]
Denominator = Literal["hits", "relevant"]
Cuts: TypeAlias = int | Sequence[int] | None

# Numbers in one table of (queries, hits) or (queries, ranks).
_TABLE = 1 << 20
# Half width, in units of sqrt(m (1 - (m - 1) / n)), outside which a hypergeometric distribution holds less
# than 1e-21 (Serfling 1974: P(|X - E X| >= t) <= 2 exp(-2 t^2 / (m (1 - (m - 1) / n)))).
_TAIL = 5.0
# A first hit this deep in a tie group is too unlikely to change a double.
_NEGLIGIBLE = 1e-18


class TieGroups(NamedTuple):
    """The quantities of the module's notation: float64 ``(Nq, groups)``; ``a`` is at most the cut."""

    a: Tensor
    n: Tensor
    m: Tensor
    r: Tensor
    g: Tensor
    R: Tensor
    G: Tensor


def average_precision(
    histogram: DistanceHistogram,
    top_k: int | None = None,
    *,
    ties: Ties = "expected",
    denominator: Denominator = "hits",
    weighted: bool = False,
) -> Tensor:
    """Compute the average precision of each query, exactly under ties and wherever the cut falls.

    For an order with relevance ``rel_t`` at rank t, ``AP = (1/D) sum_{t<=k} rel_t (1/t) sum_{s<=t} rel_s``.

    Args:
        histogram: What a query finds at each distance.
        top_k: The cut, at least 1; None is the whole ranking.
        ties: ``"expected"``, ``"best"`` or ``"worst"``.
        denominator: What D is: the relevant items within the cut (``"hits"``, as the hashing literature has
            it) or ``min(k, all relevant items)`` (``"relevant"``, as information retrieval has it).
        weighted: Sum the number of shared labels in place of ``rel_s`` (the weighted mAP of DSRH).

    Returns:
        float64 ``(Nq,)``; NaN for a query without a relevant item (``"relevant"``), or without a relevant
        item within the cut in any order (``"hits"``).

    Raises:
        TypeError, ValueError: ``top_k`` is not an integer >= 1, or a rule is unknown.

    Source: He, Cakir, Bargal, Sclaroff, "Hashing as Tie-Aware Learning to Rank", CVPR 2018, without a cut.

    Example:
        >>> counts = torch.tensor([[[2, 3]]])  # one tie group of five items, three of them relevant
        >>> average_precision(DistanceHistogram(counts, counts.sum(1)))  # 437 / 600
        tensor([0.7283], dtype=torch.float64)
    """
    check_choice("denominator", denominator, get_args(Denominator))
    k = _cut(histogram, top_k)
    if histogram.is_ranking:
        return _ranked_precision(histogram, k, denominator, weighted)
    likely = k if ties != "expected" else min(k, int(2 * _TAIL * math.sqrt(k)) + 4)
    step = max(1, _TABLE // likely)  # queries whose tables of the possible numbers of hits are held at a time
    if len(histogram.counts) > step:
        parts = [histogram[start : start + step] for start in range(0, len(histogram.counts), step)]
        form = partial(average_precision, ties=ties, denominator=denominator, weighted=weighted)
        return torch.cat([form(part, top_k) for part in parts])
    grade = torch.arange(histogram.counts.shape[2], device=histogram.counts.device).double()
    gain = grade if weighted else grade.clamp(max=1)
    ranks = torch.arange(1, k + 1, dtype=torch.float64, device=histogram.counts.device)
    harmonic = F.pad((1 / ranks).cumsum(0), (1, 0))
    sums = _precision_sums(_tie_groups(histogram, k, ties, gain), harmonic)
    if denominator == "relevant":
        value = sums.sum(1) / histogram.total_relevant.clamp(1, k)
        return value.masked_fill(histogram.total_relevant == 0, math.nan)

    # The number of hits, and so the divisor, is open in the group that the cut splits: the last with a < k.
    groups = _tie_groups(histogram, k, "expected", gain)
    split = ((groups.a < k) & (groups.n > 0)).long().cumsum(1).argmax(1, keepdim=True)
    before = torch.arange(groups.n.shape[1], device=split.device) < split
    head = (sums.view(*before.shape, -1).sum(2) * before).sum(1, keepdim=True)
    group = TieGroups(*[values.gather(1, split) for values in groups])
    if ties == "expected":
        return _expected_over_hits(head, group, harmonic)
    grades = histogram.counts.gather(1, split[:, :, None].expand(-1, -1, histogram.counts.shape[2]))[:, 0]
    return _extreme_over_hits(head, group, grades, harmonic, ties == "best", weighted)


def _precision_sums(groups: TieGroups, harmonic: Tensor) -> Tensor:
    """Return the mean over the orders of each tie group of the sum of ``rel_t (1/t) (gains of ranks 1..t)``.

    The item at rank t, which is place ``t - a`` of the group, is relevant with probability r/n. If it is, the
    ranks 1..t have gained G before the group, g/r (the mean of one relevant item) at t, and at each of the
    ``t - a - 1`` places between them the mean of the ``n - 1`` items left, ``(g - g/r) / (n - 1)``:

        E = (r/n) [G + g/r + (t - a - 1) g (r - 1) / (r (n - 1))] = constant + slope t

    so that ``sum E / t = constant (H(a + m) - H(a)) + slope m``, with H the harmonic numbers.
    """
    a, n, m, r, g, _, G = groups
    items = n.clamp(min=1)
    slope = g * (r - 1).clamp(min=0) / (items * (items - 1).clamp(min=1))
    constant = (r * G + g) / items - (a + 1) * slope
    return constant * (harmonic[(a + m).long()] - harmonic[a.long()]) + slope * m


def _expected_over_hits(head: Tensor, group: TieGroups, harmonic: Tensor) -> Tensor:
    """Return the mean over all orders of (sum of precisions) / (hits), the cut splitting ``group``.

    Of its first m items x are relevant, with the probabilities of the hypergeometric distribution: m draws
    without replacement from n items, r of them relevant. Given x, all orders of the m items are equally
    likely, so they are a tie group of their own, with x relevant items and gains x g/r on average:

        mean = sum_x P(x) (head + sum of precisions given x) / (R + x)
    """
    _, n, m, r, g, R, _ = group
    # The possible numbers of hits, less those that are too unlikely to change a double.
    lowest = (m - (n - r)).clamp(min=0)
    highest = torch.minimum(m, r)
    mean = m * r / n.clamp(min=1)
    width = _TAIL * (m * (1 - (m - 1).clamp(min=0) / n.clamp(min=1))).sqrt() + 1
    low = torch.maximum(lowest, (mean - width).floor())
    high = torch.minimum(highest, (mean + width).ceil())
    hits = low + torch.arange(int((high - low).max()) + 1, device=low.device)
    possible = hits <= high
    hits = torch.minimum(hits, high)

    # P(x + 1) / P(x) = (r - x) (m - x) / ((x + 1) (n - r - m + x + 1)): sum the logarithms, then normalise.
    ratio = ((r - hits) * (m - hits)) / ((hits + 1) * (n - r - m + hits + 1))
    steps = ratio[:, :-1].clamp(min=torch.finfo(torch.float64).tiny).log().cumsum(1)
    log = torch.cat([torch.zeros_like(hits[:, :1]), steps], 1)
    probability = log.masked_fill(~possible, -math.inf).softmax(1)

    drawn = group._replace(n=m, r=hits, g=hits * g / r.clamp(min=1))
    value = (head + _precision_sums(drawn, harmonic)) / (R + hits).clamp(min=1)
    return (value * probability).sum(1).masked_fill((R + highest == 0)[:, 0], math.nan)


def _extreme_over_hits(
    head: Tensor, group: TieGroups, grades: Tensor, harmonic: Tensor, best: bool, weighted: bool
) -> Tensor:
    """Largest or smallest (sum of precisions) / (hits) of any order, the cut splitting ``group``.

    "Relevant items first" is not always best: a late hit can lower the mean. So look at every possible number
    of hits x, with the best (worst) order for it: hits first (last), high grades before (after) low ones.

    Args:
        head: Sum of precisions of the groups before, ``(q, 1)``.
        group: The tie group of the cut, ``(q, 1)``.
        grades: Its items of each grade, ``(q, grades)``.
        harmonic: Harmonic numbers of 0..k.
        best: Take the largest value.
        weighted: An item gains its grade, not 1.
    """
    low = (group.m - (group.n - group.r)).clamp(min=0)
    high = torch.minimum(group.m, group.r)
    hits = low + torch.arange(int((high - low).max()) + 1, device=low.device)
    possible = hits <= high
    hits = torch.minimum(hits, high)
    shift = group.a.expand_as(hits) if best else group.a + group.m - hits  # the i-th hit has rank shift + i
    total = torch.zeros_like(hits)
    count = torch.zeros_like(group.a)  # hits of the grades so far, and the gains of all ranks so far
    gain = group.G
    levels = range(1, grades.shape[1])
    for level in reversed(levels) if best else levels:
        worth = level if weighted else 1
        more = grades[:, level : level + 1].double()
        first = torch.minimum(hits, count)
        last = torch.minimum(hits, count + more)
        # Hit i in first+1..last has rank t = shift + i, up to which gain + worth (i - count) was gained:
        # that is worth t + (gain - worth (shift + count)), to be divided by t and summed.
        between = harmonic[(shift + last).long()] - harmonic[(shift + first).long()]
        total += worth * (last - first) + (gain - worth * (shift + count)) * between
        gain = gain + worth * more
        count = count + more
    value = (head + total) / (group.R + hits).clamp(min=1)
    if best:
        value = value.masked_fill(~possible, -math.inf).amax(1)
    else:
        value = value.masked_fill(~possible, math.inf).amin(1)
    return value.masked_fill((group.R + high == 0)[:, 0], math.nan)


def _ranked_precision(
    histogram: DistanceHistogram, k: int, denominator: Denominator, weighted: bool
) -> Tensor:
    """Average precision of rankings, by its definition: one row of relevance and one cumulative sum each."""
    relevant = histogram.counts[:, :k, 1:].any(2)
    hits = relevant.cumsum(1)
    gained = histogram.gains()[:, :k].cumsum(1) if weighted else hits
    ranks = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64, device=hits.device)
    total = (gained / ranks).mul_(relevant).sum(1)
    divisor = hits[:, -1] if denominator == "hits" else histogram.total_relevant.clamp(max=k)
    return total / divisor.double().where(divisor > 0, math.nan)


def precision(histogram: DistanceHistogram, top_k: Cuts = None, *, ties: Ties = "expected") -> Tensor:
    """Compute the share of relevant items among the first ``min(top_k, Nd)``.

    Returns:
        float64 ``(Nq,)``; ``(cuts, Nq)`` if ``top_k`` is a sequence of cuts.

    Example:
        >>> counts = torch.tensor([[[2, 3]]])
        >>> precision(DistanceHistogram(counts, counts.sum(1)), top_k=2)
        tensor([0.6000], dtype=torch.float64)
    """
    hits, items = _hits(histogram, top_k, ties)
    return _nan_without_relevant(hits / items, histogram)


def recall(histogram: DistanceHistogram, top_k: Cuts = None, *, ties: Ties = "expected") -> Tensor:
    """Compute the share of all relevant items that are among the first ``top_k``.

    Result as of :func:`precision`.
    """
    hits, _ = _hits(histogram, top_k, ties)
    return _nan_without_relevant(hits / histogram.total_relevant.clamp(min=1), histogram)


def _hits(histogram: DistanceHistogram, top_k: Cuts, ties: Ties) -> tuple[Tensor, Tensor]:
    """Return the mean number of relevant items, and of items, in each cut; shaped as :func:`precision`."""
    several = isinstance(top_k, Sequence)
    cuts = [_cut(histogram, k) for k in (top_k if isinstance(top_k, Sequence) else [top_k])]
    groups = _tie_groups(histogram, max(cuts), ties)
    items = groups.n.cumsum(1)
    rank = torch.tensor(cuts, dtype=torch.float64, device=items.device).expand(len(items), -1).contiguous()
    # The first group whose items, with those before it, reach the rank; the last group for ranks beyond all.
    group = torch.searchsorted(items, rank).clamp(max=items.shape[1] - 1)
    n = groups.n.gather(1, group)
    taken = n - (items.gather(1, group) - rank).clamp(min=0)
    # All relevant items of the groups before it, and ``taken`` of its own items, each relevant in r of n.
    hits = groups.R.gather(1, group) + taken * groups.r.gather(1, group) / n.clamp(min=1)
    depth = torch.minimum(rank, histogram.grades.sum(1, keepdim=True)).clamp(min=1)
    return (hits.T, depth.T) if several else (hits[:, 0], depth[:, 0])


def hit_rate(histogram: DistanceHistogram, top_k: int | None = None, *, ties: Ties = "expected") -> Tensor:
    """Compute the probability that one of the first ``top_k`` items is relevant: float64 ``(Nq,)``."""
    return _nan_without_relevant(_first_hit(histogram, top_k, ties)[0], histogram)


def reciprocal_rank(
    histogram: DistanceHistogram, top_k: int | None = None, *, ties: Ties = "expected"
) -> Tensor:
    """Compute 1 / (rank of the first relevant item), 0 if it lies beyond ``top_k``: float64 ``(Nq,)``."""
    return _nan_without_relevant(_first_hit(histogram, top_k, ties)[1], histogram)


def _first_hit(histogram: DistanceHistogram, top_k: int | None, ties: Ties) -> tuple[Tensor, Tensor]:
    """Probability of a hit within the cut, and the mean of 1 / its rank.

    The first hit lies in the first tie group with a relevant item. Its first i items hold none with
    probability ``S(i) = prod_{j < i} (n - r - j) / (n - j)``, so the first hit is at place i with probability
    ``S(i - 1) - S(i)``, where its rank is ``a + i``.
    """
    k = _cut(histogram, top_k)
    if histogram.is_ranking:
        relevant = histogram.counts[:, :k, 1:].any(2)
        found = relevant.any(1).double()
        return found, found / (relevant.byte().argmax(1) + 1)
    groups = _tie_groups(histogram, k, ties)
    first = (groups.r > 0).byte().argmax(1, keepdim=True)
    a, n, m, r, *_ = [values.gather(1, first) for values in groups]
    m = torch.where(r > 0, m, 0)
    survival = torch.ones_like(a)  # S(done)
    reciprocal = torch.zeros_like(a)
    done = 0
    deepest = int(m.max()) if len(m) else 0
    width = max(64, _TABLE // max(1, len(m)))
    # Some places at a time, until the cut, or until nearly every query has had its hit.
    while done < deepest and float((survival * (m > done)).max()) > _NEGLIGIBLE:
        j = done + torch.arange(min(width, deepest - done), device=a.device)
        factor = ((n - r - j) / (n - j).clamp(min=1)).clamp(min=0).masked_fill(j >= m, 1.0)
        after = survival * factor.cumprod(1)
        before = torch.cat([survival, after[:, :-1]], 1)
        reciprocal += ((before - after) / (a + j + 1)).sum(1, keepdim=True)
        survival = after[:, -1:]
        done += len(j)
    survival = torch.where(m > done, 0.0, survival)  # what was cut short as negligible
    return 1 - survival[:, 0], reciprocal[:, 0]


def average_cumulative_gain(
    histogram: DistanceHistogram, top_k: int | None = None, *, ties: Ties = "expected"
) -> Tensor:
    """Compute the mean number of shared labels of the first ``min(top_k, Nd)`` items: float64 ``(Nq,)``.

    Source: Zhao et al., "Deep Semantic Ranking Based Hashing for Multi-Label Image Retrieval", CVPR 2015.
    """
    k = _cut(histogram, top_k)
    grade = torch.arange(histogram.counts.shape[2], device=histogram.counts.device).double()
    groups = _tie_groups(histogram, k, ties, grade)
    gain = (groups.m * groups.g / groups.n.clamp(min=1)).sum(1)
    return _nan_without_relevant(gain / histogram.total_items.clamp(1, k).double(), histogram)


def ndcg(
    histogram: DistanceHistogram,
    top_k: int | None = None,
    *,
    ties: Ties = "expected",
    exponential: bool = True,
) -> Tensor:
    """Compute the discounted cumulative gain of the first ``top_k`` items over that of the ideal ranking.

    ``DCG = sum_{t <= k} gain_t / log2(1 + t)``; an item that shares s labels gains ``2^s - 1``
    (``exponential``) or s. Each rank of a tie group takes the mean gain of the group.

    Returns:
        float64 ``(Nq,)``.

    Source: gains as Zhao et al., CVPR 2015; ties as He et al., CVPR 2018.
    """
    k = _cut(histogram, top_k)
    gain = torch.arange(histogram.grades.shape[1], device=histogram.grades.device).double()
    if exponential:
        # In units of 2^(the largest grade of the query): the ratio is the same, and no power overflows.
        largest = (gain * (histogram.grades > 0)).amax(1, keepdim=True)
        gain = torch.exp2((gain - largest).clamp(max=0)) - torch.exp2(-largest)
    ranks = torch.arange(1, k + 1, dtype=torch.float64, device=histogram.counts.device)
    discount = F.pad((1 / (1 + ranks).log2()).cumsum(0), (1, 0))
    # In the ideal ranking the whole database is one tie group, put into the best order.
    everything = DistanceHistogram(histogram.grades[:, None], histogram.grades)
    actual = _tie_groups(histogram, k, ties, gain)
    perfect = _tie_groups(everything, k, "best", gain)
    gained, ideal = [
        (g / n.clamp(min=1) * (discount[(a + m).long()] - discount[a.long()])).sum(1)
        for a, n, m, _, g, _, _ in (actual, perfect)
    ]
    return gained / ideal.where(ideal > 0, math.nan)


def precision_within(histogram: DistanceHistogram, radius: int) -> Tensor:
    """Compute the share of relevant items among those at distance ``<= radius``; NaN where there are none.

    Returns:
        float64 ``(Nq,)``.
    """
    last = histogram.counts.shape[1] - 1
    radius = check_integer("radius", radius, 0, advice="0 finds equal codes only")
    return precision_by_radius(histogram)[min(radius, last)]


def recall_within(histogram: DistanceHistogram, radius: int) -> Tensor:
    """Compute the share of all relevant items that lie at distance ``<= radius``: float64 ``(Nq,)``."""
    last = histogram.counts.shape[1] - 1
    radius = check_integer("radius", radius, 0, advice="0 finds equal codes only")
    return recall_by_radius(histogram)[min(radius, last)]


def precision_by_radius(histogram: DistanceHistogram) -> Tensor:
    """Compute :func:`precision_within` every radius 0..bits: float64 ``(bits + 1, Nq)``."""
    items = histogram.items.cumsum(1).double()
    return (histogram.relevant.cumsum(1) / items.where(items > 0, math.nan)).T


def recall_by_radius(histogram: DistanceHistogram) -> Tensor:
    """Compute :func:`recall_within` every radius 0..bits: float64 ``(bits + 1, Nq)``."""
    hits = histogram.relevant.cumsum(1).T
    return _nan_without_relevant(hits / histogram.total_relevant.clamp(min=1).double(), histogram)


def geometric_ranks(
    size: int, top_k: int | None = None, *, points: int = 100, also: Sequence[int] = ()
) -> list[int]:
    """Return at most ``points`` ranks from 1 to ``min(top_k, size)`` that grow geometrically, and some more.

    Args:
        size: The number of items.
        top_k: The deepest rank, None for ``size``.
        points: How many ranks, at most.
        also: Further ranks, left out where they are deeper than all others.

    Example:
        >>> geometric_ranks(1000, points=4)
        [1, 10, 100, 1000]
    """
    deepest = size if top_k is None else min(check_integer("top_k", top_k, 1), size)
    steps = torch.logspace(0, math.log10(deepest), points, dtype=torch.float64)
    wanted = [int(rank) for rank in also if rank <= deepest]
    return sorted({*steps.round().long().tolist(), *wanted})


def _tie_groups(histogram: DistanceHistogram, k: int, ties: Ties, gain: Tensor | None = None) -> TieGroups:
    """Return the tie groups of a histogram, cut after rank ``k``.

    With ``"best"`` and ``"worst"`` the groups are split by grade, high grades first or last, so that no order
    inside of them matters.

    Args:
        histogram: What a query finds at each distance.
        k: The cut.
        ties: The rule for ties.
        gain: What an item of each grade gains, ``(grades,)`` or ``(Nq, grades)``; None counts relevant items.
    """
    check_choice("ties", ties, get_args(Ties))
    if ties == "stable" and not histogram.is_ranking:
        raise ValueError("a histogram does not know the order of tied items: use the metrics")
    counts = histogram.counts[:, :k] if histogram.is_ranking else histogram.counts
    relevant = torch.arange(counts.shape[2], device=counts.device).clamp(max=1).double()
    worth = relevant if gain is None else gain[..., None, :]
    if histogram.is_ranking or ties in ("expected", "stable"):
        n = counts.sum(2).double()
        r = counts[:, :, 1:].sum(2).double()
        g = (counts * worth).sum(2)
    else:
        by_grade = torch.stack([counts.double(), counts * relevant, counts * worth])
        n, r, g = (by_grade.flip(3) if ties == "best" else by_grade).flatten(2)
    a = (n.cumsum(1) - n).clamp(max=k)  # nothing is looked up beyond the cut
    m = torch.minimum(n, k - a)
    return TieGroups(a, n, m, r, g, r.cumsum(1) - r, g.cumsum(1) - g)


def _cut(histogram: DistanceHistogram, top_k: int | None) -> int:
    """Return ``top_k`` within the size of the largest database of the histogram."""
    size = int(histogram.grades.sum(1).max()) if len(histogram.counts) else 0
    if top_k is not None:
        size = min(check_integer("top_k", top_k, 1, advice="use top_k=None for the whole database"), size)
    return max(1, size)


def _nan_without_relevant(values: Tensor, histogram: DistanceHistogram) -> Tensor:
    return values.masked_fill(histogram.total_relevant == 0, math.nan)
