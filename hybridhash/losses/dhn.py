"""DHN: pairwise cross entropy with a bimodal Laplacian prior."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from hybridhash._checks import check_choice, check_not_negative, check_positive
from hybridhash.losses import quantizers
from hybridhash.losses.bank import CodeMemory
from hybridhash.losses.pairwise import PairwiseLoss, log_likelihood

__all__ = ["DHNLoss", "dhn_loss"]

DHNVariant = Literal["B", "Q", "E"]


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
    """Compute the deep hashing network's loss: see :class:`DHNLoss`.

    Example:
        >>> import torch
        >>> dhn_loss(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor(0.1269)
    """
    loss = DHNLoss(variant, alpha=alpha, quantization=quantization, exclude_self=exclude_self)
    return loss(codes, labels, ref_codes=ref_codes, ref_labels=ref_labels)


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
        exclude_self: Leave out the pairs of an item with itself.

    Raises:
        ValueError: ``alpha`` not positive, ``quantization`` negative, an unknown ``variant``.

    Source: H. Zhu, M. Long, J. Wang, Y. Cao, Deep Hashing Network for Efficient Similarity Retrieval, AAAI
    2016; thuml/hash-caffe. swuxyj/DeepHash-pytorch differs: ``alpha=0.5, quantization=0.1`` on outputs
    without tanh, with ``CodeBank(..., count_unseen=True)``.

    Example:
        >>> import torch
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
        bank: CodeMemory | None = None,
        exclude_self: bool = False,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        check_choice("variant", variant, (None, *get_args(DHNVariant)))
        check_positive(alpha=alpha)
        check_not_negative(quantization=quantization)
        self.variant, self.alpha, self.quantization = variant, alpha, quantization

    def pair_losses(self, codes: Tensor, ref_codes: Tensor, s: Tensor) -> Tensor:
        x = self.alpha * codes @ ref_codes.T
        if self.variant == "E":
            return (s - x / codes.shape[1]).square()
        return log_likelihood(x, s)

    def penalty(self, codes: Tensor, labels: Tensor) -> Tensor | None:
        return None if self.variant == "Q" else self.quantization * quantizers.log_cosh(codes)
