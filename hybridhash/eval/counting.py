"""The hot path of evaluation: one pass over all pairs that counts items by distance and grade."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..bits import packed_distances
from .inputs import Sides
from .relevance import Relevance

__all__ = ["count_pairs"]

# Bytes of temporary tensors of one pass, all threads together, and what a pair of a block takes of them.
_BUDGET = 256 << 20
_BYTES_PER_PAIR = {"cpu": 12, "other": 40}
# Pairs of a block on one thread of a CPU: enough to make the cost of the calls small.
_CPU_BLOCK = 1 << 22
# Counts of a block: their keys fit an int32, and tables of many short rows stay small.
_TABLE = 1 << 22
# From this row length on, counting pairs of neighbouring bytes pays for its larger table.
_LONG_ROW = 1 << 14


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
    cpu = sides.query.device.type == "cpu"
    threads = torch.get_num_threads() if cpu else 1
    pairs = _BUDGET // _BYTES_PER_PAIR["cpu" if cpu else "other"] // threads
    pairs = min(pairs, _CPU_BLOCK) if cpu else pairs
    spans = _spans(sides.size, min(sides.size, pairs) if chunk_size is None else chunk_size)
    rows = min(pairs // (spans[0].stop - spans[0].start), -(-len(sides.query) // threads))
    rows = max(1, min(rows, _TABLE // ((sides.bits + 1) * relevance.grades)))
    count, order = _count_rows if cpu else _count_block, None
    if cpu and relevance.single:
        # Sorted by class on both sides, the relevant items of queries of one class are one segment.
        order, items = relevance.query.argsort(), relevance.database.argsort()
        sides = replace(sides, query=sides.query[order], database=sides.database[items])
        relevance = Relevance(relevance.query[order], relevance.database[items], graded=False)
        count = _count_rows_by_class
    elif cpu:
        # Queries of equal labels one after the other: they share their row of grades.
        order = relevance.query.unique(dim=0, return_inverse=True)[1].argsort()
        sides, relevance = replace(sides, query=sides.query[order]), relevance.reordered(order)
    out = torch.zeros(
        (len(sides.query), sides.bits + 1, relevance.grades), dtype=torch.int64, device=sides.query.device
    )

    def work(top: int) -> None:
        part = slice(top, min(top + rows, len(out)))
        for span in spans:
            distances = packed_distances(sides.query[part], sides.database[span], sides.bits)
            out[part] += count(distances, relevance, part, span, sides.bits + 1)

    _for_each(work, range(0, len(out), rows), threads)
    return out if order is None else torch.empty_like(out).index_copy_(0, order, out)


def _spans(size: int, columns: int) -> list[slice]:
    """Slices of the database of at most ``columns`` items; long ones are even, for :func:`_bincount`."""
    if columns > _LONG_ROW:
        columns -= columns % 2
    spans = [slice(left, min(left + columns, size)) for left in range(0, size, columns)]
    last = spans[-1]
    if last.stop - last.start > _LONG_ROW and (last.stop - last.start) % 2:
        spans[-1:] = [slice(last.start, last.stop - 1), slice(last.stop - 1, last.stop)]
    return spans


def _count_rows_by_class(
    distances: Tensor, relevance: Relevance, rows: slice, columns: slice, stride: int
) -> Tensor:
    """Counts for class ids on the CPU, both sides sorted by class."""
    counts = torch.zeros((distances.shape[0], stride, 2), dtype=torch.int64)
    labels = relevance.database[columns]
    classes, sizes = torch.unique_consecutive(relevance.query[rows], return_counts=True)
    first, last = torch.searchsorted(labels, classes), torch.searchsorted(labels, classes, right=True)
    top = 0
    for label, size, left, right in torch.stack([classes, sizes, first, last], 1).tolist():
        if label >= 0 and right > left:
            segment = distances[top : top + size, left:right].to(torch.int32)
            counts[top : top + size, :, 1] = _bincount_block(segment, stride)
        top += size
    if distances.shape[1] < _LONG_ROW:
        total = _bincount_block(distances.to(torch.int32), stride)
    else:
        total = torch.stack([_bincount(row, stride) for row in distances])
    counts[:, :, 0] = total - counts[:, :, 1]
    return counts


def _count_rows(distances: Tensor, relevance: Relevance, rows: slice, columns: slice, stride: int) -> Tensor:
    """Counts for multi-hot labels on the CPU: grade and distance in one key as small as it can be."""
    if distances.shape[1] < _LONG_ROW:
        return _count_block(distances, relevance, rows, columns, stride)
    size = stride * relevance.grades
    counts, labels, grades, keys = [], None, np.empty(0), np.empty(0)
    for query, distance in zip(range(*rows.indices(len(relevance.query))), distances, strict=True):
        # Row by row, what is computed is counted while it is in the cache.
        if labels is None or not torch.equal(labels, relevance.query[query]):
            labels, grades = relevance.query[query], relevance.row(query, columns)
            if size > 256:
                grades = grades.astype(np.int16 if size <= 1 << 15 else np.int32)
            grades = grades * grades.dtype.type(stride)
            keys = np.empty_like(grades)
        np.add(grades, distance.numpy(), out=keys)
        counts.append(_bincount(torch.from_numpy(keys), size))
    return torch.stack(counts).view(-1, relevance.grades, stride).transpose(1, 2)


def _count_block(distances: Tensor, relevance: Relevance, rows: slice, columns: slice, stride: int) -> Tensor:
    """Counts of a block of pairs at once: grade, distance and query in one key."""
    keys = relevance.block(rows, columns).to(torch.int32).mul_(stride).add_(distances)
    counts = _bincount_block(keys, stride * relevance.grades)
    return counts.view(-1, relevance.grades, stride).transpose(1, 2)


def _bincount(keys: Tensor, size: int) -> Tensor:
    """How often each of 0..size-1 occurs in a long row: int64 ``(size,)``."""
    if keys.dtype != torch.uint8 or size > 128 or len(keys) % 2:
        return torch.bincount(keys, minlength=size)
    # Two neighbouring bytes are one int16, first + 256 second (or the reverse): half as many increments.
    table = torch.bincount(keys.view(torch.int16), minlength=256 * size).numpy().reshape(size, 256)[:, :size]
    return torch.from_numpy(np.add.reduce(table, axis=0) + np.add.reduce(table, axis=1))


def _bincount_block(keys: Tensor, size: int) -> Tensor:
    """:func:`_bincount` of each row of int32 keys, which it overwrites, in one call: int64 ``(q, size)``."""
    queries = keys.shape[0]
    keys += torch.arange(0, queries * size, size, dtype=torch.int32, device=keys.device)[:, None]
    return torch.bincount(keys.flatten(), minlength=queries * size).view(queries, size)


def _for_each(work: Callable[[int], None], items: Iterable[int], threads: int) -> None:
    """Run ``work`` on each item, in a pool if there is more than one thread."""
    if threads == 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, items))
