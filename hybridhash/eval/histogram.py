"""The one thing every retrieval metric is computed from: how many items lie at each Hamming distance.

A query meets the database in blocks of equal distance (ties). How many items of each relevance grade a block
holds decides every metric, whatever the order of the database. A ranking without ties (database order inside
equal distances, or the answer of an index) is the same thing with one item in each block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hybridhash._hamming import packed_topk, unpack_bits
from hybridhash.codes import HashCodes
from hybridhash.eval.counting import count_pairs
from hybridhash.eval.inputs import Sides, as_sides, check_chunk_size
from hybridhash.eval.relevance import Relevance

__all__ = [
    "DistanceHistogram",
    "distance_histogram",
    "histogram_of",
    "ranked",
    "ranking_chunks",
    "ranking_of",
]

# Counts (blocks of one item, times grades) of rankings that are held at a time.
_RANKED = 1 << 20


@dataclass(frozen=True)
class DistanceHistogram:
    """Items of each relevance grade in each block of a ranking, for several queries.

    Attributes:
        counts: int64 ``(Nq, blocks, grades)``; ``counts[q, d, g]`` items of block ``d`` share ``g`` labels
            with query ``q``. Blocks are in the order of retrieval: Hamming distances 0..bits, or the ranks of
            a given order. Where only relevance is counted there are two grades, 0 and 1.
        grades: int64 ``(Nq, grades)``: items of each grade in the whole database; more than ``counts`` sums
            to if the blocks are only the head of a ranking.
    """

    counts: Tensor
    grades: Tensor

    def __len__(self) -> int:
        """Number of queries."""
        return self.counts.shape[0]

    @cached_property
    def items(self) -> Tensor:
        """Items in each block: int64 ``(Nq, blocks)``."""
        return self.counts.sum(2)

    @cached_property
    def relevant(self) -> Tensor:
        """Items in each block that share at least one label with the query: int64 ``(Nq, blocks)``."""
        return self.counts[:, :, 1:].sum(2)

    @property
    def total_items(self) -> Tensor:
        """Items in the database: int64 ``(Nq,)``."""
        return self.grades.sum(1)

    @property
    def total_relevant(self) -> Tensor:
        """Relevant items in the database: int64 ``(Nq,)``."""
        return self.grades[:, 1:].sum(1)

    def gains(self, *, exponential: bool = False) -> Tensor:
        """Sum in each block of the number of shared labels r, or of 2^r - 1: float64 ``(Nq, blocks)``."""
        return self.counts.double() @ self.gain_values(exponential=exponential)

    def gain_values(self, *, exponential: bool = False) -> Tensor:
        """What an item of each grade is worth, r or 2^r - 1: float64 ``(grades,)``."""
        grade = torch.arange(self.counts.shape[2], dtype=torch.float64, device=self.counts.device)
        return torch.exp2(grade) - 1 if exponential else grade

    def sorted_ties(self, *, best: bool) -> DistanceHistogram:
        """The same ranking with each block split by grade: high grades first (``best``) or last.

        Returns:
            A histogram of ``blocks * grades`` blocks in which all items of a block have the same grade.

        Example:
            >>> histogram = DistanceHistogram(torch.tensor([[[3, 1]]]), torch.tensor([[3, 1]]))
            >>> histogram.sorted_ties(best=True).counts
            tensor([[[0, 1],
                     [3, 0]]])
        """
        split = torch.diag_embed(self.counts)
        if best:
            split = split.flip(2)
        return DistanceHistogram(split.flatten(1, 2), self.grades)

    def __getitem__(self, queries: slice | Tensor) -> DistanceHistogram:
        """The histogram of some of the queries."""
        return DistanceHistogram(self.counts[queries], self.grades[queries])


def distance_histogram(
    query_codes: Tensor | HashCodes,
    query_labels: Tensor | HashCodes | None = None,
    database_codes: Tensor | HashCodes | None = None,
    database_labels: Tensor | None = None,
    *,
    graded: bool = False,
    bits: int | None = None,
    exclude_self: bool | Tensor = False,
    chunk_size: int | None = None,
) -> DistanceHistogram:
    """Items of each relevance grade at each Hamming distance 0..bits, for each query, in one pass.

    Needs at most 256 MiB above its inputs and outputs, for any size of the database.

    Args:
        query_codes: see :func:`hybridhash.eval.inputs.as_sides`, which checks the first four arguments,
            ``bits`` and ``exclude_self``.
        query_labels: class ids ``(Nq,)`` or multi-hot ``(Nq, C)``.
        database_codes: codes of the ``Nd`` database items.
        database_labels: class ids ``(Nd,)`` or multi-hot ``(Nd, C)``.
        graded: count items by the number of labels shared with the query, not only as relevant or not.
        bits: code length; needed only if both sides are packed tensors.
        exclude_self: leave each query out of its own ranking.
        chunk_size: largest number of database items compared at a time; it never changes the result.

    Returns:
        The histogram, on the device of the codes.

    Raises:
        TypeError, ValueError: as :func:`hybridhash.eval.inputs.as_sides`.

    Example:
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, -1], [-1, -1]])
        >>> histogram = distance_histogram(query, torch.tensor([0]), database, torch.tensor([0, 0, 1, 0]))
        >>> histogram.items, histogram.relevant
        (tensor([[1, 1, 2]]), tensor([[1, 1, 1]]))
    """
    sides = as_sides(
        query_codes, query_labels, database_codes, database_labels, bits=bits, exclude_self=exclude_self
    )
    return histogram_of(sides, graded=graded, chunk_size=chunk_size)


def histogram_of(sides: Sides, *, graded: bool, chunk_size: int | None = None) -> DistanceHistogram:
    """:func:`distance_histogram` of checked inputs."""
    relevance = Relevance(sides.query_labels, sides.database_labels, graded=graded)
    counts = count_pairs(sides, relevance, chunk_size=check_chunk_size(chunk_size))
    if sides.own is not None:
        rows = (sides.own >= 0).nonzero()[:, 0]
        query, item = sides.query[rows], sides.database[sides.own[rows]]
        distance = (unpack_bits(query, sides.bits) != unpack_bits(item, sides.bits)).sum(1)
        grade = relevance.pairs(slice(None), sides.own[:, None])[rows, 0]
        counts[rows, distance, grade] -= 1
    return DistanceHistogram(counts, counts.sum(1))


def ranking_of(
    sides: Sides, top_k: int | None, *, graded: bool, chunk_size: int | None = None
) -> Iterator[DistanceHistogram]:
    """The rankings of checked inputs, ties in database order, one item per block; some queries at a time."""
    relevance = Relevance(sides.query_labels, sides.database_labels, graded=graded)
    check_chunk_size(chunk_size)
    depth = sides.size if top_k is None else min(top_k, sides.size)
    if sides.own is not None:
        depth = min(depth + 1, sides.size)
    for rows in ranking_chunks(len(sides.query), depth, relevance.grades):
        _, indices = packed_topk(sides.query[rows], sides.database, sides.bits, depth, chunk_size)
        yield ranked(indices, relevance, rows, None if sides.own is None else sides.own[rows])


def ranking_chunks(queries: int, depth: int, grades: int) -> Iterator[slice]:
    """Slices of queries whose rankings of ``depth`` items are held at a time."""
    step = max(1, _RANKED // (depth * grades))
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))


def ranked(indices: Tensor, relevance: Relevance, rows: slice, own: Tensor | None) -> DistanceHistogram:
    """Rankings as a histogram with one item per block.

    Args:
        indices: int64 ``(q, k)``: the database item at each rank, -1 for none.
        relevance: grades of all queries.
        rows: which of them the rankings belong to.
        own: int64 ``(q,)``: an item to leave out of each ranking, -1 for none; or None.
    """
    totals = relevance.totals(rows)
    if own is not None:
        own = own[:, None]
        totals = totals.scatter_add(1, relevance.pairs(rows, own), -(own >= 0).long())
        indices = indices.masked_fill(indices == own, -1)
    # Ranks that hold nothing go last.
    indices = indices.gather(1, (indices < 0).byte().argsort(stable=True, dim=1))
    grades = torch.nn.functional.one_hot(relevance.pairs(rows, indices), relevance.grades)
    return DistanceHistogram(grades * (indices >= 0)[:, :, None], totals)
