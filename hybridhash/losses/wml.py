"""WML: weighted maximum likelihood, the loss of HybridHash."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridhash._checks import check_flags, check_not_negative, check_positive
from hybridhash.losses import quantizers
from hybridhash.losses.bank import CodeMemory
from hybridhash.losses.pairwise import PairwiseLoss, balanced, log_likelihood

__all__ = ["WMLLoss", "wml_loss"]


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
    """Compute :class:`WMLLoss` of the pairs in a batch, or of a batch with ``ref_codes``.

    Example:
        >>> wml_loss(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor(0.6265)
    """
    loss = WMLLoss(alpha, jaccard=jaccard, exclude_self=exclude_self, quantization=quantization)
    return loss(codes, labels, ref_codes=ref_codes, ref_labels=ref_labels)


class WMLLoss(PairwiseLoss):
    r"""Weighted maximum likelihood of pairwise similarity, the loss of HybridHash.

    .. math::
        L = \frac{1}{|S_1|} \sum_{S_1} l_{ij} + \frac{1}{|S_0|} \sum_{S_0} l_{ij}, \quad
        l_{ij} = \log(1 + e^{t_{ij}}) - s_{ij} t_{ij}, \quad t_{ij} = \alpha \langle u_i, u_j \rangle

    over the similar pairs S1 (at least one shared label, s = 1) and the dissimilar pairs S0 (s = 0). A kind
    without pairs counts 0. With a bank, ``i`` runs over the batch and ``j`` over the training set (the batch
    itself included, with its current codes), and only ``u_i`` gets a gradient. Without, both run over the
    batch.

    In training the batch is written into the bank before the loss is computed. Under ``torch.no_grad()`` and
    in evaluation mode (``loss.eval()``) the bank is only read; ``loss.eval()`` does not need ``indices``.
    Codes that contain NaN give a NaN loss; with a bank, NaN and infinite codes raise, because they would stay
    in it.

    Under ``torch.distributed`` every process returns the loss of the joined batch. The gradients, averaged
    over the processes as ``DistributedDataParallel`` does, are those of a single process on the joined batch.

    Args:
        alpha: Scale of the inner product. 0.5 is the value of the public HybridHash code; HashNet uses
            10/bits.
        bank: Memory of the training set's codes. None compares within the batch.
        jaccard: Weight similar pairs by ``|y_i & y_j| / |y_i | y_j|``, as HashNet's paper does for
            multi-label data. The counts S1 and S0 stay unweighted.
        exclude_self: Leave out the pairs of an item with itself. The public code keeps them.
        quantization: Weight of the mean over batch and bits of ``(|u| - 1)^2``. The public code has none.

    Raises:
        ValueError: ``alpha`` not positive, ``quantization`` negative.

    Source: C. He and H. Wei, HybridHash, ICMR 2024, with the public code's weights and bank (``CodeBank(...,
    count_unseen=True)`` reproduces it to rounding). The weighting is that of HashNet (Cao et al., ICCV
    2017). swuxyj/DeepHash-pytorch's HashNet is the in-batch form with ``alpha=0.1``.

    Example:
        >>> from hybridhash.losses import CodeBank
        >>> loss = WMLLoss(bank=CodeBank(num_samples=100, bits=4))
        >>> codes = torch.tensor([[0.9, -0.9, 0.9, 0.9], [-0.9, 0.9, 0.9, -0.9]])
        >>> loss(codes, torch.tensor([3, 5]), indices=torch.tensor([10, 42]))
        tensor(0.5486)
    """

    weights = staticmethod(balanced)

    def __init__(
        self,
        alpha: float = 0.5,
        *,
        bank: CodeMemory | None = None,
        jaccard: bool = False,
        exclude_self: bool = False,
        quantization: float = 0.0,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        check_flags(jaccard=jaccard)
        check_positive(alpha=alpha)
        check_not_negative(quantization=quantization)
        self.alpha, self.jaccard, self.quantization = alpha, jaccard, quantization
        self.affinity = "jaccard" if jaccard else "binary"

    def pair_losses(self, codes: Tensor, ref_codes: Tensor, s: Tensor) -> Tensor:
        t = self.alpha * codes @ ref_codes.T
        if not self.jaccard:
            return log_likelihood(t, s)
        # Here s is the Jaccard coefficient: the weight of a similar pair, and 0 for the others.
        return torch.where(s > 0, s, 1) * log_likelihood(t, (s > 0).to(t.dtype))

    def penalty(self, codes: Tensor, labels: Tensor) -> Tensor | None:
        return self.quantization * quantizers.squared(codes) if self.quantization else None
