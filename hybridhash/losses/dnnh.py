"""DNNH: a hinge on triplets of squared distances."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridhash._checks import check_positive
from hybridhash.losses._inputs import HasParts, pair_batch
from hybridhash.losses._triplets import triplet_sums
from hybridhash.losses.pairwise import squared_distances

__all__ = ["DNNHLoss", "dnnh_loss"]


def dnnh_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    margin: float = 1.0,
) -> Tensor:
    """Compute a hinge on triplets of squared distances, mean over all triplets; see :class:`DNNHLoss`.

    Args:
        codes: ``(B, bits)`` floating-point, the anchors.
        labels: ``(B,)`` class ids or ``(B, C)`` multi-hot.
        ref_codes: ``(M, bits)``, other items than the batch's; they get no gradient. None compares within the
            batch.
        ref_labels: labels of ``ref_codes``.
        margin: m > 0, in squared distance.

    Returns:
        0-dim, float32 (float64 for float64 codes); 0 without any triplet.

    Raises:
        TypeError: codes or labels of the wrong type.
        ValueError: a setting out of range, or shapes that do not fit each other.

    Example:
        >>> codes = torch.tensor([[0.9, 0.2], [0.7, 0.1], [0.6, 0.8]])
        >>> dnnh_loss(codes, torch.tensor([0, 0, 1]))
        tensor(0.5750)
    """
    check_positive(margin=margin)
    batch = pair_batch(codes, labels, ref_codes, ref_labels)
    with torch.autocast(batch.codes.device.type, enabled=False):
        sums, counts = triplet_sums(
            squared_distances(batch.codes, batch.ref_codes),
            batch.relevance(),
            batch.different(),
            lambda difference: F.relu(margin + difference),
        )
        return sums.sum() / counts.sum().clamp(min=1)


class DNNHLoss(HasParts):
    r"""Deep Neural Network Hashing (also NINH): a hinge on triplets of squared distances.

    .. math::
        L = \frac{1}{|T|} \sum_{(q, p, n) \in T} \max(0, m + \|h_q - h_p\|^2 - \|h_q - h_n\|^2)

    over all triplets in which p shares a label with q and n does not; 0 if there is none. The codes are taken
    as they are. The paper's are in [0, 1] (sigmoid and piecewise threshold), where a squared distance between
    binary codes is their Hamming distance, so that the margin is in bits. Codes u in [-1, 1] (tanh) have four
    times these distances: ``DNNHLoss(margin=4 * m)`` on u is four times ``DNNHLoss(margin=m)`` on (u + 1) /
    2.

    Args:
        margin: m, in squared distance. 1 is the paper's; the public Caffe reimplementation uses 2 at 48 bits.

    Raises:
        ValueError: ``margin`` not positive.

    Source: H. Lai, Y. Pan, Y. Liu, S. Yan, Simultaneous Feature Learning and Hash Coding with Deep Neural
    Networks, CVPR 2015, arXiv 1504.03410. The paper samples triplets; here all those of the batch count.
    swuxyj/DeepHash-pytorch has no DNNH.

    Example:
        >>> codes = torch.tensor([[0.9, 0.2], [0.7, 0.1], [0.6, 0.8]], requires_grad=True)
        >>> DNNHLoss()(codes, torch.tensor([0, 0, 1]))
        tensor(0.5750, grad_fn=<DivBackward0>)
    """

    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        check_positive(margin=margin)
        self.margin = margin

    def forward(
        self,
        codes: Tensor,
        labels: Tensor,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a batch.

        Args:
            codes: ``(B, bits)`` floating-point, the anchors.
            labels: ``(B,)`` class ids or ``(B, C)`` multi-hot.
            indices: ignored.
            ref_codes: ``(M, bits)``, other items than the batch's; they get no gradient. None compares within
                the batch.
            ref_labels: labels of ``ref_codes``.

        Returns:
            0-dim, float32 (float64 for float64 codes), whatever autocast does.

        Raises:
            TypeError: codes that are not floating-point, or labels that are not integers or multi-hot.
            ValueError: shapes that do not fit each other, or one of ``ref_codes`` and ``ref_labels`` without
                the other.
        """
        loss = dnnh_loss(codes, labels, ref_codes=ref_codes, ref_labels=ref_labels, margin=self.margin)
        self._parts = {"triplets": loss.detach()}
        return loss

    def extra_repr(self) -> str:
        return f"margin={self.margin:g}"
