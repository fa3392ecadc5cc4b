"""Weight matrices of a network, for the losses that regularise them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["linear_layers", "squared_norm"]


def linear_layers(layers: nn.Module | Iterable[nn.Module] | None) -> tuple[nn.Linear, ...]:
    """Every ``nn.Linear`` in ``layers``, each once; a plain tuple, so that a loss does not own them.

    Raises:
        TypeError: something that is not a module.
        ValueError: modules without any ``nn.Linear``.
    """
    if layers is None:
        return ()
    given = [layers] if isinstance(layers, nn.Module) else list(layers)
    for module in given:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"layers must be modules (nn.Linear, or what holds them), got {type(module).__name__}"
            )
    found = {id(part): part for module in given for part in module.modules() if isinstance(part, nn.Linear)}
    if not found:
        names = ", ".join(type(module).__name__ for module in given) or "an empty collection"
        raise ValueError(f"layers must hold at least one nn.Linear, got {names}")
    return tuple(found.values())


def squared_norm(layers: tuple[nn.Linear, ...], like: Tensor, *, biases: bool) -> Tensor:
    """Sum of the squares of all weights (and biases), 0-dim of the dtype and device of ``like``."""
    total = torch.zeros((), dtype=like.dtype, device=like.device)
    for layer in layers:
        total = total + layer.weight.to(like).square().sum()
        if biases and layer.bias is not None:
            total = total + layer.bias.to(like).square().sum()
    return total
