"""GreedyHash: a classifier on the signs of the codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridhash._checks import check_not_negative
from hybridhash.codes import straight_through_sign
from hybridhash.losses._classes import ClassifierLoss
from hybridhash.losses._inputs import Reduction, class_batch, class_entropy, reduce_rows, refuse_reference

__all__ = ["GreedyHashLoss", "greedyhash_loss"]


def greedyhash_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    weight: Tensor,
    alpha: float = 0.1,
    reduction: Reduction = "mean",
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """Compute the cross entropy of a classifier on the signs of codes; see :class:`GreedyHashLoss`.

    Args:
        codes: ``(B, bits)`` floating-point.
        labels: ``(B,)`` class ids or ``(B, C)`` multi-hot or soft.
        weight: ``(C, bits)`` of the classifier.
        alpha: weight of the penalty.
        reduction: "none" returns the losses of the rows, ``(B,)``, 0 without a label.
        parts: a dict that gets the mean of each term of the loss, detached. None notes nothing.

    Returns:
        0-dim, float32 (float64 for float64 codes).

    Raises:
        TypeError: codes or labels of the wrong type.
        ValueError: a negative ``alpha``, labels outside [0, 1], or shapes that do not fit the weights.

    Example:
        >>> greedyhash_loss(torch.tensor([[2.0, -1.0]]), torch.tensor([0]), weight=torch.eye(2))
        tensor(0.1769)
    """
    check_not_negative(alpha=alpha)
    codes, labels = class_batch(codes, labels, num_classes=weight.shape[0], bits=weight.shape[1], soft=True)
    with torch.autocast(codes.device.type, enabled=False):
        logits = F.linear(straight_through_sign(codes), weight.to(codes.dtype))
        terms = {"classification": class_entropy(logits, labels)}
        if alpha:
            terms["quantization"] = alpha * (codes.abs() - 1).abs().pow(3).mean(1)
        return reduce_rows(terms, labels, reduction=reduction, parts=parts)


class GreedyHashLoss(ClassifierLoss):
    r"""GreedyHash: a classifier on the signs of the codes, whose gradient passes the sign unchanged.

    .. math::
        L = \frac{1}{B} \sum_i \left[ -\sum_c \frac{y_{ic}}{\sum_d y_{id}}
        \log \mathrm{softmax}(W \mathrm{sign}(u_i))_c
        + \frac{\alpha}{K} \sum_k \big| |u_{ik}| - 1 \big|^3 \right]

    over the rows that have a label. The paper has one label per image; several, or soft ones (mixup, label
    smoothing), share the weight of their row, as in FIRe.

    The gradient of the sign is the identity by definition (straight-through), not a derivative of the value;
    so are the second derivatives.

    The classifier belongs to this loss: give ``loss.parameters()`` to the optimizer too, and under
    ``torch.distributed`` wrap the loss in ``DistributedDataParallel`` like the network.

    Args:
        num_classes: number of classes C.
        bits: code length.
        alpha: weight of the penalty. The official code takes 0.1 for CIFAR-10 and 1 for ImageNet.
        generator: source of the classifier's first weights.

    Attributes:
        classifier: ``nn.Linear(bits, num_classes, bias=False)``, W.

    Raises:
        ValueError: a size below 1, a negative ``alpha``.

    Source: Su et al., Greedy Hash, NeurIPS 2018, and its official code. Here the sign of exactly 0 is -1, the
    bit that it is stored as; there it is 0. swuxyj/DeepHash-pytorch has the same loss, but drops all labels
    except the first of multi-label images (``labels.argmax(1)`` gives that); CISiPLab/cisip-FIRe shares the
    weight as here.

    Example:
        >>> loss = GreedyHashLoss(num_classes=10, bits=48, generator=torch.Generator().manual_seed(0))
        >>> codes = torch.zeros(2, 48, requires_grad=True)
        >>> bool(loss(codes, torch.tensor([3, 5])) > 0), [tuple(p.shape) for p in loss.parameters()]
        (True, [(10, 48)])
    """

    def __init__(
        self, num_classes: int, bits: int, *, alpha: float = 0.1, generator: torch.Generator | None = None
    ) -> None:
        check_not_negative(alpha=alpha)
        super().__init__(num_classes, bits, bias=False, generator=generator)
        self.alpha = alpha

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
            refuse_reference("GreedyHashLoss")
        self._parts = {}
        return greedyhash_loss(
            codes,
            labels,
            weight=self.classifier.weight,
            alpha=self.alpha,
            reduction=reduction,
            parts=self._parts,
        )

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}"
