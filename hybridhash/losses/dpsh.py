"""DPSH: pairwise likelihood with quantisation to the sign."""

from __future__ import annotations

from torch import Tensor

from hybridhash._checks import check_integer, check_not_negative
from hybridhash.losses import quantizers
from hybridhash.losses.bank import CodeMemory
from hybridhash.losses.pairwise import PairwiseLoss, log_likelihood

__all__ = ["DPSHLoss", "dpsh_loss", "training_set_size"]


def training_set_size(num_train: int | None, bank: CodeMemory | None) -> int:
    """Return the number of training images to which a weight refers; see :class:`DPSHLoss`."""
    if num_train is None:
        return 5000 if bank is None else bank.num_samples
    return check_integer("num_train", num_train, 1)


def dpsh_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    eta: float = 10.0,
    num_train: int | None = None,
    exclude_self: bool = False,
) -> Tensor:
    """Compute the pairwise likelihood with quantisation of a batch; see :class:`DPSHLoss`.

    Example:
        >>> import torch
        >>> dpsh_loss(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor(0.3133)
    """
    loss = DPSHLoss(eta, num_train=num_train, exclude_self=exclude_self)
    return loss(codes, labels, ref_codes=ref_codes, ref_labels=ref_labels)


class DPSHLoss(PairwiseLoss):
    r"""Likelihood of pairwise labels with quantisation to the sign (DPSH).

    .. math::
        L = \mathrm{mean}_{ij} [\log(1 + e^{\theta_{ij}}) - s_{ij} \theta_{ij}]
            + \frac{\eta}{N}\, \mathrm{mean}_i \lVert u_i - \mathrm{sign}(u_i) \rVert^2, \quad
        \theta_{ij} = \tfrac{1}{2} \langle u_i, u_j \rangle

    which is the paper's objective divided by its number of pairs. The paper compares a batch with all N
    training images, so that each of them is quantised once for N pairs. The quantiser has the same weight
    eta / N if the batch is compared with itself.

    Args:
        eta: weight of the quantiser. The official code has 10 for CIFAR-10 and 50 for NUS-WIDE.
        num_train: the number N of training images to which ``eta`` refers. None takes the rows of the bank,
            or without a bank 5,000, as in the paper's experiments on CIFAR-10.
        bank: memory of the training set's codes; the paper's form. None compares within the batch.
        exclude_self: Leave out the pairs of an item with itself; the official code keeps them.

    Raises:
        ValueError: ``eta`` negative, ``num_train`` below 1.

    Source: W.-J. Li, S. Wang, W.-C. Kang, Feature Learning based Deep Supervised Hashing with Pairwise
    Labels, IJCAI 2016, equation 3; jiangqy/DPSH-pytorch. swuxyj/DeepHash-pytorch averages the quantiser
    over the bits with weight 0.1: ``eta = 0.1 * N / bits``.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[0.9, -0.9], [0.9, -0.8], [-0.9, 0.9]])
        >>> DPSHLoss()(codes, torch.tensor([0, 0, 1]))
        tensor(0.3773)
    """

    def __init__(
        self,
        eta: float = 10.0,
        *,
        num_train: int | None = None,
        bank: CodeMemory | None = None,
        exclude_self: bool = False,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        check_not_negative(eta=eta)
        self.eta = eta
        self.num_train = training_set_size(num_train, bank)

    def pair_losses(self, codes: Tensor, ref_codes: Tensor, s: Tensor) -> Tensor:
        return log_likelihood(0.5 * codes @ ref_codes.T, s)

    def penalty(self, codes: Tensor, labels: Tensor) -> Tensor:
        return self.eta / self.num_train * quantizers.summed(codes)
