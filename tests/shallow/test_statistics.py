"""One pass over features: exact mean and covariance, a uniform sample, bounded memory."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridhash.shallow.statistics import FeatureStatistics


def features(rows, width=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=g) @ torch.randn(width, width, generator=g) + 2


def gathered(batches, **kwargs):
    statistics = FeatureStatistics(**kwargs)
    for batch in batches:
        statistics.update(batch)
    return statistics


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda s: sum(s) >= 2))
def test_batches_of_any_sizes_give_the_statistics_of_all(sizes):
    x = features(sum(sizes))
    statistics = gathered(x.split(sizes))
    full = np.cov(x.double().numpy().T)
    assert statistics.count == sum(sizes)
    np.testing.assert_allclose(statistics.mean, x.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, full, rtol=1e-10, atol=1e-12)
    assert statistics.total_variance == pytest.approx(np.trace(full))
    assert torch.equal(statistics.sample, x)
    diagonal_only = gathered(x.split(sizes), covariance=False)
    assert diagonal_only.total_variance == pytest.approx(np.trace(full))


def test_a_mean_far_from_zero_costs_no_digits():
    x = features(300).double()
    near, far = (gathered((x + shift).split(40)) for shift in (0, 1e6))
    torch.testing.assert_close(far.covariance, near.covariance, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sums_are_in_float64_whatever_the_features_are(dtype):
    x = features(64).to(dtype)
    statistics = gathered(x.split(7))
    assert statistics.covariance.dtype == torch.float64
    torch.testing.assert_close(statistics.covariance, torch.cov(x.double().T))


def test_memory_does_not_grow_with_the_number_of_rows():
    statistics = FeatureStatistics(sample_size=20)
    held = set()
    for seed in range(12):
        statistics.update(features(50, seed=seed))
        held.add(sum(v.untyped_storage().nbytes() for v in vars(statistics).values() if torch.is_tensor(v)))
    assert len(held) == 1
    assert statistics.sample.shape == (20, 5)


def test_every_row_is_as_likely_to_be_in_the_sample():
    rows = torch.arange(30.0)[:, None]
    counts = torch.zeros(30)
    for seed in range(600):
        sizes = [7, 1, 12, 10]
        sample = gathered(
            rows.split(sizes), sample_size=10, generator=torch.Generator().manual_seed(seed)
        ).sample[:, 0]
        assert len(set(sample.tolist())) == 10
        counts[sample.long()] += 1
    # Binomial(600, 1/3): 200 with a standard deviation of 11.5.
    assert float((counts - 200).abs().max()) < 4.5 * 11.5


def test_merged_statistics_are_those_of_all_rows():
    x = features(90)
    one, two, none = gathered(x[:40].split(15)), gathered(x[40:].split(20)), FeatureStatistics()
    kept = two.covariance.clone()
    none.merge(two)
    none.merge(one)
    torch.testing.assert_close(none.covariance, torch.cov(x.double().T))
    assert none.count == 90
    assert sorted(none.sample[:, 0].tolist()) == sorted(x[:, 0].tolist())
    none.merge(FeatureStatistics())
    assert none.count == 90
    torch.testing.assert_close(two.covariance, kept, rtol=0, atol=0)


def test_the_callers_buffer_may_be_reused():
    x, statistics = features(12), FeatureStatistics()
    buffer = torch.empty(4, 5)
    for batch in x.split(4):
        buffer.copy_(batch)
        statistics.update(buffer)
        assert torch.equal(buffer, batch)
        buffer.zero_()
    assert torch.equal(statistics.sample, x)


def test_without_a_covariance_or_a_sample_none_is_kept():
    statistics = gathered([features(9)], covariance=False, sample_size=0)
    assert len(statistics.sample) == 0
    with pytest.raises(ValueError, match="no covariance was kept"):
        _ = statistics.covariance
    with pytest.raises(ValueError, match="sample_size must be >= 0, got -1"):
        FeatureStatistics(sample_size=-1)


def test_bad_batches_are_named_and_leave_the_statistics_as_they_were():
    statistics = gathered([features(9)])
    bad = features(6)
    bad[2, 1], bad[4, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="batch 1 hold NaN or infinity in 2 of 6 rows, the first is row 2"):
        statistics.update(bad)
    with pytest.raises(ValueError, match="features of batch 1 are 4 wide, those before 5"):
        statistics.update(torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"pooled to \(B, D\), got \(3, 5, 2, 2\)"):
        statistics.update(torch.ones(3, 5, 2, 2))
    with pytest.raises(TypeError, match=r"floating-point tensor \(B, D\), got torch.int64"):
        statistics.update(torch.ones(3, 5, dtype=torch.int64))
    with pytest.raises(TypeError, match="got ndarray"):
        statistics.update(np.ones((3, 5)))
    assert statistics.count == 9


def test_moving_to_the_cpu_keeps_the_generator_and_pickling_leaves_it_out():
    x = features(200)
    moved, still = (FeatureStatistics(sample_size=20, generator=torch.Generator()) for _ in range(2))
    moved.update(x[:100])
    moved.cpu().update(x[100:])
    still.update(x[:100])
    still.update(x[100:])
    assert torch.equal(moved.sample, still.sample)
    sent = pickle.loads(pickle.dumps(moved))
    assert torch.equal(sent.covariance, moved.covariance)
    assert torch.equal(sent.sample, moved.sample)
