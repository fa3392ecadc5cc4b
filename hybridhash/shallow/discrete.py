"""Discrete codes that a linear classifier can tell apart: the solvers of supervised discrete hashing."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridhash.codes import sign

__all__ = ["alternate", "dsdh_codes", "ridge_classifier"]


def ridge_classifier(codes: Tensor, labels: Tensor, ridge: float) -> Tensor:
    """Return the linear classifier W that minimises ``|Y - B W|^2 + ridge |W|^2``.

    Args:
        codes: B, ±1 ``(N, bits)``.
        labels: Y, 0 and 1 of the same dtype, ``(N, C)``.
        ridge: Weight of the size of W, positive.

    Returns:
        ``(bits, C)``, equal to ``(B^T B + ridge I)^-1 B^T Y``.

    Example:
        >>> ridge_classifier(torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 2.0)
        tensor([[ 0.2500, -0.2500]])
    """
    gram = codes.T @ codes
    identity = torch.eye(codes.shape[1], dtype=gram.dtype, device=gram.device)
    solution: Tensor = torch.linalg.solve(gram + ridge * identity, codes.T @ labels)
    return solution


def dsdh_codes(
    codes: Tensor, labels: Tensor, classifier: Tensor, ratio: float, iterations: int = 10
) -> Tensor:
    """Find ±1 codes that fit a classifier and stay near real-valued codes.

    This is discrete cyclic coordinate descent: it minimises ``|y - W^T b|^2 + ratio |b - u|^2`` for each
    item, bit by bit, until no bit changes.

    Args:
        codes: u, ``(N, bits)``.
        labels: y, 0 and 1 of the dtype of ``codes``, ``(N, C)``.
        classifier: W, ``(bits, C)``.
        ratio: Weight of the distance to ``codes``, eta / mu in the paper.
        iterations: Largest number of sweeps over the bits.

    Returns:
        ``(N, bits)`` of -1 and 1. The objective is nowhere larger than at ``sign(codes)``.

    Source: Q. Li, Z. Sun, R. He, T. Tan, Deep Supervised Discrete Hashing, NeurIPS 2017, equation 15, after
    F. Shen, C. Shen, W. Liu, H. T. Shen, Supervised Discrete Hashing, CVPR 2015.

    Example:
        >>> codes, labels = torch.tensor([[0.1, 0.2]]), torch.tensor([[1.0]])
        >>> dsdh_codes(codes, labels, torch.tensor([[1.0], [3.0]]), ratio=1.0)
        tensor([[-1.,  1.]])
    """
    # Since b_k^2 = 1, the objective is linear in one bit b_k when the others are fixed:
    # 2 b_k (sum over l != k of (W W^T)_kl b_l - (W y)_k - ratio u_k) + a constant.
    wanted = labels @ classifier.T + ratio * codes
    gram = classifier @ classifier.T
    signs = sign(codes)
    for _ in range(iterations):
        before = signs.clone()
        for k in range(codes.shape[1]):
            others = signs @ gram[:, k] - signs[:, k] * gram[k, k]
            signs[:, k] = sign(wanted[:, k] - others)
        if torch.equal(before, signs):
            break
    return signs


def alternate(
    codes: Tensor, labels: Tensor, *, ratio: float, ridge: float, iterations: int = 10
) -> tuple[Tensor, Tensor]:
    """Find ±1 codes and a classifier that fit each other, by turns, until no bit changes.

    Args:
        codes: u, ``(N, bits)``.
        labels: y, 0 and 1 of the dtype of ``codes``, ``(N, C)``.
        ratio: Weight of the distance to ``codes``, see :func:`dsdh_codes`.
        ridge: Weight of the size of the classifier, see :func:`ridge_classifier`.
        iterations: Largest number of turns, at least 1, and of sweeps over the bits in each.

    Returns:
        ±1 codes ``(N, bits)`` and the classifier ``(bits, C)`` they were fitted to.

    Example:
        >>> labels = torch.eye(2).repeat(2, 1)
        >>> codes = torch.tensor([[0.2], [-0.3], [0.1], [0.4]])
        >>> signs, classifier = alternate(codes, labels, ratio=1, ridge=1)
        >>> signs.T, classifier
        (tensor([[ 1., -1.,  1.,  1.]]), tensor([[0.4000, 0.0000]]))
    """
    signs = sign(codes)
    for _ in range(iterations):
        classifier = ridge_classifier(signs, labels, ridge)
        before = signs
        signs = dsdh_codes(codes, labels, classifier, ratio, iterations)
        if torch.equal(before, signs):
            break
    return signs, classifier
