"""Kernels on codes: packing and correction factors, Hamming distances, their counts and top-k.

They trust their input; :mod:`hybridhash.codes` checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "machine_words",
    "pack_bits",
    "packed_counts",
    "packed_distances",
    "packed_topk",
    "row_factors",
    "unpack_bits",
]

Array: TypeAlias = "np.ndarray[Any, Any]"

_TILE = 1 << 18  # bytes of a tile of distances on the CPU: they stay in the second-level cache
_PAIRS = 1 << 21  # pairs in a block of distances on the CPU, one or two bytes each
_DEVICE_PAIRS = 1 << 24  # elsewhere: about 20 bytes each while they are ranked


def pack_bits(bits: Tensor) -> Tensor:
    """Pack bools eight to a byte, big-endian in the byte and padded on the right with zeros.

    Args:
        bits: bool ``(N, width)``.

    Returns:
        uint8 ``(N, ceil(width / 8))`` on the same device, equal to ``numpy.packbits(bits, axis=-1)``.

    Example:
        >>> pack_bits(torch.tensor([[True, False, True]]))
        tensor([[160]], dtype=torch.uint8)
    """
    if bits.device.type == "cpu":
        return torch.from_numpy(np.packbits(bits.numpy(), axis=1))
    return _pack_by_shifts(bits)


def _pack_by_shifts(bits: Tensor) -> Tensor:
    """Do :func:`pack_bits` in PyTorch, for devices that NumPy does not reach."""
    packed = bits.new_zeros((bits.shape[0], -(-bits.shape[1] // 8)), dtype=torch.uint8)
    for offset in range(min(8, bits.shape[1])):
        column = bits[:, offset::8].to(torch.uint8)
        packed[:, : column.shape[1]] |= column << (7 - offset)
    return packed


def unpack_bits(packed: Tensor, width: int) -> Tensor:
    """Unpack uint8 ``(N, ceil(width / 8))`` to uint8 ``(N, width)`` of 0 and 1; the inverse of pack_bits.

    Example:
        >>> unpack_bits(torch.tensor([[160]], dtype=torch.uint8), 3)
        tensor([[1, 0, 1]], dtype=torch.uint8)
    """
    if packed.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=width))
    return _unpack_by_shifts(packed, width)


def _unpack_by_shifts(packed: Tensor, width: int) -> Tensor:
    """Do :func:`unpack_bits` in PyTorch, for devices that NumPy does not reach."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] >> shifts) & 1).flatten(1)[:, :width]


def row_factors(codes: Tensor) -> Tensor:
    """Compute norm and alignment of each code; see :func:`hybridhash.codes.correction_factors`.

    Args:
        codes: Real-valued ``(N, bits)`` on any device.

    Returns:
        float32 ``(N, 2)``; not finite where a code is not, or its norm is too large.

    Example:
        >>> row_factors(torch.tensor([[3.0, -4.0], [0.0, 0.0]]))
        tensor([[5.0000, 0.9899],
                [0.0000, 1.0000]])
    """
    z = codes.float()
    norm = torch.linalg.vector_norm(z, dim=1)
    # ||z||_1 / (sqrt(bits) ||z||), at most 1 up to rounding
    alignment = (z.abs().sum(1) / (z.shape[1] ** 0.5 * norm)).clamp(max=1.0)
    return torch.stack([norm, alignment.where(norm != 0, 1.0)], dim=1)


def packed_distances(query_packed: Tensor, database_packed: Tensor, bits: int) -> Tensor:
    """Compute the Hamming distances of packed queries to packed database items.

    On the CPU the bits of the exclusive or of machine words are counted, in ``torch.get_num_threads()``
    threads. Elsewhere ±1 matrices are multiplied, in half precision up to 2,048 bits and in single precision
    above: so all sums are whole numbers that the type holds exactly. The whole result is held in memory, so
    callers with many items pass them in chunks.

    Args:
        query_packed: uint8 ``(q, ceil(bits / 8))`` with zero padding bits.
        database_packed: uint8 ``(n, ceil(bits / 8))`` with zero padding bits, on the same device.
        bits: The code length, 1 to 4,096.

    Returns:
        ``(q, n)`` with values 0..bits: uint8 if ``bits <= 255``, else int16.

    Example:
        >>> packed_distances(*torch.tensor([[[0b11000000]], [[0b10100000]]], dtype=torch.uint8), bits=3)
        tensor([[2]], dtype=torch.uint8)
    """
    if query_packed.device.type == "cpu":
        query, database = query_packed.numpy(), database_packed.numpy()
        return torch.from_numpy(_distances_by_count(query, database, bits, torch.get_num_threads()))
    product = _distances_by_product(query_packed, database_packed, bits)
    return product.to(torch.uint8 if bits <= 255 else torch.int16)


def packed_counts(
    query: Array,
    items: Array,
    grade_of: Callable[[int], Array],
    counts: Array,
) -> None:
    """Count the database items at each distance and of each grade of relevance, for each query, on the CPU.

    One row of distances at a time: exclusive or, bit count, and one ``torch.bincount`` of the keys
    ``distance * grades + grade``, which counts bytes as they are (``numpy.bincount`` takes twice as long: it
    first copies them to int64). It runs in one thread: a step takes some microseconds, and two threads that
    share the queries were measured to take 1.6 times as long on idle cores.

    Args:
        query: Codes of all queries as :func:`machine_words`, ``(words, q)``.
        items: Codes of the database as machine words ``(words, n)``; tens of thousands of items, so that what
            belongs to a row stays in the cache.
        grade_of: Returns the grades of all items for the query of a row, unsigned ``(n,)``.
        counts: int64 ``(q, bits + 1, grades)``, which the counts are added to.
    """
    size = counts[0].size
    # In place and in the narrowest type that torch counts. It has unsigned ones of one byte only.
    keys = np.empty(items.shape[1], np.uint8 if size <= 256 else np.min_scalar_type(-size))
    differing = np.empty(items.shape[1], items.dtype)
    for row in range(len(counts)):
        np.bitwise_count(np.bitwise_xor(items[0], query[0, row], out=differing), out=keys)
        for item_words, query_word in zip(items[1:], query[1:, row], strict=True):
            keys += np.bitwise_count(np.bitwise_xor(item_words, query_word, out=differing))
        keys *= counts.shape[2]
        keys += grade_of(row)
        found = torch.bincount(torch.from_numpy(keys), minlength=size)
        counts[row] += found.numpy().reshape(counts.shape[1:])


def packed_topk(
    query_packed: Tensor, database_packed: Tensor, bits: int, top_k: int, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Find the ``top_k`` nearest database items of each query, by distance, equal distances by index.

    This is the default because it needs no other package and breaks ties by index. Where FAISS is installed,
    ``faiss.knn_hamming`` takes the same packed codes and about the same time.

    Args:
        query_packed: uint8 ``(Nq, ceil(bits / 8))`` with zero padding bits, ``Nq >= 1``.
        database_packed: uint8 ``(Nd, ceil(bits / 8))`` with zero padding bits, on the same device.
        bits: The code length, 1 to 4,096.
        top_k: 1 to ``Nd``.
        chunk_size: The largest number of database items compared at a time, but at least ``top_k``.

    Returns:
        ``(distances, indices)``: int16 and int64, both ``(Nq, top_k)``.

    Example:
        >>> packed = torch.tensor([[0b10000000], [0b01000000], [0b11000000]], dtype=torch.uint8)
        >>> packed_topk(packed[:1], packed, bits=2, top_k=2)
        (tensor([[0, 1]], dtype=torch.int16), tensor([[0, 2]]))
    """
    shape, device = (query_packed.shape[0], top_k), query_packed.device
    on_cpu = device.type == "cpu"
    pairs, threads = (_PAIRS, torch.get_num_threads()) if on_cpu else (_DEVICE_PAIRS, 1)
    if chunk_size is None:
        chunk_size = max(1 << 16, pairs // shape[0])
    chunk_size = min(max(chunk_size, top_k), database_packed.shape[0])
    rows = max(1, min(pairs // chunk_size, (1 << 16) // (bits + 1), -(-shape[0] // threads)))
    parts = [slice(start, start + rows) for start in range(0, shape[0], rows)]
    distances = torch.empty(shape, dtype=torch.int16, device=device)
    indices = torch.empty(shape, dtype=torch.int64, device=device)
    if not on_cpu:
        for part in parts:
            best = _topk_by_key(query_packed[part], database_packed, bits, top_k, chunk_size)
            distances[part], indices[part] = best
        return distances, indices

    # NumPy only inside of threads: inference mode and the like belong to the thread that entered them.
    query, database = query_packed.numpy(), database_packed.numpy()
    out = distances.numpy(), indices.numpy()
    inside = threads if len(parts) == 1 else 1  # threads for the parts, or within the only one

    def select(part: slice) -> None:
        best = _topk_by_merge(query[part], database, bits, top_k, chunk_size, inside)
        out[0][part], out[1][part] = best

    _in_threads(select, parts, threads)
    return distances, indices


def _topk_by_merge(
    query: Array, database: Array, bits: int, top_k: int, chunk: int, threads: int
) -> tuple[Array, Array]:
    """Find the nearest of a few queries on the CPU: sort the first items, then merge what is nearer.

    Chunks double in size, so that in any but the worst order about ``k`` items of each are nearer.
    """
    rows, size = query.shape[0], min(chunk, max(4 * top_k, 4096))
    block = _distances_by_count(query, database[:size], bits, threads)
    indices = np.argsort(block, axis=1, kind="stable")[:, :top_k]
    distances = np.take_along_axis(block, indices, axis=1)
    start = block.shape[1]
    while start < database.shape[0]:
        size = min(2 * size, chunk)
        block = _distances_by_count(query, database[start : start + size], bits, threads)
        # A later item at the distance of the k-th loses the tie, so "nearer" is strict.
        row, column = np.divmod(np.flatnonzero(block < distances[:, -1:]), block.shape[1])
        distance = np.concatenate([distances.ravel(), block[row, column]])
        index = np.concatenate([indices.ravel(), column + start])
        row = np.concatenate([np.repeat(np.arange(rows), top_k), row])
        # Stable, so the order of indices survives; on 16 bits NumPy's stable sort is a radix sort.
        order = np.argsort((row * (bits + 1) + distance).astype(np.uint16), kind="stable")
        counts = np.bincount(row, minlength=rows)
        best = order[(np.cumsum(counts) - counts)[:, None] + np.arange(top_k)]
        distances, indices = distance[best], index[best]
        start += block.shape[1]
    return distances, indices


def _topk_by_key(query: Tensor, database: Tensor, bits: int, top_k: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Find the nearest of a few queries on an accelerator: the smallest keys ``distance * Nd + index``."""
    size = database.shape[0]
    best = torch.empty((query.shape[0], 0), dtype=torch.int64, device=query.device)
    for start in range(0, size, chunk):
        distances = _distances_by_product(query, database[start : start + chunk], bits).long()
        index = torch.arange(start, start + distances.shape[1], device=query.device)
        keys = torch.cat([best, distances * size + index], dim=1)
        best = keys.topk(min(top_k, keys.shape[1]), dim=1, largest=False).values
    return best // size, best % size


def _distances_by_product(query: Tensor, database: Tensor, bits: int) -> Tensor:
    """Compute ``(bits - <a, b>) / 2`` over ±1 codes, ``(q, n)``: float16, or float32 above 2,048 bits."""
    # Half precision holds all whole numbers up to 2,048, and the even ones up to 4,096.
    dtype = torch.float16 if bits <= 2048 else torch.float32
    a, b = (unpack_bits(packed, bits).to(dtype).mul_(2).sub_(1) for packed in (query, database))
    # Autocast might make it a bfloat16 product, which is exact up to 256 only.
    with torch.autocast(query.device.type, enabled=False):
        return (a @ b.T).neg_().add_(bits).mul_(0.5)


def _distances_by_count(query: Array, database: Array, bits: int, threads: int) -> Array:
    """Count the differing bits, ``(q, n)``; each thread takes some columns."""
    out = np.empty((query.shape[0], database.shape[0]), np.uint8 if bits <= 255 else np.int16)
    if out.size < _PAIRS // 2:
        threads = 1  # starting them would take longer
    columns = max(1, -(-out.shape[1] // threads))
    words = machine_words(query)

    def count(part: slice) -> None:
        _count_differing_bits(words, machine_words(database[part]), out[:, part])

    _in_threads(count, [slice(i, i + columns) for i in range(0, out.shape[1], columns)], threads)
    return out


def machine_words(packed: Array) -> Array:
    """Return packed rows as machine words ``(words, N)``: one of 4 bytes, or several of 8 (1 if under 4).

    These are the fastest as measured: NumPy counts the bits of single bytes with vector instructions.
    """
    width = packed.shape[1]
    word = 1 if width < 4 else 4 if width == 4 else 8
    if width % word:
        packed = np.pad(packed, ((0, 0), (0, -width % word)))
    return np.ascontiguousarray(np.ascontiguousarray(packed).view(f"u{word}").T)


def _count_differing_bits(query: Array, database: Array, out: Array) -> None:
    """Write the distances of words ``(words, q)`` and ``(words, n)`` to ``out (q, n)``, tile by tile."""
    pairs = _TILE // (query.itemsize + 1)
    columns = max(1, min(pairs, out.shape[1]))
    rows = pairs // columns
    words, counts = np.empty((rows, columns), query.dtype), np.empty((rows, columns), np.uint8)
    # Columns outside: the items of a tile stay in the cache for all queries.
    for left in range(0, out.shape[1], columns):
        for top in range(0, out.shape[0], rows):
            tile = out[top : top + rows, left : left + columns]
            word, count = (buffer[: tile.shape[0], : tile.shape[1]] for buffer in (words, counts))
            for i in range(query.shape[0]):
                queries, items = query[i, top : top + rows, None], database[i, None, left : left + columns]
                np.bitwise_xor(queries, items, out=word)
                if i == 0:
                    np.bitwise_count(word, out=tile)
                else:
                    np.add(tile, np.bitwise_count(word, out=count), out=tile)


def _in_threads(function: Callable[[slice], None], parts: Sequence[slice], threads: int) -> None:
    """Call ``function`` for each part; NumPy lets other threads run while it works."""
    if min(threads, len(parts)) <= 1:
        for part in parts:
            function(part)
        return
    with ThreadPoolExecutor(min(threads, len(parts))) as pool:
        list(pool.map(function, parts))  # raises what a part raised
