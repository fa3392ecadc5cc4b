"""DCH: likelihood under a Cauchy distribution of the Hamming distance."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from hybridhash._checks import check_choice, check_not_negative, check_positive
from hybridhash.losses import quantizers
from hybridhash.losses.bank import CodeMemory
from hybridhash.losses.pairwise import PairwiseLoss, balanced, cosines, squared_distances

__all__ = ["DCHLoss", "dch_loss"]

DCHForm = Literal["paper", "official"]

# The distance below which a dissimilar pair's loss log(1 + gamma/d) no longer grows: it has no limit at 0.
_SMALLEST_DISTANCE = 1e-3


def dch_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    gamma: float = 20.0,
    quantization: float = 0.1,
    max_cosine: float = 1.0,
    form: DCHForm = "paper",
    exclude_self: bool = True,
) -> Tensor:
    """Compute the loss of deep Cauchy hashing: see :class:`DCHLoss`.

    Example:
        >>> dch_loss(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor(2.3979)
    """
    loss = DCHLoss(
        gamma, quantization=quantization, max_cosine=max_cosine, form=form, exclude_self=exclude_self
    )
    return loss(codes, labels, ref_codes=ref_codes, ref_labels=ref_labels)


class DCHLoss(PairwiseLoss):
    r"""Likelihood of pairwise labels under a Cauchy distribution of the Hamming distance (DCH).

    .. math::
        L = \frac{1}{|S|} \sum_{ij} w_{ij} \Big[ s_{ij} \log \frac{d_{ij}}{\gamma}
            + \log \Big( 1 + \frac{\gamma}{d_{ij}} \Big) \Big]
            + \lambda\, \mathrm{mean}_i \log \Big( 1 + \frac{d(|u_i|, 1)}{\gamma} \Big), \quad
        d(u, v) = \tfrac{K}{2} (1 - \cos(u, v))

    with ``w = |S|/|S1|`` or ``|S|/|S0|``, computed as ``log(1 + d/gamma)`` for similar pairs, which is exact
    at d = 0. For dissimilar pairs ``d`` counts at least 0.001, below which ``log(1 + gamma/d)`` would grow
    without limit; such a pair has no gradient.

    Args:
        gamma: scale of the Cauchy distribution.
        quantization: lambda.
        max_cosine: cosines count at most so much; closer pairs have no gradient.
        form: ``"paper"`` as above; ``"official"``, the authors' code: ``d = |u_i - u_j|^2 + 0.001``, weight
            ``|S|/|S1|`` for similar and 1 for dissimilar pairs, and the quantiser ``mean (|u| - 1)^2`` (whose
            weight is 0 there by default: ``quantization=0``). ``max_cosine`` is not used by it. The numbers S
            and S1 in its weight include the pairs of items with themselves, also those that
            ``exclude_self`` leaves out of the mean.
        bank: Memory of the training set's codes. None compares within the batch.
        exclude_self: Leave out the pairs of an item with itself, as the official code does.

    Raises:
        ValueError: ``gamma`` or ``max_cosine`` not positive, ``quantization`` negative, an unknown ``form``.

    Source: Y. Cao, M. Long, B. Liu, J. Wang, Deep Cauchy Hashing for Hamming Space Retrieval, CVPR 2018,
    equations 4 to 8; thulab/DeepHash (gamma 20). The weight 0.1 of the quantiser is that of
    swuxyj/DeepHash-pytorch, which differs from the paper's form by ``max_cosine=0.99, exclude_self=False``.

    Example:
        >>> codes = torch.tensor([[0.9, -0.9], [0.9, -0.8], [-0.9, 0.9]])
        >>> DCHLoss()(codes, torch.tensor([0, 0, 1]))
        tensor(2.3984)
    """

    def __init__(
        self,
        gamma: float = 20.0,
        *,
        quantization: float = 0.1,
        max_cosine: float = 1.0,
        form: DCHForm = "paper",
        bank: CodeMemory | None = None,
        exclude_self: bool = True,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        check_choice("form", form, get_args(DCHForm))
        check_positive(gamma=gamma, max_cosine=max_cosine)
        check_not_negative(quantization=quantization)
        self.gamma, self.quantization, self.max_cosine, self.form = gamma, quantization, max_cosine, form
        self.count_self = form == "official"

    def pair_losses(self, codes: Tensor, ref_codes: Tensor, s: Tensor) -> Tensor:
        if self.form == "official":
            d = squared_distances(codes, ref_codes) + _SMALLEST_DISTANCE
        else:
            d = codes.shape[1] / 2 * (1 - cosines(codes, ref_codes).clamp(max=self.max_cosine))
        # log(d / gamma) + log(1 + gamma / d) = log(1 + d / gamma), which is exact at d = 0.
        similar = torch.log1p(d / self.gamma)
        dissimilar = torch.log1p(self.gamma / d.clamp(min=_SMALLEST_DISTANCE))
        return s * similar + (1 - s) * dissimilar

    def weights(self, num_similar: Tensor, num_dissimilar: Tensor) -> tuple[Tensor, Tensor]:
        if self.form == "official":
            # In the mean over all pairs, |S| / |S1| for a similar pair and 1 for a dissimilar one.
            return 1 / num_similar.clamp(min=1), 1 / (num_similar + num_dissimilar).clamp(min=1)
        return balanced(num_similar, num_dissimilar)

    def penalty(self, codes: Tensor, labels: Tensor) -> Tensor:
        if self.form == "official":
            return self.quantization * quantizers.squared(codes)
        ones = codes.new_ones(1, codes.shape[1])  # also for an empty batch
        d = codes.shape[1] / 2 * (1 - cosines(codes.abs(), ones)[:, 0]).clamp(min=0)
        return self.quantization * torch.log1p(d / self.gamma)
