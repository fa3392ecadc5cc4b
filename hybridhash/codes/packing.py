"""Signs and packed bits of real-valued codes, and codes of any accepted form as packed bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_integer
from hybridhash._code_checks import MAX_BITS, check_numbers, check_packed, from_numpy
from hybridhash._hamming import pack_bits, row_factors, unpack_bits

__all__ = [
    "as_packed",
    "as_packed_pair",
    "binarize",
    "correction_factors",
    "is_packed",
    "pack_codes",
    "sign",
    "straight_through_sign",
    "unpack_codes",
]

if TYPE_CHECKING:
    from hybridhash.codes.hash_codes import HashCodes

    Array = np.ndarray[Any, Any]


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
        values: Any shape, floating.

    Example:
        >>> sign(torch.tensor([0.3, 0.0, -2.0]))
        tensor([ 1., -1., -1.])
    """
    # Signs are -1, 0 and 1 first; half a step down, 0 is negative.
    return values.detach().sign().sub_(0.5).sign_()


def straight_through_sign(values: Tensor) -> Tensor:
    """Return :func:`sign` of ``values`` with the gradient of the identity; NaN where they are infinite.

    Args:
        values: Any shape, floating.

    Source: Bengio, Léonard, Courville, arXiv 1308.3432, the straight-through estimator.

    Example:
        >>> values = torch.tensor([0.3, -2.0], requires_grad=True)
        >>> straight_through_sign(values).sum().backward()
        >>> values.grad
        tensor([1., 1.])
    """
    # The difference is 0, so the signs are exact; its gradient is 1.
    return sign(values) + (values - values.detach())


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
    if codes.layout != torch.strided or codes.is_meta:
        check_numbers(codes, name)  # which says what is wrong
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
    from hybridhash.codes.hash_codes import HashCodes  # which packs its codes with this module

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


def is_packed(codes: object) -> bool:
    """Return whether codes are a tensor or an array of packed bits, which do not know their length."""
    return isinstance(codes, (Tensor, np.ndarray)) and str(codes.dtype).endswith("uint8")


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
