"""Statistics of bits against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hybridhash.codes import HashCodes, pack_codes
from hybridhash.eval import code_statistics


def test_statistics_equal_numpy():
    codes = torch.randn(700, 13, generator=torch.Generator().manual_seed(0)) + torch.linspace(-1, 1, 13)
    bits = (codes > 0).numpy().astype(float)
    correlation = np.abs(np.corrcoef(bits.T))[~np.eye(13, dtype=bool)]
    _, sizes = np.unique(bits, axis=0, return_counts=True)
    got = code_statistics(codes)
    assert got.ones == pytest.approx(bits.mean(0).tolist(), abs=1e-12)
    assert got.mean_correlation == pytest.approx(correlation.mean(), abs=1e-12)
    assert got.max_correlation == pytest.approx(correlation.max(), abs=1e-12)
    assert (got.items, got.distinct, got.largest_bucket) == (700, len(sizes), sizes.max())
    assert code_statistics(HashCodes(pack_codes(codes), 13)) == got
    assert code_statistics(pack_codes(codes), bits=13) == got


def test_constant_and_repeated_bits_are_found():
    codes = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    codes[:, 1] = -codes[:, 0]
    codes[:, 2] = 1.0
    got = code_statistics(codes)
    assert got.constant_bits == 1
    assert got.max_correlation == pytest.approx(1.0)


def test_no_codes_and_one_bit():
    with pytest.raises(ValueError, match="empty"):
        code_statistics(torch.zeros(0, 8))
    assert code_statistics(torch.ones(3, 1)).mean_correlation == 0.0
