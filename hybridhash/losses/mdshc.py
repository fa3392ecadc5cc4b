"""MDSHC: minimal-distance-separated hash centers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridhash._checks import check_not_negative
from hybridhash.labels import as_labels, to_multi_hot
from hybridhash.losses import quantizers
from hybridhash.losses._classes import CenterLoss
from hybridhash.losses._inputs import (
    Reduction,
    check_codes,
    class_batch,
    reduce_rows,
    refuse_reference,
    upcast,
)
from hybridhash.losses.bank import CodeMemory, required_with
from hybridhash.losses.centers import CenterMethod
from hybridhash.losses.pairwise import PairwiseLoss, cosines

__all__ = ["MDSHCLoss", "mdshc_loss"]


def mdshc_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    centers: Tensor,
    quantization: float = 1e-4,
    reduction: Reduction = "mean",
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """Compute the center part and the quantiser of a batch; see :class:`MDSHCLoss`.

    Args:
        codes: ``(B, bits)`` floating-point.
        labels: ``(B,)`` class ids or ``(B, C)`` multi-hot or soft.
        centers: ±1 ``(C, bits)``, at least two of them.
        quantization: weight of the quantiser.
        reduction: "none" returns the losses of the rows, ``(B,)``, 0 without a label.
        parts: a dict that gets the mean of each term of the loss, detached. None notes nothing.

    Returns:
        0-dim, float32 (float64 for float64 codes).

    Example:
        >>> centers = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
        >>> mdshc_loss(torch.tensor([[0.9, -0.8]]), torch.tensor([0]), centers=centers)
        tensor(0.2349)
    """
    check_not_negative(quantization=quantization)
    if centers.shape[0] < 2:
        raise ValueError("the softmax over the centers needs at least two classes, got 1")
    codes, labels = class_batch(codes, labels, num_classes=centers.shape[0], bits=centers.shape[1], soft=True)
    with torch.autocast(codes.device.type, enabled=False):
        logits = cosines(codes, centers.to(codes.dtype)) * centers.shape[1] ** 0.5
        yes, no = _log_softmax_pair(logits)
        s = to_multi_hot(labels, centers.shape[0]).to(codes.dtype)
        terms = {"centers": -(s * yes + (1 - s) * no).mean(1)}
        if quantization:
            terms["quantization"] = quantization * quantizers.squared(codes)
        return reduce_rows(terms, labels, reduction=reduction, parts=parts)


def _log_softmax_pair(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ``log p`` and ``log(1 - p)`` of the softmax over the columns, accurate also for p near 1."""
    top = logits.argmax(1, keepdim=True)
    is_top = torch.zeros_like(logits, dtype=torch.bool).scatter(1, top, True)
    others = logits.masked_fill(is_top, -torch.inf).logsumexp(1, keepdim=True)
    total = torch.logaddexp(others, logits.gather(1, top))
    yes = logits - total
    return yes, torch.where(is_top, others - total, torch.log1p(-yes.masked_fill(is_top, -1).exp()))


class _Attraction(PairwiseLoss):
    """Mean over the similar pairs of ``softplus((1 - cos) / 2)``."""

    def pair_losses(self, codes: Tensor, ref_codes: Tensor, s: Tensor) -> Tensor:
        return F.softplus((1 - cosines(codes, ref_codes)) / 2)

    def weights(self, num_similar: Tensor, num_dissimilar: Tensor) -> tuple[Tensor, Tensor]:
        return 1 / num_similar.clamp(min=1), torch.zeros_like(num_dissimilar)


class MDSHCLoss(CenterLoss):
    r"""Minimal-distance-separated hash centers: softmax over the cosines with all centers.

    .. math::
        L = -\frac{1}{BC} \sum_{i,c} [s_{ic} \log p_{ic} + (1 - s_{ic}) \log(1 - p_{ic})]
        + \lambda \frac{1}{BK} \sum_{i,k} (|u_{ik}| - 1)^2 + \beta L_{pair}

    with p the softmax over the classes of ``sqrt(K) cos(u_i, c)``, and s the multi-hot or soft labels:
    several labels need no centroid. The sums run over the rows that have a label.

    With a ``bank`` there is a pair term, the mean over the similar pairs of batch and bank of
    ``softplus((1 - cos) / 2)``. It begins after ``pair_from`` calls of :meth:`epoch_end`; the bank is filled
    from the beginning. In the official code the bank holds the codes of a momentum network (an exponential
    moving average of the weights, factor 0.9). Such a network belongs to the training loop: give its codes of
    the same batch as ``ref_codes`` and they are written; without them the batch's own codes are.

    Args:
        num_classes: classes C, at least two.
        bits: code length.
        centers: method of :func:`hash_centers`, or ±1 ``(C, bits)``.
        quantization: the weight lambda.
        bank: memory of the training set's codes for the pair term; None leaves the term out.
        pair_weight: the weight beta.
        pair_from: epochs before the pair term begins.
        generator: source of the random choices.

    Raises:
        ValueError: a negative weight, fewer than two classes or more than codes, centers or a bank that do
            not fit.

    Source: Wang et al., Deep Hashing with Minimal-Distance-Separated Hash Centers, CVPR 2023, in the form and
    with the weights of the official code (``OurLoss``: lambda 1e-4, beta 1, pair term from epoch 9). There
    the bank starts with random codes and labels; here rows are left out until they were seen. Not in
    swuxyj/DeepHash-pytorch.

    Example:
        >>> loss = MDSHCLoss(num_classes=10, bits=48)
        >>> round(loss(torch.zeros(2, 48), torch.tensor([3, 5])).item(), 4)
        0.3252
    """

    requires: frozenset[str] = frozenset({"epoch_hook"})

    epochs: Tensor

    def __init__(
        self,
        num_classes: int,
        bits: int,
        *,
        centers: CenterMethod | Tensor = "mds",
        quantization: float = 1e-4,
        bank: CodeMemory | None = None,
        pair_weight: float = 1.0,
        pair_from: int = 9,
        generator: torch.Generator | None = None,
    ) -> None:
        check_not_negative(quantization=quantization, pair_weight=pair_weight, pair_from=pair_from)
        if num_classes == 1:
            raise ValueError("num_classes must be at least 2 for a softmax over the centers, got 1")
        super().__init__(num_classes, bits, centers, generator)
        self.requires = self.requires | required_with(bank)
        if bank is not None and bank.bits != bits:
            raise ValueError(f"the bank holds codes of {bank.bits} bits, the centers have {bits}")
        if bank is not None and bank.num_classes not in (None, num_classes):
            raise ValueError(f"the bank holds labels of {bank.num_classes} classes, expected {num_classes}")
        self.quantization = quantization
        self.pair_weight = pair_weight
        self.pair_from = pair_from
        self.bank = bank
        self.attraction = _Attraction()
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
        """Compute the loss of a batch.

        Args:
            codes: ``(B, bits)`` floating-point.
            labels: ``(B,)`` class ids or ``(B, C)`` multi-hot, without a bank also soft; rows without a label
                are left out.
            indices: integers ``(B,)``, rows of the training set; needed with a bank in training mode.
            ref_codes: ``(B, bits)``, codes of the same images that are written into the bank instead of
                ``codes``; only with a bank.
            ref_labels: not used by this loss; None.
            reduction: see :meth:`CSQLoss.forward`; the pair term has a value for each row too.

        Returns:
            0-dim, float32 (float64 for float64 codes), whatever autocast does; 0 without any label.

        Raises:
            IndexError: an index outside the bank.
            TypeError: codes that are not floating-point, labels that are not integers or multi-hot.
            ValueError: another number of bits or classes than at construction, a bank without indices,
                reference codes without a bank.
        """
        if ref_labels is not None or (ref_codes is not None and self.bank is None):
            refuse_reference("MDSHCLoss")
        self._parts = {}
        loss = mdshc_loss(
            codes,
            labels,
            centers=self.centers,
            quantization=self.quantization,
            reduction=reduction,
            parts=self._parts,
        )
        if self.bank is None:
            return loss
        stored = codes if ref_codes is None else ref_codes
        return loss + self._against_bank(self.bank, codes, stored, labels, indices, reduction)

    @torch.compiler.disable  # its checks read values, so that no graph could hold it
    def _against_bank(
        self,
        bank: CodeMemory,
        codes: Tensor,
        stored: Tensor,
        labels: Tensor,
        indices: Tensor | None,
        reduction: Reduction,
    ) -> Tensor:
        """Write ``stored`` into the bank (in a training step), and return the weighted pair term."""
        if indices is None and bank.needs_indices and self.training:
            raise ValueError("indices are needed with a bank: the rows of the batch in the training set")
        labels = as_labels(labels, length=check_codes(stored, name="ref_codes").shape[0])
        rows, labels = bank.check(indices, stored, labels)
        # Without gradients this is no training step, whatever the mode of the loss: see loss.eval().
        if self.training and torch.is_grad_enabled():
            kind = "codes" if stored is codes else "the ref_codes of MDSHCLoss"
            bank.write(rows, stored, labels, kind=kind)
        if not self.pair_weight or int(self.epochs) < self.pair_from:
            return codes.new_zeros(())
        pair_term = self.attraction.compare(
            upcast(codes),
            labels,
            bank.codes,
            bank.labels,
            counted=bank.seen,
            over_ranks=True,
            reduction=reduction,
        )
        self._parts["pairs"] = self.pair_weight * self.attraction.parts()["pairs"]
        return self.pair_weight * pair_term

    @torch.no_grad()
    def epoch_end(self) -> None:
        """Count an epoch; the pair term begins after ``pair_from`` of them."""
        self.epochs += 1

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, quantization={self.quantization:g}"
