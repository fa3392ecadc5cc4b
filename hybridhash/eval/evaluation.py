"""All metrics of a retrieval experiment in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from hybridhash.codes import HashCodes
from hybridhash.eval import closed_forms
from hybridhash.eval.average_precision import Denominator, average_precision
from hybridhash.eval.blocks import TieRule
from hybridhash.eval.curves import ranks_up_to
from hybridhash.eval.histogram import DistanceHistogram, histogram_of, ranking_of
from hybridhash.eval.inputs import (
    as_sides,
    check_choice,
    check_radius,
    check_rank,
    check_top_k,
)
from hybridhash.eval.measure import Empty, Form, Ties, aggregate, evaluate_forms, tie_rule
from hybridhash.eval.report import RetrievalReport
from hybridhash.eval.statistics import code_statistics

__all__ = ["count_unlabelled", "evaluate", "rank_forms", "rank_results"]


def evaluate(
    query_codes: Tensor | HashCodes,
    query_labels: Tensor | HashCodes | None = None,
    database_codes: Tensor | HashCodes | None = None,
    database_labels: Tensor | None = None,
    *,
    top_k: int | None = None,
    ks: Sequence[int] = (1, 5, 10, 100, 1000),
    radius: int = 2,
    ties: Ties = "expected",
    denominator: Denominator = "hits",
    empty: Empty = "zero",
    bits: int | None = None,
    exclude_self: bool | Tensor = False,
    chunk_size: int | None = None,
) -> RetrievalReport:
    """Every metric, the curves and the use of the bits, in one pass: ``evaluate(query, database)``.

    Args:
        query_codes: see :func:`mean_average_precision <hybridhash.eval.metrics.mean_average_precision>` for
            these arguments; two HashCodes may stand for the first four.
        query_labels: labels of the queries; multi-hot ones add graded NDCG, ACG and weighted mAP.
        database_codes: codes of the database.
        database_labels: their labels.
        top_k: the cut of mAP, weighted mAP and MRR; None for the whole database.
        ks: the cuts of precision, recall, hit rate, NDCG and ACG; those beyond the database are left out.
        radius: the Hamming radius of precision and recall within a radius.
        ties: ``expected``, ``stable``, ``best`` or ``worst``.
        denominator: ``hits`` or ``relevant``.
        empty: ``zero`` or ``skip``.
        bits: code length; needed only if both sides are packed tensors.
        exclude_self: leave each query out of its own ranking.
        chunk_size: largest number of database items compared at a time.

    Returns:
        A report; ``print(report)`` shows the numbers with their definition.

    Raises:
        TypeError, ValueError: see :func:`hybridhash.eval.inputs.as_sides`; ``top_k`` or a k below 1, a
            negative radius, an unknown rule.

    Example:
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> report = evaluate(query, torch.tensor([0]), database, torch.tensor([0, 1, 0, 0]), top_k=3)
        >>> round(report["map"], 4), report["precision@1"]
        (0.9167, 1.0)
    """
    sides = as_sides(
        query_codes, query_labels, database_codes, database_labels, bits=bits, exclude_self=exclude_self
    )
    check_top_k(top_k)
    check_radius(radius)
    graded = sides.query_labels.ndim == 2
    forms = rank_forms(top_k, ks, ties, denominator, size=sides.size, graded=graded)
    histogram = histogram_of(sides, graded=graded, chunk_size=chunk_size)
    pieces: Iterable[DistanceHistogram] = [histogram]
    ranks = ranks_up_to(sides.size)
    if ties == "stable":
        deepest = None if top_k is None else max(top_k, *(k for k in ks if k <= sides.size), 1)
        pieces = ranking_of(sides, deepest, graded=graded, chunk_size=chunk_size)
        ranks = ranks_up_to(sides.size, deepest)
    metrics, curves = rank_results(forms, pieces, ranks, tie_rule(ties), empty)
    within = [closed_forms.precision_within(histogram, radius), closed_forms.recall_within(histogram, radius)]
    means = aggregate(torch.stack(within), empty, "mean").tolist()
    metrics.update(zip(("precision_within_radius", "recall_within_radius"), means, strict=True))
    return RetrievalReport(
        queries=len(sides.query),
        unlabelled_queries=count_unlabelled(sides.query_labels),
        database=sides.size,
        bits=sides.bits,
        top_k=top_k,
        radius=radius,
        ties=ties,
        denominator=denominator,
        empty=empty,
        exclude_self=sides.own is not None,
        metrics=metrics,
        curves=curves | _radius_curves(histogram, empty),
        codes=code_statistics(sides.database, bits=sides.bits),
    )


def rank_forms(
    top_k: int | None, ks: Sequence[int], ties: Ties, denominator: Denominator, *, size: int, graded: bool
) -> dict[str, Form]:
    """The metrics of a report that depend on ranks only, by name."""
    check_choice("denominator", denominator, ("hits", "relevant"))
    rule = tie_rule(ties)
    mean_ap = partial(average_precision, top_k=top_k, denominator=denominator)
    forms: dict[str, Form] = {"map": partial(mean_ap, ties=rule)}
    if ties == "expected":
        forms |= {"map_best": partial(mean_ap, ties="best"), "map_worst": partial(mean_ap, ties="worst")}
    if graded:
        forms["weighted_map"] = partial(mean_ap, ties=rule, weighted=True)
    forms["mrr"] = partial(closed_forms.reciprocal_rank, top_k=top_k, ties=rule)
    by_k = {
        "precision": closed_forms.precision,
        "recall": closed_forms.recall,
        "hit_rate": closed_forms.hit_rate,
        "ndcg": closed_forms.ndcg,
    }
    if graded:
        by_k["acg"] = closed_forms.average_cumulative_gain
    for k in sorted({check_rank(k) for k in ks}):
        if k <= size:
            forms |= {f"{name}@{k}": partial(form, top_k=k, ties=rule) for name, form in by_k.items()}
    return forms


def rank_results(
    forms: dict[str, Form],
    pieces: Iterable[DistanceHistogram],
    ranks: list[int],
    rule: TieRule,
    empty: Empty,
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Means over the queries of the forms, by name, and of precision and recall at each of many ranks.

    A curve is the mean over the queries that have a relevant item, whatever ``empty`` says.
    """
    both = [
        partial(closed_forms.precision_at, ranks=ranks, ties=rule),
        partial(closed_forms.recall_at, ranks=ranks, ties=rule),
    ]
    values = evaluate_forms([*forms.values(), *both], pieces)
    metrics = aggregate(values[: len(forms)], empty, "mean").tolist()
    precision, recall = aggregate(values[len(forms) :], "skip", "mean").chunk(2)
    curves = {
        "rank": [float(rank) for rank in ranks],
        "precision_at_rank": precision.tolist(),
        "recall_at_rank": recall.tolist(),
    }
    return dict(zip(forms, metrics, strict=True)), curves


def count_unlabelled(labels: Tensor) -> int:
    """Number of rows without a label."""
    return int((labels < 0).sum() if labels.ndim == 1 else (~labels.any(1)).sum())


def _radius_curves(histogram: DistanceHistogram, empty: Empty) -> dict[str, list[float]]:
    relevant = histogram.relevant.sum(0)
    precision = closed_forms.precision_by_radius(histogram)
    recall = closed_forms.recall_by_radius(histogram)
    return {
        "radius": [float(radius) for radius in range(histogram.counts.shape[1])],
        "precision_by_radius": aggregate(precision, "skip", "mean").tolist(),
        "recall_by_radius": aggregate(recall, "skip", "mean").tolist(),
        "precision_within_radius": aggregate(precision, empty, "mean").tolist(),
        "relevant_by_distance": relevant.double().tolist(),
        "irrelevant_by_distance": (histogram.items.sum(0) - relevant).double().tolist(),
    }
