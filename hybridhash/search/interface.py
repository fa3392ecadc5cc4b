"""The interface of all indexes, and their shared checks and order of results."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_integer
from hybridhash._code_checks import from_numpy
from hybridhash.asymmetric import rounded_queries
from hybridhash.codes import HashCodes, as_packed
from hybridhash.codes.packing import is_packed
from hybridhash.search.ids import Ids, as_numbers, check_distinct
from hybridhash.search.sorted_pairs import Array

__all__ = [
    "SearchIndex",
    "as_ranges",
    "check_model_id",
    "nearest_first",
    "new_rows",
    "query_rows",
    "real_queries",
    "rescored",
    "result_count",
]


@runtime_checkable
class SearchIndex(Protocol):
    """An index of codes that can be searched by Hamming distance.

    Codes are real-valued or ±1 ``(N, bits)``, packed uint8 ``(N, ceil(bits / 8))``, or
    :class:`hybridhash.HashCodes`.

    Attributes:
        bits: The length of all codes of the index.
        model_id: The name of the model that gave them: any text that tells models apart, such as the SHA-256
            of the weights; None if it is not known. Where the index and the codes have one, they must agree.
    """

    bits: int
    model_id: str | None

    def add(self, codes: Tensor | HashCodes, *, ids: Ids | None = None, model_id: str | None = None) -> None:
        """Add codes under ``ids``, else under ``codes.ids``, else numbered on from ``len(index)``.

        Ids are integers from 0 on, or strings for all codes of the index. Strings stand in results by their
        numbers (:func:`hybridhash.search.ids.name_numbers`), from which :meth:`names` gives them back.
        """

    def remove(self, ids: Ids) -> None:
        """Remove the codes of these ids; raise and remove nothing if the index does not hold one of them."""

    def contains(self, ids: Ids) -> Tensor:
        """Return which of the ids the index holds: bool ``(len(ids),)``."""

    def names(self, ids: Tensor) -> list[Any]:
        """Return the strings of ids in a result, in lists as ``ids.tolist()`` gives; None for -1."""

    def search(
        self,
        codes: Tensor | HashCodes,
        top_k: int | None,
        *,
        rescore: int = 1,
        among: Ids | None = None,
        model_id: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Find the ``top_k`` nearest codes of each query; None means all.

        With ``among``, only codes of these ids are found; ids that the index does not hold are ignored.

        A Hamming distance sees the signs of a query, and not how far from 0 its values are. With ``rescore``
        above 1, the ``rescore * top_k`` nearest codes are candidates. Of these, the ``top_k`` with the
        largest scores are found: the inner products ``<q, s>`` of the real-valued query ``q`` with the signs
        ``s`` of the codes, -1 or +1. Queries must be real-valued then; packed ones have no magnitudes. Which
        of the codes at the distance of the last candidate are candidates depends on the engine.

        An index stores codes only. ``factors`` of HashCodes are not used here; scores that estimate the
        real-valued codes with them come from :func:`hybridhash.asymmetric.asymmetric_topk`.

        Returns:
            ``(distances, ids)``: int16 and int64, both ``(Nq, min(top_k, len(index)))``, nearest first, equal
            distances by id. Where an approximate index finds fewer, ids are -1 and distances ``bits + 1``.
            With ``among``, there are at most as many columns as codes of these ids.

            ``(scores, ids)`` if ``rescore`` is above 1: float32 and int64 of the same shape, largest scores
            first, equal scores by id. Where fewer are found, ids are -1 and scores minus infinity.
        """

    def range_search(
        self,
        codes: Tensor | HashCodes,
        radius: int,
        *,
        among: Ids | None = None,
        model_id: str | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find all codes at a Hamming distance of at most ``radius`` from each query, or those ``among`` ids.

        Returns:
            ``(limits, distances, ids)``: int64 ``(Nq + 1,)``, int16 and int64. The results of query ``i`` are
            the rows ``limits[i]`` to ``limits[i + 1]`` of the other two, in the order of :meth:`search`.
        """

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the files that ``load`` of the class reads; an older save stays until the new is complete."""

    def __len__(self) -> int:
        """Return the number of codes."""


def new_rows(
    codes: Tensor | HashCodes, bits: int, held: str | None, model_id: str | None, ids: Ids | None = None
) -> tuple[Array, Array | None, list[str] | None]:
    """Return codes to add as packed rows, and their ids if they have any, all checked.

    Args:
        codes: Codes as :class:`SearchIndex` takes them. ``N`` may be 0.
        bits: The code length of the index.
        held: Model of the codes in the index, or None if it is not known.
        model_id: Model of ``codes``, or None if it is not known.
        ids: Ids that replace those of ``codes``.

    Returns:
        ``(packed, ids, names)``: uint8 ``(N, ceil(bits / 8))``, int64 ``(N,)`` or None, and the ids that were
        given as strings, or None.

    Raises:
        TypeError, ValueError: The codes have other bits or another model than the index, NaN, or negative or
            repeated ids; see also :func:`hybridhash.codes.as_packed`.

    Example:
        >>> new_rows(torch.tensor([[0.3, -2.0, 0.7]]), 3, None, None)
        (array([[160]], dtype=uint8), None, None)
    """
    check_model_id(held, model_id)
    packed, given = as_packed(codes, bits=bits if is_packed(codes) else None)
    if given != bits:
        cut = f"; codes of a model for several lengths can be cut: codes.truncate({bits})"
        raise ValueError(
            f"codes have {given} bits, but the index holds codes of {bits}: give codes of its model, or "
            f"build an index of {given} bits{cut if given > bits else ''}"
        )
    if ids is None and isinstance(codes, HashCodes):
        ids = codes.ids
    rows = packed.cpu().numpy()
    if ids is None:
        return rows, None, None
    numbers, names = as_numbers(ids)
    if len(numbers) != len(rows):
        raise ValueError(f"ids must be one for each of the {len(rows)} codes, got {len(numbers)}")
    check_distinct(numbers, names)
    return rows, numbers, names


def query_rows(
    codes: Tensor | HashCodes, bits: int, size: int, held: str | None, model_id: str | None
) -> Array:
    """Return queries as packed rows; raise as :func:`new_rows`, and if there is no query or no code.

    Args:
        codes: Codes as :class:`SearchIndex` takes them. Their ids are ignored and may repeat.
        bits: The code length of the index.
        size: The number of codes in the index.
        held: Model of the codes in the index, or None if it is not known.
        model_id: Model of ``codes``, or None if it is not known.
    """
    codes = HashCodes(codes.packed, codes.bits) if isinstance(codes, HashCodes) else codes
    packed, _, _ = new_rows(codes, bits, held, model_id)
    if size == 0:
        raise ValueError("the index is empty: add codes before searching")
    if len(packed) == 0:
        raise ValueError("codes is empty: search needs at least one query")
    return np.ascontiguousarray(packed)


def real_queries(codes: Tensor | Array | HashCodes, rescore: int) -> Array:
    """Return queries for :func:`rescored`: float64 ``(Nq, bits)``, so that sums of them are exact.

    They are rounded as :func:`hybridhash.asymmetric.rounded_queries` does.

    Raises:
        TypeError: The queries are packed, or HashCodes.
        ValueError: A query is not finite, or too large for scores in float32.

    Example:
        >>> real_queries(torch.tensor([[0.5, -2.0]]), rescore=4)
        array([[ 0.5, -2. ]])
    """
    if isinstance(codes, HashCodes) or is_packed(codes):
        kind = "HashCodes" if isinstance(codes, HashCodes) else "packed codes"
        raise TypeError(
            f"rescore={rescore} ranks by the real values of the queries, but {kind} have only their signs: "
            "give the outputs of the model, or leave rescore out"
        )
    if isinstance(codes, np.ndarray):
        codes = from_numpy(codes, "codes")
    if codes.dtype == torch.bool:
        raise TypeError(
            f"rescore={rescore} ranks by the real values of the queries, but bool codes have only their signs"
        )
    values = codes.detach().double().cpu()
    largest = float(values.abs().sum(1).max())
    if not largest < torch.finfo(torch.float32).max:
        raise ValueError(
            f"rescore={rescore} needs finite queries whose absolute values add up to less than 3.4e38, got "
            f"{largest:g}: check them, and what made them"
        )
    rounded: Array = rounded_queries(values).numpy()
    return rounded


def rescored(query: Array, packed: Array, ids: Array, top_k: int) -> tuple[Tensor, Tensor]:
    """Rank the candidates of each query by inner products, as :meth:`SearchIndex.search` describes.

    Args:
        query: From :func:`real_queries`, ``(Nq, bits)``.
        packed: Codes of the candidates, uint8 ``(Nq, candidates, ceil(bits / 8))``.
        ids: Their ids, int64 ``(Nq, candidates)``, -1 where there is no candidate.
        top_k: How many to return, at most the number of candidates.

    Example:
        >>> packed = np.array([[[0b10000000], [0b01000000]]], np.uint8)
        >>> rescored(np.array([[0.5, -2.0]]), packed, np.array([[7, 8]]), top_k=1)
        (tensor([[2.5000]]), tensor([[7]]))
    """
    scores = np.empty(ids.shape, np.float32)
    for row, values in enumerate(query):
        bits = np.unpackbits(packed[row], axis=1, count=len(values))
        # <q, s> is the sum of q over the bits that are 1, less that over the others.
        scores[row] = 2 * (bits @ values) - values.sum()
    scores[ids < 0] = -np.inf
    order = np.lexsort((ids, -scores), axis=-1)[:, :top_k]
    scores = np.take_along_axis(scores, order, axis=-1)
    return torch.from_numpy(scores), torch.from_numpy(np.take_along_axis(ids, order, axis=-1))


def result_count(top_k: int | None, size: int) -> int:
    """Return how many codes to find for each query in an index of ``size`` codes."""
    if top_k is None:
        return size
    return min(check_integer("top_k", top_k, 1, advice="use None for the whole index"), size)


def check_model_id(held: str | None, model_id: str | None) -> None:
    """Raise a ValueError if codes are known to be of another model than those of an index."""
    for value in (held, model_id):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"model_id must be a str that tells models apart, or None, got {value!r}")
    if held is not None and model_id is not None and held != model_id:
        raise ValueError(
            f"the index holds codes of the model {held!r}, these are of {model_id!r}: codes of different "
            "models cannot be compared, encode with the same one"
        )


def nearest_first(distances: Array, ids: Array, bits: int) -> tuple[Tensor, Tensor]:
    """Return an engine's results in the order and the types that :meth:`SearchIndex.search` promises.

    Args:
        distances: Distances of any dtype, ``(Nq, top_k)``; ignored where ``ids`` is negative.
        ids: Ids, int64 of the same shape, negative where nothing was found.
        bits: The code length of the index.

    Example:
        >>> nearest_first(np.array([[9.0, 2.0, 2.0]]), np.array([[-1, 7, 5]]), 4)
        (tensor([[2, 2, 5]], dtype=torch.int16), tensor([[ 5,  7, -1]]))
    """
    distances = np.where(ids < 0, bits + 1, distances).astype(np.int16)
    order = np.lexsort((ids, distances), axis=-1)
    distances = np.take_along_axis(distances, order, axis=-1)
    ids = np.take_along_axis(ids, order, axis=-1)
    return torch.from_numpy(distances), torch.from_numpy(ids)


def as_ranges(results: Iterable[tuple[Array, Array]], bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Join the ``(distances, ids)`` of all queries to the result of :meth:`SearchIndex.range_search`.

    Example:
        >>> as_ranges([(np.array([1, 0]), np.array([3, 8])), (np.array([]), np.array([], np.int64))], 4)
        (tensor([0, 2, 2]), tensor([0, 1], dtype=torch.int16), tensor([8, 3]))
    """
    parts = [nearest_first(distances, ids, bits) for distances, ids in results]
    limits = torch.tensor([0, *(len(ids) for _, ids in parts)]).cumsum(0)
    distances = torch.cat([distances for distances, _ in parts])
    ids = torch.cat([ids for _, ids in parts])
    return limits, distances, ids
