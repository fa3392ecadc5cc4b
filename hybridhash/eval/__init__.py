"""Exact evaluation of retrieval with binary codes: histograms of distances, and every metric from them."""

from .curves import (
    PrecisionRecallCurve,
    precision_recall_curve,
    precision_within_radius,
    recall_within_radius,
)
from .definitions import DEFINITIONS, Definition
from .evaluation import evaluate
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
from .plots import (
    plot_distance_histogram,
    plot_precision_at_k,
    plot_precision_recall,
    plot_precision_within_radius,
    plot_report,
    plot_retrieval_grid,
)
from .protocols import (
    ImageList,
    LabelledImages,
    Parts,
    Protocol,
    Split,
    check_disjoint,
    cifar10,
    describe_protocols,
    digits,
    get_protocol,
    list_protocols,
    own_protocol,
    read_csv,
)
from .report import RetrievalReport
from .reranking import evaluate_ranking, rerank
from .retrieval import HammingRetrieval
from .statistics import CodeStatistics, code_statistics

__all__ = [
    "DEFINITIONS",
    "CodeStatistics",
    "Definition",
    "DistanceHistogram",
    "HammingRetrieval",
    "ImageList",
    "LabelledImages",
    "Parts",
    "PrecisionRecallCurve",
    "Protocol",
    "RetrievalReport",
    "Split",
    "acg_at_k",
    "check_disjoint",
    "cifar10",
    "code_statistics",
    "describe_protocols",
    "digits",
    "distance_histogram",
    "evaluate",
    "evaluate_ranking",
    "get_protocol",
    "hit_rate_at_k",
    "list_protocols",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "ndcg_at_k",
    "own_protocol",
    "plot_distance_histogram",
    "plot_precision_at_k",
    "plot_precision_recall",
    "plot_precision_within_radius",
    "plot_report",
    "plot_retrieval_grid",
    "precision_at_k",
    "precision_recall_curve",
    "precision_within_radius",
    "read_csv",
    "recall_at_k",
    "recall_within_radius",
    "rerank",
    "weighted_map",
]
