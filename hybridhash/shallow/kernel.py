"""The Gaussian kernel to anchors, from which KSH and SDH compute their codes."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridhash._checks import check_integer, check_positive
from hybridhash.shallow.unsupervised import random_normal

__all__ = ["GaussianKernel"]


class GaussianKernel:
    """The kernel ``exp(-|x - anchor|^2 / (2 width^2))`` to anchors, minus its mean over the given features.

    Args:
        features: float64 ``(N, D)``.
        num_anchors: The number of features that are drawn as anchors.
        width: The width of the Gaussian, in units of the features. None takes the root mean square distance
            to the anchors.
        generator: The source of the anchors.

    Attributes:
        anchors: ``(num_anchors, D)``.
        width: The width of the Gaussian.
        mean: ``(num_anchors,)``.

    Raises:
        TypeError: ``num_anchors`` is not an integer.
        ValueError: ``num_anchors`` is not 1 to N, or ``width`` is not positive.
    """

    def __init__(
        self, features: Tensor, num_anchors: int, width: float | None, generator: torch.Generator | None
    ) -> None:
        n = features.shape[0]
        check_integer("num_anchors", num_anchors, 1, n, advice=f"they are drawn from {n} labelled rows")
        if width is not None:
            check_positive(width=width)
        self.anchors = features[random_normal(n, generator=generator).argsort()[:num_anchors]]
        squares = torch.cdist(features, self.anchors).square()
        self.width = float(squares.mean().sqrt()) if width is None else float(width)
        self.mean = torch.zeros(num_anchors, dtype=torch.float64)
        self.mean = self(features).mean(0)

    def __call__(self, features: Tensor) -> Tensor:
        squares = torch.cdist(features, self.anchors).square()
        return torch.exp(-squares / (2 * self.width**2)) - self.mean
