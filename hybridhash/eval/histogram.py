"""From codes and labels to the one thing every retrieval metric is computed from: the distance histogram.

A query meets the database in tie groups: all items at one Hamming distance. How many items of each relevance
grade a tie group holds decides every metric, whatever the order of the database. A ranking without ties
(:mod:`hybridhash.eval.ranking`) is the same thing with at most one item in each group.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

import numpy as np
import torch
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
from torch import Tensor

from hybridhash._checks import check_choice, check_integer
from hybridhash._code_checks import from_numpy
from hybridhash._hamming import machine_words, packed_counts, packed_distances, unpack_bits
from hybridhash.asymmetric import Metric, RealQueries, as_real_queries, factors_of
from hybridhash.codes import HashCodes, as_packed_pair
from hybridhash.labels import as_labels, most_labels, same_form, shared_labels

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "DistanceHistogram",
    "InputOptions",
    "QueryDatabase",
    "Scoring",
    "as_self_rows",
    "check_hamming",
    "check_rows",
    "distance_histogram",
    "histogram_of",
    "query_database",
]

Array: TypeAlias = "np.ndarray[Any, Any]"
Scoring = Literal["hamming", "asymmetric"]

# Database items counted at a time on the CPU: their distances stay in the cache, and torch counts so many in
# one thread, without waiting for others on busy cores.
_SPAN = 1 << 15
# Bytes of the labels of such a span, one for each item and class.
_LABEL_BYTES = 32 << 20
# Elsewhere: bytes of temporary tensors, what a pair takes of them, and counts of a block of queries.
_BUDGET, _BYTES_PER_PAIR, _TABLE = 256 << 20, 40, 1 << 22


class InputOptions(TypedDict, total=False):
    """Options of every function that compares queries with a database.

    Attributes:
        bits: The code length; needed only if both sides are packed tensors.
        exclude_self: Leave each query out of its own ranking, for queries that are items of the database.
            True matches the ``ids`` of two HashCodes. For tensors, give the database row of each query, int
            ``(Nq,)``, -1 for a query that is not in the database. The default is False.
        chunk_size: The largest number of database items compared at a time; it never changes the result. On
            the CPU 8,192 took 1.6 times as long as the default, and 1,024 six times.
        progress: Show a progress bar. The default is False.
        scoring: What ranks the database. ``"hamming"``, the default: Hamming distances. ``"asymmetric"``: the
            products of real-valued queries ``(Nq, bits)`` with the signs of the database, as
            :func:`hybridhash.asymmetric.asymmetric_topk` has them; items of equal score are tied.
        metric: ``"dot"``, the default, or ``"euclidean"``: the scores of ``scoring="asymmetric"``. They rank
            differently only if the database carries factors.
    """

    bits: int | None
    exclude_self: bool | Tensor | Array
    chunk_size: int | None
    progress: bool
    scoring: Scoring
    metric: Metric


@dataclass(frozen=True)
class QueryDatabase:
    """Queries and database, checked, in canonical form and on one device.

    Attributes:
        query: Packed codes of the queries, uint8 ``(Nq, ceil(bits / 8))``.
        database: Packed codes of the database, uint8 ``(Nd, ceil(bits / 8))``.
        bits: The code length.
        query_labels: int64 ``(Nq,)``, or bool ``(Nq, C)``; of the same form on both sides.
        database_labels: int64 ``(Nd,)``, or bool ``(Nd, C)``.
        self_rows: None, or int64 ``(Nq,)``: the database row that is the query itself and is left out of its
            ranking, -1 where there is none.
        chunk_size: The largest number of database items compared at a time, or None.
        progress: Whether to show a progress bar.
        real_query: The real-valued queries if these rank the database; None for Hamming distances.
        factors: Norm and alignment of the database codes for them, float32 ``(Nd, 2)``, or None.
    """

    query: Tensor
    database: Tensor
    bits: int
    query_labels: Tensor
    database_labels: Tensor
    self_rows: Tensor | None = None
    chunk_size: int | None = None
    progress: bool = False
    real_query: RealQueries | None = None
    factors: Tensor | None = None


@dataclass(frozen=True)
class DistanceHistogram:
    """Items of each relevance grade at each distance, for several queries.

    Attributes:
        counts: int64 ``(Nq, groups, grades)``; ``counts[q, d, s]`` items of tie group ``d`` share ``s``
            labels with query ``q``. Groups are in the order of retrieval: the Hamming distances 0..bits.
            Where only relevance is counted there are two grades, 0 and 1. Of a ranking: bool, one group for
            each rank, empty groups last.
        grades: int64 ``(Nq, grades)``: items of each grade in the whole database; more than ``counts`` sums
            to if the groups are only the head of a ranking.
        is_ranking: Whether each group is a rank, so that there are no ties.
    """

    counts: Tensor
    grades: Tensor
    is_ranking: bool = False

    def __len__(self) -> int:
        """Return the number of queries."""
        return self.counts.shape[0]

    def __getitem__(self, queries: slice | Tensor) -> DistanceHistogram:
        """Return the histogram of some of the queries."""
        return DistanceHistogram(self.counts[queries], self.grades[queries], self.is_ranking)

    @property
    def items(self) -> Tensor:
        """Items in each group: int64 ``(Nq, groups)``."""
        return self.counts.sum(2)

    @property
    def relevant(self) -> Tensor:
        """Items in each group that share at least one label with the query: int64 ``(Nq, groups)``."""
        return self.counts[:, :, 1:].sum(2)

    @property
    def total_items(self) -> Tensor:
        """Items in the database: int64 ``(Nq,)``."""
        return self.grades.sum(1)

    @property
    def total_relevant(self) -> Tensor:
        """Relevant items in the database: int64 ``(Nq,)``."""
        return self.grades[:, 1:].sum(1)

    def gains(self, *, exponential: bool = False) -> Tensor:
        """Sum the numbers s of shared labels, or 2^s - 1, of each group: float64 ``(Nq, groups)``."""
        grade = torch.arange(self.counts.shape[2], dtype=torch.float64, device=self.counts.device)
        return self.counts.double() @ (torch.exp2(grade) - 1 if exponential else grade)


def distance_histogram(
    query_codes: Tensor | Array | HashCodes,
    query_labels: Tensor | Array | HashCodes | None = None,
    database_codes: Tensor | Array | HashCodes | None = None,
    database_labels: Tensor | Array | None = None,
    *,
    graded: bool = False,
    **options: Unpack[InputOptions],
) -> DistanceHistogram:
    """Count the items of each relevance grade at each Hamming distance 0..bits, for each query, in one pass.

    Needs at most 256 MiB above its inputs and outputs, for any size of the database. The functions of
    :mod:`hybridhash.eval.functional` compute every metric from the result.

    Args:
        query_codes: Codes of the queries, see :func:`~hybridhash.eval.histogram.query_database`; two
            HashCodes may stand for the first four arguments.
        query_labels: Class ids ``(Nq,)`` or multi-hot ``(Nq, C)``.
        database_codes: Codes of the ``Nd`` database items.
        database_labels: Class ids ``(Nd,)`` or multi-hot ``(Nd, C)``.
        graded: Count items by the number of labels shared with the query, not only as relevant or not.
        **options: ``bits``, ``exclude_self``, ``chunk_size`` and ``progress``, see
            :class:`~hybridhash.eval.histogram.InputOptions`.

    Returns:
        The histogram, on the device of the codes.

    Raises:
        TypeError, ValueError: See :func:`~hybridhash.eval.histogram.query_database`.

    Example:
        >>> query, database = torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 1], [1, -1], [-1, -1], [-1, -1]])
        >>> histogram = distance_histogram(query, torch.tensor([0]), database, torch.tensor([0, 0, 1, 0]))
        >>> histogram.items, histogram.relevant
        (tensor([[1, 1, 2]]), tensor([[1, 1, 1]]))
    """
    data = query_database(query_codes, query_labels, database_codes, database_labels, options)
    check_hamming(data, "a histogram of distances", "use evaluate or a metric with a cut")
    return histogram_of(data, graded=graded)


def query_database(
    query_codes: Tensor | Array | HashCodes,
    query_labels: Tensor | Array | HashCodes | None,
    database_codes: Tensor | Array | HashCodes | None,
    database_labels: Tensor | Array | None,
    options: InputOptions,
    known: type = InputOptions,
) -> QueryDatabase:
    """Check the arguments that all retrieval functions share.

    Args:
        query_codes: Real-valued or ±1 ``(Nq, bits)``, packed uint8 ``(Nq, ceil(bits / 8))``, or
            :class:`~hybridhash.codes.HashCodes`, which carry their labels.
        query_labels: Class ids ``(Nq,)`` or multi-hot ``(Nq, C)``; may be left out for HashCodes. Two
            HashCodes may be given in a row: ``metric(query, database)``.
        database_codes: As ``query_codes``, for ``Nd`` items; may be of another form.
        database_labels: As ``query_labels``; may be of the other form.
        options: The keyword arguments of the caller; those of :class:`InputOptions` are used here.
        known: The class that declares all of them.

    Raises:
        TypeError, ValueError: An unknown option; a missing or empty side; bits, label spaces or devices that
            differ; NaN codes; labels of the wrong shape; ids that are missing, repeated or out of range.

    Warns:
        UserWarning: All database codes are the same, so that every item ties with every other.
    """
    for name in options:
        if name not in known.__annotations__:
            raise _unknown_option(name, list(known.__annotations__))
    if isinstance(query_labels, HashCodes):
        if database_codes is not None or database_labels is not None:
            raise TypeError("the second argument is HashCodes, so it is the database: give no other database")
        database_codes = query_labels
        query_labels = None
    if database_codes is None:
        raise TypeError("database_codes is missing: give codes and labels of queries and of the database")
    bits, scoring, metric = options.get("bits"), options.get("scoring", "hamming"), options.get("metric")
    check_choice("scoring", scoring, get_args(Scoring))
    real_query, factors = None, None
    if scoring == "asymmetric":
        real_query, query, database = as_real_queries(query_codes, database_codes, metric or "dot", bits=bits)
        bits, factors = real_query.bits, factors_of(database_codes)
    elif metric is not None:
        raise ValueError(f"metric={metric!r} goes with scoring='asymmetric': Hamming distances have none")
    else:
        query, database, bits = as_packed_pair(query_codes, database_codes, bits=bits)
    labels = []
    for side, given, name in (
        (query_codes, query_labels, "query_labels"),
        (database_codes, database_labels, "database_labels"),
    ):
        if given is None and isinstance(side, HashCodes):
            given = side.labels
            if given is None:
                raise ValueError(f"{name} is missing: the HashCodes carry no labels")
        if given is None:
            raise TypeError(f"{name} is missing: class ids (N,) or multi-hot rows (N, C)")
        length = len(query) if name == "query_labels" else len(database)
        labels.append(as_labels(given, length=length, name=name).to(query.device))
    both_labels = same_form(*labels)
    if len(database) > 1 and bool((database == database[0]).all()):
        warnings.warn(
            f"all {len(database)} database codes are the same: every item ties, and retrieval is at chance",
            stacklevel=3,
        )
    chunk_size = options.get("chunk_size")
    if chunk_size is not None:
        chunk_size = check_integer("chunk_size", chunk_size, 1, advice="use None to choose")
    progress = options.get("progress", False)
    check_choice("progress", progress, (True, False))
    self_rows = None
    exclude_self = options.get("exclude_self")
    if exclude_self is True:
        self_rows = _rows_of_ids(query_codes, database_codes).to(query.device)
    elif exclude_self is not None and exclude_self is not False:
        self_rows = as_self_rows(exclude_self, len(query), len(database)).to(query.device)
    return QueryDatabase(
        query, database, bits, *both_labels, self_rows, chunk_size, progress, real_query, factors
    )


def _unknown_option(name: str, known: list[str]) -> TypeError:
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
    return TypeError(f"unknown option {name!r}: {hint}")


def check_hamming(data: QueryDatabase, what: str, advice: str) -> None:
    """Raise ValueError if real-valued queries rank the database: their scores have no radius."""
    if data.real_query is not None:
        raise ValueError(f"{what} needs Hamming distances, scoring='asymmetric' has none: {advice}")


def histogram_of(data: QueryDatabase, *, graded: bool) -> DistanceHistogram:
    """Compute :func:`distance_histogram` of checked inputs."""
    grades = 2
    if graded and data.query_labels.ndim == 2:
        grades = 1 + max(1, min(most_labels(data.query_labels), most_labels(data.database_labels)))
    if data.query.device.type == "cpu":
        counts = torch.zeros((len(data.query), data.bits + 1, grades), dtype=torch.int64)
        query = machine_words(data.query.numpy())
        span = min(data.chunk_size or _SPAN, _SPAN)
        if data.query_labels.ndim == 2:
            span = max(1, min(span, _LABEL_BYTES // data.query_labels.shape[1]))
        starts = range(0, len(data.database), span)
        for start in tqdm(starts, desc="compare", unit="chunk", disable=not data.progress):  # type: ignore[no-untyped-call]
            part = slice(start, start + span)
            items = machine_words(data.database[part].numpy())
            grade_of = _grade_rows(data.query_labels, data.database_labels[part], grades, graded)
            packed_counts(query, items, grade_of, counts.numpy())
    else:
        counts = _count_on_device(data, grades, graded)
    if data.self_rows is not None:
        rows = (data.self_rows >= 0).nonzero()[:, 0]
        own = data.self_rows[rows]
        differing = unpack_bits(data.query[rows], data.bits) != unpack_bits(data.database[own], data.bits)
        grade = _shared_with_self(data.query_labels[rows], data.database_labels[own]).clamp(max=grades - 1)
        counts[rows, differing.sum(1), grade] -= 1
    return DistanceHistogram(counts, counts.sum(1))


def _grade_rows(query_labels: Tensor, labels: Tensor, grades: int, graded: bool) -> Callable[[int], Array]:
    """Return a function from the row of a query to the grade of each item: unsigned ``(n,)``."""
    if query_labels.ndim == 1:
        query = query_labels.tolist()
        small = np.min_scalar_type(-2 - max(0, int(labels.max())))  # few bytes an item are compared faster
        ids = labels.masked_fill(labels < 0, -2).numpy().astype(small)  # two times -1 is no common label
        return lambda row: np.equal(ids, query[row]).view(np.uint8)

    # One row of bytes for each class: the rows of the query's own classes are joined.
    hot = query_labels.numpy()
    classes = np.ascontiguousarray(labels.numpy().T).view(np.uint8)
    kind = np.min_scalar_type(grades - 1)

    def grade_of(row: int) -> Array:
        own = classes[np.flatnonzero(hot[row])]
        joined = np.add.reduce(own, axis=0, dtype=kind) if graded else np.bitwise_or.reduce(own, axis=0)
        return np.asarray(joined)

    return grade_of


def _count_on_device(data: QueryDatabase, grades: int, graded: bool) -> Tensor:
    """Count the same in operations of torch: query, distance and grade of a block of pairs in one key."""
    pairs = _BUDGET // _BYTES_PER_PAIR
    size = (data.bits + 1) * grades
    columns = min(len(data.database), data.chunk_size or len(data.database), pairs)
    step = max(1, min(pairs // columns, _TABLE // size))
    counts = torch.zeros((len(data.query), size), dtype=torch.int64, device=data.query.device)
    tops = range(0, len(counts), step)
    for top in tqdm(tops, desc="compare", unit="chunk", disable=not data.progress):  # type: ignore[no-untyped-call]
        rows = slice(top, min(top + step, len(counts)))
        first_key = torch.arange(0, (rows.stop - top) * size, size, device=counts.device)[:, None]
        for left in range(0, len(data.database), columns):
            items = slice(left, left + columns)
            distances = packed_distances(data.query[rows], data.database[items], data.bits)
            with torch.autocast(counts.device.type, enabled=False):  # half precision does not count
                shared = shared_labels(data.query_labels[rows], data.database_labels[items])
            grade = shared if graded else shared > 0
            keys = distances.to(torch.int32) * grades + grade.to(torch.int32) + first_key.to(torch.int32)
            counts[rows] += torch.bincount(keys.flatten(), minlength=len(first_key) * size).view(-1, size)
    return counts.view(len(counts), data.bits + 1, grades)


def _shared_with_self(query_labels: Tensor, item_labels: Tensor) -> Tensor:
    """Count the labels that each query shares with one item: int64 ``(q,)``."""
    if query_labels.ndim == 1:
        return ((query_labels == item_labels) & (query_labels >= 0)).long()
    return (query_labels & item_labels).sum(1)


def _rows_of_ids(query: object, database: object) -> Tensor:
    """Find the database row with the id of each query, -1 where there is none: int64 ``(Nq,)``."""
    query_ids = query.ids if isinstance(query, HashCodes) else None
    database_ids = database.ids if isinstance(database, HashCodes) else None
    if query_ids is None or database_ids is None:
        raise ValueError(
            "exclude_self=True matches queries and database by id: give HashCodes with ids, or give "
            "exclude_self the database row of each query"
        )
    sorted_ids, rows = database_ids.sort()
    repeated = sorted_ids[1:][sorted_ids[1:] == sorted_ids[:-1]]
    if len(repeated):
        raise ValueError(f"exclude_self=True needs unique database ids, got id {int(repeated[0])} twice")
    query_ids = query_ids.to(sorted_ids.device)
    place = torch.searchsorted(sorted_ids, query_ids).clamp(max=len(rows) - 1)
    return torch.where(sorted_ids[place] == query_ids, rows[place], -1)


def as_self_rows(exclude_self: object, queries: int, items: int) -> Tensor:
    """Return the database row of each query, -1 where there is none, checked: int64 ``(Nq,)``."""
    if isinstance(exclude_self, np.ndarray):
        exclude_self = from_numpy(exclude_self, "exclude_self")
    if not isinstance(exclude_self, Tensor):
        raise TypeError(
            f"exclude_self must be a bool or a tensor of database rows, got {type(exclude_self).__name__}"
        )
    check_rows("exclude_self", exclude_self[..., None], queries, items)
    return exclude_self.long()


def check_rows(name: str, rows: Tensor, queries: int, items: int) -> None:
    """Raise unless ``rows (queries, k)`` holds database rows, or -1."""
    if rows.dtype.is_floating_point or rows.dtype.is_complex or rows.dtype == torch.bool:
        raise TypeError(f"{name} must be database rows, an integer tensor, got {rows.dtype}")
    if rows.ndim != 2 or rows.shape[0] != queries or rows.shape[1] == 0:
        raise ValueError(f"{name} must have a row for each of {queries} queries, got {tuple(rows.shape)}")
    if rows.numel() and not -1 <= int(rows.min()) <= int(rows.max()) < items:
        raise ValueError(
            f"{name} must hold database rows 0..{items - 1} or -1, got {int(rows.min())}..{int(rows.max())}"
        )
