"""The Hamming radius within which only a given share of the pairs of unlike photos lies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hybridhash._hamming import packed_distances
from hybridhash.codes import HashCodes, as_packed
from hybridhash.pairs import pairs_within_chunks

__all__ = ["NETWORK_RADII", "RadiusEstimate", "estimate_radius"]

Array: TypeAlias = "np.ndarray[Any, Any]"

# Radii of hybridhash_nano_256 for rates of false pairs: the smaller of those on 4,000 photos of CIFAR-10,
# enlarged to 128 pixels, and on 964 of garments and groceries. It was trained on none of them
# (``benchmarks/copies.py``).
NETWORK_RADII = {1e-3: 76, 1e-4: 62, 1e-5: 45, 1e-6: 24}

_SAMPLE = 8192  # codes whose pairs are counted: 33 million pairs
_FEWEST = 64  # distinct codes that a fit needs: 2,016 pairs
_BLOCKS = 32  # parts of the sample, which are drawn anew for the interval
_DRAWS = 500
# Shares of pairs between which the line is fitted: above the copies, and up to the median distance.
_LOWEST, _HIGHEST = 1e-3, 0.5
_PAIRS_BELOW = 100  # pairs that the lowest share must stand for
_FURTHEST = 1e-3  # of a pair of the sample: how far the line may be extended


@dataclass(frozen=True)
class RadiusEstimate:
    """A radius for a rate of false pairs, and how sure it is.

    Attributes:
        radius: The largest radius whose share of unlike pairs is at most ``false_pairs`` by the fit.
        false_pairs: The share of the pairs of unlike photos that was asked for.
        share: The share within ``radius`` by the fit, at most ``false_pairs``.
        share_low: The lower end of its 95 % interval.
        share_high: The upper end. It may exceed ``false_pairs``.
        within: The share of the pairs of distinct codes that do lie within ``radius``. It counts copies too,
            and so bounds the share of false pairs from above. Where it is far above ``share``, there are many
            copies, or kinds of photos that look alike, whose pairs the line does not see.
        radius_low: The lower end of the 95 % interval of the radius; -1 stands for none.
        radius_high: The upper end.
        codes: How many distinct codes the fit has seen.
        pairs: How many pairs they form.
        extrapolated: Whether these pairs cannot show the rate themselves: fewer than ten of them would lie
            within the radius. Then the result rests on the line alone.
    """

    radius: int
    false_pairs: float
    share: float
    share_low: float
    share_high: float
    within: float
    radius_low: int
    radius_high: int
    codes: int
    pairs: int
    extrapolated: bool

    def __str__(self) -> str:
        text = (
            f"radius {self.radius} (95 % interval {self.radius_low} to {self.radius_high}) for "
            f"{self.false_pairs:g} false pairs: {self.share:.1e} expected ({self.share_low:.1e} to "
            f"{self.share_high:.1e}), {self.within:.1e} found with copies, from {self.pairs:,} pairs of "
            f"{self.codes:,} codes"
        )
        return text + (", which are too few to show it: extrapolated" if self.extrapolated else "")


def estimate_radius(
    codes: Tensor | Array | HashCodes, false_pairs: float = 1e-5, *, bits: int | None = None
) -> RadiusEstimate:
    """Estimate the Hamming radius within which a share ``false_pairs`` of the pairs of unlike photos lies.

    Nobody says which photos are unlike, and the pairs at small distances may be copies. So the distances of
    pairs that are not near are looked at, and what they show is extended downwards:

    1. Codes that are equal count once. Of more than 8,192, as many are drawn, always the same.
    2. F(d) is the share of their pairs within distance d, and z(d) the normal quantile of F(d). Distances of
       unlike photos are sums over many bits, so that z is nearly a line in d. The line is fitted by least
       squares where F is between 0.001 (or 100 pairs, if that is more) and 0.5, with weights |z|, and says
       where F is ``false_pairs``.
    3. Of codes within that radius of one another, one is kept, and the line is fitted again. So collections
       in which every photo has copies are judged by their unlike photos.

    Copies that are left make the line less steep, which makes the radius smaller. Where the tail is heavier
    than the normal one, the radius is too large: perceptual hashes of 256 bits gave ten to twenty times the
    share that was asked for, on photos of clothing and of CIFAR. So compare ``within``, the share that was
    found. The interval is that of 500 bootstrap samples over 32 parts of the codes. It says how far chance
    goes, not whether z is a line.

    Args:
        codes: Codes of photos of which most are unlike, in any form that
            :func:`hybridhash.pairs_within` takes.
        false_pairs: The share, above 0 and at most 0.001.
        bits: The code length. It is needed only if ``codes`` are a packed tensor.

    Returns:
        The radius with its interval.

    Raises:
        TypeError, ValueError: Codes are not valid, or ``false_pairs`` is no such share.
        ValueError: There are fewer than 64 distinct codes; the pairs cannot resolve the rate, because less
            than a thousandth of a pair of them would be false; or codes are so short or so alike that even
            radius 0 has more false pairs.

    Example:
        >>> codes = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
        >>> estimate_radius(codes, false_pairs=1e-5).radius  # 1.0e-5 of a binomial with 64 bits is below 15
        14
    """
    packed, bits = as_packed(codes, bits=bits)
    check_share(false_pairs)
    distinct = np.unique(packed.cpu().numpy(), axis=0)
    if len(distinct) < _FEWEST:
        raise ValueError(
            f"a radius for a rate of false pairs needs at least {_FEWEST} distinct codes, got "
            f"{len(distinct)}: give radius=, perhaps that of estimate_radius on more photos"
        )
    order = np.random.default_rng(0).permutation(len(distinct))[:_SAMPLE]
    sample = torch.from_numpy(distinct[order])
    counts = all_counts = _block_counts(sample, bits)
    _check_resolved(false_pairs, len(sample))
    line = _fit(counts.sum((0, 1)))
    first = _radius_of(line, false_pairs, bits)
    if first >= 0:
        thinned = _without_near(sample, bits, first)
        if _FEWEST <= len(thinned) < len(sample):
            sample, counts = thinned, _block_counts(thinned, bits)
            line = _fit(counts.sum((0, 1)))
    radius = _radius_of(line, false_pairs, bits)
    if radius < 0:
        raise ValueError(
            f"there is no radius with at most {false_pairs:g} false pairs: at distance 0 the codes of {bits} "
            f"bits have {_share(line, 0):.1e} already; take longer codes, or a higher rate"
        )
    lines = _drawn_lines(counts)
    radii = [_radius_of(drawn, false_pairs, bits) for drawn in lines]
    shares = [_share(drawn, radius) for drawn in lines]
    pairs = len(sample) * (len(sample) - 1) // 2
    return RadiusEstimate(
        radius=radius,
        false_pairs=float(false_pairs),
        share=_share(line, radius),
        share_low=float(np.quantile(shares, 0.025)),
        share_high=float(np.quantile(shares, 0.975)),
        within=float(all_counts[:, :, : radius + 1].sum() / all_counts.sum()),
        radius_low=int(np.quantile(radii, 0.025, method="lower")),
        radius_high=int(np.quantile(radii, 0.975, method="higher")),
        codes=len(sample),
        pairs=pairs,
        extrapolated=false_pairs * pairs < 10,
    )


def check_share(false_pairs: float) -> None:
    """Raise unless a rate of false pairs is one that a line above 0.001 can be extended to."""
    if isinstance(false_pairs, bool) or not isinstance(false_pairs, (int, float)):
        raise TypeError(f"false_pairs must be a number above 0 and at most {_LOWEST}, got {false_pairs!r}")
    if not 0 < false_pairs <= _LOWEST:
        raise ValueError(
            f"false_pairs must be above 0 and at most {_LOWEST}, got {false_pairs}: it is the share of all "
            "pairs of unlike photos that may be taken for copies"
        )


def _check_resolved(false_pairs: float, codes: int) -> None:
    pairs = codes * (codes - 1) // 2
    if false_pairs * pairs < _FURTHEST:
        raise ValueError(
            f"{pairs:,} pairs of codes cannot resolve a rate of {false_pairs:g} false pairs: the lowest for "
            f"them is {_FURTHEST / pairs:.0e}; give a higher rate, or radius="
        )


def _block_counts(sample: Tensor, bits: int) -> Array:
    """Count the pairs at each distance within and between parts of a sample: ``(parts, parts, bits + 1)``.

    The pairs of parts i < j are at ``[i, j]``, and ``[j, i]`` is 0.
    """
    parts = sample.tensor_split(_BLOCKS)
    counts = np.zeros((_BLOCKS, _BLOCKS, bits + 1), np.int64)
    for i, one in enumerate(parts):
        for j in range(i, _BLOCKS):
            distances = packed_distances(one, parts[j], bits).numpy()
            counted = np.bincount(distances.ravel(), minlength=bits + 1)
            if i == j:  # each pair is there twice, and each code with itself
                counted[0] -= len(one)
                counted //= 2
            counts[i, j] = counted
    return counts


def _fit(counts: Array) -> tuple[float, float] | None:
    """Fit z(d) = intercept + slope d to counts ``(bits + 1,)``; None if too few distances are in range."""
    cumulative = np.cumsum(counts)
    pairs = cumulative[-1]
    lowest = max(_LOWEST, _PAIRS_BELOW / pairs) if pairs else 1.0
    shares = cumulative / max(pairs, 1)
    # Some hashes have even distances only: between them F is flat.
    used = np.flatnonzero((counts > 0) & (shares >= lowest) & (shares <= _HIGHEST))
    if len(used) < 2:
        return None
    z = torch.special.ndtri(torch.from_numpy(shares[used])).numpy()
    slope, intercept = np.polyfit(used, z, 1, w=np.abs(z) + 1e-6)
    return (float(intercept), float(slope)) if slope > 0 else None


def _share(line: tuple[float, float] | None, distance: int) -> float:
    """F at a distance; 1 where there is no line."""
    if line is None:
        return 1.0
    return 0.5 * math.erfc(-(line[0] + line[1] * distance) / math.sqrt(2))


def _radius_of(line: tuple[float, float] | None, false_pairs: float, bits: int) -> int:
    """The largest distance whose share is at most the rate, -1 if there is none."""
    return max((d for d in range(bits + 1) if _share(line, d) <= false_pairs), default=-1)


def _without_near(sample: Tensor, bits: int, radius: int) -> Tensor:
    """Leave out the codes that are within a radius of an earlier one."""
    kept = torch.ones(len(sample), dtype=torch.bool)
    for _, later, _ in pairs_within_chunks(sample, radius, bits=bits):
        kept[later] = False
    return sample[kept]


def _drawn_lines(counts: Array) -> list[tuple[float, float] | None]:
    """Fit lines to bootstrap samples of the parts; pairs of a part with itself drawn again are left out."""
    random = np.random.default_rng(0)
    lines = []
    for _ in range(_DRAWS):
        times = np.bincount(random.integers(0, _BLOCKS, _BLOCKS), minlength=_BLOCKS)
        weights = np.outer(times, times)
        np.fill_diagonal(weights, times)
        lines.append(_fit(np.tensordot(weights, counts, axes=2)))
    return lines
