"""Metrics by Hamming radius, and precision-recall curves.

All items at one distance are within a radius or none is, so that ties do not matter here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_choice, check_integer
from hybridhash.codes import HashCodes
from hybridhash.eval import functional
from hybridhash.eval.functional import Ties
from hybridhash.eval.histogram import (
    Array,
    QueryDatabase,
    check_hamming,
    histogram_of,
    query_database,
)
from hybridhash.eval.metrics import MeanOptions, as_cuts, check_rules, over_queries
from hybridhash.eval.ranking import ranked_histograms

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "PrecisionRecallCurve",
    "precision_recall_curve",
    "precision_within_radius",
    "recall_within_radius",
]


class PrecisionRecallCurve(NamedTuple):
    """Points of a precision-recall curve.

    Attributes:
        precision: float64 ``(points,)``, or ``(points, Nq)`` with ``aggregation=None``.
        recall: the same shape.
        thresholds: int64 ``(points,)``: the radius or the rank of each point.
    """

    precision: Tensor
    recall: Tensor
    thresholds: Tensor


def precision_within_radius(
    query_codes: Tensor | Array | HashCodes,
    query_labels: Tensor | Array | HashCodes | None = None,
    database_codes: Tensor | Array | HashCodes | None = None,
    database_labels: Tensor | Array | None = None,
    *,
    radius: int | Sequence[int] = 2,
    **options: Unpack[MeanOptions],
) -> Tensor:
    """Compute the share of relevant items among those within a Hamming radius of the query (P@H<=r).

    Args:
        query_codes: The first four arguments are those of
            :func:`mean_average_precision <hybridhash.eval.metrics.mean_average_precision>`.
        query_labels: Labels of the queries.
        database_codes: Codes of the database.
        database_labels: Labels of the database.
        radius: The largest distance; a sequence of radii gives a value for each.
        **options: ``empty``, ``aggregation``, ``bits``, ``exclude_self``, ``chunk_size`` and ``progress``,
            see :class:`~hybridhash.eval.metrics.MeanOptions`. Here ``empty`` is about queries with nothing
            within the radius: they count 0 (``"zero"``, as DCH does) or are left out (``"skip"``).

    Returns:
        float64: a scalar, or ``(Nq,)`` with ``aggregation=None``; preceded by a dimension for several radii.

    Raises:
        TypeError, ValueError: A negative radius, an unknown rule or option, or sides that do not fit
            together, see :func:`hybridhash.eval.histogram.query_database`.

    Source: Cao et al., "Deep Cauchy Hashing for Hamming Space Retrieval", CVPR 2018.

    Example:
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, -1]])
        >>> precision_within_radius(query, torch.tensor([0]), database, torch.tensor([0, 1, 0]), radius=1)
        tensor(0.5000, dtype=torch.float64)
    """
    data = query_database(query_codes, query_labels, database_codes, database_labels, options, MeanOptions)
    return _within(functional.precision_by_radius, data, radius, options)


def recall_within_radius(
    query_codes: Tensor | Array | HashCodes,
    query_labels: Tensor | Array | HashCodes | None = None,
    database_codes: Tensor | Array | HashCodes | None = None,
    database_labels: Tensor | Array | None = None,
    *,
    radius: int | Sequence[int] = 2,
    **options: Unpack[MeanOptions],
) -> Tensor:
    """Compute the share of all relevant items that lie within a Hamming radius of the query.

    Arguments, result and errors: see :func:`precision_within_radius`; ``empty`` is about queries without a
    relevant item.

    Example:
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, -1]])
        >>> recall_within_radius(query, torch.tensor([0]), database, torch.tensor([0, 1, 0]), radius=1)
        tensor(0.5000, dtype=torch.float64)
    """
    data = query_database(query_codes, query_labels, database_codes, database_labels, options, MeanOptions)
    return _within(functional.recall_by_radius, data, radius, options)


def precision_recall_curve(
    query_codes: Tensor | Array | HashCodes,
    query_labels: Tensor | Array | HashCodes | None = None,
    database_codes: Tensor | Array | HashCodes | None = None,
    database_labels: Tensor | Array | None = None,
    *,
    by: Literal["radius", "rank"] = "radius",
    top_k: int | Sequence[int] | None = None,
    ties: Ties = "expected",
    **options: Unpack[MeanOptions],
) -> PrecisionRecallCurve:
    """Compute precision and recall as the radius, or the number of retrieved items, grows.

    Args:
        query_codes: The first four arguments are those of
            :func:`mean_average_precision <hybridhash.eval.metrics.mean_average_precision>`.
        query_labels: Labels of the queries.
        database_codes: Codes of the database.
        database_labels: Labels of the database.
        by: ``"radius"`` gives a point for each Hamming distance 0..bits, ``"rank"`` one for each number of
            retrieved items.
        top_k: For ``"rank"``, the deepest rank (None is the whole database), reached in up to 100 steps that
            grow geometrically; or a sequence of ranks.
        ties: The rule for ``"rank"``, see :class:`~hybridhash.eval.metrics.MetricOptions`; a radius cuts no
            tie.
        **options: ``empty``, ``aggregation``, ``bits``, ``exclude_self``, ``chunk_size`` and ``progress``,
            see :class:`~hybridhash.eval.metrics.MeanOptions`. ``empty`` is about queries without a relevant
            item, and at a radius also about queries with nothing within it: they count 0 (``"zero"``, the
            default, as in every metric) or are left out (``"skip"``).

    Returns:
        The curve: mean over the queries of precision and of recall at each point.

    Raises:
        TypeError, ValueError: ``top_k`` below 1, an unknown rule or option, or sides that do not fit
            together, see :func:`hybridhash.eval.histogram.query_database`.

    Example:
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, -1]])
        >>> curve = precision_recall_curve(query, torch.tensor([0]), database, torch.tensor([0, 1, 0]))
        >>> curve.precision.tolist(), curve.recall.tolist()
        ([1.0, 0.5, 0.6666666666666666], [0.5, 0.5, 1.0])
    """
    data = query_database(query_codes, query_labels, database_codes, database_labels, options, MeanOptions)
    empty = options.get("empty", "zero")
    aggregation = options.get("aggregation", "mean")
    check_choice("by", by, ("radius", "rank"))
    check_rules(ties, empty, aggregation)
    forms: list[Callable[..., Tensor]]
    if by == "radius":
        check_hamming(data, "a curve by radius", "use by='rank'")
        points = list(range(data.bits + 1))
        forms = [functional.precision_by_radius, functional.recall_by_radius]
    else:
        cuts = as_cuts(top_k)
        points = [len(data.database) if cut is None else min(cut, len(data.database)) for cut in cuts]
        if top_k is None or isinstance(top_k, Integral):
            points = functional.geometric_ranks(points[0])
        forms = [partial(functional.precision, top_k=points, ties=ties)]
        forms += [partial(functional.recall, top_k=points, ties=ties)]
    # A radius cuts no tie.
    pieces = ranked_histograms(data, ties if by == "rank" else "expected", max(points), graded=False)
    precision, recall = over_queries(forms, pieces, empty, aggregation).chunk(2)
    return PrecisionRecallCurve(precision, recall, torch.tensor(points, device=precision.device))


def _within(
    form: Callable[..., Tensor], data: QueryDatabase, radius: int | Sequence[int], options: MeanOptions
) -> Tensor:
    """Evaluate ``form(histogram)``, which gives a value for each radius 0..bits, at some radii."""
    check_hamming(data, "precision or recall within a radius", "use precision_at_k or recall_at_k")
    empty = options.get("empty", "zero")
    aggregation = options.get("aggregation", "mean")
    check_rules("expected", empty, aggregation)
    radii = np.atleast_1d(np.asarray(radius, dtype=object)).tolist()
    if not radii:
        raise ValueError("radius is an empty sequence: give at least one radius")
    radii = [check_integer("radius", value, 0, advice="0 finds equal codes only") for value in radii]
    values = over_queries([form], [histogram_of(data, graded=False)], empty, aggregation)
    values = values[[min(value, data.bits) for value in radii]]
    return values[0] if isinstance(radius, Integral) else values
