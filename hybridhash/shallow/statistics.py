"""Mean, covariance and a sample of features, in one pass and bounded memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridhash._checks import check_integer, generator_device

__all__ = ["FeatureStatistics"]


class FeatureStatistics:
    """Compute number, mean, covariance and a uniform sample of features that come in batches.

    Memory does not grow with their number: D^2 float64 for the covariance, ``sample_size`` rows of float32
    for the sample. Batches are joined by the pairwise update of Chan, Golub and LeVeque (1979), which loses
    no digits where the mean is large against the spread. If there are at most ``sample_size`` rows, the
    sample is all of them in their order.

    Args:
        covariance: Whether to keep the ``(D, D)`` matrix. False keeps only the total variance.
        sample_size: The number of rows of the sample. 0 keeps none.
        generator: The source of randomness of the sample.

    Attributes:
        count: The number of rows so far.
        mean: float64 ``(D,)``.
        variances: float64 ``(D,)``, with the divisor ``count - 1``.
        total_variance: The sum of the variances of all features.
        sample: float32 ``(min(count, sample_size), D)``.

    Raises:
        TypeError: ``sample_size`` is not an integer.
        ValueError: ``sample_size`` is negative.

    Example:
        >>> x = torch.randn(100, 4)
        >>> statistics = FeatureStatistics()
        >>> for batch in x.split(30):
        ...     statistics.update(batch)
        >>> torch.allclose(statistics.covariance, torch.cov(x.double().T))
        True
    """

    def __init__(
        self,
        *,
        covariance: bool = True,
        sample_size: int = 10_000,
        generator: torch.Generator | None = None,
    ) -> None:
        self.sample_size = check_integer("sample_size", sample_size, 0)
        self.count = 0
        self._batches = 0
        self._generator = generator
        self._device = generator_device(generator)
        self._full = covariance
        self._mean = torch.empty(0, dtype=torch.float64)
        # Sums of products of deviations (D, D), or of their squares (D,).
        self._scatter = torch.empty(0, dtype=torch.float64)
        # Rows with a random key each; the smallest keys stay.
        self._keys = torch.empty(0, dtype=torch.float64)
        self._rows = torch.empty(0)

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """float64 ``(D, D)``, with the divisor ``count - 1``; it needs two rows."""
        if not self._full:
            raise ValueError("no covariance was kept: make FeatureStatistics(covariance=True)")
        return self._scatter / (self.count - 1)

    @property
    def variances(self) -> Tensor:
        return self._squares() / max(self.count - 1, 1)

    @property
    def total_variance(self) -> float:
        return float(self._squares().sum()) / max(self.count - 1, 1)

    @property
    def sample(self) -> Tensor:
        return self._rows

    def update(self, features: Tensor) -> None:
        """Add a batch.

        Args:
            features: Floating-point features ``(B, D)`` on any device.

        Raises:
            TypeError: The batch is no floating-point tensor.
            ValueError: It is not ``(B, D)`` with the width of the others, or holds NaN or infinity. The
                message names the batch, counted from 0, and nothing of it is added.
        """
        self._check(features)
        self._batches += 1
        size = features.shape[0]
        if size == 0:
            return
        x = features.detach()
        self._draw(x)
        # Not every accelerator has float64.
        x = x.double() if x.device.type in ("cpu", "cuda") else x.cpu().double()
        mean = x.mean(0)
        centred = x - mean
        scatter = centred.T @ centred if self._full else centred.square().sum(0)
        self._join(size, mean, scatter)

    def merge(self, other: FeatureStatistics) -> None:
        """Add the rows of other statistics, which were made with the same settings."""
        if other.count == 0:
            return
        self._join(other.count, other._mean, other._scatter.clone())
        self._keep(other._keys, other._rows)

    def cpu(self) -> FeatureStatistics:
        """Move all tensors to the CPU, in place, and return the statistics."""
        self._mean = self._mean.cpu()
        self._scatter = self._scatter.cpu()
        self._keys = self._keys.cpu()
        self._rows = self._rows.cpu()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the generator, which cannot be pickled: other processes merge statistics, not draw."""
        return {**vars(self), "_generator": None}

    def _squares(self) -> Tensor:
        """Return the sum of the squared deviations of each feature."""
        return self._scatter.diagonal() if self._full else self._scatter

    def _join(self, size: int, mean: Tensor, scatter: Tensor) -> None:
        if self.count == 0:
            self.count = size
            self._mean = mean
            self._scatter = scatter
            return
        total = self.count + size
        step = mean - self._mean
        between = torch.outer(step, step) if self._full else step.square()
        # In place: a second matrix of the size of the covariance is made by ``scatter`` alone.
        self._scatter += scatter
        self._scatter += between.mul_(self.count * size / total)
        self._mean = self._mean + step * (size / total)
        self.count = total

    def _draw(self, features: Tensor) -> None:
        """Give each row a random key; the rows with the smallest keys are the sample."""
        if self.sample_size == 0:
            return
        generator, device = self._generator, self._device
        keys = torch.rand(len(features), dtype=torch.float64, generator=generator, device=device).cpu()
        if len(self._keys) == self.sample_size:
            near = keys < self._keys.max()
            keys = keys[near]
            features = features[near.to(features.device)]
        self._keep(keys, features.to(torch.float32, copy=True))

    def _keep(self, keys: Tensor, rows: Tensor) -> None:
        if len(self._keys):
            keys = torch.cat([self._keys, keys])
            rows = torch.cat([self._rows, rows])
        if len(keys) > self.sample_size:
            kept = keys.topk(self.sample_size, largest=False, sorted=False).indices.sort().values
            keys = keys[kept]
            rows = rows[kept.to(rows.device)]
        self._keys = keys
        self._rows = rows

    def _check(self, features: Tensor) -> None:
        name = f"features of batch {self._batches}"
        if not isinstance(features, Tensor) or not features.is_floating_point():
            got = features.dtype if isinstance(features, Tensor) else type(features).__name__
            raise TypeError(f"{name} must be a floating-point tensor (B, D), got {got}")
        if features.ndim != 2 or features.shape[1] == 0:
            raise ValueError(
                f"{name} must be pooled to (B, D), got {tuple(features.shape)}: "
                "build the model with global_pool='avg'"
            )
        if self.count and features.shape[1] != len(self._mean):
            raise ValueError(f"{name} are {features.shape[1]} wide, those before {len(self._mean)}")
        bad = ~features.isfinite().all(1)
        if bool(bad.any()):
            rows = bad.nonzero()[:, 0]
            raise ValueError(
                f"{name} hold NaN or infinity in {len(rows)} of {len(bad)} rows, the first is row "
                f"{int(rows[0])}: check that image, and the model"
            )
