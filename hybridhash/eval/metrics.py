"""Retrieval metrics of binary codes: exact under ties, independent of the order of the database.

All functions take the same arguments in the same order: codes and labels of the queries, codes and labels of
the database (see :func:`hybridhash.eval.inputs.as_sides`); two :class:`~hybridhash.codes.HashCodes` may stand
for the four. What is done with items at equal distance (``ties``):

- ``"expected"``: the exact mean over all orders of the tied items. No order of the database changes it.
- ``"stable"``: tied items in database order, as a stable sort leaves them.
- ``"best"``, ``"worst"``: the largest and the smallest value that an order of the tied items can give.

``empty="zero"`` counts a query for which the metric is not defined (it has no relevant item) as 0;
``empty="skip"`` leaves it out of the mean. ``aggregation="mean"`` gives one number, ``None`` one per query
(NaN for those left out). ``top_k=None`` is the whole database; several cuts in one call share the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..codes import HashCodes
from . import closed_forms
from .closed_forms import Denominator, TieRule
from .histogram import DistanceHistogram, histogram_of, ranking_of
from .inputs import Sides, as_sides, check_top_k

__all__ = ["Aggregation", "Empty", "Ties", "mean_average_precision"]

Ties = Literal["expected", "stable", "best", "worst"]
Empty = Literal["zero", "skip"]
Aggregation = Literal["mean"] | None


def mean_average_precision(
    query_codes: Tensor | HashCodes,
    query_labels: Tensor | HashCodes | None = None,
    database_codes: Tensor | HashCodes | None = None,
    database_labels: Tensor | None = None,
    *,
    top_k: int | Sequence[int | None] | None = None,
    ties: Ties = "expected",
    denominator: Denominator = "hits",
    empty: Empty = "zero",
    aggregation: Aggregation = "mean",
    bits: int | None = None,
    exclude_self: bool | Tensor = False,
    chunk_size: int | None = None,
) -> Tensor:
    """Mean over the queries of the average precision of the first ``top_k`` items by Hamming distance.

    ``AP = (1/D) sum_{t <= top_k} rel_t * (hits up to rank t) / t``.

    Args:
        query_codes: real-valued or ±1 ``(Nq, bits)``, packed uint8 ``(Nq, ceil(bits / 8))``, or HashCodes.
        query_labels: class ids ``(Nq,)`` or multi-hot ``(Nq, C)``; HashCodes carry theirs.
        database_codes: codes of the ``Nd`` database items.
        database_labels: their labels.
        top_k: the cut, None for the whole database; a sequence of cuts gives a value for each.
        ties: ``expected``, ``stable``, ``best`` or ``worst``; see the module.
        denominator: D: ``hits``, the relevant items among the first ``top_k`` (the hashing literature); or
            ``relevant``, ``min(top_k, all relevant items)`` (information retrieval).
        empty: ``zero`` or ``skip``, for queries without a relevant item (with ``hits``: without one among the
            first ``top_k`` in any order of the ties).
        aggregation: ``mean``, or None for one value per query.
        bits: code length; needed only if both sides are packed tensors.
        exclude_self: leave each query out of its own ranking, by ids; or the database row of each query.
        chunk_size: largest number of database items compared at a time; it never changes the result.

    Returns:
        float64: a scalar, or ``(Nq,)`` with ``aggregation=None``; preceded by a dimension for the cuts if
        ``top_k`` is a sequence. NaN if ``empty="skip"`` leaves no query.

    Raises:
        TypeError, ValueError: see :func:`hybridhash.eval.inputs.as_sides`; ``top_k < 1``; an unknown rule.

    Source: He et al., "Hashing as Tie-Aware Learning to Rank", CVPR 2018, for the mean over ties.

    Example:
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([0, 1, 0, 0])
        >>> mean_average_precision(query, torch.tensor([0]), database, labels, top_k=3)
        tensor(0.9167, dtype=torch.float64)
    """
    sides = as_sides(
        query_codes, query_labels, database_codes, database_labels, bits=bits, exclude_self=exclude_self
    )
    check_choice("denominator", denominator, ("hits", "relevant"))
    form = partial(closed_forms.average_precision, denominator=denominator)
    return _measure(form, sides, top_k, ties, empty, aggregation, chunk_size)


def _measure(
    form: Callable[..., Tensor],
    sides: Sides,
    top_k: int | Sequence[int | None] | None,
    ties: Ties,
    empty: Empty,
    aggregation: Aggregation,
    chunk_size: int | None,
    graded: bool = False,
) -> Tensor:
    """Evaluate ``form(histogram, cut, ties=...)`` at each cut, in one pass, and aggregate over queries."""
    single = not isinstance(top_k, Sequence)
    cuts = [check_top_k(cut) for cut in (top_k if isinstance(top_k, Sequence) else [top_k])]
    if not cuts:
        raise ValueError("top_k is an empty sequence: give at least one cut, or None for the whole database")
    check_choice("empty", empty, ("zero", "skip"))
    check_choice("aggregation", aggregation, ("mean", None))
    deepest = None if None in cuts else max(cut for cut in cuts if cut is not None)
    rule: TieRule = "expected" if ties == "stable" else ties
    parts = [
        torch.stack([form(histogram, cut, ties=rule) for cut in cuts])
        for histogram in histograms(sides, ties, deepest, graded=graded, chunk_size=chunk_size)
    ]
    values = aggregate(torch.cat(parts, 1), empty, aggregation)
    return values[0] if single else values


def histograms(
    sides: Sides, ties: Ties, top_k: int | None, *, graded: bool, chunk_size: int | None = None
) -> Iterable[DistanceHistogram]:
    """What the closed forms need for a tie rule: blocks of ties, or a ranking in database order."""
    check_choice("ties", ties, ("expected", "stable", "best", "worst"))
    if ties == "stable":
        return ranking_of(sides, top_k, graded=graded, chunk_size=chunk_size)
    return [histogram_of(sides, graded=graded, chunk_size=chunk_size)]


def aggregate(values: Tensor, empty: Empty, aggregation: Aggregation) -> Tensor:
    """Mean over the last dimension, of values that are NaN where the metric is not defined."""
    if empty == "zero":
        values = values.nan_to_num(0.0)
    return values if aggregation is None else values.nanmean(-1)


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise ValueError unless ``value`` is one of the choices."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")
