"""Losses that set every bit to that of the class's hash center: CSQ and DPN."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridhash._checks import check_choice, check_not_negative, check_positive
from hybridhash.losses._batch import refuse_reference
from hybridhash.losses._classes import CenterLoss, centroids, check_batch, mean_over_labelled
from hybridhash.losses._distributed import sum_over_ranks
from hybridhash.losses._inputs import check_codes
from hybridhash.losses.centers import CenterMethod
from hybridhash.losses.quantizers import squared

__all__ = ["CSQLoss", "DPNLoss", "csq_loss", "dpn_loss"]


def csq_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    centers: Tensor,
    tie_bits: Tensor | None = None,
    tanh: bool = False,
    quantization: float = 0.05,
) -> Tensor:
    """Central similarity of a batch; see :class:`CSQLoss`.

    Args:
        codes: ``(B, bits)`` floating-point, in [-1, 1]; any real numbers with ``tanh=True``.
        labels: ``(B,)`` class ids or ``(B, C)`` multi-hot.
        centers: ±1 ``(C, bits)``.
        tie_bits: ±1 ``(bits,)``, the bits of a centroid where its centers are undecided; None: all 1.
        tanh: apply tanh to the codes first.
        quantization: weight of the quantiser.

    Returns:
        0-dim, float32 (float64 for float64 codes).

    Example:
        >>> csq_loss(torch.tensor([[0.9, -0.8]]), torch.tensor([0]), centers=torch.tensor([[1.0, -1.0]]))
        tensor(0.0796)
    """
    check_not_negative(quantization=quantization)
    resolution = torch.finfo(check_codes(codes).dtype).eps / 4
    codes, labels = check_batch(codes, labels, num_classes=centers.shape[0], bits=centers.shape[1])
    with torch.autocast(codes.device.type, enabled=False):
        target = centroids(labels, centers.to(codes.dtype), tie_bits)
        if tanh:
            # -log of (1 + c tanh(z)) / 2, exact for any z.
            losses = F.softplus(-2 * target * codes).mean(1)
            codes = codes.tanh()
        else:
            losses = _negative_log((1 + target * codes) / 2, resolution).mean(1)
        if quantization:
            losses = losses + quantization * squared(codes)
        return mean_over_labelled(losses, labels)


def _negative_log(probability: Tensor, floor: float) -> Tensor:
    """``-log p``; below ``floor`` its tangent: a finite gradient at p = 0, for codes outside [-1, 1] too."""
    inside = probability.clamp(floor, 1)
    return -inside.log() + (floor - probability).clamp(min=0) / floor


def dpn_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    centers: Tensor,
    margin: float = 1.0,
    reduction: Literal["sum", "mean"] = "sum",
    multi_label: Literal["sum", "centroid"] = "sum",
    tie_bits: Tensor | None = None,
) -> Tensor:
    """Polarization loss of a batch; see :class:`DPNLoss`.

    Args:
        codes: ``(B, bits)`` floating-point.
        labels: ``(B,)`` class ids or ``(B, C)`` multi-hot.
        centers: ±1 ``(C, bits)``, the target vectors.
        margin: m > 0.
        reduction: over the bits.
        multi_label: sum over the labels of an image, or one loss with their centroid.
        tie_bits: ±1 ``(bits,)``, the bits of a centroid where its centers are undecided; None: all 1.

    Returns:
        0-dim, float32 (float64 for float64 codes).

    Example:
        >>> dpn_loss(torch.tensor([[0.9, -0.8]]), torch.tensor([0]), centers=torch.tensor([[1.0, -1.0]]))
        tensor(0.3000)
    """
    check_positive(margin=margin)
    check_choice("reduction (over the bits)", reduction, ("sum", "mean"))
    check_choice("multi_label", multi_label, ("sum", "centroid"))
    codes, labels = check_batch(codes, labels, num_classes=centers.shape[0], bits=centers.shape[1])
    with torch.autocast(codes.device.type, enabled=False):
        centers = centers.to(codes.dtype)
        if multi_label == "centroid":
            losses = F.relu(margin - codes * centroids(labels, centers, tie_bits)).sum(1)
        else:
            # relu(m - v t) is relu(m - v) for t = 1 and relu(m + v) for t = -1: no (B, C, bits) tensor.
            to_one = F.linear(F.relu(margin - codes), (1 + centers) / 2)
            to_minus_one = F.linear(F.relu(margin + codes), (1 - centers) / 2)
            losses = (labels * (to_one + to_minus_one)).sum(1)
        return mean_over_labelled(losses / centers.shape[1] if reduction == "mean" else losses, labels)


class CSQLoss(CenterLoss):
    r"""Central similarity quantization: each bit is classified as the bit of the class's hash center.

    .. math::
        L = \frac{1}{BK} \sum_{i,k} -\log \tfrac{1}{2}(1 + c_{ik} u_{ik})
        + \lambda \frac{1}{BK} \sum_{i,k} (|u_{ik}| - 1)^2

    The first term is the binary cross entropy of (u + 1)/2 with (c + 1)/2; the sums run over the rows that
    have a label. For several labels, c is the majority of their centers, bit by bit; undecided bits are those
    of one random word, drawn at construction (``tie_bits``).

    Codes must lie in [-1, 1], as a tanh head gives them. Where the probability of the right bit is below the
    resolution of the codes' dtype (a quarter of its eps, reached only at ±1 and outside), the logarithm is
    continued by its tangent, so that saturated half-precision codes do not overflow. For a linear head set
    ``tanh=True``: the loss is then ``softplus(-2 c z)``, exact for any z.

    Args:
        num_classes: classes C.
        bits: code length.
        centers: method of :func:`hash_centers`, or ±1 ``(C, bits)``. The paper's rule is "hadamard".
        tanh: apply tanh to the codes first.
        quantization: the weight lambda. 0.05 is the official code's default (ResNet-50; for AlexNet 0.001).
        generator: source of the random choices.

    Raises:
        ValueError: a negative weight, more classes than codes, centers that do not fit, are not ±1, or
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
    ) -> Tensor:
        """The loss of a batch.

        Args:
            codes: ``(B, bits)`` floating-point.
            labels: ``(B,)`` class ids or ``(B, C)`` multi-hot; rows without a label are left out.
            indices: ignored.
            ref_codes: not used by this loss; None.
            ref_labels: not used by this loss; None.

        Returns:
            0-dim, float32 (float64 for float64 codes), whatever autocast does; 0 without any label.

        Raises:
            TypeError: codes that are not floating-point, labels that are not integers or multi-hot.
            ValueError: another number of bits or classes than at construction, reference codes.
        """
        refuse_reference(type(self).__name__, ref_codes, ref_labels)
        return csq_loss(
            codes,
            labels,
            centers=self.centers,
            tie_bits=self.tie_bits,
            tanh=self.tanh,
            quantization=self.quantization,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tanh={self.tanh}, quantization={self.quantization:g}"


class DPNLoss(CenterLoss):
    r"""Deep polarized network: every bit is pushed past a margin on its target's side.

    .. math:: L = \frac{1}{B} \sum_i \sum_{c \in y_i} \sum_k \max(m - v_{ik} t_{ck}, 0)

    over the rows that have a label, with linear outputs v and target vectors t of the classes. The loss of an
    image with several labels is the sum over them.

    With ``adaptive=True`` the targets follow the codes: in training mode the signs of the codes are summed
    for each class (an image counts for all its labels), and :meth:`epoch_end` sets a target to the sign of
    its sum. Bits that are tied, and classes that did not occur, keep their target; targets may come to
    coincide if the codes of two classes do.

    Args:
        num_classes: classes C.
        bits: code length.
        centers: the target vectors: method of :func:`hash_centers`, or ±1 ``(C, bits)``. The official code
            draws all bits independently, which can repeat a target; "bernoulli" does not.
        margin: m > 0.
        reduction: over the bits, "sum" or "mean".
        multi_label: "sum" over an image's labels, or one loss with the "centroid" of their targets as in CSQ.
        adaptive: let :meth:`epoch_end` update the targets.
        generator: source of the random choices.

    Raises:
        ValueError: a margin that is not positive, an unknown choice, more classes than codes, centers that do
            not fit, are not ±1, or repeat.

    Source: Fan et al., Deep Polarized Network, IJCAI 2020, and its official code. An epoch's update there
    looks at the first label only. The ternary codes of the paper (0 where v is within the margin) are a
    matter of retrieval. swuxyj/DeepHash-pytorch takes the mean over the bits (``reduction="mean"``) and CSQ's
    centroid (``multi_label="centroid"``); its "-T" variant assigns ternary codes before the loss, which
    leaves no gradient, and is not offered.

    Example:
        >>> loss = DPNLoss(num_classes=10, bits=48)
        >>> loss(torch.zeros(2, 48), torch.tensor([3, 5]))
        tensor(48.)
    """

    requires: frozenset[str] = frozenset({"epoch_hook"})

    class_sums: Tensor
    tie_bits: Tensor

    def __init__(
        self,
        num_classes: int,
        bits: int,
        *,
        centers: CenterMethod | Tensor = "bernoulli",
        margin: float = 1.0,
        reduction: Literal["sum", "mean"] = "sum",
        multi_label: Literal["sum", "centroid"] = "sum",
        adaptive: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        check_positive(margin=margin)
        check_choice("reduction (over the bits)", reduction, ("sum", "mean"))
        check_choice("multi_label", multi_label, ("sum", "centroid"))
        super().__init__(num_classes, bits, centers, generator)
        self.margin = margin
        self.reduction = reduction
        self.multi_label = multi_label
        self.adaptive = adaptive
        self._add_tie_bits(generator)
        self.register_buffer("class_sums", torch.zeros_like(self.centers))

    def forward(
        self,
        codes: Tensor,
        labels: Tensor,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch; arguments, result and errors as :meth:`CSQLoss.forward`."""
        refuse_reference(type(self).__name__, ref_codes, ref_labels)
        loss = dpn_loss(
            codes,
            labels,
            centers=self.centers,
            margin=self.margin,
            reduction=self.reduction,
            multi_label=self.multi_label,
            tie_bits=self.tie_bits,
        )
        if self.adaptive and self.training:
            self._count(codes, labels)
        return loss

    @torch.no_grad()
    def _count(self, codes: Tensor, labels: Tensor) -> None:
        codes, labels = check_batch(codes, labels, num_classes=self.num_classes, bits=self.bits)
        signs = torch.where(codes > 0, 1.0, -1.0)
        with torch.autocast(codes.device.type, enabled=False):
            # Summed over the ranks at each step, so the buffers of all ranks are always equal.
            self.class_sums += sum_over_ranks(labels.float().T @ signs)

    @torch.no_grad()
    def epoch_end(self) -> None:
        """Set the targets to the majority of this epoch's codes of each class, if ``adaptive``."""
        if self.adaptive:
            self.centers.copy_(torch.where(self.class_sums == 0, self.centers, self.class_sums.sign()))
            self.class_sums.zero_()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, margin={self.margin:g}, adaptive={self.adaptive}"
