"""The interface of all indexes, and their shared checks, order of results and manifests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_integer
from hybridhash._files import replacing
from hybridhash.codes import HashCodes, as_packed

__all__ = [
    "Array",
    "SearchIndex",
    "as_ranges",
    "check_held",
    "check_model_id",
    "check_replaceable",
    "nearest_first",
    "new_rows",
    "query_rows",
    "read_manifest",
    "result_count",
    "write_manifest",
]

Array: TypeAlias = "np.ndarray[Any, Any]"

MANIFEST = "manifest.json"
_FORMAT = "hybridhash.search"
_VERSION = "2"
_OLD_VERSION = "1"  # in which model_id is called model


@runtime_checkable
class SearchIndex(Protocol):
    """An index of codes that can be searched by Hamming distance.

    Codes are real-valued or ±1 ``(N, bits)``, packed uint8 ``(N, ceil(bits / 8))``, or
    :class:`hybridhash.HashCodes`.

    Attributes:
        bits: Length of all codes of the index.
        model_id: Name of the model that gave them: any text that tells models apart, such as the SHA-256 of
            the weights; None if it is not known. Where the index and the codes have one, they must agree.
    """

    bits: int
    model_id: str | None

    def add(self, codes: Tensor | HashCodes, *, model_id: str | None = None) -> None:
        """Add codes under their ids (``codes.ids``), or numbered from ``len(index)`` on if they have none."""

    def search(
        self, codes: Tensor | HashCodes, top_k: int | None, *, model_id: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Find the ``top_k`` nearest codes of each query; None means all.

        Returns:
            ``(distances, ids)``: int16 and int64, both ``(Nq, min(top_k, len(index)))``, nearest first, equal
            distances by id. Where an approximate index finds fewer, ids are -1 and distances ``bits + 1``.
        """

    def range_search(
        self, codes: Tensor | HashCodes, radius: int, *, model_id: str | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find all codes at a Hamming distance of at most ``radius`` from each query.

        Returns:
            ``(limits, distances, ids)``: int64 ``(Nq + 1,)``, int16 and int64. The results of query ``i`` are
            the rows ``limits[i]`` to ``limits[i + 1]`` of the other two, in the order of :meth:`search`.
        """

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the files that ``load`` of the class reads; an older save stays until the new is complete."""

    def __len__(self) -> int:
        """Return the number of codes."""


def new_rows(
    codes: Tensor | HashCodes, bits: int, held: str | None, model_id: str | None
) -> tuple[Array, Array | None]:
    """Return codes to add as packed rows, and their ids if they have any, both checked.

    Args:
        codes: Codes as :class:`SearchIndex` takes them. ``N`` may be 0.
        bits: Code length of the index.
        held: Model of the codes in the index, or None if it is not known.
        model_id: Model of ``codes``, or None if it is not known.

    Returns:
        ``(packed, ids)``: uint8 ``(N, ceil(bits / 8))``, and int64 ``(N,)`` or None.

    Raises:
        TypeError, ValueError: The codes have other bits or another model than the index, NaN, or negative or
            repeated ids; see also :func:`hybridhash.codes.as_packed`.

    Example:
        >>> new_rows(torch.tensor([[0.3, -2.0, 0.7]]), 3, None, None)
        (array([[160]], dtype=uint8), None)
    """
    check_model_id(held, model_id)
    if isinstance(codes, Tensor) and codes.dtype == torch.uint8:
        packed, given = as_packed(codes, bits=bits)
    else:
        packed, given = as_packed(codes)
    if given != bits:
        raise ValueError(
            f"codes have {given} bits, but the index holds codes of {bits}: give codes of its model, or "
            f"build an index of {given} bits"
        )
    ids = codes.ids if isinstance(codes, HashCodes) else None
    return packed.cpu().numpy(), None if ids is None else _unique(ids.cpu().numpy())


def query_rows(
    codes: Tensor | HashCodes, bits: int, size: int, held: str | None, model_id: str | None
) -> Array:
    """Return queries as packed rows; raise as :func:`new_rows`, and if there is no query or no code.

    Args:
        codes: Codes as :class:`SearchIndex` takes them. Their ids are ignored and may repeat.
        bits: Code length of the index.
        size: Number of codes in the index.
        held: Model of the codes in the index, or None if it is not known.
        model_id: Model of ``codes``, or None if it is not known.
    """
    codes = HashCodes(codes.packed, codes.bits) if isinstance(codes, HashCodes) else codes
    packed, _ = new_rows(codes, bits, held, model_id)
    if size == 0:
        raise ValueError("the index is empty: add codes before searching")
    if len(packed) == 0:
        raise ValueError("codes is empty: search needs at least one query")
    return np.ascontiguousarray(packed)


def result_count(top_k: int | None, size: int) -> int:
    """Return how many codes to find for each query in an index of ``size`` codes."""
    if top_k is None:
        return size
    return min(check_integer("top_k", top_k, 1, advice="use None for the whole index"), size)


def _unique(ids: Array) -> Array:
    """Return the ids of new codes; raise ValueError if one is negative or occurs twice."""
    if len(ids) and ids.min() < 0:
        raise ValueError(f"ids must be >= 0, got {ids.min()}: -1 stands for 'nothing found' in results")
    if not (np.diff(ids) > 0).all():
        values, counts = np.unique(ids, return_counts=True)
        repeated = values[counts > 1]
        if len(repeated):
            raise ValueError(
                f"{len(repeated)} ids occur more than once, {_first_few(repeated)}: each code needs its own"
            )
    return ids


def check_held(ids: Array, held: Array) -> None:
    """Raise a ValueError if an index that cannot replace codes holds one of the new ids already."""
    if len(ids) == 0:
        return
    # Each held id is looked up among the new ones, since the new ones are few: sorting the others takes long.
    new = np.sort(ids)
    nearest = new[np.minimum(np.searchsorted(new, held), len(new) - 1)]
    known = np.sort(held[nearest == held])
    if len(known):
        raise ValueError(
            f"the index holds {len(known)} of these {len(ids)} ids already, {_first_few(known)}: nothing was "
            "added. Add new codes only, with ids of their own (codes without are numbered from len(index))"
        )


def _first_few(ids: Array) -> str:
    more = ", ..." if len(ids) > 3 else ""
    return f"{', '.join(str(i) for i in ids[:3])}{more}"


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
        bits: Code length of the index.

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


def check_replaceable(folder: Path) -> None:
    """Raise FileExistsError if the manifest in a folder is not that of an index."""
    file = folder / MANIFEST
    try:
        content = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):  # ValueError: damaged, so nothing is lost
        return
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise FileExistsError(f"{file} is not of an index: save the index to another folder")


def write_manifest(folder: Path, backend: str, content: dict[str, Any]) -> None:
    """Write the description of an index to ``manifest.json``, atomically."""
    with replacing(folder / MANIFEST) as temporary:
        head = {"format": _FORMAT, "version": _VERSION, "backend": backend}
        temporary.write_text(json.dumps({**head, **content}, indent=2) + "\n")


def read_manifest(folder: str | os.PathLike[str], backend: str, keys: Iterable[str]) -> dict[str, Any]:
    """Read what :func:`write_manifest` wrote, with all of ``keys``.

    Raises:
        FileNotFoundError: The folder has no manifest.
        ValueError: The manifest is damaged, or is of something else, another backend or another version.
    """
    file = Path(folder) / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"no index at {folder}: it has no {MANIFEST}; save of an index writes one")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): save the index again") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{file} is no manifest of an index: give a folder that save of an index wrote")
    version = content.get("version")
    if version not in (_VERSION, _OLD_VERSION):
        raise ValueError(
            f"{file} has version {version!r} of the format, this hybridhash reads {_OLD_VERSION!r} and "
            f"{_VERSION!r}: upgrade hybridhash, or build the index again"
        )
    if version == _OLD_VERSION and "model" in content:
        content["model_id"] = content.pop("model")
    if content.get("backend") != backend:
        raise ValueError(f"{file} is of a {content.get('backend')} index, not of {backend}: use its class")
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{file} is damaged (no {', '.join(missing)}): save the index again")
    return content
