"""KSH: kernel functions learned bit by bit from pairs that share a label and pairs that do not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hybridhash._checks import check_integer
from hybridhash.codes import sign
from hybridhash.labels import similar
from hybridhash.shallow.estimator import FeatureHash
from hybridhash.shallow.kernel import GaussianKernel

__all__ = ["KSH"]


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
        bits: The code length, 1 to 4,096.
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
            raise ValueError("all labelled rows share a label: KSH needs some that share none")
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
