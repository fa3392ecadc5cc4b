"""Correction factors of codes and shorter codes: definition, estimates against theory, files, bad input."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hybridhash.codes import HashCodes, correction_factors, pack_codes, read_codes
from hybridhash.shallow.unsupervised import random_rotation


def _normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _codes(rows=7, bits=12, seed=0, factors=True):
    return HashCodes.from_codes(_normal(rows, bits, seed=seed), torch.arange(rows) % 3, factors=factors)


def _estimate(codes, query):
    """Inner products ``(N, Nq)`` of the real-valued codes with queries, as the factors give them."""
    norm, alignment = codes.factors.double().T
    signs = codes.codes(torch.float64)
    return (norm / alignment)[:, None] * (signs @ query.T) / codes.bits**0.5


# Definition


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(1, 4096), rows=st.integers(0, 5), seed=st.integers(0, 2**31))
def test_factors_are_norm_and_cosine_of_a_vector_and_its_signs(bits, rows, seed):
    z = np.random.default_rng(seed).standard_normal((rows, bits))
    factors = correction_factors(z)
    assert factors.dtype == torch.float32
    for vector, (norm, alignment) in zip(z, factors.tolist(), strict=True):
        length = np.sqrt(sum(vector**2))
        code = np.where(vector > 0, 1, -1) / np.sqrt(bits)
        assert norm == pytest.approx(length, rel=1e-5)
        assert alignment == pytest.approx(vector / length @ code, rel=1e-5)


def test_zeros_have_norm_0_and_alignment_1_and_signs_have_alignment_1():
    codes = HashCodes.from_codes(torch.tensor([[0.0, 0, 0], [1, -1, 1], [-2, -2, -2]]), factors=True)
    assert codes.factors.tolist() == [[0, 1], [pytest.approx(3**0.5), 1], [pytest.approx(12**0.5), 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64])
def test_factors_of_every_real_dtype(dtype):
    z = (10 * _normal(5, 9)).to(dtype)
    torch.testing.assert_close(correction_factors(z), correction_factors(z.double()))


# Theory: Gao and Long, SIGMOD 2024, theorem 3.2


def test_estimates_have_no_bias_and_the_error_of_the_theory():
    width, rotations = 64, 4000
    vector, query = _normal(1, width, seed=1), _normal(1, width, seed=2)
    query = query + vector  # not orthogonal
    generator = torch.Generator().manual_seed(3)
    errors, variances = [], []
    for _ in range(rotations):
        rotation = random_rotation(width, generator)
        codes = HashCodes.from_codes(vector @ rotation, factors=True)
        errors.append(float(_estimate(codes, query @ rotation)) - float(vector @ query.T))
        a2 = float(codes.factors[0, 1]) ** 2
        # Given a, the error is the share of q that lies across z, in a random direction of bits - 1.
        across = query - (query @ vector.T) / (vector @ vector.T) * vector
        variances.append(float(vector.square().sum() * across.square().sum()) * (1 - a2) / a2 / (width - 1))
    error = torch.tensor(errors, dtype=torch.float64)
    standard_error = error.std() / rotations**0.5
    assert abs(error.mean()) < 3 * standard_error
    assert error.var() == pytest.approx(sum(variances) / rotations, rel=0.1)
    # The bound of the paper, for all of q in place of the share across: beyond 3 deviations in few cases.
    bound = (
        (vector.square().sum() * query.square().sum()).sqrt() * (2 / torch.pi) ** -0.5 / (width - 1) ** 0.5
    )
    assert (error.abs() > 3 * bound).double().mean() < 0.003


def test_squared_distances_have_no_bias():
    width, rotations = 32, 3000
    vector, query = _normal(1, width, seed=4), _normal(1, width, seed=5)
    generator = torch.Generator().manual_seed(6)
    values = []
    for _ in range(rotations):
        rotation = random_rotation(width, generator)
        codes = HashCodes.from_codes(vector @ rotation, factors=True)
        inner = float(_estimate(codes, query @ rotation))
        values.append(float(codes.factors[0, 0]) ** 2 + float(query.square().sum()) - 2 * inner)
    error = torch.tensor(values) - (vector - query).square().sum()
    assert abs(error.mean()) < 3 * error.std() / rotations**0.5


def test_factors_of_shorter_codes_keep_estimates_unbiased_under_random_rotations():
    width, bits, rotations = 64, 24, 4000
    vector, query = _normal(1, width, seed=7), _normal(1, width, seed=8)
    query = query + vector
    generator = torch.Generator().manual_seed(9)
    errors, norms = [], []
    for _ in range(rotations):
        rotation = random_rotation(width, generator)
        codes = HashCodes.from_codes(vector @ rotation, factors=True).truncate(bits)
        # The first bits hold a share of bits / width of the inner product, in the mean.
        estimate = float(_estimate(codes, (query @ rotation)[:, :bits]))
        errors.append(estimate * width / bits - float(vector @ query.T))
        norms.append(float((vector @ rotation)[:, :bits].square().sum()) - float(codes.factors[0, 0]) ** 2)
    for error in (torch.tensor(errors), torch.tensor(norms)):
        assert abs(error.mean()) < 3 * error.std() / rotations**0.5


# Shorter codes


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(1, 600), share=st.floats(0, 1), rows=st.integers(0, 5), seed=st.integers(0, 2**31))
def test_the_first_bits_are_those_of_the_first_columns(bits, share, rows, seed):
    short = 1 + int(share * (bits - 1))
    z = _normal(rows, bits, seed=seed)
    codes = HashCodes.from_codes(z, torch.arange(rows), torch.arange(rows) + 7)
    before = codes.packed.clone()
    cut = codes.truncate(short)
    assert cut == HashCodes.from_codes(z[:, :short], torch.arange(rows), torch.arange(rows) + 7)
    assert torch.equal(codes.packed, before)


def test_factors_of_shorter_codes():
    codes = _codes(bits=16)
    cut = codes.truncate(4)
    assert torch.equal(cut.factors[:, 0], codes.factors[:, 0] / 2)
    assert torch.equal(cut.factors[:, 1], codes.factors[:, 1])
    assert codes.truncate(16) == codes


@pytest.mark.parametrize(
    ("bits", "error", "message"),
    [
        (13, ValueError, "bits must be 1 to 12, got 13: codes can be cut, not lengthened"),
        (0, ValueError, "bits must be 1 to 12, got 0"),
        (True, TypeError, "bits must be an int 1 to 12, got True"),
        (8.0, TypeError, "bits must be an int"),
    ],
)
def test_other_lengths_are_refused(bits, error, message):
    with pytest.raises(error, match=message):
        _codes().truncate(bits)


# The container


def test_everything_keeps_the_factors():
    codes = _codes(9)
    assert repr(codes) == "HashCodes(size=9, bits=12, bytes=18, labels=class ids, ids=None, factors=float32)"
    for index in (slice(2, 5), [3, 3, 0], torch.arange(9) % 2 == 0, 4):
        rows = torch.arange(9)[index].reshape(-1)
        assert torch.equal(codes[index].factors, codes.factors[rows])
    assert HashCodes.cat([codes[:4], codes[4:]]) == codes
    assert codes.to("cpu") == codes
    assert pickle.loads(pickle.dumps(codes)) == codes
    changed = HashCodes(codes.packed, 12, codes.labels, None, codes.factors * torch.tensor([2.0, 1.0]))
    assert codes != changed
    assert codes != _codes(9, factors=False)


def test_one_side_with_factors_only_is_refused_by_name():
    with pytest.raises(ValueError, match="part 0 and part 1 do not fit together: factors float32 and None"):
        HashCodes.cat([_codes(), _codes(factors=False)])


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        (torch.tensor([[1.0, float("nan")]]), ValueError, "codes has NaN in 1 of 2 entries"),
        (
            torch.tensor([[1.0, 2.0], [1.0, float("inf")]]),
            ValueError,
            "codes are infinite, .* in 1 of 2 rows",
        ),
        (torch.full((1, 2), 1e30, dtype=torch.float64), ValueError, "too large for float32"),
        (torch.tensor([[True, False]]), TypeError, "bools have no norm"),
        (torch.zeros(1, 2, dtype=torch.uint8), TypeError, "uint8, which means packed codes"),
    ],
)
def test_codes_without_a_norm_have_no_factors(codes, error, message):
    with pytest.raises(error, match=message):
        HashCodes.from_codes(codes, factors=True)


@pytest.mark.parametrize(
    ("factors", "error", "message"),
    [
        (torch.ones(3), ValueError, r"factors must be \(3, 2\), norm and alignment .* got shape \(3,\)"),
        (torch.ones(2, 2), ValueError, r"got shape \(2, 2\)"),
        (torch.ones(3, 2, dtype=torch.int64), TypeError, "floating-point tensor .*got torch.int64"),
        ([[1.0, 1.0]] * 3, TypeError, "got list"),
        (torch.tensor([[1.0, 1.0], [1, 1], [float("nan"), 1]]), ValueError, "norms of 0 or more"),
        (torch.tensor([[1.0, 1.0], [1, 1], [1, float("nan")]]), ValueError, "norms of 0 or more"),
        (torch.tensor([[1.0, 1.0], [1, 1], [float("inf"), 1]]), ValueError, "norms of 0 or more"),
        (torch.tensor([[1.0, 1.0], [1, 1], [-1, 1]]), ValueError, "got norms -1 to 1"),
        (torch.tensor([[1.0, 1.0], [1, 1], [1, 0]]), ValueError, "alignments 0 to 1"),
        (torch.tensor([[1.0, 1.0], [1, 1], [1, float("inf")]]), ValueError, "alignments 1 to inf"),
        (torch.ones(3, 2, device="meta"), ValueError, "factors is on meta but the codes on cpu"),
    ],
)
def test_factors_that_do_not_fit_raise(factors, error, message):
    with pytest.raises(error, match=message):
        HashCodes(torch.zeros(3, 2, dtype=torch.uint8), 12, factors=factors)


def test_factors_may_be_a_numpy_array():
    codes = _codes()
    made = HashCodes(codes.packed.numpy(), 12, codes.labels, factors=codes.factors.numpy().astype(np.float64))
    assert made == codes


# Files


@pytest.mark.parametrize("labels", [None, torch.arange(5), torch.ones(5, 3, dtype=torch.bool)])
def test_a_file_gives_back_the_factors(tmp_path, labels):
    made = HashCodes.from_codes(_normal(5, 13), labels, torch.arange(5), factors=True)
    made.save(tmp_path / "codes")
    assert HashCodes.load(tmp_path / "codes") == made
    mapped, metadata = read_codes(tmp_path / "codes", mapped=True)
    assert mapped == made
    assert metadata["version"] == "3"
    assert torch.equal(load_file(tmp_path / "codes")["factors"], made.factors)


def test_files_without_factors_are_what_they_were(tmp_path):
    codes = torch.where(torch.arange(40).view(5, 8) % 3 == 0, 1.0, -1.0)
    HashCodes.from_codes(codes, torch.arange(5), torch.arange(5)).save(tmp_path / "codes")
    digest = hashlib.sha256((tmp_path / "codes").read_bytes()).hexdigest()
    assert (
        digest == "e367cdafbac15fe1cb53dedcebd2496bd845cf02733388dcfe980f4b534b79dd"
    )  # of version 2, before there were factors


def test_damaged_factors_are_named(tmp_path):
    codes = _codes()
    codes.factors[2, 1] = -2.0
    codes.save(tmp_path / "codes")
    with pytest.raises(ValueError, match=r"codes is damaged \(factors must be norms of 0 or more"):
        HashCodes.load(tmp_path / "codes")


def test_search_by_hamming_distance_does_not_mind_factors():
    z = _normal(6, 12)
    assert torch.equal(HashCodes.from_codes(z, factors=True).packed, pack_codes(z))
