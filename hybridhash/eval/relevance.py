"""How relevant each database item is to each query, for blocks of pairs and for given pairs."""

from __future__ import annotations

from functools import cached_property, reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hybridhash.eval.inputs import most_labels

__all__ = ["LabelRows", "Relevance"]

Array = npt.NDArray[Any]

_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)


class Relevance:
    """Grades of relevance between queries and a database: shared labels, or 0 and 1 if not ``graded``.

    Labels are class ids on both sides, or multi-hot rows on both sides (see
    :func:`hybridhash.eval.inputs.as_sides`).

    Attributes:
        grades: number of grades ``G``; grades are 0..G-1.
    """

    def __init__(self, query_labels: Tensor, database_labels: Tensor, *, graded: bool) -> None:
        self.query, self.database, self.graded = query_labels, database_labels, graded
        self.single = query_labels.ndim == 1
        shared = (
            1
            if self.single or not graded
            else min(most_labels(labels) for labels in (query_labels, database_labels))
        )
        self.grades = 1 + max(1, shared)

    @cached_property
    def items(self) -> LabelRows:
        """The database by label: multi-hot labels on the CPU."""
        return LabelRows(self.database)

    def query_order(self) -> Tensor:
        """An order in which queries of equal labels follow each other: int64 ``(q,)``."""
        if self.single:
            return self.query.argsort()
        rank: Tensor = torch.unique(self.query, dim=0, return_inverse=True)[1]
        return rank.argsort()

    def block(self, rows: slice, columns: slice) -> Tensor:
        """Grades of all pairs of some queries and some items: a new uint8 ``(q, n)``, or int16 if needed."""
        if self.single:
            query = self.query[rows, None]
            return ((query == self.database[None, columns]) & (query >= 0)).byte()
        dtype = torch.uint8 if self.grades <= 256 else torch.int16
        if self.query.device.type != "cpu":
            kind = torch.float16 if self.database.shape[1] <= 2048 else torch.float32  # exact up to there
            shared = self.query[rows].to(kind) @ self.database[columns].to(kind).T
            return shared.to(dtype) if self.graded else (shared > 0).to(dtype)
        return torch.from_numpy(np.stack([self._row(own, columns) for own in self.query[rows].numpy()]))

    def _row(self, own: Array, columns: slice) -> Array:
        """Grades of some items for a query of the labels ``own (C,)``: uint8 ``(n,)``, or int16 if needed."""
        left, right, _ = columns.indices(self.database.shape[0])
        table = _BITS_OF_BYTE.astype(np.uint8 if self.grades <= 256 else np.int16)
        grades = self.items.shared(own, table, graded=self.graded, part=slice(left // 8, -(-right // 8)))
        return grades.reshape(-1)[left % 8 :][: right - left]

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


class LabelRows:
    """The items of a database that have each label, as bits of a row: many classes cost little.

    Only the rows of a query's own labels are looked at.
    """

    def __init__(self, labels: Tensor, items: int = 8) -> None:
        """Pack multi-hot rows, bool ``(N, C)`` on the CPU, ``items`` to a byte from the highest bit on."""
        size, classes = labels.shape
        self._rows = np.zeros((classes, -(-size // items)), np.uint8)
        step = items << 12
        for start in range(0, size, step):
            part = labels[start : start + step].numpy().view(np.uint8)
            part = np.pad(part, ((0, -len(part) % items), (0, 0))).reshape(-1, items, classes)
            rows = self._rows[:, start // items :][:, : len(part)]
            for place in range(items):
                rows |= part[:, place].T << (7 - place)

    def shared(self, own: Array, table: Array, *, graded: bool, part: slice = slice(None)) -> Array:
        """Which items share a label with a query of the labels ``own (C,)``, as ``table`` says it of a byte.

        Returns:
            ``table[byte]`` for each byte of ``part``; if ``graded``, its sum over the labels that are shared.
        """
        rows = [self._rows[label, part] for label in np.flatnonzero(own)]
        if not rows:
            return np.repeat(table[:1], len(self._rows[0, part]), axis=0)
        if not graded:
            rows = [reduce(np.bitwise_or, rows)]
        # In a third of the time of np.unpackbits, and of table[row].
        return reduce(np.add, (np.take(table, row, axis=0, mode="clip") for row in rows))
