"""Supervised hashing of features without a network: KSH, SDH and ITQ-CCA, the baselines of deep hashing.

Estimators in scikit-learn's manner: settings in the constructor, what is learned in attributes that end in
``_``, ``fit(features, labels)`` and ``transform(features)``. They compute in float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hybridhash.labels import as_labels, similar, to_multi_hot
from hybridhash.shallow.discrete import dsdh_codes, ridge_classifier
from hybridhash.shallow.unsupervised import as_features, itq_rotation, random_normal

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ITQCCA", "KSH", "SDH", "FeatureHash", "GaussianKernel", "canonical_directions", "discrete_codes"]


class FeatureHash:
    """What :class:`KSH`, :class:`SDH` and :class:`ITQCCA` share: checks, ``transform``, ``fit_transform``.

    Args:
        bits: code length.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def fit(self, features: Tensor, labels: Tensor, *, generator: torch.Generator | None = None) -> Self:
        """Learn the hash functions; what was learned before is forgotten.

        Images without a label (id -1, or a row of zeros) teach no similarity. The kernel of KSH and SDH
        learns from them too: they are drawn as anchors.

        Args:
            features: ``(N, D)``.
            labels: class ids ``(N,)`` or multi-hot ``(N, C)``.
            generator: of all random choices.

        Returns:
            The estimator itself.

        Raises:
            TypeError: labels that are no tensor, or ids that are not integers.
            ValueError: features that are not ``(N, D)``, not finite or all the same; labels of another
                length; no two images that differ in their labels; no more labelled images than bits; a
                setting out of range.
        """
        x = as_features(features, "features")
        ids_or_rows = as_labels(labels, length=x.shape[0]).cpu()
        if self.bits < 1:
            raise ValueError(f"bits must be at least 1, got {self.bits}")
        if bool((x == x[0]).all()):
            raise ValueError(f"all {x.shape[0]} rows of features are the same: there is nothing to learn")
        labelled = ids_or_rows >= 0 if ids_or_rows.ndim == 1 else ids_or_rows.any(1)
        if int(labelled.sum()) <= self.bits:
            raise ValueError(
                f"{type(self).__name__} needs more labelled images than bits, got {int(labelled.sum())} for "
                f"{self.bits} bits"
            )
        hot = _multi_hot(ids_or_rows[labelled])
        if bool((hot == hot[0]).all()):
            raise ValueError("all labelled images have the same labels: there is nothing to tell apart")
        self._learn(x, labelled, hot, generator)
        self.num_features_ = x.shape[1]
        return self

    def transform(self, features: Tensor) -> Tensor:
        """Codes of features.

        Args:
            features: ``(N, D)``.

        Returns:
            float32 ``(N, bits)``, on the device of the features; the bit is 1 where it is above 0.

        Raises:
            RuntimeError: ``fit`` was not called.
            ValueError: features that are not ``(N, D)`` of the width of those in ``fit``, or not finite.
        """
        if not hasattr(self, "num_features_"):
            raise RuntimeError(f"{type(self).__name__} is not fitted: call fit(features, labels) first")
        x = as_features(features, "features")
        if x.shape[1] != self.num_features_:
            raise ValueError(f"features are {x.shape[1]} wide, those of fit were {self.num_features_}")
        return self._codes(x).to(features.device, torch.float32)

    def fit_transform(
        self, features: Tensor, labels: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """``fit``, then the codes of the same features."""
        return self.fit(features, labels, generator=generator).transform(features)

    def _learn(
        self, features: Tensor, labelled: Tensor, hot: Tensor, generator: torch.Generator | None
    ) -> None:
        """From all features, which of them are labelled, bool ``(N,)``, and the labels of these alone."""
        raise NotImplementedError

    def _codes(self, features: Tensor) -> Tensor:
        """Real-valued codes ``(N, bits)`` of float64 features ``(N, D)``."""
        raise NotImplementedError


class GaussianKernel:
    """``exp(-|x - anchor|^2 / (2 width^2))`` to anchors, less its mean over the features it was made from.

    Args:
        features: float64 ``(N, D)``.
        num_anchors: how many of them are drawn as anchors.
        width: in units of the features; None takes the root mean square distance to the anchors.
        generator: of the anchors.

    Attributes:
        anchors: ``(num_anchors, D)``.
        width: a number.
        mean: ``(num_anchors,)``.

    Raises:
        ValueError: ``num_anchors`` is not 1 to N, ``width`` is not positive.
    """

    def __init__(
        self, features: Tensor, num_anchors: int, width: float | None, generator: torch.Generator | None
    ) -> None:
        n = features.shape[0]
        if not 1 <= num_anchors <= n:
            raise ValueError(
                f"num_anchors must be 1 to {n}, the number of images they are drawn from, got {num_anchors}"
            )
        if width is not None and not width > 0:
            raise ValueError(f"width must be positive, got {width}")
        self.anchors = features[random_normal(n, generator=generator).argsort()[:num_anchors]]
        squares = torch.cdist(features, self.anchors).square()
        self.width = float(squares.mean().sqrt()) if width is None else float(width)
        self.mean = torch.zeros(num_anchors, dtype=torch.float64)
        self.mean = self(features).mean(0)

    def __call__(self, features: Tensor) -> Tensor:
        squares = torch.cdist(features, self.anchors).square()
        return torch.exp(-squares / (2 * self.width**2)) - self.mean


class ITQCCA(FeatureHash):
    r"""Directions in which features and labels correlate most, rotated so that they are near to their signs.

    With canonical correlations :math:`\lambda_k` and directions w_k,

    .. math::
        X^T Y (Y^T Y + \rho I)^{-1} Y^T X w_k = \lambda_k^2 (X^T X + \rho I) w_k, \quad
        V = (X - m) [\lambda_1 w_1, \dots, \lambda_K w_K], \quad \mathrm{codes} = V R

    where the products stand for covariances and R is :func:`itq_rotation`. Only min(D, C - 1) directions
    of images with one label each correlate with it (C of multi-hot rows). The others weigh 0: further bits
    are further cuts of the same few dimensions, up to D bits.

    Args:
        bits: code length, at most the width of the features.
        regularization: rho, added to the variance of each feature and label, so in their squared units.
        iterations: of ITQ at most.

    Attributes:
        mean_: of the labelled features, ``(D,)``.
        correlations_: canonical, in falling order, ``(min(D, C),)``.
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
        self, features: Tensor, labelled: Tensor, hot: Tensor, generator: torch.Generator | None
    ) -> None:
        _check_not_negative(iterations=self.iterations)
        width = features.shape[1]
        if self.bits > width:
            raise ValueError(
                f"ITQCCA gives at most {width} bits, the width of the features, got bits={self.bits}: "
                "KSH and SDH have no such limit"
            )
        x = features[labelled]
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
    """Canonical correlation analysis of features with labels, on the side of the features.

    Args:
        features: float64 ``(N, D)``.
        labels: float64 ``(N, C)``.
        regularization: positive, added to the diagonal of both covariances.

    Returns:
        Directions ``(D, min(D, C))`` of unit regularised variance, and their correlations in falling order.

    Raises:
        ValueError: ``regularization`` is not positive, or too small for features that depend on each other.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.0, -1.0], [2.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
        >>> canonical_directions(x, x[:, :1] / 2, 1e-9)[1]
        tensor([1.0000], dtype=torch.float64)
    """
    if not regularization > 0:
        raise ValueError(f"regularization must be positive, got {regularization}")
    x, y = features - features.mean(0), labels - labels.mean(0)
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


class KSH(FeatureHash):
    r"""Kernel hash functions, learned bit by bit so that inner products of codes follow the labels.

    .. math::
        \min_H \lVert r S - H H^T \rVert_F^2, \quad H = \mathrm{sign}(\bar K A)

    for r bits, S of 1 where labels are shared and -1 elsewhere, and a centred kernel :math:`\bar K` to
    anchors. Each column a of A maximises :math:`h^T R h` over what the bits before left,
    :math:`R = r S - \sum h_t h_t^T`: first relaxed to :math:`a^T \bar K^T R \bar K a` with
    :math:`|\bar K a|^2 = L` (an eigenproblem), then with :math:`2 \sigma(\bar K a) - 1` in place of the
    sign, by accelerated gradient descent, which is kept where it is better after the sign. Descent is in
    the coordinates :math:`(\bar K^T \bar K)^{1/2} a`, where the authors take a itself: the same objective.

    S is kept as one entry for two sets of labels, so memory is L x num_anchors and, for multi-label images,
    the square of the number of different label sets: not L^2, and there is no need to draw a subset.

    Args:
        bits: code length.
        num_anchors: images that the kernel compares with, 300 in the paper.
        width: of the Gaussian; None takes the root mean square distance to the anchors, as the authors do.
        iterations: of gradient descent for each bit at most; 0 stays with the eigenproblem.

    Attributes:
        kernel_: the :class:`GaussianKernel`.
        projection_: A, ``(num_anchors, bits)``.

    Source: Liu, Wang, Ji, Jiang, Chang, Supervised Hashing with Kernels, CVPR 2012, algorithm 1, and the
    authors' ColumbiaDVMM/Supervised-Hashing-with-Kernels.

    Example:
        >>> labels = torch.arange(60) % 3
        >>> features = torch.eye(3)[labels] + 0.1 * torch.randn(60, 3)
        >>> codes = KSH(bits=8, num_anchors=20).fit(features, labels).transform(features)
        >>> codes.shape
        torch.Size([60, 8])
    """

    def __init__(
        self, bits: int, *, num_anchors: int = 300, width: float | None = None, iterations: int = 500
    ) -> None:
        super().__init__(bits)
        self.num_anchors = num_anchors
        self.width = width
        self.iterations = iterations

    def _learn(
        self, features: Tensor, labelled: Tensor, hot: Tensor, generator: torch.Generator | None
    ) -> None:
        _check_not_negative(iterations=self.iterations)
        affinity = _Affinity(hot)
        if bool((affinity.sets > 0).all()):
            raise ValueError("all labelled images share a label: KSH needs some that share none")
        self.kernel_ = GaussianKernel(features, self.num_anchors, self.width, generator)
        kernel = self.kernel_(features[labelled])
        u, scale, v = torch.linalg.svd(kernel, full_matrices=False)
        rank = int((scale > scale[0] * max(kernel.shape) * torch.finfo(scale.dtype).eps).sum())
        if rank == 0:
            raise ValueError(
                f"the kernel is constant: width {self.kernel_.width} is too large for the features"
            )
        u, back = u[:, :rank], (v[:rank] / scale[:rank, None]).T
        # In the basis of U the eigenproblem of the paper is an ordinary one, and descent is well conditioned.
        quadratic = self.bits * affinity.quadratic(u)
        count = kernel.shape[0]
        signs = kernel.new_zeros(count, self.bits)
        columns = []
        for k in range(self.bits):
            done = signs[:, :k]

            def residual(y: Tensor, done: Tensor = done) -> Tensor:
                return self.bits * affinity(y) - done @ (done.T @ y)

            start = torch.linalg.eigh(quadratic).eigenvectors[:, -1] * count**0.5
            column = _smoothed(u, residual, start, self.iterations)
            rivals = [(a, _sign(u @ a)) for a in (start, column)]
            a, h = max(rivals, key=lambda rival: float(rival[1] @ residual(rival[1])))
            columns.append(back @ a)
            signs[:, k] = h
            quadratic -= torch.outer(u.T @ h, h @ u)
        self.projection_ = torch.stack(columns, 1)

    def _codes(self, features: Tensor) -> Tensor:
        return self.kernel_(features) @ self.projection_


class SDH(FeatureHash):
    r"""Supervised discrete hashing: codes from which a linear classifier reads the labels.

    .. math::
        \min_{B, W, P} \lVert Y - B W \rVert_F^2 + \lambda \lVert W \rVert_F^2
            + \nu (\lVert B - \Phi P \rVert_F^2 + \delta \lVert P \rVert_F^2), \quad B \in \{-1, 1\}

    for features :math:`\Phi` of a Gaussian kernel to anchors and a constant; codes are :math:`\Phi P`. W, P
    and B take turns (:func:`discrete_codes`). Not the supervised *deep* hashing of the same initials, which
    is :class:`hybridhash.losses.SupervisedDHLoss`.

    Args:
        bits: code length.
        num_anchors: images that the kernel compares with, 1000 in the paper.
        width: of the Gaussian; None takes the root mean square distance to the anchors.
        classifier_ridge: lambda.
        nu: weight of what the kernel can express against the labels.
        kernel_ridge: delta.
        iterations: rounds at most; ends early when no bit changes.

    Attributes:
        kernel_: the :class:`GaussianKernel`.
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
        self, features: Tensor, labelled: Tensor, hot: Tensor, generator: torch.Generator | None
    ) -> None:
        self.kernel_ = GaussianKernel(features, self.num_anchors, self.width, generator)
        start = _sign(random_normal(hot.shape[0], self.bits, generator=generator))
        _, self.projection_ = discrete_codes(
            _with_constant(self.kernel_(features[labelled])),
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
    """The alternation of :class:`SDH`; no step of it ever increases the objective.

    W and P are ridge regressions. For B, discrete cyclic coordinate descent starts from the signs of what
    the kernel says, and an image keeps its former code if that is better.

    Args:
        kernel: Phi, float64 ``(N, M)``.
        labels: Y, float64 ``(N, C)``.
        start: the first B, -1 and 1, ``(N, bits)``.
        classifier_ridge: lambda, positive.
        nu: positive.
        kernel_ridge: delta, positive.
        iterations: rounds at most, not negative.

    Returns:
        B ``(N, bits)`` and P ``(M, bits)``, which is the regression of this B.

    Raises:
        ValueError: a setting out of range.

    Example:
        >>> labels = torch.eye(2, dtype=torch.float64).repeat(8, 1)
        >>> start = torch.randn(16, 4, dtype=torch.float64).sign()
        >>> signs, projection = discrete_codes(labels, labels, start)
        >>> signs.shape, projection.shape
        (torch.Size([16, 4]), torch.Size([2, 4]))
    """
    _check_not_negative(iterations=iterations)
    for name, value in (("classifier_ridge", classifier_ridge), ("nu", nu), ("kernel_ridge", kernel_ridge)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    signs = start
    projection = ridge_classifier(kernel, signs, kernel_ridge)
    for _ in range(iterations):
        classifier = ridge_classifier(signs, labels, classifier_ridge)
        hashed = kernel @ projection
        found = dsdh_codes(hashed, labels, classifier, nu)
        old, new = (
            (labels - b @ classifier).square().sum(1) + nu * (b - hashed).square().sum(1)
            for b in (signs, found)
        )
        found = torch.where((new < old)[:, None], found, signs)
        if torch.equal(found, signs):
            break
        signs = found
        projection = ridge_classifier(kernel, signs, kernel_ridge)
    return signs, projection


class _Affinity:
    """S of KSH, ``(L, L)`` with 1 for shared labels and -1 elsewhere, from the different sets of labels."""

    def __init__(self, hot: Tensor) -> None:
        kinds, self.kind = torch.unique(hot, dim=0, return_inverse=True)
        self.sets = torch.where(similar(kinds > 0, kinds > 0), 1.0, -1.0).double()

    def _sums(self, values: Tensor) -> Tensor:
        """Of the rows of each set of labels."""
        return values.new_zeros(len(self.sets), *values.shape[1:]).index_add_(0, self.kind, values)

    def __call__(self, y: Tensor) -> Tensor:
        """``S y``, for ``(L,)`` or ``(L, K)``."""
        return (self.sets @ self._sums(y))[self.kind]

    def quadratic(self, u: Tensor) -> Tensor:
        """``U^T S U``."""
        sums = self._sums(u)
        return sums.T @ self.sets @ sums


def _smoothed(basis: Tensor, residual: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> Tensor:
    """Minimises ``-y^T R y``, ``y = 2 sigmoid(U a) - 1``, by Nesterov's method from ``start`` on.

    The step is the inverse of a bound on the curvature, which doubles until it holds (Beck, Teboulle 2009).
    """

    def value(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.tanh(basis @ a / 2)
        forced = residual(y)
        return -(y @ forced), y, forced

    previous = current = start
    cost, bound, momentum = value(start)[0], 1.0, (0.0, 1.0)
    for _ in range(iterations):
        probe = current + (momentum[0] - 1) / momentum[1] * (current - previous)
        at_probe, y, forced = value(probe)
        gradient = -(basis.T @ (forced * (1 - y.square())))
        square = gradient @ gradient
        for _ in range(50):
            candidate = probe - gradient / bound
            new_cost = value(candidate)[0]
            if new_cost <= at_probe - square / (2 * bound):
                break
            bound *= 2
        else:
            break  # no step is small enough for the rounding: this is the minimum
        previous, current = current, candidate
        momentum = (momentum[1], (1 + (1 + 4 * momentum[1] ** 2) ** 0.5) / 2)
        if abs(float(new_cost - cost)) <= 1e-2 * len(basis):
            break
        cost = new_cost
    return current


def _sign(values: Tensor) -> Tensor:
    """-1 and 1, -1 at 0 as everywhere in the package."""
    return torch.where(values > 0, 1.0, -1.0).double()


def _with_constant(kernel: Tensor) -> Tensor:
    return torch.cat([kernel, kernel.new_ones(kernel.shape[0], 1)], 1)


def _multi_hot(labels: Tensor) -> Tensor:
    """float64 ``(N, C)``; of class ids, the C that occur."""
    if labels.ndim == 1:
        ids, place = torch.unique(labels, return_inverse=True)
        labels = to_multi_hot(place, len(ids))
    return labels.double()


def _check_not_negative(**values: int) -> None:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
