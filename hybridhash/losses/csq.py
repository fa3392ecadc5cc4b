"""CSQ: every bit is classified as that of the class's hash center."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridhash._checks import check_flags, check_not_negative
from hybridhash.losses._classes import CenterLoss
from hybridhash.losses._inputs import (
    Reduction,
    class_batch,
    diverged_to_nan,
    label_shares,
    reduce_rows,
    refuse_reference,
)
from hybridhash.losses.centers import CenterMethod

__all__ = ["CSQLoss", "centroids", "csq_loss"]


def csq_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    centers: Tensor,
    tie_bits: Tensor | None = None,
    tanh: bool = False,
    quantization: float = 0.05,
    reduction: Reduction = "mean",
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """Compute the central similarity loss of a batch; see :class:`CSQLoss`.

    Args:
        codes: ``(B, bits)`` floating-point, in [-1, 1]; any real numbers with ``tanh=True``.
        labels: ``(B,)`` class ids or ``(B, C)`` multi-hot or soft.
        centers: ±1 ``(C, bits)``.
        tie_bits: ±1 ``(bits,)``, the bits of a centroid where its centers are undecided. None means all 1.
        tanh: whether to apply tanh to the codes first.
        quantization: weight of the quantiser, 0 or more.
        reduction: "none" returns the losses of the rows, ``(B,)``, 0 without a label.
        parts: a dict that gets the mean of each term of the loss, detached. None notes nothing.

    Returns:
        0-dim, float32 (float64 for float64 codes).

    Raises:
        TypeError: codes or labels of the wrong type.
        ValueError: a negative weight, shapes that do not fit the centers, or codes outside [-1, 1] without
            ``tanh`` (not looked for under ``torch.compile``).

    Example:
        >>> csq_loss(torch.tensor([[0.9, -0.8]]), torch.tensor([0]), centers=torch.tensor([[1.0, -1.0]]))
        tensor(0.0796)
    """
    if not quantization >= 0:
        raise ValueError(f"quantization must be 0 or a positive number, got {quantization}")
    given = codes
    codes, labels = class_batch(codes, labels, num_classes=centers.shape[0], bits=centers.shape[1], soft=True)
    if codes.numel() and not tanh and not torch.compiler.is_compiling():
        largest = float(torch.linalg.vector_norm(codes.detach(), torch.inf))
        if largest > 1 + 1e-3:
            raise ValueError(
                f"codes must be in [-1, 1], as a tanh head gives them, got one of size {largest:g}: "
                "set tanh=True for an unbounded head"
            )
    codes = diverged_to_nan(codes)
    with torch.autocast(codes.device.type, enabled=False):
        # The center of each image: that of its class, or the majority of those of its labels. Without a label
        # (id -1) it is the last one, but these rows are left out of the mean.
        if labels.ndim == 1:
            target = centers[labels].to(codes.dtype)
        else:
            target = centroids(labels, centers.to(codes.dtype), tie_bits)
        # A bit of a hard label is c. One of a soft label is 1 with probability (1 + c) / 2, and -1 else.
        soft = labels.dtype.is_floating_point
        costs = []
        for bit in (1, -1) if soft else (target,):
            if tanh:
                # -log of (1 + c tanh(z)) / 2, exact for any z.
                costs.append(F.softplus(-2 * bit * codes))
            else:
                # -log of (1 + c u) / 2. A code of -c counts as the next number that its dtype can hold: a
                # network in half precision saturates at exactly -1 and 1.
                next_to_one = 1 - torch.finfo(given.dtype).eps / 2
                costs.append(math.log(2) - torch.log1p((bit * codes).clamp(min=-next_to_one)))
        entropy = costs[1].lerp(costs[0], (1 + target) / 2) if soft else costs[0]
        penalty = ((codes.tanh() if tanh else codes).abs() - 1).square()
        terms = {"centers": entropy.mean(1), "quantization": quantization * penalty.mean(1)}
        return reduce_rows(terms, labels, reduction=reduction, parts=parts)


def centroids(labels: Tensor, centers: Tensor, tie_bits: Tensor | None) -> Tensor:
    """Return the majority of the centers of each row's labels, bit by bit.

    The centroid of a row of soft labels is the mean of the centers, weighted with ``y / sum(y)``: a loss that
    is linear in its target is then that of the classes, mixed in these shares.

    Args:
        labels: bool ``(B, C)``, or real-valued; a row of which all are 0 or 1 is not soft.
        centers: ±1 ``(C, bits)``.
        tie_bits: ±1 ``(bits,)`` for the bits on which the centers are undecided. None means all 1.

    Returns:
        ``(B, bits)`` in the dtype of the centers; ±1, for soft labels in [-1, 1].
    """
    sums = labels.to(centers.dtype) @ centers
    ties = torch.ones_like(centers[0]) if tie_bits is None else tie_bits.to(centers.dtype)
    majority = torch.where(sums == 0, ties, sums.sign())
    if labels.dtype == torch.bool:
        return majority
    hard = ((labels == 0) | (labels == 1)).all(1, keepdim=True)
    return torch.where(hard, majority, label_shares(labels).to(centers.dtype) @ centers)


class CSQLoss(CenterLoss):
    r"""Central similarity quantization: each bit is classified as the bit of the class's hash center.

    .. math::
        L = \frac{1}{BK} \sum_{i,k} -\log \tfrac{1}{2}(1 + c_{ik} u_{ik})
        + \lambda \frac{1}{BK} \sum_{i,k} (|u_{ik}| - 1)^2

    The first term is the binary cross entropy of (u + 1)/2 with (c + 1)/2. The sums run over the rows that
    have a label. For several labels, c is the majority of their centers, bit by bit; undecided bits are those
    of one random codeword, drawn at construction (``tie_bits``). For soft labels (mixup, label smoothing), c
    is the mean of the centers, weighted with ``y / sum(y)``, and the first term the cross entropy with
    ``(c + 1)/2``: the losses of the classes, mixed in these shares.

    Codes must lie in [-1, 1], as a tanh head gives them. A code of exactly -c, where the logarithm has no
    value, counts as the next number that its dtype can hold, so that saturated half-precision codes do not
    overflow. For an unbounded head set ``tanh=True``: the loss is then ``softplus(-2 c z)``, exact for any z.

    Args:
        num_classes: number of classes C.
        bits: code length K.
        centers: method of :func:`hash_centers`, or ±1 ``(C, bits)``. The paper's rule is "hadamard".
        tanh: whether to apply tanh to the codes first.
        quantization: the weight lambda. 0.05 is the official code's default (ResNet-50; for AlexNet 0.001).
        generator: source of the random choices.

    Raises:
        ValueError: a negative weight, more classes than codes, or centers that do not fit, are not ±1, or
            repeat.

    Source: Yuan et al., Central Similarity Quantization, CVPR 2020, and its official code, without its
    optional pair term. swuxyj/DeepHash-pytorch applies tanh in the loss (``tanh=True``) and weighs the
    quantiser 1e-4 (``quantization=1e-4``).

    Example:
        >>> loss = CSQLoss(num_classes=10, bits=48)
        >>> codes = torch.zeros(2, 48, requires_grad=True)
        >>> round(loss(codes, torch.tensor([3, 5])).item(), 4)
        0.7431
    """

    tie_bits: Tensor

    def __init__(
        self,
        num_classes: int,
        bits: int,
        *,
        centers: CenterMethod | Tensor = "hadamard",
        tanh: bool = False,
        quantization: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> None:
        check_flags(tanh=tanh)
        check_not_negative(quantization=quantization)
        super().__init__(num_classes, bits, centers, generator)
        self.tanh = tanh
        self.quantization = quantization
        self._add_tie_bits(generator)

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
            labels: ``(B,)`` class ids or ``(B, C)``, multi-hot or soft (in [0, 1]); rows without a label are
                left out.
            indices: ignored.
            ref_codes: must be None; the loss has no second side.
            ref_labels: must be None.
            reduction: "none" returns the losses of the rows, ``(B,)``, 0 without a label: the loss is their
                sum over the number of rows that have one. Under ``torch.distributed`` they are those of the
                joined batch, in the order of the ranks.

        Returns:
            0-dim, float32 (float64 for float64 codes), whatever autocast does; 0 without any label.

        Raises:
            TypeError: codes that are not floating-point, or labels that are not integers or ``(B, C)``.
            ValueError: another number of bits or classes than at construction, codes outside [-1, 1] without
                ``tanh``, labels outside [0, 1], another reduction, or reference codes.
        """
        if ref_codes is not None or ref_labels is not None:
            refuse_reference("CSQLoss")
        self._parts = {}
        return csq_loss(
            codes,
            labels,
            centers=self.centers,
            tie_bits=self.tie_bits,
            tanh=self.tanh,
            quantization=self.quantization,
            reduction=reduction,
            parts=self._parts,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tanh={self.tanh}, quantization={self.quantization:g}"
