"""Checks of codes, ids and indices; :mod:`hybridhash.codes` and the rooms that take codes share them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_integer

__all__ = [
    "MAX_BITS",
    "as_factors",
    "as_ids",
    "as_rows",
    "check_lengths",
    "check_numbers",
    "check_packed",
    "check_width",
    "from_numpy",
]

MAX_BITS = 4096


def from_numpy(array: np.ndarray[Any, Any], name: str) -> Tensor:
    """Return the numbers of a NumPy array as a tensor, which shares its memory where it can.

    Args:
        array: Numbers or bools of any shape. An array that must not be written to (a file mapped into memory,
            for instance) is copied, and so are other byte orders and unsigned integers above 8 bits.
        name: The name of the argument in error messages.

    Raises:
        TypeError: The array holds no real numbers.

    Example:
        >>> from_numpy(np.array([3, 65_000], dtype=np.uint16), "labels")
        tensor([    3, 65000])
    """
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, got a NumPy array of {array.dtype}")
    kind = array.dtype.newbyteorder("=")
    if kind.kind == "u" and kind.itemsize > 1:
        kind = np.dtype(np.int64)
    if array.dtype != kind or not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.astype(kind)
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise TypeError(f"{name} must hold numbers that torch knows, got {array.dtype}: {error}") from error


def check_lengths(lengths: Iterable[int], bits: int | None = None) -> tuple[int, ...]:
    """Return code lengths as ints if there are some, they ascend, and the last is ``bits`` where it is given.

    Raises:
        TypeError: They are not several, or one is not an integer.
        ValueError: There is no length, one is below 1, they do not ascend, or they end elsewhere.
    """
    if not isinstance(lengths, Iterable):
        raise TypeError(f"lengths must be several code lengths, such as (16, 32, 64), got {lengths!r}")
    checked = tuple(check_integer("lengths", length, 1) for length in lengths)
    if not checked:
        raise ValueError("lengths must name at least one code length, got none")
    if any(longer <= shorter for shorter, longer in pairwise(checked)):
        raise ValueError(f"lengths must ascend, each once, got {checked}: use {tuple(sorted(set(checked)))}")
    if bits is not None and checked[-1] != bits:
        raise ValueError(f"lengths must end with the code length {bits}, got {checked}")
    return checked


def check_numbers(values: Tensor, name: str) -> None:
    """Raise unless a tensor is dense and holds its numbers, which one on the meta device has not."""
    if values.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {values.layout}: use to_dense()")
    if values.is_meta:
        raise ValueError(f"{name} is on the meta device and holds no numbers: compute the codes first")


def check_packed(packed: Tensor, bits: int, name: str) -> None:
    """Raise unless ``packed`` is a valid tensor of ``bits``-bit codes."""
    check_integer("bits", bits, 1, MAX_BITS)
    check_width(packed, bits, name)


def check_width(packed: Tensor, bits: int, name: str) -> None:
    """Raise unless ``packed`` is uint8 ``(N, ceil(bits / 8))`` with zero padding, for any number of bits."""
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


def as_ids(ids: Tensor | np.ndarray[Any, Any], *, length: int, name: str = "ids") -> Tensor:
    """Return ids as int64 ``(length,)``.

    Args:
        ids: Integers ``(length,)`` of any dtype, a tensor or a NumPy array.
        length: The number of codes.
        name: The name of the argument in error messages.

    Raises:
        TypeError: ``ids`` is not a tensor of integers.
        ValueError: The shape is wrong.

    Example:
        >>> as_ids(torch.tensor([7, 9], dtype=torch.int32), length=2)
        tensor([7, 9])
    """
    if isinstance(ids, np.ndarray):
        ids = from_numpy(ids, name)
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(ids).__name__}: wrap it in torch.as_tensor")
    if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {ids.dtype}")
    if ids.shape != (length,):
        raise ValueError(f"{name} must be ({length},), one for each code, got shape {tuple(ids.shape)}")
    return ids.to(torch.int64)


def as_factors(factors: Tensor | np.ndarray[Any, Any], *, length: int) -> Tensor:
    """Return correction factors as float32 ``(length, 2)``: a norm and an alignment for each code.

    Args:
        factors: Floating ``(length, 2)``, a tensor or a NumPy array.
        length: The number of codes.

    Raises:
        TypeError: ``factors`` is not a floating-point tensor.
        ValueError: The shape is wrong, or a number is NaN or infinite, a norm negative, or an alignment not
            above 0.

    Example:
        >>> as_factors(torch.tensor([[5.0, 0.8]]), length=1)
        tensor([[5.0000, 0.8000]])
    """
    if isinstance(factors, np.ndarray):
        factors = from_numpy(factors, "factors")
    if not isinstance(factors, Tensor) or not factors.dtype.is_floating_point:
        got = factors.dtype if isinstance(factors, Tensor) else type(factors).__name__
        raise TypeError(f"factors must be a floating-point tensor (N, 2), got {got}")
    if factors.shape != (length, 2):
        raise ValueError(
            f"factors must be ({length}, 2), norm and alignment of each code, got shape "
            f"{tuple(factors.shape)}"
        )
    factors = factors.detach().to(torch.float32)
    if length and not factors.is_meta:
        # One pass without temporary tensors; NaN is the least and the largest of a column that has one.
        least, most = (values.tolist() for values in factors.aminmax(dim=0))
        if not (0 <= least[0] <= most[0] < float("inf") and 0 < least[1] <= most[1] < float("inf")):
            raise ValueError(
                f"factors must be norms of 0 or more and alignments above 0, got norms {least[0]:.4g} to "
                f"{most[0]:.4g} and alignments {least[1]:.4g} to {most[1]:.4g}: compute them with "
                "HashCodes.from_codes(codes, factors=True)"
            )
    return factors


def as_rows(index: object, size: int) -> slice | Tensor:
    """Return an index as a slice with a positive step, or as row numbers int64.

    Args:
        index: An int, a slice, a list or range, a bool mask, or a tensor or array of integers.
        size: The number of rows.

    Raises:
        TypeError: The index is of no such kind.
        IndexError: A row is out of range, or a mask has another length.

    Example:
        >>> as_rows([True, False, True], 3), as_rows(-1, 3)
        (tensor([0, 2]), tensor([-1]))
    """
    if isinstance(index, slice):
        start, stop, step = index.indices(size)
        return slice(start, stop, step) if step > 0 else torch.arange(start, stop, step)
    if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
        index = [int(index)]
    if isinstance(index, Tensor) and index.ndim == 0 and index.dtype != torch.bool:
        index = index[None]
    if not isinstance(index, (list, range, np.ndarray, Tensor)):
        raise TypeError(
            f"index must be an int, slice, list, bool mask or integer tensor, got {type(index).__name__}"
        )
    rows = torch.as_tensor(index)
    if rows.shape == (0,) and rows.dtype != torch.bool:
        rows = rows.long()  # an empty list has no dtype of its own
    if rows.ndim != 1 or rows.dtype.is_floating_point or rows.dtype.is_complex or rows.dtype == torch.uint8:
        raise TypeError(
            f"index must be one-dimensional, of bools or (not uint8) integers, got {rows.dtype} of shape "
            f"{tuple(rows.shape)}"
        )
    if rows.dtype == torch.bool:
        if rows.shape[0] != size:
            raise IndexError(f"the mask has {rows.shape[0]} entries for {size} codes")
        return rows.nonzero()[:, 0]
    if rows.numel() and not -size <= int(rows.min()) <= int(rows.max()) < size:
        outside = rows[(rows < -size) | (rows >= size)][0].item()
        raise IndexError(f"index {outside} is out of range for {size} codes")
    return rows.long()
