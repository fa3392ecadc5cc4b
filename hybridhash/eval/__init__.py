"""Exact evaluation of retrieval with binary codes: histograms of distances, and every metric from them."""

from .curves import (
    PrecisionRecallCurve,
    precision_recall_curve,
    precision_within_radius,
    recall_within_radius,
)
from .definitions import DEFINITIONS, Definition
from .histogram import DistanceHistogram, distance_histogram
from .metrics import (
    acg_at_k,
    hit_rate_at_k,
    mean_average_precision,
    mean_reciprocal_rank,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    weighted_map,
)

__all__ = [
    "DEFINITIONS",
    "Definition",
    "DistanceHistogram",
    "PrecisionRecallCurve",
    "acg_at_k",
    "distance_histogram",
    "hit_rate_at_k",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "ndcg_at_k",
    "precision_at_k",
    "precision_recall_curve",
    "precision_within_radius",
    "recall_at_k",
    "recall_within_radius",
    "weighted_map",
]
