"""The two sides that a loss over whole batches compares."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hybridhash.labels import as_labels, shared_labels
from hybridhash.losses._distributed import gather_rows
from hybridhash.losses._inputs import check_codes, upcast

__all__ = ["Sides", "check_rows", "joined_batch", "refuse_reference", "two_sides"]


class Sides(NamedTuple):
    """Anchors and the items they are compared with, on one device, in one dtype (float32 or float64)."""

    codes: Tensor
    labels: Tensor
    ref_codes: Tensor
    ref_labels: Tensor
    in_batch: bool

    def shared(self) -> Tensor:
        """Labels that each pair shares, ``(B, M)`` in the dtype of the codes."""
        return shared_labels(self.labels, self.ref_labels).to(self.codes.dtype)

    def others(self) -> Tensor:
        """Bool ``(B, M)``: False where both sides are the same item."""
        rows, columns = self.codes.shape[0], self.ref_codes.shape[0]
        everything = torch.ones(rows, columns, dtype=torch.bool, device=self.codes.device)
        return everything.fill_diagonal_(False) if self.in_batch and rows else everything


def joined_batch(codes: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Checked codes and labels of all ranks; labels may be None for losses that use none."""
    codes = upcast(check_codes(codes))
    if labels is not None:
        labels = gather_rows(as_labels(labels, length=codes.shape[0]).to(codes.device))
    return gather_rows(codes), labels


def two_sides(codes: Tensor, labels: Tensor, ref_codes: Tensor | None, ref_labels: Tensor | None) -> Sides:
    """The batch of all ranks against itself, or against ``ref_codes`` (without gradient, equal on all ranks).

    Raises:
        TypeError: codes or labels of the wrong type.
        ValueError: shapes that do not fit each other, one of ``ref_codes`` and ``ref_labels`` without the
            other.
    """
    if (ref_codes is None) != (ref_labels is None):
        given, missing = ("ref_codes", "ref_labels") if ref_labels is None else ("ref_labels", "ref_codes")
        raise ValueError(
            f"{given} was given without {missing}: give both, or neither to compare in the batch"
        )
    bits = check_codes(codes).shape[1]
    labels = as_labels(labels, length=codes.shape[0])
    if ref_codes is not None and ref_labels is not None:
        check_codes(ref_codes, bits=bits, name="ref_codes")
        ref_labels = as_labels(ref_labels, length=ref_codes.shape[0], name="ref_labels").to(codes.device)
        codes, joined = joined_batch(codes, labels)
        assert joined is not None
        return Sides(codes, joined, ref_codes.detach().to(codes), ref_labels, False)
    codes, joined = joined_batch(codes, labels)
    assert joined is not None
    return Sides(codes, joined, codes, joined, True)


def refuse_reference(name: str, ref_codes: Tensor | None, ref_labels: Tensor | None) -> None:
    """Raise ValueError if a second side was given to a loss that has none."""
    if ref_codes is not None or ref_labels is not None:
        raise ValueError(f"{name} compares nothing with ref_codes: leave ref_codes and ref_labels out")


def check_rows(indices: Tensor | None, length: int, num_rows: int, what: str) -> Tensor:
    """Row numbers as int64 ``(length,)``, or the error that says what is wrong.

    Args:
        indices: what the caller gave.
        length: of the batch.
        num_rows: rows there are; ``what`` is the name of their owner in messages.
    """
    if indices is None:
        raise ValueError(f"indices are needed: the rows of the batch in the {what}")
    if not isinstance(indices, Tensor) or indices.dtype.is_floating_point or indices.dtype == torch.bool:
        got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"indices must be a tensor of integers (rows of the {what}), got {got}")
    if indices.shape != (length,):
        raise ValueError(
            f"indices must have shape ({length},), one for each code, got {tuple(indices.shape)}"
        )
    if length:
        low, high = (int(bound) for bound in torch.aminmax(indices))
        if low < 0 or high >= num_rows:
            raise IndexError(f"index {low if low < 0 else high} is outside the {what} of {num_rows} rows")
    return indices.to(torch.int64)
