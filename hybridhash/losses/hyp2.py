"""HyP2: learnable proxies of the classes, and irrelevant pairs of images with several labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hybridhash._checks import check_integer, check_not_negative, check_number, generator_device
from hybridhash.labels import labelled, to_multi_hot
from hybridhash.losses._distributed import gather_rows
from hybridhash.losses._inputs import HasParts, add_up, class_batch, refuse_reference
from hybridhash.losses.pairwise import cosines

__all__ = ["HyP2Loss", "hyp2_loss", "hyp2_threshold"]


def hyp2_threshold(num_classes: int, bits: int) -> float:
    """Return the cosine that codes of different classes need not exceed: ``1 - 2 d / bits``.

    Here d is the largest minimum distance that Griesmer's bound allows a binary linear code of ``bits`` bits
    with at least ``num_classes`` codewords: the largest d with ``sum_{i<k} ceil(d / 2^i) <= bits``, where
    ``k = ceil(log2 num_classes)``.

    Example:
        >>> hyp2_threshold(20, 48), round(hyp2_threshold(100, 16), 3)
        (0.0, 0.25)
    """
    dimensions = max(math.ceil(math.log2(num_classes)), 1)
    distance = bits
    while sum(math.ceil(distance / 2**i) for i in range(dimensions)) > bits and distance > 1:
        distance -= 1
    return 1 - 2 * distance / bits


def hyp2_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    proxies: Tensor,
    threshold: float | None = None,
    beta: float = 0.5,
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """Compute the hybrid proxy and pair loss of a batch; see :class:`HyP2Loss`.

    Args:
        codes: ``(B, bits)`` floating-point.
        labels: ``(B,)`` class ids or ``(B, C)`` multi-hot.
        proxies: ``(C, bits)``.
        threshold: zeta, see :class:`HyP2Loss`.
        beta: weight of the pairs.
        parts: a dict that gets the terms of the loss, detached. None notes nothing.

    Returns:
        0-dim, float32 (float64 for float64 codes).

    Raises:
        TypeError: codes or labels of the wrong type.
        ValueError: a threshold outside [-1, 1], a negative ``beta``, or shapes that do not fit the proxies.

    Example:
        >>> proxies = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        >>> hyp2_loss(torch.tensor([[0.9, 0.3]]), torch.tensor([0]), proxies=proxies)
        tensor(1.5528)
    """
    num_classes, bits = proxies.shape
    if threshold is None:
        threshold = hyp2_threshold(num_classes, bits)
    _check(threshold, beta)
    codes, labels = class_batch(codes, labels, num_classes=num_classes, bits=bits)
    # The counts are those of the batch of all processes, and so are the pairs.
    codes, labels = gather_rows(codes), gather_rows(labels)
    with torch.autocast(codes.device.type, enabled=False):
        y = to_multi_hot(labels, num_classes).to(codes.dtype)
        to_proxies = cosines(codes, proxies.to(codes.dtype))
        own, other = y, (1 - y) * labelled(labels)[:, None]
        terms = {
            "positive": _mean(1 - to_proxies, own),
            "negative": _mean((to_proxies - threshold).clamp(min=0), other),
        }
        # Proxies alone let images of several labels that share none come close to each other.
        several = (y.sum(1) > 1).to(codes.dtype)
        irrelevant = (y @ y.T == 0) * several[:, None] * several
        terms["pairs"] = beta * _mean((cosines(codes, codes) - threshold).clamp(min=0), irrelevant)
        return add_up(terms, parts)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean of the values where ``counted`` is 1; 0 if nothing is counted."""
    return (values * counted).sum() / counted.sum().clamp(min=1)


def _check(threshold: float, beta: float) -> None:
    check_not_negative(beta=beta)
    check_number("threshold", threshold)
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold is a cosine and must be in [-1, 1], got {threshold}")


class HyP2Loss(HasParts):
    r"""HyP^2: proxies of the classes that are learned, and irrelevant pairs of multi-label images.

    .. math::
        L = \mathrm{mean}_{y_{ic} = 1} (1 - \cos(u_i, p_c))
            + \mathrm{mean}_{y_{ic} = 0} \max(\cos(u_i, p_c) - \zeta, 0)
            + \beta\, \mathrm{mean}_{(i, j) \in I} \max(\cos(u_i, u_j) - \zeta, 0)

    over the rows that have a label. I are the pairs of images with at least two labels each that share none,
    so that the last term is 0 on single-label data. Cosines do not depend on the length of a code: the loss
    has no quantiser, and fits tanh and unbounded heads.

    The proxies belong to this loss: give ``loss.parameters()`` to the optimizer too, and under
    ``torch.distributed`` wrap the loss in ``DistributedDataParallel`` like the network.

    Args:
        num_classes: number of classes C.
        bits: code length.
        threshold: zeta, the cosine up to which codes of different classes may be alike. None is
            :func:`~hybridhash.losses.hyp2.hyp2_threshold`: as alike as the codewords of a best linear code.
        beta: weight of the pairs; 0.5 in the official code.
        generator: source of the first proxies.

    Attributes:
        proxies: parameter ``(C, bits)``.

    Raises:
        ValueError: a size below 1, a threshold outside [-1, 1], a negative ``beta``.

    Source: C. Xu, Z. Chai, Z. Xu, C. Yuan, Y. Fan, J. Wang, HyP^2 Loss: Beyond Hypersphere Metric Space for
    Multi-label Image Retrieval, ACM Multimedia 2022, and its official code (JerryXu0129/HyP2-Loss). That code
    looks zeta up in a spreadsheet by ``bits`` and ``ceil(log2 C)``, whose entries could not be read; the
    default here is derived as stated. Images without a label count there as far from every proxy.

    Example:
        >>> loss = HyP2Loss(num_classes=10, bits=48, generator=torch.Generator().manual_seed(0))
        >>> codes = torch.zeros(2, 48, requires_grad=True)
        >>> loss(codes, torch.tensor([3, 5])), loss.threshold, [tuple(p.shape) for p in loss.parameters()]
        (tensor(1., grad_fn=<SumBackward0>), 0.0, [(10, 48)])
    """

    requires: frozenset[str] = frozenset({"parameters"})

    def __init__(
        self,
        num_classes: int,
        bits: int,
        *,
        threshold: float | None = None,
        beta: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("num_classes", num_classes, 1)
        check_integer("bits", bits, 1)
        self.threshold = hyp2_threshold(num_classes, bits) if threshold is None else threshold
        _check(self.threshold, beta)
        self.beta = beta
        device = generator_device(generator)
        # Normal numbers of He's variance for the number of proxies, as in the official code.
        drawn = torch.randn(num_classes, bits, generator=generator, device=device, dtype=torch.float32)
        self.proxies = nn.Parameter(drawn.cpu() * (2 / num_classes) ** 0.5)

    def forward(
        self,
        codes: Tensor,
        labels: Tensor,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a batch; see :meth:`CSQLoss.forward`, without soft labels and ``reduction``."""
        if ref_codes is not None or ref_labels is not None:
            refuse_reference("HyP2Loss")
        self._parts = {}
        return hyp2_loss(
            codes,
            labels,
            proxies=self.proxies,
            threshold=self.threshold,
            beta=self.beta,
            parts=self._parts,
        )

    def extra_repr(self) -> str:
        classes, bits = self.proxies.shape
        return f"num_classes={classes}, bits={bits}, threshold={self.threshold:g}, beta={self.beta:g}"
