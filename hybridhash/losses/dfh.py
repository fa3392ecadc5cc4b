"""DFH: pairwise likelihood with a margin, and codes pulled to class centers."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridhash._checks import check_integer, check_not_negative, check_positive, generator_device
from hybridhash.codes import sign
from hybridhash.labels import to_multi_hot
from hybridhash.losses._inputs import Reduction, class_batch
from hybridhash.losses.bank import CodeMemory
from hybridhash.losses.pairwise import PairwiseLoss, log_likelihood

__all__ = ["DFHLoss", "fisher_centers"]


def fisher_centers(
    num_classes: int, bits: int, *, steps: int = 200, generator: torch.Generator | None = None
) -> Tensor:
    """Find real-valued class centers V as far apart as possible, by gradient descent on ``|V V^T - T|^2``.

    ``T`` is ``bits`` on the diagonal and ``-bits`` elsewhere.

    Args:
        num_classes: C, at least 1.
        bits: code length, at least 1.
        steps: of gradient descent, from a normal start.
        generator: source of the start.

    Returns:
        float32 ``(num_classes, bits)``.

    Example:
        >>> centers = fisher_centers(2, 8, generator=torch.Generator().manual_seed(0))
        >>> (centers @ centers.T).round()
        tensor([[ 8., -8.],
                [-8.,  8.]])
    """
    check_integer("num_classes", num_classes, 1)
    check_integer("bits", bits, 1)
    device = generator_device(generator)
    start = torch.randn(num_classes, bits, generator=generator, dtype=torch.float64, device=device)
    centers = start.cpu()
    target = bits * (2 * torch.eye(num_classes, dtype=torch.float64, device="cpu") - 1)
    size = float(torch.linalg.matrix_norm(target, 2))
    for _ in range(steps):
        gram = centers @ centers.T
        # The step is the inverse of a bound on the curvature, so that the error falls in every step.
        curvature = 4 * (3 * float(torch.linalg.matrix_norm(gram, 2)) + size)
        centers = centers - 4 / curvature * (gram - target) @ centers
    return centers.float()


class DFHLoss(PairwiseLoss):
    r"""Pairwise likelihood with a margin on both sides, and codes pulled to class centers (DFH).

    .. math::
        L = \mathrm{mean}_{ij} [s_{ij} \log(1 + e^{m - \theta_{ij}}) + (1 - s_{ij}) \log(1 + e^{m +
        \theta_{ij}})]
            + \eta\, \mathrm{mean}_{ik} (b_{ik} - u_{ik})^2, \quad
        b_i = \mathrm{sign}(\mu C^T y_i + u_i), \quad \theta_{ij} = \tfrac{1}{2} \langle u_i, u_j \rangle

    with class centers C (:func:`fisher_centers`, a buffer).

    Args:
        num_classes: classes, rows of C.
        bits: code length.
        margin: m.
        mu: weight of the center in the target.
        eta: weight of the distance to the target.
        bank: memory of the training set's codes; None compares within the batch.
        exclude_self: leave out the pairs of an item with itself.
        generator: source of the centers' start.

    Raises:
        ValueError: sizes below 1, ``margin`` or ``mu`` not positive, ``eta`` negative; in the forward pass,
            another code length or another number of classes.

    Source: Y. Li, W. Pei, Y. Zha, J. van Gemert, Push for Quantization: Deep Fisher Hashing, BMVC 2019.
    Defaults are those of swuxyj/DeepHash-pytorch, which uses ``CodeBank(..., count_unseen=True)``.

    Example:
        >>> loss = DFHLoss(num_classes=2, bits=2, generator=torch.Generator().manual_seed(0))
        >>> loss(torch.tensor([[2.0, -2.0], [-2.0, 2.0]]), torch.tensor([0, 1]))
        tensor(0.8133)
    """

    centers: Tensor

    def __init__(
        self,
        num_classes: int,
        bits: int,
        *,
        margin: float = 3.0,
        mu: float = 0.1,
        eta: float = 0.5,
        bank: CodeMemory | None = None,
        exclude_self: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        check_positive(margin=margin, mu=mu)
        check_not_negative(eta=eta)
        self.margin, self.mu, self.eta = margin, mu, eta
        self.register_buffer("centers", fisher_centers(num_classes, bits, generator=generator))

    def forward(
        self,
        codes: Tensor,
        labels: Tensor,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Compute the loss of a batch; arguments, result and errors are those of :class:`PairwiseLoss`."""
        classes, bits = self.centers.shape
        codes, labels = class_batch(codes, labels, num_classes=classes, bits=bits)
        return super().forward(
            codes,
            to_multi_hot(labels, classes),
            indices=indices,
            ref_codes=ref_codes,
            ref_labels=ref_labels,
            reduction=reduction,
        )

    def pair_losses(self, codes: Tensor, ref_codes: Tensor, s: Tensor) -> Tensor:
        theta = 0.5 * codes @ ref_codes.T
        # softplus(m - theta) for similar pairs, softplus(m + theta) for dissimilar ones
        return log_likelihood(theta - (2 * s - 1) * self.margin, s)

    def penalty(self, codes: Tensor, labels: Tensor) -> Tensor:
        center = labels.to(codes.dtype) @ self.centers.to(codes.dtype)
        target = sign(self.mu * center + codes.detach())
        return self.eta * (target - codes).square().mean(1)
