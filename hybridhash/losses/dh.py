"""DH: deep hashing of Liong et al. without labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from hybridhash._checks import check_not_negative
from hybridhash.labels import as_labels
from hybridhash.losses._distributed import gather_rows
from hybridhash.losses._inputs import HasParts, add_up, check_codes, linear_layers, refuse_reference, upcast

__all__ = ["DHLoss", "dh_loss", "regularize"]


def dh_loss(
    codes: Tensor,
    labels: Tensor | None = None,
    *,
    quantization: float = 0.001,
    variance: float = 1.0,
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """Compute quantisation minus variance, the terms of :class:`DHLoss` on the codes.

    Args:
        codes: ``(B, bits)`` floating-point.
        labels: ignored.
        quantization: lambda0, 0 or more.
        variance: lambda1, 0 or more.
        parts: a dict that gets the terms of the loss, detached. None notes nothing.

    Returns:
        0-dim, float32 (float64 for float64 codes); may be negative.

    Raises:
        TypeError: codes that are not floating-point.
        ValueError: a negative setting, or codes that are not ``(B, bits)``.

    Example:
        >>> dh_loss(torch.tensor([[0.9, -0.9], [-0.9, 0.9]]), quantization=1.0)
        tensor(-0.8000)
    """
    check_not_negative(quantization=quantization, variance=variance)
    codes = gather_rows(upcast(check_codes(codes)))
    rows = max(codes.shape[0], 1)
    with torch.autocast(codes.device.type, enabled=False):
        j1 = (codes.abs() - 1).square().sum() / (2 * rows)
        j2 = codes.square().sum() / (2 * rows)
        return add_up({"quantization": quantization * j1, "variance": -variance * j2}, parts)


def regularize(
    loss: Tensor,
    layers: tuple[nn.Linear, ...],
    parts: dict[str, Tensor],
    *,
    orthogonality: float,
    weight_decay: float,
) -> Tensor:
    """Add J3 and J4 of :class:`DHLoss` for the linear layers to a loss and to its parts."""
    with torch.autocast(loss.device.type, enabled=False):
        for layer in layers:
            weight = layer.weight.to(loss)
            identity = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)
            j3 = (weight @ weight.T - identity).square().sum() / 2
            j4 = weight.square().sum() / 2
            if layer.bias is not None:
                j4 = j4 + layer.bias.to(loss).square().sum() / 2
            terms = {"orthogonality": orthogonality * j3, "weight_decay": weight_decay * j4}
            for name, term in terms.items():
                parts[name] = parts.get(name, 0) + term.detach()
            loss = loss + terms["orthogonality"] + terms["weight_decay"]
    return loss


class DHLoss(HasParts):
    r"""Deep Hashing without labels (Liong et al.): codes close to binary, with much variance.

    .. math::
        J = \lambda_0 J_1 - \lambda_1 J_2 + \lambda_2 J_3 + \lambda_3 J_4

    .. math::
        J_1 = \frac{1}{2N} \|B - H\|_F^2, \quad J_2 = \frac{1}{2N} \operatorname{tr}(H H^\top), \quad
        J_3 = \frac12 \sum_m \|W_m W_m^\top - I\|_F^2, \quad J_4 = \frac12 \sum_m (\|W_m\|_F^2 + \|c_m\|^2)

    for a batch H of N outputs (tanh), B = sign(H) fixed in the gradient, and the linear layers (W_m, c_m). J2
    makes bits balanced where the outputs have mean zero: feed centred features. J1 is divided by N here, so
    that the value does not depend on the batch size.

    Args:
        quantization: lambda0; the paper's formula has 1.
        variance: lambda1.
        orthogonality: lambda2; used with ``layers``.
        weight_decay: lambda3; used with ``layers``.
        layers: the network or its hash layers: every ``nn.Linear`` in them gets J3 and J4. None leaves both
            out. The loss does not own these modules (they are not in its ``state_dict`` or ``parameters()``).

    Raises:
        TypeError: ``layers`` that are not modules.
        ValueError: a negative setting, ``layers`` without an ``nn.Linear``.

    Source: V. E. Liong, J. Lu, G. Wang, P. Moulin, J. Zhou, Deep Hashing for Compact Binary Codes Learning,
    CVPR 2015, without public code. The weights of quantisation and variance are those of
    CISiPLab/cisip-FIRe (which lacks the 1/2 of J1 and the 1/N of J2, and compares W W' with a matrix of ones
    instead of I, with weight 0.001). For the paper itself 1, 100, 0.001, 0.001 are quoted, with J1 summed
    over the training set; that could not be checked against its text.
    swuxyj/DeepHash-pytorch has no DH.

    Example:
        >>> network = nn.Sequential(nn.Linear(8, 4), nn.Tanh())
        >>> loss = DHLoss(layers=network)
        >>> loss(network(torch.randn(6, 8))).shape, len(list(loss.parameters()))
        (torch.Size([]), 0)
    """

    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        *,
        quantization: float = 0.001,
        variance: float = 1.0,
        orthogonality: float = 1.0,
        weight_decay: float = 0.001,
        layers: nn.Module | Iterable[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_not_negative(
            quantization=quantization,
            variance=variance,
            orthogonality=orthogonality,
            weight_decay=weight_decay,
        )
        self.quantization = quantization
        self.variance = variance
        self.orthogonality = orthogonality
        self.weight_decay = weight_decay
        self.layers = linear_layers(layers)

    def forward(
        self,
        codes: Tensor,
        labels: Tensor | None = None,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a batch.

        Args:
            codes: ``(B, bits)`` floating-point.
            labels: only checked; None is allowed.
            indices: ignored.
            ref_codes: must be None; the loss has no second side.
            ref_labels: must be None.

        Returns:
            0-dim, float32 (float64 for float64 codes), whatever autocast does; may be negative.

        Raises:
            TypeError: codes that are not floating-point.
            ValueError: codes that are not ``(B, bits)``, or reference codes.
        """
        if ref_codes is not None or ref_labels is not None:
            refuse_reference("DHLoss")
        if labels is not None:
            as_labels(labels, length=check_codes(codes).shape[0])
        self._parts = {}
        return regularize(
            dh_loss(codes, quantization=self.quantization, variance=self.variance, parts=self._parts),
            self.layers,
            self._parts,
            orthogonality=self.orthogonality,
            weight_decay=self.weight_decay,
        )

    def extra_repr(self) -> str:
        weights = f"quantization={self.quantization:g}, variance={self.variance:g}"
        return f"{weights}, orthogonality={self.orthogonality:g}, layers={len(self.layers)}"
