"""Supervised hashing of features without a network: KSH, SDH and ITQ-CCA, the baselines of deep hashing.

The estimators follow scikit-learn: settings in the constructor, ``fit(features, labels)``,
``transform(features)``, and learned values in attributes that end in ``_``. They compute in float64 on the
CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hybridhash._checks import check_integer, check_positive
from hybridhash.codes import sign
from hybridhash.labels import as_labels, labelled, similar, to_multi_hot
from hybridhash.shallow.discrete import dsdh_codes, ridge_classifier
from hybridhash.shallow.unsupervised import as_features, itq_rotation, random_normal

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ITQCCA", "KSH", "SDH", "FeatureHash", "GaussianKernel", "canonical_directions", "discrete_codes"]


class FeatureHash:
    """The base class of :class:`KSH`, :class:`SDH` and :class:`ITQCCA`: checks, ``fit`` and ``transform``.

    Args:
        bits: The code length.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def fit(self, features: Tensor, labels: Tensor, *, generator: torch.Generator | None = None) -> Self:
        """Learn the hash functions, and forget what was learned before.

        Images without a label (id -1, or a row of zeros) are similar to nothing, but the kernel of KSH and
        SDH may draw them as anchors.

        Args:
            features: The features ``(N, D)``.
            labels: Class ids ``(N,)`` or multi-hot labels ``(N, C)``.
            generator: The source of all random choices.

        Returns:
            The estimator itself.

        Raises:
            TypeError: Labels are no tensor, or ids or a setting are not integers.
            ValueError: Features are not ``(N, D)``, not finite or all the same; labels have another length;
                all labelled images have the same labels; there are no more labelled images than bits; or a
                setting is out of range.
        """
        x = as_features(features, "features")
        labels = as_labels(labels, length=x.shape[0]).cpu()
        check_integer("bits", self.bits, 1)
        if bool((x == x[0]).all()):
            raise ValueError(f"all {x.shape[0]} rows of features are the same: there is nothing to learn")
        has_label = labelled(labels)
        count = int(has_label.sum())
        if count <= self.bits:
            raise ValueError(
                f"{type(self).__name__} needs more labelled images than bits, got {count} for {self.bits} "
                "bits"
            )
        hot = _multi_hot(labels[has_label])
        if bool((hot == hot[0]).all()):
            raise ValueError("all labelled images have the same labels: there is nothing to tell apart")
        self._learn(x, has_label, hot, generator)
        self.num_features_ = x.shape[1]
        return self

    def transform(self, features: Tensor) -> Tensor:
        """Compute the codes of features.

        Args:
            features: The features ``(N, D)``.

        Returns:
            Real-valued codes float32 ``(N, bits)`` on the device of the features; a bit is 1 above 0.

        Raises:
            RuntimeError: ``fit`` was not called.
            ValueError: Features are not ``(N, D)`` with the width of those in ``fit``, or not finite.
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
        """Call ``fit`` and return the codes of the same features."""
        return self.fit(features, labels, generator=generator).transform(features)

    def _learn(
        self, features: Tensor, has_label: Tensor, hot: Tensor, generator: torch.Generator | None
    ) -> None:
        """Learn from checked features.

        Args:
            features: float64 ``(N, D)``.
            has_label: bool ``(N,)``.
            hot: float64 ``(L, C)``, the multi-hot labels of the labelled images.
            generator: The source of all random choices.
        """
        raise NotImplementedError

    def _codes(self, features: Tensor) -> Tensor:
        """Return real-valued codes ``(N, bits)`` of float64 features ``(N, D)``."""
        raise NotImplementedError


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
        check_integer("num_anchors", num_anchors, 1, n, advice=f"they are drawn from {n} images")
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


class KSH(FeatureHash):
    r"""Learn kernel hash functions bit by bit so that inner products of codes follow the labels.

    .. math::
        \min_H \lVert r S - H H^T \rVert_F^2, \quad H = \mathrm{sign}(\bar K A)

    for r bits, where S is 1 for shared labels and -1 elsewhere and :math:`\bar K` is a centred kernel to
    anchors. Each column a of A maximises :math:`h^T R h` for the residual of the earlier bits,
    :math:`R = r S - \sum h_t h_t^T`. It is first relaxed to :math:`a^T \bar K^T R \bar K a` with
    :math:`|\bar K a|^2 = L`, an eigenproblem. Accelerated gradient descent then refines it with
    :math:`2 \sigma(\bar K a) - 1` in place of the sign; the result is kept where it is better after the sign.
    Descent uses the coordinates :math:`(\bar K^T \bar K)^{1/2} a`, where the authors take a itself; the
    objective is the same.

    S is stored as one entry for each two sets of labels. So memory is L x num_anchors and, for multi-label
    images, the square of the number of different label sets. It is not L^2, and no subset must be drawn.

    Args:
        bits: The code length.
        num_anchors: The number of images that the kernel compares with, 300 in the paper.
        width: The width of the Gaussian. None takes the root mean square distance to the anchors, as the
            authors do.
        iterations: The largest number of steps of gradient descent for each bit. 0 keeps the eigenvectors.

    Attributes:
        kernel_: The :class:`GaussianKernel`.
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
        self, features: Tensor, has_label: Tensor, hot: Tensor, generator: torch.Generator | None
    ) -> None:
        check_integer("iterations", self.iterations, 0)
        affinity = _Affinity(hot)
        if bool((affinity.sets > 0).all()):
            raise ValueError("all labelled images share a label: KSH needs some that share none")
        self.kernel_ = GaussianKernel(features, self.num_anchors, self.width, generator)
        kernel = self.kernel_(features[has_label])
        u, scale, v = torch.linalg.svd(kernel, full_matrices=False)
        rank = int((scale > scale[0] * max(kernel.shape) * torch.finfo(scale.dtype).eps).sum())
        if rank == 0:
            raise ValueError(
                f"the kernel is constant: width {self.kernel_.width} is too large for the features"
            )
        u = u[:, :rank]
        to_projection = (v[:rank] / scale[:rank, None]).T
        # In the basis of U the eigenproblem of the paper is an ordinary one, and descent is well conditioned.
        quadratic = self.bits * affinity.quadratic(u)
        count = kernel.shape[0]
        signs = kernel.new_zeros(count, self.bits)
        columns = []
        for k in range(self.bits):
            earlier = signs[:, :k]

            def residual(y: Tensor, earlier: Tensor = earlier) -> Tensor:
                return self.bits * affinity(y) - earlier @ (earlier.T @ y)

            # The relaxed bit is the leading eigenvector; descent refines it, and the better of both stays.
            start = torch.linalg.eigh(quadratic).eigenvectors[:, -1] * count**0.5
            column = _smoothed(u, residual, start, self.iterations)
            rivals = [(a, sign(u @ a)) for a in (start, column)]
            a, h = max(rivals, key=lambda rival: float(rival[1] @ residual(rival[1])))
            columns.append(to_projection @ a)
            signs[:, k] = h
            quadratic -= torch.outer(u.T @ h, h @ u)
        self.projection_ = torch.stack(columns, 1)

    def _codes(self, features: Tensor) -> Tensor:
        return self.kernel_(features) @ self.projection_


class SDH(FeatureHash):
    r"""Learn codes from which a linear classifier reads the labels (supervised discrete hashing).

    .. math::
        \min_{B, W, P} \lVert Y - B W \rVert_F^2 + \lambda \lVert W \rVert_F^2
            + \nu (\lVert B - \Phi P \rVert_F^2 + \delta \lVert P \rVert_F^2), \quad B \in \{-1, 1\}

    where :math:`\Phi` is a Gaussian kernel to anchors with a constant column. Codes are :math:`\Phi P`. W, P
    and B are updated in turn (:func:`discrete_codes`). Supervised *deep* hashing has the same initials; it is
    :class:`hybridhash.losses.SupervisedDHLoss`.

    Args:
        bits: The code length.
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


class _Affinity:
    """The matrix S of KSH, ``(L, L)`` with 1 for shared labels and -1 elsewhere.

    Rows with the same labels are equal, so S is stored as one entry for each two sets of labels.

    Args:
        hot: Multi-hot labels ``(L, C)``.

    Attributes:
        sets: ``(K, K)``, the entry of S for each two of the K different sets of labels.
        set_of_row: int64 ``(L,)``, the number of the set of each row.
    """

    def __init__(self, hot: Tensor) -> None:
        label_sets, self.set_of_row = torch.unique(hot, dim=0, return_inverse=True)
        self.sets = torch.where(similar(label_sets > 0, label_sets > 0), 1.0, -1.0).double()

    def _sums(self, values: Tensor) -> Tensor:
        """Sum the rows of each set of labels."""
        return values.new_zeros(len(self.sets), *values.shape[1:]).index_add_(0, self.set_of_row, values)

    def __call__(self, y: Tensor) -> Tensor:
        """Return ``S y`` for ``(L,)`` or ``(L, K)``."""
        return (self.sets @ self._sums(y))[self.set_of_row]

    def quadratic(self, u: Tensor) -> Tensor:
        """Return ``U^T S U``."""
        sums = self._sums(u)
        return sums.T @ self.sets @ sums


def _smoothed(basis: Tensor, residual: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> Tensor:
    """Minimise ``-y^T R y`` over a, with ``y = 2 sigmoid(U a) - 1``, by Nesterov's accelerated gradient.

    The step is the inverse of a bound on the curvature, which doubles until it holds (Beck, Teboulle 2009).

    Args:
        basis: U, ``(L, rank)``.
        residual: The function ``y -> R y``.
        start: The first a, ``(rank,)``.
        iterations: The largest number of steps.
    """

    def value(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.tanh(basis @ a / 2)  # 2 sigmoid(U a) - 1
        residual_y = residual(y)
        return -(y @ residual_y), y, residual_y

    previous = start
    current = start
    cost = value(start)[0]
    bound = 1.0
    last_momentum = 0.0
    momentum = 1.0
    for _ in range(iterations):
        # Look ahead along the last step, and take the gradient there.
        probe = current + (last_momentum - 1) / momentum * (current - previous)
        probe_cost, y, residual_y = value(probe)
        gradient = -(basis.T @ (residual_y * (1 - y.square())))
        square = gradient @ gradient
        # Halve the step until the cost falls as much as the bound on the curvature promises.
        for _ in range(50):
            candidate = probe - gradient / bound
            new_cost = value(candidate)[0]
            if new_cost <= probe_cost - square / (2 * bound):
                break
            bound *= 2
        else:
            break  # no step is small enough for the rounding: this is the minimum
        previous = current
        current = candidate
        last_momentum = momentum
        momentum = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        if abs(float(new_cost - cost)) <= 1e-2 * len(basis):
            break
        cost = new_cost
    return current


def _with_constant(kernel: Tensor) -> Tensor:
    """Append a column of ones."""
    return torch.cat([kernel, kernel.new_ones(kernel.shape[0], 1)], 1)


def _multi_hot(labels: Tensor) -> Tensor:
    """Return multi-hot labels float64 ``(N, C)``, with a column for each class id that occurs."""
    if labels.ndim == 1:
        ids, columns = torch.unique(labels, return_inverse=True)
        labels = to_multi_hot(columns, len(ids))
    return labels.double()
