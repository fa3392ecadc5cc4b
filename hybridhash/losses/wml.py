"""Weighted maximum likelihood, the loss of HybridHash."""

from __future__ import annotations

from torch import Tensor

from hybridhash._checks import check_not_negative, check_positive
from hybridhash.losses._pairs import affinity_likelihood, balanced, log_likelihood
from hybridhash.losses._rule import PairRule, PairwiseLoss, pairwise_loss
from hybridhash.losses.bank import CodeBank
from hybridhash.losses.quantizers import squared

__all__ = ["WMLLoss", "wml_loss", "wml_rule"]


def wml_rule(alpha: float, jaccard: bool, quantization: float) -> PairRule:
    """Settings of WML, checked."""
    check_positive(alpha=alpha)
    check_not_negative(quantization=quantization)
    return PairRule(
        term=affinity_likelihood if jaccard else log_likelihood,
        weights=balanced,
        scale=alpha,
        affinity="jaccard" if jaccard else "binary",
        quantizer=squared,
        quantization=quantization,
    )


def wml_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    alpha: float = 0.5,
    jaccard: bool = False,
    exclude_self: bool = False,
    quantization: float = 0.0,
) -> Tensor:
    """Weighted maximum likelihood of the pairs in a batch, or of a batch with ``ref_codes``.

    Example:
        >>> import torch
        >>> wml_loss(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor(0.6265)
    """
    return pairwise_loss(
        lambda bits: wml_rule(alpha, jaccard, quantization),
        codes,
        labels,
        ref_codes=ref_codes,
        ref_labels=ref_labels,
        exclude_self=exclude_self,
    )


class WMLLoss(PairwiseLoss):
    r"""Weighted maximum likelihood of pairwise similarity, the loss of HybridHash.

    .. math::
        L = \frac{1}{|S_1|} \sum_{S_1} l_{ij} + \frac{1}{|S_0|} \sum_{S_0} l_{ij}, \quad
        l_{ij} = \log(1 + e^{t_{ij}}) - s_{ij} t_{ij}, \quad t_{ij} = \alpha \langle u_i, u_j \rangle

    over the similar pairs S1 (at least one shared label, s = 1) and the dissimilar pairs S0 (s = 0); a side
    without pairs counts 0. With a bank, ``i`` runs over the batch and ``j`` over the training set (the batch
    itself included, with its current codes), and only ``u_i`` gets a gradient. Without, both run over the
    batch.

    In training mode a bank is updated with the batch before the loss is computed. In evaluation mode
    (``loss.eval()``) the bank is only read, and ``indices`` are not needed. Codes that contain NaN give a NaN
    loss, but with a bank they raise, because they would stay in it.

    Under ``torch.distributed`` every rank returns the loss of the joined batch, and the gradients, averaged
    over the ranks as ``DistributedDataParallel`` does, are those of a single process on the joined batch.

    Args:
        alpha: scale of the inner product. 0.5 is the value of the public HybridHash code; HashNet uses
            10/bits.
        bank: memory of the training set's codes; None compares within the batch.
        jaccard: weight similar pairs by ``|y_i & y_j| / |y_i | y_j|``, as HashNet's paper does for
            multi-label data. The counts S1 and S0 stay unweighted.
        exclude_self: leave out the pairs of an item with itself. The public code keeps them.
        quantization: weight of the mean over batch and bits of ``(|u| - 1)^2``. The public code has none.

    Raises:
        ValueError: ``alpha`` not positive, ``quantization`` negative.

    Source: C. He and H. Wei, HybridHash, ICMR 2024, with the public code's weights and bank (``CodeBank(...,
    count_unseen=True)`` reproduces it to rounding). The weighting is that of HashNet (Cao et al., ICCV
    2017). swuxyj/DeepHash-pytorch's HashNet is the in-batch form with ``alpha=0.1``.

    Example:
        >>> import torch
        >>> from hybridhash.losses import CodeBank
        >>> loss = WMLLoss(bank=CodeBank(num_samples=100, bits=4))
        >>> codes = torch.tensor([[0.9, -0.9, 0.9, 0.9], [-0.9, 0.9, 0.9, -0.9]], requires_grad=True)
        >>> loss(codes, torch.tensor([3, 5]), indices=torch.tensor([10, 42]))
        tensor(0.5486, grad_fn=<_PairLossBackward>)
    """

    def __init__(
        self,
        alpha: float = 0.5,
        *,
        bank: CodeBank | None = None,
        jaccard: bool = False,
        exclude_self: bool = False,
        quantization: float = 0.0,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        self.alpha, self.jaccard, self.quantization = alpha, jaccard, quantization
        self.rule(1)

    def rule(self, bits: int) -> PairRule:
        return wml_rule(self.alpha, self.jaccard, self.quantization)
