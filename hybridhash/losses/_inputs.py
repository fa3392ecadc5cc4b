"""Codes as the losses take them: checked, in float32 or float64."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_codes", "upcast"]


def check_codes(codes: Tensor, *, bits: int | None = None, name: str = "codes") -> Tensor:
    """``codes`` unchanged, or the error that says what is wrong.

    Raises:
        TypeError: not a tensor, or not floating-point.
        ValueError: not ``(N, bits)``, or without any bit.
    """
    if not isinstance(codes, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(codes).__name__}")
    if not codes.dtype.is_floating_point:
        raise TypeError(
            f"{name} must be real-valued (floating-point), got {codes.dtype}: a loss looks at the "
            "network's outputs, not at bits"
        )
    if codes.ndim != 2 or codes.shape[1] == 0:
        raise ValueError(f"{name} must have shape (N, bits), got {tuple(codes.shape)}")
    if bits is not None and codes.shape[1] != bits:
        raise ValueError(f"{name} have {codes.shape[1]} bits, expected {bits}")
    return codes


def upcast(codes: Tensor) -> Tensor:
    """Half-precision codes as float32; float32 and float64 as they are."""
    return codes.float() if codes.dtype in (torch.float16, torch.bfloat16) else codes
