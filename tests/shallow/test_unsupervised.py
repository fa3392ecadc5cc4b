"""ITQ, spectral and spherical hashing against literal transcriptions, and PCA against scikit-learn."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from hybridhash.shallow import itq_rotation
from hybridhash.shallow.unsupervised import (
    nested_itq,
    principal_directions,
    random_rotation,
    spectral_modes,
    spherical_pivots,
)


def gaussian(rows, width, seed=0):
    """Correlated features whose variances differ."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=g, dtype=torch.float64)
    return torch.randn(rows, width, generator=g, dtype=torch.float64) @ mixing + 3


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def is_orthogonal(rotation, tolerance=1e-5):
    identity = torch.eye(rotation.shape[0], dtype=rotation.dtype)
    return float((rotation.T @ rotation - identity).abs().max()) < tolerance


def test_principal_directions_are_those_of_scikit_learn():
    x = gaussian(80, 12)
    directions, variances = principal_directions(torch.cov(x.T), 5)
    pca = PCA(5, svd_solver="full").fit(x.numpy())
    np.testing.assert_allclose(variances, pca.explained_variance_, rtol=1e-9)
    signs = np.sign((directions.numpy().T * pca.components_).sum(1, keepdims=True))
    np.testing.assert_allclose(directions.numpy().T, signs * pca.components_, atol=1e-9)
    peaks = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    assert bool((peaks > 0).all())


def test_principal_directions_refuse_more_than_there_are():
    with pytest.raises(ValueError, match="bits must be 1 to 4, got 5: the features are 4 wide"):
        principal_directions(torch.eye(4), 5)
    with pytest.raises(ValueError, match=r"covariance must be \(D, D\), got \(4, 3\)"):
        principal_directions(torch.ones(4, 3), 2)


def test_random_rotations_are_orthogonal_and_uniform():
    rotations = torch.stack([random_rotation(3, seeded(seed)) for seed in range(400)])
    assert all(is_orthogonal(r, 1e-12) for r in rotations)
    # Haar measure: every entry has mean 0 and mean square 1/3, and half have determinant -1.
    assert float(rotations.mean(0).abs().max()) < 0.1
    assert float((rotations.square().mean(0) - 1 / 3).abs().max()) < 0.06
    assert 0.4 < float((rotations.det() < 0).double().mean()) < 0.6


def literal_itq(v, iterations, rotation):
    """The authors' loop, for features as rows."""
    for _ in range(iterations):
        z = v @ rotation
        ux = np.ones_like(z)
        ux[z <= 0] = -1
        u_b, _, u_a = np.linalg.svd(ux.T @ v, full_matrices=False)
        rotation = u_a.T @ u_b.T
    return rotation


def itq_loss(v, rotation):
    z = v @ rotation
    return float((torch.where(z > 0, 1.0, -1.0) - z).square().sum())


@pytest.mark.parametrize("iterations", [0, 1, 7, 50])
def test_itq_is_the_literal_loop(iterations):
    v = gaussian(60, 6)
    v = v - v.mean(0)
    rotation = itq_rotation(v, iterations=iterations, generator=seeded(3))
    expected = literal_itq(v.numpy(), iterations, random_rotation(6, seeded(3)).numpy())
    np.testing.assert_allclose(rotation, expected, atol=1e-8)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 40),
    bits=st.integers(1, 8),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_the_itq_objective_never_increases_and_rotations_are_orthogonal(seed, rows, bits, scale):
    v = scale * torch.randn(rows, bits, generator=seeded(seed), dtype=torch.float64)
    losses = []
    for iterations in range(12):
        rotation = itq_rotation(v, iterations=iterations, generator=seeded(seed))
        assert is_orthogonal(rotation)
        losses.append(itq_loss(v, rotation))
    assert all(after <= before * (1 + 1e-12) + 1e-9 for before, after in pairwise(losses))


def test_itq_undoes_a_rotation_of_binary_data():
    codes = torch.where(torch.randn(200, 4, generator=seeded(0)) > 0, 1.0, -1.0).double()
    best = min(
        itq_loss(
            codes @ random_rotation(4, seeded(9)),
            itq_rotation(codes @ random_rotation(4, seeded(9)), generator=seeded(seed)),
        )
        for seed in range(5)
    )
    assert best < 1e-20


def test_itq_refuses_what_has_no_signs():
    with pytest.raises(
        ValueError, match=r"projected must be a tensor \(N, D\) of at least one row, got shape"
    ):
        itq_rotation(torch.empty(0, 4))
    with pytest.raises(ValueError, match="projected must be finite, got NaN or infinity in 1 rows"):
        itq_rotation(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="iterations must be >= 0, got -1"):
        itq_rotation(torch.ones(2, 2), iterations=-1)


def literal_spectral_modes(low, high, bits):
    """``trainSH.m`` of the authors: the modes kept, as rows of multiples of pi / R."""
    sides = high - low
    max_mode = np.ceil((bits + 1) * sides / sides.max()).astype(int)
    n_modes = max_mode.sum() - len(max_mode) + 1
    modes = np.ones((n_modes, len(sides)))
    m = 0
    for i in range(len(sides)):
        modes[m + 1 : m + max_mode[i], i] = np.arange(2, max_mode[i] + 1)
        m += max_mode[i] - 1
    modes -= 1
    omegas = modes * (math.pi / sides)
    order = np.argsort((omegas**2).sum(1), kind="stable")
    return omegas[order[1 : bits + 1]]


@pytest.mark.parametrize("bits", [1, 5, 16, 33])
@pytest.mark.parametrize("seed", range(3))
def test_spectral_modes_are_those_of_the_authors_code(bits, seed):
    g = seeded(seed)
    low = -torch.rand(6, generator=g, dtype=torch.float64)
    high = low + 0.2 + 3 * torch.rand(6, generator=g, dtype=torch.float64)
    dimension, omega = spectral_modes(low, high, bits)
    expected = literal_spectral_modes(low.numpy(), high.numpy(), bits)
    got = np.zeros((bits, 6))
    got[np.arange(bits), dimension] = omega
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_spectral_modes_refuse_a_flat_box():
    with pytest.raises(ValueError, match=r"high must be above low, got a side of 0\.0"):
        spectral_modes(torch.zeros(2), torch.tensor([1.0, 0.0]), 3)
    with pytest.raises(ValueError, match=r"low and high must be \(D,\), got \(2,\) and \(3,\)"):
        spectral_modes(torch.zeros(2), torch.ones(3), 3)
    with pytest.raises(ValueError, match="bits must be >= 1, got 0"):
        spectral_modes(torch.zeros(2), torch.ones(2), 0)


def literal_spherical(x, pivots, rounds):
    """Algorithm 1 of the paper with its loops, for a fixed number of rounds."""
    n, bits = len(x), len(pivots)
    for _ in range(rounds):
        distance = np.linalg.norm(x[:, None] - pivots[None], axis=2)
        inside = distance < np.median(distance, axis=0)
        overlap = np.array([[(inside[:, i] & inside[:, j]).sum() for j in range(bits)] for i in range(bits)])
        upper = overlap[np.triu_indices(bits, 1)]
        if np.abs(upper - n / 4).mean() <= 0.1 * n / 4 and upper.std() <= 0.15 * n / 4:
            break
        moved = pivots.copy()
        for i in range(bits):
            force = np.zeros(x.shape[1])
            for j in range(bits):
                if j != i:
                    force += 0.5 * (overlap[i, j] - n / 4) / (n / 4) * (pivots[i] - pivots[j])
            moved[i] += force / bits
        pivots = moved
    return pivots, np.median(np.linalg.norm(x[:, None] - pivots[None], axis=2), axis=0)


@pytest.mark.parametrize("rounds", [0, 1, 4, 30])
def test_spheres_are_those_of_the_papers_algorithm(rounds):
    x = gaussian(61, 5)
    start, _ = spherical_pivots(x, 6, iterations=0, generator=seeded(1))
    pivots, radii = spherical_pivots(x, 6, iterations=rounds, generator=seeded(1))
    expected = literal_spherical(x.numpy(), start.numpy(), rounds)
    np.testing.assert_allclose(pivots, expected[0], atol=1e-8)
    np.testing.assert_allclose(radii, expected[1], atol=1e-8)


def test_spheres_are_balanced_and_independent():
    x = torch.randn(400, 16, generator=seeded(0))
    pivots, radii = spherical_pivots(x, 12, generator=seeded(1), iterations=200)
    inside = (torch.cdist(x.double(), pivots) < radii).double()
    assert inside.sum(0).tolist() == [200.0] * 12
    overlap = (inside.T @ inside)[torch.ones(12, 12, dtype=torch.bool).triu(1)]
    assert float((overlap - 100).abs().mean()) <= 10
    assert float(overlap.std(correction=0)) <= 15


def test_one_sphere_and_impossible_ones():
    x = gaussian(20, 3)
    pivots, radii = spherical_pivots(x, 1, generator=seeded(0))
    assert int((torch.cdist(x, pivots) < radii).sum()) == 10
    with pytest.raises(ValueError, match="bits must be >= 1, got 0"):
        spherical_pivots(x, 0)
    with pytest.raises(ValueError, match="iterations must be >= 0, got -3"):
        spherical_pivots(x, 2, iterations=-3)
    with pytest.raises(ValueError, match=r"features must be a tensor \(N, D\) of at least one row, got list"):
        spherical_pivots([[1.0]], 2)


def test_nested_itq_begins_with_the_bits_of_the_shortest_length():
    v = gaussian(200, 12) - gaussian(200, 12).mean(0)
    v = v @ principal_directions(torch.cov(v.T), 12)[0]
    matrix = nested_itq(v, (4, 8, 12), generator=seeded(3))
    assert torch.equal(matrix[:4, :4], itq_rotation(v[:, :4], generator=seeded(3)))
    assert not matrix[4:, :4].any()
    assert not matrix[8:, 4:8].any()
    assert torch.allclose(matrix.square().sum(0), torch.ones(12, dtype=torch.float64))


def test_nested_itq_appends_the_bits_of_the_next_length_that_agree_least():
    v = gaussian(200, 6) - gaussian(200, 6).mean(0)
    generator = seeded(0)
    first, second = itq_rotation(v[:, :2], generator=generator), itq_rotation(v, generator=generator)
    shares = []  # the transcription: one pair of bits after the other
    for candidate in range(6):
        bits = [(v[:, :2] @ first[:, bit] > 0) == (v @ second[:, candidate] > 0) for bit in range(2)]
        shares.append(sum((2 * float(equal.double().mean()) - 1) ** 2 for equal in bits))
    chosen = sorted(range(6), key=shares.__getitem__)[:4]
    assert torch.equal(nested_itq(v, (2, 6), generator=seeded(0))[:, 2:], second[:, chosen])


def test_nested_itq_of_one_length_is_itq():
    v = gaussian(100, 6)
    assert torch.equal(nested_itq(v, (6,), generator=seeded(1)), itq_rotation(v, generator=seeded(1)))
