"""From checked inputs to numbers: the pass over the pairs, the closed forms, the mean over the queries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from hybridhash.eval.blocks import TieRule
from hybridhash.eval.histogram import DistanceHistogram, histogram_of, ranking_of
from hybridhash.eval.inputs import Sides, check_choice, check_cuts

__all__ = [
    "Aggregation",
    "Empty",
    "Form",
    "Ties",
    "aggregate",
    "evaluate_forms",
    "measure",
    "per_query",
    "tie_rule",
]

Ties = Literal["expected", "stable", "best", "worst"]
Empty = Literal["zero", "skip"]
Aggregation = Literal["mean"] | None
Form = Callable[[DistanceHistogram], Tensor]


def measure(
    form: Callable[..., Tensor],
    sides: Sides,
    top_k: int | Sequence[int | None] | None,
    ties: Ties,
    empty: Empty,
    aggregation: Aggregation,
    chunk_size: int | None,
    graded: bool = False,
) -> Tensor:
    """Evaluate ``form(histogram, top_k=..., ties=...)`` at each cut, in one pass, and aggregate."""
    cuts = check_cuts(top_k)
    forms = [partial(form, top_k=cut, ties=tie_rule(ties)) for cut in cuts]
    deepest = None if None in cuts else max(cut for cut in cuts if cut is not None)
    values = per_query(forms, sides, ties, deepest, graded=graded, chunk_size=chunk_size)
    values = aggregate(values, empty, aggregation)
    return values if isinstance(top_k, Sequence) else values[0]


def per_query(
    forms: Sequence[Form],
    sides: Sides,
    ties: Ties,
    top_k: int | None,
    *,
    graded: bool = False,
    chunk_size: int | None = None,
) -> Tensor:
    """Every form of every query, in one pass: float64 ``(values, Nq)``; a form gives one value or several.

    The forms see the histogram of distances, or for ``stable`` the ranking of the database order down to
    ``top_k``, in pieces.
    """
    if ties == "stable":
        return evaluate_forms(forms, ranking_of(sides, top_k, graded=graded, chunk_size=chunk_size))
    return evaluate_forms(forms, [histogram_of(sides, graded=graded, chunk_size=chunk_size)])


def evaluate_forms(forms: Iterable[Form], pieces: Iterable[DistanceHistogram]) -> Tensor:
    """Every form of every query of the pieces: float64 ``(values, Nq)``."""
    forms = list(forms)
    columns = [torch.cat([form(piece).reshape(-1, len(piece)) for form in forms]) for piece in pieces]
    return torch.cat(columns, 1)


def tie_rule(ties: Ties) -> TieRule:
    """The rule for the closed forms: a ranking in database order has no ties left."""
    check_choice("ties", ties, ("expected", "stable", "best", "worst"))
    return "expected" if ties == "stable" else ties


def aggregate(values: Tensor, empty: Empty, aggregation: Aggregation) -> Tensor:
    """Mean over the last dimension, of values that are NaN where the metric is not defined."""
    check_choice("empty", empty, ("zero", "skip"))
    check_choice("aggregation", aggregation, ("mean", None))
    if empty == "zero":
        values = values.nan_to_num(0.0)
    return values if aggregation is None else values.nanmean(-1)
