"""Linear maps and convolutions that leave emulated products of half precision aside.

A processor without instructions for bfloat16 (or float16) multiplies such matrices several times slower than
float32 ones. There these layers widen the factors, multiply in float32 and round the result, as the emulation
does, but for the order of its sums. Elsewhere, and in exported programs, they are the layers of ``torch.nn``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Conv2d", "Linear"]

INSTRUCTIONS = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float16: ("avx512_fp16", "amx_fp16")}


def emulated_dtypes(capabilities: Mapping[str, Any]) -> frozenset[torch.dtype]:
    """What a processor multiplies by emulation.

    Args:
        capabilities: as ``torch.cpu.get_capabilities()`` gives them.

    Returns:
        The dtypes; none where they are not known to be emulated.

    Example:
        >>> sorted(map(str, emulated_dtypes({"architecture": "x86_64", "avx512_bf16": True})))
        ['torch.float16']
    """
    if capabilities.get("architecture") != "x86_64":
        return frozenset()
    return frozenset(d for d, names in INSTRUCTIONS.items() if not any(map(capabilities.get, names)))


# Older versions of PyTorch do not say; there nothing is widened.
EMULATED = emulated_dtypes(getattr(torch.cpu, "get_capabilities", dict)())
# An exported program runs on other processors.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def product(
    function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any
) -> Tensor:
    """``function(x, weight, bias, *args)``, in float32 where this processor would emulate it."""
    autocast = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    emulated = dtype in EMULATED and x.device.type == "cpu" and (autocast or weight.dtype == dtype)
    if not emulated or torch.jit.is_tracing() or is_exporting():  # type: ignore[attr-defined,no-untyped-call]
        return function(x, weight, bias, *args)
    with torch.autocast("cpu", enabled=False):
        return function(x.float(), weight.float(), None if bias is None else bias.float(), *args).to(dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``, in float32 where it would be emulated."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return F.linear(x, weight, bias)
    return product(F.linear, x, weight, bias)


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """``F.conv2d``, in float32 where it would be emulated."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return F.conv2d(x, weight, bias, stride, padding)
    return product(F.conv2d, x, weight, bias, stride, padding)


# Tracing by torch.fx takes them whole, because it cannot follow a choice by dtype.
torch.fx.wrap("linear")
torch.fx.wrap("conv2d")


class Linear(nn.Linear):
    """``nn.Linear``, in float32 where half precision would be emulated."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """``nn.Conv2d``, neither dilated nor grouped; in float32 where half precision would be emulated."""

    def forward(self, input: Tensor) -> Tensor:
        return conv2d(input, self.weight, self.bias, self.stride, self.padding)  # type: ignore[arg-type]
