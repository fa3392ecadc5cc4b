"""Both sides of a retrieval experiment, checked once: what every metric takes as its arguments."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridhash.codes import HashCodes, as_packed_pair
from hybridhash.labels import as_labels

__all__ = [
    "Sides",
    "as_sides",
    "check_choice",
    "check_chunk_size",
    "check_cuts",
    "check_radius",
    "check_rank",
    "check_rows",
    "check_top_k",
    "most_labels",
    "same_form",
]


@dataclass(frozen=True)
class Sides:
    """Queries and database in canonical form, all on one device.

    Attributes:
        query: packed codes of the queries, uint8 ``(Nq, ceil(bits / 8))``.
        database: packed codes of the database, uint8 ``(Nd, ceil(bits / 8))``.
        bits: code length.
        query_labels: int64 ``(Nq,)``, or bool ``(Nq, C)``; of the same form on both sides.
        database_labels: int64 ``(Nd,)``, or bool ``(Nd, C)``.
        own: None, or int64 ``(Nq,)``: the database row that is the query itself and is left out of its
            ranking, -1 where there is none.
    """

    query: Tensor
    database: Tensor
    bits: int
    query_labels: Tensor
    database_labels: Tensor
    own: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of database items that a query can retrieve, at most."""
        return self.database.shape[0]

    def queries(self, rows: slice) -> Sides:
        """The same database with some of the queries."""
        own = None if self.own is None else self.own[rows]
        return Sides(
            self.query[rows], self.database, self.bits, self.query_labels[rows], self.database_labels, own
        )


def as_sides(
    query_codes: Tensor | HashCodes,
    query_labels: Tensor | HashCodes | None = None,
    database_codes: Tensor | HashCodes | None = None,
    database_labels: Tensor | None = None,
    *,
    bits: int | None = None,
    exclude_self: bool | Tensor = False,
) -> Sides:
    """Check the arguments that all metrics share.

    Args:
        query_codes: real-valued or ±1 ``(Nq, bits)``, packed uint8 ``(Nq, ceil(bits / 8))``, or
            :class:`~hybridhash.codes.HashCodes`, which carry their labels.
        query_labels: class ids ``(Nq,)`` or multi-hot ``(Nq, C)``; may be left out for HashCodes. Two
            HashCodes may be given in a row: ``metric(query, database)``.
        database_codes: as ``query_codes``, for ``Nd`` items; may be of another form.
        database_labels: as ``query_labels``; may be of the other form.
        bits: code length; needed only if both sides are packed tensors.
        exclude_self: the query set lies in the database, and a query shall not find itself. True matches
            the ``ids`` of two HashCodes; for tensors, give the database row of each query, int ``(Nq,)``,
            -1 for a query that is not in the database.

    Raises:
        TypeError, ValueError: a missing or empty side, bits, label spaces or devices that differ, NaN codes,
            labels of the wrong shape, ids that are missing, repeated or out of range.

    Warns:
        UserWarning: all database codes are the same, so every item ties with every other.
    """
    if isinstance(query_labels, HashCodes):
        if database_codes is not None or database_labels is not None:
            raise TypeError("the second argument is HashCodes, so it is the database: give no other database")
        query_labels, database_codes = None, query_labels
    if database_codes is None:
        raise TypeError("database_codes is missing: give codes and labels of queries and of the database")
    query, database, bits = as_packed_pair(query_codes, database_codes, bits=bits)
    query_hot = _labels_of(query_codes, query_labels, len(query), "query_labels").to(query.device)
    database_hot = _labels_of(database_codes, database_labels, len(database), "database_labels").to(
        query.device
    )
    query_hot, database_hot = same_form(query_hot, database_hot)
    if len(database) > 1 and bool((database == database[0]).all()):
        warnings.warn(
            f"all {len(database)} database codes are the same: every item ties, and retrieval is at chance",
            stacklevel=3,
        )
    own = _own_rows(query_codes, database_codes, exclude_self, len(query), len(database))
    return Sides(
        query, database, bits, query_hot, database_hot, None if own is None else own.to(query.device)
    )


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise ValueError unless ``value`` is one of the choices."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")


def check_top_k(top_k: int | None) -> int | None:
    """``top_k`` if it is None (the whole database) or an integer >= 1."""
    return None if top_k is None else check_rank(top_k)


def check_cuts(top_k: int | Sequence[int | None] | None) -> list[int | None]:
    """One or several cuts, checked, as a list."""
    cuts = [check_top_k(cut) for cut in (top_k if isinstance(top_k, Sequence) else [top_k])]
    if not cuts:
        raise ValueError("top_k is an empty sequence: give at least one cut, or None for the whole database")
    return cuts


def check_rank(top_k: int) -> int:
    """``top_k`` if it is an integer >= 1."""
    return _check_integer("top_k", top_k, 1, "use top_k=None for the whole database")


def check_radius(radius: int) -> int:
    """``radius`` if it is an integer >= 0."""
    return _check_integer("radius", radius, 0, "0 finds equal codes only")


def check_chunk_size(chunk_size: int | None) -> int | None:
    """``chunk_size`` if it is None or an integer >= 1."""
    return None if chunk_size is None else _check_integer("chunk_size", chunk_size, 1, "use None to choose")


def check_rows(name: str, rows: Tensor, queries: int, items: int) -> None:
    """Raise unless ``rows (queries, k)`` holds database rows, or -1."""
    if not isinstance(rows, Tensor) or rows.dtype not in (torch.int64, torch.int32):
        got = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(f"{name} must be database rows, an int64 tensor, got {got}")
    if rows.ndim != 2 or rows.shape[0] != queries or rows.shape[1] == 0:
        raise ValueError(f"{name} must have a row for each of {queries} queries, got {tuple(rows.shape)}")
    if not -1 <= int(rows.min()) <= int(rows.max()) < items:
        raise ValueError(
            f"{name} must hold database rows 0..{items - 1} or -1, got {int(rows.min())}..{int(rows.max())}"
        )


def _check_integer(name: str, value: int, least: int, advice: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer >= {least}, got {value!r}: {advice}")
    if value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}: {advice}")
    return value


def _labels_of(codes: Tensor | HashCodes, labels: Tensor | None, length: int, name: str) -> Tensor:
    if labels is None and isinstance(codes, HashCodes):
        if codes.labels is None:
            raise ValueError(f"{name} is missing: the HashCodes carry no labels")
        return codes.labels  # checked when the HashCodes were made
    if labels is None:
        raise TypeError(f"{name} is missing: class ids (N,) or multi-hot rows (N, C)")
    return as_labels(labels, length=length, name=name)


def same_form(query: Tensor, database: Tensor) -> tuple[Tensor, Tensor]:
    """Both class ids if no row has two labels, else both multi-hot."""
    widths = {labels.shape[1] for labels in (query, database) if labels.ndim == 2}
    if len(widths) > 1:
        raise ValueError(
            f"query_labels have {query.shape[1]} classes but database_labels have {database.shape[1]}: "
            "both need the same columns"
        )
    for labels, name in ((query, "query_labels"), (database, "database_labels")):
        if widths and labels.ndim == 1 and int(labels.max()) >= min(widths):
            raise ValueError(
                f"{name} hold class id {int(labels.max())}, but the other side has only {min(widths)} classes"
            )
    if all(labels.ndim == 1 or most_labels(labels) <= 1 for labels in (query, database)):
        return _as_ids(query), _as_ids(database)
    classes = torch.arange(min(widths), device=query.device)
    query, database = (
        labels if labels.ndim == 2 else labels[:, None] == classes for labels in (query, database)
    )
    return query, database


def most_labels(labels: Tensor) -> int:
    """Labels of the row of bool ``(N, C)`` that has most: in parts, because the sum copies them to int64."""
    return max(int(part.sum(1).max()) for part in torch.split(labels, max(1, (1 << 20) // labels.shape[1])))


def _as_ids(labels: Tensor) -> Tensor:
    """Class ids of rows with at most one label, -1 where there is none."""
    if labels.ndim == 1:
        return labels
    return torch.where(labels.any(1), labels.view(torch.uint8).argmax(1), -1)


def _own_rows(
    query: Tensor | HashCodes,
    database: Tensor | HashCodes,
    exclude_self: bool | Tensor,
    queries: int,
    items: int,
) -> Tensor | None:
    """The database row of each query, -1 where there is none."""
    if exclude_self is False:
        return None
    if isinstance(exclude_self, Tensor):
        check_rows("exclude_self", exclude_self[..., None], queries, items)
        return exclude_self.long()
    query_ids = query.ids if isinstance(query, HashCodes) else None
    database_ids = database.ids if isinstance(database, HashCodes) else None
    if query_ids is None or database_ids is None:
        raise ValueError(
            "exclude_self=True matches queries and database by id: give HashCodes with ids, or give "
            "exclude_self the database row of each query"
        )
    sorted_ids, rows = database_ids.sort()
    if bool((sorted_ids[1:] == sorted_ids[:-1]).any()):
        repeated = sorted_ids[1:][sorted_ids[1:] == sorted_ids[:-1]][0]
        raise ValueError(f"exclude_self=True needs unique database ids, got id {int(repeated)} twice")
    query_ids = query_ids.to(sorted_ids.device)
    place = torch.searchsorted(sorted_ids, query_ids).clamp(max=items - 1)
    return torch.where(sorted_ids[place] == query_ids, rows[place], -1)
