"""OrthoHash: cross entropy over the cosines of a code with fixed codes of all classes."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridhash._checks import check_not_negative, check_positive
from hybridhash.labels import to_multi_hot
from hybridhash.losses._classes import CenterLoss
from hybridhash.losses._inputs import Reduction, class_batch, label_shares, reduce_rows, refuse_reference
from hybridhash.losses.centers import CenterMethod
from hybridhash.losses.pairwise import cosines

__all__ = ["OrthoHashLoss", "orthohash_loss"]


def orthohash_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    centers: Tensor,
    scale: float = 8.0,
    margin: float = 0.2,
    quantization: float = 0.0,
    reduction: Reduction = "mean",
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """Compute the cosine cross entropy of a batch against fixed codes; see :class:`OrthoHashLoss`.

    Args:
        codes: ``(B, bits)`` floating-point.
        labels: ``(B,)`` class ids or ``(B, C)`` multi-hot or soft.
        centers: ±1 ``(C, bits)``.
        scale: s > 0.
        margin: m >= 0.
        quantization: weight of ``1 - cos(v, sign v)``.
        reduction: "none" returns the losses of the rows, ``(B,)``, 0 without a label.
        parts: a dict that gets the mean of each term of the loss, detached. None notes nothing.

    Returns:
        0-dim, float32 (float64 for float64 codes).

    Raises:
        TypeError: codes or labels of the wrong type.
        ValueError: a scale that is not positive, a negative margin or weight, or shapes that do not fit the
            centers.

    Example:
        >>> centers = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
        >>> orthohash_loss(torch.tensor([[0.9, -0.8]]), torch.tensor([0]), centers=centers)
        tensor(0.0027)
    """
    check_positive(scale=scale)
    check_not_negative(margin=margin, quantization=quantization)
    num_classes, bits = centers.shape
    codes, labels = class_batch(codes, labels, num_classes=num_classes, bits=bits, soft=True)
    with torch.autocast(codes.device.type, enabled=False):
        targets = to_multi_hot(labels, num_classes).to(codes.dtype)
        logits = scale * (cosines(codes, centers.to(codes.dtype)) - margin * targets)
        # An image with several labels shares its weight between them.
        terms = {"centers": -(label_shares(targets) * logits.log_softmax(1)).sum(1)}
        if quantization:
            # cos(v, sign v) = |v|_1 / (|v|_2 sqrt(bits)), the cosine of |v| with the codeword of ones.
            ones = codes.new_ones(1, bits)
            terms["quantization"] = quantization * (1 - cosines(codes.abs(), ones)[:, 0])
        return reduce_rows(terms, labels, reduction=reduction, parts=parts)


class OrthoHashLoss(CenterLoss):
    r"""OrthoHash: cross entropy over the cosines with fixed codes, with a margin on the right ones.

    .. math::
        L = -\frac{1}{B} \sum_i \sum_c \frac{y_{ic}}{\sum_d y_{id}} \log p_{ic}, \quad
        p_i = \mathrm{softmax}_c\, s (\cos(v_i, c) - m y_{ic})

    over the rows that have a label; y are the multi-hot or soft labels. The paper's network ends in a linear
    layer without bias and a batch normalisation, which balances the bits.

    Args:
        num_classes: number of classes C.
        bits: code length.
        centers: method of :func:`hash_centers`, or ±1 ``(C, bits)``. The official code draws all bits
            independently, which can repeat a code; "bernoulli" does not.
        scale: s > 0. The official code's default is 8.
        margin: m >= 0. 0.2 is the official code's default; its CIFAR-10 setting is 0.3.
        quantization: weight of the mean over the batch of ``1 - cos(v, sign v)``; 0 in the official code.
        generator: source of the random choices.

    Raises:
        ValueError: a scale that is not positive, a negative margin or weight, more classes than codes,
            centers that do not fit, are not ±1, or repeat.

    Source: Hoe et al., One Loss for All, NeurIPS 2021, and its official code (``m_type="cos"``,
    ``multiclass_loss="label_smoothing"``). Not in swuxyj/DeepHash-pytorch.

    Example:
        >>> loss = OrthoHashLoss(num_classes=10, bits=48)
        >>> round(loss(torch.zeros(2, 48), torch.tensor([3, 5])).item(), 4)
        3.8194
    """

    def __init__(
        self,
        num_classes: int,
        bits: int,
        *,
        centers: CenterMethod | Tensor = "bernoulli",
        scale: float = 8.0,
        margin: float = 0.2,
        quantization: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        check_positive(scale=scale)
        check_not_negative(margin=margin, quantization=quantization)
        super().__init__(num_classes, bits, centers, generator)
        self.scale = scale
        self.margin = margin
        self.quantization = quantization

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
        """Compute the loss of a batch; arguments, result and errors as :meth:`CSQLoss.forward`."""
        if ref_codes is not None or ref_labels is not None:
            refuse_reference("OrthoHashLoss")
        self._parts = {}
        return orthohash_loss(
            codes,
            labels,
            centers=self.centers,
            scale=self.scale,
            margin=self.margin,
            quantization=self.quantization,
            reduction=reduction,
            parts=self._parts,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale:g}, margin={self.margin:g}"
