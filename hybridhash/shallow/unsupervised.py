"""Hashing of features without labels: the closed forms and iterations of ITQ, SH and SpH.

They compute in float64 on the CPU. :func:`hybridhash.fit_hash_layer` writes their results into a network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridhash._checks import check_integer, generator_device

__all__ = [
    "itq_rotation",
    "nested_itq",
    "principal_directions",
    "random_rotation",
    "spectral_modes",
    "spherical_pivots",
]


def principal_directions(covariance: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Compute the directions of largest variance, which PCA hashing uses.

    Args:
        covariance: A symmetric matrix ``(D, D)``.
        bits: The number of directions, 1 to D.

    Returns:
        ``(directions, variances)``, float64 ``(D, bits)`` and ``(bits,)``. The directions are orthonormal
        columns in order of falling variance; the entry of largest magnitude of each is positive.

    Raises:
        ValueError: ``covariance`` is not square, or ``bits`` is not 1 to D.

    Source: Wang, Kumar, Chang, Semi-Supervised Hashing, CVPR 2010 (PCAH).

    Example:
        >>> principal_directions(torch.diag(torch.tensor([1.0, 4.0, 2.0])), 2)[1]
        tensor([4., 2.], dtype=torch.float64)
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"covariance must be (D, D), got {tuple(covariance.shape)}")
    width = covariance.shape[0]
    check_integer("bits", bits, 1, width, advice=f"the features are {width} wide")
    variances, directions = torch.linalg.eigh(covariance.double())
    # eigh gives rising eigenvalues.
    variances = variances.flip(0)[:bits]
    directions = directions.flip(1)[:, :bits]
    peaks = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return directions * peaks.sign(), variances


def random_rotation(bits: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw an orthogonal matrix ``(bits, bits)``, float64, uniformly over all of them.

    Example:
        >>> R = random_rotation(3)
        >>> torch.allclose(R.T @ R, torch.eye(3, dtype=torch.float64))
        True
    """
    q, r = torch.linalg.qr(random_normal(bits, bits, generator=generator))
    # Without these signs Q would depend on the conventions of QR and not be uniform (Mezzadri 2007).
    rotation: Tensor = q * r.diagonal().sign()
    return rotation


def random_normal(*shape: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw from N(0, 1), float64 on the CPU, wherever the generator is."""
    device = generator_device(generator)
    return torch.randn(*shape, dtype=torch.float64, generator=generator, device=device).cpu()


def itq_rotation(
    projected: Tensor, *, iterations: int = 50, generator: torch.Generator | None = None
) -> Tensor:
    """Find the rotation R that brings ``V R`` near to its signs (iterative quantisation).

    Starting from a random rotation, two steps alternate, and neither ever increases ``|B - V R|_F^2``: the
    signs ``B = sign(V R)``, and the orthogonal Procrustes solution ``R = Q P^T`` of
    ``svd(B^T V) = P S Q^T``. Codes are ``sign(V R)``, with ``V = (X - mean) W`` for principal directions W,
    or those of CCA with labels.

    Args:
        projected: Centred and projected features V, ``(N, bits)``.
        iterations: The largest number of rounds, 50 in the paper. It ends early when no bit changes.
        generator: The source of the first rotation.

    Returns:
        R, an orthogonal matrix ``(bits, bits)``, float64 on the CPU.

    Raises:
        TypeError: ``iterations`` is not an integer.
        ValueError: ``projected`` is not ``(N, bits)``, empty or not finite, or ``iterations`` is negative.

    Source: Gong, Lazebnik, Iterative Quantization, CVPR 2011, section 2.2.

    Example:
        >>> V = torch.randn(100, 4)
        >>> R = itq_rotation(V).float()
        >>> codes = V @ R > 0
    """
    v = as_features(projected, "projected")
    check_integer("iterations", iterations, 0)
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


def nested_itq(
    projected: Tensor,
    lengths: Sequence[int],
    *,
    iterations: int = 50,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Find a map whose first k outputs are good ITQ bits, for each of several lengths k.

    A rotation spreads the leading directions over all bits, so that its first bits alone are poor. Here the
    first bits are those of :func:`itq_rotation` for the shortest length, in as many directions. For each
    further length k, :func:`itq_rotation` rotates the first k directions, and of its k bits those are
    appended that agree least with the bits already there: by the sum of the squared correlations of their
    signs. So later bits read the leading directions again, and the map is no rotation.

    Args:
        projected: Centred features V in their principal directions, of falling variance, ``(N, bits)``.
        lengths: The code lengths, ascending; the last is ``bits``.
        iterations: As for :func:`itq_rotation`, for each length.
        generator: The source of the first rotations.

    Returns:
        M, float64 ``(bits, bits)``, columns of length 1: codes are the signs of ``V M``. With one length it
        is a rotation.

    Raises:
        TypeError, ValueError: As :func:`itq_rotation`.

    Example:
        >>> V = torch.randn(100, 8) * torch.linspace(2, 1, 8)
        >>> M = nested_itq(V, (4, 8))
        >>> M[4:, :4].abs().max()  # the first 4 bits read 4 directions
        tensor(0., dtype=torch.float64)
    """
    v = as_features(projected, "projected")
    chosen = v.new_zeros(v.shape[1], 0)
    for length in lengths:
        rotation = itq_rotation(v[:, :length], iterations=iterations, generator=generator)
        candidates = F.pad(rotation, (0, 0, 0, v.shape[1] - length))
        # Signs of centred features have means near 0, so products of signs stand for correlations.
        agreement = (v @ chosen).sign().T @ (v @ candidates).sign()
        order = agreement.square().sum(0).argsort(stable=True)
        chosen = torch.cat([chosen, candidates[:, order[: length - chosen.shape[1]]]], dim=1)
    return chosen


def spectral_modes(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Choose the smoothest eigenfunctions of a uniform box: ``sin(pi / 2 + omega (x_d - low_d))``.

    Mode m >= 1 of dimension d has ``omega = m pi / (high_d - low_d)``. Its eigenvalue grows with omega, so
    the modes of smallest omega are chosen: a long dimension gives several bits before a short one gives any.

    Args:
        low: The lower ends of the box, ``(D,)``.
        high: The upper ends of the box, ``(D,)``, above ``low``.
        bits: The number of modes, without limit.

    Returns:
        ``(dimensions, omegas)``, int64 and float64 ``(bits,)``, by rising omega. Of equal omegas the first
        dimension comes first.

    Raises:
        TypeError: ``bits`` is not an integer.
        ValueError: The ends have unlike shapes, a side has no length, or ``bits`` is below 1.

    Source: Weiss, Torralba, Fergus, Spectral Hashing, NIPS 2008, section 2.2 and its public code.

    Example:
        >>> spectral_modes(torch.zeros(2), torch.tensor([4.0, 1.5]), 3)[0]
        tensor([0, 0, 1])
    """
    if low.ndim != 1 or low.shape != high.shape:
        raise ValueError(f"low and high must be (D,), got {tuple(low.shape)} and {tuple(high.shape)}")
    check_integer("bits", bits, 1)
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
    """Find spheres that each hold half of the features, and every two of them together a quarter.

    Pivots start at means of five random features. In each round every radius becomes the median distance.
    Pivots whose spheres overlap too much then repel each other, and too little attract:
    ``p_i += 1 / bits sum_j 1/2 (o_ij - N/4) / (N/4) (p_i - p_j)``, where o_ij is the number of features in
    both spheres. The rounds end when the mean of ``|o_ij - N/4|`` is within 10 % of N/4 and the standard
    deviation of o_ij within 15 %.

    Args:
        features: The features ``(N, D)``.
        bits: The number of spheres.
        iterations: The largest number of rounds; 50 to 100 are usually needed.
        generator: The source of the first pivots.

    Returns:
        ``(pivots, radii)``, float64 ``(bits, D)`` and ``(bits,)`` on the CPU. A bit is 1 inside its sphere.

    Raises:
        TypeError: ``bits`` or ``iterations`` is not an integer.
        ValueError: ``features`` is not ``(N, D)``, empty or not finite, ``bits`` is below 1, or
            ``iterations`` is negative.

    Source: Heo, Lee, He, Chang, Yoon, Spherical Hashing, CVPR 2012, algorithm 1.

    Example:
        >>> features = torch.randn(100, 8)
        >>> pivots, radii = spherical_pivots(features, 4)
        >>> (torch.cdist(features.double(), pivots) < radii).sum(0)
        tensor([50, 50, 50, 50])
    """
    x = as_features(features, "features")
    check_integer("bits", bits, 1)
    check_integer("iterations", iterations, 0)
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
    """Return the median of each column; of an even number the mean of the middle two, so half are below."""
    # torch.quantile takes at most 2^24 values.
    ordered = distances.sort(0).values
    n = distances.shape[0]
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def as_features(values: Tensor, name: str) -> Tensor:
    """Return features ``(N, D)`` as float64 on the CPU; raise if they are empty or not finite."""
    if not isinstance(values, Tensor) or values.ndim != 2 or values.numel() == 0:
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} must be a tensor (N, D) of at least one row, got {got}")
    values = values.detach().double().cpu()
    if not bool(values.isfinite().all()):
        bad_rows = int((~values.isfinite().all(1)).sum())
        raise ValueError(f"{name} must be finite, got NaN or infinity in {bad_rows} rows")
    return values
