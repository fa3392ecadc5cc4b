"""What binarising costs: rankings by real-valued embeddings and by their codes, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridhash._checks import check_choice, check_integer, generator_device
from hybridhash._inference import check_hash_model, eval_mode, input_device, named_batch
from hybridhash._tables import aligned
from hybridhash.asymmetric import asymmetric_topk
from hybridhash.codes import HashCodes, hamming_topk
from hybridhash.embeddings import EmbeddingBatches, Features, Metric, head_codes
from hybridhash.eval.plots import new_figure
from hybridhash.eval.reranking import evaluate_ranking
from hybridhash.labels import as_labels
from hybridhash.models.embedding_input import EmbeddingInput
from hybridhash.models.hash_model import HashModel

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Labels: TypeAlias = Tensor | np.ndarray[Any, Any]

__all__ = ["BinarizationReport", "binarization_report"]

Ranker: TypeAlias = Callable[[slice, int], Tensor]
_BLOCK = 64  # queries that are ranked at a time
_ROWS = 8192  # that are read and hashed at a time
_NAMES = {
    "float": "embeddings",
    "asymmetric with factors": "codes with factors, real-valued query",
    "asymmetric": "codes, real-valued query",
    "hamming": "codes, Hamming distance",
}


@dataclass(frozen=True)
class BinarizationReport:
    """How well codes rank compared with the embeddings they were made of; see :func:`binarization_report`.

    ``print(report)`` shows it as a table.

    Attributes:
        queries: The number of queries.
        database: The number of items that were ranked.
        width: The width of the embeddings.
        bits: The code length.
        metric: What makes embeddings near: ``"euclidean"`` or ``"cosine"``.
        bytes_per_item: Bytes of one item, for each scoring.
        recall: For each scoring and k, the share of the k nearest by the embeddings that are among the first
            k, a mean over the queries.
        map: mAP over all items for each scoring; None without labels.
    """

    queries: int
    database: int
    width: int
    bits: int
    metric: str
    bytes_per_item: dict[str, int]
    recall: dict[str, dict[int, float]]
    map: dict[str, float] | None = None

    def __str__(self) -> str:
        title = f"{self.queries:,} queries, {self.database:,} items, {self.width} numbers to {self.bits} bits"
        cuts = list(self.recall["hamming"])
        header = ["ranked by", "bytes an item", *(f"recall@{k}" for k in cuts)]
        rows = [header + (["mAP"] if self.map else [])]
        for scoring, size in self.bytes_per_item.items():
            cells = [_NAMES[scoring], f"{size:,}", *(f"{self.recall[scoring][k]:.3f}" for k in cuts)]
            rows.append(cells + ([f"{self.map[scoring]:.3f}"] if self.map else []))
        return f"{title}, neighbours by {self.metric} distance\n{aligned(rows)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers and texts, which :mod:`json` can write."""
        values = asdict(self)
        values["recall"] = {
            scoring: {str(k): value for k, value in cuts.items()} for scoring, cuts in self.recall.items()
        }
        return values

    def plot(self, *, ax: Axes | None = None) -> Figure:
        """Draw recall of each scoring over k, and return the figure.

        Args:
            ax: The matplotlib axes to draw into; None makes a new figure.

        Raises:
            ImportError: matplotlib is not installed (``pip install "hybridhash[plot]"``).
        """
        axes = new_figure(1, 1, (5.6, 3.6))[1][0][0] if ax is None else ax
        scorings = [scoring for scoring in self.recall if scoring != "float"]
        for scoring, marker in zip(scorings, "osD", strict=False):
            cuts = self.recall[scoring]
            label = f"{_NAMES[scoring]}, {self.bytes_per_item[scoring]} bytes"
            axes.plot(list(cuts), list(cuts.values()), marker=marker, label=label)
        axes.set_xscale("log")
        axes.set_xticks(list(self.recall["hamming"]), [str(k) for k in self.recall["hamming"]])
        axes.minorticks_off()
        axes.set_xlabel("k")
        axes.set_ylabel("share of the k nearest among the first k")
        axes.set_ylim(0, 1)
        axes.legend(frameon=False, fontsize=8)
        figure: Figure = axes.figure.figure
        return figure


def binarization_report(
    features: Features | tuple[Features, Features],
    head: nn.Module,
    labels: Labels | tuple[Labels, Labels] | None = None,
    *,
    top_k: Sequence[int] = (1, 10, 100),
    metric: Metric | None = None,
    queries: int = 1000,
    max_database: int = 100_000,
    generator: torch.Generator | None = None,
) -> BinarizationReport:
    """Measure what is lost when embeddings become codes: by recall of their neighbours, and by mAP.

    Four rankings of the same items are compared: by the embeddings themselves; by real-valued queries against
    codes with correction factors, and without; and by Hamming distance. Recall@k is the share of the k
    nearest items by the embeddings that the ranking has among its first k. Items at equal distance are in
    the order of the database. Only the rows that are measured are kept in memory.

    Args:
        features: Embeddings ``(N, D)``, of which random rows become queries and are taken out of the
            database; or a pair ``(query, database)``. Each may be of any kind that
            :func:`hybridhash.hash_embeddings` takes.
        head: Maps embeddings ``(B, D)`` to real-valued codes ``(B, bits)``, such as the model of
            :func:`hybridhash.hash_embeddings`. Factors have a meaning for a linear head only, such as that of
            ``"rabitq"``; elsewhere their row shows whether they help.
        labels: Labels ``(N,)`` or ``(N, C)`` of the features, or a pair of those of queries and database.
            With labels the report has mAP over all items.
        top_k: The values of k, each at least 1 and at most the number of items.
        metric: What makes embeddings near, ``"euclidean"`` or ``"cosine"``. None takes that of the head:
            cosine, if :func:`hybridhash.hash_embeddings` made it with ``metric="cosine"``.
        queries: The most queries that are measured.
        max_database: The most items that are ranked. A larger database is sampled, which makes recall higher
            than it is over all items.
        generator: The source of the random choice of rows.

    Returns:
        The report.

    Raises:
        TypeError: Embeddings, labels or the head are of a wrong kind.
        ValueError: There are too few rows, a k is out of range, the sides have different widths, a number is
            not finite, or labels are given for one side only.

    Example:
        >>> from hybridhash import hash_embeddings
        >>> features = torch.randn(300, 48, generator=torch.Generator().manual_seed(0))
        >>> _, head = hash_embeddings(features, bits=96)
        >>> report = binarization_report(features, head, top_k=[1, 10], queries=50)
        >>> report.queries, report.database, report.bytes_per_item["hamming"]
        (50, 250, 12)
    """
    if not isinstance(head, nn.Module):
        raise TypeError(f"head must be a module, such as the model of hash_embeddings, got {head!r}")
    check_hash_model(head)
    if metric is None:
        metric = "cosine" if _normalises(head) else "euclidean"
    check_choice("metric", metric, get_args(Metric))
    check_integer("queries", queries, 1)
    check_integer("max_database", max_database, 1)
    query, database, both_labels = _split(features, labels, queries, max_database, generator)
    top_k = _cuts(top_k, len(database))
    query_codes, codes = _hashed(head, query, database)
    rankers = _rankers(query, database, metric, query_codes, codes)
    recall, mean_ap = _measured(rankers, len(query), len(database), top_k, both_labels)
    width, packed = query.shape[1], codes.packed.shape[1]
    return BinarizationReport(
        queries=len(query),
        database=len(database),
        width=width,
        bits=codes.bits,
        metric=metric,
        bytes_per_item=dict(zip(_NAMES, (4 * width, packed + 8, packed, packed), strict=True)),
        recall=recall,
        map=mean_ap,
    )


def _hashed(head: nn.Module, query: Tensor, database: Tensor) -> tuple[Tensor, HashCodes]:
    """Return the real-valued codes of the queries, and the codes of the database with factors."""
    device = input_device(head, None)
    with torch.no_grad(), eval_mode(head):
        with named_batch(head, query, "the queries"):
            query_codes = torch.cat([head(batch.to(device)).float().cpu() for batch in _batches(query)])
        codes = []
        for batch in _batches(database):
            inputs = batch.to(device)
            if isinstance(head, HashModel):
                codes.append(head_codes(head.head, head.backbone(inputs), factors=True))
            else:
                codes.append(head_codes(head, inputs, factors=True))
    return query_codes, HashCodes.cat(codes)


def _rankers(
    query: Tensor, database: Tensor, metric: str, query_codes: Tensor, codes: HashCodes
) -> dict[str, Ranker]:
    """Return for each scoring a function from some queries and a depth to the nearest rows."""
    plain = replace(codes, factors=None)
    if metric == "cosine":
        query, database = F.normalize(query, dim=1), F.normalize(database, dim=1)
    center = database.mean(0)  # distances lose no digits where it is large
    query, database = query - center, database - center

    def by_embeddings(rows: slice, depth: int) -> Tensor:
        # Squared distances without the query's own length, which is the same for all items.
        squares = database.square().sum(1) - 2 * query[rows] @ database.T
        return squares.sort(dim=1, stable=True).indices[:, :depth]

    return {
        "float": by_embeddings,
        "asymmetric with factors": lambda rows, depth: asymmetric_topk(
            query_codes[rows], codes, depth, metric="euclidean"
        )[1],
        "asymmetric": lambda rows, depth: asymmetric_topk(query_codes[rows], plain, depth)[1],
        "hamming": lambda rows, depth: hamming_topk(query_codes[rows], plain, depth)[1],
    }


def _measured(
    rankers: dict[str, Ranker],
    queries: int,
    items: int,
    top_k: list[int],
    labels: tuple[Tensor, Tensor] | None,
) -> tuple[dict[str, dict[int, float]], dict[str, float] | None]:
    """Return recall of the neighbours at each k, and mAP (None without labels), for each scoring."""
    depth = max(top_k) if labels is None else items
    found = {scoring: dict.fromkeys(top_k, 0) for scoring in rankers}
    precision = dict.fromkeys(rankers, 0.0)
    for start in range(0, queries, _BLOCK):
        rows = slice(start, start + _BLOCK)
        nearest = rankers["float"](rows, depth)
        for scoring, ranker in rankers.items():
            ranking = nearest if scoring == "float" else ranker(rows, depth)
            for k in top_k:
                found[scoring][k] += _common(nearest[:, :k], ranking[:, :k], items)
            if labels is not None:
                report = evaluate_ranking(ranking, labels[0][rows], labels[1])
                precision[scoring] += len(ranking) * report.metrics["map"]
    recall = {
        scoring: {k: total / (k * queries) for k, total in totals.items()}
        for scoring, totals in found.items()
    }
    if labels is None:
        return recall, None
    return recall, {scoring: total / queries for scoring, total in precision.items()}


def _split(
    features: Features | tuple[Features, Features],
    labels: Labels | tuple[Labels, Labels] | None,
    queries: int,
    max_database: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """Return the rows of queries and database, and the labels of both: drawn from one set, or of a pair."""
    device = generator_device(generator)
    if not isinstance(features, tuple):
        if isinstance(labels, tuple):
            raise ValueError("labels are a pair, but features are not: give both as (query, database)")
        rows = EmbeddingBatches(features, _ROWS)
        count = rows.count()
        if count < 2:
            raise ValueError(f"there must be at least 2 rows, a query and an item, got {count}")
        order = torch.randperm(count, generator=generator, device=device).cpu()
        num_queries = min(queries, count // 2)
        sampled = order[:num_queries].sort().values
        kept = order[num_queries : num_queries + max_database].sort().values
        if labels is None:
            return rows.take(sampled), rows.take(kept), None
        labels = as_labels(labels, length=count).cpu()
        return rows.take(sampled), rows.take(kept), (labels[sampled], labels[kept])
    if len(features) != 2:
        raise ValueError(f"features must be a pair (query, database), got a tuple of {len(features)}")
    sides = tuple(EmbeddingBatches(side, _ROWS) for side in features)
    counts = [side.count() for side in sides]
    if 0 in counts:
        raise ValueError(f"a side is empty: got {counts[0]} queries and {counts[1]} items")
    sampled, kept = (torch.randperm(n, generator=generator, device=device).cpu() for n in counts)
    sampled, kept = sampled[:queries].sort().values, kept[:max_database].sort().values
    query, database = sides[0].take(sampled), sides[1].take(kept)
    if query.shape[1] != database.shape[1]:
        raise ValueError(f"queries are {query.shape[1]} wide, the database {database.shape[1]}")
    if labels is None:
        return query, database, None
    if not isinstance(labels, tuple) or len(labels) != 2:
        raise ValueError("features are a pair, so labels must be one, too: (query_labels, database_labels)")
    query_labels = as_labels(labels[0], length=counts[0], name="query_labels").cpu()
    database_labels = as_labels(labels[1], length=counts[1], name="database_labels").cpu()
    return query, database, (query_labels[sampled], database_labels[kept])


def _cuts(top_k: Sequence[int], items: int) -> list[int]:
    """Return the values of k as ints, each once."""
    if isinstance(top_k, int) or not hasattr(top_k, "__len__") or not len(top_k):
        raise ValueError(f"top_k must be a sequence of cuts such as (1, 10), got {top_k!r}")
    cuts = [check_integer("top_k", k, 1, items, advice="there are no more items") for k in top_k]
    return list(dict.fromkeys(cuts))


def _normalises(head: nn.Module) -> bool:
    """Return whether a head divides embeddings by their length."""
    backbone = head.backbone if isinstance(head, HashModel) else None
    return isinstance(backbone, EmbeddingInput) and backbone.normalize


def _batches(features: Tensor) -> tuple[Tensor, ...]:
    return features.split(_ROWS)  # type: ignore[no-untyped-call, no-any-return]


def _common(nearest: Tensor, ranking: Tensor, items: int) -> int:
    """Count the items that two rankings ``(q, k)`` have in common, over all queries."""
    is_near = torch.zeros(len(nearest), items, dtype=torch.bool).scatter_(1, nearest, True)
    return int(is_near.gather(1, ranking).sum())
