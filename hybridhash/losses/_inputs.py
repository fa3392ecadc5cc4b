"""What a loss is given, checked: codes, labels, a second side, rows of the data set, layers.

At the other end, how the terms of a loss become the loss: :func:`add_up` and :func:`reduce_rows`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridhash._code_checks import from_numpy
from hybridhash.labels import as_labels, labelled, shared_labels
from hybridhash.losses._distributed import gather_rows, sum_over_ranks, world_size

__all__ = [
    "HasParts",
    "PairBatch",
    "Reduction",
    "add_up",
    "check_codes",
    "check_rows",
    "class_batch",
    "class_entropy",
    "diverged_to_nan",
    "label_shares",
    "linear_layers",
    "one_label_each",
    "pair_batch",
    "reduce_rows",
    "reduction_of_all",
    "refuse_reference",
    "upcast",
]


Reduction = Literal["mean", "none"]


class HasParts(nn.Module):
    """A loss that remembers the terms of its last call."""

    _parts: dict[str, Tensor]

    def parts(self) -> dict[str, Tensor]:
        """Return the terms of the last call by name, 0-dim and detached: the loss is their sum.

        Weights are included. Under ``torch.distributed`` they are those of the joined batch, on every rank.
        Nothing is computed, so a training loop can log them in every step.

        Raises:
            RuntimeError: the loss was not called yet.
        """
        if "_parts" not in vars(self):
            raise RuntimeError(f"{type(self).__name__} has no parts before its first call")
        return dict(self._parts)


def check_codes(codes: Tensor, *, bits: int | None = None, name: str = "codes") -> Tensor:
    """Return ``codes`` unchanged if they are real-valued ``(N, bits)``.

    Raises:
        TypeError: not a tensor, or not floating-point, or sparse.
        ValueError: not ``(N, bits)``, without any bit, or on the meta device.
    """
    if not isinstance(codes, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(codes).__name__}")
    if codes.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {codes.layout}: use to_dense()")
    if codes.device.type == "meta":  # moved to another device, it would be whatever is in memory there
        raise ValueError(f"{name} are on the meta device, where they have no values")
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


def diverged_to_nan(codes: Tensor) -> Tensor:
    """Return codes with NaN for infinite ones, for losses whose formula would make something finite of them.

    A loss of codes that have diverged must show it.
    """
    given = codes.detach()
    return codes + (given - given)  # 0, or NaN of an infinity


def upcast(codes: Tensor) -> Tensor:
    """Return half-precision codes as float32; float32 and float64 as they are."""
    return codes.float() if codes.dtype in (torch.float16, torch.bfloat16) else codes


def class_batch(
    codes: Tensor,
    labels: Tensor | np.ndarray[Any, Any],
    *,
    num_classes: int,
    bits: int,
    soft: bool = False,
) -> tuple[Tensor, Tensor]:
    """Check a batch for a loss that knows the classes.

    Args:
        codes: ``(B, bits)`` floating-point.
        labels: ``(B,)`` class ids below ``num_classes``, or multi-hot ``(B, num_classes)``.
        num_classes: number of classes that the loss was made for.
        bits: code length that the loss was made for.
        soft: whether real numbers in [0, 1] mean something to the loss, as mixup and label smoothing give
            them.

    Returns:
        The codes in float32 (float64 if they were), and the labels as
        :func:`~hybridhash.labels.as_labels` returns them, on the device of the codes. With ``soft``, labels
        ``(B, C)`` that are not all 0 or 1 stay real numbers, in the dtype of the codes; under
        ``torch.compile``, whatever their values are.

    Raises:
        TypeError: codes or labels of the wrong type.
        ValueError: shapes that do not fit, a class id that is too large, or soft labels outside [0, 1]. Under
            ``torch.compile`` the values are not looked at, because that would stop the graph and wait for the
            device in every step.
    """
    check_codes(codes, bits=bits)
    if soft and isinstance(labels, np.ndarray):
        labels = from_numpy(labels, "labels")
    if soft and isinstance(labels, Tensor) and labels.ndim == 2 and labels.dtype.is_floating_point:
        labels = _soft_labels(labels, codes)
    else:
        labels = as_labels(labels, length=codes.shape[0])
    if labels.ndim == 2 and labels.shape[1] != num_classes:
        raise ValueError(f"labels have {labels.shape[1]} classes, the loss was made for {num_classes}")
    if labels.ndim == 1 and labels.numel() and not torch.compiler.is_compiling():
        largest = int(labels.max())
        if largest >= num_classes:
            raise ValueError(f"class id {largest} does not fit labels of {num_classes} classes")
    return codes.to(torch.promote_types(codes.dtype, torch.float32)), labels.to(codes.device)


def _soft_labels(labels: Tensor, codes: Tensor) -> Tensor:
    """Return real-valued labels ``(B, C)`` as bool if all are 0 or 1, else in the dtype of the loss."""
    if labels.shape[1] == 1 or labels.device.type == "meta":
        return as_labels(labels, length=codes.shape[0])  # which refuses them
    hot = as_labels(labels != 0, length=codes.shape[0])
    if not torch.compiler.is_compiling() and labels.numel():
        outside = ~((labels >= 0) & (labels <= 1))
        if bool(outside.any()):
            raise ValueError(
                "labels of real numbers must be in [0, 1] (shares of the classes, as mixup and label "
                f"smoothing give them), got the entry {labels[outside][0].item()}"
            )
        if torch.equal(hot.to(labels.dtype), labels):
            return hot
    return labels.to(torch.promote_types(codes.dtype, torch.float32))


def label_shares(targets: Tensor) -> Tensor:
    """Return ``y / sum(y)`` of each row of ``(B, C)``: its classes share a weight of 1; 0 without a label."""
    return targets / targets.sum(1, keepdim=True).clamp(min=torch.finfo(targets.dtype).tiny)


def class_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of each row, ``(B,)``; the labels of a row share its weight.

    Args:
        logits: ``(B, C)``.
        labels: int64 ``(B,)``, bool ``(B, C)`` or real-valued ``(B, C)``; a row without a label counts 0.
    """
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
    return -(label_shares(labels.to(logits.dtype)) * logits.log_softmax(1)).sum(1)


def one_label_each(labels: Tensor, method: str) -> Tensor:
    """Return the labels unchanged if no row has more than one, or shares of more than 1 in all.

    Args:
        labels: as :func:`class_batch` returns them.
        method: name of the loss, for the message.

    Raises:
        ValueError: a row with several labels. Not looked for under ``torch.compile``.
    """
    if labels.ndim == 2 and labels.shape[0] and not torch.compiler.is_compiling():
        most = float(labels.sum(1).max())
        if most > 1 + 1e-3:
            raise ValueError(
                f"{method} is defined for one label per image (softmax over the classes), got a row with "
                f"{most:g} labels: use a loss for multi-label data, such as CSQLoss or OrthoHashLoss"
            )
    return labels


def add_up(terms: dict[str, Tensor], parts: dict[str, Tensor] | None) -> Tensor:
    """Return the sum of the terms of a loss, 0-dim each, and note them in ``parts``."""
    if parts is not None:
        parts.update({name: term.detach() for name, term in terms.items()})
    return torch.stack(list(terms.values())).sum()


def reduce_rows(
    terms: dict[str, Tensor],
    labels: Tensor,
    *,
    reduction: Reduction = "mean",
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """Return the mean of the losses of all rows that have a label, over all ranks; 0 if there is none.

    Args:
        terms: what the loss of a row is the sum of, by name, each ``(B,)``.
        labels: ``(B,)`` or ``(B, C)``, as :func:`class_batch` returns them.
        reduction: "none" returns the losses of the rows, ``(B,)``, 0 without a label; under
            ``torch.distributed`` those of the joined batch, in the order of the ranks.
        parts: a dict that gets the mean of each term, detached; None notes nothing.

    Raises:
        ValueError: another reduction.
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
    counted = labelled(labels).to(next(iter(terms.values())).dtype)
    number = counted.sum()
    if world_size() > 1:
        number = sum_over_ranks(number)
    share = counted / number.clamp(min=1)
    means = [rows @ share for rows in terms.values()]
    if world_size() > 1:
        means = list(sum_over_ranks(torch.stack(means)))
    if parts is not None:
        parts.update((name, mean.detach()) for name, mean in zip(terms, means, strict=True))
    if reduction == "mean":
        return sum(means[1:], start=means[0])
    rows = torch.stack(list(terms.values())).sum(0)
    return gather_rows(rows * counted)


def reduction_of_all(losses: Iterable[nn.Module], reduction: Reduction) -> dict[str, Reduction]:
    """Return the keyword that hands a reduction on to several losses; none for the mean, which all compute.

    Raises:
        TypeError: another reduction than the mean, and a loss that knows no other.
    """
    if reduction == "mean":
        return {}
    for loss in losses:
        if "reduction" not in inspect.signature(loss.forward).parameters:
            raise TypeError(
                f"{type(loss).__name__} has no values of rows, so reduction={reduction!r} cannot be had of "
                "it: leave reduction out, or this loss"
            )
    return {"reduction": reduction}


class PairBatch(NamedTuple):
    """Anchors and the items they are compared with, on one device, in one dtype (float32 or float64).

    Attributes:
        codes: ``(B, bits)``, the anchors.
        labels: int64 ``(B,)`` or bool ``(B, C)``.
        ref_codes: ``(M, bits)``, the items; the anchors themselves if ``in_batch``.
        ref_labels: int64 ``(M,)`` or bool ``(M, C)``.
        in_batch: whether both sides are the batch.
    """

    codes: Tensor
    labels: Tensor
    ref_codes: Tensor
    ref_labels: Tensor
    in_batch: bool

    def shared(self) -> Tensor:
        """Return the number of labels that each pair shares: ``(B, M)`` in the dtype of the codes."""
        return shared_labels(self.labels, self.ref_labels).to(self.codes.dtype)

    def relevance(self) -> Tensor:
        """Return 1 where a pair shares a label and 0 elsewhere: ``(B, M)`` in the dtype of the codes."""
        return (self.shared() > 0).to(self.codes.dtype)

    def different(self) -> Tensor:
        """Return bool ``(B, M)``: False where both sides are the same item."""
        rows, columns = self.codes.shape[0], self.ref_codes.shape[0]
        if not self.in_batch:
            return torch.ones(rows, columns, dtype=torch.bool, device=self.codes.device)
        return ~torch.eye(rows, dtype=torch.bool, device=self.codes.device)

    def products(self) -> Tensor:
        """Return the inner products ``<u, v>`` of all pairs: ``(B, M)``."""
        return self.codes @ self.ref_codes.T


def pair_batch(
    codes: Tensor, labels: Tensor, ref_codes: Tensor | None, ref_labels: Tensor | None
) -> PairBatch:
    """Pair the batch of all ranks with itself, or with ``ref_codes``.

    Args:
        codes: ``(B, bits)`` floating-point.
        labels: ``(B,)`` class ids or ``(B, C)`` multi-hot.
        ref_codes: ``(M, bits)`` codes to compare with, equal on all ranks; they get no gradient. None
            compares within the batch.
        ref_labels: labels of ``ref_codes``, given if and only if these are.

    Raises:
        TypeError: codes or labels of the wrong type.
        ValueError: shapes that do not fit each other, or one of ``ref_codes`` and ``ref_labels`` without the
            other.
    """
    if (ref_codes is None) != (ref_labels is None):
        given, missing = ("ref_codes", "ref_labels") if ref_labels is None else ("ref_labels", "ref_codes")
        raise ValueError(
            f"{given} was given without {missing}: give both, or neither to compare in the batch"
        )
    bits = check_codes(codes).shape[1]
    labels = as_labels(labels, length=codes.shape[0])
    if ref_codes is None or ref_labels is None:
        codes = gather_rows(upcast(codes))
        labels = gather_rows(labels.to(codes.device))
        return PairBatch(codes, labels, codes, labels, in_batch=True)
    check_codes(ref_codes, bits=bits, name="ref_codes")
    ref_labels = as_labels(ref_labels, length=ref_codes.shape[0], name="ref_labels")
    codes = gather_rows(upcast(codes))
    labels = gather_rows(labels.to(codes.device))
    ref_codes = ref_codes.detach().to(codes)
    return PairBatch(codes, labels, ref_codes, ref_labels.to(codes.device), in_batch=False)


def refuse_reference(name: str) -> NoReturn:
    """Raise the ValueError of a loss ``name`` that was given a second side but has none."""
    raise ValueError(f"{name} compares nothing with ref_codes: leave ref_codes and ref_labels out")


def check_rows(indices: Tensor | None, *, length: int, num_rows: int, owner: str) -> Tensor:
    """Return row numbers as int64 ``(length,)`` if they are valid.

    Args:
        indices: what the caller gave.
        length: number of rows in the batch.
        num_rows: number of rows that the owner has.
        owner: what the row numbers refer to, as messages call it.

    Raises:
        IndexError: a row number outside ``0 .. num_rows - 1``. Not looked for under ``torch.compile``.
        TypeError: not a tensor of integers.
        ValueError: None, or another shape than ``(length,)``.
    """
    if indices is None:
        raise ValueError(f"indices are needed: the rows of the batch in the {owner}")
    if not isinstance(indices, Tensor) or indices.dtype.is_floating_point or indices.dtype == torch.bool:
        got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"indices must be a tensor of integers (rows of the {owner}), got {got}")
    if indices.shape != (length,):
        raise ValueError(
            f"indices must have shape ({length},), one for each code, got {tuple(indices.shape)}"
        )
    if length and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in torch.aminmax(indices))
        if low < 0 or high >= num_rows:
            raise IndexError(f"index {low if low < 0 else high} is outside the {owner} of {num_rows} rows")
    return indices.to(torch.int64)


def linear_layers(layers: nn.Module | Iterable[nn.Module] | None) -> tuple[nn.Linear, ...]:
    """Return every ``nn.Linear`` in ``layers`` once, as a plain tuple, so that a loss does not own them.

    Raises:
        TypeError: something that is not a module.
        ValueError: modules without any ``nn.Linear``.
    """
    if layers is None:
        return ()
    one = isinstance(layers, nn.Module) or not isinstance(layers, Iterable)
    given: list[Any] = [layers] if one else list(layers)  # type: ignore[arg-type]
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
