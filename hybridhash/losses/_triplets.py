"""Sums over triplets, under every triplet loss.

A triplet (q, i, j) says that item i is more relevant to the anchor q than item j. Every triplet loss is a
term on ``x_qi - x_qj``, where x is a distance or a similarity, and a weight ``gain_qi - gain_qj``.
All triplets within a batch are taken (:func:`hybridhash.data.balanced_batches` makes batches that have many),
or those of a batch as anchors with ``ref_codes`` as items. An item is never compared with itself. An item
without a label is an anchor of no triplet, and a negative of every other item.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["mean_over_anchors", "triplet_sums"]


def triplet_sums(
    x: Tensor,
    gains: Tensor,
    valid: Tensor,
    term: Callable[[Tensor], Tensor],
    *,
    max_triplets: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum a term over the triplets of each anchor, weighted by the difference of their gains.

    Batches with more than ``max_triplets`` pairs (i, j) go through the sum in chunks of anchors, and backward
    computes each chunk again instead of keeping it.

    Args:
        x: ``(B, M)`` distances or similarities of B anchors to M items.
        gains: ``(B, M)`` in the dtype of ``x``. (q, i, j) is a triplet where ``gains[q, i] > gains[q, j]``,
            with their difference as weight.
        valid: bool ``(B, M)``; other items take no part.
        term: maps differences ``x_qi - x_qj`` of any shape to the losses of these triplets.
        max_triplets: number of pairs (i, j) that are held at once; those of one anchor always are. None takes
            2**19 on a CPU, where they stay near the cache, and 2**22 elsewhere.

    Returns:
        The sums ``(B,)``, and the numbers of triplets ``(B,)`` in the same dtype.
    """
    if x.numel() == 0:
        return x.sum(1), x.sum(1)
    lowest = gains.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    better = valid & (gains > lowest)
    columns = better.to(torch.uint8).argsort(1, descending=True)
    if not torch.compiler.is_compiling():
        # Few items can be the better one of a triplet: with 10 classes, 90 % of the pairs fall away. A graph
        # needs a shape that does not depend on the labels.
        columns = columns[:, : int(better.sum(1).max())]
    x_better = x.gather(1, columns)
    # A pair (i, j) that is no triplet gets a negative difference here, and so the weight 0.
    gains_better = gains.masked_fill(~better, -torch.inf).gather(1, columns)
    gains = gains.masked_fill(~valid, torch.inf)
    if max_triplets is None:
        max_triplets = 2**19 if x.device.type == "cpu" else 2**22
    size = max(max_triplets // max(columns.shape[1] * x.shape[1], 1), 1)
    if x.shape[0] <= size:
        return _sums(x_better, x, gains_better, gains, term)
    sums, counts = [], []
    for start in range(0, x.shape[0], size):
        chunk = [part[start : start + size] for part in (x_better, x, gains_better, gains)]
        chunk_sums, chunk_counts = checkpoint(
            _sums, *chunk, term, use_reentrant=False, preserve_rng_state=False
        )
        sums.append(chunk_sums)
        counts.append(chunk_counts)
    return torch.cat(sums), torch.cat(counts)


def _sums(
    x_better: Tensor, x: Tensor, gains_better: Tensor, gains: Tensor, term: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Compute the sums and numbers of :func:`triplet_sums` over all pairs of a better item and an item."""
    weight = (gains_better[:, :, None] - gains[:, None, :]).clamp(min=0)
    losses = term(x_better[:, :, None] - x[:, None, :])
    return (weight * losses).sum((1, 2)), (weight > 0).sum((1, 2)).to(x.dtype)


def mean_over_anchors(sums: Tensor, counts: Tensor) -> Tensor:
    """Return the mean over the anchors with a triplet of the mean over their triplets; 0 if none has one."""
    return (sums / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)
