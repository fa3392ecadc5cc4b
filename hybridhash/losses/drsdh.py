"""DRSDH (also DRSCH): triplets of codes with a learned weight for each bit."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from hybridhash._checks import check_integer, check_not_negative, check_positive
from hybridhash.losses._inputs import HasParts, add_up, check_codes, pair_batch
from hybridhash.losses._triplets import triplet_sums
from hybridhash.losses.pairwise import squared_distances

__all__ = ["DRSDHLoss", "drsdh_loss"]


def drsdh_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    bit_weights: Tensor | None = None,
    margin: float | Tensor = 5.0,
    laplacian: float = 0.001,
    similar_weight: float = 1.0,
    dissimilar_weight: float = 0.001,
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """Compute triplets of weighted codes plus a Laplacian regulariser; see :class:`DRSDHLoss`.

    Args:
        codes: ``(B, bits)`` floating-point, the anchors.
        labels: ``(B,)`` class ids or ``(B, C)`` multi-hot.
        ref_codes: ``(M, bits)``, other items than the batch's; they get no gradient. None compares within the
            batch.
        ref_labels: labels of ``ref_codes``.
        bit_weights: ``(bits,)`` weights of the bits, which get a gradient. None means ones.
        margin: m > 0, a number or 0-dim; a tensor is not checked.
        laplacian: weight of the regulariser, 0 or more.
        similar_weight: weight of an edge between items that share a label, 0 or more.
        dissimilar_weight: weight of an edge between others, 0 or more.
        parts: a dict that gets the terms of the loss, detached. None notes nothing.

    Returns:
        0-dim, float32 (float64 for float64 codes); 0 without any triplet.

    Raises:
        TypeError: codes or labels of the wrong type.
        ValueError: a setting out of range, or shapes that do not fit each other.

    Example:
        >>> codes = torch.tensor([[0.9, 0.2], [0.7, 0.1], [0.6, 0.8]])
        >>> drsdh_loss(codes, torch.tensor([0, 0, 1]))
        tensor(-0.4250)
    """
    if not isinstance(margin, Tensor):
        check_positive(margin=margin)
    check_not_negative(
        laplacian=laplacian, similar_weight=similar_weight, dissimilar_weight=dissimilar_weight
    )
    batch = pair_batch(codes, labels, ref_codes, ref_labels)
    bits = batch.codes.shape[1]
    if bit_weights is not None and bit_weights.shape != (bits,):
        raise ValueError(
            f"bit_weights must have shape ({bits},), one for each bit of the codes, "
            f"got {tuple(bit_weights.shape)}"
        )
    with torch.autocast(batch.codes.device.type, enabled=False):
        if bit_weights is not None:
            weights = bit_weights.to(batch.codes)
            batch = batch._replace(codes=batch.codes * weights, ref_codes=batch.ref_codes * weights)
        distances = squared_distances(batch.codes, batch.ref_codes)
        relevance = batch.relevance()
        different = batch.different()
        least = -torch.as_tensor(margin).to(distances)
        sums, counts = triplet_sums(
            distances, relevance, different, lambda difference: torch.maximum(difference, least)
        )
        # tr(V L V') of the Laplacian of W is the sum of W_ij |v_i - v_j|^2 over unordered pairs.
        edges = torch.where(relevance > 0, similar_weight, dissimilar_weight) * different
        smoothness = (edges * distances).sum() / (2 if batch.in_batch else 1)
        total = counts.sum()
        mean = (total > 0) / total.clamp(min=1)
        terms = {"triplets": sums.sum() * mean, "smoothness": laplacian * smoothness * mean}
        return add_up(terms, parts)


class DRSDHLoss(HasParts):
    r"""Bit-scalable deep hashing (DRSDH, also DRSCH): triplets of weighted codes and a graph regulariser.

    .. math::
        L = \frac{1}{|T|} \Big( \sum_{(q, p, n) \in T} \max(-m, \|v_q - v_p\|^2 - \|v_q - v_n\|^2)
            + \lambda \operatorname{tr}(V \mathcal{L} V^\top) \Big), \quad v = w \circ h

    with a learned weight w for each bit and the Laplacian of the graph whose edges weigh ``similar_weight``
    or ``dissimilar_weight``. 0 if there is no triplet. Bits of large ``|w|`` matter most: shorten codes to
    the n bits of largest ``|loss.bit_weights|``.

    The paper's codes are in [0, 1] (sigmoid). Codes in [-1, 1] (tanh) have four times these squared
    distances: ``margin=4 * m`` gives four times the loss.

    Args:
        bits: length of the codes.
        margin: m, the paper's -C. The official code starts at 5 (for 64 bits in [0, 1]).
        margin_step: added to the margin by :meth:`epoch_end`. The official code adds 0.1 every 10,000
            batches.
        laplacian: lambda, 0.001 in the official code, where both sums are divided by the number of triplets.
        similar_weight: edge between items that share a label, 1 in the official code.
        dissimilar_weight: edge between others, 0.001 in the official code.

    Attributes:
        bit_weights: parameter ``(bits,)``, starts at 1: give ``loss.parameters()`` to the optimizer.
        margin: buffer, 0-dim.

    Raises:
        ValueError: ``bits`` below 1, ``margin`` not positive, another setting negative.

    Source: R. Zhang, L. Lin, R. Zhang, W. Zuo, L. Zhang, IEEE TIP 24(12), 2015, arXiv 1508.04535, and its
    code (ruixuejianfei/BitScalableDeepHash). That code writes -(D + W) where the Laplacian is D - W;
    the paper's Laplacian is used here. swuxyj/DeepHash-pytorch has no DRSDH.

    Example:
        >>> loss = DRSDHLoss(bits=2)
        >>> loss(torch.tensor([[0.9, 0.2], [0.7, 0.1], [0.6, 0.8]]), torch.tensor([0, 0, 1]))
        tensor(-0.4250, grad_fn=<SumBackward0>)
    """

    requires: ClassVar[frozenset[str]] = frozenset({"parameters", "epoch_hook"})
    margin: Tensor

    def __init__(
        self,
        bits: int,
        *,
        margin: float = 5.0,
        margin_step: float = 0.1,
        laplacian: float = 0.001,
        similar_weight: float = 1.0,
        dissimilar_weight: float = 0.001,
    ) -> None:
        super().__init__()
        check_integer("bits", bits, 1)
        check_positive(margin=margin)
        check_not_negative(
            margin_step=margin_step,
            laplacian=laplacian,
            similar_weight=similar_weight,
            dissimilar_weight=dissimilar_weight,
        )
        self.bit_weights = nn.Parameter(torch.ones(bits, dtype=torch.float32, device="cpu"))
        self.register_buffer("margin", torch.tensor(margin, dtype=torch.float32, device="cpu"))
        self.margin_step = margin_step
        self.laplacian = laplacian
        self.similar_weight = similar_weight
        self.dissimilar_weight = dissimilar_weight

    def forward(
        self,
        codes: Tensor,
        labels: Tensor,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a batch; arguments and result as :meth:`DNNHLoss.forward`."""
        check_codes(codes, bits=self.bit_weights.shape[0])
        self._parts = {}
        return drsdh_loss(
            codes,
            labels,
            ref_codes=ref_codes,
            ref_labels=ref_labels,
            bit_weights=self.bit_weights,
            margin=self.margin,
            laplacian=self.laplacian,
            similar_weight=self.similar_weight,
            dissimilar_weight=self.dissimilar_weight,
            parts=self._parts,
        )

    @torch.no_grad()
    def epoch_end(self) -> None:
        """Widen the margin by ``margin_step``."""
        self.margin += self.margin_step

    def extra_repr(self) -> str:
        return (
            f"bits={self.bit_weights.shape[0]}, margin={float(self.margin):g}, laplacian={self.laplacian:g}"
        )
