"""Retrieval metrics of binary codes: exact under ties, independent of the order of the database.

All functions take the same arguments in the same order: codes and labels of the queries, codes and labels of
the database; two :class:`~hybridhash.codes.HashCodes` may stand for the four. The options they share are
those of :class:`MetricOptions`. Each function makes one histogram of distances and reads one closed form of
:mod:`hybridhash.eval.functional` from it; whoever wants several metrics can do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_choice, check_integer
from hybridhash.codes import HashCodes
from hybridhash.eval import functional
from hybridhash.eval.functional import Denominator, Ties
from hybridhash.eval.histogram import (
    Array,
    DistanceHistogram,
    InputOptions,
    QueryDatabase,
    check_hamming,
    query_database,
)
from hybridhash.eval.published import published_average_precision
from hybridhash.eval.ranking import ranked_histograms

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "MeanOptions",
    "MetricOptions",
    "acg_at_k",
    "hit_rate_at_k",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "ndcg_at_k",
    "precision_at_k",
    "recall_at_k",
    "weighted_map",
]

Empty = Literal["zero", "skip"]
Aggregation = Literal["mean"] | None
Gain = Literal["exponential", "linear"]
Cuts: TypeAlias = int | Sequence[int | None] | None

# Counts of the piece of a histogram that is looked at, at a time: up to about 200 bytes each.
_COUNTS = 1 << 19


class MeanOptions(InputOptions, total=False):
    """Options of every metric: those of :class:`InputOptions`, and how queries are joined to one number.

    Attributes:
        empty: What to do with a query for which the metric is not defined, because it has no relevant item
            (average precision divided by ``"hits"``: none among the first ``top_k`` in any order of the
            ties). ``"zero"``, the default, counts it as 0; ``"skip"`` leaves it out of the mean.
        aggregation: ``"mean"``, the default, gives one number; None gives one for each query, NaN for those
            that are left out.
    """

    empty: Empty
    aggregation: Aggregation


class MetricOptions(MeanOptions, total=False):
    """Options of the metrics with a cut: those of :class:`MeanOptions`, the cut and the rule for ties.

    Attributes:
        top_k: How many of the nearest items count. None, the default, is the whole database. A sequence of
            cuts gives a value for each, in one pass.
        ties: What to do with items at equal distance. ``"expected"``, the default, is the exact mean over all
            orders of the tied items, which no order of the database changes. ``"stable"`` leaves them in
            database order, as a stable sort does. ``"best"`` and ``"worst"`` are the largest and the smallest
            value that an order can give.
    """

    top_k: Cuts
    ties: Ties


def mean_average_precision(
    query_codes: Tensor | Array | HashCodes,
    query_labels: Tensor | Array | HashCodes | None = None,
    database_codes: Tensor | Array | HashCodes | None = None,
    database_labels: Tensor | Array | None = None,
    *,
    denominator: Denominator = "hits",
    definition: str | None = None,
    **options: Unpack[MetricOptions],
) -> Tensor:
    """Compute the mean over the queries of the average precision of the first ``top_k`` items (mAP).

    ``AP = (1/D) sum_{t <= top_k} rel_t * (hits up to rank t) / t``, items ranked by Hamming distance.

    Args:
        query_codes: Real-valued or ±1 ``(Nq, bits)``, packed uint8 ``(Nq, ceil(bits / 8))``, or HashCodes.
        query_labels: Class ids ``(Nq,)`` or multi-hot ``(Nq, C)``; HashCodes carry theirs. HashCodes here
            are the database: ``mean_average_precision(query, database)``.
        database_codes: Codes of the ``Nd`` database items.
        database_labels: Their labels.
        denominator: What D is: the relevant items among the first ``top_k`` (``"hits"``, the hashing
            literature); or ``min(top_k, all relevant items)`` (``"relevant"``, information retrieval).
        definition: A key of :data:`DEFINITIONS <hybridhash.eval.published.DEFINITIONS>`: compute
            what that code base computes, instead of ``ties``, ``denominator`` and ``empty``.
        **options: ``top_k``, ``ties``, ``empty``, ``aggregation``, ``bits``, ``exclude_self``,
            ``chunk_size`` and ``progress``, see :class:`MetricOptions`.

    Returns:
        float64: a scalar, or ``(Nq,)`` with ``aggregation=None``; preceded by a dimension for the cuts if
        ``top_k`` is a sequence. NaN if ``empty="skip"`` leaves no query.

    Raises:
        TypeError, ValueError: ``top_k < 1``, an unknown rule or option, or sides that do not fit together,
            see :func:`hybridhash.eval.histogram.query_database`.

    Source: He et al., "Hashing as Tie-Aware Learning to Rank", CVPR 2018, for the mean over ties.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([0, 1, 0, 0])
        >>> mean_average_precision(query, torch.tensor([0]), database, labels, top_k=3)
        tensor(0.9167, dtype=torch.float64)
    """
    data = query_database(query_codes, query_labels, database_codes, database_labels, options, MetricOptions)
    check_choice("denominator", denominator, get_args(Denominator))
    if definition is None:
        return _measure(partial(functional.average_precision, denominator=denominator), data, options)
    rules = (options.get("ties", "expected"), denominator, options.get("empty", "zero"))
    if rules != ("expected", "hits", "zero"):
        raise ValueError("definition sets ties, denominator and empty: leave them out")
    check_hamming(data, f"definition={definition!r}", "leave one of them out")
    top_k = options.get("top_k")
    database = query_labels if isinstance(query_labels, HashCodes) else database_codes
    values = published_average_precision(definition, query_codes, database, data, as_cuts(top_k))
    if options.get("aggregation", "mean") == "mean":
        values = values.nanmean(-1)
    return values[0] if top_k is None or isinstance(top_k, Integral) else values


def precision_at_k(
    query_codes: Tensor | Array | HashCodes,
    query_labels: Tensor | Array | HashCodes | None = None,
    database_codes: Tensor | Array | HashCodes | None = None,
    database_labels: Tensor | Array | None = None,
    **options: Unpack[MetricOptions],
) -> Tensor:
    """Compute the share of relevant items among the first ``min(top_k, Nd)`` by Hamming distance (P@k).

    Arguments, result and errors: see :func:`mean_average_precision`.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([1, 0, 1, 0])
        >>> precision_at_k(query, torch.tensor([0]), database, labels, top_k=2)
        tensor(0.2500, dtype=torch.float64)
    """
    data = query_database(query_codes, query_labels, database_codes, database_labels, options, MetricOptions)
    return _measure(functional.precision, data, options)


def recall_at_k(
    query_codes: Tensor | Array | HashCodes,
    query_labels: Tensor | Array | HashCodes | None = None,
    database_codes: Tensor | Array | HashCodes | None = None,
    database_labels: Tensor | Array | None = None,
    **options: Unpack[MetricOptions],
) -> Tensor:
    """Compute the share of all relevant items that are among the first ``top_k`` by Hamming distance (R@k).

    Arguments, result and errors: see :func:`mean_average_precision`.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([1, 0, 1, 0])
        >>> recall_at_k(query, torch.tensor([0]), database, labels, top_k=2)
        tensor(0.2500, dtype=torch.float64)
    """
    data = query_database(query_codes, query_labels, database_codes, database_labels, options, MetricOptions)
    return _measure(functional.recall, data, options)


def hit_rate_at_k(
    query_codes: Tensor | Array | HashCodes,
    query_labels: Tensor | Array | HashCodes | None = None,
    database_codes: Tensor | Array | HashCodes | None = None,
    database_labels: Tensor | Array | None = None,
    **options: Unpack[MetricOptions],
) -> Tensor:
    """Compute the share of queries with a relevant item among the first ``top_k``.

    Metric learning calls this Recall@k. With ties, it is the mean over their orders.

    Arguments, result and errors: see :func:`mean_average_precision`.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([1, 0, 1, 0])
        >>> hit_rate_at_k(query, torch.tensor([0]), database, labels, top_k=2)
        tensor(0.5000, dtype=torch.float64)
    """
    data = query_database(query_codes, query_labels, database_codes, database_labels, options, MetricOptions)
    return _measure(functional.hit_rate, data, options)


def mean_reciprocal_rank(
    query_codes: Tensor | Array | HashCodes,
    query_labels: Tensor | Array | HashCodes | None = None,
    database_codes: Tensor | Array | HashCodes | None = None,
    database_labels: Tensor | Array | None = None,
    **options: Unpack[MetricOptions],
) -> Tensor:
    """Compute the mean of 1 / (rank of the first relevant item), 0 where it lies beyond ``top_k`` (MRR).

    Arguments, result and errors: see :func:`mean_average_precision`.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([1, 0, 1, 0])
        >>> mean_reciprocal_rank(query, torch.tensor([0]), database, labels, top_k=2)
        tensor(0.2500, dtype=torch.float64)
    """
    data = query_database(query_codes, query_labels, database_codes, database_labels, options, MetricOptions)
    return _measure(functional.reciprocal_rank, data, options)


def ndcg_at_k(
    query_codes: Tensor | Array | HashCodes,
    query_labels: Tensor | Array | HashCodes | None = None,
    database_codes: Tensor | Array | HashCodes | None = None,
    database_labels: Tensor | Array | None = None,
    *,
    gain: Gain = "exponential",
    **options: Unpack[MetricOptions],
) -> Tensor:
    """Compute the normalised discounted cumulative gain of the first ``top_k`` items (NDCG@k).

    ``DCG = sum_{t <= top_k} gain_t / log2(1 + t)``, divided by the DCG of the ideal ranking. An item that
    shares s labels with the query gains ``2^s - 1``, or s with ``gain="linear"``.

    Other arguments, result and errors: see :func:`mean_average_precision`.

    Source: Zhao et al., "Deep Semantic Ranking Based Hashing for Multi-Label Image Retrieval", CVPR 2015;
    ties as He et al., "Hashing as Tie-Aware Learning to Rank", CVPR 2018.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([1, 0, 1, 0])
        >>> ndcg_at_k(query, torch.tensor([0]), database, labels, top_k=2)
        tensor(0.1934, dtype=torch.float64)
    """
    data = query_database(query_codes, query_labels, database_codes, database_labels, options, MetricOptions)
    check_choice("gain", gain, get_args(Gain))
    form = partial(functional.ndcg, exponential=gain == "exponential")
    return _measure(form, data, options, graded=True)


def acg_at_k(
    query_codes: Tensor | Array | HashCodes,
    query_labels: Tensor | Array | HashCodes | None = None,
    database_codes: Tensor | Array | HashCodes | None = None,
    database_labels: Tensor | Array | None = None,
    **options: Unpack[MetricOptions],
) -> Tensor:
    """Compute the mean number of labels that the first ``min(top_k, Nd)`` items share with the query (ACG@k).

    Arguments, result and errors: see :func:`mean_average_precision`.

    Source: Zhao et al., "Deep Semantic Ranking Based Hashing for Multi-Label Image Retrieval", CVPR 2015.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([1, 0, 1, 0])
        >>> acg_at_k(query, torch.tensor([0]), database, labels, top_k=2)
        tensor(0.2500, dtype=torch.float64)
    """
    data = query_database(query_codes, query_labels, database_codes, database_labels, options, MetricOptions)
    return _measure(functional.average_cumulative_gain, data, options, graded=True)


def weighted_map(
    query_codes: Tensor | Array | HashCodes,
    query_labels: Tensor | Array | HashCodes | None = None,
    database_codes: Tensor | Array | HashCodes | None = None,
    database_labels: Tensor | Array | None = None,
    *,
    denominator: Denominator = "hits",
    **options: Unpack[MetricOptions],
) -> Tensor:
    """Compute mean average precision with ACG in place of precision (weighted mAP).

    ``AP_w = (1/D) sum_{t <= top_k} rel_t ACG@t``: the mean over the relevant ranks of the mean number of
    labels shared down to that rank.

    Arguments, result and errors: see :func:`mean_average_precision`.

    Source: Zhao et al., "Deep Semantic Ranking Based Hashing for Multi-Label Image Retrieval", CVPR 2015.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([1, 0, 1, 0])
        >>> weighted_map(query, torch.tensor([0]), database, labels, top_k=2)
        tensor(0.2500, dtype=torch.float64)
    """
    data = query_database(query_codes, query_labels, database_codes, database_labels, options, MetricOptions)
    check_choice("denominator", denominator, get_args(Denominator))
    form = partial(functional.average_precision, denominator=denominator, weighted=True)
    return _measure(form, data, options, graded=True)


def _measure(
    form: Callable[..., Tensor], data: QueryDatabase, options: MetricOptions, graded: bool = False
) -> Tensor:
    """Evaluate ``form(histogram, top_k=..., ties=...)`` at each cut, in one pass, and join the queries."""
    top_k = options.get("top_k")
    ties = options.get("ties", "expected")
    empty = options.get("empty", "zero")
    aggregation = options.get("aggregation", "mean")
    check_rules(ties, empty, aggregation)
    cuts = as_cuts(top_k)
    forms = [partial(form, top_k=cut, ties=ties) for cut in cuts]
    known = [cut for cut in cuts if cut is not None]
    depth = max(known) if len(known) == len(cuts) else None
    pieces = ranked_histograms(data, ties, depth, graded=graded)
    values = over_queries(forms, pieces, empty, aggregation)
    return values[0] if top_k is None or isinstance(top_k, Integral) else values


def over_queries(
    forms: Sequence[Callable[[DistanceHistogram], Tensor]],
    pieces: Iterable[DistanceHistogram],
    empty: Empty,
    aggregation: Aggregation = "mean",
) -> Tensor:
    """Evaluate every form for every query, and take the mean over the queries.

    Args:
        forms: Functions of a histogram that give a value for each query, ``(Nq,)``, or several, ``(n, Nq)``;
            NaN where a metric is not defined.
        pieces: Histograms of some queries each.
        empty: What NaN counts.
        aggregation: None leaves out the mean.

    Returns:
        float64 ``(values,)``, or ``(values, Nq)`` with ``aggregation=None``.
    """
    columns = []
    for histogram in pieces:
        queries, groups, grades = histogram.counts.shape
        step = max(1, _COUNTS // (groups * grades))
        parts = [histogram]
        if queries > step:
            parts = [histogram[start : start + step] for start in range(0, queries, step)]
        for part in parts:
            size = part.counts.shape[0]
            columns.append(torch.cat([form(part).reshape(-1, size) for form in forms]))
    values = torch.cat(columns, 1)
    if empty == "zero":
        values = values.nan_to_num(0.0)
    return values if aggregation is None else values.nanmean(1)


def check_rules(ties: Ties, empty: Empty, aggregation: Aggregation = "mean") -> None:
    """Raise ValueError unless the rules are known, before anything is counted."""
    check_choice("ties", ties, get_args(Ties))
    check_choice("empty", empty, get_args(Empty))
    check_choice("aggregation", aggregation, ("mean", None))


def as_cuts(top_k: Cuts) -> list[int | None]:
    """Return one or several cuts, checked, as a list."""
    cuts = np.atleast_1d(np.asarray(top_k, dtype=object)).tolist()
    if not cuts:
        raise ValueError("top_k is an empty sequence: give at least one cut, or None for the whole database")
    advice = "use top_k=None for the whole database"
    return [None if cut is None else check_integer("top_k", cut, 1, advice=advice) for cut in cuts]
