"""DSH: contrastive loss on squared distances."""

from __future__ import annotations

from torch import Tensor

from hybridhash._checks import check_not_negative, check_positive
from hybridhash.losses import quantizers
from hybridhash.losses.bank import CodeMemory
from hybridhash.losses.pairwise import PairwiseLoss, squared_distances

__all__ = ["DSHLoss", "dsh_loss"]


def dsh_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    margin: float | None = None,
    alpha: float = 0.01,
    exclude_self: bool = True,
) -> Tensor:
    """Compute the contrastive loss on squared distances: see :class:`DSHLoss`.

    Example:
        >>> import torch
        >>> dsh_loss(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-0.5, 0.5]]), torch.tensor([0, 0, 1]))
        tensor(0.0067)
    """
    loss = DSHLoss(margin, alpha=alpha, exclude_self=exclude_self)
    return loss(codes, labels, ref_codes=ref_codes, ref_labels=ref_labels)


class DSHLoss(PairwiseLoss):
    r"""Contrastive loss with a margin, and a pull to ±1 (deep supervised hashing).

    .. math::
        L = \mathrm{mean}_{ij} \big[ \tfrac{1}{2} s_{ij} D_{ij} + \tfrac{1}{2} (1 - s_{ij}) \max(m - D_{ij},
        0)
            + \alpha (\lVert |u_i| - 1 \rVert_1 + \lVert |u_j| - 1 \rVert_1) \big],
        \quad D_{ij} = \lVert u_i - u_j \rVert^2

    for real-valued outputs without activation. With a bank the second norm is that of the batch as well.

    Args:
        margin: m; None is ``2 * bits``, the authors' advice: half of the bits differ.
        alpha: weight of the pull, summed over the bits.
        bank: memory of the training set's codes; None, the official form, compares within the batch.
        exclude_self: Leave out the pairs of an item with itself, as the official code does.

    Raises:
        ValueError: ``margin`` not positive, ``alpha`` negative.

    Source: H. Liu, R. Wang, S. Shan, X. Chen, Deep Supervised Hashing for Fast Image Retrieval, CVPR 2016,
    equation 4; lhmRyan/deep-supervised-hashing-DSH (alpha 0.01; its half sum over i < j is this loss
    halved). swuxyj/DeepHash-pytorch averages the pull over the bits with weight 0.1, ``alpha=0.05 / bits``,
    keeps self-pairs (``exclude_self=False``) and uses ``CodeBank(..., count_unseen=True)``.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[0.9, -0.9], [0.9, -0.8], [-0.9, 0.9]])
        >>> DSHLoss()(codes, torch.tensor([0, 0, 1]))
        tensor(0.0063)
    """

    def __init__(
        self,
        margin: float | None = None,
        *,
        alpha: float = 0.01,
        bank: CodeMemory | None = None,
        exclude_self: bool = True,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        check_positive(margin=1.0 if margin is None else margin)
        check_not_negative(alpha=alpha)
        self.margin, self.alpha = margin, alpha

    def pair_losses(self, codes: Tensor, ref_codes: Tensor, s: Tensor) -> Tensor:
        distance = squared_distances(codes, ref_codes)
        margin = 2 * codes.shape[1] if self.margin is None else self.margin
        return 0.5 * s * distance + 0.5 * (1 - s) * (margin - distance).clamp(min=0)

    def penalty(self, codes: Tensor, labels: Tensor) -> Tensor:
        # The norms of both codes of a pair; in the mean over the pairs of a batch they are the same.
        return 2 * self.alpha * quantizers.absolute_sum(codes)
