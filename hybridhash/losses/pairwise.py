"""Pairwise losses by likelihood: each is a scale, a weighting and a quantiser over the one pair kernel.

All take a batch, a :class:`hybridhash.losses.CodeBank`, or explicit ``ref_codes``; the forward pass, its
errors, the evaluation mode and the behaviour under ``torch.distributed`` are those of
:class:`hybridhash.losses.WMLLoss`. "Mean" is over all ordered pairs of the batch (or of batch and bank).
"""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from hybridhash._checks import check_choice, check_not_negative, check_positive
from hybridhash.losses._pairs import affinity_likelihood, balanced, log_likelihood
from hybridhash.losses._rule import PairRule, PairwiseLoss, pairwise_loss
from hybridhash.losses.bank import CodeBank
from hybridhash.losses.quantizers import absolute, log_cosh, summed

__all__ = [
    "DHNLoss",
    "DPSHLoss",
    "HashNetLoss",
    "IDHNLoss",
    "dhn_loss",
    "dpsh_loss",
    "hashnet_loss",
    "idhn_loss",
]

HashNetWeighting = Literal["paper", "pytorch", "caffe"]
DHNVariant = Literal["B", "Q", "E"]


def _weighted_mean(factor: float, num_similar: Tensor, num_dissimilar: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over all pairs in which a similar pair counts ``factor`` times; 0 if there is no pair."""
    total = factor * num_similar + num_dissimilar
    weight = torch.where(total > 0, 1 / total.clamp(min=1e-9), 0)
    return factor * weight, weight


def _continuous_likelihood(x: Tensor, affinity: Tensor, work: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood, for a similar pair times ``4 cos(y_i, y_j)^2``."""
    return affinity_likelihood(x, 4 * affinity.square(), work)


def _hashnet_rule(
    bits: int, alpha: float | None, weighting: HashNetWeighting, jaccard: bool, similar_weight: float
) -> PairRule:
    check_choice("weighting", weighting, get_args(HashNetWeighting))
    scale = 10 / bits if alpha is None else alpha
    check_positive(alpha=scale, similar_weight=similar_weight)
    if weighting == "paper":
        if jaccard:
            return PairRule(affinity_likelihood, balanced, scale=scale, affinity="jaccard")
        return PairRule(log_likelihood, balanced, scale=scale)
    weights = partial(_weighted_mean, similar_weight)
    if weighting == "pytorch":
        return PairRule(log_likelihood, weights, scale=scale)
    return PairRule(_continuous_likelihood, weights, scale=scale, affinity="cosine")


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
    """HashNet's loss: see :class:`HashNetLoss`.

    Example:
        >>> hashnet_loss(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor(9.0840e-05)
    """
    return pairwise_loss(
        lambda bits: _hashnet_rule(bits, alpha, weighting, jaccard, similar_weight),
        codes,
        labels,
        ref_codes=ref_codes,
        ref_labels=ref_labels,
        exclude_self=exclude_self,
    )


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
        bank: memory of the training set's codes; None compares within the batch.
        exclude_self: leave out the pairs of an item with itself, which the official code (pairs between two
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
        bank: CodeBank | None = None,
        exclude_self: bool = True,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        self.alpha, self.weighting = alpha, weighting
        self.jaccard, self.similar_weight = jaccard, similar_weight
        self.rule(1)

    def rule(self, bits: int) -> PairRule:
        return _hashnet_rule(bits, self.alpha, self.weighting, self.jaccard, self.similar_weight)


def _dpsh_rule(bits: int, eta: float) -> PairRule:
    check_not_negative(eta=eta)
    return PairRule(log_likelihood, scale=0.5, quantizer=summed, quantization=eta, per_reference=True)


def dpsh_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    eta: float = 10.0,
    exclude_self: bool = False,
) -> Tensor:
    """Pairwise likelihood with quantisation: see :class:`DPSHLoss`.

    Example:
        >>> dpsh_loss(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor(0.3133)
    """
    return pairwise_loss(
        lambda bits: _dpsh_rule(bits, eta),
        codes,
        labels,
        ref_codes=ref_codes,
        ref_labels=ref_labels,
        exclude_self=exclude_self,
    )


class DPSHLoss(PairwiseLoss):
    r"""Likelihood of pairwise labels with quantisation to the sign (DPSH).

    .. math::
        L = \frac{1}{B M} \Big( \sum_{ij} [\log(1 + e^{\theta_{ij}}) - s_{ij} \theta_{ij}]
            + \eta \sum_i \lVert u_i - \mathrm{sign}(u_i) \rVert^2 \Big), \quad
        \theta_{ij} = \tfrac{1}{2} \langle u_i, u_j \rangle

    for a batch of B compared with M codes: the training set with a bank, as in the paper, else the batch. The
    sum over ``ij`` is a mean over the pairs that count, if some are left out.

    Args:
        eta: weight of the quantiser. The official code has 10 for CIFAR-10 and 50 for NUS-WIDE.
        bank: memory of the training set's codes; the paper's form. None compares within the batch.
        exclude_self: leave out the pairs of an item with itself; the official code keeps them.

    Raises:
        ValueError: ``eta`` negative.

    Source: W.-J. Li, S. Wang, W.-C. Kang, Feature Learning based Deep Supervised Hashing with Pairwise
    Labels, IJCAI 2016, equation 3; jiangqy/DPSH-pytorch. swuxyj/DeepHash-pytorch averages the quantiser
    over the bits with weight 0.1: ``eta = 0.1 * M / bits``.

    Example:
        >>> codes = torch.tensor([[0.9, -0.9], [0.9, -0.8], [-0.9, 0.9]])
        >>> DPSHLoss()(codes, torch.tensor([0, 0, 1]))
        tensor(0.4773)
    """

    def __init__(
        self, eta: float = 10.0, *, bank: CodeBank | None = None, exclude_self: bool = False
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        self.eta = eta
        self.rule(1)

    def rule(self, bits: int) -> PairRule:
        return _dpsh_rule(bits, self.eta)


def _squared_error(x: Tensor, affinity: Tensor, work: Tensor) -> tuple[Tensor, Tensor]:
    """``(s - x)^2``."""
    error = x.sub_(affinity)
    return error.square(), 2 * error


def _dhn_rule(bits: int, alpha: float, variant: DHNVariant | None, quantization: float) -> PairRule:
    check_choice("variant", variant, (None, *get_args(DHNVariant)))
    check_positive(alpha=alpha)
    check_not_negative(quantization=quantization)
    weight = 0.0 if variant == "Q" else quantization
    if variant == "E":
        return PairRule(_squared_error, scale=alpha / bits, quantizer=log_cosh, quantization=weight)
    return PairRule(log_likelihood, scale=alpha, quantizer=log_cosh, quantization=weight)


def dhn_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    alpha: float = 1.0,
    variant: DHNVariant | None = None,
    quantization: float = 0.2,
    exclude_self: bool = False,
) -> Tensor:
    """Deep hashing network's loss: see :class:`DHNLoss`.

    Example:
        >>> dhn_loss(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor(0.1269)
    """
    return pairwise_loss(
        lambda bits: _dhn_rule(bits, alpha, variant, quantization),
        codes,
        labels,
        ref_codes=ref_codes,
        ref_labels=ref_labels,
        exclude_self=exclude_self,
    )


class DHNLoss(PairwiseLoss):
    r"""Pairwise cross entropy with a bimodal Laplacian prior (DHN), and its variants.

    .. math::
        L = \mathrm{mean}_{ij} [\log(1 + e^{\langle z_i, z_j \rangle}) - s_{ij} \langle z_i, z_j \rangle]
            + \lambda\, \mathrm{mean}_{ik} \log\cosh(|z_{ik}| - 1)

    for z in (-1, 1): the network ends in tanh. There is no 1/2 before the inner product.

    Args:
        variant: None as above; ``"Q"`` without the quantiser; ``"E"`` with the squared error
            ``(s_ij - <z_i, z_j> / bits)^2`` in place of the cross entropy; ``"B"`` trains as None and differs
            at retrieval only, where it ranks by the real-valued codes (an upper bound).
        alpha: scale of the inner product.
        quantization: lambda. The official code's 0.2 is a mean over batch and bits in the value that it
            prints; its gradient is ``bits`` times larger, as ``quantization=0.2 * bits`` here.
        bank: memory of the training set's codes; None, the official form, compares within the batch.
        exclude_self: leave out the pairs of an item with itself.

    Raises:
        ValueError: ``alpha`` not positive, ``quantization`` negative, an unknown ``variant``.

    Source: H. Zhu, M. Long, J. Wang, Y. Cao, Deep Hashing Network for Efficient Similarity Retrieval, AAAI
    2016; thuml/hash-caffe. swuxyj/DeepHash-pytorch differs: ``alpha=0.5, quantization=0.1`` on outputs
    without tanh, with ``CodeBank(..., count_unseen=True)``.

    Example:
        >>> codes = torch.tensor([[0.9, -0.9], [0.9, -0.8], [-0.9, 0.9]])
        >>> labels = torch.tensor([0, 0, 1])
        >>> DHNLoss()(codes, labels), DHNLoss("E", quantization=0)(codes, labels)
        (tensor(0.1923), tensor(0.3045))
    """

    def __init__(
        self,
        variant: DHNVariant | None = None,
        *,
        alpha: float = 1.0,
        quantization: float = 0.2,
        bank: CodeBank | None = None,
        exclude_self: bool = False,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        self.variant, self.alpha, self.quantization = variant, alpha, quantization
        self.rule(1)

    def rule(self, bits: int) -> PairRule:
        return _dhn_rule(bits, self.alpha, self.variant, self.quantization)


def _softsign(codes: Tensor) -> Tensor:
    return codes / (1 + codes.abs())


def _soft_similarity(
    bits: int, gamma: float, x: Tensor, affinity: Tensor, work: Tensor
) -> tuple[Tensor, Tensor]:
    """Likelihood for pairs with s = 0 or 1; ``gamma (x + bits - 2 s bits)^2`` for those between."""
    hard = (affinity > 0.99) | (affinity < 0.01)
    error = x + bits * (1 - 2 * affinity)
    value, slope = log_likelihood(x, (affinity > 0.5).to(x.dtype), work)
    return (
        torch.where(hard, value, gamma * error.square()),
        torch.where(hard, slope, 2 * gamma * error),
    )


def _idhn_rule(bits: int, alpha: float, gamma: float, quantization: float) -> PairRule:
    check_positive(alpha=alpha, gamma=gamma)
    check_not_negative(quantization=quantization)
    return PairRule(
        partial(_soft_similarity, bits, gamma),
        scale=alpha,
        affinity="cosine",
        activation=_softsign,
        quantizer=absolute,
        quantization=quantization,
    )


def idhn_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    alpha: float = 0.5,
    gamma: float = 0.1,
    quantization: float = 0.1,
    exclude_self: bool = False,
) -> Tensor:
    """Loss on graded similarity: see :class:`IDHNLoss`.

    Example:
        >>> idhn_loss(torch.tensor([[9.0, -9.0], [9.0, -9.0], [-9.0, 9.0]]), torch.tensor([0, 0, 1]))
        tensor(0.3780)
    """
    return pairwise_loss(
        lambda bits: _idhn_rule(bits, alpha, gamma, quantization),
        codes,
        labels,
        ref_codes=ref_codes,
        ref_labels=ref_labels,
        exclude_self=exclude_self,
    )


class IDHNLoss(PairwiseLoss):
    r"""Graded similarity of multi-label images (IDHN).

    With ``v = u / (1 + |u|)``, ``s_ij = cos(y_i, y_j)`` and ``t_ij = alpha <v_i, v_j>``, the mean over all
    pairs of

    - ``log(1 + e^t) - s t`` where s is 0 or 1 ("hard": below 0.01 or above 0.99),
    - ``gamma (t + bits - 2 s bits)^2`` otherwise,

    plus ``quantization`` times the mean over batch and bits of ``||v| - 1|``. The activation is part of the
    loss; codes that enter a bank are activated.

    Args:
        alpha: scale of the inner product.
        gamma: weight of the pairs with graded similarity.
        quantization: weight of the quantiser.
        bank: memory of the training set's codes; None compares within the batch.
        exclude_self: leave out the pairs of an item with itself.

    Raises:
        ValueError: ``alpha`` or ``gamma`` not positive, ``quantization`` negative.

    Source: Z. Zhang et al., Improved Deep Hashing with Soft Pairwise Similarity for Multi-label Image
    Retrieval, IEEE TMM 2019. Form and defaults are those of swuxyj/DeepHash-pytorch (which uses a bank with
    ``count_unseen=True``); the paper's scale of the graded term could not be checked. Hamming distance
    would ask for the unscaled inner product there: ``alpha=1``.

    Example:
        >>> codes = torch.tensor([[2.0, -3.0], [2.0, 1.0]])
        >>> IDHNLoss()(codes, torch.tensor([[1, 1, 0], [1, 0, 0]]))
        tensor(0.3187)
    """

    def __init__(
        self,
        alpha: float = 0.5,
        *,
        gamma: float = 0.1,
        quantization: float = 0.1,
        bank: CodeBank | None = None,
        exclude_self: bool = False,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        self.alpha, self.gamma, self.quantization = alpha, gamma, quantization
        self.rule(1)

    def rule(self, bits: int) -> PairRule:
        return _idhn_rule(bits, self.alpha, self.gamma, self.quantization)
