"""SDH: codes from which a linear classifier reads the labels."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridhash._checks import check_integer, check_positive
from hybridhash.codes import sign
from hybridhash.shallow.discrete import dsdh_codes, ridge_classifier
from hybridhash.shallow.estimator import FeatureHash
from hybridhash.shallow.kernel import GaussianKernel
from hybridhash.shallow.unsupervised import random_normal

__all__ = ["SDH", "discrete_codes"]


class SDH(FeatureHash):
    r"""Learn codes from which a linear classifier reads the labels (supervised discrete hashing).

    .. math::
        \min_{B, W, P} \lVert Y - B W \rVert_F^2 + \lambda \lVert W \rVert_F^2
            + \nu (\lVert B - \Phi P \rVert_F^2 + \delta \lVert P \rVert_F^2), \quad B \in \{-1, 1\}

    where :math:`\Phi` is a Gaussian kernel to anchors with a constant column. Codes are :math:`\Phi P`. W, P
    and B are updated in turn (:func:`discrete_codes`). Supervised *deep* hashing has the same initials; it is
    :class:`hybridhash.losses.SupervisedDHLoss`.

    Args:
        bits: The code length, 1 to 4,096.
        num_anchors: The number of images that the kernel compares with, 1000 in the paper.
        width: The width of the Gaussian. None takes the root mean square distance to the anchors.
        classifier_ridge: lambda, positive.
        nu: The weight of the fit to the kernel against the fit to the labels, positive.
        kernel_ridge: delta, positive.
        iterations: The largest number of rounds. It ends early when no bit changes.

    Attributes:
        kernel_: The :class:`GaussianKernel`.
        projection_: P, ``(num_anchors + 1, bits)``, the constant last.

    Source: Shen, Shen, Liu, Shen, Supervised Discrete Hashing, CVPR 2015, algorithm 1 with the L2 loss;
    settings of the authors' code.

    Example:
        >>> labels = torch.arange(60) % 3
        >>> features = torch.eye(3)[labels] + 0.1 * torch.randn(60, 3)
        >>> codes = SDH(bits=8, num_anchors=20).fit(features, labels).transform(features)
        >>> codes.shape
        torch.Size([60, 8])
    """

    def __init__(
        self,
        bits: int,
        *,
        num_anchors: int = 1000,
        width: float | None = None,
        classifier_ridge: float = 1.0,
        nu: float = 1e-5,
        kernel_ridge: float = 1e-2,
        iterations: int = 5,
    ) -> None:
        super().__init__(bits)
        self.num_anchors = num_anchors
        self.width = width
        self.classifier_ridge = classifier_ridge
        self.nu = nu
        self.kernel_ridge = kernel_ridge
        self.iterations = iterations

    def _learn(
        self, features: Tensor, has_label: Tensor, hot: Tensor, generator: torch.Generator | None
    ) -> None:
        self.kernel_ = GaussianKernel(features, self.num_anchors, self.width, generator)
        start = sign(random_normal(hot.shape[0], self.bits, generator=generator))
        _, self.projection_ = discrete_codes(
            _with_constant(self.kernel_(features[has_label])),
            hot,
            start,
            classifier_ridge=self.classifier_ridge,
            nu=self.nu,
            kernel_ridge=self.kernel_ridge,
            iterations=self.iterations,
        )

    def _codes(self, features: Tensor) -> Tensor:
        return _with_constant(self.kernel_(features)) @ self.projection_


def discrete_codes(
    kernel: Tensor,
    labels: Tensor,
    start: Tensor,
    *,
    classifier_ridge: float = 1.0,
    nu: float = 1e-5,
    kernel_ridge: float = 1e-2,
    iterations: int = 5,
) -> tuple[Tensor, Tensor]:
    """Alternate between W, P and B of :class:`SDH`; no step ever increases the objective.

    W and P are ridge regressions. For B, discrete cyclic coordinate descent starts from the signs of the
    kernel's prediction, and an image keeps its former code if that is better.

    Args:
        kernel: Phi, float64 ``(N, M)``.
        labels: Y, float64 ``(N, C)``.
        start: The first B ``(N, bits)`` of -1 and 1.
        classifier_ridge: lambda, positive.
        nu: The weight of the fit to the kernel, positive.
        kernel_ridge: delta, positive.
        iterations: The largest number of rounds, not negative.

    Returns:
        B ``(N, bits)``, and P ``(M, bits)``, the regression of this B.

    Raises:
        TypeError: ``iterations`` is not an integer.
        ValueError: A setting is out of range.

    Example:
        >>> labels = torch.eye(2, dtype=torch.float64).repeat(8, 1)
        >>> start = torch.randn(16, 4, dtype=torch.float64).sign()
        >>> signs, projection = discrete_codes(labels, labels, start)
        >>> signs.shape, projection.shape
        (torch.Size([16, 4]), torch.Size([2, 4]))
    """
    check_integer("iterations", iterations, 0)
    check_positive(classifier_ridge=classifier_ridge, nu=nu, kernel_ridge=kernel_ridge)
    signs = start
    projection = ridge_classifier(kernel, signs, kernel_ridge)
    for _ in range(iterations):
        classifier = ridge_classifier(signs, labels, classifier_ridge)
        hashed = kernel @ projection
        candidates = dsdh_codes(hashed, labels, classifier, nu)
        old = (labels - signs @ classifier).square().sum(1) + nu * (signs - hashed).square().sum(1)
        new = (labels - candidates @ classifier).square().sum(1) + nu * (candidates - hashed).square().sum(1)
        candidates = torch.where((new < old)[:, None], candidates, signs)
        if torch.equal(candidates, signs):
            break
        signs = candidates
        projection = ridge_classifier(kernel, signs, kernel_ridge)
    return signs, projection


def _with_constant(kernel: Tensor) -> Tensor:
    """Append a column of ones."""
    return torch.cat([kernel, kernel.new_ones(kernel.shape[0], 1)], 1)
