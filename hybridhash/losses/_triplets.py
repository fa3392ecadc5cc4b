"""The triplet kernel under every triplet loss.

A triplet (q, i, j) says that item i is more relevant to the anchor q than item j. Every triplet loss is a
term on ``x_qi - x_qj``, x a distance or a similarity, and a weight ``gain_qi - gain_qj``.
:func:`triplet_sums` walks over the anchors in chunks and computes value and gradient in one pass, so that no
tensor over all triplets is kept, neither for the value nor for backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["TripletTerm", "bounded_margin", "hinge", "mean_over_anchors", "triplet_sums", "unlikelihood"]

TripletTerm = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``term(difference) -> (value, slope)``: the loss of triplets with ``x_qi - x_qj``, and its derivative."""


def hinge(margin: float) -> TripletTerm:
    """``max(0, margin + difference)``, for distances."""

    def term(difference: Tensor) -> tuple[Tensor, Tensor]:
        value = (difference + margin).clamp_(min=0)
        return value, (value > 0).to(value.dtype)

    return term


def bounded_margin(margin: float) -> TripletTerm:
    """``max(-margin, difference)``, for distances: the hinge shifted down by the margin."""

    def term(difference: Tensor) -> tuple[Tensor, Tensor]:
        return difference.clamp(min=-margin), (difference > -margin).to(difference.dtype)

    return term


def unlikelihood(margin: float) -> TripletTerm:
    """``-log sigmoid(difference - margin)``, for similarities."""

    def term(difference: Tensor) -> tuple[Tensor, Tensor]:
        missing = margin - difference
        return F.softplus(missing), -torch.sigmoid(missing)

    return term


def triplet_sums(
    x: Tensor, gains: Tensor, valid: Tensor, term: TripletTerm, *, max_triplets: int | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted sum of a term over the triplets of each anchor.

    Args:
        x: ``(B, M)`` distances or similarities of B anchors to M items; gets a gradient.
        gains: ``(B, M)`` in the dtype of ``x``. (q, i, j) is a triplet where ``gains[q, i] > gains[q, j]``,
            with their difference as weight.
        valid: bool ``(B, M)``; other items take no part.
        term: see :data:`TripletTerm`.
        max_triplets: triplets (padding included) held at once; at least those of one anchor are. None chooses
            by the device.

    Returns:
        Sums ``(B,)``, differentiable once, and numbers of triplets ``(B,)`` in the same dtype.
    """
    if max_triplets is None:
        max_triplets = 2**18 if x.device.type == "cpu" else 2**24
    sums, counts = _TripletSums.apply(x, gains, valid, term, max_triplets)
    return sums, counts


def mean_over_anchors(sums: Tensor, counts: Tensor) -> Tensor:
    """Mean over the anchors that have a triplet of the mean over their triplets; 0 if none has."""
    return (sums / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


class _TripletSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gains: Tensor, valid: Tensor, term: TripletTerm, max_triplets: int
    ) -> tuple[Tensor, Tensor]:
        sums, counts, grad = x.new_zeros(x.shape[0]), x.new_zeros(x.shape[0]), torch.zeros_like(x)
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(counts)
        if x.numel() == 0:
            return sums, counts
        infinity = float("inf")
        lowest = gains.masked_fill(~valid, infinity).amin(1, keepdim=True)
        highest = gains.masked_fill(~valid, -infinity).amax(1, keepdim=True)
        # Items that can be the better and the worse one of a triplet, moved to the front of each row: with
        # few positives among many negatives that is a small part of all (i, j).
        better, num_better = _to_front(valid & (gains > lowest))
        worse, num_worse = _to_front(valid & (gains < highest))
        chunk_size = max(max_triplets // max(better.shape[1] * worse.shape[1], 1), 1)
        for start in range(0, x.shape[0], chunk_size):
            rows = slice(start, start + chunk_size)
            i, j = better[rows], worse[rows]
            # Padding gets the weight relu(-inf) = 0.
            gain_i = gains[rows].gather(1, i).masked_fill_(_padding(i, num_better[rows]), -infinity)
            gain_j = gains[rows].gather(1, j).masked_fill_(_padding(j, num_worse[rows]), infinity)
            weight = (gain_i[:, :, None] - gain_j[:, None, :]).clamp_(min=0)
            value, slope = term(x[rows].gather(1, i)[:, :, None] - x[rows].gather(1, j)[:, None, :])
            sums[rows] = (value * weight).sum((1, 2))
            counts[rows] = torch.count_nonzero(weight, (1, 2)).to(x.dtype)
            slope = slope * weight
            grad[rows] = grad[rows].scatter_add(1, i, slope.sum(2)).scatter_add(1, j, -slope.sum(1))
        return sums, counts

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0][:, None], None, None, None, None


def _to_front(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of the chosen entries of each row, padded to the longest row, and how many there are."""
    numbers = chosen.sum(1)
    columns = torch.argsort(chosen.to(torch.uint8), dim=1, descending=True, stable=True)
    return columns[:, : int(numbers.max())], numbers


def _padding(columns: Tensor, numbers: Tensor) -> Tensor:
    return torch.arange(columns.shape[1], device=columns.device) >= numbers[:, None]
