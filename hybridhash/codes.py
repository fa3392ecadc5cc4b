"""Binary codes: packing, exact Hamming distances and top-k, and the HashCodes container.

Everywhere in the package ``packed`` codes are ``uint8 (N, ceil(bits / 8))``: big-endian inside a byte as
:func:`numpy.packbits` writes them, padded on the right with zero bits. Bit 1 means ``code > 0``; a code of
exactly 0 is bit 0. This is the layout that FAISS, usearch (``b1``), Milvus and pgvector take.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_integer
from hybridhash._code_checks import (
    MAX_BITS,
    as_factors,
    as_ids,
    as_rows,
    check_numbers,
    check_packed,
    from_numpy,
)
from hybridhash._code_files import damaged, read_fields, tensor_bytes, write_codes
from hybridhash._hamming import (
    pack_bits,
    packed_distances,
    packed_topk,
    row_factors,
    unpack_bits,
)
from hybridhash.labels import as_labels

__all__ = [
    "MAX_BITS",
    "HashCodes",
    "as_packed",
    "as_packed_pair",
    "binarize",
    "check_joinable",
    "correction_factors",
    "hamming_distance",
    "hamming_topk",
    "pack_codes",
    "read_codes",
    "sign",
    "straight_through_sign",
    "tensor_bytes",
    "unpack_codes",
    "write_codes",
]

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_KINDS = ("bits", "labels", "ids", "factors", "device")  # what must agree to join HashCodes


def binarize(codes: Tensor | Array) -> Tensor:
    """Return +1 where ``code > 0`` and -1 elsewhere: 0 gives -1, and an infinity its sign.

    Args:
        codes: ``(..., bits)`` of any real dtype except uint8, which means packed codes here.

    Returns:
        A new tensor of the same shape with values -1 and +1. It has the dtype of ``codes`` if that is
        floating, else int8, and carries no gradient.

    Raises:
        TypeError: ``codes`` is not a tensor, or is complex or uint8.
        ValueError: A code is NaN.

    Example:
        >>> binarize(torch.tensor([[0.3, -2.0, 0.0, 0.1]]))
        tensor([[ 1., -1., -1.,  1.]])
    """
    codes = _real_codes(codes, "codes")
    dtype = codes.dtype if codes.dtype.is_floating_point else torch.int8
    return (codes > 0).to(dtype).mul_(2).sub_(1)


def sign(values: Tensor) -> Tensor:
    """Return +1 where ``values > 0`` and -1 elsewhere, in the same dtype.

    Unlike ``torch.sign``, 0 gives -1, as everywhere in the package: it is bit 0. No gradient, no checks.

    Args:
        values: any shape, floating.

    Example:
        >>> sign(torch.tensor([0.3, 0.0, -2.0]))
        tensor([ 1., -1., -1.])
    """
    # Signs are -1, 0 and 1 first; half a step down, 0 is negative.
    return values.detach().sign().sub_(0.5).sign_()


def straight_through_sign(values: Tensor) -> Tensor:
    """Return :func:`sign` of ``values`` with the gradient of the identity (0 where they are infinite).

    Args:
        values: Any shape, floating.

    Source: Bengio, Léonard, Courville, arXiv 1308.3432, the straight-through estimator.

    Example:
        >>> values = torch.tensor([0.3, -2.0], requires_grad=True)
        >>> straight_through_sign(values).sum().backward()
        >>> values.grad
        tensor([1., 1.])
    """
    # The difference is 0 (NaN for infinite values), so the signs are exact; its gradient is 1.
    return sign(values) + (values - values.detach()).nan_to_num(0.0)


def pack_codes(codes: Tensor | Array, *, name: str = "codes") -> Tensor:
    """Pack codes to bits, eight to a byte, as ``numpy.packbits(codes > 0, axis=-1)`` does.

    Args:
        codes: Real-valued or ±1 codes ``(N, bits)`` of any real dtype except uint8, 1 to 4,096 bits; a tensor
            or a NumPy array.
        name: The name of ``codes`` in error messages.

    Returns:
        uint8 ``(N, ceil(bits / 8))`` on the device of ``codes``.

    Raises:
        TypeError: ``codes`` is not a tensor, or is complex or uint8 (packed already).
        ValueError: The shape is not ``(N, bits)``, there are too few or too many bits, or a code is NaN.

    Example:
        >>> pack_codes(torch.tensor([[1.0, -1, -1, -1, -1, -1, -1, 1, 1]]))
        tensor([[129, 128]], dtype=torch.uint8)
    """
    codes = _real_codes(codes, name)
    if codes.ndim != 2:
        raise ValueError(f"{name} must be (N, bits), got shape {tuple(codes.shape)}")
    check_integer(f"the number of columns of {name}", codes.shape[1], 1, MAX_BITS)
    return pack_bits(codes > 0)


def correction_factors(codes: Tensor | Array, norms: Tensor | Array | None = None) -> Tensor:
    """Compute what signs lose of real-valued codes: the norm of each, and its alignment with its signs.

    The alignment of z with its signs is the cosine
    ``<z / ||z||, sign(z) / sqrt(bits)> = ||z||_1 / (sqrt(bits) ||z||)``. With both factors the inner product
    with a real-valued q is estimated as ``norm / alignment * <sign(z), q> / sqrt(bits)``, and the squared
    distance as ``norm^2 + ||q||^2`` less twice that. If z and q were rotated by a random rotation, the
    estimate has no bias, and with a = alignment its error is about
    ``||z|| ||q|| sqrt(1 - a^2) / (a sqrt(bits - 1))``.

    If z is the projection of a longer vector x, ``norms`` are those of x. The norm is that of x then, and the
    alignment is ``||x|| / ||z||`` times that of z. So estimated inner products are still those of the
    projections, but distances count what lies outside of them: ``||x||^2 + ||q||^2 - 2 <z, q>``, with the
    norm of the whole query.

    Args:
        codes: Real-valued codes ``(N, bits)``, floating or signed integers; a tensor or a NumPy array.
        norms: The norms of the vectors that the codes are orthogonal projections of, ``(N,)``. None takes
            those of the codes.

    Returns:
        float32 ``(N, 2)`` on the device of ``codes``: norm >= 0, and alignment in (0, 1], above 1 only with
        ``norms``. A vector of zeros has norm 0 and alignment 1.

    Raises:
        TypeError: ``codes`` are no real numbers, or bools, which have no norm.
        ValueError: The shape is not ``(N, bits)``; a code or norm is NaN, infinite or too large for float32;
            or norms have another shape or are smaller than those of the codes.

    Source: Gao, Long, RaBitQ, SIGMOD 2024, sections 3.1 and 3.2.

    Example:
        >>> correction_factors(torch.tensor([[3.0, -4.0], [2.0, 2.0]]))
        tensor([[5.0000, 0.9899],
                [2.8284, 1.0000]])
    """
    codes = _real_codes(codes, "codes")
    if codes.dtype == torch.bool:
        raise TypeError("factors need real-valued codes, but bools have no norm: leave factors out")
    if codes.ndim != 2:
        raise ValueError(f"codes must be (N, bits), got shape {tuple(codes.shape)}")
    factors = row_factors(codes)
    if not bool(factors.isfinite().all()):
        bad = int((~factors.isfinite().all(1)).sum())
        raise ValueError(
            f"codes are infinite, or their norm is too large for float32, in {bad} of {len(codes)} rows: "
            "factors need finite codes"
        )
    return factors if norms is None else _with_norms(factors, norms)


def _with_norms(factors: Tensor, norms: Tensor | Array) -> Tensor:
    """Return the factors of projections with the norms of the vectors themselves."""
    if isinstance(norms, np.ndarray):
        norms = from_numpy(norms, "norms")
    if not isinstance(norms, Tensor) or not norms.dtype.is_floating_point:
        got = norms.dtype if isinstance(norms, Tensor) else type(norms).__name__
        raise TypeError(f"norms must be a floating-point tensor (N,), got {got}")
    if norms.shape != factors.shape[:1] or norms.device != factors.device:
        raise ValueError(
            f"norms must be ({len(factors)},) on {factors.device}, one for each code, got shape "
            f"{tuple(norms.shape)} on {norms.device}"
        )
    norm, alignment = factors.T
    whole = norms.detach().to(torch.float32)
    if not bool((whole.isfinite() & (whole >= 0.99 * norm)).all()):
        raise ValueError(
            "norms must be finite and at least those of the codes, which are projections: are they of the "
            "centred features, as head.norms(features) gives them?"
        )
    whole = torch.maximum(whole, norm)
    # A projection of 0 has the inner product 0: its alignment is as large as can be.
    most = torch.finfo(torch.float32).max
    alignment = (alignment * (whole / norm)).clamp(max=most)
    return torch.stack([whole, alignment.where(whole != 0, 1.0)], dim=1)


def _real_codes(codes: Tensor | Array, name: str) -> Tensor:
    """Return codes that are not packed as a tensor without gradient; raise if one of them has no sign."""
    if isinstance(codes, np.ndarray):
        codes = from_numpy(codes, name)
    if not isinstance(codes, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(codes).__name__}: wrap it in torch.as_tensor")
    if codes.dtype == torch.uint8:
        raise TypeError(
            f"{name} is uint8, which means packed codes: use unpack_codes, or .float() if it is not"
        )
    if codes.dtype.is_complex:
        raise TypeError(f"{name} must be real, got {codes.dtype}")
    check_numbers(codes, name)
    if codes.dtype.is_floating_point:
        if codes.dtype.itemsize == 1:
            codes = codes.float()  # torch does not compare numbers of 8 bits
        missing = int(torch.isnan(codes).sum())
        if missing:
            raise ValueError(
                f"{name} has NaN in {missing} of {codes.numel()} entries, which has no sign: "
                "did training diverge?"
            )
    return codes.detach()


def unpack_codes(packed: Tensor | Array, bits: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpack bits to ±1 codes; the inverse of :func:`pack_codes`.

    Args:
        packed: uint8 ``(N, ceil(bits / 8))`` with zero padding bits.
        bits: The code length, 1 to 4,096.
        dtype: The dtype of the result, floating or a signed integer.

    Returns:
        ``(N, bits)`` of ``dtype`` with values -1 and +1, on the device of ``packed``.

    Raises:
        TypeError: ``packed`` is not a uint8 tensor, ``bits`` not an integer, or ``dtype`` cannot hold -1.
        ValueError: The shape does not fit ``bits``, or a padding bit is set.

    Example:
        >>> unpack_codes(torch.tensor([[0b10100000]], dtype=torch.uint8), 3)
        tensor([[ 1., -1.,  1.]])
    """
    if dtype.is_complex or not dtype.is_signed:
        raise TypeError(f"dtype must hold -1 and +1 (floating or signed integer), got {dtype}")
    if isinstance(packed, np.ndarray):
        packed = from_numpy(packed, "packed")
    check_packed(packed, bits, "packed")
    return unpack_bits(packed, bits).to(dtype).mul_(2).sub_(1)


def as_packed(
    codes: Tensor | Array | HashCodes, *, bits: int | None = None, name: str = "codes"
) -> tuple[Tensor, int]:
    """Check codes of any accepted form and return them packed, with the code length.

    Args:
        codes: Real-valued or ±1 ``(N, bits)`` or packed uint8 ``(N, ceil(bits / 8))``, a tensor or a NumPy
            array; or :class:`HashCodes`.
        bits: The code length. It is required for a packed tensor; elsewhere it must agree if it is given.
        name: The name of ``codes`` in error messages.

    Returns:
        ``(packed, bits)``: uint8 ``(N, ceil(bits / 8))`` on the device of ``codes`` (not a copy if it was
        packed), and the code length. ``N`` may be 0.

    Raises:
        TypeError: ``codes`` is neither a real tensor nor HashCodes, or ``bits`` is not an integer.
        ValueError: ``codes`` are packed and ``bits`` is missing, the shape does not fit, a padding bit is
            set, a code is NaN, or ``bits`` differs from that of ``codes``.

    Example:
        >>> as_packed(torch.tensor([[0.3, -2.0, 0.7]]))
        (tensor([[160]], dtype=torch.uint8), 3)
    """
    if isinstance(codes, HashCodes):
        if bits is not None and bits != codes.bits:
            raise ValueError(f"{name} has {codes.bits} bits, but bits={bits} was given: leave bits out")
        return codes.packed, codes.bits
    if isinstance(codes, np.ndarray):
        codes = from_numpy(codes, name)
    if not isinstance(codes, Tensor):
        raise TypeError(
            f"{name} must be a tensor or HashCodes, got {type(codes).__name__}: wrap it in torch.as_tensor"
        )
    if codes.dtype == torch.uint8:
        if bits is None:
            raise ValueError(f"{name} is uint8, which means packed codes: say how many bits with bits=")
        check_packed(codes, bits, name)
        return codes, int(bits)
    packed = pack_codes(codes, name=name)
    if bits is not None and bits != codes.shape[1]:
        raise ValueError(
            f"{name} has {codes.shape[1]} bits (columns), but bits={bits} was given: leave bits out"
        )
    return packed, codes.shape[1]


def as_packed_pair(
    query_codes: Tensor | Array | HashCodes,
    database_codes: Tensor | Array | HashCodes,
    *,
    bits: int | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Check both sides of a retrieval, and that they fit together, and return them packed.

    Args:
        query_codes: Codes of any form that :func:`as_packed` takes.
        database_codes: Codes of any form, which may be another one.
        bits: The code length. It is needed only if both sides are packed tensors.

    Returns:
        ``(query_packed, database_packed, bits)``.

    Raises:
        TypeError, ValueError: As :func:`as_packed`; or the sides have different bits or devices, or one is
            empty.

    Example:
        >>> as_packed_pair(torch.tensor([[1.0, -1.0]]), torch.tensor([[0], [64]], dtype=torch.uint8))[2]
        2
    """
    packed = [
        isinstance(codes, (Tensor, np.ndarray)) and str(codes.dtype).endswith("uint8")
        for codes in (query_codes, database_codes)
    ]
    if packed == [True, False]:  # packed codes do not know their length: the other side comes first
        database, length = as_packed(database_codes, bits=bits, name="database_codes")
        query, query_bits = as_packed(query_codes, bits=length, name="query_codes")
    else:
        query, query_bits = as_packed(query_codes, bits=bits, name="query_codes")
        known = query_bits if packed[1] else bits
        database, length = as_packed(database_codes, bits=known, name="database_codes")
    if query_bits != length:
        raise ValueError(f"query_codes have {query_bits} bits but database_codes have {length}")
    for side, name in ((query, "query_codes"), (database, "database_codes")):
        if side.shape[0] == 0:
            raise ValueError(f"{name} is empty: retrieval needs at least one query and one database item")
    if query.device != database.device:
        raise ValueError(
            f"query_codes are on {query.device} but database_codes on {database.device}: move one with .to()"
        )
    return query, database, length


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


@dataclass(frozen=True, eq=False, repr=False)
class HashCodes:
    """Packed binary codes of images, with labels and ids where known; all tensors are on one device.

    The tensors may be given as NumPy arrays. ``codes[index]`` takes an int, a slice, a list, a bool mask or
    an integer tensor and always gives HashCodes (an int gives one row). ``len(codes)`` is the number of
    images, and ``==`` compares the content.

    Attributes:
        packed: uint8 ``(N, ceil(bits / 8))``.
        bits: The code length, 1 to 4,096.
        labels: Class ids int64 ``(N,)``, multi-hot bool ``(N, C)``, or None. All forms that
            :func:`hybridhash.labels.as_labels` takes may be given.
        ids: The id of each image, int64 ``(N,)``, such as its row in a data set; or None.
        factors: What the signs do not tell of the real-valued codes, float32 ``(N, 2)``, or None: see
            :func:`correction_factors`.

    Raises:
        TypeError, ValueError: ``packed`` does not fit ``bits``; or labels, ids or factors have a wrong shape,
            dtype or length, are on another device, or factors are out of range.

    Example:
        >>> codes = HashCodes.from_codes(torch.randn(5, 12), labels=torch.tensor([0, 1, 2, 0, 1]))
        >>> codes
        HashCodes(size=5, bits=12, bytes=10, labels=class ids, ids=None)
        >>> len(codes[codes.labels == 0])
        2
    """

    packed: Tensor
    bits: int
    labels: Tensor | None = None
    ids: Tensor | None = None
    factors: Tensor | None = None

    # Without it, Python would iterate by calling __getitem__ with 0, 1, 2 ...: one object for each row.
    __iter__ = None

    def __post_init__(self) -> None:
        packed: object = self.packed
        if isinstance(packed, np.ndarray):
            object.__setattr__(self, "packed", from_numpy(packed, "packed"))
        check_packed(self.packed, self.bits, "packed")
        object.__setattr__(self, "bits", int(self.bits))
        device = self.packed.device
        for name, rows in (("labels", self.labels), ("ids", self.ids), ("factors", self.factors)):
            if isinstance(rows, Tensor) and rows.device != device:
                raise ValueError(f"{name} is on {rows.device} but the codes on {device}: move one with .to()")
        if self.labels is not None:
            object.__setattr__(self, "labels", as_labels(self.labels, length=len(self)).to(device))
        if self.ids is not None:
            object.__setattr__(self, "ids", as_ids(self.ids, length=len(self)).to(device))
        if self.factors is not None:
            object.__setattr__(self, "factors", as_factors(self.factors, length=len(self)).to(device))

    @classmethod
    def from_codes(
        cls,
        codes: Tensor | Array,
        labels: Tensor | Array | None = None,
        ids: Tensor | Array | None = None,
        *,
        factors: bool = False,
        norms: Tensor | Array | None = None,
    ) -> HashCodes:
        """Pack real-valued or ±1 codes.

        Args:
            codes: Codes ``(N, bits)`` as for :func:`pack_codes`.
            labels: Class ids ``(N,)`` or multi-hot labels ``(N, C)``, or None.
            ids: The id of each image, integers ``(N,)``, or None.
            factors: Whether to keep the :func:`correction_factors` of the codes, 8 more bytes each. With them
                real-valued queries estimate inner products and distances of the real-valued codes.
            norms: With factors, the norms ``(N,)`` of the vectors that the codes are projections of, see
                :func:`correction_factors`.

        Raises:
            TypeError, ValueError: As :func:`pack_codes`, :func:`correction_factors` and the class.

        Example:
            >>> HashCodes.from_codes(torch.tensor([[0.5, -0.5]]), ids=torch.tensor([7])).packed
            tensor([[128]], dtype=torch.uint8)
            >>> HashCodes.from_codes(torch.tensor([[3.0, -4.0]]), factors=True).factors
            tensor([[5.0000, 0.9899]])
        """
        packed = pack_codes(codes)
        if norms is not None and not factors:
            raise ValueError("norms are kept as factors: give factors=True, or leave norms out")
        kept = correction_factors(codes, norms) if factors else None
        labels = labels if labels is None else as_labels(labels, length=len(packed))
        ids = ids if ids is None else as_ids(ids, length=len(packed))
        return cls(packed, codes.shape[1], labels, ids, kept)

    @classmethod
    def cat(cls, parts: Sequence[HashCodes]) -> HashCodes:
        """Join codes of equal bits, of one kind of labels, and all or none of them with ids and factors.

        Raises:
            TypeError: A part is not HashCodes.
            ValueError: There is no part, or bits, labels, ids, factors or devices of the parts differ.

        Example:
            >>> codes = HashCodes.from_codes(torch.ones(2, 8))
            >>> len(HashCodes.cat([codes, codes, codes[:1]]))
            5
        """
        parts = list(parts)
        if not parts:
            raise ValueError("HashCodes.cat got no parts: give at least one HashCodes")
        for number, part in enumerate(parts):
            if not isinstance(part, HashCodes):
                raise TypeError(f"HashCodes.cat takes HashCodes only, part {number} is {type(part).__name__}")
            if number > 0:
                check_joinable(parts[0], part, ("part 0", f"part {number}"))
        packed = torch.cat([part.packed for part in parts])
        labels = None
        if parts[0].labels is not None:
            labels = torch.cat([part.labels for part in parts if part.labels is not None])
        ids = None
        if parts[0].ids is not None:
            ids = torch.cat([part.ids for part in parts if part.ids is not None])
        factors = None
        if parts[0].factors is not None:
            factors = torch.cat([part.factors for part in parts if part.factors is not None])
        return cls(packed, parts[0].bits, labels, ids, factors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HashCodes:
        """Read a file of :meth:`save` onto the CPU.

        The content is checked against the SHA-256 digests in the file. Files of version 1 of the format
        have none and are read unchecked; saving the codes again adds them.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is truncated or no safetensors file, is not what its digests say, holds
                something else, is of another version of the format, or its content does not fit together.
                The message names the file.
        """
        return read_codes(path)[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file atomically: it replaces an older one only when it is complete on disk.

        The file holds ``packed``, ``labels`` (class ids int64; or ``multi_hot``, packed to bits as codes
        are), ``ids`` and ``factors``. Its metadata are the format, its version, ``bits``, the number of
        ``classes`` of multi-hot labels, and SHA-256 digests of header and tensors. Equal codes give equal
        bytes. The device is not kept.

        Raises:
            FileNotFoundError: The folder does not exist.
            OSError: The file cannot be written. An older file is unchanged, and nothing else is left behind.

        Example:
            >>> import tempfile
            >>> codes = HashCodes.from_codes(torch.randn(5, 12), labels=torch.arange(5))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     codes.save(f"{folder}/codes.safetensors")
            ...     HashCodes.load(f"{folder}/codes.safetensors") == codes
            True
        """
        write_codes(path, self)

    def codes(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the codes as ±1 ``(N, bits)`` of ``dtype``, as :func:`unpack_codes` does."""
        return unpack_codes(self.packed, self.bits, dtype=dtype)

    def to(self, device: torch.device | str) -> HashCodes:
        """Return the codes with all tensors on ``device``; tensors that are there are not copied."""
        labels = None if self.labels is None else self.labels.to(device)
        ids = None if self.ids is None else self.ids.to(device)
        factors = None if self.factors is None else self.factors.to(device)
        return HashCodes(self.packed.to(device), self.bits, labels, ids, factors)

    def truncate(self, bits: int) -> HashCodes:
        """Return the first ``bits`` bits of each code, with the labels and ids.

        The bits are those of ``z[:, :bits]`` if the codes are those of ``z``.

        Factors of a part of the bits cannot be had from those of all. The alignment is kept and the norm is
        multiplied by ``sqrt(bits / self.bits)``, which assumes that the first bits are like the others. So
        estimates stay right in the mean where the bits are in random order, as after a random rotation
        (method ``"rabitq"`` of :func:`hybridhash.models.fit_hash_head`). ITQ's rotation was measured to come
        close: cut from 128 to 64 bits, norms were right to 1 % in the mean and each to some 5 %. Where the
        first bits carry more of the norm than the others, as those of a PCA, the new norm is too small; pack
        ``z[:, :bits]`` anew then. With ``norms`` of longer vectors, all estimates of distances shrink by the
        same ``bits / self.bits``.

        Args:
            bits: The new code length, 1 to that of the codes.

        Raises:
            TypeError: ``bits`` is not an integer.
            ValueError: ``bits`` is below 1, or the codes have fewer.

        Example:
            >>> HashCodes.from_codes(torch.tensor([[0.5, -0.5, 2.0]])).truncate(2)
            HashCodes(size=1, bits=2, bytes=1, labels=None, ids=None)
        """
        bits = check_integer("bits", bits, 1, self.bits, advice="codes can be cut, not lengthened")
        packed = self.packed[:, : -(-bits // 8)].clone()
        if bits % 8:
            packed[:, -1] &= 0xFF << (8 - bits % 8) & 0xFF
        factors = self.factors
        if factors is not None:
            factors = factors * factors.new_tensor([(bits / self.bits) ** 0.5, 1.0])
        return HashCodes(packed, bits, self.labels, self.ids, factors)

    def __len__(self) -> int:
        return self.packed.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Sequence[bool] | Tensor) -> HashCodes:
        rows = as_rows(index, len(self))
        if isinstance(rows, Tensor):
            rows = rows.to(self.packed.device)
        labels = None if self.labels is None else self.labels[rows]
        ids = None if self.ids is None else self.ids[rows]
        factors = None if self.factors is None else self.factors[rows]
        return HashCodes(self.packed[rows], self.bits, labels, ids, factors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HashCodes):
            return NotImplemented
        if len(self) != len(other) or self._kinds()[:-1] != other._kinds()[:-1]:
            return False
        other = other.to(self.packed.device)
        pairs = (
            (self.packed, other.packed),
            (self.labels, other.labels),
            (self.ids, other.ids),
            (self.factors, other.factors),
        )
        return all(a is None or b is None or torch.equal(a, b) for a, b in pairs)

    def __repr__(self) -> str:
        bits, labels, ids, factors, device = self._kinds()
        where = "" if device == "cpu" else f", device={device}"
        size = f"size={len(self)}, bits={bits}, bytes={self.packed.numel()}"
        kept = "" if self.factors is None else f", factors={factors}"
        return f"HashCodes({size}, labels={labels}, ids={ids}{kept}{where})"

    def _kinds(self) -> tuple[str, ...]:
        """Describe what must agree to join codes, in the order of ``_KINDS``."""
        labels = "None"
        if self.labels is not None:
            labels = "class ids" if self.labels.ndim == 1 else f"multi-hot of {self.labels.shape[1]} classes"
        ids = "None" if self.ids is None else "int64"
        factors = "None" if self.factors is None else "float32"
        return str(self.bits), labels, ids, factors, str(self.packed.device)


def read_codes(path: str | os.PathLike[str], *, mapped: bool = False) -> tuple[HashCodes, dict[str, str]]:
    """Read a file of :func:`write_codes` and its metadata; raises as :meth:`HashCodes.load`.

    Args:
        path: The file.
        mapped: Whether the tensors are views of the file on disk, which take no memory of their own. Writing
            to them does not change the file, and the file must not change. Multi-hot labels are unpacked.
            The tensors are not checked against their digest then, only the header is.
    """
    fields, metadata = read_fields(path, mapped=mapped)
    try:
        return HashCodes(**fields), metadata
    except (TypeError, ValueError) as error:
        raise damaged(path, error) from error


def check_joinable(first: HashCodes, other: HashCodes, names: tuple[str, str]) -> None:
    """Raise ValueError, with both names, if bits, kind of labels, ids, factors or device differ."""
    for what, one, two in zip(_KINDS, first._kinds(), other._kinds(), strict=True):
        if one != two:
            raise ValueError(f"{names[0]} and {names[1]} do not fit together: {what} {one} and {two}")
