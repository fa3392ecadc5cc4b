"""DPN: every bit is pushed past a margin on the side of its class's target."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridhash._checks import check_choice, check_flags, check_integer, check_positive
from hybridhash.codes import sign
from hybridhash.labels import to_multi_hot
from hybridhash.losses._classes import CenterLoss
from hybridhash.losses._distributed import sum_over_ranks
from hybridhash.losses._inputs import (
    Reduction,
    class_batch,
    diverged_to_nan,
    reduce_rows,
    refuse_reference,
)
from hybridhash.losses.centers import CenterMethod, minimum_distance
from hybridhash.losses.csq import centroids

__all__ = ["DPNLoss", "dpn_loss"]


def dpn_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    centers: Tensor,
    margin: float = 1.0,
    reduction: Literal["sum", "mean"] = "sum",
    multi_label: Literal["sum", "centroid"] = "sum",
    tie_bits: Tensor | None = None,
    over_rows: Reduction = "mean",
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """Compute the polarization loss of a batch; see :class:`DPNLoss`.

    Args:
        codes: ``(B, bits)`` floating-point.
        labels: ``(B,)`` class ids or ``(B, C)`` multi-hot or soft.
        centers: ±1 ``(C, bits)``, the target vectors.
        margin: m > 0.
        reduction: how to reduce over the bits.
        multi_label: "sum" over the labels of an image, or one loss with their "centroid".
        tie_bits: ±1 ``(bits,)``, the bits of a centroid where its centers are undecided. None means all 1.
        over_rows: "none" returns the losses of the rows, ``(B,)``, 0 without a label; what the other losses
            call ``reduction``, which here is that over the bits.
        parts: a dict that gets the mean of each term of the loss, detached. None notes nothing.

    Returns:
        0-dim, float32 (float64 for float64 codes).

    Raises:
        TypeError: codes or labels of the wrong type.
        ValueError: a margin that is not positive, an unknown choice, or shapes that do not fit the centers.

    Example:
        >>> dpn_loss(torch.tensor([[0.9, -0.8]]), torch.tensor([0]), centers=torch.tensor([[1.0, -1.0]]))
        tensor(0.3000)
    """
    check_positive(margin=margin)
    check_choice("reduction (over the bits)", reduction, ("sum", "mean"))
    check_choice("multi_label", multi_label, ("sum", "centroid"))
    codes, labels = class_batch(codes, labels, num_classes=centers.shape[0], bits=centers.shape[1], soft=True)
    codes = diverged_to_nan(codes)
    with torch.autocast(codes.device.type, enabled=False):
        if labels.ndim == 1:
            # Without a label (id -1) it is the last target, but these rows are left out of the mean.
            target = centers[labels].to(codes.dtype)
            losses = F.relu(margin - codes * target).sum(1)
        elif multi_label == "centroid":
            target = centroids(labels, centers.to(codes.dtype), tie_bits)
            # A bit of a soft label is 1 with probability (1 + t) / 2; of another one, t is 1 or -1.
            to_one, to_minus_one = F.relu(margin - codes), F.relu(margin + codes)
            losses = ((1 + target) / 2 * to_one + (1 - target) / 2 * to_minus_one).sum(1)
        else:
            # relu(m - v t) is relu(m - v) for t = 1 and relu(m + v) for t = -1: no (B, C, bits) tensor.
            targets = centers.to(codes.dtype)
            to_one = F.relu(margin - codes) @ (1 + targets).T / 2
            to_minus_one = F.relu(margin + codes) @ (1 - targets).T / 2
            losses = (labels * (to_one + to_minus_one)).sum(1)
        if reduction == "mean":
            losses = losses / centers.shape[1]
        return reduce_rows({"centers": losses}, labels, reduction=over_rows, parts=parts)


class DPNLoss(CenterLoss):
    r"""Deep polarized network: every bit is pushed past a margin on its target's side.

    .. math:: L = \frac{1}{B} \sum_i \sum_{c \in y_i} \sum_k \max(m - v_{ik} t_{ck}, 0)

    over the rows that have a label, with unbounded outputs v and target vectors t of the classes. The loss of
    an image with several labels is the sum over them, and that of soft labels the sum weighted with them.

    With ``adaptive=True`` the targets follow the codes: in training mode the signs of the codes are summed
    for each class (an image counts for all its labels), and after every ``update_every`` epochs
    :meth:`epoch_end` sets each target to the sign of its sum over the last epoch. Bits that are tied, and
    classes that did not occur, keep their target. An update that would give two classes the same target is
    left out with a warning. The codes of a network that has hardly been trained are all alike, and targets
    taken from them ruin the training, so the first update comes after ``update_every`` epochs too.

    Args:
        num_classes: number of classes C.
        bits: code length.
        centers: the target vectors: method of :func:`hash_centers`, or ±1 ``(C, bits)``. The official code
            draws all bits independently, which can repeat a target; "bernoulli" does not.
        margin: m > 0.
        reduction: "sum" or "mean" over the bits.
        multi_label: "sum" over an image's labels, or one loss with the "centroid" of their targets as in CSQ.
        adaptive: whether :meth:`epoch_end` updates the targets.
        update_every: number of epochs between updates, and before the first one; used with ``adaptive``.
        generator: source of the random choices.

    Raises:
        TypeError: ``update_every`` is not an integer.
        ValueError: a margin that is not positive, an unknown choice, ``update_every`` below 1, more classes
            than codes, or centers that do not fit, are not ±1, or repeat.

    Source: Fan et al., Deep Polarized Network, IJCAI 2020, and its official code
    (``--centroid-update-time`` is ``update_every``). An update there looks at the first label only. The
    ternary codes of the paper (0 where v is within the margin) are a matter of retrieval.
    swuxyj/DeepHash-pytorch takes the mean over the bits (``reduction="mean"``) and CSQ's centroid
    (``multi_label="centroid"``); its "-T" variant assigns ternary codes before the loss, which leaves no
    gradient, and is not offered.

    Example:
        >>> loss = DPNLoss(num_classes=10, bits=48)
        >>> loss(torch.zeros(2, 48), torch.tensor([3, 5]))
        tensor(48.)
    """

    requires: frozenset[str] = frozenset({"epoch_hook"})

    class_sums: Tensor
    epochs: Tensor
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
        update_every: int = 5,
        generator: torch.Generator | None = None,
    ) -> None:
        check_positive(margin=margin)
        check_choice("reduction (over the bits)", reduction, ("sum", "mean"))
        check_choice("multi_label", multi_label, ("sum", "centroid"))
        check_flags(adaptive=adaptive)
        super().__init__(num_classes, bits, centers, generator)
        self.margin = margin
        self.reduction = reduction
        self.multi_label = multi_label
        self.adaptive = adaptive
        self.update_every = check_integer("update_every", update_every, 1)
        self._add_tie_bits(generator)
        self.register_buffer("class_sums", torch.zeros_like(self.centers, dtype=torch.int64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64, device="cpu"))

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
        """Compute the loss of a batch; arguments, result and errors as :meth:`CSQLoss.forward`.

        With ``adaptive`` soft labels are refused in training: an image counts for classes as a whole.
        """
        if ref_codes is not None or ref_labels is not None:
            refuse_reference("DPNLoss")
        self._parts = {}
        loss = dpn_loss(
            codes,
            labels,
            centers=self.centers,
            margin=self.margin,
            reduction=self.reduction,
            multi_label=self.multi_label,
            tie_bits=self.tie_bits,
            over_rows=reduction,
            parts=self._parts,
        )
        if self.adaptive and self.training:
            self._count(codes, labels)
        return loss

    @torch.no_grad()
    def _count(self, codes: Tensor, labels: Tensor) -> None:
        codes, labels = class_batch(codes, labels, num_classes=self.num_classes, bits=self.bits)
        hot = to_multi_hot(labels, self.num_classes).to(codes.dtype)
        with torch.autocast(codes.device.type, enabled=False):
            # Summed over the ranks at each step, so the buffers of all ranks are always equal; as integers,
            # which loss.half() leaves exact.
            self.class_sums += sum_over_ranks(hot.T @ sign(codes)).to(torch.int64)

    @torch.no_grad()
    def epoch_end(self) -> None:
        """Count an epoch of ``adaptive``, and update the targets after every ``update_every`` of them."""
        if not self.adaptive:
            return
        self.epochs += 1
        if int(self.epochs) % self.update_every == 0:
            targets = torch.where(
                self.class_sums == 0, self.centers, self.class_sums.sign().to(self.centers.dtype)
            )
            if minimum_distance(targets) > 0:
                self.centers.copy_(targets)
            else:
                warnings.warn(
                    "the codes of two classes have the same majority: the targets stay as they were. "
                    f"Train for more epochs before an update (update_every is {self.update_every})",
                    stacklevel=3,
                )
        self.class_sums.zero_()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, margin={self.margin:g}, adaptive={self.adaptive}"
