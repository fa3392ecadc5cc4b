"""Exact Hamming distances of codes, all of them or the nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_integer
from hybridhash._hamming import packed_distances, packed_topk
from hybridhash.codes.hash_codes import HashCodes
from hybridhash.codes.packing import as_packed_pair

__all__ = ["hamming_distance", "hamming_topk"]

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]


def hamming_distance(
    query_codes: Tensor | Array | HashCodes,
    database_codes: Tensor | Array | HashCodes,
    *,
    bits: int | None = None,
) -> Tensor:
    """Compute the Hamming distance of each query to each database item: the number of bits that differ.

    ``d(a, b) = (bits - <a, b>) / 2`` for ±1 codes ``a`` and ``b``. The result holds all ``Nq * Nd`` pairs;
    :func:`hamming_topk` returns only the nearest.

    Args:
        query_codes: Real-valued or ±1 ``(Nq, bits)``, packed uint8, or :class:`HashCodes`.
        database_codes: Codes of ``Nd`` items in any of these forms, which may be another one.
        bits: The code length. It is needed only if both sides are packed tensors.

    Returns:
        int16 ``(Nq, Nd)`` with values 0..bits.

    Raises:
        TypeError, ValueError: As :func:`as_packed_pair`.

    Example:
        >>> query, database = torch.tensor([[0.9, 0.2, -0.1]]), torch.tensor([[1, 1, 1], [-1, -1, 1]])
        >>> hamming_distance(query, database)
        tensor([[1, 3]], dtype=torch.int16)
    """
    return packed_distances(*as_packed_pair(query_codes, database_codes, bits=bits)).to(torch.int16)


def hamming_topk(
    query_codes: Tensor | Array | HashCodes,
    database_codes: Tensor | Array | HashCodes,
    top_k: int | None,
    *,
    bits: int | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the nearest database items of each query, by Hamming distance and then by database index.

    It streams over the database in chunks, so no ``(Nq, Nd)`` tensor is kept. It needs no further package and
    is about as fast as ``faiss.knn_hamming``; for other engines see :mod:`hybridhash.search`.

    Args:
        query_codes: Real-valued or ±1 ``(Nq, bits)``, packed uint8, or :class:`HashCodes`. Only the signs of
            real-valued codes count; their magnitudes are not used, see
            :func:`hybridhash.asymmetric.asymmetric_topk`, which uses them.
        database_codes: Codes of ``Nd`` items in any of these forms, which may be another one.
        top_k: The number of neighbours, at least 1. None, or more than ``Nd``, means the whole database.
        bits: The code length. It is needed only if both sides are packed tensors.
        chunk_size: The largest number of database items that are compared at a time, though never fewer than
            ``top_k``. None chooses one. It changes memory and speed, not the result.

    Returns:
        ``(distances, indices)``: int16 and int64, both ``(Nq, min(top_k, Nd))``, nearest first.

    Raises:
        TypeError: ``top_k`` or ``chunk_size`` is not an integer, or as :func:`as_packed_pair`.
        ValueError: ``top_k`` or ``chunk_size`` is below 1, or as :func:`as_packed_pair`.

    Example:
        >>> database = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [1.0, 1.0]])
        >>> distances, indices = hamming_topk(torch.tensor([[0.9, 0.2]]), database, top_k=3)
        >>> distances, indices
        (tensor([[0, 0, 1]], dtype=torch.int16), tensor([[0, 3, 2]]))
    """
    query, database, bits = as_packed_pair(query_codes, database_codes, bits=bits)
    size = database.shape[0]
    if top_k is None:
        top_k = size
    top_k = min(check_integer("top_k", top_k, 1, advice="use None for the whole database"), size)
    if chunk_size is not None:
        check_integer("chunk_size", chunk_size, 1, advice="use None for the default")
    return packed_topk(query, database, bits, top_k, chunk_size)
