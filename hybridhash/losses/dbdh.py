"""DBDH: pairwise likelihood of bounded codes, with as many bits of one sign as of the other."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from hybridhash._checks import check_choice, check_not_negative
from hybridhash.losses._inputs import diverged_to_nan
from hybridhash.losses.bank import CodeMemory
from hybridhash.losses.pairwise import PairwiseLoss, log_likelihood

__all__ = ["DBDHLoss", "dbdh_loss"]

DBDHPower = Literal[1, 2]


def dbdh_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    balance: float = 0.1,
    power: DBDHPower = 2,
    exclude_self: bool = False,
) -> Tensor:
    """Compute the likelihood of balanced, bounded codes of a batch; see :class:`DBDHLoss`.

    Example:
        >>> import torch
        >>> dbdh_loss(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor(0.3133)
    """
    loss = DBDHLoss(balance, power=power, exclude_self=exclude_self)
    return loss(codes, labels, ref_codes=ref_codes, ref_labels=ref_labels)


class DBDHLoss(PairwiseLoss):
    r"""Likelihood of pairwise labels for bounded codes whose bits are balanced (DBDH).

    .. math::
        L = \mathrm{mean}_{ij} [\log(1 + e^{\theta_{ij}}) - s_{ij} \theta_{ij}]
            + \beta\, \mathrm{mean}_i \Big| \frac{1}{K} \sum_k v_{ik} \Big|^p, \quad
        \theta_{ij} = \tfrac{1}{2} \langle v_i, v_j \rangle, \quad v = \min(\max(u, -1), 1)

    The second term asks that half of the K bits of a code are 1. Cutting off at ±1 is part of the loss:
    outside [-1, 1] a code has no gradient. A bank holds the codes u.

    Args:
        balance: the weight beta.
        power: p, 1 or 2.
        bank: memory of the training set's codes, the published form. None compares within the batch.
        exclude_self: Leave out the pairs of an item with itself.

    Raises:
        ValueError: ``balance`` negative, ``power`` neither 1 nor 2.

    Source: X. Zheng, Y. Zhang, X. Lu, Deep Balanced Discrete Hashing for Image Retrieval, Neurocomputing
    2020, in the form and with the defaults of swuxyj/DeepHash-pytorch (which uses ``CodeBank(...,
    count_unseen=True)``); the paper's text could not be read.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[0.9, -0.9], [0.9, 0.8], [-0.9, 3.0]])
        >>> DBDHLoss()(codes, torch.tensor([0, 0, 1]))
        tensor(0.5280)
    """

    def __init__(
        self,
        balance: float = 0.1,
        *,
        power: DBDHPower = 2,
        bank: CodeMemory | None = None,
        exclude_self: bool = False,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        check_not_negative(balance=balance)
        check_choice("power", power, get_args(DBDHPower))
        self.balance, self.power = balance, power

    def pair_losses(self, codes: Tensor, ref_codes: Tensor, s: Tensor) -> Tensor:
        u, v = diverged_to_nan(codes).clamp(-1, 1), diverged_to_nan(ref_codes).clamp(-1, 1)
        theta = 0.5 * u @ v.T
        return log_likelihood(theta, s)

    def penalty(self, codes: Tensor, labels: Tensor) -> Tensor:
        return self.balance * codes.clamp(-1, 1).mean(1).abs() ** self.power
