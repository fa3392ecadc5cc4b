"""What the losses need of ``torch.distributed``; everything is the identity in a single process.

Convention: every rank returns the loss of the joined batch, and the gradient on a rank's own codes is the
gradient of that loss times the number of ranks. ``DistributedDataParallel`` averages parameter gradients over
the ranks, so the averaged gradient is exactly the one of a single process on the joined batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather_rows", "rank", "sum_over_ranks", "world_size"]


def world_size() -> int:
    """Return the number of processes, 1 if ``torch.distributed`` is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, 0 if ``torch.distributed`` is not initialised."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, in rank order; ranks may hold different numbers of rows.

    Args:
        rows: ``(n, ...)``, the same trailing shape and dtype on every rank.

    Returns:
        ``(sum of n, ...)``; differentiable with respect to this rank's own rows (see the module's
        convention).
    """
    if world_size() == 1:
        return rows
    return _GatherRows.apply(rows) if rows.requires_grad else _all_gather(rows)[0]


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, differentiable (see the module's convention)."""
    return values if world_size() == 1 else _SumOverRanks.apply(values)


def _all_gather(rows: Tensor) -> tuple[Tensor, int]:
    """Return rows of all ranks and the position of this rank's first row."""
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([rows.shape[0]], device=rows.device))
    sizes = [int(count) for count in counts]
    # Collectives want equal shapes: pad to the largest batch, and send booleans as bytes.
    dtype = torch.uint8 if rows.dtype == torch.bool else rows.dtype
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]), dtype=dtype)
    padded[: rows.shape[0]] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    joined = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return joined.to(rows.dtype), sum(sizes[: rank()])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        joined, ctx.start = _all_gather(rows)
        ctx.size = rows.shape[0]
        return joined

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0][ctx.start : ctx.start + ctx.size] * world_size()


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * world_size()
