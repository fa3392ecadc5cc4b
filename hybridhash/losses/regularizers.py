"""Penalties on a batch of codes that any loss can be combined with: balanced, independent and spread codes.

Each maps ``(B, bits)`` to a scalar, to be added with a weight: ``loss(codes, labels) + 0.1 *
balance_penalty(codes)``. Under ``torch.distributed`` they are those of the joined batch of all processes.
Penalties of single codes, which pull them to ±1, are in :mod:`hybridhash.losses.quantizers`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridhash._checks import check_positive
from hybridhash.losses._distributed import gather_rows
from hybridhash.losses._inputs import check_codes, upcast

__all__ = [
    "balance_penalty",
    "bihalf_penalty",
    "coding_rate_penalty",
    "decorrelation_penalty",
    "half_signs",
    "koleo_penalty",
]


def balance_penalty(codes: Tensor) -> Tensor:
    r"""Compute how far bits are from balanced: the mean over the bits of ``(mean_i u_ik)^2``.

    It is 0 where each bit is as often positive as negative, weighed by its size, and 1 where all codes are
    the same ±1 code.

    Args:
        codes: ``(B, bits)`` floating-point.

    Returns:
        0-dim, float32 (float64 for float64 codes); 0 for an empty batch.

    Raises:
        TypeError: codes that are not floating-point.
        ValueError: codes that are not ``(B, bits)``.

    Source: the balance of Y. Weiss, A. Torralba, R. Fergus, Spectral Hashing, NIPS 2008, as a
    penalty.

    Example:
        >>> balance_penalty(torch.tensor([[1.0, 1.0], [-1.0, 1.0]]))
        tensor(0.5000)
    """
    u = _joined(codes)
    with torch.autocast(u.device.type, enabled=False):
        return (u.sum(0) / max(len(u), 1)).square().mean()


def decorrelation_penalty(codes: Tensor) -> Tensor:
    r"""Compute how far bits are from independent: the mean of ``C_kl^2`` over all ``k != l``.

    With ``C = U^T U / B``, which for balanced ±1 codes is the correlation of the bits. Where all bits are
    equal it is 1.

    Args:
        codes: ``(B, bits)`` floating-point.

    Returns:
        0-dim, float32 (float64 for float64 codes); 0 for one bit, or an empty batch.

    Raises:
        TypeError: codes that are not floating-point.
        ValueError: codes that are not ``(B, bits)``.

    Source: the uncorrelated bits of Weiss et al., Spectral Hashing, NIPS 2008, as a penalty.

    Example:
        >>> decorrelation_penalty(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
        tensor(1.)
    """
    u = _joined(codes)
    bits = u.shape[1]
    with torch.autocast(u.device.type, enabled=False):
        correlation = u.T @ u / max(len(u), 1)
        squares = correlation.square()
        return (squares.sum() - squares.diagonal().sum()) / max(bits * (bits - 1), 1)


def bihalf_penalty(codes: Tensor) -> Tensor:
    r"""Compute the distance to bi-half codes B, ``1/2`` of the mean over rows and bits of ``(u - B)^2``.

    B is that of :func:`half_signs`, fixed in the gradient. ``BiHalfHead(gamma=g)`` adds the gradient of ``g``
    times this penalty to that of the loss; the penalty alone suits heads that do not give B.

    Args:
        codes: ``(B, bits)`` floating-point.

    Returns:
        0-dim, float32 (float64 for float64 codes); 0 for an empty batch.

    Raises:
        TypeError: codes that are not floating-point.
        ValueError: codes that are not ``(B, bits)``.

    Source: Y. Li, J. van Gemert, Deep Unsupervised Image Hashing by Maximizing Bit Entropy, AAAI 2021.

    Example:
        >>> bihalf_penalty(torch.tensor([[0.9, 0.8], [0.5, -1.0]]))
        tensor(0.2875)
    """
    u = _joined(codes)
    with torch.autocast(u.device.type, enabled=False):
        return (u - half_signs(u)).square().sum() / (2 * max(u.numel(), 1))


def half_signs(codes: Tensor) -> Tensor:
    """Return +1 for the larger half of each column and -1 for the rest, without a gradient.

    Of an odd number of rows the larger half has one more.

    Args:
        codes: ``(B, bits)`` floating-point.

    Returns:
        ``(B, bits)``, in the dtype of ``codes``.

    Example:
        >>> half_signs(torch.tensor([[0.9], [0.8], [0.5], [0.7]])).flatten()
        tensor([ 1.,  1., -1., -1.])
    """
    # Rank of each row in its column: 0 for the largest value.
    rank = codes.detach().argsort(dim=0, descending=True).argsort(dim=0)
    return torch.where(rank < codes.shape[0] / 2, 1.0, -1.0).to(codes.dtype)


def koleo_penalty(features: Tensor, eps: float = 1e-8) -> Tensor:
    r"""Spread features over the sphere: ``-mean_i log(|x_i - x_n(i)| + eps)``, n(i) being the nearest other.

    The rows are divided by their lengths first. It is the differential entropy of Kozachenko and Leonenko,
    without its constants: the more even the features are spread, the smaller.

    Args:
        features: ``(B, D)`` floating-point, codes or embeddings.
        eps: added to distances, so that equal rows have a value.

    Returns:
        0-dim, float32 (float64 for float64 features); may be negative; 0 for fewer than two rows.

    Raises:
        TypeError: features that are not floating-point.
        ValueError: features that are not ``(B, D)``, or ``eps`` not positive.

    Source: A. Sablayrolles, M. Douze, C. Schmid, H. Jégou, Spreading Vectors for Similarity Search, ICLR
    2019.

    Example:
        >>> koleo_penalty(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])).round(decimals=4)
        tensor(-0.3466)
    """
    check_positive(eps=eps)
    rows = _joined(features, name="features")
    if len(rows) < 2:
        return rows.sum() * 0
    with torch.autocast(rows.device.type, enabled=False):
        x = F.normalize(rows, eps=1e-3)
        with torch.no_grad():
            nearest = (x @ x.T).fill_diagonal_(-2).argmax(1)
        distances = torch.linalg.vector_norm(x - x[nearest], dim=1)
        return -(distances + eps).log().mean()


def coding_rate_penalty(codes: Tensor, eps: float = 0.05) -> Tensor:
    r"""Compute the negative coding rate, which is small where codes fill all directions evenly (CroVCA).

    .. math::
        -\frac{b + B}{b B}\, \frac12 \log\det\left( I + \frac{b}{B \epsilon}\, V^\top V \right)

    over a batch of B codes of b bits, V being the codes divided by their lengths.

    Args:
        codes: ``(B, bits)`` floating-point.
        eps: squared error up to which codes count as equal.

    Returns:
        0-dim, float32 (float64 for float64 codes), 0 or less; 0 for an empty batch.

    Raises:
        TypeError: codes that are not floating-point.
        ValueError: codes that are not ``(B, bits)``, or ``eps`` not positive.

    Source: I. Moummad, K. Zaher, H. Goëau, A. Joly, Image Hashing via Cross-View Code Alignment in the Age of
    Foundation Models, arXiv 2510.27584, as in its code (ilyassmoummad/cross-view-code-alignment); the rate
    itself is that of Yu et al., MCR², NeurIPS 2020.

    Example:
        >>> coding_rate_penalty(torch.tensor([[1.0, 1.0], [1.0, -1.0]])).round(decimals=4)
        tensor(-3.0445)
    """
    check_positive(eps=eps)
    u = _joined(codes)
    rows, bits = u.shape
    if rows == 0:
        return u.sum()
    with torch.autocast(u.device.type, enabled=False):
        v = F.normalize(u, eps=1e-3)
        identity = torch.eye(bits, dtype=v.dtype, device=v.device)
        # log det of a matrix whose eigenvalues are at least 1
        factor = torch.linalg.cholesky_ex(identity + bits / (rows * eps) * v.T @ v)[0]
        return -(bits + rows) / (bits * rows) * factor.diagonal().log().sum()


def _joined(codes: Tensor, name: str = "codes") -> Tensor:
    """Check a batch, and return that of all processes in float32 or float64."""
    return gather_rows(upcast(check_codes(codes, name=name)))
