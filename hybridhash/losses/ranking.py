"""Losses on whole ranked lists: tie-aware average precision and NDCG (TALR).

Hamming distances are few, so a ranked list has many ties. The measures are written over the histogram of
distances, which does not ask for an order inside a tie, and the histogram is made differentiable.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from hybridhash._checks import check_positive
from hybridhash.losses._batch import Sides, two_sides

__all__ = ["TieAwareAPLoss", "TieAwareNDCGLoss", "tie_aware_ap_loss", "tie_aware_ndcg_loss"]


class _Binning(NamedTuple):
    """Where each distance falls among the histogram's levels: between ``lower`` and ``lower + 1``."""

    lower: Tensor
    share: Tensor
    levels: int

    def histogram(self, weights: Tensor) -> Tensor:
        """Soft histogram ``(B, levels)`` of items with these weights: a triangular kernel, i.e. every item is
        shared between its two nearest levels."""
        counts = self.share.new_zeros(self.share.shape[0], self.levels)
        counts = counts.scatter_add(1, self.lower, weights * (1 - self.share))
        return counts.scatter_add(1, self.lower + 1, weights * self.share)


def _binning(sides: Sides, bins: int | None, gamma: float | None) -> _Binning:
    bits = sides.codes.shape[1]
    if bins is None:
        bins = bits // 2 if bits >= 32 else bits
    codes, ref_codes = sides.codes, sides.ref_codes
    if gamma is not None:
        codes, ref_codes = torch.tanh(gamma / 2 * codes), torch.tanh(gamma / 2 * ref_codes)
    distances = ((bits - codes @ ref_codes.T) / 2).clamp(0, bits)
    position = distances * (bins / bits)
    lower = position.detach().nan_to_num(0).floor().clamp(max=bins - 1)
    return _Binning(lower.long(), position - lower, bins + 1)


def _check_settings(bins: int | None, gamma: float | None) -> None:
    if bins is not None and bins < 1:
        raise ValueError(f"bins must be at least 1 (or None for the paper's choice), got {bins}")
    if gamma is not None:
        check_positive(gamma=gamma)


def _mean_loss(measure: Tensor, counted: Tensor) -> Tensor:
    """1 minus the mean of a measure over the queries that count; 0 if none does."""
    return ((1 - measure) * counted).sum() / counted.sum().clamp(min=1)


def tie_aware_ap_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    bins: int | None = None,
    gamma: float | None = None,
) -> Tensor:
    """1 minus the tie-aware average precision: see :class:`TieAwareAPLoss`.

    Example:
        >>> codes = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> tie_aware_ap_loss(codes, torch.tensor([0, 0, 1, 1]))
        tensor(0.3333)
    """
    _check_settings(bins, gamma)
    sides = two_sides(codes, labels, ref_codes, ref_labels)
    with torch.autocast(sides.codes.device.type, enabled=False):
        valid = sides.others().to(sides.codes.dtype)
        relevant = (sides.shared() > 0) * valid
        binning = _binning(sides, bins, gamma)
        hits, items = binning.histogram(relevant), binning.histogram(valid)
        hits_so_far, items_so_far = hits.cumsum(1), items.cumsum(1)
        precision = (2 * hits_so_far - hits + 1) / (2 * items_so_far - items + 1)
        num_relevant = relevant.sum(1)
        return _mean_loss((hits * precision).sum(1) / num_relevant.clamp(min=1), num_relevant > 0)


def tie_aware_ndcg_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    bins: int | None = None,
    gamma: float | None = None,
) -> Tensor:
    """1 minus the tie-aware NDCG: see :class:`TieAwareNDCGLoss`.

    Example:
        >>> codes = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> tie_aware_ndcg_loss(codes, torch.tensor([[1, 1], [1, 1], [1, 0], [0, 1]]))
        tensor(0.1880)
    """
    _check_settings(bins, gamma)
    sides = two_sides(codes, labels, ref_codes, ref_labels)
    with torch.autocast(sides.codes.device.type, enabled=False):
        others = sides.others()
        valid = others.to(sides.codes.dtype)
        shared = sides.shared() * valid
        # Times 2^-max(r), which cancels in DCG / ideal DCG: no overflow with many labels.
        most = shared.amax(1, keepdim=True) if shared.numel() else shared[:, :1]
        gains = torch.exp2(shared - most) - torch.exp2(-most)
        binning = _binning(sides, bins, gamma)
        items = binning.histogram(valid)
        position = items.cumsum(1) - items + (items + 1) / 2
        dcg = (binning.histogram(gains * valid) / torch.log2(1 + position)).sum(1)
        ranks = torch.arange(1, gains.shape[1] + 1, device=gains.device, dtype=gains.dtype)
        ideal = (gains.sort(1, descending=True).values / torch.log2(1 + ranks)).sum(1)
        return _mean_loss(dcg / torch.where(ideal > 0, ideal, 1), ideal > 0)


class TieAwareAPLoss(nn.Module):
    r"""1 minus the relaxed tie-aware average precision (TALR), each item as a query for the others.

    .. math::
        AP = \frac{1}{N^+} \sum_d c_d^+ \frac{C_{d-1}^+ + C_d^+ + 1}{C_{d-1} + C_d + 1}

    with the soft numbers of items c_d and of relevant items c_d^+ at distance d (every distance is shared
    between the two nearest of the ``bins + 1`` levels 0, bits/bins, ..., bits) and their cumulative sums C.
    Without ties it is the average precision itself; with ties it is the paper's simplification of the mean
    over all orders. Mean over the queries with a relevant item; 0 if there is none.

    Args:
        bins: intervals of the histogram. None is the official ``bits / 2`` from 32 bits on (16 for the
            paper's ImageNet runs) and ``bits`` below, where the official scripts leave it open.
        gamma: None takes the codes as they are, in [-1, 1] (values beyond are cut off in the distances). A
            number applies the paper's ``2 sigmoid(gamma x) - 1`` to linear outputs first: 1, or 10 on
            ImageNet, in the paper; tanh outputs are those of gamma = 2.

    Raises:
        ValueError: ``bins`` below 1, ``gamma`` not positive.

    Source: K. He, F. Cakir, S. A. Bargal, S. Sclaroff, Hashing as Tie-Aware Learning to Rank, CVPR 2018, and
    its code (kunhe/TALR, which maximises the sum over the queries). swuxyj/DeepHash-pytorch has no TALR.

    Example:
        >>> codes = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], requires_grad=True)
        >>> TieAwareAPLoss()(codes, torch.tensor([0, 0, 1, 1]))
        tensor(0.3333, grad_fn=<DivBackward0>)
    """

    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, bins: int | None = None, *, gamma: float | None = None) -> None:
        super().__init__()
        _check_settings(bins, gamma)
        self.bins = bins
        self.gamma = gamma

    def forward(
        self,
        codes: Tensor,
        labels: Tensor,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch: 0-dim, float32 (float64 for float64 codes); ``indices`` are not used.

        ``codes`` ``(B, bits)`` floating-point; ``labels`` ``(B,)`` ids or ``(B, C)`` multi-hot; ``ref_codes``
        ``(M, bits)`` and ``ref_labels``: another list to rank than the batch, without gradient.
        """
        return tie_aware_ap_loss(
            codes, labels, ref_codes=ref_codes, ref_labels=ref_labels, bins=self.bins, gamma=self.gamma
        )

    def extra_repr(self) -> str:
        return f"bins={self.bins}, gamma={self.gamma}"


class TieAwareNDCGLoss(nn.Module):
    r"""1 minus the relaxed tie-aware NDCG (TALR), each item as a query for the others.

    .. math::
        NDCG = \frac{1}{DCG^*} \sum_d \sum_v \frac{(2^v - 1) \, c_{d,v}}{\log_2(C_{d-1} + (c_d + 1)/2 + 1)}

    with the soft numbers of items c_d, and of items that share v labels with the query c_{d,v}, at distance d
    (as in :class:`TieAwareAPLoss`), and the ideal DCG*. Exact without ties. Mean over the queries with a
    relevant item; 0 if there is none.

    Args:
        bins: as :class:`TieAwareAPLoss`.
        gamma: as :class:`TieAwareAPLoss`.

    Raises:
        ValueError: ``bins`` below 1, ``gamma`` not positive.

    Source: as :class:`TieAwareAPLoss`.

    Example:
        >>> codes = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], requires_grad=True)
        >>> TieAwareNDCGLoss()(codes, torch.tensor([[1, 1], [1, 1], [1, 0], [0, 1]]))
        tensor(0.1880, grad_fn=<DivBackward0>)
    """

    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, bins: int | None = None, *, gamma: float | None = None) -> None:
        super().__init__()
        _check_settings(bins, gamma)
        self.bins = bins
        self.gamma = gamma

    def forward(
        self,
        codes: Tensor,
        labels: Tensor,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch; arguments and result as :meth:`TieAwareAPLoss.forward`."""
        return tie_aware_ndcg_loss(
            codes, labels, ref_codes=ref_codes, ref_labels=ref_labels, bins=self.bins, gamma=self.gamma
        )

    def extra_repr(self) -> str:
        return f"bins={self.bins}, gamma={self.gamma}"
