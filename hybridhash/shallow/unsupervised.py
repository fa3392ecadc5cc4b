"""Hashing without labels, on features: the closed forms and iterations of ITQ, SH and SpH.

:func:`hybridhash.fit_hash_layer` puts them into a network; these are its parts, in float64 on the CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "itq_rotation",
    "principal_directions",
    "random_rotation",
    "spectral_modes",
    "spherical_pivots",
]


def principal_directions(covariance: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Directions of largest variance, as PCA hashing has them.

    Args:
        covariance: symmetric ``(D, D)``.
        bits: number of directions, 1 to D.

    Returns:
        The directions ``(D, bits)``, orthonormal columns in order of falling variance, the entry of largest
        magnitude of each positive; and their variances ``(bits,)``. float64.

    Raises:
        ValueError: ``covariance`` is not square, ``bits`` is not 1 to D.

    Source: Wang, Kumar, Chang, Semi-Supervised Hashing, CVPR 2010 (PCAH).

    Example:
        >>> principal_directions(torch.diag(torch.tensor([1.0, 4.0, 2.0])), 2)[1]
        tensor([4., 2.], dtype=torch.float64)
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"covariance must be (D, D), got {tuple(covariance.shape)}")
    width = covariance.shape[0]
    if not 1 <= bits <= width:
        raise ValueError(f"bits must be 1 to {width}, the width of the features, got {bits}")
    variances, directions = torch.linalg.eigh(covariance.double())
    variances, directions = variances.flip(0)[:bits], directions.flip(1)[:, :bits]
    peaks = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return directions * peaks.sign(), variances


def random_rotation(bits: int, generator: torch.Generator | None = None) -> Tensor:
    """A random orthogonal matrix ``(bits, bits)``, float64, uniform over all of them.

    Example:
        >>> R = random_rotation(3)
        >>> torch.allclose(R.T @ R, torch.eye(3, dtype=torch.float64))
        True
    """
    q, r = torch.linalg.qr(random_normal(bits, bits, generator=generator))
    # Without the signs, Q would depend on the conventions of QR and not be uniform.
    rotation: Tensor = q * r.diagonal().sign()
    return rotation


def random_normal(*shape: int, generator: torch.Generator | None = None) -> Tensor:
    """N(0, 1), float64 on the CPU, wherever the generator is."""
    place = "cpu" if generator is None else generator.device
    return torch.randn(*shape, dtype=torch.float64, generator=generator, device=place).cpu()


def itq_rotation(
    projected: Tensor, *, iterations: int = 50, generator: torch.Generator | None = None
) -> Tensor:
    """Iterative quantisation: the rotation R that brings ``V R`` near to its signs.

    From a random rotation on, ``B = sign(V R)`` and the orthogonal Procrustes solution ``R = Q P^T`` of
    ``svd(B^T V) = P S Q^T`` take turns; neither ever increases ``|B - V R|_F^2``. Codes are
    ``sign(V R)``, with ``V = (X - mean) W`` of principal directions W, or of CCA with labels.

    Args:
        projected: centred, projected features V, ``(N, bits)``.
        iterations: rounds at most, 50 in the paper; ends early when no bit changes.
        generator: of the first rotation.

    Returns:
        R, orthogonal ``(bits, bits)``, float64 on the CPU.

    Raises:
        ValueError: ``projected`` is not ``(N, bits)`` or empty or not finite; ``iterations`` is negative.

    Source: Gong, Lazebnik, Iterative Quantization, CVPR 2011, section 2.2.

    Example:
        >>> V = torch.randn(100, 4)
        >>> R = itq_rotation(V).float()
        >>> codes = V @ R > 0
    """
    v = as_features(projected, "projected")
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}")
    rotation = random_rotation(v.shape[1], generator)
    previous = None
    for _ in range(iterations):
        positive = v @ rotation > 0
        if previous is not None and torch.equal(positive, previous):
            break
        previous = positive
        p, _, q_transposed = torch.linalg.svd((2 * positive.double() - 1).T @ v)
        rotation = q_transposed.T @ p.T
    return rotation


def spectral_modes(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The smoothest eigenfunctions of a uniform box: ``sin(pi / 2 + omega (x_d - low_d))``.

    Mode m >= 1 of dimension d has ``omega = m pi / (high_d - low_d)`` and an eigenvalue that grows with
    omega, so the modes of smallest omega are taken: a long dimension gives several bits before a short one
    gives any.

    Args:
        low: lower ends of the box, ``(D,)``.
        high: upper ends, ``(D,)``, above ``low``.
        bits: how many modes; there is no limit.

    Returns:
        The dimension of each mode, int64 ``(bits,)``, and its omega, float64 ``(bits,)``, which rises. Of
        equal omegas, the first dimension comes first.

    Raises:
        ValueError: ends of unlike shapes, a side without length, ``bits`` below 1.

    Source: Weiss, Torralba, Fergus, Spectral Hashing, NIPS 2008, section 2.2 and its public code.

    Example:
        >>> spectral_modes(torch.zeros(2), torch.tensor([4.0, 1.5]), 3)[0]
        tensor([0, 0, 1])
    """
    if low.ndim != 1 or low.shape != high.shape:
        raise ValueError(f"low and high must be (D,), got {tuple(low.shape)} and {tuple(high.shape)}")
    if bits < 1:
        raise ValueError(f"bits must be at least 1, got {bits}")
    sides = high.double() - low.double()
    if not bool((sides > 0).all()):
        raise ValueError(f"high must be above low, got a side of {float(sides.min())}")
    # No dimension can give more than all the bits.
    omegas = torch.arange(1, bits + 1, dtype=torch.float64) * (math.pi / sides)[:, None]
    chosen = omegas.flatten().sort(stable=True).indices[:bits]
    return chosen // bits, omegas.flatten()[chosen]


def spherical_pivots(
    features: Tensor,
    bits: int,
    *,
    iterations: int = 200,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Spheres that each hold half of the features, and each two of them a quarter.

    Pivots start at means of five random features. In each round every radius becomes the median distance,
    and pivots whose spheres share too much repel each other, too little attract:
    ``p_i += 1 / bits sum_j 1/2 (o_ij - N/4) / (N/4) (p_i - p_j)``, o_ij being the number of features in
    both. It ends when the mean of ``|o_ij - N/4|`` is within 10 % and the standard deviation of o_ij within
    15 % of N/4.

    Args:
        features: ``(N, D)``.
        bits: how many spheres.
        iterations: rounds at most; some 50 to 100 are needed.
        generator: of the start.

    Returns:
        Pivots ``(bits, D)`` and radii ``(bits,)``, float64 on the CPU. The bit is 1 inside the sphere.

    Raises:
        ValueError: ``features`` is not ``(N, D)`` or empty or not finite, ``bits`` below 1, ``iterations``
            negative.

    Source: Heo, Lee, He, Chang, Yoon, Spherical Hashing, CVPR 2012, algorithm 1.

    Example:
        >>> features = torch.randn(100, 8)
        >>> pivots, radii = spherical_pivots(features, 4)
        >>> (torch.cdist(features.double(), pivots) < radii).sum(0)
        tensor([50, 50, 50, 50])
    """
    x = as_features(features, "features")
    if bits < 1:
        raise ValueError(f"bits must be at least 1, got {bits}")
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}")
    n = x.shape[0]
    keys = random_normal(bits, n, generator=generator)
    pivots = x[keys.argsort(1)[:, :5]].mean(1)
    pairs = torch.ones(bits, bits, dtype=torch.bool).triu(1)
    for _ in range(iterations):
        distances = torch.cdist(x, pivots)
        inside = (distances < _median(distances)).double()
        excess = (inside.T @ inside - n / 4) / (n / 4)
        apart = excess[pairs]
        if bits == 1 or (apart.abs().mean() <= 0.1 and apart.std(correction=0) <= 0.15):
            break
        force = excess.fill_diagonal_(0.0) / 2
        pivots = pivots + (force.sum(1, keepdim=True) * pivots - force @ pivots) / bits
    return pivots, _median(torch.cdist(x, pivots))


def _median(distances: Tensor) -> Tensor:
    """Of each column; for an even number the middle between two, so that half is below."""
    ordered, n = distances.sort(0).values, distances.shape[0]
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def as_features(values: Tensor, name: str) -> Tensor:
    """``(N, D)``, float64 on the CPU; refuses what is empty or not finite."""
    if not isinstance(values, Tensor) or values.ndim != 2 or values.numel() == 0:
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} must be a tensor (N, D) of at least one row, got {got}")
    values = values.detach().double().cpu()
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity in {_bad_rows(values)} rows")
    return values


def _bad_rows(values: Tensor) -> int:
    return int((~values.isfinite().all(1)).sum())
