"""CNNH, in two stages: codes that factorise the similarity matrix, and a network that regresses them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hybridhash._checks import check_choice, check_flags, check_integer, generator_device
from hybridhash.codes import binarize
from hybridhash.labels import as_labels, labelled
from hybridhash.losses._distributed import sum_over_ranks
from hybridhash.losses._inputs import (
    HasParts,
    check_codes,
    check_rows,
    diverged_to_nan,
    refuse_reference,
    upcast,
)

__all__ = ["CNNHLoss", "cnnh_codes", "cnnh_objective"]

Array = NDArray[np.float64]


def cnnh_codes(
    labels: Tensor | None,
    bits: int,
    generator: torch.Generator | None = None,
    *,
    similarity: Tensor | None = None,
    sweeps: int = 10,
    start: Tensor | None = None,
    relaxed: bool = False,
) -> Tensor:
    r"""Find codes H that minimise ``|| S - H H^T / bits ||_F^2``, the first stage of CNNH.

    S is 1 for pairs of items that share a label and -1 for others, the diagonal included. H is relaxed to
    [-1, 1] and improved one entry after the other, all entries in random order (rows at random, and in a row
    bits at random), by a Newton step cut off at the bounds; where the second derivative is not positive, or
    the step would not help, the better bound is tried. An entry only moves if the exact change of the
    objective is negative, so no sweep makes the objective larger. At the end H is rounded to ±1 (0 to -1).

    No n x n matrix is made from labels: the steps of a row need ``H^T H`` (bits x bits) and the sums of H
    over the items of equal labels, kept up to date, instead of ``L = H H^T - bits S``. It runs on one CPU
    core, in float64.

    Args:
        labels: ``(n,)`` class ids or ``(n, C)`` multi-hot; None if ``similarity`` is given.
        bits: The code length.
        generator: The source of the start and the order. None means torch's global one.
        similarity: S itself, symmetric ``(n, n)``, bool or ±1; None if ``labels`` are given.
        sweeps: Passes over all entries. 10 in swuxyj/DeepHash-pytorch; the paper's number could not be
            checked.
        start: ``(n, bits)`` in [-1, 1], for example the ``relaxed`` result of an earlier call; None for
            uniform random numbers.
        relaxed: Return H before rounding.

    Returns:
        ``(n, bits)`` float32 ±1 on the device of the input; float64 in [-1, 1] if ``relaxed``.

    Raises:
        TypeError: Inputs of the wrong type.
        ValueError: Both or none of ``labels`` and ``similarity``, a similarity that is not symmetric or not
            ±1, a ``start`` of another shape or beyond [-1, 1], ``bits`` below 1, ``sweeps`` below 0.

    Source: R. Xia, Y. Pan, H. Lai, C. Liu, S. Yan, Supervised Hashing for Image Retrieval via Image
    Representation Learning, AAAI 2014. Public reimplementations differ by mistake: swuxyj/DeepHash-pytorch
    takes the labels in the shuffled order of its loader, so that codes and images do not belong together.

    Example:
        >>> codes = cnnh_codes(torch.tensor([0, 0, 1, 1]), bits=4, generator=torch.Generator().manual_seed(0))
        >>> codes @ codes.T
        tensor([[ 4.,  4., -4., -4.],
                [ 4.,  4., -4., -4.],
                [-4., -4.,  4.,  4.],
                [-4., -4.,  4.,  4.]])
    """
    check_integer("bits", bits, 1)
    check_integer("sweeps", sweeps, 0)
    check_flags(relaxed=relaxed)
    target = _Similarity(labels, similarity)
    device = generator_device(generator)
    if start is None:
        start = 2 * torch.rand(target.size, bits, generator=generator, device=device, dtype=torch.float64) - 1
    elif check_codes(start, name="start").shape != (target.size, bits) or not bool((start.abs() <= 1).all()):
        raise ValueError(f"start must be ({target.size}, {bits}) in [-1, 1], got shape {tuple(start.shape)}")
    codes = start.detach().to("cpu", torch.float64).numpy().copy()
    for _ in range(sweeps):
        rows = torch.randperm(target.size, generator=generator, device=device).tolist()
        order = torch.rand(target.size, bits, generator=generator, device=device).argsort(1).tolist()
        _sweep(codes, target, rows, order)
    result = torch.from_numpy(codes).to(target.device)
    return result if relaxed else binarize(result).float()


def cnnh_objective(codes: Tensor, labels: Tensor | None = None, *, similarity: Tensor | None = None) -> float:
    """Compute the objective of :func:`cnnh_codes`, ``|| S - H H^T / bits ||_F^2``.

    Args:
        codes: H, real-valued ``(n, bits)``.
        labels: See :func:`cnnh_codes`.
        similarity: See :func:`cnnh_codes`.

    Raises:
        ValueError: Both or none of ``labels`` and ``similarity``, or another number of rows than ``codes``.

    Example:
        >>> cnnh_objective(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([0, 1]))
        2.0
    """
    check_codes(codes)
    target = _Similarity(labels, similarity)
    if codes.shape[0] != target.size:
        raise ValueError(f"codes have {codes.shape[0]} rows, labels or similarity {target.size}")
    values, bits = codes.detach().to("cpu", torch.float64).numpy(), codes.shape[1]
    sums, total = target.sums(values), values.sum(0)
    cross = sum(float(sums[pattern] @ target.product(pattern, sums, total)) for pattern in range(len(target)))
    gram = values.T @ values
    return float(target.size**2 - 2 * cross / bits + (gram**2).sum() / bits**2)


class _Similarity:
    """S without its matrix: items of equal labels ("patterns") have equal rows."""

    def __init__(self, labels: Tensor | None, similarity: Tensor | None) -> None:
        if (labels is None) == (similarity is None):
            raise ValueError("give either labels or similarity")
        if labels is not None:
            labels = as_labels(labels)
            self.device, self.size = labels.device, labels.shape[0]
            labels = labels.cpu()
            patterns, inverse = torch.unique(labels, dim=0, return_inverse=True)
            self.pattern: NDArray[np.int64] = inverse.numpy()
            self.patterns: NDArray[Any] = patterns.numpy()
            self.columns: NDArray[np.bool_] | None = None
            if patterns.ndim == 2:
                self.columns = np.ascontiguousarray(self.patterns.T)
            self.alike_itself: NDArray[np.bool_] = labelled(patterns).numpy()
            self.matrix: NDArray[np.bool_] | None = None
        elif similarity is not None:
            self.matrix = _similar_matrix(similarity)
            self.device, self.size = similarity.device, similarity.shape[0]
            self.pattern = np.arange(self.size)
            self.alike_itself = np.diagonal(self.matrix)

    def __len__(self) -> int:
        """Return the number of patterns."""
        return len(self.alike_itself)

    def sums(self, codes: Array) -> Array:
        """Return the sum of the codes of each pattern."""
        sums = np.zeros((len(self), codes.shape[1]))
        np.add.at(sums, self.pattern, codes)
        return sums

    def product(self, pattern: int, sums: Array, total: Array) -> Array:
        """Compute ``S H`` for an item of this pattern, from the sums of codes of each pattern and of all."""
        if self.matrix is not None:
            of_similar = self.matrix[pattern] @ sums
        elif self.columns is not None:
            of_similar = np.logical_or.reduce(self.columns[self.patterns[pattern]], axis=0) @ sums
        else:
            of_similar = sums[pattern] * self.alike_itself[pattern]
        product: Array = 2 * of_similar - total
        return product


def _similar_matrix(similarity: Tensor) -> NDArray[np.bool_]:
    if not isinstance(similarity, Tensor):
        raise TypeError(f"similarity must be a tensor, got {type(similarity).__name__}")
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarity must be a square matrix (n, n), got shape {tuple(similarity.shape)}")
    if similarity.dtype != torch.bool and not bool((similarity.abs() == 1).all()):
        odd = similarity[similarity.abs() != 1][0].item()
        raise ValueError(
            f"similarity must be bool, or 1 and -1, got the entry {odd:g}: 2 * s - 1 maps 0 and 1 to them"
        )
    if not torch.equal(similarity, similarity.T):
        raise ValueError("similarity must be symmetric")
    matrix: NDArray[np.bool_] = (similarity.detach().cpu() > 0).numpy()
    return matrix


def _sweep(codes: Array, target: _Similarity, rows: list[int], order: list[list[int]]) -> None:
    """Visit every entry of ``codes`` once and improve it in place."""
    bits = codes.shape[1]
    gram, sums, total = codes.T @ codes, target.sums(codes), codes.sum(0)
    for i in rows:
        old, pattern = codes[i].copy(), int(target.pattern[i])
        own = 1.0 if target.alike_itself[pattern] else -1.0
        rest = gram - np.outer(old, old)
        pull = target.product(pattern, sums, total) - own * old
        new = _improve_row(old, rest, bits * pull, bits * own, order[i])
        if not np.array_equal(new, old):
            codes[i] = new
            gram = rest + np.outer(new, new)
            sums[pattern] += new - old
            total += new - old


def _improve_row(old: Array, rest: Array, pull: Array, own: float, order: list[int]) -> Array:
    """Pass once over the entries h_j of a row of H, all other rows fixed.

    With R (``rest``) = H^T H of the other rows, p (``pull``) = bits * sum of S_il H_l over them and s
    (``own``) = bits * S_ii, the objective times bits^2 is 2 h R h - 4 h p + (h h - s)^2 + constant. Its
    change by a step d of one entry is the quartic g1 d + g2 d^2 / 2 + 4 h_j d^3 + d^4.
    """
    row: list[float] = old.tolist()
    pulls: list[float] = pull.tolist()
    curvature: list[float] = np.diagonal(rest).tolist()
    product = rest @ old
    excess = float(old @ old) - own
    for j in order:
        h = row[j]
        g1 = 4 * (float(product[j]) - pulls[j] + excess * h)
        g2 = 4 * (curvature[j] + 2 * h * h + excess)
        lowest, highest = -1 - h, 1 - h
        steps = [lowest, highest]
        if g2 > 0:
            step = min(max(-g1 / g2, lowest), highest)
            if step * (g1 + step * (g2 / 2 + step * (4 * h + step))) < 0:
                steps = [step]
        change, step = min((d * (g1 + d * (g2 / 2 + d * (4 * h + d))), d) for d in steps)
        if change < 0:
            # Exactly at a bound, not a rounding error beyond it.
            row[j] = min(max(h + step, -1.0), 1.0)
            excess += row[j] ** 2 - h * h
            product += (row[j] - h) * rest[j]
    return np.array(row)


class CNNHLoss(HasParts):
    r"""Second stage of CNNH: the network regresses the codes that :func:`cnnh_codes` made of the labels.

    .. math::
        L = \frac{1}{B K} \sum_i \|u_i - h_i\|^2

    or, with ``target="cross_entropy"``, the mean of ``log(1 + exp(-h u))``: then u are logits of the bits.
    For CNNH+, train a classifier on the same trunk and add its cross entropy.

    Args:
        target_codes: ``(n, bits)`` ±1 of the whole training set, row = index of the image.
        target: ``"squared"`` (tanh outputs) or ``"cross_entropy"`` (unbounded outputs).

    Attributes:
        target_codes: Buffer ``(n, bits)`` float32.

    Raises:
        TypeError: ``target_codes`` that are not floating-point.
        ValueError: ``target_codes`` that are not ±1, another ``target``.

    Source: Xia et al., AAAI 2014. swuxyj/DeepHash-pytorch: the squared form.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> loss = CNNHLoss(cnnh_codes(labels, bits=4))
        >>> loss(loss.target_codes[[2, 0]], labels[[2, 0]], indices=torch.tensor([2, 0]))
        tensor(0.)
    """

    requires: ClassVar[frozenset[str]] = frozenset({"indices"})
    target_codes: Tensor

    def __init__(
        self, target_codes: Tensor, *, target: Literal["squared", "cross_entropy"] = "squared"
    ) -> None:
        super().__init__()
        check_codes(target_codes, name="target_codes")
        if not bool((target_codes.abs() == 1).all()):
            raise ValueError("target_codes must be 1 and -1: make them with cnnh_codes, or binarize them")
        check_choice("target", target, ("squared", "cross_entropy"))
        self.target = target
        self.register_buffer("target_codes", target_codes.detach().to(torch.float32, copy=True))

    def forward(
        self,
        codes: Tensor,
        labels: Tensor | None = None,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a batch.

        Args:
            codes: ``(B, bits)`` floating-point, outputs of the network.
            labels: Only checked, because the target codes were made of them; None is allowed.
            indices: Integers ``(B,)``, rows of the batch in the training set.
            ref_codes: Must be None.
            ref_labels: Must be None.

        Returns:
            0-dim, float32 (float64 for float64 codes).

        Raises:
            IndexError: An index outside the training set.
            TypeError: Codes or indices of the wrong type.
            ValueError: No ``indices``, shapes that do not fit.
        """
        if ref_codes is not None or ref_labels is not None:
            refuse_reference("CNNHLoss")
        num_rows, bits = self.target_codes.shape
        codes = diverged_to_nan(upcast(check_codes(codes, bits=bits)))
        if labels is not None:
            as_labels(labels, length=codes.shape[0])
        rows = check_rows(indices, length=codes.shape[0], num_rows=num_rows, owner="training set")
        wanted = self.target_codes[rows.to(self.target_codes.device)].to(codes)
        with torch.autocast(codes.device.type, enabled=False):
            squared = self.target == "squared"
            losses = (codes - wanted).square() if squared else F.softplus(-wanted * codes)
            total = losses.sum()
            count = sum_over_ranks(torch.full_like(total, losses.numel())).clamp(min=1)
            loss = sum_over_ranks(total) / count
            self._parts = {"targets": loss.detach()}
            return loss

    def extra_repr(self) -> str:
        rows, bits = self.target_codes.shape
        return f"num_samples={rows}, bits={bits}, target={self.target!r}"
