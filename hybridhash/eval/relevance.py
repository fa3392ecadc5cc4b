"""How relevant each database item is to each query, for blocks of pairs and for given pairs."""

from __future__ import annotations

from copy import copy
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Relevance"]

Array = npt.NDArray[Any]

# The eight bits of each byte, as the eight bytes of one word.
_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).view(np.uint64)[:, 0]


class Relevance:
    """Grades of relevance between queries and a database: shared labels, or 0 and 1 if not ``graded``.

    Labels are class ids on both sides, or multi-hot rows on both sides (see
    :func:`hybridhash.eval.inputs.as_sides`). On the CPU the items of each class are kept as bits of a row,
    and only the rows of a query's own labels are looked at, so that many classes cost little.

    Attributes:
        grades: number of grades ``G``; grades are 0..G-1.
    """

    def __init__(self, query_labels: Tensor, database_labels: Tensor, *, graded: bool) -> None:
        self.query, self.database, self.graded = query_labels, database_labels, graded
        self.single = query_labels.ndim == 1
        shared = (
            1
            if self.single or not graded
            else min(int(labels.sum(1).max()) for labels in (query_labels, database_labels))
        )
        self.grades = 1 + max(1, shared)
        self.items: Array | None = None
        if not self.single and query_labels.device.type == "cpu":
            self.items = _pack_columns(database_labels)

    def reordered(self, queries: Tensor) -> Relevance:
        """The same grades, for the queries in another order."""
        other = copy(self)
        other.query = self.query[queries]
        return other

    def block(self, rows: slice, columns: slice) -> Tensor:
        """Grades of all pairs of some queries and some items: a new uint8 ``(q, n)``, or int16 if needed."""
        if self.single:
            query = self.query[rows, None]
            return ((query == self.database[None, columns]) & (query >= 0)).byte()
        dtype = torch.uint8 if self.grades <= 256 else torch.int16
        if self.items is None:
            kind = torch.float16 if self.database.shape[1] <= 2048 else torch.float32  # exact up to there
            shared = self.query[rows].to(kind) @ self.database[columns].to(kind).T
            return shared.to(dtype) if self.graded else (shared > 0).to(dtype)
        queries = range(*rows.indices(self.query.shape[0]))
        return torch.from_numpy(np.stack([self.row(query, columns) for query in queries]))

    def row(self, query: int, columns: slice) -> Array:
        """Grades of some items for one query, of multi-hot labels on the CPU: uint8 ``(n,)``, or int16."""
        assert self.items is not None
        left, right, _ = columns.indices(self.database.shape[0])
        bytes_, bits = slice(left // 8, -(-right // 8)), slice(left % 8, left % 8 + right - left)
        shared = [self.items[label, bytes_] for label in self.query[query].nonzero()[:, 0].tolist()]
        if not shared:
            return np.zeros(right - left, np.uint8)
        if not self.graded:
            return _unpack(reduce(np.bitwise_or, shared))[bits]
        grades: Array = np.zeros(right - left, np.uint8 if self.grades <= 256 else np.int16)
        for label in shared:
            grades += _unpack(label)[bits]
        return grades

    def pairs(self, rows: slice, indices: Tensor) -> Tensor:
        """Grades of the items ``indices (q, k)`` of each query: int64 ``(q, k)``; 0 where an index is -1."""
        found = indices >= 0
        indices = indices.clamp(min=0)
        if self.single:
            query = self.query[rows, None]
            shared = ((self.database[indices] == query) & (query >= 0)).long()
        else:
            shared = torch.zeros_like(indices)
            # Class by class: no (q, k, C) tensor.
            for label in self.query[rows].any(0).nonzero()[:, 0].tolist():
                shared += self.database[:, label][indices] & self.query[rows, label, None]
        return (shared if self.graded else shared.clamp(max=1)) * found

    def totals(self, rows: slice, *, chunk: int = 1 << 20) -> Tensor:
        """Items of each grade in the database: int64 ``(q, grades)``."""
        if self.single:
            classes = int(torch.maximum(self.database.max(), self.query.max())) + 1
            sizes = torch.bincount(self.database[self.database >= 0], minlength=max(1, classes))
            query = self.query[rows]
            relevant = torch.where(query >= 0, sizes[query.clamp(min=0)], 0)
            return torch.stack([self.database.shape[0] - relevant, relevant], 1)
        queries = range(self.query.shape[0])[rows]
        counts = torch.zeros((len(queries), self.grades), dtype=torch.int64, device=self.query.device)
        for place, row in enumerate(queries):
            for start in range(0, self.database.shape[0], chunk):
                grade = self.block(slice(row, row + 1), slice(start, start + chunk))[0]
                counts[place] += torch.bincount(grade.to(torch.int16), minlength=self.grades)
        return counts


def _unpack(packed: Array) -> Array:
    """``np.unpackbits`` of a row, in a third of the time."""
    return np.take(_BITS_OF_BYTE, packed, mode="clip").view(np.uint8)


def _pack_columns(labels: Tensor, rows: int = 1 << 16) -> Array:
    """Multi-hot rows ``(N, C)`` as the bits of ``(C, ceil(N / 8))``, without a copy of them all."""
    packed = np.empty((labels.shape[1], -(-labels.shape[0] // 8)), np.uint8)
    for start in range(0, labels.shape[0], rows):
        part = labels[start : start + rows].numpy()
        packed[:, start // 8 : -(-(start + len(part)) // 8)] = np.packbits(part, axis=0).T
    return packed
