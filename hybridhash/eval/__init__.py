"""Exact evaluation of retrieval with binary codes: one histogram of distances, and every metric from it."""

from hybridhash._moved import moved
from hybridhash.eval import functional
from hybridhash.eval.copies import CopyReport, evaluate_copies
from hybridhash.eval.curves import (
    PrecisionRecallCurve,
    precision_recall_curve,
    precision_within_radius,
    recall_within_radius,
)
from hybridhash.eval.evaluation import evaluate
from hybridhash.eval.hamming_retrieval import HammingRetrieval
from hybridhash.eval.histogram import DistanceHistogram, distance_histogram
from hybridhash.eval.metrics import (
    acg_at_k,
    hit_rate_at_k,
    mean_average_precision,
    mean_reciprocal_rank,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    weighted_map,
)
from hybridhash.eval.plots import (
    plot_distance_histogram,
    plot_precision_at_k,
    plot_precision_recall,
    plot_precision_within_radius,
    plot_recall_at_k,
    plot_report,
)
from hybridhash.eval.published import DEFINITIONS, MapDefinition
from hybridhash.eval.report import RetrievalReport
from hybridhash.eval.reranking import evaluate_ranking, rerank
from hybridhash.eval.retrieval_grid import plot_retrieval_grid
from hybridhash.eval.statistics import CodeStatistics, code_statistics

__all__ = [
    "DEFINITIONS",
    "CodeStatistics",
    "CopyReport",
    "DistanceHistogram",
    "HammingRetrieval",
    "MapDefinition",
    "PrecisionRecallCurve",
    "RetrievalReport",
    "acg_at_k",
    "code_statistics",
    "distance_histogram",
    "evaluate",
    "evaluate_copies",
    "evaluate_ranking",
    "functional",
    "hit_rate_at_k",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "ndcg_at_k",
    "plot_distance_histogram",
    "plot_precision_at_k",
    "plot_precision_recall",
    "plot_precision_within_radius",
    "plot_recall_at_k",
    "plot_report",
    "plot_retrieval_grid",
    "precision_at_k",
    "precision_recall_curve",
    "precision_within_radius",
    "recall_at_k",
    "recall_within_radius",
    "rerank",
    "weighted_map",
]

__getattr__ = moved(
    __name__,
    {"Definition": "hybridhash.eval.MapDefinition"}
    | {
        name: f"hybridhash.data.{name}"
        for name in (
            "ImageList",
            "LabelledImages",
            "Protocol",
            "Split",
            "check_disjoint",
            "cifar10",
            "describe_protocols",
            "digits",
            "get_protocol",
            "list_protocols",
            "read_csv",
        )
    }
    | {"Parts": "hybridhash.data.SplitDatasets", "own_protocol": "hybridhash.data.custom_protocol"},
    settings={"ImageList": {"with_rows": True}},
)
