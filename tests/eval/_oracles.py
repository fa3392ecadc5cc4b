"""Slow, literal definitions of the metrics on one ranked list, and all orders of tied items."""

from __future__ import annotations

import itertools
import math

import torch

from hybridhash import eval as evaluation

BITS = 6
WITH_A_CUT = (
    evaluation.mean_average_precision,
    evaluation.weighted_map,
    evaluation.precision_at_k,
    evaluation.recall_at_k,
    evaluation.hit_rate_at_k,
    evaluation.mean_reciprocal_rank,
    evaluation.ndcg_at_k,
    evaluation.acg_at_k,
)


def orders(distances, grades):
    """The ranked grades of every order of items at equal distance (each order once for each permutation)."""
    levels = [
        [g for d, g in zip(distances, grades, strict=True) if d == level] for level in sorted(set(distances))
    ]
    for choice in itertools.product(*(itertools.permutations(level) for level in levels)):
        yield [grade for level in choice for grade in level]


def stable_order(distances, grades):
    return [grade for _, _, grade in sorted(zip(distances, range(len(distances)), grades, strict=True))]


def average_precision(ranked, k, denominator="hits", weighted=False):
    total, hits, gain = 0.0, 0, 0
    for rank, grade in enumerate(ranked[:k], start=1):
        hits += grade > 0
        gain += grade if weighted else grade > 0
        if grade > 0:
            total += gain / rank
    divisor = hits if denominator == "hits" else min(k, sum(grade > 0 for grade in ranked))
    return total / divisor if divisor else 0.0


def over_orders(metric, distances, grades):
    values = [metric(ranked) for ranked in orders(distances, grades)]
    return {
        "expected": sum(values) / len(values),
        "best": max(values),
        "worst": min(values),
        "stable": metric(stable_order(distances, grades)),
    }


def instance(distances, grades):
    """Codes and multi-hot labels of one query and its database with these distances and shared labels."""
    query = torch.ones(1, BITS)
    database = torch.ones(len(distances), BITS)
    for item, distance in enumerate(distances):
        database[item, :distance] = -1
    classes = 4
    labels = torch.arange(classes) < torch.tensor(grades)[:, None]
    return query, torch.ones(1, classes, dtype=torch.bool), database, labels


def precision(ranked, k):
    return sum(grade > 0 for grade in ranked[:k]) / k


def recall(ranked, k):
    relevant = sum(grade > 0 for grade in ranked)
    return sum(grade > 0 for grade in ranked[:k]) / relevant if relevant else 0.0


def hit_rate(ranked, k):
    return float(any(grade > 0 for grade in ranked[:k]))


def reciprocal_rank(ranked, k):
    return next((1 / rank for rank, grade in enumerate(ranked[:k], start=1) if grade > 0), 0.0)


def average_cumulative_gain(ranked, k):
    return sum(ranked[:k]) / k


def ndcg(ranked, k, exponential=True):
    def dcg(grades):
        gains = [2**grade - 1 if exponential else grade for grade in grades[:k]]
        return sum(gain / math.log2(1 + rank) for rank, gain in enumerate(gains, start=1))

    ideal = dcg(sorted(ranked, reverse=True))
    return dcg(ranked) / ideal if ideal else 0.0


def random_case(seed=0, queries=12, items=150, bits=8, classes=5, density=0.3):
    """Real-valued codes and multi-hot labels of queries and of a database: short codes, so that many tie."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(queries, bits, generator=generator),
        torch.rand(queries, classes, generator=generator) < density,
        torch.randn(items, bits, generator=generator),
        torch.rand(items, classes, generator=generator) < density,
    )
