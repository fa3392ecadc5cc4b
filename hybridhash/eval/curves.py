"""Metrics by Hamming radius, and precision-recall curves.

All items at one distance are within a radius or none is, so that ties do not matter here. Arguments that are
not described are those of :func:`hybridhash.eval.metrics.mean_average_precision`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hybridhash.codes import HashCodes
from hybridhash.eval import closed_forms
from hybridhash.eval.inputs import Sides, as_sides, check_choice, check_radius, check_rank
from hybridhash.eval.measure import (
    Aggregation,
    Empty,
    Form,
    Ties,
    aggregate,
    per_query,
    tie_rule,
)

__all__ = [
    "PrecisionRecallCurve",
    "precision_recall_curve",
    "precision_within_radius",
    "ranks_up_to",
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
    query_codes: Tensor | HashCodes,
    query_labels: Tensor | HashCodes | None = None,
    database_codes: Tensor | HashCodes | None = None,
    database_labels: Tensor | None = None,
    *,
    radius: int | Sequence[int] = 2,
    empty: Empty = "zero",
    aggregation: Aggregation = "mean",
    bits: int | None = None,
    exclude_self: bool | Tensor = False,
    chunk_size: int | None = None,
) -> Tensor:
    """Share of relevant items among those within a Hamming radius of the query (P@H<=r).

    Args:
        query_codes: see :func:`mean_average_precision <hybridhash.eval.metrics.mean_average_precision>`, as
            for all arguments but these:
        radius: largest distance; a sequence of radii gives a value for each.
        empty: a query with nothing within the radius counts 0 (``zero``, as DCH does) or is left out
            (``skip``).

    Returns:
        float64: a scalar, or ``(Nq,)`` with ``aggregation=None``; preceded by a dimension for several radii.

    Raises:
        TypeError, ValueError: see :func:`hybridhash.eval.inputs.as_sides`; a negative radius.

    Source: Cao et al., "Deep Cauchy Hashing for Hamming Space Retrieval", CVPR 2018.

    Example:
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, -1]])
        >>> precision_within_radius(query, torch.tensor([0]), database, torch.tensor([0, 1, 0]), radius=1)
        tensor(0.5000, dtype=torch.float64)
    """
    sides = as_sides(
        query_codes, query_labels, database_codes, database_labels, bits=bits, exclude_self=exclude_self
    )
    return _within(closed_forms.precision_within, sides, radius, empty, aggregation, chunk_size)


def recall_within_radius(
    query_codes: Tensor | HashCodes,
    query_labels: Tensor | HashCodes | None = None,
    database_codes: Tensor | HashCodes | None = None,
    database_labels: Tensor | None = None,
    *,
    radius: int | Sequence[int] = 2,
    empty: Empty = "zero",
    aggregation: Aggregation = "mean",
    bits: int | None = None,
    exclude_self: bool | Tensor = False,
    chunk_size: int | None = None,
) -> Tensor:
    """Share of all relevant items that lie within a Hamming radius of the query.

    Arguments, result and errors: see :func:`precision_within_radius`; ``empty`` is about queries without a
    relevant item.

    Example:
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, -1]])
        >>> recall_within_radius(query, torch.tensor([0]), database, torch.tensor([0, 1, 0]), radius=1)
        tensor(0.5000, dtype=torch.float64)
    """
    sides = as_sides(
        query_codes, query_labels, database_codes, database_labels, bits=bits, exclude_self=exclude_self
    )
    return _within(closed_forms.recall_within, sides, radius, empty, aggregation, chunk_size)


def precision_recall_curve(
    query_codes: Tensor | HashCodes,
    query_labels: Tensor | HashCodes | None = None,
    database_codes: Tensor | HashCodes | None = None,
    database_labels: Tensor | None = None,
    *,
    by: Literal["radius", "rank"] = "radius",
    top_k: int | Sequence[int] | None = None,
    ties: Ties = "expected",
    empty: Empty = "skip",
    aggregation: Aggregation = "mean",
    bits: int | None = None,
    exclude_self: bool | Tensor = False,
    chunk_size: int | None = None,
) -> PrecisionRecallCurve:
    """Precision and recall as the radius, or the number of retrieved items, grows.

    Args:
        query_codes: see :func:`mean_average_precision <hybridhash.eval.metrics.mean_average_precision>`, as
            for all arguments but these:
        by: ``radius``: a point for each Hamming distance 0..bits; ``rank``: a point for each number of
            retrieved items.
        top_k: for ``rank``: the deepest rank (None: the whole database), reached in up to 100 steps that grow
            geometrically; or a sequence of ranks.
        ties: for ``rank``; a radius cuts no tie.
        empty: ``skip`` leaves a query out of the precision of radii at which it finds nothing, and out of
            all points if it has no relevant item; ``zero`` counts it as 0.

    Returns:
        The curve: mean over the queries of precision and of recall at each point.

    Raises:
        TypeError, ValueError: see :func:`hybridhash.eval.inputs.as_sides`; ``top_k`` below 1.

    Example:
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, -1]])
        >>> curve = precision_recall_curve(query, torch.tensor([0]), database, torch.tensor([0, 1, 0]))
        >>> curve.precision.tolist(), curve.recall.tolist()
        ([1.0, 0.5, 0.6666666666666666], [0.5, 0.5, 1.0])
    """
    sides = as_sides(
        query_codes, query_labels, database_codes, database_labels, bits=bits, exclude_self=exclude_self
    )
    check_choice("by", by, ("radius", "rank"))
    rule = tie_rule(ties)
    points: list[int]
    if by == "radius":
        points, ties = list(range(sides.bits + 1)), "expected"
        forms: list[Form] = [closed_forms.precision_by_radius, closed_forms.recall_by_radius]
    else:
        points = list(top_k) if isinstance(top_k, Sequence) else ranks_up_to(sides.size, top_k)
        points = [check_rank(point) for point in points]
        forms = [partial(closed_forms.precision_at, ranks=points, ties=rule)]
        forms += [partial(closed_forms.recall_at, ranks=points, ties=rule)]
    values = per_query(forms, sides, ties, max(points), chunk_size=chunk_size)
    precision, recall = aggregate(values, empty, aggregation).chunk(2)
    return PrecisionRecallCurve(precision, recall, torch.tensor(points, device=precision.device))


def ranks_up_to(size: int, top_k: int | None = None, *, points: int = 100) -> list[int]:
    """At most ``points`` ranks from 1 to ``min(top_k, size)`` that grow geometrically.

    Example:
        >>> ranks_up_to(1000, points=4)
        [1, 10, 100, 1000]
    """
    deepest = size if top_k is None else min(check_rank(top_k), size)
    steps = torch.logspace(0, math.log10(deepest), points, dtype=torch.float64)
    return sorted(set(steps.round().long().tolist()))


def _within(
    form: Callable[..., Tensor],
    sides: Sides,
    radius: int | Sequence[int],
    empty: Empty,
    aggregation: Aggregation,
    chunk_size: int | None,
) -> Tensor:
    """Evaluate ``form(histogram, radius=...)`` at each radius and aggregate over the queries."""
    radii = [check_radius(value) for value in (radius if isinstance(radius, Sequence) else [radius])]
    forms = [partial(form, radius=value) for value in radii]
    values = aggregate(per_query(forms, sides, "expected", None, chunk_size=chunk_size), empty, aggregation)
    return values if isinstance(radius, Sequence) else values[0]
