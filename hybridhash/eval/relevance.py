"""How relevant each database item is to each query, for blocks of pairs and for given pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Relevance"]

Array = npt.NDArray[Any]

# Items whose words are compared at a time, so that they stay in the second-level cache.
_TILE = 1 << 14


class Relevance:
    """Grades of relevance between queries and a database: shared labels, or 0 and 1 if not ``graded``.

    Labels are class ids on both sides, or multi-hot rows on both sides (see
    :func:`hybridhash.eval.inputs.as_sides`). On the CPU multi-hot rows are kept as bits of machine words, and
    only the words in which a query has a label are looked at, so that many classes cost little.

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
        self.words = not self.single and query_labels.device.type == "cpu"
        if self.words:
            self.query_words, self.database_words = _words(query_labels), _words(database_labels)

    def block(self, rows: slice, columns: slice) -> Tensor:
        """Grades of all pairs of some queries and some items: ``(q, n)``, bool, uint8 or int16."""
        if self.single:
            query = self.query[rows, None]
            return (query == self.database[None, columns]) & (query >= 0)
        if not self.words:
            dtype = torch.float16 if self.database.shape[1] <= 2048 else torch.float32  # exact up to there
            query, database = self.query[rows].to(dtype), self.database[columns].to(dtype)
            shared = query @ database.T
            return shared.to(torch.int16) if self.graded else shared > 0
        database_words = self.database_words[:, columns]
        kind = "bool" if not self.graded else "uint8" if self.grades <= 256 else "int16"
        out: Array = np.zeros((self.query[rows].shape[0], database_words.shape[1]), kind)
        buffer = np.empty(_TILE, database_words.dtype)
        for row, words in zip(out, self.query_words[:, rows].T, strict=True):
            for word in np.flatnonzero(words):
                for left in range(0, out.shape[1], _TILE):
                    tile, side = row[left : left + _TILE], database_words[word, left : left + _TILE]
                    both = np.bitwise_and(side, words[word], out=buffer[: len(side)])
                    if self.graded:
                        tile += np.bitwise_count(both)
                    else:
                        tile |= both != 0
        return torch.from_numpy(out)

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


def _words(labels: Tensor) -> Array:
    """Multi-hot rows ``(N, C)`` as bits of machine words ``(words, N)``: of 1, 2 or 4 bytes, else of 8."""
    packed = np.packbits(labels.numpy(), axis=1)
    word = next((size for size in (1, 2, 4) if packed.shape[1] <= size), 8)
    packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % word)))
    return np.ascontiguousarray(packed.view(f"u{word}").T)
