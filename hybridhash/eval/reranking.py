"""Coarse-to-fine search: candidates ordered by real-valued features; the score of any ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_choice, check_integer
from hybridhash._code_checks import from_numpy
from hybridhash.eval import functional
from hybridhash.eval.evaluation import check_settings, rank_forms, rank_results
from hybridhash.eval.functional import Denominator
from hybridhash.eval.histogram import Array, QueryDatabase, as_self_rows, check_rows
from hybridhash.eval.metrics import Empty
from hybridhash.eval.ranking import as_rankings
from hybridhash.eval.report import RetrievalReport
from hybridhash.labels import as_labels, labelled, same_form

__all__ = ["evaluate_ranking", "rerank"]

# Features of candidates that are held at a time.
_FEATURES = 1 << 24

Distance = Literal["euclidean", "cosine", "dot"]


def rerank(
    candidates: Tensor | Array,
    query_features: Tensor | Array,
    database_features: Tensor | Array,
    *,
    top_k: int | None = None,
    distance: Distance = "euclidean",
) -> tuple[Tensor, Tensor]:
    """Order candidates by the distance of real-valued features, the fine level of a coarse-to-fine search.

    Args:
        candidates: Integer ``(Nq, k)`` database rows, as :func:`hybridhash.codes.hamming_topk` or an index
            returns them; -1 for none. To take a Hamming ball as the pool, set those beyond it to -1:
            ``indices.masked_fill(distances > radius, -1)``.
        query_features: Floating ``(Nq, F)``.
        database_features: Floating ``(Nd, F)`` of the same device as ``candidates``.
        top_k: How many to return; None for all.
        distance: ``euclidean``; ``cosine`` (1 - cosine); or ``dot`` (the negative inner product).

    Returns:
        ``(distances, indices)``: float32 and int64 ``(Nq, min(top_k, k))``, nearest first; equal distances in
        the order of the candidates; where there is no candidate, infinity and -1.

    Raises:
        TypeError, ValueError: Shapes that do not fit, candidates out of range or twice in a row, features
            that are not finite numbers, an unknown distance.

    Source: Lin et al., "Deep Learning of Binary Hash Codes for Fast Image Retrieval", CVPR Workshops 2015.

    Example:
        >>> database = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
        >>> rerank(torch.tensor([[1, 2]]), torch.tensor([[0.0, 0.0]]), database)
        (tensor([[1., 5.]]), tensor([[2, 1]]))
    """
    check_choice("distance", distance, get_args(Distance))
    candidates = _as_tensor(candidates, "candidates")
    query_features = _as_tensor(query_features, "query_features")
    database_features = _as_tensor(database_features, "database_features")
    for features, name in ((query_features, "query_features"), (database_features, "database_features")):
        if features.ndim != 2 or not features.dtype.is_floating_point:
            raise ValueError(f"{name} must be floating (N, F), got {features.dtype} {tuple(features.shape)}")
        if not bool(torch.isfinite(features).all()):
            raise ValueError(f"{name} holds NaN or infinity")
    if query_features.shape[1] != database_features.shape[1]:
        raise ValueError(
            f"query_features have {query_features.shape[1]} columns, database_features "
            f"{database_features.shape[1]}"
        )
    check_rows("candidates", candidates, len(query_features), len(database_features))
    candidates = candidates.long()
    _check_distinct("candidates", candidates)
    depth = candidates.shape[1]
    if top_k is not None:
        depth = min(depth, check_integer("top_k", top_k, 1, advice="use None for all candidates"))
    query, database = query_features.detach().float(), database_features.detach()
    if distance == "cosine":
        query = torch.nn.functional.normalize(query, dim=1)
    step = max(1, _FEATURES // max(1, candidates.shape[1] * query.shape[1]))
    found = []
    for start in range(0, max(1, len(candidates)), step):  # without queries: one step that finds nothing
        rows = candidates[start : start + step]
        pool = database[rows.clamp(min=0)].float()
        if distance == "cosine":
            pool = torch.nn.functional.normalize(pool, dim=2)
        one = query[start : start + step, None]
        if distance == "euclidean":
            values = (pool - one).square().sum(2).sqrt()
        else:
            values = (1.0 if distance == "cosine" else 0.0) - (pool * one).sum(2)
        values, order = values.masked_fill(rows < 0, torch.inf).sort(dim=1, stable=True)
        found.append((values[:, :depth], rows.gather(1, order)[:, :depth]))
    return torch.cat([values for values, _ in found]), torch.cat([rows for _, rows in found])


def evaluate_ranking(
    indices: Tensor | Array,
    query_labels: Tensor | Array,
    database_labels: Tensor | Array,
    *,
    top_k: int | None = None,
    ks: Sequence[int] = (1, 5, 10, 100, 1000),
    denominator: Denominator = "hits",
    empty: Empty = "zero",
    exclude_self: bool | Tensor | Array = False,
) -> RetrievalReport:
    """Score a ranking from any index, with or without re-ranking.

    Args:
        indices: Integer ``(Nq, k)``: the database rows found for each query, nearest first; -1 for none.
        query_labels: Class ids ``(Nq,)`` or multi-hot ``(Nq, C)``.
        database_labels: Class ids ``(Nd,)`` or multi-hot ``(Nd, C)`` of the whole database.
        top_k: The cut of mAP, weighted mAP and MRR; None for the whole ranking.
        ks: The cuts of the other metrics; those beyond the ranking are left out.
        denominator: ``hits`` or ``relevant``.
        empty: ``zero`` or ``skip``.
        exclude_self: Leave each query out of its own ranking, for queries that are items of the database:
            int64 ``(Nq,)``, the database row of each query, -1 for a query that is not in the database.

    Returns:
        The report of :func:`hybridhash.eval.evaluate`, without what needs codes.

    Raises:
        TypeError, ValueError: Shapes that do not fit, rows out of range or found twice by a query, ``top_k``
            beyond the ranking, an unknown rule.

    Example:
        >>> report = evaluate_ranking(torch.tensor([[2, 0, 1]]), torch.tensor([1]), torch.tensor([0, 1, 1]))
        >>> round(report["map"], 4)
        0.8333
    """
    indices = _as_tensor(indices, "indices")
    query = as_labels(query_labels, name="query_labels").to(indices.device)
    database = as_labels(database_labels, name="database_labels").to(indices.device)
    if len(query) == 0 or len(database) == 0:
        raise ValueError(
            f"a ranking needs at least one query and one database item, got labels of {len(query)} and "
            f"{len(database)}"
        )
    check_rows("indices", indices, len(query), len(database))
    query, database = same_form(query, database)
    indices = indices.long()
    _check_distinct("indices", indices)
    self_rows = None
    if exclude_self is True:
        raise ValueError("a ranking has no ids: give exclude_self the database row of each query")
    if exclude_self is not False and exclude_self is not None:
        self_rows = as_self_rows(exclude_self, len(query), len(database)).to(indices.device)
    depth = indices.shape[1]
    check_settings(top_k, ks, 0, "stable", denominator, empty)
    if top_k is not None and top_k > depth and depth < len(database):
        raise ValueError(f"top_k={top_k}, but the ranking has only {depth} ranks: search deeper")
    graded = query.ndim == 2
    cut = min(depth, len(database)) if top_k is None else top_k
    forms = rank_forms(cut, ks, "stable", denominator, size=depth, graded=graded)
    # There are no codes: give all items the same one.
    no_codes = torch.zeros((len(query), 1), dtype=torch.uint8, device=indices.device)
    all_codes = torch.zeros((len(database), 1), dtype=torch.uint8, device=indices.device)
    data = QueryDatabase(no_codes, all_codes, 1, query, database, self_rows)
    pieces = as_rankings(indices, data, graded=graded)
    ranks = functional.geometric_ranks(depth, also=ks)
    metrics, curves = rank_results(forms, pieces, ranks, "expected", empty)
    return RetrievalReport(
        queries=len(query),
        unlabelled_queries=int((~labelled(query)).sum()),
        database=len(database),
        bits=None,
        top_k=int(cut),
        radius=None,
        ties="none",
        denominator=denominator,
        empty=empty,
        exclude_self=self_rows is not None,
        metrics=metrics,
        curves=curves,
        scoring="none",
    )


def _as_tensor(values: Tensor | Array, name: str) -> Tensor:
    if isinstance(values, np.ndarray):
        return from_numpy(values, name)
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(values).__name__}: wrap it in torch.as_tensor")
    return values


def _check_distinct(name: str, rows: Tensor) -> None:
    """Raise ValueError if a query has a database row twice."""
    in_order = rows.sort(dim=1).values
    if bool(((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any()):
        raise ValueError(f"{name} hold a database row twice for the same query: a ranking has each item once")
