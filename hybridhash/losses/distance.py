"""Pairwise losses by distance: contrastive (DSH) and Cauchy (DCH), over the one pair kernel.

The forward pass, its errors, the evaluation mode and the behaviour under ``torch.distributed`` are those of
:class:`hybridhash.losses.WMLLoss`.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from hybridhash._checks import check_choice, check_not_negative, check_positive
from hybridhash.losses._pairs import balanced
from hybridhash.losses._rule import PairRule, PairwiseLoss, pairwise_loss
from hybridhash.losses.bank import CodeBank
from hybridhash.losses.quantizers import absolute_sum, squared

__all__ = ["DCHLoss", "DSHLoss", "dch_loss", "dsh_loss"]

DCHForm = Literal["paper", "official"]

# The distance below which a dissimilar pair's loss log(1 + gamma/d) no longer grows: it has no limit at 0.
_SMALLEST_DISTANCE = 1e-3


def _contrastive(margin: float, x: Tensor, affinity: Tensor, work: Tensor) -> tuple[Tensor, Tensor]:
    """Half of: the squared distance x for similar pairs, ``max(margin - x, 0)`` for dissimilar ones."""
    distance = x.clamp_(min=0)
    missing = (margin - distance).clamp_(min=0)
    apart = 1 - affinity
    value = (affinity * distance).add_(apart * missing).mul_(0.5)
    slope = affinity - apart * (missing > 0)
    return value, slope.mul_(0.5)


def _dsh_rule(bits: int, margin: float | None, alpha: float) -> PairRule:
    margin = 2.0 * bits if margin is None else margin
    check_positive(margin=margin)
    check_not_negative(alpha=alpha)
    return PairRule(
        partial(_contrastive, margin), measure="distance", quantizer=absolute_sum, quantization=2 * alpha
    )


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
    """Contrastive loss on squared distances: see :class:`DSHLoss`.

    Example:
        >>> dsh_loss(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-0.5, 0.5]]), torch.tensor([0, 0, 1]))
        tensor(0.0067)
    """
    return pairwise_loss(
        lambda bits: _dsh_rule(bits, margin, alpha),
        codes,
        labels,
        ref_codes=ref_codes,
        ref_labels=ref_labels,
        exclude_self=exclude_self,
    )


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
        exclude_self: leave out the pairs of an item with itself, as the official code does.

    Raises:
        ValueError: ``margin`` not positive, ``alpha`` negative.

    Source: H. Liu, R. Wang, S. Shan, X. Chen, Deep Supervised Hashing for Fast Image Retrieval, CVPR 2016,
    equation 4; lhmRyan/deep-supervised-hashing-DSH (alpha 0.01; its half sum over i < j is this loss
    halved). swuxyj/DeepHash-pytorch averages the pull over the bits with weight 0.1, ``alpha=0.05 / bits``,
    keeps self-pairs (``exclude_self=False``) and uses ``CodeBank(..., count_unseen=True)``.

    Example:
        >>> codes = torch.tensor([[0.9, -0.9], [0.9, -0.8], [-0.9, 0.9]])
        >>> DSHLoss()(codes, torch.tensor([0, 0, 1]))
        tensor(0.0063)
    """

    def __init__(
        self,
        margin: float | None = None,
        *,
        alpha: float = 0.01,
        bank: CodeBank | None = None,
        exclude_self: bool = True,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        self.margin, self.alpha = margin, alpha
        self.rule(1)

    def rule(self, bits: int) -> PairRule:
        return _dsh_rule(bits, self.margin, self.alpha)


def _cauchy(gamma: float, distance: Tensor, affinity: Tensor) -> tuple[Tensor, Tensor]:
    """``log(1 + d/gamma)`` for similar, ``log(1 + gamma/d)`` for dissimilar pairs; value and slope by d."""
    safe = distance.clamp(min=_SMALLEST_DISTANCE)
    apart = 1 - affinity
    value = affinity * torch.log1p(distance / gamma) + apart * torch.log1p(gamma / safe)
    # d/dd log(1 + gamma/d) = -gamma / (d (d + gamma))
    repulsion = gamma / (safe * (safe + gamma)) * (distance >= _SMALLEST_DISTANCE)
    return value, affinity / (gamma + distance) - apart * repulsion


def _cauchy_of_cosine(
    half_bits: float, gamma: float, max_cosine: float, x: Tensor, affinity: Tensor, work: Tensor
) -> tuple[Tensor, Tensor]:
    value, slope = _cauchy(gamma, half_bits * (1 - x.clamp(max=max_cosine)), affinity)
    return value, slope.mul_(-half_bits).mul_(x <= max_cosine)


def _cauchy_of_square(gamma: float, x: Tensor, affinity: Tensor, work: Tensor) -> tuple[Tensor, Tensor]:
    value, slope = _cauchy(gamma, x.clamp(min=0) + _SMALLEST_DISTANCE, affinity)
    return value, slope.mul_(x >= 0)


def _cauchy_to_ones(half_bits: float, gamma: float, codes: Tensor, labels: Tensor) -> Tensor:
    """``log(1 + d(|u|, 1) / gamma)`` with ``d = bits/2 (1 - cos(|u|, 1))``."""
    norm = codes.norm(dim=1).clamp(min=1e-3)
    cosine = codes.abs().sum(1) / (norm * codes.shape[1] ** 0.5)
    return torch.log1p(half_bits * (1 - cosine).clamp(min=0) / gamma)


def _similar_lifted(num_similar: Tensor, num_dissimilar: Tensor) -> tuple[Tensor, Tensor]:
    """In the mean over all pairs, ``|S|/|S1|`` for a similar pair and 1 for a dissimilar one."""
    return 1 / num_similar.clamp(min=1), 1 / (num_similar + num_dissimilar).clamp(min=1)


def _dch_rule(bits: int, gamma: float, quantization: float, max_cosine: float, form: DCHForm) -> PairRule:
    check_choice("form", form, ("paper", "official"))
    check_positive(gamma=gamma, max_cosine=max_cosine)
    check_not_negative(quantization=quantization)
    if form == "official":
        return PairRule(
            partial(_cauchy_of_square, gamma),
            _similar_lifted,
            measure="distance",
            quantizer=squared,
            quantization=quantization,
        )
    return PairRule(
        partial(_cauchy_of_cosine, bits / 2, gamma, max_cosine),
        balanced,
        measure="cosine",
        quantizer=partial(_cauchy_to_ones, bits / 2, gamma),
        quantization=quantization,
    )


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
    """Deep Cauchy hashing: see :class:`DCHLoss`.

    Example:
        >>> dch_loss(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor(2.3979)
    """
    return pairwise_loss(
        lambda bits: _dch_rule(bits, gamma, quantization, max_cosine, form),
        codes,
        labels,
        ref_codes=ref_codes,
        ref_labels=ref_labels,
        exclude_self=exclude_self,
    )


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
            weight is 0 there by default: ``quantization=0``). ``max_cosine`` is not used by it.
        bank: memory of the training set's codes; None compares within the batch.
        exclude_self: leave out the pairs of an item with itself, as the official code does.

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
        bank: CodeBank | None = None,
        exclude_self: bool = True,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        self.gamma, self.quantization, self.max_cosine, self.form = gamma, quantization, max_cosine, form
        self.rule(1)

    def rule(self, bits: int) -> PairRule:
        return _dch_rule(bits, self.gamma, self.quantization, self.max_cosine, self.form)
