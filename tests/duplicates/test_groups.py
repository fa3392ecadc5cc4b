"""Pairs and groups against comparing each photo with each."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridhash import HashCodes, find_duplicates, hamming_distance
from hybridhash.duplicates import groups as groups_module


def collection(size, bits, centers, seed):
    """±1 codes near a few centers, some of them equal."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(centers, bits, generator=generator).sign()
    codes = center[torch.randint(centers, (size,), generator=generator)]
    flips = torch.rand(size, bits, generator=generator) < torch.rand(size, 1, generator=generator) * 3 / bits
    return torch.where(flips, -codes, codes)


def literal_groups(distances, radius, linkage, new):
    """Go through the pairs of photos from the nearest on; join the groups of the two if that is allowed."""
    size = len(distances)
    group = {row: {row} for row in range(size)}
    for _, one, two in sorted(
        (int(distances[one, two]), one, two) for one, two in itertools.combinations(range(size), 2)
    ):
        if distances[one, two] > radius or group[one] is group[two]:
            continue
        all_near = all(distances[a, b] <= radius for a in group[one] for b in group[two])
        if linkage == "single" or all_near:
            joined = group[one] | group[two]
            for row in joined:
                group[row] = joined
    found = {tuple(sorted(rows)) for rows in group.values() if len(rows) > 1 and min(rows) < new}
    return sorted(found)


@settings(max_examples=80, deadline=None)
@given(
    size=st.integers(2, 40),
    bits=st.sampled_from([4, 13, 64]),
    centers=st.integers(1, 8),
    radius=st.integers(0, 4),
    linkage=st.sampled_from(["complete", "single"]),
    seed=st.integers(0, 10_000),
)
def test_groups_and_pairs_are_those_of_the_definition(size, bits, centers, radius, linkage, seed):
    codes = collection(size, bits, centers, seed)
    distances = hamming_distance(codes, codes)
    found = find_duplicates(HashCodes.from_codes(codes), radius=radius, linkage=linkage)
    assert [group.rows for group in found.groups] == literal_groups(distances, radius, linkage, size)
    near = [(a, b) for a, b in itertools.combinations(range(size), 2) if distances[a, b] <= radius]
    assert found.total_pairs == len(near)
    first = {row: min(other for other in range(size) if distances[row, other] == 0) for row in range(size)}
    named = {(first[a], first[b]) for a, b in near if distances[a, b] > 0}
    equal = {(first[b], b) for b in range(size) if first[b] != b}
    expected = sorted((int(distances[a, b]), *sorted((a, b))) for a, b in named | equal)
    assert [(d, int(a), int(b)) for a, b, d in found.pairs] == sorted(set(expected))


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 15), st.integers(1, 25)),
    centers=st.integers(1, 6),
    radius=st.integers(0, 4),
    seed=st.integers(0, 10_000),
)
def test_new_photos_against_a_collection(sizes, centers, radius, seed):
    new, old = sizes
    codes = collection(new + old, 16, centers, seed)
    distances = hamming_distance(codes, codes)
    found = find_duplicates(
        HashCodes.from_codes(codes[:new]), against=HashCodes.from_codes(codes[new:]), radius=radius
    )
    near = [
        (a, b)
        for a, b in itertools.combinations(range(new + old), 2)
        if distances[a, b] <= radius and a < new
    ]
    assert found.total_pairs == len(near)
    assert all(row < new for row in found.remove_rows)
    for group in found.groups:
        assert group.rows[0] < new
        assert distances[list(group.rows)][:, list(group.rows)].max() <= radius
        assert group.distances == tuple(distances[group.rows[group.kept], list(group.rows)].tolist())
        assert group.rows[group.kept] >= new or max(group.rows) < new
    # A new photo within the radius of another one, and in no group, is beyond it to some member of its group.
    grouped = {row for group in found.groups for row in group.rows}
    for one, two in near:
        assert one in grouped or any(two in group.rows for group in found.groups) or two >= new


@pytest.mark.parametrize("linkage", ["complete", "single"])
@pytest.mark.parametrize("seed", range(3))
def test_excluded_pairs_are_in_no_group(linkage, seed):
    codes = HashCodes.from_codes(collection(30, 16, 3, seed))
    random = np.random.default_rng(seed)
    excluded = [tuple(map(str, pair)) for pair in random.integers(0, 30, (100, 2))] + [("0", "gone")]
    free = find_duplicates(codes, radius=3, linkage=linkage)
    found = find_duplicates(codes, radius=3, linkage=linkage, exclude=excluded)
    assert any(
        set(pair) <= set(group.names) for group in free.groups for pair in excluded if len(set(pair)) > 1
    )
    for one, two in excluded:
        if one != two:
            assert not any({one, two} <= set(group.names) for group in found.groups)
            assert not any({one, two} == {pair.first, pair.second} for pair in found.pairs)


def test_complete_linkage_does_not_follow_chains():
    chain = torch.ones(9, 64)
    for row in range(9):
        chain[row, : 3 * row] = -1
    codes = HashCodes.from_codes(chain)
    assert [group.rows for group in find_duplicates(codes, radius=3).groups] == [
        (0, 1),
        (2, 3),
        (4, 5),
        (6, 7),
    ]
    assert [group.rows for group in find_duplicates(codes, radius=3, linkage="single").groups] == [
        tuple(range(9))
    ]


def test_thousands_of_equal_photos_are_one():
    codes = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0))
    codes[5_000:] = codes[0]  # blank photos: 112 million pairs
    found = find_duplicates(HashCodes.from_codes(codes), radius=2)
    assert found.total_pairs == 15_001 * 15_000 // 2
    assert len(found.groups) == 1
    assert len(found.pairs) == len(found.remove) == 15_000


def test_too_many_pairs_lower_the_radius(monkeypatch):
    codes = HashCodes.from_codes(collection(300, 64, 1, 0))
    wide = find_duplicates(codes, radius=4)
    found = find_duplicates(codes, radius=4, max_pairs=500)
    assert found.radius < found.radius_asked == 4
    assert "lowered from 4" in str(found)
    same = find_duplicates(codes, radius=found.radius)
    assert found.pairs == same.pairs
    assert [group.rows for group in found.groups] == [group.rows for group in same.groups]
    different = sum(pair.distance > 0 for pair in found.pairs)
    assert different <= 500 < sum(pair.distance > 0 for pair in wide.pairs)
    # Lowered no further than needed.
    assert sum(0 < pair.distance <= found.radius + 1 for pair in wide.pairs) > 500


def test_the_order_of_merging_is_by_distance_and_then_by_row():
    near = groups_module.NearUnits(np.array([0, 1]), np.array([1, 2]), np.array([2, 2]), 2)
    assert [group.tolist() for group in groups_module.group_units(near, "complete")] == [[0, 1]]
    near = groups_module.NearUnits(np.array([1, 0]), np.array([2, 1]), np.array([1, 2]), 2)
    assert [group.tolist() for group in groups_module.group_units(near, "complete")] == [[1, 2]]
