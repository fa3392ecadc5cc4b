"""Pairs within a radius against comparing each code with each."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridhash import HashCodes, hamming_distance, pairs, pairs_within, pairs_within_chunks
from hybridhash._hamming import pack_bits
from hybridhash.codes import pack_codes


def collection(kind, size, bits, seed):
    """±1 codes, float32 (size, bits): random, near a few centers, near one, or all equal."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(
        {"random": size, "clustered": 5, "one cluster": 1, "equal": 1}[kind], bits, generator=generator
    )
    codes = centers[torch.randint(len(centers), (size,), generator=generator)].sign()
    if kind == "equal":
        return codes
    flips = torch.rand(size, bits, generator=generator) < min(0.5, 2 / bits)
    return torch.where(flips, -codes, codes)


def brute_force(codes, radius, other=None):
    distances = hamming_distance(codes, codes if other is None else other).long()
    near = distances <= radius
    if other is None:
        near = near.triu(diagonal=1)
    rows, other_rows = near.nonzero(as_tuple=True)
    return rows, other_rows, distances[rows, other_rows].to(torch.int16)


def assert_same(got, want):
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


KINDS = ["random", "clustered", "one cluster", "equal"]


@settings(max_examples=80, deadline=None)
@given(
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    sizes=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    bits=st.sampled_from([1, 3, 8, 13, 16, 24, 32, 60, 64, 65, 128, 200, 256, 300]),
    share=st.sampled_from([0.0, 0.02, 0.05, 0.2, 0.5, 1.0]),
    how=st.sampled_from(["measured", "parts", "blocks"]),
    two=st.booleans(),
    seed=st.integers(0, 999),
)
def test_pairs_are_those_of_brute_force(kinds, sizes, bits, share, how, two, seed):
    codes = collection(kinds[0], sizes[0], bits, seed)
    # Half of the other collection is near the first.
    other = torch.cat([collection(kinds[1], sizes[1], bits, seed + 1), codes[: sizes[1]]]) if two else None
    radius = int(share * bits)
    with pytest.MonkeyPatch.context() as patch:
        if how != "measured" and radius < bits:
            patch.setattr(pairs, "_parts_pay", lambda *arguments: how == "parts")
        patch.setattr(pairs, "_PIECE", 1000)
        patch.setattr(pairs, "_CANDIDATES", 100)
        patch.setattr(pairs, "_BLOCK", 1 << 17)
        got = pairs_within(codes, radius, other)
    assert_same(got, brute_force(codes, radius, other))


@pytest.mark.parametrize(
    ("kind", "bits", "radius", "pays"),
    [
        ("random", 64, 0, True),
        ("random", 64, 3, True),
        ("random", 256, 20, True),
        ("random", 64, 20, False),  # parts of 3 bits: nearly all codes agree in one
        ("one cluster", 64, 3, False),
        ("random", 64, 64, False),
    ],
)
def test_what_is_compared_follows_the_codes(kind, bits, radius, pays):
    codes = collection(kind, 600, bits, seed=0)
    groups = pairs._group(pack_codes(codes).numpy())
    assert pairs._parts_pay(groups, groups, bits, radius) == pays
    assert_same(pairs_within(codes, radius, max_pairs=None), brute_force(codes, radius))


def test_a_key_is_the_number_that_the_bits_of_a_part_spell():
    bits = torch.rand(20, 150, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = pack_bits(bits).numpy()
    for first, end in [(0, 1), (0, 56), (7, 63), (5, 8), (8, 16), (94, 150), (149, 150), (3, 3 + 56)]:
        want = [int("".join(map(str, row)), 2) for row in bits[:, first:end].int().tolist()]
        assert pairs._keys(packed, (first, end)).tolist() == want


@pytest.mark.parametrize("bits", [1, 7, 64, 100, 256, 4096])
@pytest.mark.parametrize("radius", [0, 1, 5, 20, 63])
def test_the_parts_are_disjoint_and_one_more_than_the_radius(bits, radius):
    if radius < bits:
        parts = pairs._parts(bits, radius)
        assert len(parts) == radius + 1
        assert all(0 < end - first <= 56 for first, end in parts)
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(parts))
        assert parts[-1][1] <= bits


def test_pieces_hold_each_pair_once_and_are_small():
    codes = collection("equal", 1500, 32, seed=0)
    seen = torch.zeros(1500, 1500, dtype=torch.int32)
    for rows, other_rows, distances in pairs_within_chunks(codes, 2):
        assert 0 < len(rows) == len(other_rows) == len(distances) <= 1 << 20
        assert not bool(distances.any())
        seen[rows, other_rows] += 1
    assert torch.equal(seen, torch.ones_like(seen).triu(diagonal=1))


def test_every_form_of_codes_gives_the_same():
    codes, other = collection("clustered", 60, 21, seed=1), collection("clustered", 40, 21, seed=1)
    want = brute_force(codes, 3, other)
    packed, other_packed = pack_codes(codes), pack_codes(other)
    for one, two, bits in [
        (codes * 0.3, other.numpy(), None),
        (HashCodes(packed, 21), other, None),
        (packed, other_packed, 21),
        (packed.numpy(), HashCodes(other_packed, 21), 21),
        (codes, other_packed, None),
    ]:
        assert_same(pairs_within(one, np.int64(3), two, bits=bits), want)


def test_no_code_one_code_and_no_pair_give_empty_results_of_the_same_dtypes():
    codes = collection("random", 5, 64, seed=0)
    nothing = HashCodes(torch.empty(0, 8, dtype=torch.uint8), 64)
    for one, two in [(nothing, None), (codes[:1], None), (nothing, codes), (codes, nothing), (codes, -codes)]:
        rows, other_rows, distances = pairs_within(one, 0, two)
        assert [len(rows), len(other_rows), len(distances)] == [0, 0, 0]
        assert [rows.dtype, other_rows.dtype, distances.dtype] == [torch.int64, torch.int64, torch.int16]


def test_codes_are_not_written_to():
    codes = HashCodes.from_codes(collection("clustered", 50, 64, seed=0))
    before = codes.packed.clone()
    pairs_within(codes, 3, codes)
    assert torch.equal(codes.packed, before)


CODES = torch.ones(4, 16)


@pytest.mark.parametrize("function", [pairs_within, pairs_within_chunks])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((CODES, -1), ValueError, "radius must be 0 to 16, got -1"),
        ((CODES, 17), ValueError, "radius must be 0 to 16, got 17"),
        ((CODES, 2.0), TypeError, "radius must be an int 0 to 16, got 2.0"),
        ((CODES, True), TypeError, "radius must be an int"),
        ((CODES, 1, CODES[:, :8]), ValueError, "codes have 16 bits but other has 8"),
        ((HashCodes.from_codes(CODES), 1, HashCodes.from_codes(CODES[:, :9])), ValueError, "other has 9"),
        ((pack_codes(CODES), 1), ValueError, "say how many bits"),
        ((CODES, 1, "codes"), TypeError, "other must be a tensor or HashCodes, got str"),
        ((CODES * torch.nan, 1), ValueError, "NaN"),
    ],
)
def test_what_is_wrong_is_said_at_the_call(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)


def test_more_pairs_than_expected_raise_before_they_fill_the_memory():
    with pytest.raises(ValueError, match=r"more than 5 pairs are within radius 0: .* pairs_within_chunks"):
        pairs_within(CODES, 0, max_pairs=5)
    assert len(pairs_within(CODES, 0, max_pairs=6)[0]) == 6
    with pytest.raises(ValueError, match="max_pairs must be >= 1, got 0"):
        pairs_within(CODES, 0, max_pairs=0)
