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
from .relevance import Array, Relevance

__all__ = ["count_pairs"]

# Bytes of temporary tensors of one pass, all threads together, and what a pair of a block takes of them.
_BUDGET = 256 << 20
_BYTES_PER_PAIR = {"cpu": 12, "other": 40}
# Pairs of a block on one thread of a CPU: larger blocks leave the cache and are slower, not faster.
_CPU_BLOCK = 1 << 21
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
    columns = min(sides.size, pairs if chunk_size is None else chunk_size)
    count = _count_rows if cpu else _count_block
    if cpu and relevance.single:
        order = relevance.database.argsort()
        sides = replace(sides, database=sides.database[order])
        relevance = Relevance(relevance.query, relevance.database[order], graded=False)
        count = _count_rows_by_class
    rows = max(1, pairs // columns)
    rows = max(1, min(rows, -(-len(sides.query) // threads)))
    out = torch.zeros(
        (len(sides.query), sides.bits + 1, relevance.grades), dtype=torch.int64, device=sides.query.device
    )

    def work(top: int) -> None:
        part = slice(top, min(top + rows, len(out)))
        for left in range(0, sides.size, columns):
            span = slice(left, min(left + columns, sides.size))
            distances = packed_distances(sides.query[part], sides.database[span], sides.bits)
            out[part] += count(distances, relevance, part, span, sides.bits + 1)

    _for_each(work, range(0, len(out), rows), threads)
    return out


def _count_rows_by_class(
    distances: Tensor, relevance: Relevance, rows: slice, columns: slice, stride: int
) -> Tensor:
    """Counts for class ids, the database sorted by class: the relevant items of a query are one segment."""
    counts = torch.zeros((distances.shape[0], stride, 2), dtype=torch.int64)
    labels, query = relevance.database[columns], relevance.query[rows]
    first = torch.searchsorted(labels, query)
    last = torch.where(query >= 0, torch.searchsorted(labels, query, right=True), first)
    ends = (last - first).cumsum(0).tolist()
    keys: Array = np.empty(ends[-1], np.int32)
    start = 0
    table = distances.numpy()
    for row, (left, right, end) in enumerate(zip(first.tolist(), last.tolist(), ends, strict=True)):
        np.add(table[row, left:right], row * stride, out=keys[start:end], dtype=np.int32)
        start = end
    counts[:, :, 1] = torch.bincount(torch.from_numpy(keys), minlength=counts[:, :, 0].numel()).view(
        -1, stride
    )
    counts[:, :, 0] = _bincount_rows(distances, stride) - counts[:, :, 1]
    return counts


def _count_rows(distances: Tensor, relevance: Relevance, rows: slice, columns: slice, stride: int) -> Tensor:
    """Counts for multi-hot labels on the CPU: grade and distance in one key as small as it can be."""
    size = stride * relevance.grades
    grades = relevance.block(rows, columns).numpy()
    if size <= 256:
        keys = np.multiply(grades.view(np.uint8), np.uint8(stride))
        keys += distances.numpy()
    else:
        keys = np.multiply(grades, stride, dtype=np.int16 if size <= 1 << 15 else np.int32)
        keys += distances.numpy()
    counts = _bincount_rows(torch.from_numpy(keys), size)
    return counts.view(-1, relevance.grades, stride).transpose(1, 2)


def _count_block(distances: Tensor, relevance: Relevance, rows: slice, columns: slice, stride: int) -> Tensor:
    """Counts of a block of pairs at once: grade, distance and query in one key."""
    keys = relevance.block(rows, columns).to(torch.int32).mul_(stride).add_(distances)
    counts = _bincount_block(keys, stride * relevance.grades)
    return counts.view(-1, relevance.grades, stride).transpose(1, 2)


def _bincount_rows(keys: Tensor, size: int) -> Tensor:
    """How often each of 0..size-1 occurs in each row: int64 ``(q, size)``."""
    length = keys.shape[1]
    if length < _LONG_ROW:
        return _bincount_block(keys.to(torch.int32), size)
    if keys.dtype != torch.uint8 or size > 128:
        return torch.stack([torch.bincount(row, minlength=size) for row in keys])
    counts: Array = np.empty((keys.shape[0], size), np.int64)
    for count, row in zip(counts, keys.numpy(), strict=True):
        # Two neighbouring bytes are one int16, first + 256 second (or the reverse): half the increments.
        skip = row.ctypes.data % 2
        pairs = row[skip : length - (length - skip) % 2]
        table = torch.bincount(torch.from_numpy(pairs.view(np.int16)), minlength=size * 256).numpy()
        table = table.reshape(size, 256)[:, :size]
        np.add(table.sum(0), table.sum(1), out=count)
        if skip:
            count[row[0]] += 1
        if skip + len(pairs) < length:
            count[row[-1]] += 1
    return torch.from_numpy(counts)


def _bincount_block(keys: Tensor, size: int) -> Tensor:
    """As :func:`_bincount_rows`, for int32 keys that it may overwrite, in one call."""
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
