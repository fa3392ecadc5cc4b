"""HashNet: weighted maximum likelihood with continuation."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from hybridhash._checks import check_choice, check_flags, check_positive
from hybridhash.losses.bank import CodeMemory
from hybridhash.losses.pairwise import PairwiseLoss, balanced, log_likelihood

__all__ = ["HashNetLoss", "hashnet_loss"]

HashNetWeighting = Literal["paper", "pytorch", "caffe"]


def hashnet_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    alpha: float | None = None,
    weighting: HashNetWeighting = "paper",
    jaccard: bool = True,
    similar_weight: float = 1.0,
    exclude_self: bool = True,
) -> Tensor:
    """Compute HashNet's loss: see :class:`HashNetLoss`.

    Example:
        >>> hashnet_loss(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor(9.0798e-05)
    """
    loss = HashNetLoss(
        alpha,
        weighting=weighting,
        jaccard=jaccard,
        similar_weight=similar_weight,
        exclude_self=exclude_self,
    )
    return loss(codes, labels, ref_codes=ref_codes, ref_labels=ref_labels)


class HashNetLoss(PairwiseLoss):
    r"""Weighted maximum likelihood with continuation (HashNet).

    .. math::
        L = \frac{1}{|S|} \sum_{ij} w_{ij} [\log(1 + e^{\alpha \langle h_i, h_j \rangle})
            - \alpha s_{ij} \langle h_i, h_j \rangle], \quad
        w_{ij} = c_{ij} |S| / |S_1| \text{ or } |S| / |S_0|

    with the Jaccard coefficient ``c_ij = |y_i & y_j| / |y_i | y_j|`` of similar pairs. ``h = tanh(beta z)``
    with growing beta (continuation) belongs to the network, not to the loss. There is no quantiser, by
    design.

    Args:
        alpha: scale of the inner product; None is ``10 / bits``, the official code's.
        weighting: ``"paper"`` as above; ``"pytorch"``, the official PyTorch code: the plain mean, in which
            similar pairs count ``similar_weight`` times; ``"caffe"``, the official Caffe code: the same, with
            similar pairs also times ``4 cos(y_i, y_j)^2`` (that code does so in the backward pass only and
            doubles the gradient; here value and gradient belong together, and there is no factor 2).
        jaccard: use c_ij; only with ``weighting="paper"``. Without, c_ij = 1.
        similar_weight: the official codes' ``class_num`` (PyTorch 1; Caffe 100 for ImageNet, 5 for NUS-WIDE,
            1 for COCO); not used with ``weighting="paper"``.
        bank: Memory of the training set's codes. None compares within the batch.
        exclude_self: Leave out the pairs of an item with itself, which the official code (pairs between two
            batches) has none of.

    Raises:
        ValueError: ``alpha`` or ``similar_weight`` not positive, an unknown ``weighting``.

    Source: Z. Cao, M. Long, J. Wang, P. S. Yu, HashNet: Deep Learning to Hash by Continuation, ICCV 2017;
    thuml/HashNet. swuxyj/DeepHash-pytorch differs: ``alpha=0.1, jaccard=False, exclude_self=False``, on
    ``tanh(scale * u)``.

    Example:
        >>> codes = torch.tensor([[0.9, -0.9], [0.9, -0.8], [-0.9, 0.9]])
        >>> HashNetLoss(alpha=0.5)(codes, torch.tensor([0, 0, 1]))
        tensor(0.7571)
    """

    def __init__(
        self,
        alpha: float | None = None,
        *,
        weighting: HashNetWeighting = "paper",
        jaccard: bool = True,
        similar_weight: float = 1.0,
        bank: CodeMemory | None = None,
        exclude_self: bool = True,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        check_choice("weighting", weighting, get_args(HashNetWeighting))
        check_flags(jaccard=jaccard)
        check_positive(alpha=1.0 if alpha is None else alpha, similar_weight=similar_weight)
        self.alpha, self.weighting = alpha, weighting
        self.jaccard, self.similar_weight = jaccard, similar_weight
        if weighting == "paper" and jaccard:
            self.affinity = "jaccard"
        elif weighting == "caffe":
            self.affinity = "cosine"

    def pair_losses(self, codes: Tensor, ref_codes: Tensor, s: Tensor) -> Tensor:
        alpha = 10 / codes.shape[1] if self.alpha is None else self.alpha
        losses = log_likelihood(alpha * codes @ ref_codes.T, (s > 0).to(codes.dtype))
        if self.affinity == "binary":
            return losses
        c = s if self.affinity == "jaccard" else 4 * s.square()
        return torch.where(s > 0, c, 1) * losses

    def weights(self, num_similar: Tensor, num_dissimilar: Tensor) -> tuple[Tensor, Tensor]:
        if self.weighting == "paper":
            return balanced(num_similar, num_dissimilar)
        # The mean over all pairs, in which a similar pair counts similar_weight times; 0 if there is no pair.
        total = self.similar_weight * num_similar + num_dissimilar
        weight = torch.where(total > 0, 1 / total.clamp(min=1e-9), 0)
        return self.similar_weight * weight, weight
