"""Copy detection: how many altered photos are found, at a given rate of false pairs, and how they rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_integer
from hybridhash._code_checks import from_numpy
from hybridhash._hamming import packed_distances
from hybridhash._tables import aligned
from hybridhash.codes import HashCodes, as_packed_pair
from hybridhash.eval.histogram import Array

__all__ = ["CopyReport", "evaluate_copies"]

_BLOCK = 1 << 22  # distances held at a time


@dataclass(frozen=True)
class CopyReport:
    """How well copies are found; see :func:`evaluate_copies`, which makes it.

    Attributes:
        queries: Number of queries.
        copies: How many of them are copies of a reference.
        references: Number of references.
        bits: Code length.
        average_precision: Micro average precision over all pairs.
        average_precision_interval: Its 95 % interval.
        false_pairs: The rates of false pairs.
        radius: The radius of each rate, -1 where even distance 0 has more.
        recall: The share of the copies within it.
        recall_interval: The 95 % interval of each.
    """

    queries: int
    copies: int
    references: int
    bits: int
    average_precision: float
    average_precision_interval: tuple[float, float]
    false_pairs: tuple[float, ...]
    radius: tuple[int, ...]
    recall: tuple[float, ...]
    recall_interval: tuple[tuple[float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields by name."""
        return asdict(self)

    def __str__(self) -> str:
        low, high = self.average_precision_interval
        rows = [
            ["micro average precision", f"{self.average_precision:.4f}", f"{low:.4f} to {high:.4f}"],
        ]
        for rate, radius, recall, (low, high) in zip(
            self.false_pairs, self.radius, self.recall, self.recall_interval, strict=True
        ):
            name = f"recall at {rate:g} false pairs (radius {radius})"
            rows.append([name, f"{recall:.4f}", f"{low:.4f} to {high:.4f}"])
        head = (
            f"{self.queries:,} queries, {self.copies:,} of them copies, against {self.references:,} "
            f"references, {self.bits} bits; ties expected, 95 % intervals over photos"
        )
        return f"{head}\n{aligned(rows)}"


def evaluate_copies(
    query_codes: Tensor | Array | HashCodes,
    database_codes: Tensor | Array | HashCodes,
    sources: Tensor | Array,
    *,
    bits: int | None = None,
    false_pairs: Sequence[float] = (1e-6, 1e-5, 1e-4),
    draws: int = 1000,
    generator: torch.Generator | None = None,
) -> CopyReport:
    """Measure how well copies are told from other photos: recall at rates of false pairs, average precision.

    All pairs of a query and a reference are ranked together by their distance. A pair is right if the query
    is a copy of the reference, and false otherwise.

    - The radius of a rate is the largest one within which at most this share of all false pairs lies. A
      radius takes all pairs of a distance or none. Recall is the share of the right pairs within it.
    - Micro average precision is ``sum_i p(i) (r(i) - r(i - 1))`` over the ranks i of this one list, with the
      precision p(i) of the first i pairs and the recall r(i). Of pairs at the same distance the exact mean
      over all their orders counts, as in every metric of this package.

    The intervals are from bootstrap samples over photos: all queries that are copies of one photo are drawn
    together, queries without a source each for itself, and the radius is chosen anew each time.

    Args:
        query_codes: Codes of ``Nq`` altered photos, in any form that :func:`hybridhash.hamming_topk` takes.
        database_codes: Codes of ``Nd`` references.
        sources: int64 ``(Nq,)``: the row of the reference that a query is a copy of, -1 for none.
        bits: The code length. It is needed only if both sides are packed tensors.
        false_pairs: Rates, above 0 and below 1.
        draws: The number of bootstrap samples.
        generator: The source of random numbers. None takes seed 0.

    Returns:
        The report.

    Raises:
        TypeError, ValueError: Codes are not valid, sources do not fit them or are all -1, there is no false
            pair, or a rate or number is out of range.

    Source: M. Douze et al., The 2021 Image Similarity Dataset and Challenge, arXiv 2106.09672, section 4.

    Example:
        >>> photos = torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1]])
        >>> altered = torch.tensor([[1.0, 1, 1, -1], [1, -1, -1, -1]])
        >>> report = evaluate_copies(altered, photos, torch.tensor([0, 1]), false_pairs=[0.01], draws=10)
        >>> report.radius, report.recall, report.average_precision
        ((2,), (1.0,), 1.0)
    """
    query, database, bits = as_packed_pair(query_codes, database_codes, bits=bits)
    sources = _sources(sources, len(query), len(database))
    for rate in false_pairs:
        if not 0 < rate < 1:
            raise ValueError(f"false_pairs must be rates above 0 and below 1, got {rate}")
    draws = check_integer("draws", draws, 1)
    generator = torch.Generator().manual_seed(0) if generator is None else generator

    items, copies = _counts_of_photos(query.cpu(), database.cpu(), sources, bits)
    if int(copies.sum()) == int(items.sum()):
        raise ValueError("there is no false pair: several references are needed")
    photos = len(items)
    all_items, all_copies = items.sum(0, keepdim=True), copies.sum(0, keepdim=True)
    drawn = torch.stack(
        [
            torch.randint(photos, (photos,), generator=generator).bincount(minlength=photos)
            for _ in range(draws)
        ]
    ).double()
    drawn_items, drawn_copies = drawn @ items, drawn @ copies
    some = (drawn_copies.sum(1) > 0) & ((drawn_items - drawn_copies).sum(1) > 0)
    drawn_items, drawn_copies = drawn_items[some], drawn_copies[some]

    radii, recalls, intervals = [], [], []
    for rate in false_pairs:
        radius, recall = _recall(all_items, all_copies, rate)
        radii.append(int(radius))
        recalls.append(float(recall))
        intervals.append(_interval(_recall(drawn_items, drawn_copies, rate)[1]))
    return CopyReport(
        queries=len(query),
        copies=int((sources >= 0).sum()),
        references=len(database),
        bits=bits,
        average_precision=float(_average_precision(all_items, all_copies)),
        average_precision_interval=_interval(_average_precision(drawn_items, drawn_copies)),
        false_pairs=tuple(float(rate) for rate in false_pairs),
        radius=tuple(radii),
        recall=tuple(recalls),
        recall_interval=tuple(intervals),
    )


def _sources(sources: Tensor | Array, queries: int, references: int) -> Tensor:
    if isinstance(sources, np.ndarray):
        sources = from_numpy(sources, "sources")
    if not isinstance(sources, Tensor) or sources.dtype.is_floating_point or sources.dtype == torch.bool:
        raise TypeError(f"sources must be integers, rows of the database or -1, got {sources!r}")
    if sources.shape != (queries,):
        raise ValueError(f"sources must be ({queries},), one for each query, got {tuple(sources.shape)}")
    sources = sources.long().cpu()
    if queries == 0 or int(sources.min()) < -1 or int(sources.max()) >= references:
        raise ValueError(
            f"sources must be rows of the {references} references, or -1, for at least one query"
        )
    if int(sources.max()) == -1:
        raise ValueError("sources are all -1: no query is a copy")
    return sources


def _counts_of_photos(query: Tensor, database: Tensor, sources: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Count pairs and right pairs at each distance, for each photo that queries come from.

    Returns:
        ``(items, copies)``: float64 ``(photos, bits + 1)``. Queries without a source are photos of their own.
    """
    alone = len(database) + torch.arange(len(query))
    _, number = np.unique(torch.where(sources >= 0, sources, alone).numpy(), return_inverse=True)
    photo = torch.from_numpy(number)
    shape = (int(photo.max()) + 1, bits + 1)
    items, copies = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    step = max(1, _BLOCK // len(database))
    for start in range(0, len(query), step):
        rows = slice(start, start + step)
        distances = packed_distances(query[rows], database, bits).long()
        keys = distances + (bits + 1) * torch.arange(len(distances))[:, None]
        counted = keys.flatten().bincount(minlength=len(distances) * (bits + 1))
        items.index_add_(0, photo[rows], counted.reshape(len(distances), -1).double())
        found = (sources[rows] >= 0).nonzero()[:, 0]
        right = distances[found, sources[rows][found]]
        copies.index_put_((photo[rows][found], right), torch.ones(len(found)).double(), accumulate=True)
    return items, copies


def _recall(items: Tensor, copies: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Radius and recall at a rate of false pairs, of counts ``(samples, bits + 1)``."""
    false = (items - copies).cumsum(1)
    within = false <= rate * false[:, -1:]
    radius = within.sum(1) - 1
    found = (copies * within).sum(1)
    return radius, found / copies.sum(1)


def _average_precision(items: Tensor, copies: Tensor) -> Tensor:
    """Expected micro average precision of counts ``(samples, bits + 1)``, exact over orders of ties.

    In a group of n pairs, r of them right, after a pairs with R right ones, the pair at place j is right
    with probability r / n, and then R + 1 + (j - 1) s right pairs are among the first a + j, in the mean,
    with s = (r - 1) / (n - 1). So the group adds
    r / n * sum_j (R + 1 + (j - 1) s) / (a + j) = r / n * ((R + 1 - (a + 1) s) (H(a + n) - H(a)) + s n),
    where H are the harmonic numbers.
    """
    n, r = items, copies
    a, R = n.cumsum(1) - n, r.cumsum(1) - r
    s = torch.where(n > 1, (r - 1) / (n - 1).clamp(min=1), 0.0)
    harmonic = torch.digamma(a + n + 1) - torch.digamma(a + 1)
    sums = r / n.clamp(min=1) * ((R + 1 - (a + 1) * s) * harmonic + s * n)
    return sums.sum(1) / r.sum(1)


def _interval(values: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
