"""Heads whose codes are binary in training, or become so: continuation, signs, bi-half."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridhash._checks import check_choice, check_not_negative
from hybridhash.codes import straight_through_sign
from hybridhash.losses.regularizers import half_signs
from hybridhash.models.heads.linear import LinearHead

__all__ = ["BiHalfHead", "ContinuationHead", "GreedySignHead", "SignHead"]


class ContinuationHead(LinearHead):
    """Continuation, ``tanh(beta z)``: the slope grows in training until codes are their signs (HashNet).

    The number t of :meth:`step` calls is a buffer, so a resumed run continues where it stopped. The slope is

    - ``sqrt(1 + 0.005 t')`` with ``schedule="iterations"``, where t' is t rounded down to a multiple of 200:
      call ``step()`` after each batch (thuml/HashNet);
    - ``sqrt(t // 20 + 1)`` with ``schedule="epochs"``: call ``step()`` after each epoch
      (swuxyj/DeepHash-pytorch).

    Args:
        in_features: Width of the embedding.
        bits: Code length, 1 to 4,096.
        schedule: How the slope grows, ``"iterations"`` or ``"epochs"``.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        TypeError: A size is not an integer.
        ValueError: A size is below 1, or the schedule is unknown.

    Source: Cao, Long, Wang, Yu, HashNet: Deep Learning to Hash by Continuation, ICCV 2017.

    Example:
        >>> head = ContinuationHead(8, 4, schedule="epochs")
        >>> for epoch in range(60):
        ...     head.step()
        >>> head.scale
        tensor(2.)
    """

    steps: Tensor

    def __init__(
        self,
        in_features: int,
        bits: int,
        *,
        schedule: Literal["iterations", "epochs"] = "iterations",
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__(in_features, bits, device=device, dtype=dtype)
        check_choice("schedule", schedule, ("iterations", "epochs"))
        self.schedule = schedule
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))

    @property
    def scale(self) -> Tensor:
        """Slope beta: float32, 0-dim."""
        if self.schedule == "epochs":
            return (self.steps // 20 + 1).float().sqrt()
        return (1 + 0.005 * (self.steps // 200 * 200)).float().sqrt()

    def step(self) -> None:
        """Count one batch (``"iterations"``) or one epoch (``"epochs"``)."""
        self.steps += 1

    def forward(self, x: Tensor) -> Tensor:
        """Map embeddings ``(B, in_features)`` to codes ``(B, bits)`` in (-1, 1)."""
        z: Tensor = self.fc(x)
        return torch.tanh(self.scale.to(z.dtype) * z)


class SignHead(LinearHead):
    """Signs with a clipped straight-through gradient: that of z where ``|z| <= 1``, 0 elsewhere.

    Arguments, shapes and errors are those of :class:`LinearHead`; codes are -1 and +1.

    Source: Bengio, Léonard, Courville, arXiv 1308.3432; clipped as in Courbariaux et al., arXiv 1602.02830.

    Example:
        >>> SignHead(8, 4)(torch.randn(2, 8)).abs().unique()
        tensor([1.], grad_fn=<Unique2Backward0>)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map embeddings ``(B, in_features)`` to codes ``(B, bits)`` of -1 and +1."""
        return straight_through_sign(F.hardtanh(self.fc(x)))


class GreedySignHead(LinearHead):
    """Signs with an unchanged straight-through gradient (GreedyHash).

    :class:`hybridhash.losses.GreedyHashLoss` takes the sign itself; use this head with other losses.
    Arguments, shapes and errors are those of :class:`LinearHead`; codes are -1 and +1.

    Source: Su, Zhang, Han, Tian, Greedy Hash, NeurIPS 2018.

    Example:
        >>> head = GreedySignHead(8, 4)
        >>> head(torch.randn(2, 8)).sum().backward()
        >>> bool((head.fc.bias.grad == 2).all())
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map embeddings ``(B, in_features)`` to codes ``(B, bits)`` of -1 and +1."""
        z = self.fc(x)
        largest = torch.finfo(z.dtype).max
        return straight_through_sign(z.clamp(-largest, largest))  # an infinite output has a sign, too


class _BiHalf(torch.autograd.Function):
    """Set each bit to +1 in half of the batch and to -1 in the other; the gradient is BiHalfHead's."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, gamma: float) -> Tensor:
        half = half_signs(z)
        ctx.save_for_backward(z, half)
        ctx.gamma = gamma
        return half

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        z, half = ctx.saved_tensors
        return gradients[0] + ctx.gamma / z.numel() * (z - half), None


class BiHalfHead(LinearHead):
    """Bi-half codes B: in training each bit is +1 for the larger half of the batch and -1 for the rest.

    So each bit splits the images evenly. The gradient of B is passed on to z, plus ``gamma (z - B)`` over
    the number of entries, which pulls z towards B. In evaluation the head returns z.

    Args:
        in_features: Width of the embedding.
        bits: Code length, 1 to 4,096.
        gamma: Weight of the pull towards B.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        TypeError: A size is not an integer.
        ValueError: A size is below 1, or ``gamma`` is negative.

    Source: Li, van Gemert, Deep Unsupervised Image Hashing by Maximizing Bit Entropy, AAAI 2021.

    Example:
        >>> BiHalfHead(8, 4)(torch.randn(6, 8)).sum(0).detach()
        tensor([0., 0., 0., 0.])
    """

    def __init__(
        self, in_features: int, bits: int, *, gamma: float = 6.0, device: Any = None, dtype: Any = None
    ):
        super().__init__(in_features, bits, device=device, dtype=dtype)
        check_not_negative(gamma=gamma)
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        """Map embeddings ``(B, in_features)`` to codes ``(B, bits)``, in training of -1 and +1."""
        z: Tensor = self.fc(x)
        if not self.training:
            return z
        return _BiHalf.apply(z, self.gamma)
