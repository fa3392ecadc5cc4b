"""LCDSH: pairwise likelihood, and codes whose pairs are as alike as those of their signs."""

from __future__ import annotations

from torch import Tensor

from hybridhash._checks import check_not_negative
from hybridhash.codes import sign
from hybridhash.losses.bank import CodeMemory
from hybridhash.losses.pairwise import PairwiseLoss, log_likelihood

__all__ = ["LCDSHLoss", "lcdsh_loss"]


def lcdsh_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    locality: float = 3.0,
    exclude_self: bool = False,
) -> Tensor:
    """Compute the likelihood with the locality constraint of a batch; see :class:`LCDSHLoss`.

    Example:
        >>> import torch
        >>> lcdsh_loss(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor(0.3133)
    """
    loss = LCDSHLoss(locality, exclude_self=exclude_self)
    return loss(codes, labels, ref_codes=ref_codes, ref_labels=ref_labels)


class LCDSHLoss(PairwiseLoss):
    r"""Likelihood of pairwise labels, with a locality constraint in place of a quantiser (LCDSH).

    .. math::
        L = \mathrm{mean}_{ij} \big[ \log(1 + e^{\theta_{ij}}) - s_{ij} \theta_{ij}
            + \lambda\, (\sigma(\theta_{ij}) - \sigma(\vartheta_{ij}))^2 \big], \quad
        \theta_{ij} = \tfrac{1}{2} \langle u_i, u_j \rangle, \quad
        \vartheta_{ij} = \tfrac{1}{2} \langle \mathrm{sign}\, u_i, \mathrm{sign}\, u_j \rangle

    The second term asks that taking the sign changes no pair's probability of being similar, where a
    quantiser asks that it changes no code.

    Args:
        locality: the weight lambda.
        bank: memory of the training set's codes. None compares within the batch, the published form.
        exclude_self: Leave out the pairs of an item with itself.

    Raises:
        ValueError: ``locality`` negative.

    Source: H. Zhu, S. Gao, Locality-Constrained Deep Supervised Hashing for Image Retrieval, IJCAI 2017, in
    the form and with the weight of swuxyj/DeepHash-pytorch, which cuts off theta at ±50; the paper's text
    could not be read.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[0.9, -0.9], [0.9, -0.8], [-0.2, 0.3]])
        >>> LCDSHLoss()(codes, torch.tensor([0, 0, 1]))
        tensor(0.5658)
    """

    def __init__(
        self, locality: float = 3.0, *, bank: CodeMemory | None = None, exclude_self: bool = False
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        check_not_negative(locality=locality)
        self.locality = locality

    def pair_losses(self, codes: Tensor, ref_codes: Tensor, s: Tensor) -> Tensor:
        theta = 0.5 * codes @ ref_codes.T
        of_signs = 0.5 * sign(codes.detach()) @ sign(ref_codes.detach()).T
        change = (theta.sigmoid() - of_signs.sigmoid()).square()
        return log_likelihood(theta, s) + self.locality * change
