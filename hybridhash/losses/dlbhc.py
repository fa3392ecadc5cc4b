"""DLBHC: a classifier on a latent layer of sigmoid units."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridhash._checks import check_choice
from hybridhash.losses._classes import ClassifierLoss
from hybridhash.losses._inputs import (
    Reduction,
    class_batch,
    class_entropy,
    diverged_to_nan,
    one_label_each,
    reduce_rows,
    refuse_reference,
)

__all__ = ["DLBHCLoss", "dlbhc_loss"]


def dlbhc_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    weight: Tensor,
    bias: Tensor | None = None,
    latent: Literal["sigmoid", "tanh"] = "sigmoid",
    reduction: Reduction = "mean",
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """Compute the cross entropy of a classifier on latent sigmoid units; see :class:`DLBHCLoss`.

    Args:
        codes: ``(B, bits)`` floating-point.
        labels: ``(B,)`` class ids, or ``(B, C)`` with at most one label in a row, or shares of at most 1.
        weight: ``(C, bits)`` of the classifier.
        bias: ``(C,)`` of the classifier. None means none.
        latent: what the codes are, see :class:`DLBHCLoss`.
        reduction: "none" returns the losses of the rows, ``(B,)``, 0 without a label.
        parts: a dict that gets the mean of each term of the loss, detached. None notes nothing.

    Returns:
        0-dim, float32 (float64 for float64 codes).

    Raises:
        TypeError: codes or labels of the wrong type.
        ValueError: an unknown ``latent``, several labels in a row, or shapes that do not fit the weights.

    Example:
        >>> dlbhc_loss(torch.tensor([[2.0, -1.0]]), torch.tensor([0]), weight=torch.eye(2))
        tensor(0.4333)
    """
    check_choice("latent", latent, ("sigmoid", "tanh"))
    codes, labels = class_batch(codes, labels, num_classes=weight.shape[0], bits=weight.shape[1], soft=True)
    with torch.autocast(codes.device.type, enabled=False):
        codes = diverged_to_nan(codes)
        activations = codes.sigmoid() if latent == "sigmoid" else (1 + codes) / 2
        bias = None if bias is None else bias.to(codes.dtype)
        logits = F.linear(activations, weight.to(codes.dtype), bias)
        terms = {"classification": class_entropy(logits, one_label_each(labels, "DLBHCLoss"))}
        return reduce_rows(terms, labels, reduction=reduction, parts=parts)


class DLBHCLoss(ClassifierLoss):
    r"""Deep learning of binary hash codes: a classifier on a latent layer of sigmoid units.

    .. math:: L = -\frac{1}{B} \sum_i \log \mathrm{softmax}(W a_i + b)_{y_i}, \quad a_i = \sigma(z_i)

    over the rows that have a label. A bit is 1 where a > 1/2, which is z > 0. One label per image: the paper
    has no rule for several, and rows with several are refused. Soft labels that add up to at most 1 (mixup,
    label smoothing) share the weight of their row.

    The classifier belongs to this loss: give ``loss.parameters()`` to the optimizer too (the paper trains it
    with ten times the learning rate), and under ``torch.distributed`` wrap the loss in
    ``DistributedDataParallel`` like the network.

    Args:
        num_classes: number of classes C.
        bits: code length.
        latent: what the codes are. "sigmoid" takes the pre-activations z of an unbounded head, as in the
            paper. "tanh" takes the outputs u of a tanh head, and ``a = (1 + u) / 2`` is the sigmoid of twice
            the head's pre-activation.
        generator: source of the classifier's first weights.

    Attributes:
        classifier: ``nn.Linear(bits, num_classes)``, W and b.

    Raises:
        ValueError: a size below 1, an unknown ``latent``.

    Source: Lin et al., Deep Learning of Binary Hash Codes for Fast Image Retrieval, CVPR Workshops 2015. Not
    in swuxyj/DeepHash-pytorch.

    Example:
        >>> loss = DLBHCLoss(num_classes=10, bits=48, generator=torch.Generator().manual_seed(0))
        >>> codes = torch.zeros(2, 48, requires_grad=True)
        >>> bool(loss(codes, torch.tensor([3, 5])) > 0), [tuple(p.shape) for p in loss.parameters()]
        (True, [(10, 48), (10,)])
    """

    def __init__(
        self,
        num_classes: int,
        bits: int,
        *,
        latent: Literal["sigmoid", "tanh"] = "sigmoid",
        generator: torch.Generator | None = None,
    ) -> None:
        check_choice("latent", latent, ("sigmoid", "tanh"))
        super().__init__(num_classes, bits, bias=True, generator=generator)
        self.latent = latent

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
        """Compute the loss of a batch.

        Args:
            codes: ``(B, bits)`` floating-point.
            labels: ``(B,)`` class ids, or ``(B, C)`` with one label in a row at most, or with shares of at
                most 1; rows without a label are left out.
            indices: ignored.
            ref_codes: must be None; the loss has no second side.
            ref_labels: must be None.
            reduction: see :meth:`CSQLoss.forward`.

        Returns:
            0-dim, float32 (float64 for float64 codes), whatever autocast does; 0 without any label.

        Raises:
            TypeError: codes that are not floating-point, labels that are not integers or multi-hot.
            ValueError: another number of bits or classes than at construction, several labels in a row,
                reference codes.
        """
        if ref_codes is not None or ref_labels is not None:
            refuse_reference("DLBHCLoss")
        weight, bias = self.classifier.weight, self.classifier.bias
        self._parts = {}
        return dlbhc_loss(
            codes,
            labels,
            weight=weight,
            bias=bias,
            latent=self.latent,
            reduction=reduction,
            parts=self._parts,
        )

    def extra_repr(self) -> str:
        return f"latent={self.latent!r}"
