"""DPSH: pairwise likelihood with quantisation to the sign."""

from __future__ import annotations

from torch import Tensor

from hybridhash._checks import check_not_negative
from hybridhash.losses import quantizers
from hybridhash.losses.bank import CodeBank
from hybridhash.losses.pairwise import PairwiseLoss, log_likelihood

__all__ = ["DPSHLoss", "dpsh_loss"]


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
        >>> import torch
        >>> dpsh_loss(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor(0.3133)
    """
    loss = DPSHLoss(eta, exclude_self=exclude_self)
    return loss(codes, labels, ref_codes=ref_codes, ref_labels=ref_labels)


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
        exclude_self: Leave out the pairs of an item with itself; the official code keeps them.

    Raises:
        ValueError: ``eta`` negative.

    Source: W.-J. Li, S. Wang, W.-C. Kang, Feature Learning based Deep Supervised Hashing with Pairwise
    Labels, IJCAI 2016, equation 3; jiangqy/DPSH-pytorch. swuxyj/DeepHash-pytorch averages the quantiser
    over the bits with weight 0.1: ``eta = 0.1 * M / bits``.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[0.9, -0.9], [0.9, -0.8], [-0.9, 0.9]])
        >>> DPSHLoss()(codes, torch.tensor([0, 0, 1]))
        tensor(0.4773)
    """

    def __init__(
        self, eta: float = 10.0, *, bank: CodeBank | None = None, exclude_self: bool = False
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        check_not_negative(eta=eta)
        self.eta = eta

    def pair_losses(self, codes: Tensor, ref_codes: Tensor, s: Tensor) -> Tensor:
        return log_likelihood(0.5 * codes @ ref_codes.T, s)

    def penalty(self, codes: Tensor, labels: Tensor, num_refs: int) -> Tensor:
        return self.eta / max(num_refs, 1) * quantizers.summed(codes)
