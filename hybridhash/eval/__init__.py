"""Exact evaluation of retrieval with binary codes: histograms of distances, and every metric from them."""

from .histogram import DistanceHistogram, distance_histogram
from .metrics import mean_average_precision

__all__ = ["DistanceHistogram", "distance_histogram", "mean_average_precision"]
