"""TALR-NDCG: tie-aware NDCG of whole ranked lists."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hybridhash.losses._inputs import HasParts, pair_batch
from hybridhash.losses.tieawareap import check_settings, distance_levels, soft_histogram

__all__ = ["TieAwareNDCGLoss", "tie_aware_ndcg_loss"]


def tie_aware_ndcg_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    bins: int | None = None,
    gamma: float | None = None,
) -> Tensor:
    """Compute 1 minus the tie-aware NDCG; see :class:`TieAwareNDCGLoss`.

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
        >>> tie_aware_ndcg_loss(codes, torch.tensor([[1, 1], [1, 1], [1, 0], [0, 1]]))
        tensor(0.1880)
    """
    check_settings(bins, gamma)
    batch = pair_batch(codes, labels, ref_codes, ref_labels)
    with torch.autocast(batch.codes.device.type, enabled=False):
        different = batch.different().to(batch.codes.dtype)
        shared = batch.shared() * different
        # The gain 2^v - 1 times 2^-max(v), which cancels in DCG / DCG*: no overflow with many labels.
        most = shared.amax(1, keepdim=True) if shared.numel() else shared[:, :1]
        gains = (torch.exp2(shared - most) - torch.exp2(-most)) * different
        lower, share, levels = distance_levels(batch, bins, gamma)
        items = soft_histogram(different, lower, share, levels)
        # The mean rank of the items of a level: C_{d-1} + (c_d + 1) / 2
        rank = items.cumsum(1) - items + (items + 1) / 2
        dcg = (soft_histogram(gains, lower, share, levels) / torch.log2(1 + rank)).sum(1)
        ranks = torch.arange(1, gains.shape[1] + 1, device=gains.device, dtype=gains.dtype)
        ideal = (gains.sort(1, descending=True).values / torch.log2(1 + ranks)).sum(1)
        counted = ideal > 0
        ndcg = dcg / torch.where(counted, ideal, 1)
        return ((1 - ndcg) * counted).sum() / counted.sum().clamp(min=1)


class TieAwareNDCGLoss(HasParts):
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

    Source: as :class:`TieAwareAPLoss`. Here the ideal DCG is that of the ranked list, without the query
    itself, and queries without a relevant item are left out. In the authors' code the query counts in the
    ideal DCG of its own batch, and a query without a relevant item has the NDCG 1.

    Example:
        >>> codes = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], requires_grad=True)
        >>> TieAwareNDCGLoss()(codes, torch.tensor([[1, 1], [1, 1], [1, 0], [0, 1]]))
        tensor(0.1880, grad_fn=<DivBackward0>)
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
        """Compute the loss of a batch; arguments and result as :meth:`TieAwareAPLoss.forward`."""
        loss = tie_aware_ndcg_loss(
            codes, labels, ref_codes=ref_codes, ref_labels=ref_labels, bins=self.bins, gamma=self.gamma
        )
        self._parts = {"ndcg": loss.detach()}
        return loss

    def extra_repr(self) -> str:
        return f"bins={self.bins}, gamma={self.gamma}"
