"""Several losses as one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hybridhash._checks import check_number
from hybridhash.losses._inputs import Reduction, reduction_of_all

__all__ = ["SumOfLosses"]


class SumOfLosses(nn.Module):
    r"""A weighted sum of losses, which a training loop treats as one loss.

    .. math:: L = \sum_n w_n L_n

    ``requires`` is what any of the losses requires, parameters, buffers and modes are those of all, and
    :meth:`epoch_end` calls that of each. Every loss gets the same codes, labels and indices.

    Args:
        losses: the losses by name. Names appear in :meth:`parts` and in the state dict.
        weights: the weight of each loss by name; 1 where none is given.

    Attributes:
        losses: ``nn.ModuleDict``, the losses by name.
        weights: the weights by name. A loop may change them; they are not in the state dict.
        requires: What a training loop must provide, see :func:`hybridhash.losses.create_loss`.

    Raises:
        TypeError: no mapping of names to modules, or a weight that is no number.
        ValueError: no loss, a name that cannot be one, a weight that is not finite, or one for a loss that is
            not there.

    Example:
        >>> from hybridhash.losses import CSQLoss, WMLLoss
        >>> loss = SumOfLosses({"csq": CSQLoss(10, bits=16), "wml": WMLLoss()}, weights={"wml": 0.5})
        >>> codes = torch.zeros(2, 16, requires_grad=True)
        >>> loss(codes, torch.tensor([3, 5])).backward()
        >>> [(name, round(part.item(), 4)) for name, part in loss.parts().items()]
        [('csq/centers', 0.6931), ('csq/quantization', 0.05), ('wml/pairs', 0.6931)]
    """

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        if not isinstance(losses, Mapping):
            raise TypeError(
                "losses must map names to losses, such as {'csq': CSQLoss(10, 64)}, "
                f"got {type(losses).__name__}"
            )
        if not losses:
            raise ValueError("losses is empty: give at least one loss")
        for name, loss in losses.items():
            _check_loss(name, loss)
        if not isinstance(weights, Mapping | None):
            raise TypeError(f"weights must map names to numbers, got {type(weights).__name__}")
        weights = dict(weights or {})
        for name, weight in weights.items():
            if name not in losses:
                raise ValueError(f"there is a weight for {name!r}, but the losses are {', '.join(losses)}")
            check_number(f"the weight of {name!r}", weight)
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {name!r} must be a finite number, got {weight}")
        self.losses = nn.ModuleDict(losses)
        self.weights = {name: weights.get(name, 1.0) for name in losses}
        self.requires = frozenset[str]().union(*(getattr(loss, "requires", ()) for loss in losses.values()))

    def forward(
        self,
        codes: Tensor,
        labels: Tensor,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Compute the weighted sum of the losses of a batch.

        Args:
            codes: ``(B, bits)`` floating-point.
            labels: ``(B,)`` class ids or ``(B, C)`` multi-hot.
            indices: integers ``(B,)``, rows of the training set.
            ref_codes: codes to compare with; a loss without a second side refuses them by name.
            ref_labels: labels of ``ref_codes``.
            reduction: "none" sums the values of each row; a loss without such values refuses it by name.

        Returns:
            0-dim, or ``(B,)`` with ``reduction="none"``; float32 (float64 for float64 codes).

        Raises:
            IndexError, TypeError, ValueError: those of the losses.
        """
        call: dict[str, Any] = {"indices": indices, "ref_codes": ref_codes, "ref_labels": ref_labels}
        call |= reduction_of_all(self.losses.values(), reduction)
        terms = [self.weights[name] * loss(codes, labels, **call) for name, loss in self.losses.items()]
        return torch.stack(terms).sum(0)

    def parts(self) -> dict[str, Tensor]:
        """Return the terms of the last call, weighted, by the name of the loss and of the term.

        Raises:
            RuntimeError: the loss was not called yet.
        """
        parts = {}
        for name, loss in self.losses.items():
            of_loss: Any = loss
            for term, value in of_loss.parts().items():
                parts[f"{name}/{term}"] = self.weights[name] * value
        return parts

    def epoch_end(self) -> None:
        """Call ``epoch_end()`` of every loss that has one."""
        for loss in self.losses.values():
            epoch_end: Any = getattr(loss, "epoch_end", None)
            if epoch_end is not None:
                epoch_end()

    def extra_repr(self) -> str:
        return f"weights={self.weights}"


def _check_loss(name: object, loss: object) -> None:
    """Raise unless a loss is a module and its name one that ``nn.ModuleDict`` takes."""
    if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
        raise ValueError(
            f"{name!r} cannot be the name of a loss: give a string without dots that nn.ModuleDict does not "
            'use itself, such as "csq"'
        )
    if not isinstance(loss, nn.Module):
        raise TypeError(f"the loss {name!r} must be a module, got {type(loss).__name__}")
