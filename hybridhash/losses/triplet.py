"""Losses on triplets: DNNH, DTSH, DRSDH and DSRH.

An anchor, an item that is more and an item that is less relevant to it. All triplets within a batch are taken
(:func:`hybridhash.losses.balanced_batches` makes batches that have many), or those of a batch as anchors with
``ref_codes`` as items. An item is never compared with itself; one without label is an anchor of no triplet,
and a negative of every other item.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from hybridhash._checks import check_not_negative, check_positive
from hybridhash.losses._batch import Sides, two_sides
from hybridhash.losses._inputs import check_codes
from hybridhash.losses._layers import linear_layers, squared_norm
from hybridhash.losses._triplets import (
    bounded_margin,
    hinge,
    mean_over_anchors,
    triplet_sums,
    unlikelihood,
)

__all__ = [
    "DNNHLoss",
    "DRSDHLoss",
    "DSRHLoss",
    "DTSHLoss",
    "dnnh_loss",
    "drsdh_loss",
    "dsrh_loss",
    "dtsh_loss",
]


def _squared_distances(sides: Sides) -> Tensor:
    """``(B, M)`` squared Euclidean distances."""
    norms, ref_norms = sides.codes.square().sum(1), sides.ref_codes.square().sum(1)
    return norms[:, None] + ref_norms[None, :] - 2 * sides.codes @ sides.ref_codes.T


def _relevance(sides: Sides) -> Tensor:
    """1 where a pair shares a label, else 0: ``(B, M)`` in the dtype of the codes."""
    return (sides.shared() > 0).to(sides.codes.dtype)


def dnnh_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    margin: float = 1.0,
) -> Tensor:
    """Hinge on triplets of squared distances, mean over all triplets: see :class:`DNNHLoss`.

    Example:
        >>> codes = torch.tensor([[0.9, 0.2], [0.7, 0.1], [0.6, 0.8]])
        >>> dnnh_loss(codes, torch.tensor([0, 0, 1]))
        tensor(0.5750)
    """
    check_positive(margin=margin)
    sides = two_sides(codes, labels, ref_codes, ref_labels)
    with torch.autocast(sides.codes.device.type, enabled=False):
        sums, counts = triplet_sums(
            _squared_distances(sides), _relevance(sides), sides.others(), hinge(margin)
        )
        return sums.sum() / counts.sum().clamp(min=1)


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
) -> Tensor:
    """Likelihood of triplets plus quantisation: see :class:`DTSHLoss`.

    Example:
        >>> codes = torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
        >>> dtsh_loss(codes, torch.tensor([0, 0, 1]))
        tensor(0.3133)
    """
    check_positive(scale=scale, **({} if margin is None else {"margin": margin}))
    check_not_negative(quantization=quantization)
    sides = two_sides(codes, labels, ref_codes, ref_labels)
    bits = sides.codes.shape[1]
    with torch.autocast(sides.codes.device.type, enabled=False):
        theta = scale * sides.codes @ sides.ref_codes.T
        valid = sides.others() if exclude_self else torch.ones_like(theta, dtype=torch.bool)
        term = unlikelihood(bits / 2 if margin is None else margin)
        loss = mean_over_anchors(*triplet_sums(theta, _relevance(sides), valid, term))
        penalty = (sides.codes.abs() - 1).square().sum() / max(sides.codes.shape[0], 1)
        return loss + quantization * penalty


def drsdh_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    bit_weights: Tensor | None = None,
    margin: float = 5.0,
    laplacian: float = 0.001,
    similar_weight: float = 1.0,
    dissimilar_weight: float = 0.001,
) -> Tensor:
    """Triplets of weighted codes plus a Laplacian regulariser: see :class:`DRSDHLoss`.

    Args:
        codes: ``(B, bits)``.
        labels: ``(B,)`` or ``(B, C)``.
        ref_codes: ``(M, bits)`` or None.
        ref_labels: ``(M,)``, ``(M, C)`` or None.
        bit_weights: ``(bits,)`` weights of the bits, which get a gradient; None for ones.
        margin: see the class, as are the other settings.

    Example:
        >>> codes = torch.tensor([[0.9, 0.2], [0.7, 0.1], [0.6, 0.8]])
        >>> drsdh_loss(codes, torch.tensor([0, 0, 1]))
        tensor(-0.4250)
    """
    check_positive(margin=margin)
    check_not_negative(
        laplacian=laplacian, similar_weight=similar_weight, dissimilar_weight=dissimilar_weight
    )
    sides = two_sides(codes, labels, ref_codes, ref_labels)
    if bit_weights is not None and bit_weights.shape != (sides.codes.shape[1],):
        raise ValueError(
            f"bit_weights must have shape ({sides.codes.shape[1]},), one for each bit of the codes, "
            f"got {tuple(bit_weights.shape)}"
        )
    with torch.autocast(sides.codes.device.type, enabled=False):
        if bit_weights is not None:
            weights = bit_weights.to(sides.codes)
            sides = sides._replace(codes=sides.codes * weights, ref_codes=sides.ref_codes * weights)
        distances, relevance = _squared_distances(sides), _relevance(sides)
        sums, counts = triplet_sums(distances, relevance, sides.others(), bounded_margin(margin))
        edges = torch.where(relevance > 0, similar_weight, dissimilar_weight) * sides.others()
        # tr(V L V') of the Laplacian of W is the sum of W_ij |v_i - v_j|^2 over unordered pairs.
        smoothness = (edges * distances).sum() / (2 if sides.in_batch else 1)
        total = counts.sum()
        return (sums.sum() + laplacian * smoothness) * (total > 0) / total.clamp(min=1)


def dsrh_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    margin: float = 5.0,
    balance: float = 1.0,
    top_k: int | None = None,
) -> Tensor:
    """Hinge on triplets graded by the number of shared labels: see :class:`DSRHLoss`.

    Example:
        >>> codes = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
        >>> dsrh_loss(codes, torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1]]))
        tensor(3.2303)
    """
    check_positive(margin=margin)
    check_not_negative(balance=balance)
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1 (or None for the whole list), got {top_k}")
    sides = two_sides(codes, labels, ref_codes, ref_labels)
    with torch.autocast(sides.codes.device.type, enabled=False):
        distances = (sides.codes.shape[1] - sides.codes @ sides.ref_codes.T) / 2
        valid = sides.others()
        gains = _ndcg_gains(sides.shared(), valid, top_k)
        loss = mean_over_anchors(*triplet_sums(distances, gains, valid, hinge(margin)))
        mean_code = sides.codes.sum(0) / max(sides.codes.shape[0], 1)
        return loss + balance / 2 * mean_code.square().sum()


def _ndcg_gains(shared: Tensor, valid: Tensor, top_k: int | None) -> Tensor:
    """``2^r / Z`` of every pair, Z the ideal discounted cumulative gain of the anchor's list."""
    if shared.numel() == 0:
        return shared
    shared = shared.masked_fill(~valid, 0)
    # Both 2^r and Z are taken times 2^-max(r): no overflow with many labels.
    most = shared.amax(1, keepdim=True)
    ideal = (torch.exp2(shared - most) - torch.exp2(-most)).sort(1, descending=True).values[:, :top_k]
    ranks = torch.arange(1, ideal.shape[1] + 1, device=shared.device, dtype=shared.dtype)
    normalizer = (ideal / torch.log(1 + ranks)).sum(1, keepdim=True)
    return torch.exp2(shared - most) / torch.where(normalizer > 0, normalizer, 1)


class DNNHLoss(nn.Module):
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
        """The loss of a batch: 0-dim, float32 (float64 for float64 codes); ``indices`` are not used.

        ``codes`` ``(B, bits)`` floating-point; ``labels`` ``(B,)`` ids or ``(B, C)`` multi-hot; ``ref_codes``
        ``(M, bits)`` and ``ref_labels``: other items than the batch's, without gradient.
        """
        return dnnh_loss(codes, labels, ref_codes=ref_codes, ref_labels=ref_labels, margin=self.margin)

    def extra_repr(self) -> str:
        return f"margin={self.margin:g}"


class DTSHLoss(nn.Module):
    r"""Deep Supervised Hashing with Triplet Labels: negative log-likelihood of triplets.

    .. math::
        L = \frac{1}{|Q|} \sum_{q \in Q} \frac{1}{|T_q|} \sum_{(p, n) \in T_q}
            \log(1 + e^{-(\theta_{qp} - \theta_{qn} - m)})
            + \eta \frac{1}{B} \sum_i \|b_i - u_i\|^2, \quad \theta_{ij} = s \langle u_i, u_j \rangle

    with b = sign(u), over the anchors Q that have a triplet. Made for linear outputs, as the paper's: tanh
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
        takes
    positives and negatives from a bank of the whole set). swuxyj/DeepHash-pytorch: ``margin=5, scale=1,
    quantization=1 / bits, exclude_self=False`` (it also clamps the exponent to [-100, 50]).

    Example:
        >>> codes = torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], requires_grad=True)
        >>> DTSHLoss()(codes, torch.tensor([0, 0, 1]))
        tensor(0.3133, grad_fn=<AddBackward0>)
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
        """The loss of a batch; arguments and result as :meth:`DNNHLoss.forward`."""
        return dtsh_loss(
            codes,
            labels,
            ref_codes=ref_codes,
            ref_labels=ref_labels,
            margin=self.margin,
            scale=self.scale,
            quantization=self.quantization,
            exclude_self=self.exclude_self,
        )

    def extra_repr(self) -> str:
        margin = "bits/2" if self.margin is None else f"{self.margin:g}"
        return f"margin={margin}, scale={self.scale:g}, quantization={self.quantization:g}"


class DRSDHLoss(nn.Module):
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
        code
    (ruixuejianfei/BitScalableDeepHash). That code writes -(D + W) where the Laplacian is D - W; the paper's
    Laplacian is used here. swuxyj/DeepHash-pytorch has no DRSDH.

    Example:
        >>> loss = DRSDHLoss(bits=2)
        >>> loss(torch.tensor([[0.9, 0.2], [0.7, 0.1], [0.6, 0.8]]), torch.tensor([0, 0, 1]))
        tensor(-0.4250, grad_fn=<DivBackward0>)
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
        if bits < 1:
            raise ValueError(f"bits must be at least 1, got {bits}")
        check_positive(margin=margin)
        check_not_negative(
            margin_step=margin_step,
            laplacian=laplacian,
            similar_weight=similar_weight,
            dissimilar_weight=dissimilar_weight,
        )
        self.bit_weights = nn.Parameter(torch.ones(bits))
        self.register_buffer("margin", torch.tensor(float(margin)))
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
        """The loss of a batch; arguments and result as :meth:`DNNHLoss.forward`."""
        check_codes(codes, bits=self.bit_weights.shape[0])
        return drsdh_loss(
            codes,
            labels,
            ref_codes=ref_codes,
            ref_labels=ref_labels,
            bit_weights=self.bit_weights,
            margin=float(self.margin),
            laplacian=self.laplacian,
            similar_weight=self.similar_weight,
            dissimilar_weight=self.dissimilar_weight,
        )

    @torch.no_grad()
    def epoch_end(self) -> None:
        """Widen the margin by ``margin_step``."""
        self.margin += self.margin_step

    def extra_repr(self) -> str:
        return (
            f"bits={self.bit_weights.shape[0]}, margin={float(self.margin):g}, laplacian={self.laplacian:g}"
        )


class DSRHLoss(nn.Module):
    r"""Deep Semantic Ranking Hashing: triplets graded by the number of shared labels.

    .. math::
        L = \frac{1}{|Q|} \sum_{q \in Q} \frac{1}{|T_q|} \sum_{(i, j) \in T_q} \frac{2^{r_i} - 2^{r_j}}{Z_q}
            [d_{qi} - d_{qj} + \rho]_+ + \frac{\alpha}{2} \|\bar{h}\|^2 + \frac{\beta}{2} \|W\|^2

    where i shares more labels with q than j does (r_i > r_j), ``d = (bits - <h_q, h_i>) / 2`` is the Hamming
    distance of codes in [-1, 1], Z the ideal discounted cumulative gain of the anchor's list, sum of
    ``(2^r - 1) / ln(1 + rank)``, and the mean code pulls every bit to be balanced. With class ids it is a
    hinge on all triplets. For codes h in [0, 1] (sigmoid) give ``2 * h - 1``.

    Args:
        margin: rho, in bits; 5 in the official code.
        balance: alpha; 1 in the official code.
        top_k: positions that Z counts; None for the whole list. The official code takes the two positives of
            its three triplets for an anchor, i.e. 2.
        layers: the hash layer, or any module or collection of modules: W is the weight of every ``nn.Linear``
            in it. None leaves the last term out. The loss does not own these modules (they are not in its
            ``state_dict`` or ``parameters()``).
        weight_decay: beta, used with ``layers``; 5e-4 in the official code.

    Raises:
        ValueError: ``margin`` not positive, ``balance`` or ``weight_decay`` negative, ``top_k`` below 1,
            ``layers`` without an ``nn.Linear``.
        TypeError: ``layers`` that are not modules.

    Source: F. Zhao, Y. Huang, L. Wang, T. Tan, Deep Semantic Ranking Based Hashing for Multi-Label Image
    Retrieval, CVPR 2015, arXiv 1501.06272, and its code (zhaofang0627/cuda-convnet-for-hashing).
    swuxyj/DeepHash-pytorch has no DSRH.

    Example:
        >>> codes = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], requires_grad=True)
        >>> DSRHLoss()(codes, torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1]]))
        tensor(3.2303, grad_fn=<AddBackward0>)
    """

    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        margin: float = 5.0,
        *,
        balance: float = 1.0,
        top_k: int | None = None,
        layers: nn.Module | Iterable[nn.Module] | None = None,
        weight_decay: float = 5e-4,
    ) -> None:
        super().__init__()
        check_positive(margin=margin)
        check_not_negative(balance=balance, weight_decay=weight_decay)
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1 (or None for the whole list), got {top_k}")
        self.margin = margin
        self.balance = balance
        self.top_k = top_k
        self.layers = linear_layers(layers)
        self.weight_decay = weight_decay

    def forward(
        self,
        codes: Tensor,
        labels: Tensor,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch; arguments and result as :meth:`DNNHLoss.forward`."""
        loss = dsrh_loss(
            codes,
            labels,
            ref_codes=ref_codes,
            ref_labels=ref_labels,
            margin=self.margin,
            balance=self.balance,
            top_k=self.top_k,
        )
        if not self.layers:
            return loss
        return loss + self.weight_decay / 2 * squared_norm(self.layers, loss, biases=False)

    def extra_repr(self) -> str:
        return f"margin={self.margin:g}, balance={self.balance:g}, top_k={self.top_k}"
