"""The two ways of the pair kernel over all pairs; both give the same sums.

:class:`MaskedWalk` compares the labels of every pair. :class:`ClassWalk` sorts both sides by class, so that
the similar pairs form blocks, and does per pair only what a dissimilar pair needs: twice as fast for class
ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hybridhash.labels import shared_labels

__all__ = ["Affinity", "ClassWalk", "Embed", "MaskedWalk", "PairTerm", "Sums", "class_places"]

Affinity = Literal["binary", "jaccard", "cosine"]

Embed = Callable[[Tensor], Tensor]

PairTerm = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""``term(x, affinity, work) -> (value, slope)``: loss of each pair ``(B, M)`` and derivative by ``x``.

``x`` ``(B, M)`` are inner products and may be overwritten; ``affinity`` is ``(B, M)`` or 0-dim, 0 for
dissimilar pairs, and must not be overwritten; ``work`` ``(2, B, M)`` is memory that a fast term may use and
return.
"""


class Sums(NamedTuple):
    """Weighted sum of a term over all pairs (0-dim float64), and its gradients where they were wanted."""

    value: Tensor
    grad: Tensor | None
    ref_grad: Tensor | None


def chunk_bounds(total: int, chunk_size: int) -> Iterator[tuple[int, int]]:
    """Start and stop of the chunks of ``total`` rows."""
    for start in range(0, total, chunk_size):
        yield start, min(start + chunk_size, total)


class Workspace:
    """Memory for ``(B, M)`` intermediates; fresh allocations in every chunk would cost a third more."""

    def __init__(self, like: Tensor, pairs: int, buffers: int) -> None:
        self.memory = like.new_empty(buffers, pairs)

    def view(self, rows: int, columns: int) -> Tensor:
        """``(buffers, rows, columns)``, the same memory at each call."""
        return self.memory[:, : rows * columns].view(self.memory.shape[0], rows, columns)


class MaskedWalk(NamedTuple):
    """All pairs, the labels of each pair compared."""

    labels: Tensor
    ref_labels: Tensor
    kind: Affinity
    dtype: torch.dtype
    valid: Tensor | None
    own: Tensor | None
    chunk_size: int

    def count_pairs(self) -> Tensor:
        """Numbers of similar and of dissimilar pairs, float64 ``(2,)``."""
        counts = torch.zeros(2, dtype=torch.float64, device=self.labels.device)
        for start, stop in chunk_bounds(self.ref_labels.shape[0], self.chunk_size):
            _, similar, keep = self._affinity(start, stop)
            pairs: int | Tensor = similar.numel()
            if keep is not None:
                similar, pairs = similar * keep, torch.count_nonzero(keep)
            num_similar = similar.sum()
            counts += torch.stack((num_similar, pairs - num_similar))
        return counts

    def sums(
        self,
        codes: Tensor,
        ref_codes: Tensor,
        term: PairTerm,
        weights: list[float],
        embed: Embed | None,
        want: tuple[bool, bool],
    ) -> Sums:
        """Weighted sum; ``weights`` of a similar and a dissimilar pair; ``want``: gradient to which side."""
        of_similar, of_dissimilar = weights
        total = codes.new_zeros((), dtype=torch.float64)
        grad = torch.zeros_like(codes) if want[0] else None
        ref_grad = torch.zeros_like(ref_codes) if want[1] else None
        workspace = Workspace(codes, codes.shape[0] * min(self.chunk_size, ref_codes.shape[0]), 3)
        for start, stop in chunk_bounds(ref_codes.shape[0], self.chunk_size):
            chunk = ref_codes[start:stop].to(codes.dtype)
            chunk = chunk if embed is None else embed(chunk)
            degree, similar, keep = self._affinity(start, stop)
            work = workspace.view(codes.shape[0], stop - start)
            value, slope = term(torch.mm(codes, chunk.T, out=work[2]), degree, work[:2])
            if keep is not None:
                value, slope = value.masked_fill(~keep, 0), slope.masked_fill(~keep, 0)
            weight = similar.mul(of_similar - of_dissimilar).add_(of_dissimilar)
            total += torch.dot(value.view(-1), weight.view(-1))
            slope = slope.mul_(weight)
            if grad is not None:
                grad.addmm_(slope, chunk)
            if ref_grad is not None:
                torch.mm(slope.T, codes, out=ref_grad[start:stop])
        return Sums(total, grad, ref_grad)

    def _affinity(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """For a chunk ``(B, m)``: affinity, similarity (0 or 1), where a pair counts (None: all)."""
        ref_labels, keep = self.ref_labels[start:stop], self._keep(start, stop)
        shared = shared_labels(self.labels, ref_labels).to(self.dtype)
        similar = shared.clamp(max=1)
        if self.kind == "binary" or ref_labels.ndim == 1:
            return similar, similar, keep
        size, ref_size = self.labels.sum(1).to(self.dtype)[:, None], ref_labels.sum(1).to(self.dtype)
        scale = size + ref_size - shared if self.kind == "jaccard" else (size * ref_size).sqrt_()
        return shared.div_(scale.clamp_(min=1)), similar, keep

    def _keep(self, start: int, stop: int) -> Tensor | None:
        keep = None if self.valid is None else self.valid[start:stop].expand(self.labels.shape[0], -1)
        if self.own is not None:
            other = self.own[:, None] != torch.arange(start, stop, device=self.own.device)
            keep = other if keep is None else other & keep
        return keep


class ClassWalk:
    """All pairs of items with class ids, both sides sorted by class; no gradient to the second side.

    Args:
        labels: int64 ``(B,)`` class ids, -1 for none.
        ref_labels: int64 ``(M,)``.
        valid: bool ``(M,)``; rows to leave out.
        chunk_size: rows of the second side taken at once.
    """

    def __init__(self, labels: Tensor, ref_labels: Tensor, valid: Tensor | None, chunk_size: int) -> None:
        place, ref_place, classes = class_places(labels, ref_labels)
        self.order = torch.argsort(place)
        rows = torch.bincount(place + 1, minlength=classes + 1).cumsum(0).tolist()
        if valid is None:
            self.ref_order = torch.argsort(ref_place)
        else:
            seen = valid.nonzero()[:, 0]
            ref_place = ref_place[seen]
            self.ref_order = seen[torch.argsort(ref_place)]
        columns = torch.bincount(ref_place + 1, minlength=classes + 1).cumsum(0).tolist()
        self.chunk_size = chunk_size
        # Rows and columns of each class's block; items of no class of the batch come before the first.
        self.blocks = [
            (rows[c], rows[c + 1], columns[c], columns[c + 1])
            for c in range(classes)
            if columns[c + 1] > columns[c]
        ]

    def count_pairs(self) -> Tensor:
        """Numbers of similar and of dissimilar pairs, float64 ``(2,)``."""
        similar = sum((bottom - top) * (right - left) for top, bottom, left, right in self.blocks)
        pairs = self.order.shape[0] * self.ref_order.shape[0]
        return torch.tensor((similar, pairs - similar), dtype=torch.float64, device=self.order.device)

    def sums(
        self,
        codes: Tensor,
        ref_codes: Tensor,
        term: PairTerm,
        weights: list[float],
        embed: Embed | None,
        want: tuple[bool, bool],
    ) -> Sums:
        """As :meth:`MaskedWalk.sums`; ``want[1]`` must be False."""
        of_similar, of_dissimilar = weights
        total = codes.new_zeros((), dtype=torch.float64)
        codes = codes[self.order]
        grad = torch.zeros_like(codes)
        zero, one = codes.new_zeros(()), codes.new_ones(())
        pairs = codes.shape[0] * min(self.chunk_size, self.ref_order.shape[0])
        workspace, small = Workspace(codes, pairs, 3), Workspace(codes, pairs, 2)
        blocks = iter(self.blocks)
        block = next(blocks, None)
        for start, stop in chunk_bounds(self.ref_order.shape[0], self.chunk_size):
            chunk = ref_codes.index_select(0, self.ref_order[start:stop]).to(codes.dtype)
            chunk = chunk if embed is None else embed(chunk)
            work = workspace.view(codes.shape[0], stop - start)
            x = torch.mm(codes, chunk.T, out=work[2])
            # The similar pairs are copied out, and blanked once all pairs were treated as dissimilar.
            areas = []
            while block is not None and block[2] < stop:
                top, bottom, left, right = block
                areas.append((slice(top, bottom), slice(max(left - start, 0), min(right, stop) - start)))
                if right > stop:
                    break
                block = next(blocks, None)
            if areas:
                similar = torch.cat([x[area].reshape(-1) for area in areas])[None]
                value, slope = term(similar, one, small.view(*similar.shape))
                total += value.sum() * of_similar
                parts = torch.split(slope[0], [_size(*area) for area in areas])
            value, slope = term(x, zero, work[:2])
            for area, part in zip(areas, parts if areas else (), strict=True):
                rows, columns = area
                value[area] = 0
                slope[area] = 0
                grad[rows].addmm_(part.view(rows.stop - rows.start, -1), chunk[columns], alpha=of_similar)
            total += value.sum() * of_dissimilar
            grad.addmm_(slope, chunk, alpha=of_dissimilar)
        return Sums(total, torch.empty_like(grad).index_copy_(0, self.order, grad) if want[0] else None, None)


def _size(rows: slice, columns: slice) -> int:
    return int((rows.stop - rows.start) * (columns.stop - columns.start))


def class_places(labels: Tensor, ref_labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """Class ids of both sides as places among the classes of the first side, and the number of these classes.

    Returns:
        int64 ``(B,)`` and ``(M,)``, -1 for items without a label or of a class that the first side lacks.
    """
    classes = torch.unique(labels)
    classes = classes[classes >= 0]
    if classes.numel() == 0:
        return torch.full_like(labels, -1), torch.full_like(ref_labels, -1), 0

    def places(ids: Tensor) -> Tensor:
        place = torch.searchsorted(classes, ids).clamp_(max=classes.shape[0] - 1)
        return place.masked_fill_(classes[place] != ids, -1)

    return places(labels), places(ref_labels), classes.shape[0]
