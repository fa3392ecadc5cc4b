"""DSRH: triplets graded by the number of shared labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridhash._checks import check_integer, check_not_negative, check_positive
from hybridhash.losses._inputs import HasParts, add_up, linear_layers, pair_batch
from hybridhash.losses._triplets import mean_over_anchors, triplet_sums

__all__ = ["DSRHLoss", "dsrh_loss"]


def dsrh_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    margin: float = 5.0,
    balance: float = 1.0,
    top_k: int | None = None,
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """Compute a hinge on triplets graded by the number of shared labels; see :class:`DSRHLoss`.

    Args:
        codes: ``(B, bits)`` floating-point, the anchors.
        labels: ``(B,)`` class ids or ``(B, C)`` multi-hot.
        ref_codes: ``(M, bits)``, other items than the batch's; they get no gradient. None compares within the
            batch.
        ref_labels: labels of ``ref_codes``.
        margin: rho > 0, in bits.
        balance: alpha, 0 or more.
        top_k: number of positions that Z counts. None means the whole list.
        parts: a dict that gets the terms of the loss, detached. None notes nothing.

    Returns:
        0-dim, float32 (float64 for float64 codes); 0 without any triplet but the balance.

    Raises:
        TypeError: codes or labels of the wrong type.
        ValueError: a setting out of range, or shapes that do not fit each other.

    Example:
        >>> codes = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
        >>> dsrh_loss(codes, torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1]]))
        tensor(3.2303)
    """
    check_positive(margin=margin)
    check_not_negative(balance=balance)
    if top_k is not None:
        check_integer("top_k", top_k, 1, advice="use None for the whole list")
    batch = pair_batch(codes, labels, ref_codes, ref_labels)
    rows, bits = batch.codes.shape
    with torch.autocast(batch.codes.device.type, enabled=False):
        distances = (bits - batch.products()) / 2
        different = batch.different()
        gains = _ndcg_gains(batch.shared(), different, top_k)
        sums, counts = triplet_sums(
            distances, gains, different, lambda difference: F.relu(margin + difference)
        )
        mean_code = batch.codes.sum(0) / max(rows, 1)
        terms = {
            "triplets": mean_over_anchors(sums, counts),
            "balance": balance / 2 * mean_code.square().sum(),
        }
        return add_up(terms, parts)


def _ndcg_gains(shared: Tensor, valid: Tensor, top_k: int | None) -> Tensor:
    """Compute ``2^r / Z`` of every pair, Z the ideal discounted cumulative gain of the anchor's list."""
    if shared.numel() == 0:
        return shared
    shared = shared.masked_fill(~valid, 0)
    # Both 2^r and Z are taken times 2^-max(r): no overflow with many labels.
    most = shared.amax(1, keepdim=True)
    ideal = (torch.exp2(shared - most) - torch.exp2(-most)).sort(1, descending=True).values[:, :top_k]
    ranks = torch.arange(1, ideal.shape[1] + 1, device=shared.device, dtype=shared.dtype)
    normalizer = (ideal / torch.log(1 + ranks)).sum(1, keepdim=True)
    return torch.exp2(shared - most) / torch.where(normalizer > 0, normalizer, 1)


class DSRHLoss(HasParts):
    r"""Deep Semantic Ranking Hashing: triplets graded by the number of shared labels.

    .. math::
        L = \frac{1}{|Q|} \sum_{q \in Q} \frac{1}{|T_q|} \sum_{(i, j) \in T_q} \frac{2^{r_i} - 2^{r_j}}{Z_q}
            [d_{qi} - d_{qj} + \rho]_+ + \frac{\alpha}{2} \|\bar{h}\|^2 + \frac{\beta}{2} \|W\|^2

    where i shares more labels with q than j does (r_i > r_j), ``d = (bits - <h_q, h_i>) / 2`` is the Hamming
    distance of codes in [-1, 1], Z the ideal discounted cumulative gain of the anchor's list, sum of
    ``(2^r - 1) / ln(1 + rank)``, and the mean code pulls every bit to be balanced. With class ids it is a
    hinge on all triplets. For codes h in [0, 1] (sigmoid) give ``2 * h - 1``.

    Args:
        margin: rho, in bits; 5 in the official code.
        balance: alpha; 1 in the official code.
        top_k: positions that Z counts; None for the whole list. The official code takes the two positives of
            its three triplets for an anchor, i.e. 2.
        layers: the hash layer, or any module or collection of modules: W is the weight of every ``nn.Linear``
            in it. None leaves the last term out. The loss does not own these modules (they are not in its
            ``state_dict`` or ``parameters()``).
        weight_decay: beta, used with ``layers``; 5e-4 in the official code.

    Raises:
        ValueError: ``margin`` not positive, ``balance`` or ``weight_decay`` negative, ``top_k`` below 1,
            ``layers`` without an ``nn.Linear``.
        TypeError: ``layers`` that are not modules.

    Source: F. Zhao, Y. Huang, L. Wang, T. Tan, Deep Semantic Ranking Based Hashing for Multi-Label Image
    Retrieval, CVPR 2015, arXiv 1501.06272, and its code (zhaofang0627/cuda-convnet-for-hashing).
    swuxyj/DeepHash-pytorch has no DSRH.

    Example:
        >>> codes = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], requires_grad=True)
        >>> DSRHLoss()(codes, torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1]]))
        tensor(3.2303, grad_fn=<SumBackward0>)
    """

    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        margin: float = 5.0,
        *,
        balance: float = 1.0,
        top_k: int | None = None,
        layers: nn.Module | Iterable[nn.Module] | None = None,
        weight_decay: float = 5e-4,
    ) -> None:
        super().__init__()
        check_positive(margin=margin)
        check_not_negative(balance=balance, weight_decay=weight_decay)
        if top_k is not None:
            check_integer("top_k", top_k, 1, advice="use None for the whole list")
        self.margin = margin
        self.balance = balance
        self.top_k = top_k
        self.layers = linear_layers(layers)
        self.weight_decay = weight_decay

    def forward(
        self,
        codes: Tensor,
        labels: Tensor,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a batch; arguments and result as :meth:`DNNHLoss.forward`."""
        self._parts = {}
        loss = dsrh_loss(
            codes,
            labels,
            ref_codes=ref_codes,
            ref_labels=ref_labels,
            margin=self.margin,
            balance=self.balance,
            top_k=self.top_k,
            parts=self._parts,
        )
        if not self.layers:
            return loss
        norms = [layer.weight.to(loss).square().sum() for layer in self.layers]
        decay = self.weight_decay / 2 * torch.stack(norms).sum()
        self._parts["weight_decay"] = decay.detach()
        return loss + decay

    def extra_repr(self) -> str:
        return f"margin={self.margin:g}, balance={self.balance:g}, top_k={self.top_k}"
