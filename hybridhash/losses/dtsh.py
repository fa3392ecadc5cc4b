"""DTSH: negative log-likelihood of triplets."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridhash._checks import check_flags, check_not_negative, check_positive
from hybridhash.losses._inputs import HasParts, add_up, pair_batch
from hybridhash.losses._triplets import mean_over_anchors, triplet_sums

__all__ = ["DTSHLoss", "dtsh_loss"]


def dtsh_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    margin: float | None = None,
    scale: float = 0.5,
    quantization: float = 100 / 22500,
    exclude_self: bool = True,
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """Compute the negative log-likelihood of triplets plus a quantiser; see :class:`DTSHLoss`.

    Args:
        codes: ``(B, bits)`` floating-point, the anchors.
        labels: ``(B,)`` class ids or ``(B, C)`` multi-hot.
        ref_codes: ``(M, bits)``, other items than the batch's; they get no gradient. None compares within the
            batch.
        ref_labels: labels of ``ref_codes``.
        margin: m > 0. None means ``bits / 2``.
        scale: s > 0.
        quantization: weight of the quantiser, 0 or more.
        exclude_self: whether to leave out the anchor as its own positive.
        parts: a dict that gets the terms of the loss, detached. None notes nothing.

    Returns:
        0-dim, float32 (float64 for float64 codes); 0 without any triplet but the quantiser.

    Raises:
        TypeError: codes or labels of the wrong type.
        ValueError: a setting out of range, or shapes that do not fit each other.

    Example:
        >>> codes = torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
        >>> dtsh_loss(codes, torch.tensor([0, 0, 1]))
        tensor(0.3133)
    """
    check_positive(scale=scale, **({} if margin is None else {"margin": margin}))
    check_not_negative(quantization=quantization)
    batch = pair_batch(codes, labels, ref_codes, ref_labels)
    rows, bits = batch.codes.shape
    m = bits / 2 if margin is None else margin
    with torch.autocast(batch.codes.device.type, enabled=False):
        theta = scale * batch.products()
        valid = batch.different() if exclude_self else torch.ones_like(theta, dtype=torch.bool)
        sums, counts = triplet_sums(
            theta, batch.relevance(), valid, lambda difference: F.softplus(m - difference)
        )
        penalty = (batch.codes.abs() - 1).square().sum() / max(rows, 1)
        terms = {"triplets": mean_over_anchors(sums, counts), "quantization": quantization * penalty}
        return add_up(terms, parts)


class DTSHLoss(HasParts):
    r"""Deep Supervised Hashing with Triplet Labels: negative log-likelihood of triplets.

    .. math::
        L = \frac{1}{|Q|} \sum_{q \in Q} \frac{1}{|T_q|} \sum_{(p, n) \in T_q}
            \log(1 + e^{-(\theta_{qp} - \theta_{qn} - m)})
            + \eta \frac{1}{B} \sum_i \|b_i - u_i\|^2, \quad \theta_{ij} = s \langle u_i, u_j \rangle

    with b = sign(u), over the anchors Q that have a triplet. Made for unbounded outputs, as the paper's: tanh
    outputs bound theta by ``bits / 2``, and then a smaller margin and a larger scale learn better.

    Args:
        margin: m; None for the paper's ``bits / 2``.
        scale: s, 1/2 in the paper.
        quantization: eta. The paper's is 100, against the *sum* over an image's triplets; the official code
            draws 50 * 50 * 9 = 22,500 of them for an image, so the same weight against their mean is 100 /
            22500.
        exclude_self: leave out the anchor as its own positive.

    Raises:
        ValueError: ``margin`` or ``scale`` not positive, ``quantization`` negative.

    Source: X. Wang, Y. Shi, K. M. Kitani, ACCV 2016, arXiv 1612.03900, and its code (Minione/DTSH, which
    takes positives and negatives from a bank of the whole set). swuxyj/DeepHash-pytorch: ``margin=5, scale=1,
    quantization=1 / bits, exclude_self=False`` (it also clamps the exponent to [-100, 50]).

    Example:
        >>> codes = torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], requires_grad=True)
        >>> DTSHLoss()(codes, torch.tensor([0, 0, 1]))
        tensor(0.3133, grad_fn=<SumBackward0>)
    """

    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        margin: float | None = None,
        *,
        scale: float = 0.5,
        quantization: float = 100 / 22500,
        exclude_self: bool = True,
    ) -> None:
        super().__init__()
        check_flags(exclude_self=exclude_self)
        check_positive(scale=scale, **({} if margin is None else {"margin": margin}))
        check_not_negative(quantization=quantization)
        self.margin = margin
        self.scale = scale
        self.quantization = quantization
        self.exclude_self = exclude_self

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
        self._parts = {}
        return dtsh_loss(
            codes,
            labels,
            ref_codes=ref_codes,
            ref_labels=ref_labels,
            margin=self.margin,
            scale=self.scale,
            quantization=self.quantization,
            exclude_self=self.exclude_self,
            parts=self._parts,
        )

    def extra_repr(self) -> str:
        margin = "bits/2" if self.margin is None else f"{self.margin:g}"
        return f"margin={margin}, scale={self.scale:g}, quantization={self.quantization:g}"
