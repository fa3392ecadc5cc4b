"""Rankings without ties as histograms: tied items in database order, or the answer of an index."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hybridhash._hamming import packed_topk
from hybridhash.eval.histogram import DistanceHistogram, QueryDatabase, histogram_of

__all__ = ["as_rankings", "stable_rankings"]

# Ranks of all queries whose relevance is held at a time, and labels of their items.
_RANKS, _LABELS = 1 << 19, 1 << 24


def stable_rankings(
    data: QueryDatabase, top_k: int | None, *, graded: bool, totals: Tensor | None = None
) -> Iterator[DistanceHistogram]:
    """Rank the database for some queries at a time, tied items in database order, down to ``top_k``.

    Args:
        data: queries and database.
        top_k: how many ranks, None for all.
        graded: count the labels that are shared, not only whether there is one.
        totals: items of each grade for each query, ``grades`` of the distance histogram if it is known.
    """
    depth = data.size if top_k is None else min(top_k, data.size)
    if data.self_rows is not None:
        depth = min(depth + 1, data.size)  # one of them is left out
    if totals is None:
        totals = histogram_of(data, graded=graded).grades
    for rows in _pieces(len(data.query), depth):
        _, indices = packed_topk(data.query[rows], data.database, data.bits, depth, data.chunk_size)
        yield _ranking(indices, data, rows, totals[rows], graded)


def as_rankings(indices: Tensor, data: QueryDatabase, *, graded: bool) -> Iterator[DistanceHistogram]:
    """Give the rankings ``indices (Nq, k)`` of an index, -1 for none, some queries at a time."""
    totals = histogram_of(data, graded=graded).grades
    for rows in _pieces(*indices.shape):
        yield _ranking(indices[rows], data, rows, totals[rows], graded)


def _pieces(queries: int, depth: int) -> Iterator[slice]:
    step = max(1, _RANKS // depth)
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))


def _ranking(
    indices: Tensor, data: QueryDatabase, rows: slice, totals: Tensor, graded: bool
) -> DistanceHistogram:
    """Rankings of the queries ``rows`` as a histogram with one group for each rank.

    Args:
        indices: int64 ``(q, k)``: the database item at each rank, -1 for none.
        data: queries and database.
        rows: which of the queries these are.
        totals: items of each grade in the database, ``(q, grades)``.
        graded: count the labels that are shared, not only whether there is one.
    """
    if data.self_rows is not None:
        indices = indices.masked_fill(indices == data.self_rows[rows, None], -1)
    if bool((indices < 0).any()):  # ranks that hold nothing go last
        indices = indices.gather(1, (indices < 0).byte().argsort(stable=True, dim=1))
    query = data.query_labels[rows]
    if query.ndim == 1:
        grade = (data.database_labels[indices.clamp(min=0)] == query[:, None]) & (query >= 0)[:, None]
    else:
        shared = [
            _shared(own, data.database_labels, items) for own, items in zip(query, indices, strict=True)
        ]
        grade = torch.stack(shared) if graded else torch.stack(shared) > 0
    levels = torch.arange(totals.shape[1], device=grade.device)
    counts = (grade[:, :, None] == levels) & (indices >= 0)[:, :, None]
    return DistanceHistogram(counts, totals)


def _shared(own: Tensor, database_labels: Tensor, items: Tensor) -> Tensor:
    """Number of labels that one query ``own (C,)`` shares with some items: int16 ``(k,)``."""
    classes = own.nonzero()[:, 0]
    step = max(1, _LABELS // len(own))
    parts = torch.split(items.clamp(min=0), step)
    return torch.cat([database_labels[part][:, classes].sum(1, dtype=torch.int16) for part in parts])
