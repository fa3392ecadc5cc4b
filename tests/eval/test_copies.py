"""Copy detection against a literal transcription of its definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hybridhash import HashCodes, hamming_distance
from hybridhash.eval import DistanceHistogram, evaluate_copies, functional


def _problem(seed, queries=12, references=9, bits=8):
    generator = torch.Generator().manual_seed(seed)
    photos = torch.randn(references, bits, generator=generator).sign()
    sources = torch.randint(-1, references, (queries,), generator=generator)
    sources[0] = 0
    altered = photos[sources.clamp(min=0)]
    flips = torch.rand(altered.shape, generator=generator) < 0.2
    return torch.where(flips, -altered, altered), photos, sources


def _pairs(queries, photos, sources):
    distances = hamming_distance(queries, photos)
    return [
        (int(distances[q, d]), int(sources[q]) == d) for q in range(len(queries)) for d in range(len(photos))
    ]


def _literal_precision(order):
    """sum_i p(i) (r(i) - r(i - 1)) of an order of pairs, True where one is right."""
    total, found, value = sum(order), 0, 0.0
    for rank, right in enumerate(order, 1):
        found += right
        value += found / rank * (right / total)
    return value


def test_average_precision_is_the_mean_over_all_orders_of_ties():
    # Four pairs at distance 1 and three at 2.
    queries = torch.tensor([[1.0, 1, -1]])
    photos = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [1, -1, 1], [-1, -1, -1], [-1, 1, 1]])
    sources = torch.tensor([4])
    pairs = _pairs(queries, photos, sources)
    near = [right for distance, right in pairs if distance == 1]
    far = [right for distance, right in pairs if distance == 2]
    values = [
        _literal_precision(one + two)
        for one in itertools.permutations(near)
        for two in itertools.permutations(far)
    ]
    report = evaluate_copies(queries, photos, sources, draws=1)
    assert report.average_precision == pytest.approx(np.mean(values), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_one_query_with_all_pairs(seed):
    queries, photos, sources = _problem(seed)
    counts = torch.zeros(1, 9, 2, dtype=torch.int64)
    for distance, right in _pairs(queries, photos, sources):
        counts[0, distance, int(right)] += 1
    histogram = DistanceHistogram(counts, counts.sum(1))
    expected = functional.average_precision(histogram, denominator="relevant").item()
    assert evaluate_copies(queries, photos, sources).average_precision == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rate", [1e-6, 0.02, 0.2, 0.9])
def test_recall_is_that_of_the_largest_radius(seed, rate):
    queries, photos, sources = _problem(seed)
    pairs = _pairs(queries, photos, sources)
    false = [distance for distance, right in pairs if not right]
    right = [distance for distance, right in pairs if right]
    allowed = [r for r in range(9) if sum(d <= r for d in false) <= rate * len(false)]
    radius = max(allowed, default=-1)
    report = evaluate_copies(queries, photos, sources, false_pairs=[rate])
    assert report.radius == (radius,)
    assert report.recall == (sum(d <= radius for d in right) / len(right),)


def test_intervals_are_over_photos_and_not_over_queries():
    queries, photos, sources = _problem(3, queries=40, references=30, bits=16)
    once = evaluate_copies(queries, photos, sources)
    low, high = once.average_precision_interval
    assert low < once.average_precision < high
    # Ten times the same alterations tell nothing new.
    many = evaluate_copies(
        queries.repeat(10, 1)[sources.repeat(10) >= 0], photos, sources[sources >= 0].repeat(10)
    )
    few = evaluate_copies(queries[sources >= 0], photos, sources[sources >= 0])
    widths = [np.subtract(*report.recall_interval[-1][::-1]) for report in (many, few)]
    assert widths[0] == pytest.approx(widths[1], abs=0.02)


def test_the_report_says_what_it_measured():
    queries, photos, sources = _problem(1)
    report = evaluate_copies(HashCodes.from_codes(queries), HashCodes.from_codes(photos), sources.numpy())
    assert report.copies == int((sources >= 0).sum())
    assert "micro average precision" in str(report)
    assert report.to_dict()["bits"] == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": torch.full((12,), -1)}, "all -1"),
        ({"sources": torch.full((12,), 9)}, "rows of the 9 references"),
        ({"sources": torch.zeros(5, dtype=torch.int64)}, "one for each query"),
        ({"false_pairs": [0.0]}, "above 0"),
        ({"draws": 0}, "draws must be"),
    ],
)
def test_bad_input(change, message):
    queries, photos, sources = _problem(0)
    with pytest.raises(ValueError, match=message):
        evaluate_copies(queries, photos, **{"sources": sources, **change})


def test_one_reference_has_no_false_pair():
    with pytest.raises(ValueError, match="no false pair"):
        evaluate_copies(torch.ones(1, 4), torch.ones(1, 4), torch.tensor([0]))
