"""Rankings as histograms: tied items in database order, the answer of an index, or real-valued scores."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
from torch import Tensor

from hybridhash._hamming import packed_topk
from hybridhash.asymmetric import nearest
from hybridhash.eval.functional import Ties
from hybridhash.eval.histogram import DistanceHistogram, QueryDatabase, histogram_of

__all__ = ["as_rankings", "ranked_histograms", "score_histograms", "stable_rankings"]

# Ranks of all queries whose relevance is held at a time.
_RANKS = 1 << 17
# Scores of all items that are held at a time, if real-valued queries rank the database: 100 bytes each.
_SCORES = 1 << 20


def ranked_histograms(
    data: QueryDatabase, ties: Ties, depth: int | None, *, graded: bool
) -> Iterator[DistanceHistogram]:
    """Yield what metrics are computed of: one histogram of distances, or rankings of some queries each.

    Args:
        data: Queries and database.
        ties: The rule for ties; ``"stable"`` needs rankings.
        depth: How many ranks of them, None for all.
        graded: Count the labels that are shared, not only whether there is one.
    """
    if ties == "stable":
        yield from stable_rankings(data, depth, graded=graded)
    elif data.real_query is not None:
        yield from score_histograms(data, graded=graded)
    else:
        yield histogram_of(data, graded=graded)


def stable_rankings(
    data: QueryDatabase, top_k: int | None, *, graded: bool, totals: Tensor | None = None
) -> Iterator[DistanceHistogram]:
    """Rank the database for some queries at a time, tied items in database order, down to ``top_k``.

    Args:
        data: Queries and database.
        top_k: How many ranks, None for all.
        graded: Count the labels that are shared, not only whether there is one.
        totals: Items of each grade for each query, ``grades`` of the distance histogram if it is known.
    """
    depth = len(data.database) if top_k is None else min(top_k, len(data.database))
    if data.self_rows is not None:
        depth = min(depth + 1, len(data.database))  # one of them is left out
    if totals is None and depth < len(data.database):
        totals = histogram_of(data, graded=graded).grades
    pieces = list(_pieces(len(data.query), depth))
    for rows in tqdm(pieces, desc="rank", unit="chunk", disable=not data.progress):  # type: ignore[no-untyped-call]
        if data.real_query is None:
            _, indices = packed_topk(data.query[rows], data.database, data.bits, depth, data.chunk_size)
        else:
            _, indices = nearest(data.real_query[rows], data.database, data.factors, depth)
        yield _ranking(indices, data, rows, None if totals is None else totals[rows], graded)


def as_rankings(indices: Tensor, data: QueryDatabase, *, graded: bool) -> Iterator[DistanceHistogram]:
    """Give the rankings ``indices (Nq, k)`` of an index, -1 for none, some queries at a time."""
    totals = histogram_of(data, graded=graded).grades
    for rows in _pieces(*indices.shape):
        yield _ranking(indices[rows], data, rows, totals[rows], graded)


def score_histograms(data: QueryDatabase, *, graded: bool) -> Iterator[DistanceHistogram]:
    """Rank the database by the scores of some real-valued queries at a time; equal scores are tie groups.

    A group stands where a Hamming distance stands in a distance histogram, so that all closed forms hold.
    Scores without a tie give a ranking, which is one group for each rank.
    """
    assert data.real_query is not None
    pieces = list(_pieces(len(data.query), len(data.database), _SCORES))
    for rows in tqdm(pieces, desc="rank", unit="chunk", disable=not data.progress):  # type: ignore[no-untyped-call]
        keys = data.real_query[rows].all_keys(data.database, data.factors)
        if data.self_rows is not None:
            own = data.self_rows[rows]
            found = (own >= 0).nonzero()[:, 0]
            keys[found, own[found]] = torch.inf  # the query itself is the last, and then left out
        keys, indices = keys.sort(dim=1)
        ranking = _ranking(indices, data, rows, None, graded)
        differs = keys[:, 1:] != keys[:, :-1]
        if bool(differs.all()):
            yield ranking
            continue
        group = torch.nn.functional.pad(differs.long().cumsum(1), (1, 0))
        shape = (len(group), int(group.max()) + 1, ranking.counts.shape[2])
        counts = torch.zeros(shape, dtype=torch.int64, device=group.device)
        counts.scatter_add_(1, group[:, :, None].expand_as(ranking.counts), ranking.counts.long())
        yield DistanceHistogram(counts, ranking.grades)


def _pieces(queries: int, depth: int, ranks: int = _RANKS) -> Iterator[slice]:
    step = max(1, ranks // depth)
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))


def _ranking(
    indices: Tensor, data: QueryDatabase, rows: slice, totals: Tensor | None, graded: bool
) -> DistanceHistogram:
    """Return rankings of the queries ``rows`` as a histogram with one group for each rank.

    Args:
        indices: int64 ``(q, k)``: the database item at each rank, -1 for none.
        data: Queries and database.
        rows: Which of the queries these are.
        totals: Items of each grade in the database, ``(q, grades)``; None if these rankings hold all.
        graded: Count the labels that are shared, not only whether there is one.
    """
    if data.self_rows is not None:
        indices = indices.masked_fill(indices == data.self_rows[rows, None], -1)
    gaps = bool((indices < 0).any())
    if gaps:  # ranks that hold nothing go last
        indices = indices.gather(1, (indices < 0).byte().argsort(stable=True, dim=1))
    items = indices.clamp(min=0) if gaps else indices
    query = data.query_labels[rows]
    if query.ndim == 1:
        labels = data.database_labels.index_select(0, items.flatten()).view(items.shape)
        grade = labels == query.masked_fill(query < 0, -2)[:, None]  # two times -1 is no common label
    else:
        pairs = zip(query, items, strict=True)
        grade = torch.stack([_shared(own, data.database_labels, row) for own, row in pairs])
    if graded and query.ndim == 2:
        grades = int(grade.max()) + 1 if totals is None else totals.shape[1]
        counts = grade[:, :, None] == torch.arange(max(2, grades), device=grade.device)
    else:
        relevant = grade.bool()
        counts = torch.stack([~relevant, relevant], 2)
    if gaps:
        counts &= (indices >= 0)[:, :, None]
    return DistanceHistogram(counts, counts.sum(1) if totals is None else totals, is_ranking=True)


def _shared(own: Tensor, database_labels: Tensor, items: Tensor) -> Tensor:
    """Count the labels that one query ``own (C,)`` shares with some items: int16 ``(k,)``."""
    # For most items of the database, add in its order, which reads its labels in theirs.
    most = 4 * len(items) > len(database_labels)
    labels = database_labels if most else database_labels.index_select(0, items)
    shared = torch.zeros(len(labels), dtype=torch.int16, device=labels.device)
    for column in own.nonzero()[:, 0].tolist():
        shared += labels[:, column]
    return shared.index_select(0, items) if most else shared
