"""TALR-AP: tie-aware average precision of whole ranked lists.

Hamming distances are few, so a ranked list has many ties. Average precision is written over the histogram of
distances, which does not ask for an order among ties, and the histogram is made differentiable.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hybridhash._checks import check_integer, check_positive
from hybridhash.losses._inputs import HasParts, PairBatch, diverged_to_nan, pair_batch

__all__ = ["TieAwareAPLoss", "check_settings", "distance_levels", "soft_histogram", "tie_aware_ap_loss"]


def tie_aware_ap_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    bins: int | None = None,
    gamma: float | None = None,
) -> Tensor:
    """Compute 1 minus the tie-aware average precision; see :class:`TieAwareAPLoss`.

    Args:
        codes: ``(B, bits)`` floating-point, the queries.
        labels: ``(B,)`` class ids or ``(B, C)`` multi-hot.
        ref_codes: ``(M, bits)``, another list to rank than the batch; it gets no gradient. None ranks the
            batch for each of its items, without the item itself.
        ref_labels: labels of ``ref_codes``.
        bins: see :class:`TieAwareAPLoss`.
        gamma: see :class:`TieAwareAPLoss`.

    Returns:
        0-dim, float32 (float64 for float64 codes); 0 without any query that has a relevant item.

    Raises:
        TypeError: codes or labels of the wrong type.
        ValueError: a setting out of range, or shapes that do not fit each other.

    Example:
        >>> codes = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> tie_aware_ap_loss(codes, torch.tensor([0, 0, 1, 1]))
        tensor(0.3333)
    """
    check_settings(bins, gamma)
    batch = pair_batch(codes, labels, ref_codes, ref_labels)
    with torch.autocast(batch.codes.device.type, enabled=False):
        different = batch.different().to(batch.codes.dtype)
        relevant = batch.relevance() * different
        lower, share, levels = distance_levels(batch, bins, gamma)
        # c_d and c_d^+, the numbers of items and of relevant items at each level, and their sums up to it.
        items = soft_histogram(different, lower, share, levels)
        hits = soft_histogram(relevant, lower, share, levels)
        items_so_far = items.cumsum(1)
        hits_so_far = hits.cumsum(1)
        # C_{d-1} + C_d = 2 C_d - c_d
        precision = (2 * hits_so_far - hits + 1) / (2 * items_so_far - items + 1)
        num_relevant = relevant.sum(1)
        average_precision = (hits * precision).sum(1) / num_relevant.clamp(min=1)
        counted = num_relevant > 0
        return ((1 - average_precision) * counted).sum() / counted.sum().clamp(min=1)


def check_settings(bins: int | None, gamma: float | None) -> None:
    """Raise ValueError unless ``bins`` and ``gamma`` are settings of :class:`TieAwareAPLoss`."""
    if bins is not None:
        check_integer("bins", bins, 1, advice="use None for the paper's choice")
    if gamma is not None:
        check_positive(gamma=gamma)


def distance_levels(batch: PairBatch, bins: int | None, gamma: float | None) -> tuple[Tensor, Tensor, int]:
    """Place the Hamming distance of each pair among the levels 0, bits/bins, ..., bits.

    Returns:
        The level below the distance, int64 ``(B, M)``; how much of the way to the next level the distance
        has gone, ``(B, M)`` in [0, 1]; and the number of levels, ``bins + 1``.
    """
    bits = batch.codes.shape[1]
    if bins is None:
        bins = bits // 2 if bits >= 32 else bits
    # An infinite code has diverged: the loss is NaN, as for NaN, and not that of the largest distance.
    codes = diverged_to_nan(batch.codes)
    ref_codes = diverged_to_nan(batch.ref_codes)
    if gamma is not None:
        # 2 sigmoid(gamma x) - 1
        codes = torch.tanh(gamma / 2 * codes)
        ref_codes = torch.tanh(gamma / 2 * ref_codes)
    distances = ((bits - codes @ ref_codes.T) / 2).clamp(0, bits)
    position = distances * (bins / bits)
    lower = position.detach().nan_to_num(0).floor().clamp(max=bins - 1)
    return lower.long(), position - lower, bins + 1


def soft_histogram(weights: Tensor, lower: Tensor, share: Tensor, levels: int) -> Tensor:
    """Count items at each level, each shared between its two nearest levels.

    Args:
        weights: ``(B, M)``, how much an item counts.
        lower: see :func:`distance_levels`, as are ``share`` and ``levels``.

    Returns:
        ``(B, levels)``, differentiable with respect to ``share``.
    """
    counts = share.new_zeros(share.shape[0], levels)
    counts = counts.scatter_add(1, lower, weights * (1 - share))
    return counts.scatter_add(1, lower + 1, weights * share)


class TieAwareAPLoss(HasParts):
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
            number applies the paper's ``2 sigmoid(gamma x) - 1`` to unbounded outputs first: 1, or 10 on
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
        check_settings(bins, gamma)
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
        """Compute the loss of a batch.

        Args:
            codes: ``(B, bits)`` floating-point, the queries.
            labels: ``(B,)`` class ids or ``(B, C)`` multi-hot.
            indices: ignored.
            ref_codes: ``(M, bits)``, another list to rank than the batch; it gets no gradient.
            ref_labels: labels of ``ref_codes``.

        Returns:
            0-dim, float32 (float64 for float64 codes), whatever autocast does.

        Raises:
            TypeError: codes that are not floating-point, or labels that are not integers or multi-hot.
            ValueError: shapes that do not fit each other, or one of ``ref_codes`` and ``ref_labels`` without
                the other.
        """
        loss = tie_aware_ap_loss(
            codes, labels, ref_codes=ref_codes, ref_labels=ref_labels, bins=self.bins, gamma=self.gamma
        )
        self._parts = {"precision": loss.detach()}
        return loss

    def extra_repr(self) -> str:
        return f"bins={self.bins}, gamma={self.gamma}"
