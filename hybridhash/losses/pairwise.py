"""What all pairwise losses share, and all that one of your own needs.

A pairwise loss compares every code of a batch with every code of a second side: the batch itself, the memory
bank of the whole training set, or codes that the caller gives. A subclass of :class:`PairwiseLoss` states the
loss of a pair in plain PyTorch, and autograd differentiates it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hybridhash._checks import check_flags
from hybridhash.labels import as_labels, shared_labels, to_multi_hot
from hybridhash.losses._distributed import gather_rows, sum_over_ranks
from hybridhash.losses._inputs import HasParts, Reduction, check_codes, upcast
from hybridhash.losses.bank import CodeMemory, required_with

__all__ = [
    "Affinity",
    "PairwiseLoss",
    "balanced",
    "cosines",
    "log_likelihood",
    "squared_distances",
    "uniform",
]

Affinity = Literal["binary", "jaccard", "cosine"]

PairLosses = Callable[[Tensor, Tensor, Tensor], Tensor]
Weights = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
ChunkSum = Callable[[Tensor, int, int], Tensor]

# Pairs with a fixed second side are computed at once if these and a copy of that side are so many numbers
# (4 MiB in float32), and in chunks if they are more.
_AT_ONCE = 2**20


def log_likelihood(t: Tensor, s: Tensor) -> Tensor:
    """Return the negative log-likelihood ``log(1 + e^t) - s t`` of pairs with ``P(similar) = sigmoid(t)``.

    Args:
        t: Log-odds of the pairs being similar, any shape.
        s: 1 for similar and 0 for dissimilar pairs, of the dtype of ``t``.

    Example:
        >>> log_likelihood(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 0.0]))
        tensor([0.1269, 2.1269])
    """
    # log(1 + e^t) - t = log(1 + e^-t), which keeps its digits where t is large. PyTorch replaces the softplus
    # of t by t itself above the threshold; at 40 they are equal in float64 too.
    return F.softplus((1 - 2 * s) * t, threshold=40)


def cosines(codes: Tensor, ref_codes: Tensor) -> Tensor:
    """Return the cosine of each pair of codes, ``(B, M)`` from ``(B, bits)`` and ``(M, bits)``.

    Example:
        >>> cosines(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 2.0], [1.0, -1.0]])).round(decimals=4)
        tensor([[1., 0.]])
    """
    # A larger eps than PyTorch's: the gradient at a code of zeros is of the size 1 / eps.
    return F.normalize(codes, eps=1e-3) @ F.normalize(ref_codes, eps=1e-3).T


def squared_distances(codes: Tensor, ref_codes: Tensor) -> Tensor:
    """Return ``|u - v|^2`` of each pair of codes, ``(B, M)`` from ``(B, bits)`` and ``(M, bits)``.

    Example:
        >>> squared_distances(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        tensor([[0., 4.]])
    """
    squares = codes.square().sum(1, keepdim=True) + ref_codes.square().sum(1)
    return (squares - 2 * codes @ ref_codes.T).clamp(min=0)  # rounding can go below 0


def uniform(num_similar: Tensor, num_dissimilar: Tensor) -> tuple[Tensor, Tensor]:
    """Weigh all pairs alike: the loss is the mean over all pairs, and 0 if there is none.

    Args:
        num_similar: The number of similar pairs, 0-dim.
        num_dissimilar: The number of dissimilar pairs, 0-dim.

    Returns:
        The weight of each similar and of each dissimilar pair, 0-dim.
    """
    weight = 1 / (num_similar + num_dissimilar).clamp(min=1)
    return weight, weight


def balanced(num_similar: Tensor, num_dissimilar: Tensor) -> tuple[Tensor, Tensor]:
    """Weigh both kinds of pairs alike: mean over the similar plus mean over the dissimilar pairs.

    A kind without pairs counts 0. In the notation of HashNet's paper this is ``(1/|S|) sum_ij w_ij l_ij``
    with ``w_ij = |S|/|S1|`` for similar and ``|S|/|S0|`` for dissimilar pairs. Arguments and result are those
    of :func:`uniform`.
    """
    return 1 / num_similar.clamp(min=1), 1 / num_dissimilar.clamp(min=1)


def label_affinity(labels: Tensor, ref_labels: Tensor, kind: Affinity, dtype: torch.dtype) -> Tensor:
    """Return how alike the labels of each pair are, ``(B, M)``; 0 for every pair that shares no label.

    Args:
        labels: int64 ``(B,)`` or bool ``(B, C)``, as :func:`hybridhash.labels.as_labels` returns them.
        ref_labels: ``(M,)`` or ``(M, C)``.
        kind: ``"binary"``, 1 if the pair shares a label; ``"jaccard"``, shared labels divided by labels of
            either; ``"cosine"``, the cosine of the two multi-hot rows.
        dtype: The dtype of the result.
    """
    if labels.ndim == 1 and ref_labels.ndim == 1:
        return shared_labels(labels, ref_labels).to(dtype)
    num_classes = (labels if labels.ndim == 2 else ref_labels).shape[1]
    y = to_multi_hot(labels, num_classes).to(dtype)
    ref_y = to_multi_hot(ref_labels, num_classes).to(dtype)
    shared = y @ ref_y.T
    if kind == "binary":
        return shared.clamp(max=1)
    size, ref_size = y.sum(1, keepdim=True), ref_y.sum(1)
    scale = size + ref_size - shared if kind == "jaccard" else (size * ref_size).sqrt()
    return shared / scale.clamp(min=1)


@torch.compiler.disable  # it calls autograd in its forward pass
def _sum_in_chunks(chunk_sum: ChunkSum, codes: Tensor, chunks: list[tuple[int, int]]) -> Tensor:
    """Add up ``chunk_sum(codes, start, stop)`` over the chunks, without keeping any for the backward pass."""
    return _SumInChunks.apply(codes, chunk_sum, chunks)


class _SumInChunks(torch.autograd.Function):
    """Compute the gradient of each chunk along with its value."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, chunk_sum: ChunkSum, chunks: list[tuple[int, int]]) -> Tensor:
        leaf = codes.detach().requires_grad_(ctx.needs_input_grad[0])
        total = torch.zeros((), dtype=torch.float64, device=codes.device)
        grad = torch.zeros_like(leaf)
        for start, stop in chunks:
            with torch.enable_grad():
                value = chunk_sum(leaf, start, stop)
            if leaf.requires_grad:
                grad += torch.autograd.grad(value, leaf)[0]
            total += value.detach()
        ctx.save_for_backward(grad)
        return total.to(codes.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Grad mode is on if the caller asked for the graph of this gradient (create_graph=True). There is
        # none; without an error the second derivative would silently be 0.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the loss against so many codes of a bank or of ref_codes is differentiable only once, and "
                "create_graph=True asks for more: compare within the batch, or with fewer codes"
            )
        (grad,) = ctx.saved_tensors
        return grads[0] * grad, None, None


class PairwiseLoss(HasParts, ABC):
    r"""Base of all pairwise losses: state the loss of a pair, and everything else is done.

    .. math::
        L = \sum_{ij} w_{ij}\, l(u_i, v_j, s_{ij}) + \mathrm{mean}_i\, p(u_i)

    over the codes u of a batch and the codes v of a second side. A subclass states l in :meth:`pair_losses`;
    it may also set ``weights`` and ``affinity`` and override :meth:`penalty`. It then works within a batch,
    against a memory bank and against given codes, for class ids and multi-hot labels, in half precision, and
    under ``torch.distributed``.

    Attributes:
        weights: The weight of each similar and of each dissimilar pair, as a function of the numbers of both:
            :func:`uniform` (the mean over all pairs), :func:`balanced`, or one like them.
        affinity: What s is for a pair that shares a label: ``"binary"``, 1; ``"jaccard"``, shared labels
            divided by the labels of either; ``"cosine"``, the cosine of the two multi-hot rows. It is 0 for a
            pair that shares none.
        count_self: Whether the weights come from the numbers of all pairs, those of items with themselves
            included, although ``exclude_self`` leaves these out of the mean. The authors of DCH do so.
        requires: What a training loop must provide, see :func:`hybridhash.losses.create_loss`.

    Args:
        bank: Memory of codes to compare a batch with, a :class:`CodeBank` of the training set or a
            :class:`CodeQueue` of a stream; None compares within the batch.
        exclude_self: Leave out the pair of an item with itself.

    Example:
        >>> class SquaredErrorLoss(PairwiseLoss):
        ...     def pair_losses(self, codes, ref_codes, s):
        ...         return (codes @ ref_codes.T / codes.shape[1] - (2 * s - 1)).square()
        >>> SquaredErrorLoss()(torch.tensor([[0.5, 1.0], [1.0, -1.0]]), torch.tensor([3, 5]))
        tensor(0.3164)
    """

    affinity: Affinity = "binary"
    weights: Weights = staticmethod(uniform)
    count_self: bool = False
    requires: frozenset[str] = frozenset()

    def __init__(self, *, bank: CodeMemory | None = None, exclude_self: bool = False) -> None:
        super().__init__()
        check_flags(exclude_self=exclude_self)
        self.requires = self.requires | required_with(bank)
        self.bank = bank
        self.exclude_self = exclude_self

    @abstractmethod
    def pair_losses(self, codes: Tensor, ref_codes: Tensor, s: Tensor) -> Tensor:
        """Return the loss of each pair, in plain PyTorch that autograd can differentiate.

        Args:
            codes: ``(B, bits)``, float32 or float64.
            ref_codes: ``(M, bits)``, the same dtype; a part of the second side.
            s: ``(B, M)``, the same dtype; see ``affinity``.

        Returns:
            ``(B, M)``, finite also for pairs that will be left out.
        """

    def penalty(self, codes: Tensor, labels: Tensor) -> Tensor | None:
        """Return a penalty of each code, ``(B,)``, whose mean over the batch is added; None adds nothing.

        Args:
            codes: ``(B, bits)``, float32 or float64.
            labels: int64 ``(B,)`` or bool ``(B, C)``.
        """
        return None

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
            codes: ``(B, bits)`` floating-point, outputs of the network.
            labels: ``(B,)`` class ids or ``(B, C)`` multi-hot.
            indices: Integers ``(B,)``, rows of the training set. Needed with a bank, else ignored.
            ref_codes: ``(M, bits)``, codes to compare the batch with; they get no gradient. Not with a bank.
            ref_labels: ``(M,)`` or ``(M, C)``, labels of ``ref_codes``.
            reduction: "none" returns a value for each row of the batch, ``(B,)``, whose mean is the loss:
                ``B`` times its weighted pairs, plus its penalty. Under ``torch.distributed`` they are those
                of the joined batch, in the order of the ranks.

        Returns:
            0-dim, float32 (float64 for float64 codes), whatever autocast does. More than about a million
            pairs with a bank or with ``ref_codes`` are computed in chunks. Then it is differentiable once; a
            gradient with ``create_graph=True`` raises a RuntimeError.

        Raises:
            IndexError: An index outside the bank.
            TypeError: Codes that are not floating-point, labels or indices that are not integers.
            ValueError: Shapes that do not fit each other or the bank, a bank without indices or with
                reference codes, reference codes without labels, codes that are not finite and would stay in a
                bank.
        """
        codes = upcast(check_codes(codes))
        labels = as_labels(labels, length=codes.shape[0]).to(codes.device)
        if self.bank is not None:
            if ref_codes is not None or ref_labels is not None:
                raise ValueError(
                    "this loss compares with its bank: make one without a bank to give ref_codes"
                )
            return self._against_bank(self.bank, codes, labels, indices, reduction)
        if ref_codes is not None and ref_labels is not None:
            ref_codes = check_codes(ref_codes, bits=codes.shape[1], name="ref_codes").detach()
            ref_labels = as_labels(ref_labels, length=ref_codes.shape[0], name="ref_labels")
            return self.compare(codes, labels, ref_codes, ref_labels, over_ranks=True, reduction=reduction)
        if ref_codes is not None:
            raise ValueError("ref_codes was given without ref_labels: give both, or neither")
        if ref_labels is not None:
            raise ValueError("ref_labels was given without ref_codes: give both, or neither")
        # Both sides are the batch of all processes, and both get the gradient.
        codes, labels = gather_rows(codes), gather_rows(labels)
        self_index = torch.arange(codes.shape[0], device=codes.device) if self.exclude_self else None
        return self.compare(codes, labels, codes, labels, self_index=self_index, reduction=reduction)

    @torch.compiler.disable  # its checks read values, so that no graph could hold it
    def _against_bank(
        self, bank: CodeMemory, codes: Tensor, labels: Tensor, indices: Tensor | None, reduction: Reduction
    ) -> Tensor:
        """Write the batch into the bank (in a training step), then compare it with the bank."""
        rows, labels = bank.check(indices, codes, labels)
        if rows is None and bank.needs_indices and (self.training or self.exclude_self):
            raise ValueError("indices are needed with a bank: the rows of the batch in the training set")
        # Without gradients this is no training step, whatever the mode of the loss: see loss.eval().
        if self.training and torch.is_grad_enabled():
            rows = bank.write(rows, codes, labels)
        return self.compare(
            codes,
            labels,
            bank.codes,
            bank.labels,
            counted=None if bank.count_unseen else bank.seen,
            self_index=rows if self.exclude_self else None,
            over_ranks=True,
            reduction=reduction,
        )

    def compare(
        self,
        codes: Tensor,
        labels: Tensor,
        ref_codes: Tensor,
        ref_labels: Tensor,
        *,
        counted: Tensor | None = None,
        self_index: Tensor | None = None,
        over_ranks: bool = False,
        reduction: Reduction = "mean",
        chunk_size: int | None = None,
    ) -> Tensor:
        """Compute the loss of two sides; :meth:`forward` chooses them, checks them, and calls this.

        Args:
            codes: ``(B, bits)``, float32 or float64.
            labels: int64 ``(B,)`` or bool ``(B, C)``, as :func:`hybridhash.labels.as_labels` returns them.
            ref_codes: ``(M, bits)``, any floating dtype; computed with in the dtype of ``codes``.
            ref_labels: ``(M,)`` or ``(M, C)``.
            counted: bool ``(M,)``. Pairs with the other rows are left out. None counts all rows.
            self_index: int64 ``(B,)``, the row of ``ref_codes`` that is the item itself. Its pair is left
                out. None leaves out no pair.
            over_ranks: Sum over the ``codes`` of all processes.
            reduction: "none" for a value of each row, see :meth:`forward`.
            chunk_size: Take so many rows of ``ref_codes`` at once. None takes all of them if there are at
                most about a million pairs, or if ``ref_codes is codes``.

        Returns:
            0-dim, dtype of ``codes``.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
        num_refs, bits = ref_codes.shape
        # What a reference code needs: its copy, and its pairs with the batch.
        width = bits + codes.shape[0]
        step = chunk_size or max(num_refs, 1)
        if chunk_size is None and ref_codes is not codes and width * num_refs > _AT_ONCE:
            # On a CPU the intermediate results of a chunk stay near the cache; a GPU likes large steps.
            step = max((2**19 if codes.device.type == "cpu" else 2**23) // width, 1)
        chunks = [(start, min(start + step, num_refs)) for start in range(0, max(num_refs, 1), step)]
        if counted is None:
            counted = torch.ones(num_refs, dtype=torch.bool, device=labels.device)
        own = torch.full((1, 1), -1, device=labels.device) if self_index is None else self_index[:, None]

        with torch.autocast(codes.device.type, enabled=False):
            of_similar, of_dissimilar = self._weigh(labels, ref_labels, counted, own, chunks, over_ranks)

            def chunk_sum(codes: Tensor, start: int, stop: int) -> Tensor:
                """Sum the weighted losses of the pairs of a chunk, all of them or those of each row."""
                s = label_affinity(labels, ref_labels[start:stop], self.affinity, codes.dtype)
                # A copy, because a bank may be written to before the backward pass.
                chunk = ref_codes[start:stop].to(codes.dtype, copy=True)
                losses = self.pair_losses(codes, chunk, s)
                keep = counted[start:stop] & (own != torch.arange(start, stop, device=own.device))
                keep = keep.to(codes.dtype)
                # w_0 + s (w_1 - w_0), where s is 0 or 1: one pass over the pairs, a quarter of torch.where.
                similar = s if self.affinity == "binary" else (s > 0).to(s.dtype)
                more = (of_similar - of_dissimilar) * keep
                weight = torch.addcmul(of_dissimilar * keep, similar, more)
                if reduction == "none":
                    return (weight * losses).sum(1)
                return torch.dot(weight.flatten(), losses.flatten())

            if len(chunks) == 1:
                pairs = chunk_sum(codes, 0, num_refs)
            elif reduction == "none":
                # The backward pass computes each chunk again: there is a gradient for each row.
                parts = [checkpoint(chunk_sum, codes, *chunk, use_reentrant=False) for chunk in chunks]
                pairs = torch.stack(parts).sum(0)
            else:
                pairs = _sum_in_chunks(chunk_sum, codes, chunks)

            # Each process adds its share of the mean over the batch of all.
            count = torch.tensor(codes.shape[0], dtype=codes.dtype, device=codes.device)
            if over_ranks:
                count = sum_over_ranks(count)
            terms = {"pairs": pairs.sum()}
            penalties = self.penalty(codes, labels)
            if penalties is not None:
                terms["penalty"] = penalties.sum() / count.clamp(min=1)
            values = torch.stack(list(terms.values()))
            if over_ranks:
                values = sum_over_ranks(values)
            self._parts = dict(zip(terms, values.detach().unbind(), strict=True))
            if reduction == "mean":
                return values.sum()
            rows = count * pairs if penalties is None else count * pairs + penalties
            return gather_rows(rows) if over_ranks else rows

    def _weigh(
        self,
        labels: Tensor,
        ref_labels: Tensor,
        counted: Tensor,
        own: Tensor,
        chunks: list[tuple[int, int]],
        over_ranks: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return the weight of each similar and of each dissimilar pair; arguments as in :meth:`compare`."""
        counts = torch.zeros(2, dtype=torch.float64, device=labels.device)
        # Pairs of items with themselves, if they count for the weights but not in the mean.
        left_out = torch.zeros_like(counts)
        for start, stop in chunks:
            similar = shared_labels(labels, ref_labels[start:stop]) > 0
            used = counted[start:stop].expand_as(similar)
            is_own = own == torch.arange(start, stop, device=own.device)
            keep = used & ~is_own
            num_similar = torch.count_nonzero(similar & keep)
            counts += torch.stack((num_similar, torch.count_nonzero(keep) - num_similar))
            if self.count_self:
                num_similar = torch.count_nonzero(similar & used & is_own)
                left_out += torch.stack((num_similar, torch.count_nonzero(used & is_own) - num_similar))
        if over_ranks:
            counts = sum_over_ranks(counts)
            left_out = sum_over_ranks(left_out)
        all_pairs = counts + left_out
        of_similar, of_dissimilar = self.weights(all_pairs[0], all_pairs[1])
        if self.count_self:
            scale = all_pairs.sum() / counts.sum().clamp(min=1)
            of_similar, of_dissimilar = scale * of_similar, scale * of_dissimilar
        return of_similar, of_dissimilar

    def extra_repr(self) -> str:
        settings = {name: value for name, value in vars(self).items() if isinstance(value, (int, float, str))}
        return ", ".join(f"{name}={settings[name]}" for name in settings if name != "training")
