"""All metrics of a retrieval experiment in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, TypeAlias, get_args

from torch import Tensor

from hybridhash._checks import check_choice, check_integer
from hybridhash.codes import HashCodes
from hybridhash.eval import functional
from hybridhash.eval.functional import Denominator, Ties
from hybridhash.eval.histogram import (
    Array,
    DistanceHistogram,
    InputOptions,
    histogram_of,
    query_database,
)
from hybridhash.eval.metrics import Empty, check_rules, over_queries
from hybridhash.eval.ranking import score_histograms, stable_rankings
from hybridhash.eval.report import RetrievalReport
from hybridhash.eval.statistics import packed_statistics
from hybridhash.labels import labelled

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["check_settings", "evaluate", "rank_forms", "rank_results"]

Form: TypeAlias = Callable[[DistanceHistogram], Tensor]


def evaluate(
    query_codes: Tensor | Array | HashCodes,
    query_labels: Tensor | Array | HashCodes | None = None,
    database_codes: Tensor | Array | HashCodes | None = None,
    database_labels: Tensor | Array | None = None,
    *,
    top_k: int | None = None,
    ks: Sequence[int] = (1, 5, 10, 100, 1000),
    radius: int = 2,
    ties: Ties = "expected",
    denominator: Denominator = "hits",
    empty: Empty = "zero",
    **options: Unpack[InputOptions],
) -> RetrievalReport:
    """Compute every metric, the curves and how the bits are used, in one pass: ``evaluate(query, database)``.

    Args:
        query_codes: The first four arguments are those of
            :func:`mean_average_precision <hybridhash.eval.metrics.mean_average_precision>`; two HashCodes
            may stand for them.
        query_labels: Labels of the queries; multi-hot ones add graded NDCG, ACG and weighted mAP.
        database_codes: Codes of the database.
        database_labels: Labels of the database.
        top_k: The cut of mAP, weighted mAP and MRR; None is the whole database.
        ks: The cuts of precision, recall, hit rate, NDCG and ACG; those beyond the database are left out.
        radius: The Hamming radius of precision and recall within a radius. With ``scoring="asymmetric"``
            there is none, and the report has neither these two metrics nor curves by radius.
        ties: ``"expected"``, ``"stable"``, ``"best"`` or ``"worst"``, see
            :class:`~hybridhash.eval.metrics.MetricOptions`.
        denominator: What average precision is divided by: ``"hits"`` or ``"relevant"``.
        empty: What queries without a relevant item count in all metrics and curves: ``"zero"``, or
            ``"skip"`` to leave them out.
        **options: ``bits``, ``exclude_self``, ``chunk_size``, ``progress``, ``scoring`` and ``metric``, see
            :class:`~hybridhash.eval.histogram.InputOptions`. ``scoring="asymmetric"`` ranks by real-valued
            queries: ``evaluate(outputs, query_labels, database, scoring="asymmetric")``.

    Returns:
        A report; ``print(report)`` shows the numbers with their definition.

    Raises:
        TypeError, ValueError: ``top_k`` or a k below 1, a negative radius, an unknown rule or option, or
            sides that do not fit together, see :func:`hybridhash.eval.histogram.query_database`.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> report = evaluate(query, torch.tensor([0]), database, torch.tensor([0, 1, 0, 0]), top_k=3)
        >>> round(report["map"], 4), report["precision@1"]
        (0.9167, 1.0)
    """
    data = query_database(query_codes, query_labels, database_codes, database_labels, options)
    check_settings(top_k, ks, radius, ties, denominator, empty)
    graded = data.query_labels.ndim == 2
    forms = rank_forms(top_k, ks, ties, denominator, size=len(data.database), graded=graded)
    by_distance = data.real_query is None
    histogram = histogram_of(data, graded=graded) if by_distance or ties == "stable" else None
    pieces: Iterable[DistanceHistogram]
    deepest = None
    if histogram is None:
        pieces = score_histograms(data, graded=graded)
    elif ties == "stable":
        deepest = None if top_k is None else max(top_k, 1, *[k for k in ks if k <= len(data.database)])
        pieces = stable_rankings(data, deepest, graded=graded, totals=histogram.grades)
    else:
        pieces = [histogram]
    ranks = functional.geometric_ranks(len(data.database), deepest, also=ks)
    metrics, curves = rank_results(forms, pieces, ranks, ties, empty)
    if by_distance and histogram is not None:
        curves |= _radius_curves(histogram, empty)
        within = min(radius, data.bits)
        metrics["precision_within_radius"] = curves["precision_by_radius"][within]
        metrics["recall_within_radius"] = curves["recall_by_radius"][within]
    return RetrievalReport(
        queries=len(data.query),
        unlabelled_queries=int((~labelled(data.query_labels)).sum()),
        database=len(data.database),
        bits=data.bits,
        top_k=None if top_k is None else int(top_k),
        radius=int(radius) if by_distance else None,
        ties=ties,
        denominator=denominator,
        empty=empty,
        exclude_self=data.self_rows is not None,
        metrics=metrics,
        curves=curves,
        codes=packed_statistics(data.database, data.bits),
        scoring="hamming" if data.real_query is None else "asymmetric",
        metric=None if data.real_query is None else data.real_query.metric,
        factors=data.factors is not None,
    )


def check_settings(
    top_k: int | None, ks: Sequence[int], radius: int, ties: Ties, denominator: Denominator, empty: Empty
) -> None:
    """Raise TypeError or ValueError unless :func:`evaluate` takes these settings."""
    check_rules(ties, empty)
    check_choice("denominator", denominator, get_args(Denominator))
    check_integer("radius", radius, 0, advice="0 finds equal codes only")
    if top_k is not None:
        check_integer("top_k", top_k, 1, advice="use top_k=None for the whole database")
    if not isinstance(ks, Iterable):
        advice = f": use ks=({ks},)" if isinstance(ks, Integral) else ""  # type: ignore[unreachable]
        raise TypeError(f"ks must be a sequence of cuts, got {ks}{advice}")
    for k in ks:
        check_integer("a cut in ks", k, 1)


def rank_forms(
    top_k: int | None, ks: Sequence[int], ties: Ties, denominator: Denominator, *, size: int, graded: bool
) -> dict[str, Form]:
    """Return the metrics of a report that depend on ranks only, by name."""
    mean_ap = partial(functional.average_precision, top_k=top_k, denominator=denominator)
    forms: dict[str, Form] = {"map": partial(mean_ap, ties=ties)}
    if ties == "expected":
        forms |= {"map_best": partial(mean_ap, ties="best"), "map_worst": partial(mean_ap, ties="worst")}
    if graded:
        forms["weighted_map"] = partial(mean_ap, ties=ties, weighted=True)
    forms["mrr"] = partial(functional.reciprocal_rank, top_k=top_k, ties=ties)
    by_k = {
        "precision": functional.precision,
        "recall": functional.recall,
        "hit_rate": functional.hit_rate,
        "ndcg": functional.ndcg,
    }
    if graded:
        by_k["acg"] = functional.average_cumulative_gain
    for k in sorted({int(k) for k in ks}):
        if k <= size:
            forms |= {f"{name}@{k}": partial(form, top_k=k, ties=ties) for name, form in by_k.items()}
    return forms


def rank_results(
    forms: dict[str, Form],
    pieces: Iterable[DistanceHistogram],
    ranks: list[int],
    ties: Ties,
    empty: Empty,
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return the means of the forms by name, and of precision and recall at each of many ranks."""
    both = [
        partial(functional.precision, top_k=ranks, ties=ties),
        partial(functional.recall, top_k=ranks, ties=ties),
    ]
    values = over_queries([*forms.values(), *both], pieces, empty)
    metrics = values[: len(forms)].tolist()
    precision, recall = values[len(forms) :].chunk(2)
    curves = {
        "rank": [float(rank) for rank in ranks],
        "precision_at_rank": precision.tolist(),
        "recall_at_rank": recall.tolist(),
    }
    return dict(zip(forms, metrics, strict=True)), curves


def _radius_curves(histogram: DistanceHistogram, empty: Empty) -> dict[str, list[float]]:
    forms = [functional.precision_by_radius, functional.recall_by_radius]
    precision, recall = over_queries(forms, [histogram], empty).chunk(2)
    items = histogram.items.sum(0)
    relevant = histogram.relevant.sum(0)
    return {
        "radius": [float(radius) for radius in range(len(items))],
        "precision_by_radius": precision.tolist(),
        "recall_by_radius": recall.tolist(),
        "precision_within_radius": precision.tolist(),
        "relevant_by_distance": relevant.double().tolist(),
        "irrelevant_by_distance": (items - relevant).double().tolist(),
    }
