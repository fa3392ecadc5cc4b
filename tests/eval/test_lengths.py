"""Codes of any length, multiples of 8 or not, against NumPy on unpacked codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridhash.codes import HashCodes, hamming_distance, hamming_topk, pack_codes
from hybridhash.eval import evaluate, mean_average_precision
from tests.eval._oracles import average_precision

LENGTHS = st.one_of(st.integers(1, 4096), st.integers(0, 2047).map(lambda half: 2 * half + 1))


def _numpy_ranking(query, database, labels, own):
    """Distances and the relevance of the items, nearest first, equal distances in database order."""
    distances = (query != database).sum(1)
    order = sorted(range(len(database)), key=lambda item: (distances[item], item))
    return distances, order, [int(labels[item] == own) for item in order]


@pytest.mark.filterwarnings("ignore:all .* codes are the same")
@settings(max_examples=40, deadline=None)
@given(bits=LENGTHS, items=st.integers(2, 40), seed=st.integers(0, 2**31))
def test_every_step_from_codes_to_map_is_exact(bits, items, seed):
    draw = np.random.default_rng(seed)
    query, database = draw.standard_normal((3, bits)), draw.standard_normal((items, bits))
    database[0] = query[0]  # one at distance 0
    query_labels, labels = draw.integers(0, 3, 3), draw.integers(0, 3, items)
    real = torch.from_numpy(query), torch.from_numpy(database)
    np.testing.assert_array_equal(pack_codes(real[1]).numpy(), np.packbits(database > 0, axis=1))
    nearest, rows = hamming_topk(*real, top_k=None)
    values = []
    for number in range(3):
        distances, order, relevant = _numpy_ranking(
            query[number] > 0, database > 0, labels, query_labels[number]
        )
        assert hamming_distance(*real)[number].tolist() == distances.tolist()
        assert rows[number].tolist() == order
        assert nearest[number].tolist() == distances[order].tolist()
        values.append(average_precision(relevant, items))
    codes = [
        HashCodes.from_codes(codes, torch.from_numpy(own))
        for codes, own in zip(real, (query_labels, labels), strict=True)
    ]
    got = mean_average_precision(*codes, ties="stable")
    assert got.item() == pytest.approx(np.mean(values), abs=1e-12)


@pytest.mark.parametrize("bits", [1, 513, 4095, 4096])
def test_a_whole_report_takes_every_length(bits):
    generator = torch.Generator().manual_seed(0)
    codes = HashCodes.from_codes(torch.randn(30, bits, generator=generator), torch.arange(30) % 3)
    report = evaluate(codes[:5], codes, ks=(1, 5))
    assert report.bits == bits
    assert 0 < report.metrics["map"] <= 1
