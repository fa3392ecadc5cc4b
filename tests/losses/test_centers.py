"""Hash centers: distinct, far apart, and reproducible."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridhash.losses._hadamard import hadamard_matrix, hadamard_order
from hybridhash.losses.centers import hash_centers, minimum_distance, target_distance

METHODS = ["hadamard", "bernoulli", "gilbert-varshamov", "mds", "nested"]
BITS = (16, 32, 48, 64)
TARGETS = {
    10: (6, 13, 21, 28),
    21: (6, 12, 19, 26),
    80: (5, 11, 17, 24),
    81: (5, 11, 17, 24),
    100: (4, 10, 17, 24),
    196: (4, 10, 16, 23),
    200: (4, 10, 16, 23),
    555: (3, 9, 15, 21),
    1000: (3, 8, 14, 21),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("classes", TARGETS)
def test_targets_are_those_of_the_published_table(classes):
    assert tuple(target_distance(classes, bits) for bits in BITS) == TARGETS[classes]


@pytest.mark.parametrize("classes", TARGETS)
@pytest.mark.parametrize("method", ["gilbert-varshamov", "mds"])
def test_searched_centers_reach_the_target(classes, method):
    for bits, target in zip(BITS, TARGETS[classes], strict=True):
        assert minimum_distance(hash_centers(classes, bits, method, seeded())) >= target


@pytest.mark.parametrize(
    ("classes", "bits", "distance"),
    [(1000, 64, 28), (200, 64, 28), (1000, 32, 12), (100, 16, 6), (96, 48, 24), (10, 30, 14), (14, 128, 64)],
)
def test_mds_reaches_the_distance_of_the_known_codes(classes, bits, distance):
    assert minimum_distance(hash_centers(classes, bits, "mds", seeded())) >= distance


@pytest.mark.parametrize(
    ("classes", "distances"),
    [
        (2, {8: 8, 16: 16}),
        (10, {8: 4, 16: 8, 32: 16, 64: 32, 128: 64}),
        (100, {8: 2, 16: 6, 32: 13, 64: 28, 128: 60}),
        (1000, {16: 4, 32: 10, 64: 25, 128: 56}),
    ],
)
def test_prefixes_of_nested_centers_are_about_as_far_apart_as_centers_of_their_own(classes, distances):
    centers = hash_centers(classes, max(distances), "nested", seeded())
    assert {k: minimum_distance(centers[:, :k]) >= d for k, d in distances.items()} == dict.fromkeys(
        distances, True
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(0, 40), st.integers(0, 5))
def test_prefixes_of_nested_centers_are_distinct_from_the_first_possible_length(classes, more, seed):
    least = max((classes - 1).bit_length(), 1)
    centers = hash_centers(classes, least + more, "nested", seeded(seed))
    assert torch.unique(centers[:, :least], dim=0).shape[0] == classes


@pytest.mark.parametrize("order", [n for n in range(1, 131) if n < 3 or n % 4 == 0])
def test_hadamard_matrices_are_orthogonal(order):
    missing = {52: 56, 92: 96, 100: 104, 116: 120}
    assert hadamard_order(order) == missing.get(order, order)
    matrix = hadamard_matrix(hadamard_order(order))
    size = matrix.shape[0]
    torch.testing.assert_close(matrix @ matrix.T, size * torch.eye(size))
    assert torch.equal(matrix.abs(), torch.ones(size, size))


def test_hadamard_of_a_power_of_two_is_sylvesters():
    expected = [[(-1) ** (i & j).bit_count() for j in range(16)] for i in range(16)]
    assert hadamard_matrix(16).tolist() == expected


@pytest.mark.parametrize("bits", [2, 4, 12, 16, 20, 24, 36, 48, 64])
def test_hadamard_rows_are_half_or_all_of_the_bits_apart(bits):
    centers = hash_centers(2 * bits, bits)
    products = centers @ centers.T
    distances = {int(bits - products[i, j]) // 2 for i, j in itertools.combinations(range(2 * bits), 2)}
    assert distances == {bits // 2, bits}


@pytest.mark.parametrize(("bits", "least"), [(47, 23), (46, 22), (52, 24), (100, 48), (5, 1)])
def test_cut_hadamard_rows_lose_a_bit_of_distance_for_each_column(bits, least):
    assert minimum_distance(hash_centers(2 * bits, bits)) >= least


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(METHODS), st.integers(1, 40), st.integers(1, 150), st.integers(0, 10))
def test_centers_are_distinct_words_of_ones_and_minus_ones(method, bits, count, seed):
    count = min(count, 2**bits)
    centers = hash_centers(count, bits, method, seeded(seed))
    assert centers.shape == (count, bits)
    assert centers.dtype == torch.float32
    assert {abs(value) for value in centers.unique().tolist()} == {1.0}
    assert len({tuple(row) for row in centers.tolist()}) == count


@pytest.mark.parametrize("method", METHODS)
def test_all_words_can_be_taken(method):
    for bits in range(1, 8):
        assert torch.unique(hash_centers(2**bits, bits, method, seeded()), dim=0).shape == (2**bits, bits)


@pytest.mark.parametrize(
    ("method", "classes"), [("hadamard", 2000), ("gilbert-varshamov", 2000), ("mds", 10_000)]
)
def test_thousands_of_classes_get_different_centers(method, classes):
    assert minimum_distance(hash_centers(classes, 24, method, seeded())) >= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(2, 60), st.integers(0, 5))
def test_every_word_is_tried_so_the_gilbert_varshamov_bound_holds(bits, count, seed):
    count = min(count, 2**bits)
    centers = hash_centers(count, bits, "gilbert-varshamov", seeded(seed))
    assert minimum_distance(centers) >= target_distance(count, bits) - 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 64), st.integers(1, 500))
def test_target_is_the_first_ball_that_is_large_enough(bits, count):
    count = min(count, 2**bits)
    target = target_distance(count, bits)

    def ball(distance):
        return sum(math.comb(bits, i) for i in range(distance))

    assert ball(target - 1) * count < 2**bits
    assert target == bits or ball(target) * count >= 2**bits


@pytest.mark.parametrize("bits", [16, 31, 64])
def test_bernoulli_rows_have_half_of_the_bits_at_minus_one(bits):
    centers = hash_centers(300, bits, "bernoulli", seeded())
    assert (centers == -1).sum(1).unique().tolist() == [bits // 2]


def test_more_classes_than_hadamard_rows_take_random_rows():
    assert torch.equal(
        hash_centers(200, 64, "hadamard", seeded(3)), hash_centers(200, 64, "bernoulli", seeded(3))
    )


@pytest.mark.parametrize("method", ["bernoulli", "gilbert-varshamov", "mds", "nested"])
def test_generator_decides_and_leaves_the_global_one_alone(method):
    state = torch.get_rng_state()
    first, again, other = (hash_centers(150, 40, method, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_minimum_distance_is_that_of_the_nearest_pair():
    words = torch.randint(0, 2, (40, 30), generator=seeded()).float() * 2 - 1
    pairs = itertools.combinations(range(40), 2)
    assert minimum_distance(words) == min(int((words[i] != words[j]).sum()) for i, j in pairs)
    assert minimum_distance(torch.cat((words, words[:1]))) == 0
    assert minimum_distance(words[:1]) == 30


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "17 classes need different codes, but 4 bits have only 16", (17, 4)),
        (ValueError, "num_classes must be >= 1, got 0", (0, 4)),
        (ValueError, "bits must be >= 1, got -3", (2, -3)),
        (TypeError, "bits must be an int >= 1, got 4.0", (2, 4.0)),
        (ValueError, "unknown method 'paley': use one of 'hadamard', 'bernoulli'", (2, 4, "paley")),
    ],
)
def test_impossible_requests_are_refused(error, message, arguments):
    with pytest.raises(error, match=message):
        hash_centers(*arguments)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("classes", "bits"), [(10, 16), (40, 12), (30, 20), (5, 64)])
def test_torchs_default_dtype_and_device_change_nothing(method, classes, bits):
    expected = hash_centers(classes, bits, method, seeded())
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            centers = hash_centers(classes, bits, method, seeded())
    finally:
        torch.set_default_dtype(torch.float32)
    assert centers.dtype == torch.float32
    assert torch.equal(centers, expected)
