"""Ids of codes: integers, or strings that stand for integers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_integer
from hybridhash._code_checks import as_ids
from hybridhash.search.sorted_pairs import Array

__all__ = ["Ids", "as_numbers", "check_distinct", "first_few", "name_numbers", "named", "not_held"]

Ids: TypeAlias = Tensor | Sequence[int] | Sequence[str]


def name_numbers(names: Sequence[str]) -> Tensor:
    """Return the numbers of string ids: the first 63 bits of the SHA-256 of their UTF-8, int64 ``(N,)``.

    They depend on nothing else, so every index and every process gives a string the same number. Among ten
    million strings, two have the same number with a probability of 5e-6; then the second is refused.

    Raises:
        TypeError: ``names`` is one string, or has something else than strings.

    Example:
        >>> name_numbers(["cats/1.jpg"])
        tensor([8029163243840203266])
    """
    if isinstance(names, str):
        raise TypeError(f"ids must be a list of str, got the str {names!r}: put it into a list")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"ids must be all str or all integers, got {name!r} among str")
    digests = [hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest() for name in names]
    return torch.tensor([int.from_bytes(digest[:8], "big") >> 1 for digest in digests], dtype=torch.int64)


def as_numbers(ids: Ids) -> tuple[Array, list[str] | None]:
    """Return ids as int64 ``(N,)``, and as they were given if they are strings.

    Raises:
        TypeError, ValueError: They are not strings or integers from 0 on, in a list or a tensor ``(N,)``.

    Example:
        >>> as_numbers([7, 5])
        (array([7, 5]), None)
    """
    if not isinstance(ids, str) and not hasattr(ids, "__len__"):
        raise TypeError(f"ids must be a list or a tensor, got {ids!r}: put it into a list")
    if isinstance(ids, str) or (not isinstance(ids, Tensor) and len(ids) and isinstance(ids[0], str)):
        names = ids if isinstance(ids, str) else list(ids)
        return name_numbers(names).numpy(), list(names)  # type: ignore[arg-type]
    if not isinstance(ids, Tensor):
        ids = torch.tensor([check_integer("an id", number, 0, 2**63 - 1) for number in ids]).long()
    numbers = as_ids(ids, length=len(ids) if ids.ndim else -1).cpu().numpy()
    if len(numbers) and numbers.min() < 0:
        raise ValueError(f"ids must be >= 0, got {numbers.min()}: -1 stands for 'nothing found' in results")
    return numbers, None


def named(ids: Tensor, names: Mapping[int, str]) -> list[Any]:
    """Return the strings of numbers in the lists of ``ids.tolist()``; None for negative ones.

    Raises:
        ValueError: A number has no string.
    """

    def name(number: Any) -> Any:
        if isinstance(number, list):
            return [name(one) for one in number]
        if number < 0:
            return None
        if number not in names:
            raise ValueError(f"the id {number} has no name: give ids that a search of this index returned")
        return names[number]

    return [name(number) for number in ids.tolist()]


def check_distinct(ids: Array, names: list[str] | None) -> None:
    """Raise ValueError if an id of new codes occurs twice."""
    if (np.diff(ids) > 0).all():
        return
    values, first, counts = np.unique(ids, return_index=True, return_counts=True)
    repeated = values[counts > 1] if names is None else [names[row] for row in first[counts > 1]]
    if len(repeated):
        raise ValueError(
            f"{len(repeated)} ids occur more than once, {first_few(repeated)}: each code needs its own"
        )


def not_held(where: str, ids: Array, names: list[str] | None, rows: Array) -> ValueError:
    """Return the error of ids to remove that an index does not hold.

    Args:
        where: What the error calls the index.
        ids: All ids to remove.
        names: The same as strings, if they were given as such.
        rows: Which of them the index does not hold.
    """
    unknown = [ids[row] if names is None else names[row] for row in rows]
    return ValueError(
        f"{where} does not hold {len(unknown)} of these {len(ids)} ids, {first_few(unknown)}: nothing was "
        "removed. Ask contains first"
    )


def first_few(ids: Iterable[object]) -> str:
    """Return the first three of some ids, and dots if there are more.

    Example:
        >>> first_few([5, 6, 7, 8])
        '5, 6, 7, ...'
    """
    ids = list(ids)
    return ", ".join([*map(str, ids[:3]), *(["..."] if len(ids) > 3 else [])])
