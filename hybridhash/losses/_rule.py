"""From settings to a loss: what all pairwise losses share above the pair kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridhash.labels import as_labels
from hybridhash.losses._distributed import gather_rows, sum_over_ranks
from hybridhash.losses._inputs import check_codes, upcast
from hybridhash.losses._pairs import Weights, pair_loss, uniform
from hybridhash.losses._walks import Affinity, PairTerm
from hybridhash.losses.bank import CodeBank

__all__ = ["PairRule", "PairwiseLoss", "check_batch", "pairwise_loss"]


@dataclass(frozen=True)
class PairRule:
    """One pairwise method: a term on each pair, a weighting, and a quantiser.

    Attributes:
        term: loss of a pair and its derivative, as functions of the measure.
        weights: weight of a similar and of a dissimilar pair.
        measure: what ``term`` sees of a pair: ``scale * <u, v>`` (dot), ``cos(u, v)``, or ``|u - v|^2``.
        scale: of the inner product.
        affinity: what ``term`` is told about the labels of a pair.
        activation: applied to the codes of both sides first.
        quantizer: penalty of each code, ``(N,)``, from codes and labels; ``quantization`` weighs its mean.
        per_reference: divide ``quantization`` by the number of reference codes: the loss is then the sum over
            pairs plus ``quantization`` times the sum over the batch, all divided by the number of pairs.
    """

    term: PairTerm
    weights: Weights = uniform
    measure: Literal["dot", "cosine", "distance"] = "dot"
    scale: float = 1.0
    affinity: Affinity = "binary"
    activation: Callable[[Tensor], Tensor] | None = None
    quantizer: Callable[[Tensor, Tensor], Tensor] | None = None
    quantization: float = 0.0
    per_reference: bool = False

    def apply(
        self,
        codes: Tensor,
        labels: Tensor,
        ref_codes: Tensor,
        ref_labels: Tensor,
        *,
        valid: Tensor | None = None,
        own: Tensor | None = None,
        over_ranks: bool = False,
    ) -> Tensor:
        """The loss of activated ``codes`` against activated ``ref_codes``; arguments as the pair kernel's."""
        query, embed = self._sides(codes)
        # With a gradient the second side is embedded here, by autograd; without, chunk by chunk in the
        # kernel.
        with_grad = ref_codes.requires_grad
        loss = pair_loss(
            query,
            ref_codes if embed is None or not with_grad else embed(ref_codes),
            labels,
            ref_labels,
            self.term,
            self.weights,
            affinity=self.affinity,
            embed=None if with_grad else embed,
            valid=valid,
            own=own,
            over_ranks=over_ranks,
        )
        if self.quantizer is not None and self.quantization:
            penalties = self.quantizer(codes, labels)
            total, count = penalties.sum(), penalties.new_tensor(penalties.shape[0])
            if over_ranks:
                total, count = sum_over_ranks(total), sum_over_ranks(count)
            weight = self.quantization / (max(ref_codes.shape[0], 1) if self.per_reference else 1)
            loss = loss + weight * total / count.clamp(min=1)
        return loss

    def _sides(self, codes: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
        """The first side so that inner products with the embedded second side are the measure."""
        if self.measure == "cosine":
            return _normalize(codes), _normalize
        if self.measure == "distance":
            # |u - v|^2 = <(-2u, |u|^2, 1), (v, 1, |v|^2)>
            ones = torch.ones_like(codes[:, :1])
            return torch.cat((-2 * codes, codes.square().sum(1, keepdim=True), ones), 1), _append_norms
        return codes * self.scale, None


def _normalize(codes: Tensor) -> Tensor:
    # A larger eps than usual: the gradient at a zero code is 1 / eps.
    return F.normalize(codes, eps=1e-3)


def _append_norms(codes: Tensor) -> Tensor:
    return torch.cat((codes, torch.ones_like(codes[:, :1]), codes.square().sum(1, keepdim=True)), 1)


def pairwise_loss(
    make_rule: Callable[[int], PairRule],
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    exclude_self: bool = False,
) -> Tensor:
    """A pairwise method on the pairs within a batch, or of a batch with fixed reference codes.

    Within a batch all ordered pairs count, and both sides get the gradient; under ``torch.distributed`` the
    batch is the joined one of all ranks. ``make_rule(bits)`` gives the method.
    """
    codes, labels = check_batch(codes, labels)
    rule = make_rule(codes.shape[1])
    if (ref_codes is None) != (ref_labels is None):
        given, missing = ("ref_codes", "ref_labels") if ref_labels is None else ("ref_labels", "ref_codes")
        raise ValueError(f"{given} was given without {missing}: give both, or neither for pairs in the batch")
    activation = rule.activation or (lambda same: same)
    with torch.autocast(codes.device.type, enabled=False):
        if ref_codes is not None and ref_labels is not None:
            ref_codes = upcast(check_codes(ref_codes, bits=codes.shape[1], name="ref_codes").detach())
            ref_labels = as_labels(ref_labels, length=ref_codes.shape[0], name="ref_labels")
            return rule.apply(
                activation(codes), labels, activation(ref_codes.to(codes.dtype)), ref_labels, over_ranks=True
            )
        codes, labels = activation(gather_rows(codes)), gather_rows(labels)
        own = torch.arange(codes.shape[0], device=codes.device) if exclude_self else None
        return rule.apply(codes, labels, codes, labels, own=own)


def check_batch(codes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Checked codes, float32 or float64, and canonical labels on the same device."""
    codes = upcast(check_codes(codes))
    return codes, as_labels(labels, length=codes.shape[0]).to(codes.device)


class PairwiseLoss(nn.Module):
    """What the pairwise losses share; each gives its :class:`PairRule` in :meth:`rule`.

    Args:
        bank: None for the pairs within a batch; else a batch is compared with the bank.
        exclude_self: leave out the pair of an item with itself.
    """

    requires: frozenset[str] = frozenset()

    def __init__(self, *, bank: CodeBank | None = None, exclude_self: bool = False) -> None:
        super().__init__()
        self.bank = bank
        if bank is not None:
            self.requires = self.requires | {"bank", "indices"}
        self.exclude_self = exclude_self

    def rule(self, bits: int) -> PairRule:
        """The method's settings for a code length."""
        raise NotImplementedError

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
            codes: ``(B, bits)`` floating-point, outputs of the network.
            labels: ``(B,)`` class ids or ``(B, C)`` multi-hot.
            indices: integers ``(B,)``, rows of the training set; needed with a bank, else ignored.
            ref_codes: ``(M, bits)`` codes to compare the batch with, without gradient; not with a bank.
            ref_labels: ``(M,)`` or ``(M, C)``, labels of ``ref_codes``.

        Returns:
            0-dim, float32 (float64 for float64 codes), whatever autocast does.

        Raises:
            IndexError: an index outside the bank.
            TypeError: codes that are not floating-point, labels or indices that are not integers.
            ValueError: shapes that do not fit each other or the bank, a bank without indices or with
                reference codes, reference codes without labels, codes with NaN that would enter a bank.
        """
        if self.bank is None:
            return pairwise_loss(
                self.rule,
                codes,
                labels,
                ref_codes=ref_codes,
                ref_labels=ref_labels,
                exclude_self=self.exclude_self,
            )
        if ref_codes is not None or ref_labels is not None:
            raise ValueError("this loss compares with its bank: make one without a bank to give ref_codes")
        codes, labels = check_batch(codes, labels)
        check_codes(codes, bits=self.bank.bits)
        with torch.autocast(codes.device.type, enabled=False):
            rule = self.rule(codes.shape[1])
            codes = codes if rule.activation is None else rule.activation(codes)
            labels = self.bank.convert_labels(labels, codes.shape[0])
            return self._against(self.bank, rule, codes, labels, indices)

    def _against(
        self, bank: CodeBank, rule: PairRule, codes: Tensor, labels: Tensor, indices: Tensor | None
    ) -> Tensor:
        own = None
        if indices is not None:
            own = bank.check_indices(indices, codes.shape[0])
        elif self.training or self.exclude_self:
            raise ValueError("indices are needed with a bank: the rows of the batch in the training set")
        if self.training and own is not None:
            bank.update(own, codes, labels)
        return rule.apply(
            codes,
            labels,
            bank.codes,
            bank.labels,
            valid=None if bank.count_unseen or bool(bank.seen.all()) else bank.seen,
            own=own if self.exclude_self else None,
            over_ranks=True,
        )

    def extra_repr(self) -> str:
        settings = {name: value for name, value in vars(self).items() if isinstance(value, (int, float, str))}
        return ", ".join(f"{name}={settings[name]}" for name in settings if name != "training")
