"""Binary codes: bits and how they are packed, exact Hamming distances and top-k, and the HashCodes container.

Everywhere in the package ``packed`` codes are ``uint8 (N, ceil(bits / 8))``: big-endian inside a byte as
:func:`numpy.packbits` writes them, padded on the right with zero bits. Bit 1 means ``code > 0``; a code of
exactly 0 is bit 0. This is the layout that FAISS, usearch (``b1``), Milvus and pgvector take.
"""

from __future__ import annotations

import operator
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = [
    "MAX_BITS",
    "HashCodes",
    "as_packed",
    "as_packed_pair",
    "binarize",
    "hamming_distance",
    "hamming_topk",
    "pack_codes",
    "packed_distances",
    "unpack_codes",
]

MAX_BITS = 512

_FORMAT, _VERSION = "hybridhash.codes", "1"
_PAIRS = 1 << 21  # pairs of a block of distances: 2 MiB of them on the CPU
_TILE = 1 << 15  # pairs of a tile of the CPU kernel: its words stay in the second-level cache


def binarize(codes: Tensor) -> Tensor:
    """Binary codes of real-valued ones: +1 where ``code > 0``, -1 elsewhere (so 0 gives -1, infinities their sign).

    Args:
        codes: ``(..., bits)`` of any real dtype except uint8, which means packed codes here.

    Returns:
        A new tensor of the same shape with values -1 and +1: in the dtype of ``codes`` if that is floating,
        else int8. It carries no gradient.

    Raises:
        TypeError: not a tensor, complex, or uint8.
        ValueError: a code is NaN.

    Example:
        >>> binarize(torch.tensor([[0.3, -2.0, 0.0, 0.1]]))
        tensor([[ 1., -1., -1.,  1.]])
    """
    _check_unpacked(codes)
    _check_not_nan(codes, "codes")
    dtype = codes.dtype if codes.dtype.is_floating_point else torch.int8
    return (codes.detach() > 0).to(dtype).mul_(2).sub_(1)


def pack_codes(codes: Tensor) -> Tensor:
    """Pack codes to bits, eight to a byte, as ``numpy.packbits(codes > 0, axis=-1)`` does.

    Args:
        codes: ``(N, bits)`` real-valued or ±1, any real dtype except uint8; 1 to 512 bits.

    Returns:
        uint8 ``(N, ceil(bits / 8))`` on the device of ``codes``.

    Raises:
        TypeError: not a tensor, complex, or uint8 (packed already).
        ValueError: not ``(N, bits)``, too few or too many bits, or a code is NaN.

    Example:
        >>> pack_codes(torch.tensor([[1.0, -1, -1, -1, -1, -1, -1, 1, 1]]))
        tensor([[129, 128]], dtype=torch.uint8)
    """
    return _pack(codes, "codes")


def unpack_codes(packed: Tensor, bits: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """The ±1 codes that packed bits stand for; inverse of :func:`pack_codes`.

    Args:
        packed: uint8 ``(N, ceil(bits / 8))`` with zero padding bits.
        bits: code length, 1 to 512.
        dtype: dtype of the result: floating, or a signed integer.

    Returns:
        ``(N, bits)`` of ``dtype`` with values -1 and +1, on the device of ``packed``.

    Raises:
        TypeError: ``packed`` is not a uint8 tensor, ``bits`` not an integer, or ``dtype`` cannot hold -1.
        ValueError: the shape does not fit ``bits``, or a padding bit is set.

    Example:
        >>> unpack_codes(torch.tensor([[0b10100000]], dtype=torch.uint8), 3)
        tensor([[ 1., -1.,  1.]])
    """
    if dtype in (torch.bool, torch.uint8) or dtype.is_complex or (not dtype.is_signed):
        raise TypeError(f"dtype must hold -1 and +1 (floating or signed integer), got {dtype}")
    _check_packed(packed, bits, "packed")
    return _unpack_bits(packed, bits).to(dtype).mul_(2).sub_(1)


def as_packed(
    codes: Tensor | HashCodes, *, bits: int | None = None, name: str = "codes"
) -> tuple[Tensor, int]:
    """Codes of any accepted form as packed bits and their number: the one check of codes in the package.

    Args:
        codes: real-valued or ±1 ``(N, bits)``, packed uint8 ``(N, ceil(bits / 8))``, or :class:`HashCodes`.
        bits: code length; required for a packed tensor, elsewhere it must agree if it is given.
        name: how an error message calls ``codes``.

    Returns:
        ``(packed, bits)``: uint8 ``(N, ceil(bits / 8))`` on the device of ``codes`` (not a copy if it was
        packed), and the code length. ``N`` may be 0.

    Raises:
        TypeError: neither a tensor nor HashCodes, a complex tensor, or ``bits`` is not an integer.
        ValueError: packed without ``bits``, a shape that does not fit, set padding bits, NaN, or ``bits``
            that differ from those of ``codes``.

    Example:
        >>> as_packed(torch.tensor([[0.3, -2.0, 0.7]]))
        (tensor([[160]], dtype=torch.uint8), 3)
    """
    if isinstance(codes, HashCodes):
        if bits is not None and bits != codes.bits:
            raise ValueError(f"{name} has {codes.bits} bits, but bits={bits} was given: leave bits out")
        return codes.packed, codes.bits
    if not isinstance(codes, Tensor):
        raise TypeError(
            f"{name} must be a tensor or HashCodes, got {type(codes).__name__}: wrap it in torch.as_tensor"
        )
    if codes.dtype == torch.uint8:
        if bits is None:
            raise ValueError(f"{name} is uint8, which means packed codes: say how many bits with bits=")
        _check_packed(codes, bits, name)
        return codes, bits
    packed = _pack(codes, name)
    if bits is not None and bits != codes.shape[1]:
        raise ValueError(
            f"{name} has {codes.shape[1]} bits (columns), but bits={bits} was given: leave bits out"
        )
    return packed, codes.shape[1]


def as_packed_pair(
    query_codes: Tensor | HashCodes, database_codes: Tensor | HashCodes, *, bits: int | None = None
) -> tuple[Tensor, Tensor, int]:
    """Both sides of a retrieval as packed bits: :func:`as_packed` on each, and whether they fit together.

    Args:
        query_codes: codes of any form that :func:`as_packed` takes.
        database_codes: the same; may be of another form than ``query_codes``.
        bits: code length; needed only if no side tells it (both are packed tensors).

    Returns:
        ``(query_packed, database_packed, bits)``.

    Raises:
        TypeError, ValueError: as :func:`as_packed`; different bits, different devices, or an empty side.

    Example:
        >>> as_packed_pair(torch.tensor([[1.0, -1.0]]), torch.tensor([[0], [64]], dtype=torch.uint8))[2]
        2
    """
    if bits is None:
        known = [_known_bits(codes) for codes in (query_codes, database_codes)]
        if None not in known and known[0] != known[1]:
            raise ValueError(f"query_codes have {known[0]} bits but database_codes have {known[1]}")
        bits = known[0] or known[1]
    query, bits = as_packed(query_codes, bits=bits, name="query_codes")
    database, bits = as_packed(database_codes, bits=bits, name="database_codes")
    for side, name in ((query, "query_codes"), (database, "database_codes")):
        if side.shape[0] == 0:
            raise ValueError(f"{name} is empty: retrieval needs at least one query and one database item")
    if query.device != database.device:
        raise ValueError(
            f"query_codes are on {query.device} but database_codes on {database.device}: move one with .to()"
        )
    return query, database, bits


def packed_distances(query_packed: Tensor, database_packed: Tensor, bits: int) -> Tensor:
    """Hamming distances of a chunk of packed queries to a chunk of packed database items, unchecked and exact.

    The one kernel behind every distance, ranking and metric of the package. On the CPU it counts the bits of
    the exclusive or of machine words; elsewhere it is a product of ±1 matrices in half precision, which is
    exact because all sums are whole numbers up to 512. The caller checks (:func:`as_packed_pair`) and chunks:
    the whole result is held in memory.

    Args:
        query_packed: uint8 ``(q, ceil(bits / 8))`` with zero padding bits.
        database_packed: uint8 ``(n, ceil(bits / 8))`` on the same device.
        bits: code length, 1 to 512.

    Returns:
        ``(q, n)`` with values 0..bits: uint8 if ``bits <= 255``, else int16.

    Example:
        >>> packed_distances(*torch.tensor([[[0b11000000]], [[0b10100000]]], dtype=torch.uint8), bits=3)
        tensor([[2]], dtype=torch.uint8)
    """
    dtype = torch.uint8 if bits <= 255 else torch.int16
    if query_packed.device.type != "cpu":
        query = unpack_codes(query_packed, bits, dtype=torch.float16)
        database = unpack_codes(database_packed, bits, dtype=torch.float16)
        return (query @ database.T).neg_().add_(bits).mul_(0.5).to(dtype)
    out = torch.empty((query_packed.shape[0], database_packed.shape[0]), dtype=dtype)
    _count_differing_bits(_words(query_packed), _words(database_packed), out.numpy())
    return out


def hamming_distance(
    query_codes: Tensor | HashCodes, database_codes: Tensor | HashCodes, *, bits: int | None = None
) -> Tensor:
    """Hamming distance of each query to each database item: the number of bits in which the codes differ.

    ``d(a, b) = (bits - <a, b>) / 2`` for ±1 codes ``a`` and ``b``. The result holds all ``Nq * Nd`` pairs; use
    :func:`hamming_topk` for the nearest only.

    Args:
        query_codes: real-valued or ±1 ``(Nq, bits)``, packed uint8, or :class:`HashCodes`.
        database_codes: the same for ``Nd`` items; may be of another form than ``query_codes``.
        bits: code length; needed only if both sides are packed tensors.

    Returns:
        int16 ``(Nq, Nd)`` with values 0..bits.

    Raises:
        TypeError, ValueError: see :func:`as_packed_pair`.

    Example:
        >>> hamming_distance(torch.tensor([[1.0, 1.0, -1.0]]), torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]]))
        tensor([[1, 3]], dtype=torch.int16)
    """
    query, database, bits = as_packed_pair(query_codes, database_codes, bits=bits)
    out = torch.empty((query.shape[0], database.shape[0]), dtype=torch.int16, device=query.device)
    rows = max(1, _PAIRS // database.shape[0])
    for start in range(0, query.shape[0], rows):
        out[start : start + rows] = packed_distances(query[start : start + rows], database, bits)
    return out


def hamming_topk(
    query_codes: Tensor | HashCodes,
    database_codes: Tensor | HashCodes,
    top_k: int | None,
    *,
    bits: int | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The nearest database items of each query, exactly: by Hamming distance, equal distances by database index.

    Streams over the database in chunks: no ``(Nq, Nd)`` tensor is kept.

    Args:
        query_codes: real-valued or ±1 ``(Nq, bits)``, packed uint8, or :class:`HashCodes`.
        database_codes: the same for ``Nd`` items; may be of another form than ``query_codes``.
        top_k: number of neighbours ``k >= 1``; None, or more than ``Nd``, means the whole database.
        bits: code length; needed only if both sides are packed tensors.
        chunk_size: largest number of database items that are compared at a time (at least ``top_k`` are);
            None chooses one. It changes memory and speed, never the result.

    Returns:
        ``(distances, indices)``: int16 and int64, both ``(Nq, min(top_k, Nd))``, nearest first.

    Raises:
        TypeError: ``top_k`` or ``chunk_size`` is not an integer; see also :func:`as_packed_pair`.
        ValueError: ``top_k`` or ``chunk_size`` is below 1; see also :func:`as_packed_pair`.

    Example:
        >>> database = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [1.0, 1.0]])
        >>> distances, indices = hamming_topk(torch.tensor([[0.9, 0.2]]), database, top_k=3)
        >>> distances, indices
        (tensor([[0, 0, 1]], dtype=torch.int16), tensor([[0, 3, 2]]))
    """
    query, database, bits = as_packed_pair(query_codes, database_codes, bits=bits)
    size = database.shape[0]
    top_k = size if top_k is None else min(_positive(top_k, "top_k", "use None for the whole database"), size)
    chunk = 1 << 16 if query.device.type == "cpu" else 1 << 20
    if chunk_size is not None:
        chunk = _positive(chunk_size, "chunk_size", "use None for the default")
    chunk = max(chunk, top_k)
    distances = torch.empty((query.shape[0], top_k), dtype=torch.int16, device=query.device)
    indices = torch.empty((query.shape[0], top_k), dtype=torch.int64, device=query.device)
    rows = min(max(1, _PAIRS // min(chunk, size)), 65536 // (bits + 1))
    select = _topk_words if query.device.type == "cpu" else _topk_keys
    for start in range(0, query.shape[0], rows):
        part = slice(start, start + rows)
        distances[part], indices[part] = select(query[part], database, bits, top_k, chunk)
    return distances, indices


def _topk_words(query: Tensor, database: Tensor, bits: int, top_k: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Top-k of a few queries on the CPU: sort the first items, then sort in only what is nearer than the k-th."""
    rows = query.shape[0]
    size = min(chunk, max(4 * top_k, 4096))
    block = packed_distances(query, database[:size], bits).numpy()
    indices = np.argsort(block, axis=1, kind="stable")[:, :top_k]
    distances = np.take_along_axis(block, indices, axis=1)
    start = block.shape[1]
    while start < database.shape[0]:
        size = min(2 * size, chunk)
        block = packed_distances(query, database[start : start + size], bits).numpy()
        # A later item at the distance of the k-th loses the tie, so "nearer" is strict.
        row, column = np.nonzero(block < distances[:, -1:])
        row = np.concatenate([np.repeat(np.arange(rows), top_k), row])
        distance = np.concatenate([distances.ravel(), block[row[rows * top_k :], column]])
        index = np.concatenate([indices.ravel(), column + start])
        # Stable and by (row, distance): a radix sort on 16 bits, and the index order survives.
        order = np.argsort((row * (bits + 1) + distance).astype(np.uint16), kind="stable")
        counts = np.bincount(row, minlength=rows)
        order = order[(np.cumsum(counts) - counts)[:, None] + np.arange(top_k)]
        distances, indices = distance[order], index[order]
        start += block.shape[1]
    return torch.from_numpy(distances), torch.from_numpy(indices)


def _topk_keys(query: Tensor, database: Tensor, bits: int, top_k: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Top-k of a few queries on an accelerator: the smallest keys ``distance * Nd + index``."""
    size = database.shape[0]
    best = torch.empty((query.shape[0], 0), dtype=torch.int64, device=query.device)
    for start in range(0, size, chunk):
        block = packed_distances(query, database[start : start + chunk], bits)
        index = torch.arange(start, start + block.shape[1], device=query.device)
        keys = torch.cat([best, block * size + index], dim=1)
        best = keys.topk(min(top_k, keys.shape[1]), dim=1, largest=False).values
    return best // size, best % size


def _words(packed: Tensor) -> np.ndarray[Any, Any]:
    """Packed rows as machine words ``(words, N)``: of 1, 2 or 4 bytes, else as many of 8 as needed."""
    array = np.ascontiguousarray(packed.numpy())
    width = array.shape[1]
    word = next((size for size in (1, 2, 4) if width <= size), 8)
    if width % word:
        array = np.pad(array, ((0, 0), (0, -width % word)))
    return np.ascontiguousarray(array.view(f"u{word}").T)


def _count_differing_bits(
    query: np.ndarray[Any, Any], database: np.ndarray[Any, Any], out: np.ndarray[Any, Any]
) -> None:
    """Write the Hamming distances of words ``(words, q)`` and ``(words, n)`` into ``out (q, n)``, tile by tile."""
    columns = min(_TILE, out.shape[1])
    if not columns:
        return
    rows = max(1, _TILE // columns)
    words = np.empty((rows, columns), query.dtype)
    counts = np.empty((rows, columns), np.uint8)
    for top in range(0, out.shape[0], rows):
        for left in range(0, out.shape[1], columns):
            tile = out[top : top + rows, left : left + columns]
            word, count = (buffer[: tile.shape[0], : tile.shape[1]] for buffer in (words, counts))
            for i in range(query.shape[0]):
                np.bitwise_xor(
                    query[i, top : top + rows, None], database[i, None, left : left + columns], out=word
                )
                if i == 0:
                    np.bitwise_count(word, out=tile)
                else:
                    np.add(tile, np.bitwise_count(word, out=count), out=tile)


def _pack(codes: Tensor, name: str) -> Tensor:
    """:func:`pack_codes` with the argument's name for errors."""
    _check_unpacked(codes, name)
    if codes.ndim != 2:
        raise ValueError(f"{name} must be (N, bits), got shape {tuple(codes.shape)}")
    _check_bits(codes.shape[1], f"the number of columns of {name}")
    _check_not_nan(codes, name)
    return _pack_bits(codes.detach() > 0)


def _pack_bits(bits: Tensor) -> Tensor:
    """bool ``(N, width)`` to uint8 ``(N, ceil(width / 8))``, big-endian, zero-padded on the right."""
    packed = bits.new_zeros((bits.shape[0], -(-bits.shape[1] // 8)), dtype=torch.uint8)
    for offset in range(min(8, bits.shape[1])):
        column = bits[:, offset::8].to(torch.uint8)
        packed[:, : column.shape[1]] |= column << (7 - offset)
    return packed


def _unpack_bits(packed: Tensor, width: int) -> Tensor:
    """uint8 ``(N, ceil(width / 8))`` to uint8 ``(N, width)`` of 0 and 1."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] >> shifts) & 1).flatten(1)[:, :width]


def _known_bits(codes: object) -> int | None:
    """The code length that codes tell by themselves: None for packed tensors."""
    if isinstance(codes, HashCodes):
        return codes.bits
    if isinstance(codes, Tensor) and codes.dtype != torch.uint8 and codes.ndim == 2:
        return codes.shape[1]
    return None


def _check_unpacked(codes: Tensor, name: str = "codes") -> None:
    if not isinstance(codes, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(codes).__name__}: wrap it in torch.as_tensor")
    if codes.dtype == torch.uint8:
        raise TypeError(
            f"{name} is uint8, which means packed codes: use unpack_codes, or .float() if it is not"
        )
    if codes.dtype.is_complex:
        raise TypeError(f"{name} must be real, got {codes.dtype}")


def _check_not_nan(codes: Tensor, name: str) -> None:
    if codes.dtype.is_floating_point and bool(torch.isnan(codes).any()):
        count = int(torch.isnan(codes).flatten(1).any(1).sum()) if codes.ndim > 1 else 1
        raise ValueError(
            f"{name} has NaN in {count} of {len(codes)} rows: NaN has no sign; did training diverge?"
        )


def _check_bits(bits: int, name: str = "bits") -> None:
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"{name} must be an integer, got {bits!r}")
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"{name} must be 1 to {MAX_BITS}, got {bits}")


def _check_packed(packed: Tensor, bits: int, name: str) -> None:
    _check_bits(bits)
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8:
        kind = packed.dtype if isinstance(packed, Tensor) else type(packed).__name__
        raise TypeError(f"{name} must be a uint8 tensor of packed codes, got {kind}: use pack_codes")
    width = -(-bits // 8)
    if packed.ndim != 2 or packed.shape[1] != width:
        raise ValueError(
            f"{name} of {bits} bits must be (N, {width}), got shape {tuple(packed.shape)}: is bits right?"
        )
    if bits % 8 and bool((packed[:, -1] & (0xFF >> bits % 8)).any()):
        raise ValueError(
            f"{name} has bits set in the padding after bit {bits} of its last byte: is bits={bits} right?"
        )


def _positive(value: int, name: str, advice: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer >= 1, got {value!r}: {advice}")
    if value < 1:
        raise ValueError(f"{name} must be >= 1, got {value}: {advice}")
    return value


Index: TypeAlias = "int | slice | Sequence[int] | Sequence[bool] | Tensor"


@dataclass(frozen=True, eq=False, repr=False)
class HashCodes:
    """Packed binary codes of images, with their labels and ids if known.

    Attributes:
        packed: uint8 ``(N, ceil(bits / 8))``.
        bits: code length.
        labels: None, int64 class ids ``(N,)``, or bool multi-hot ``(N, C)``.
        ids: None, or int64 ``(N,)``: which image each row is (a row number of the data set, say).
    """

    packed: Tensor
    bits: int
    labels: Tensor | None = None
    ids: Tensor | None = None

    @classmethod
    def from_codes(cls, codes: Tensor, labels: Tensor | None = None, ids: Tensor | None = None) -> HashCodes:
        """HashCodes of real-valued or ±1 codes ``(N, bits)``."""
        return cls(pack_codes(codes), codes.shape[1], labels, ids)

    def __len__(self) -> int:
        return self.packed.shape[0]

    def codes(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The codes as ±1 ``(N, bits)`` of ``dtype``."""
        return unpack_codes(self.packed, self.bits, dtype=dtype)
