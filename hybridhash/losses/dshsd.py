"""DSHSD: contrastive loss on squared distances, and a classifier on the codes."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridhash._checks import check_choice, check_flags, check_not_negative, check_positive
from hybridhash.labels import labelled, to_multi_hot
from hybridhash.losses._classes import linear_classifier
from hybridhash.losses._inputs import Reduction, class_batch, class_entropy, diverged_to_nan
from hybridhash.losses.bank import CodeMemory
from hybridhash.losses.pairwise import PairwiseLoss, squared_distances

__all__ = ["DSHSDLoss", "dshsd_loss"]

DSHSDClassification = Literal["softmax", "sigmoid"]


def dshsd_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    weight: Tensor,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    margin: float | None = None,
    alpha: float = 0.05,
    classification: DSHSDClassification = "softmax",
    tanh: bool = False,
    exclude_self: bool = False,
) -> Tensor:
    """Compute the contrastive loss and the classification of a batch; see :class:`DSHSDLoss`.

    Args:
        codes: ``(B, bits)`` floating-point.
        labels: ``(B,)`` class ids or ``(B, C)`` multi-hot.
        weight: ``(C, bits)`` of the classifier.
        ref_codes: ``(M, bits)``, codes to compare the batch with; they get no gradient.
        ref_labels: ``(M,)`` or ``(M, C)``, labels of ``ref_codes``.
        margin: as for the class, like all that follow.
        alpha: weight of the pairs.
        classification: "softmax" or "sigmoid".
        tanh: whether to apply tanh to the codes first.
        exclude_self: whether to leave out the pairs of an item with itself.

    Returns:
        0-dim, float32 (float64 for float64 codes).

    Example:
        >>> codes = torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
        >>> dshsd_loss(codes, torch.tensor([0, 0, 1]), weight=torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        tensor(0.0181)
    """
    loss = DSHSDLoss(
        weight.shape[0],
        weight.shape[1],
        margin=margin,
        alpha=alpha,
        classification=classification,
        tanh=tanh,
        exclude_self=exclude_self,
        generator=torch.Generator(),  # its start is not used, and must not draw from torch's own
    )
    second_side = {"ref_codes": ref_codes, "ref_labels": ref_labels}
    result: Tensor = torch.func.functional_call(
        loss, {"classifier.weight": weight}, (codes, labels), second_side
    )
    return result


class DSHSDLoss(PairwiseLoss):
    r"""Contrastive loss with a margin, and a linear classifier on the codes (DSHSD).

    .. math::
        L = \alpha\, \mathrm{mean}_{ij} \big[ \tfrac{1}{2} s_{ij} D_{ij}
            + \tfrac{1}{2} (1 - s_{ij}) \max(m - D_{ij}, 0) \big]
            - \mathrm{mean}_i \sum_c \frac{y_{ic}}{\sum_d y_{id}} \log \mathrm{softmax}(W u_i)_c,
        \quad D_{ij} = \lVert u_i - u_j \rVert^2

    for codes in [-1, 1], as a tanh head gives them. With ``classification="sigmoid"``, the paper's form for
    images with several labels, the last term is the binary cross entropy of ``sigmoid(W u)``, summed over the
    classes. It is 0 for an image without a label.

    The classifier belongs to this loss: give ``loss.parameters()`` to the optimizer too, and under
    ``torch.distributed`` wrap the loss in ``DistributedDataParallel`` like the network.

    Args:
        num_classes: number of classes C.
        bits: code length K.
        margin: m; None is ``2 * bits``.
        alpha: weight of the pairs.
        classification: ``"softmax"``, or ``"sigmoid"`` for data of several labels an image.
        tanh: Apply tanh to the codes in the loss, for an unbounded head. A bank holds the codes as given.
        bank: memory of the training set's codes. None, the published form, compares within the batch.
        exclude_self: Leave out the pairs of an item with itself.
        generator: source of the classifier's first weights.

    Attributes:
        classifier: ``nn.Linear(bits, num_classes, bias=False)``, W.

    Raises:
        ValueError: a size below 1, ``margin`` not positive, ``alpha`` negative, an unknown
            ``classification``; in the forward pass, another code length or another number of classes.

    Source: L. Wu, H. Ling, P. Li, J. Chen, Y. Fang, F. Zou, Deep Supervised Hashing Based on Stable
    Distribution, IEEE Access 2019, equations 7 and 8, in the form and with the defaults of
    swuxyj/DeepHash-pytorch on unbounded outputs (``tanh=True``). There the classifier is not given to the
    optimizer and stays random, and the softmax of an image with several labels sums over them.

    Example:
        >>> loss = DSHSDLoss(num_classes=10, bits=48, generator=torch.Generator().manual_seed(0))
        >>> codes = torch.zeros(2, 48, requires_grad=True)
        >>> round(loss(codes, torch.tensor([3, 5])).item(), 4)  # log 10, and 0.05 times a quarter of 96
        3.5026
    """

    requires: frozenset[str] = frozenset({"parameters"})

    def __init__(
        self,
        num_classes: int,
        bits: int,
        *,
        margin: float | None = None,
        alpha: float = 0.05,
        classification: DSHSDClassification = "softmax",
        tanh: bool = False,
        bank: CodeMemory | None = None,
        exclude_self: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        check_flags(tanh=tanh)
        check_positive(margin=1.0 if margin is None else margin)
        check_not_negative(alpha=alpha)
        check_choice("classification", classification, get_args(DSHSDClassification))
        self.margin, self.alpha = margin, alpha
        self.classification, self.tanh = classification, tanh
        self.classifier = linear_classifier(num_classes, bits, bias=False, generator=generator)

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
        classes, bits = self.classifier.weight.shape
        class_batch(codes, labels, num_classes=classes, bits=bits)
        return super().forward(
            codes,
            labels,
            indices=indices,
            ref_codes=ref_codes,
            ref_labels=ref_labels,
            reduction=reduction,
        )

    def pair_losses(self, codes: Tensor, ref_codes: Tensor, s: Tensor) -> Tensor:
        if self.tanh:
            codes, ref_codes = diverged_to_nan(codes).tanh(), diverged_to_nan(ref_codes).tanh()
        margin = 2 * codes.shape[1] if self.margin is None else self.margin
        distance = squared_distances(codes, ref_codes)
        hinge = (margin - distance).clamp(min=0)
        return self.alpha * 0.5 * (s * distance + (1 - s) * hinge)

    def penalty(self, codes: Tensor, labels: Tensor) -> Tensor:
        weight = self.classifier.weight.to(codes.dtype)
        logits = F.linear(codes.tanh() if self.tanh else codes, weight)
        if self.classification == "softmax":
            return class_entropy(logits, labels)
        targets = to_multi_hot(labels, weight.shape[0]).to(codes.dtype)
        entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
        return entropy * labelled(labels)
