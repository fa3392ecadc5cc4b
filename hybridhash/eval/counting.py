"""The hot path of evaluation: one pass over all pairs that counts items by distance and grade."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hybridhash._hamming import packed_distances
from hybridhash.eval.inputs import Sides
from hybridhash.eval.lanes import MAX_KEYS, DistanceLanes
from hybridhash.eval.relevance import LabelRows, Relevance

__all__ = ["count_pairs"]

# Bytes of temporary tensors on an accelerator, and what a pair takes of them.
_BUDGET, _BYTES_PER_PAIR = 256 << 20, 40
# Pairs of a block on the CPU: enough to make the cost of the calls small.
_CPU_BLOCK = 1 << 22
# Counts of a block: their keys fit an int32, and tables of many short rows stay small.
_TABLE = 1 << 22
# From this length on, rows are counted one by one: less is read and written for each pair.
_LONG_ROW = 1 << 14
# Long rows: bits of the database items at a time, which take 1.4 bytes each, and bytes of a block of keys.
_SPAN, _SPAN_BITS, _KEYS = 1 << 18, 1 << 25, 16 << 20

Array = npt.NDArray[Any]


def count_pairs(sides: Sides, relevance: Relevance, *, chunk_size: int | None = None) -> Tensor:
    """Number of database items at each distance and of each grade, for each query.

    Args:
        sides: codes and labels.
        relevance: grades of the same labels.
        chunk_size: largest number of database items compared at a time; None chooses one. It changes memory
            and speed, never the result.

    Returns:
        int64 ``(Nq, bits + 1, grades)`` on the device of the codes.
    """
    shape = (len(sides.query), sides.bits + 1, relevance.grades)
    chunk = sides.size if chunk_size is None else min(chunk_size, sides.size)
    suits = sides.query.device.type == "cpu" and sys.byteorder == "little"
    if suits and chunk >= _LONG_ROW and shape[1] * shape[2] <= MAX_KEYS:
        return torch.from_numpy(_count_rows(sides, relevance, chunk).reshape(shape))
    return _count_blocks(sides, relevance, chunk).view(shape)


def _count_blocks(sides: Sides, relevance: Relevance, chunk: int) -> Tensor:
    """Short rows and accelerators: query, distance and grade of all pairs of a block in one key."""
    pairs = _CPU_BLOCK if sides.query.device.type == "cpu" else _BUDGET // _BYTES_PER_PAIR
    columns, size = min(chunk, pairs), (sides.bits + 1) * relevance.grades
    counts = torch.zeros((len(sides.query), size), dtype=torch.int64, device=sides.query.device)
    step = max(1, min(pairs // columns, _TABLE // size))
    for top in range(0, len(counts), step):
        rows = slice(top, min(top + step, len(counts)))
        for left in range(0, sides.size, columns):
            span = slice(left, min(left + columns, sides.size))
            keys = packed_distances(sides.query[rows], sides.database[span], sides.bits).to(torch.int32)
            keys.mul_(relevance.grades).add_(relevance.block(rows, span))
            counts[rows] += _bincount_rows(keys, size)
    return counts


def _count_rows(sides: Sides, relevance: Relevance, chunk: int) -> Array:
    """Long rows on the CPU. Queries of equal labels follow each other, to share what depends on these."""
    threads, order = torch.get_num_threads(), relevance.query_order()
    query, query_labels = sides.query[order], relevance.query[order]
    chunk = min(chunk, _SPAN, _SPAN_BITS // sides.bits)
    columns = -(-sides.size // -(-sides.size // chunk))  # in equal parts: no short row at the end
    counts = np.zeros((len(query), (sides.bits + 1) * relevance.grades), np.int64)
    with ThreadPoolExecutor(threads) as pool:
        for left in range(0, sides.size, columns):
            span = slice(left, left + columns)
            lay_out = _ByClass if relevance.single else _ByGrade
            counter = lay_out(sides.database[span], relevance.database[span], sides.bits, relevance.grades)
            step = max(1, _KEYS // counter.lanes.row_bytes)
            for top in range(0, len(query), step):
                # The product runs in the threads of torch; when it is done, as many threads count its rows.
                keys = counter.lanes.keys(query[top : top + step])
                work = [part.chunk(threads) for part in (keys, query_labels[top : top + step])]
                found = map(counter.count, *work) if threads == 1 else pool.map(counter.count, *work)
                counts[order[top : top + step].numpy()] += np.concatenate(list(found))
    return counts


class _ByClass:
    """Counts of items with class ids: all, and the relevant ones, which are put next to each other."""

    def __init__(self, packed: Tensor, labels: Tensor, bits: int, grades: int) -> None:
        self.labels, order = labels.sort()
        self.lanes = DistanceLanes(packed[order], bits)

    def count(self, keys: Tensor, query_labels: Tensor) -> Array:
        """Items by distance and relevance, int64 ``(q, (bits + 1) * 2)``, for queries sorted by class."""
        items = self.lanes.count(keys)
        relevant = np.zeros_like(items)
        classes, sizes = torch.unique_consecutive(query_labels, return_counts=True)
        first, last = (torch.searchsorted(self.labels, classes, right=right) for right in (False, True))
        stop = 0
        for label, size, left, right in torch.stack([classes, sizes, first, last], 1).tolist():
            rows = slice(stop, stop := stop + size)
            if label >= 0 and right > left:
                segment = self.lanes.segment(keys[rows], left, right)
                relevant[rows] = _bincount_rows(segment, items.shape[1]).numpy()
        return np.stack([items - relevant, relevant], axis=2).reshape(len(keys), -1)


class _ByGrade:
    """Counts of items with multi-hot labels: distance and grade in one key."""

    def __init__(self, packed: Tensor, labels: Tensor, bits: int, grades: int) -> None:
        self.lanes, self.graded = DistanceLanes(packed, bits, grades), grades > 2
        self.labels = LabelRows(labels, self.lanes.items)

    def count(self, keys: Tensor, query_labels: Tensor) -> Array:
        """Items by distance and grade, int64 ``(q, (bits + 1) * grades)``; it overwrites the keys."""
        labels, sizes = torch.unique_consecutive(query_labels, return_counts=True, dim=0)
        stop = 0
        for own, size in zip(labels.numpy(), sizes.tolist(), strict=True):
            rows = keys[stop : (stop := stop + size)].numpy().view(np.int64)
            rows += self.labels.shared(own, self.lanes.raises, graded=self.graded)
        return self.lanes.count(keys)


def _bincount_rows(keys: Tensor, size: int) -> Tensor:
    """How often 0..size-1 occur in each row of int32 keys, which it overwrites: int64 ``(q, size)``."""
    queries = keys.shape[0]
    keys += torch.arange(0, queries * size, size, dtype=torch.int32, device=keys.device)[:, None]
    return torch.bincount(keys.flatten(), minlength=queries * size).view(queries, size)
