"""Retrieval metrics of binary codes: exact under ties, independent of the order of the database.

All functions take the same arguments in the same order: codes and labels of the queries, codes and labels of
the database (see :func:`hybridhash.eval.inputs.as_sides`); two :class:`~hybridhash.codes.HashCodes` may stand
for the four. What is done with items at equal distance (``ties``):

- ``"expected"``: the exact mean over all orders of the tied items. No order of the database changes it.
- ``"stable"``: tied items in database order, as a stable sort leaves them.
- ``"best"``, ``"worst"``: the largest and the smallest value that an order of the tied items can give.

``empty="zero"`` counts a query for which the metric is not defined (it has no relevant item) as 0;
``empty="skip"`` leaves it out of the mean. ``aggregation="mean"`` gives one number, ``None`` one per query
(NaN for those left out). ``top_k=None`` is the whole database; several cuts in one call share the pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import Tensor

from hybridhash.codes import HashCodes
from hybridhash.eval import closed_forms
from hybridhash.eval.average_precision import Denominator, average_precision
from hybridhash.eval.definitions import published_average_precision
from hybridhash.eval.inputs import as_sides, check_choice, check_cuts
from hybridhash.eval.measure import Aggregation, Empty, Ties, aggregate, measure

__all__ = [
    "acg_at_k",
    "hit_rate_at_k",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "ndcg_at_k",
    "precision_at_k",
    "recall_at_k",
    "weighted_map",
]

Gain = Literal["exponential", "linear"]


def mean_average_precision(
    query_codes: Tensor | HashCodes,
    query_labels: Tensor | HashCodes | None = None,
    database_codes: Tensor | HashCodes | None = None,
    database_labels: Tensor | None = None,
    *,
    top_k: int | Sequence[int | None] | None = None,
    ties: Ties = "expected",
    denominator: Denominator = "hits",
    empty: Empty = "zero",
    definition: str | None = None,
    aggregation: Aggregation = "mean",
    bits: int | None = None,
    exclude_self: bool | Tensor = False,
    chunk_size: int | None = None,
) -> Tensor:
    """Mean over the queries of the average precision of the first ``top_k`` items by Hamming distance.

    ``AP = (1/D) sum_{t <= top_k} rel_t * (hits up to rank t) / t``.

    Args:
        query_codes: real-valued or ±1 ``(Nq, bits)``, packed uint8 ``(Nq, ceil(bits / 8))``, or HashCodes.
        query_labels: class ids ``(Nq,)`` or multi-hot ``(Nq, C)``; HashCodes carry theirs.
        database_codes: codes of the ``Nd`` database items.
        database_labels: their labels.
        top_k: the cut, None for the whole database; a sequence of cuts gives a value for each.
        ties: ``expected``, ``stable``, ``best`` or ``worst``; see the module.
        denominator: D: ``hits``, the relevant items among the first ``top_k`` (the hashing literature); or
            ``relevant``, ``min(top_k, all relevant items)`` (information retrieval).
        empty: ``zero`` or ``skip``, for queries without a relevant item (with ``hits``: without one among the
            first ``top_k`` in any order of the ties).
        definition: compute what a published code base computes, instead of the rules above: a key of
            :data:`DEFINITIONS <hybridhash.eval.definitions.DEFINITIONS>`.
        aggregation: ``mean``, or None for one value per query.
        bits: code length; needed only if both sides are packed tensors.
        exclude_self: leave each query out of its own ranking, by ids; or the database row of each query.
        chunk_size: largest number of database items compared at a time; it never changes the result.

    Returns:
        float64: a scalar, or ``(Nq,)`` with ``aggregation=None``; preceded by a dimension for the cuts if
        ``top_k`` is a sequence. NaN if ``empty="skip"`` leaves no query.

    Raises:
        TypeError, ValueError: see :func:`hybridhash.eval.inputs.as_sides`; ``top_k < 1``; an unknown rule.

    Source: He et al., "Hashing as Tie-Aware Learning to Rank", CVPR 2018, for the mean over ties.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([0, 1, 0, 0])
        >>> mean_average_precision(query, torch.tensor([0]), database, labels, top_k=3)
        tensor(0.9167, dtype=torch.float64)
    """
    if definition is not None:
        if (ties, denominator, empty) != ("expected", "hits", "zero"):
            raise ValueError("definition sets ties, denominator and empty: leave them out")
        values = published_average_precision(
            definition,
            query_codes,
            query_labels,
            database_codes,
            database_labels,
            top_k=check_cuts(top_k),
            bits=bits,
            exclude_self=exclude_self,
            chunk_size=chunk_size,
        )
        values = aggregate(values, "skip", aggregation)
        return values if isinstance(top_k, Sequence) else values[0]
    sides = as_sides(
        query_codes, query_labels, database_codes, database_labels, bits=bits, exclude_self=exclude_self
    )
    check_choice("denominator", denominator, ("hits", "relevant"))
    form = partial(average_precision, denominator=denominator)
    return measure(form, sides, top_k, ties, empty, aggregation, chunk_size)


def precision_at_k(
    query_codes: Tensor | HashCodes,
    query_labels: Tensor | HashCodes | None = None,
    database_codes: Tensor | HashCodes | None = None,
    database_labels: Tensor | None = None,
    *,
    top_k: int | Sequence[int | None] | None = None,
    ties: Ties = "expected",
    empty: Empty = "zero",
    aggregation: Aggregation = "mean",
    bits: int | None = None,
    exclude_self: bool | Tensor = False,
    chunk_size: int | None = None,
) -> Tensor:
    """Share of relevant items among the first ``min(top_k, Nd)`` by Hamming distance (P@k).

    Arguments, result and errors: see :func:`mean_average_precision`.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([1, 0, 1, 0])
        >>> precision_at_k(query, torch.tensor([0]), database, labels, top_k=2)
        tensor(0.2500, dtype=torch.float64)
    """
    sides = as_sides(
        query_codes, query_labels, database_codes, database_labels, bits=bits, exclude_self=exclude_self
    )
    return measure(closed_forms.precision, sides, top_k, ties, empty, aggregation, chunk_size)


def recall_at_k(
    query_codes: Tensor | HashCodes,
    query_labels: Tensor | HashCodes | None = None,
    database_codes: Tensor | HashCodes | None = None,
    database_labels: Tensor | None = None,
    *,
    top_k: int | Sequence[int | None] | None = None,
    ties: Ties = "expected",
    empty: Empty = "zero",
    aggregation: Aggregation = "mean",
    bits: int | None = None,
    exclude_self: bool | Tensor = False,
    chunk_size: int | None = None,
) -> Tensor:
    """Share of all relevant items that are among the first ``top_k`` by Hamming distance (R@k).

    Arguments, result and errors: see :func:`mean_average_precision`.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([1, 0, 1, 0])
        >>> recall_at_k(query, torch.tensor([0]), database, labels, top_k=2)
        tensor(0.2500, dtype=torch.float64)
    """
    sides = as_sides(
        query_codes, query_labels, database_codes, database_labels, bits=bits, exclude_self=exclude_self
    )
    return measure(closed_forms.recall, sides, top_k, ties, empty, aggregation, chunk_size)


def hit_rate_at_k(
    query_codes: Tensor | HashCodes,
    query_labels: Tensor | HashCodes | None = None,
    database_codes: Tensor | HashCodes | None = None,
    database_labels: Tensor | None = None,
    *,
    top_k: int | Sequence[int | None] | None = None,
    ties: Ties = "expected",
    empty: Empty = "zero",
    aggregation: Aggregation = "mean",
    bits: int | None = None,
    exclude_self: bool | Tensor = False,
    chunk_size: int | None = None,
) -> Tensor:
    """Share of queries with a relevant item among the first ``top_k``; in the mean over ties.

    Metric learning calls this Recall@k.

    Arguments, result and errors: see :func:`mean_average_precision`.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([1, 0, 1, 0])
        >>> hit_rate_at_k(query, torch.tensor([0]), database, labels, top_k=2)
        tensor(0.5000, dtype=torch.float64)
    """
    sides = as_sides(
        query_codes, query_labels, database_codes, database_labels, bits=bits, exclude_self=exclude_self
    )
    return measure(closed_forms.hit_rate, sides, top_k, ties, empty, aggregation, chunk_size)


def mean_reciprocal_rank(
    query_codes: Tensor | HashCodes,
    query_labels: Tensor | HashCodes | None = None,
    database_codes: Tensor | HashCodes | None = None,
    database_labels: Tensor | None = None,
    *,
    top_k: int | Sequence[int | None] | None = None,
    ties: Ties = "expected",
    empty: Empty = "zero",
    aggregation: Aggregation = "mean",
    bits: int | None = None,
    exclude_self: bool | Tensor = False,
    chunk_size: int | None = None,
) -> Tensor:
    """Mean of 1 / (rank of the first relevant item), 0 where it lies beyond ``top_k`` (MRR).

    Arguments, result and errors: see :func:`mean_average_precision`.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([1, 0, 1, 0])
        >>> mean_reciprocal_rank(query, torch.tensor([0]), database, labels, top_k=2)
        tensor(0.2500, dtype=torch.float64)
    """
    sides = as_sides(
        query_codes, query_labels, database_codes, database_labels, bits=bits, exclude_self=exclude_self
    )
    return measure(closed_forms.reciprocal_rank, sides, top_k, ties, empty, aggregation, chunk_size)


def ndcg_at_k(
    query_codes: Tensor | HashCodes,
    query_labels: Tensor | HashCodes | None = None,
    database_codes: Tensor | HashCodes | None = None,
    database_labels: Tensor | None = None,
    *,
    top_k: int | Sequence[int | None] | None = None,
    ties: Ties = "expected",
    gain: Gain = "exponential",
    empty: Empty = "zero",
    aggregation: Aggregation = "mean",
    bits: int | None = None,
    exclude_self: bool | Tensor = False,
    chunk_size: int | None = None,
) -> Tensor:
    """Normalised discounted cumulative gain of the first ``top_k`` items (NDCG@k).

    ``DCG = sum_{t <= top_k} gain_t / log2(1 + t)``, divided by the DCG of the ideal ranking. An item that
    shares r labels with the query gains ``2^r - 1``, or r with ``gain="linear"``.

    Source: Zhao et al., "Deep Semantic Ranking Based Hashing for Multi-Label Image Retrieval", CVPR 2015;
    ties as He et al., "Hashing as Tie-Aware Learning to Rank", CVPR 2018.

    Arguments, result and errors: see :func:`mean_average_precision`.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([1, 0, 1, 0])
        >>> ndcg_at_k(query, torch.tensor([0]), database, labels, top_k=2)
        tensor(0.1934, dtype=torch.float64)
    """
    sides = as_sides(
        query_codes, query_labels, database_codes, database_labels, bits=bits, exclude_self=exclude_self
    )
    check_choice("gain", gain, ("exponential", "linear"))
    form = partial(closed_forms.ndcg, exponential=gain == "exponential")
    return measure(form, sides, top_k, ties, empty, aggregation, chunk_size, graded=True)


def acg_at_k(
    query_codes: Tensor | HashCodes,
    query_labels: Tensor | HashCodes | None = None,
    database_codes: Tensor | HashCodes | None = None,
    database_labels: Tensor | None = None,
    *,
    top_k: int | Sequence[int | None] | None = None,
    ties: Ties = "expected",
    empty: Empty = "zero",
    aggregation: Aggregation = "mean",
    bits: int | None = None,
    exclude_self: bool | Tensor = False,
    chunk_size: int | None = None,
) -> Tensor:
    """Mean number of labels that the first ``min(top_k, Nd)`` items share with the query (ACG@k).

    Source: Zhao et al., "Deep Semantic Ranking Based Hashing for Multi-Label Image Retrieval", CVPR 2015.

    Arguments, result and errors: see :func:`mean_average_precision`.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([1, 0, 1, 0])
        >>> acg_at_k(query, torch.tensor([0]), database, labels, top_k=2)
        tensor(0.2500, dtype=torch.float64)
    """
    sides = as_sides(
        query_codes, query_labels, database_codes, database_labels, bits=bits, exclude_self=exclude_self
    )
    return measure(
        closed_forms.average_cumulative_gain, sides, top_k, ties, empty, aggregation, chunk_size, graded=True
    )


def weighted_map(
    query_codes: Tensor | HashCodes,
    query_labels: Tensor | HashCodes | None = None,
    database_codes: Tensor | HashCodes | None = None,
    database_labels: Tensor | None = None,
    *,
    top_k: int | Sequence[int | None] | None = None,
    ties: Ties = "expected",
    denominator: Denominator = "hits",
    empty: Empty = "zero",
    aggregation: Aggregation = "mean",
    bits: int | None = None,
    exclude_self: bool | Tensor = False,
    chunk_size: int | None = None,
) -> Tensor:
    """Mean average precision with ACG in place of precision (weighted mAP).

    ``AP_w = (1/D) sum_{t <= top_k} rel_t ACG@t``: the mean over the relevant ranks of the mean number of
    labels shared down to that rank.

    Source: Zhao et al., "Deep Semantic Ranking Based Hashing for Multi-Label Image Retrieval", CVPR 2015.

    Arguments, result and errors: see :func:`mean_average_precision`.

    Example:
        >>> import torch
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> labels = torch.tensor([1, 0, 1, 0])
        >>> weighted_map(query, torch.tensor([0]), database, labels, top_k=2)
        tensor(0.2500, dtype=torch.float64)
    """
    sides = as_sides(
        query_codes, query_labels, database_codes, database_labels, bits=bits, exclude_self=exclude_self
    )
    check_choice("denominator", denominator, ("hits", "relevant"))
    form = partial(average_precision, denominator=denominator, weighted=True)
    return measure(form, sides, top_k, ties, empty, aggregation, chunk_size, graded=True)
