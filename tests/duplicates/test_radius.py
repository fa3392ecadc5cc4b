"""The estimated radius against distributions that are known, with and without copies."""

from __future__ import annotations

import math

import pytest
import torch

from hybridhash import HashCodes
from hybridhash.duplicates import estimate_radius
from hybridhash.duplicates import radius as radius_module
from hybridhash.duplicates.radius import _block_counts


def binomial_share(bits, radius):
    return sum(math.comb(bits, d) for d in range(radius + 1)) / 2**bits


def true_radius(bits, rate):
    return max(radius for radius in range(bits) if binomial_share(bits, radius) <= rate)


def random_codes(size, bits, seed=0):
    return torch.randn(size, bits, generator=torch.Generator().manual_seed(seed)).sign()


def altered(codes, share, seed):
    flips = torch.rand(codes.shape, generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(flips, -codes, codes)


@pytest.mark.parametrize("bits", [64, 128, 256])
@pytest.mark.parametrize("rate", [1e-4, 1e-5, 1e-6])
def test_the_radius_of_independent_bits(bits, rate):
    estimate = estimate_radius(random_codes(3000, bits), rate)
    assert abs(estimate.radius - true_radius(bits, rate)) <= 1
    assert 0.4 < estimate.share / binomial_share(bits, estimate.radius) < 2.5
    assert estimate.radius_low <= estimate.radius <= estimate.radius_high
    assert estimate.share_low <= estimate.share <= estimate.share_high
    assert estimate.extrapolated == (rate == 1e-6)


@pytest.mark.parametrize("copies", [1, 3, 10])
def test_copies_do_not_move_it(copies):
    originals = random_codes(1000, 64, seed=1)
    codes = torch.cat([originals, *(altered(originals, 0.04, seed) for seed in range(copies))])
    estimate = estimate_radius(codes, 1e-5)
    assert abs(estimate.radius - estimate_radius(originals, 1e-5).radius) <= 1
    assert estimate.within > 10 * estimate.share  # copies are found, and said


def test_equal_codes_count_once():
    codes = random_codes(1000, 64)
    blank = torch.ones(5000, 64)
    assert estimate_radius(torch.cat([codes, blank[:1]])) == estimate_radius(torch.cat([codes, blank]))


def test_hashes_with_even_distances_only():
    # As pHash: half of the bits are 1.
    order = torch.rand(3000, 64, generator=torch.Generator().manual_seed(0)).argsort(1)
    estimate = estimate_radius((order < 32).float() - 0.5, 1e-4)
    counts = [math.comb(32, d // 2) ** 2 if d % 2 == 0 else 0 for d in range(65)]
    share = sum(counts[: estimate.radius + 1]) / math.comb(64, 32)
    assert 1e-5 < share < 2e-4


def test_clusters_make_it_smaller_and_not_larger():
    centers = random_codes(40, 128)
    codes = altered(centers.repeat(25, 1), 0.2, seed=2)
    true = true_radius(128, 1e-5)
    assert estimate_radius(codes, 1e-5).radius < true


def test_the_interval_covers_and_narrows():
    wide = estimate_radius(random_codes(100, 64), 1e-5)
    narrow = estimate_radius(random_codes(3000, 64), 1e-5)
    assert wide.share_high / wide.share_low > 3 * narrow.share_high / narrow.share_low
    covered = [
        estimate.share_low <= binomial_share(64, estimate.radius) <= estimate.share_high
        for estimate in (estimate_radius(random_codes(200, 64, seed), 1e-4) for seed in range(8))
    ]
    assert sum(covered) >= 6


def test_block_counts_are_those_of_all_pairs():
    codes = random_codes(70, 24)
    packed = HashCodes.from_codes(codes).packed
    distances = ((24 - codes @ codes.T) / 2).long()
    pairs = distances[torch.ones(70, 70, dtype=torch.bool).triu(1)]
    assert _block_counts(packed, 24).sum((0, 1)).tolist() == pairs.bincount(minlength=25).tolist()


@pytest.mark.parametrize(
    ("codes", "rate", "message"),
    [
        (random_codes(60, 64), 1e-5, "at least 64 distinct codes, got 60"),
        (random_codes(100, 64), 1e-9, "cannot resolve a rate of 1e-09"),
        (random_codes(500, 64), 0, "above 0"),
        (random_codes(500, 64), 0.1, "at most 0.001"),
        (random_codes(500, 10), 1e-5, "at distance 0"),
    ],
)
def test_what_cannot_be_estimated_is_refused(codes, rate, message):
    with pytest.raises(ValueError, match=message):
        estimate_radius(codes, rate)


def test_the_same_codes_in_another_order_give_the_same(monkeypatch):
    monkeypatch.setattr(radius_module, "_SAMPLE", 500)
    codes = random_codes(900, 64)
    assert estimate_radius(codes) == estimate_radius(codes.flip(0))
