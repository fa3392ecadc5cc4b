"""What the losses on centers and on classifiers share: checked labels and means over labelled rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridhash.labels import as_labels, to_multi_hot
from hybridhash.losses._distributed import sum_over_ranks
from hybridhash.losses._inputs import check_codes, upcast
from hybridhash.losses.centers import CenterMethod, hash_centers, minimum_distance

__all__ = [
    "CenterLoss",
    "centroids",
    "check_batch",
    "class_labels",
    "cosines",
    "mean_over_labelled",
    "single_labels",
    "unit_rows",
]


def check_batch(codes: Tensor, labels: Tensor, *, num_classes: int, bits: int) -> tuple[Tensor, Tensor]:
    """Codes as float32 or float64, labels as bool ``(B, num_classes)``; or the error that is due."""
    codes = upcast(check_codes(codes, bits=bits))
    return codes, class_labels(labels, length=codes.shape[0], num_classes=num_classes).to(codes.device)


def class_labels(labels: Tensor, *, length: int, num_classes: int) -> Tensor:
    """Labels of either form as bool ``(length, num_classes)``; a row of False where there is no label.

    Raises:
        ValueError: an id of ``num_classes`` or more, multi-hot rows with another number of columns.
    """
    labels = as_labels(labels, length=length)
    if labels.ndim == 1:
        return to_multi_hot(labels, num_classes)
    if labels.shape[1] != num_classes:
        raise ValueError(f"labels have {labels.shape[1]} classes, the loss was made for {num_classes}")
    return labels


def single_labels(labels: Tensor, method: str) -> Tensor:
    """Multi-hot rows ``(B, C)`` as class ids, -1 for no label.

    Raises:
        ValueError: a row with several labels.
    """
    counts = labels.sum(1)
    if labels.shape[0] and int(counts.max()) > 1:
        raise ValueError(
            f"{method} is defined for one label per image (softmax over the classes), got a row with "
            f"{int(counts.max())} labels: use a loss for multi-label data, such as CSQLoss or OrthoHashLoss"
        )
    return torch.where(counts > 0, labels.int().argmax(1), -1)


def mean_over_labelled(losses: Tensor, labels: Tensor) -> Tensor:
    """Mean of ``(B,)`` losses over the rows with a label, of all ranks; 0 if there is none.

    Args:
        losses: ``(B,)``.
        labels: bool ``(B, C)``.
    """
    labelled = labels.any(1)
    total = sum_over_ranks(torch.where(labelled, losses, 0).sum())
    count = sum_over_ranks(labelled.sum().to(losses.dtype))
    return total / count.clamp(min=1)


def unit_rows(codes: Tensor) -> Tensor:
    """Codes ``(N, bits)`` divided by their norms; codes of zeros stay zero, with a finite gradient."""
    norms = torch.linalg.vector_norm(codes, dim=1, keepdim=True)
    units: Tensor = codes / norms.masked_fill(norms == 0, 1)
    return units


def cosines(codes: Tensor, centers: Tensor) -> Tensor:
    """Cosine of each code ``(B, bits)`` with each ±1 center ``(C, bits)``; 0 for a code of zeros."""
    return F.linear(unit_rows(codes), centers).div(centers.shape[1] ** 0.5)


def centroids(labels: Tensor, centers: Tensor, tie_bits: Tensor | None) -> Tensor:
    """Majority of the centers of each row's labels, bit by bit."""
    sums = F.linear(labels.to(centers.dtype), centers.T)
    ties = torch.ones_like(centers[0]) if tie_bits is None else tie_bits.to(centers.dtype)
    return torch.where(sums == 0, ties, sums.sign())


class CenterLoss(nn.Module):
    """What the losses on hash centers share: the centers, a buffer.

    Args:
        num_classes: classes C.
        bits: code length.
        centers: how :func:`~hybridhash.losses.hash_centers` makes them, or ±1 ``(C, bits)``.
        generator: source of the random choices.
    """

    requires: frozenset[str] = frozenset()

    centers: Tensor

    def __init__(
        self, num_classes: int, bits: int, centers: CenterMethod | Tensor, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        if isinstance(centers, Tensor):
            centers = _checked_centers(centers, num_classes, bits)
        else:
            centers = hash_centers(num_classes, bits, centers, generator)
        self.register_buffer("centers", centers)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.centers.shape[0]

    @property
    def bits(self) -> int:
        """Length of a code."""
        return self.centers.shape[1]

    def _add_tie_bits(self, generator: torch.Generator | None) -> None:
        # One word is drawn even where no label set can tie, so that a state dict always has the same keys.
        device = "cpu" if generator is None else generator.device
        bits = torch.randint(2, (self.bits,), generator=generator, device=device)
        self.register_buffer("tie_bits", bits.cpu().float() * 2 - 1)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, bits={self.bits}"


def _checked_centers(centers: Tensor, num_classes: int, bits: int) -> Tensor:
    centers = check_codes(centers, bits=bits, name="centers").detach().to(torch.float32, copy=True)
    if centers.shape[0] != num_classes:
        raise ValueError(f"got {centers.shape[0]} centers for {num_classes} classes")
    if not bool((centers.abs() == 1).all()):
        raise ValueError("centers must be -1 and 1 only: binarize them first")
    if minimum_distance(centers) == 0:
        raise ValueError("two centers are equal, so their classes would get the same code: see hash_centers")
    return centers
