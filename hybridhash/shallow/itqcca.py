"""ITQ-CCA: directions in which features and labels correlate, rotated by ITQ."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridhash._checks import check_integer, check_positive
from hybridhash.shallow.estimator import FeatureHash
from hybridhash.shallow.unsupervised import itq_rotation

__all__ = ["ITQCCA", "canonical_directions"]


class ITQCCA(FeatureHash):
    r"""Project on the directions in which features and labels correlate most, and rotate them by ITQ.

    With canonical correlations :math:`\lambda_k` and directions w_k,

    .. math::
        X^T Y (Y^T Y + \rho I)^{-1} Y^T X w_k = \lambda_k^2 (X^T X + \rho I) w_k, \quad
        V = (X - m) [\lambda_1 w_1, \dots, \lambda_K w_K], \quad \mathrm{codes} = V R

    where the products stand for covariances and R is :func:`itq_rotation`. With one label per image only
    min(D, C - 1) directions correlate with the labels (min(D, C) with multi-hot rows). The others weigh 0, so
    further bits, up to D, cut the same few dimensions again.

    Args:
        bits: The code length, at most the width of the features.
        regularization: rho, which is added to the variance of each feature and label, in their squared units.
        iterations: The largest number of rounds of ITQ.

    Attributes:
        mean_: The mean of the labelled features, ``(D,)``.
        correlations_: The canonical correlations in falling order, ``(min(D, C),)``.
        projection_: ``(D, bits)``, rotation included.

    Source: Gong, Lazebnik, Gordo, Perronnin, Iterative Quantization, TPAMI 2013, section 4 (rho 1e-4).

    Example:
        >>> labels = torch.arange(60) % 3
        >>> features = torch.eye(3)[labels].repeat(1, 4) + 0.1 * torch.randn(60, 12)
        >>> codes = ITQCCA(bits=4).fit(features, labels).transform(features)
        >>> codes.shape
        torch.Size([60, 4])
    """

    def __init__(self, bits: int, *, regularization: float = 1e-4, iterations: int = 50) -> None:
        super().__init__(bits)
        self.regularization = regularization
        self.iterations = iterations

    def _learn(
        self, features: Tensor, has_label: Tensor, hot: Tensor, generator: torch.Generator | None
    ) -> None:
        check_integer("iterations", self.iterations, 0)
        width = features.shape[1]
        if self.bits > width:
            raise ValueError(
                f"ITQCCA gives at most {width} bits, the width of the features, got bits={self.bits}: "
                "KSH and SDH have no such limit"
            )
        x = features[has_label]
        directions, self.correlations_ = canonical_directions(x, hot, self.regularization)
        kept = min(self.bits, directions.shape[1])
        weighted = x.new_zeros(width, self.bits)
        weighted[:, :kept] = (directions * self.correlations_)[:, :kept]
        self.mean_ = x.mean(0)
        rotation = itq_rotation((x - self.mean_) @ weighted, iterations=self.iterations, generator=generator)
        self.projection_ = weighted @ rotation

    def _codes(self, features: Tensor) -> Tensor:
        return (features - self.mean_) @ self.projection_


def canonical_directions(features: Tensor, labels: Tensor, regularization: float) -> tuple[Tensor, Tensor]:
    """Analyse the canonical correlations of features with labels, on the side of the features.

    Args:
        features: float64 ``(N, D)``.
        labels: float64 ``(N, C)``.
        regularization: A positive number that is added to the diagonal of both covariances.

    Returns:
        ``(directions, correlations)``: ``(D, min(D, C))`` of unit regularised variance, and
        ``(min(D, C),)`` in falling order.

    Raises:
        ValueError: ``regularization`` is not positive, or too small for features that depend on each other.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.0, -1.0], [2.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
        >>> canonical_directions(x, x[:, :1] / 2, 1e-9)[1]
        tensor([1.0000], dtype=torch.float64)
    """
    check_positive(regularization=regularization)
    x = features - features.mean(0)
    y = labels - labels.mean(0)
    roots = []
    for part in (x, y):
        covariance = part.T @ part / (part.shape[0] - 1)
        covariance.diagonal().add_(regularization)
        root, failed = torch.linalg.cholesky_ex(covariance)
        if bool(failed):
            raise ValueError(
                f"regularization {regularization} is too small for variances of up to "
                f"{float(covariance.diagonal().max()):.3g}: divide features by their deviation, or raise it"
            )
        roots.append(root)
    cross = x.T @ y / (x.shape[0] - 1)
    whitened = torch.linalg.solve_triangular(roots[0], cross, upper=False)
    whitened = torch.linalg.solve_triangular(roots[1], whitened.T, upper=False).T
    u, correlations, _ = torch.linalg.svd(whitened, full_matrices=False)
    return torch.linalg.solve_triangular(roots[0].T, u, upper=True), correlations
