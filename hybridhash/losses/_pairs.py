"""The pair kernel under every pairwise loss.

A pairwise loss is a term on one number per pair (an inner product) and a weight for the similar and one for
the dissimilar pairs. :func:`pair_loss` counts both kinds, then walks over the second side in chunks that fit
the cache and accumulates value and gradient in one pass, so no ``(batch, num_samples)`` tensor is kept,
neither for the value nor for backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hybridhash.labels import to_multi_hot
from hybridhash.losses._distributed import sum_over_ranks
from hybridhash.losses._walks import Affinity, ClassWalk, Embed, MaskedWalk, PairTerm

__all__ = ["Weights", "affinity_likelihood", "balanced", "log_likelihood", "pair_loss", "uniform"]

Weights = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``weights(num_similar, num_dissimilar)``: weight of each similar and of each dissimilar pair; all 0-dim."""


def uniform(num_similar: Tensor, num_dissimilar: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over all pairs; 0 if there is none."""
    weight = 1 / (num_similar + num_dissimilar).clamp(min=1)
    return weight, weight


def balanced(num_similar: Tensor, num_dissimilar: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the similar pairs plus mean over the dissimilar pairs; an empty side counts 0.

    It is ``(1/|S|) sum_ij w_ij l_ij`` with the class-balancing ``w_ij = |S|/|S1|`` or ``|S|/|S0|``.
    """
    return 1 / num_similar.clamp(min=1), 1 / num_dissimilar.clamp(min=1)


def log_likelihood(x: Tensor, affinity: Tensor, work: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood ``softplus(x) - s x`` of a pair with ``P(similar) = sigmoid(x)``, s in {0, 1}.

    Written as ``-log sigmoid(y)``, y = x for similar pairs and -x for dissimilar ones: one transcendental
    function less than softplus and sigmoid. Where the sigmoid underflows, ``log sigmoid(y) = y`` exactly.
    """
    sign = torch.rsub(affinity, -1, alpha=-2)
    y = x.mul_(sign)
    probability = torch.sigmoid(y, out=work[0])
    slope = torch.sub(probability, 1, out=work[1]).mul_(sign)
    value = torch.minimum(probability.clamp_(min=torch.finfo(x.dtype).tiny).log_(), y, out=y)
    return value.neg_(), slope


def affinity_likelihood(x: Tensor, affinity: Tensor, work: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`log_likelihood`, for a similar pair times its affinity."""
    similar = (affinity > 0).to(x.dtype)
    value, slope = log_likelihood(x, similar, work)
    weight = affinity + (1 - similar)
    return value.mul_(weight), slope.mul_(weight)


def pair_loss(
    codes: Tensor,
    ref_codes: Tensor,
    labels: Tensor,
    ref_labels: Tensor,
    term: PairTerm,
    weights: Weights,
    *,
    affinity: Affinity = "binary",
    embed: Embed | None = None,
    valid: Tensor | None = None,
    own: Tensor | None = None,
    over_ranks: bool = False,
    chunk_size: int | None = None,
) -> Tensor:
    """Weighted sum of a pair term over all pairs of two sides.

    Args:
        codes: ``(B, K)`` float32 or float64; gets a gradient.
        ref_codes: ``(M, K)``, any float dtype (chunks are cast to that of ``codes``); gets a gradient if it
            requires one.
        labels: ``(B,)`` int64 or ``(B, C)`` bool, as :func:`hybridhash.labels.as_labels` returns them.
        ref_labels: ``(M,)`` or ``(M, C)``.
        term: loss of a pair and its derivative, as functions of the inner product ``codes @ ref_codes.T``.
        weights: weight of a similar and of a dissimilar pair, from the numbers of these pairs.
        affinity: what ``term`` is told about a pair: 1 if it shares a label (binary), or the Jaccard
            coefficient or the cosine of the two label sets. Always 0 for pairs that share none.
        embed: applied to each chunk of ``ref_codes`` before the product; only for codes without gradient.
        valid: bool ``(M,)``; pairs with other rows of ``ref_codes`` are left out.
        own: int64 ``(B,)``; row of ``ref_codes`` that is the item itself: this pair is left out.
        over_ranks: counts and sums run over the ``codes`` of all ranks.
        chunk_size: rows of ``ref_codes`` taken at once; None chooses by the device.

    Returns:
        0-dim, dtype of ``codes``; differentiable once.
    """
    on_cpu = codes.device.type == "cpu"
    if chunk_size is None:
        # On a CPU a handful of (B, chunk) buffers of 2 MiB: near the cache, and large enough for two threads.
        chunk_size = max((2**19 if on_cpu else 2**23) // max(codes.shape[0], 1), 256)
    if labels.ndim != ref_labels.ndim:
        labels, ref_labels = _both_multi_hot(labels, ref_labels)
    walk: ClassWalk | MaskedWalk
    # The class walk takes many small steps, which a GPU does not like.
    if on_cpu and labels.ndim == 1 and own is None and not ref_codes.requires_grad:
        walk = ClassWalk(labels, ref_labels, valid, chunk_size)
    else:
        walk = MaskedWalk(labels, ref_labels, affinity, codes.dtype, valid, own, chunk_size)
    counts = sum_over_ranks(walk.count_pairs()) if over_ranks else walk.count_pairs()
    # Plain numbers: a scalar operand costs an elementwise operation a third of what a 0-dim tensor costs it.
    numbers = torch.stack(weights(counts[0], counts[1])).tolist()
    loss: Tensor = _PairLoss.apply(codes, ref_codes, term, numbers, walk, embed)
    return sum_over_ranks(loss) if over_ranks else loss


class _PairLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        codes: Tensor,
        ref_codes: Tensor,
        term: PairTerm,
        weights: list[float],
        walk: ClassWalk | MaskedWalk,
        embed: Embed | None,
    ) -> Tensor:
        want = ctx.needs_input_grad[:2]
        # Compiled by PyTorch 2.4, they would still ask for a gradient, which a product into a buffer refuses.
        sums = walk.sums(codes.detach(), ref_codes.detach(), term, weights, embed, want)
        ctx.save_for_backward(sums.grad, sums.ref_grad)
        return sums.value.to(codes.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        of_codes, of_ref_codes = (None if saved is None else saved * grads[0] for saved in ctx.saved_tensors)
        return of_codes, of_ref_codes, None, None, None, None


def _both_multi_hot(labels: Tensor, ref_labels: Tensor) -> tuple[Tensor, Tensor]:
    if labels.ndim == 1:
        return to_multi_hot(labels, ref_labels.shape[1]), ref_labels
    return labels, to_multi_hot(ref_labels, labels.shape[1])
