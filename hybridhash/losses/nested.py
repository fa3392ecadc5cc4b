"""Nested code lengths: one network whose codes are good at several lengths, cut to their first bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hybridhash._checks import check_number
from hybridhash._code_checks import check_lengths
from hybridhash.losses._inputs import Reduction, check_codes, reduction_of_all

__all__ = ["NestedLoss"]


class NestedLoss(nn.Module):
    r"""Sum of losses, each on the first bits of the codes: one training gives codes of several lengths.

    .. math:: L = \sum_k \frac{w_k}{\sum_j w_j} L_k(u_{1..k})

    over the lengths k. After the training ``codes[:, :k]`` are the codes of k bits, for queries and database
    alike, and nothing is encoded again. Every loss of the registry can be nested;
    ``create_loss_for(name, labels, bits, lengths=...)`` makes one for each length, with banks and classifiers
    of their own, and with centers whose prefixes are centers (``hash_centers(..., "nested")``). Losses with
    unrelated centers at each length pull the same bits to different sides.

    Train long enough: the bits that all lengths share get gradients that differ, so they learn more slowly.
    What each length then reaches beside its own training is measured in docs/training.md.

    Args:
        losses: the loss of each length, lengths ascending.
        weights: the weight of each length. None gives all the same weight.

    Attributes:
        losses: the losses, an ``nn.ModuleDict`` whose keys are the lengths as strings.
        lengths: the lengths, ascending.
        weights: the weight of each length; their sum is 1.
        requires: What a training loop must provide: whatever one of the losses requires, see
            :func:`hybridhash.losses.create_loss`.

    Raises:
        TypeError: lengths that are not integers, losses that are not modules, weights that are no numbers.
        ValueError: no lengths, lengths that do not ascend or are below 1, a loss made for another number of
            bits, weights of other lengths, negative ones or zeros only.

    Source: the nested lengths of NHL (He et al., Nested Hash Layer, arXiv 2412.08922) and of Matryoshka
    representations (Kusupati et al., NeurIPS 2022). NHL makes the weights follow the gradients: a longer
    code counts less where its gradient points against that of a shorter one, and would outweigh it. The rule
    of its official code, applied to the gradients of the codes, changed no figure of CSQ, OrthoHash, WML and
    DPSH on the digits, and is left out. So is its distillation from longer codes.

    Example:
        >>> import torch
        >>> from hybridhash.losses import DCHLoss
        >>> loss = NestedLoss({8: DCHLoss(), 16: DCHLoss()})
        >>> codes = torch.tensor([[1.0], [1.0], [-1.0]]).expand(3, 16)
        >>> value = loss(codes, torch.tensor([0, 0, 1]))
        >>> loss.lengths, loss.bits
        ((8, 16), 16)
    """

    def __init__(
        self, losses: Mapping[int, nn.Module], *, weights: Mapping[int, float] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(losses, Mapping):
            raise TypeError(
                f"losses must map lengths to losses, got {type(losses).__name__}: for a loss by its name use "
                'create_loss_for("csq", labels, bits, lengths=(8, 16, ...))'
            )
        self.lengths = check_lengths(losses)
        for length, loss in losses.items():
            _check_bits(loss, length)
        self.losses = nn.ModuleDict({str(length): loss for length, loss in losses.items()})
        self.weights = _checked_weights(weights, self.lengths)
        self.requires: frozenset[str] = frozenset(
            need for loss in losses.values() for need in getattr(loss, "requires", ())
        )

    @property
    def bits(self) -> int:
        """Code length of the network: the longest length."""
        return self.lengths[-1]

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
        """Compute the weighted mean of the losses of all lengths.

        Args:
            codes: ``(B, bits)`` floating-point.
            labels: ``(B,)`` class ids or ``(B, C)`` multi-hot, as the losses take them.
            indices: integers ``(B,)``, rows of the training set, for losses that require them.
            ref_codes: ``(M, bits)``, cut for each length as the codes are.
            ref_labels: labels of ``ref_codes``.
            reduction: "none" returns the weighted mean for each row, if all losses have values of rows.

        Returns:
            0-dim, or ``(B,)`` with ``reduction="none"``; float32 (float64 for float64 codes), whatever
            autocast does.

        Raises:
            TypeError: ``reduction="none"`` with a loss that has no values of rows.
            ValueError: codes of another length than the longest, and whatever the losses raise.
        """
        check_codes(codes, bits=self.bits)
        if ref_codes is not None:
            check_codes(ref_codes, bits=self.bits, name="ref_codes")
        reduced = reduction_of_all(self.losses.values(), reduction)
        parts = []
        for length, loss in zip(self.lengths, self.losses.values(), strict=True):
            second = None if ref_codes is None else ref_codes[:, :length]
            given = {"indices": indices, "ref_codes": second, "ref_labels": ref_labels, **reduced}
            parts.append(self.weights[length] * loss(codes[:, :length], labels, **given))
        return sum(parts[1:], start=parts[0])

    def parts(self) -> dict[str, Tensor]:
        """Return the terms of the last call, weighted, by the length and the name of the term: ``"8/pairs"``.

        Raises:
            RuntimeError: the loss was not called yet.
        """
        parts = {}
        for length, loss in zip(self.lengths, self.losses.values(), strict=True):
            of_loss: Any = loss
            for term, value in of_loss.parts().items():
                parts[f"{length}/{term}"] = self.weights[length] * value
        return parts

    def epoch_end(self) -> None:
        """Call ``epoch_end`` of every loss that has one; needed if ``requires`` has ``"epoch_hook"``."""
        for loss in self.losses.values():
            if "epoch_hook" in getattr(loss, "requires", ()):
                loss.epoch_end()  # type: ignore[operator]

    def extra_repr(self) -> str:
        return "weights=" + ", ".join(f"{length}: {weight:.3g}" for length, weight in self.weights.items())


def _check_bits(loss: nn.Module, length: int) -> None:
    if not isinstance(loss, nn.Module):
        raise TypeError(f"the loss of {length} bits must be a module, got {type(loss).__name__}")
    for owner in (loss, getattr(loss, "bank", None)):
        bits = getattr(owner, "bits", None)
        if bits is not None and bits != length:
            raise ValueError(
                f"the {type(owner).__name__} of length {length} was made for {bits} bits: "
                f"make it with bits={length}"
            )


def _checked_weights(weights: Mapping[int, float] | None, lengths: tuple[int, ...]) -> dict[int, float]:
    if weights is None:
        weights = dict.fromkeys(lengths, 1.0)
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights must map lengths to numbers, got {type(weights).__name__}")
    if set(weights) != set(lengths):
        raise ValueError(f"weights must be those of the lengths {lengths}, got {tuple(weights)}")
    for length, weight in weights.items():
        check_number(f"the weight of {length} bits", weight)
    total = float(sum(weights.values()))
    if not all(weight >= 0 for weight in weights.values()) or not 0 < total < float("inf"):
        raise ValueError(f"weights must be 0 or positive and finite, not all 0, got {dict(weights)}")
    return {length: weights[length] / total for length in lengths}
