"""Groups of codes that are near each other, exactly and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch

from hybridhash.pairs import pairs_within_chunks

__all__ = ["Linkage", "NearUnits", "Units", "group_units", "near_units", "pairs_of_old", "units_of"]

Array: TypeAlias = "np.ndarray[Any, Any]"
Linkage = Literal["complete", "single"]


class Units(NamedTuple):
    """Photos of equal codes as one.

    Attributes:
        packed: The code of each unit, uint8 ``(units, width)``, in the order of their first photos.
        members: The rows of all photos, unit by unit, ascending in each.
        starts: Where the photos of a unit start in ``members``.
        sizes: How many there are.
        new: How many of them are not of the existing collection.
    """

    packed: Array
    members: Array
    starts: Array
    sizes: Array
    new: Array

    def rows(self, unit: int) -> Array:
        """The rows of a unit's photos."""
        return self.members[self.starts[unit] : self.starts[unit] + self.sizes[unit]]


class NearUnits(NamedTuple):
    """Pairs of units within a radius: ``left < right``, sorted by distance, ``left`` and ``right``.

    Attributes:
        left: int64 ``(pairs,)``.
        right: int64 ``(pairs,)``.
        distances: int64 ``(pairs,)``.
        radius: The radius, smaller than that asked for if there were too many pairs.
    """

    left: Array
    right: Array
    distances: Array
    radius: int


def units_of(packed: Array, new: int, apart: Iterable[int] = ()) -> Units:
    """Put photos of equal codes together.

    Args:
        packed: uint8 ``(N, width)``.
        new: How many of the first photos are new; the others are of an existing collection.
        apart: Rows of photos that are units of their own, whatever their codes.
    """
    mark = np.zeros(len(packed), np.int64)
    apart = np.fromiter(apart, np.int64)
    mark[apart] = apart + 1
    keys = np.concatenate([packed, mark[:, None].view(np.uint8)], axis=1)
    keys = np.ascontiguousarray(keys).view(f"V{keys.shape[1]}")[:, 0]
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    by_first = np.argsort(first)
    rank = np.empty_like(by_first)
    rank[by_first] = np.arange(len(first))
    unit = rank[number]
    members = np.argsort(unit, kind="stable")
    sizes = np.bincount(unit, minlength=len(first))
    return Units(
        packed=packed[first[by_first]],
        members=members,
        starts=np.cumsum(sizes) - sizes,
        sizes=sizes,
        new=np.bincount(unit[:new], minlength=len(first)),
    )


def near_units(units: Units, bits: int, radius: int, max_pairs: int) -> NearUnits:
    """Find the pairs of units within a radius of which at least one has a new photo.

    If there are more than ``max_pairs``, the radius is lowered until there are not. So memory is bounded, and
    so is time: the search ends when the limit is passed.
    """
    new = np.flatnonzero(units.new)
    packed = torch.from_numpy(units.packed)
    every = len(new) == len(units.packed)
    while True:
        pieces, found = [], 0
        other = None if every else packed
        for piece in pairs_within_chunks(packed[new], radius, other, bits=bits):
            left, right, distances = (column.numpy() for column in piece)
            left = new[left]
            if not every:
                # A unit with itself, and one of two orders where both have new photos.
                once = (left != right) & ((left < right) | (units.new[right] == 0))
                left, right, distances = left[once], right[once], distances[once]
            pieces.append((np.minimum(left, right), np.maximum(left, right), distances.astype(np.int64)))
            found += len(left)
            if found > max_pairs and radius > 0:
                break
        left, right, distances = _joined(pieces)
        if found <= max_pairs or radius == 0:  # at 0 only units that are kept apart are found
            order = np.lexsort((right, left, distances))
            return NearUnits(left[order], right[order], distances[order], radius)
        upto = np.cumsum(np.bincount(distances, minlength=radius + 1))
        radius = min(radius - 1, int(np.searchsorted(upto, max_pairs, side="right")) - 1)


def _joined(pieces: list[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    if not pieces:
        empty = np.zeros(0, np.int64)
        return empty, empty, empty
    left, right, distances = (np.concatenate(column) for column in zip(*pieces, strict=True))
    return left, right, distances


def pairs_of_old(units: Units, near: NearUnits, bits: int, max_pairs: int) -> NearUnits:
    """Add the pairs among those units without a new photo that are near one with some."""
    touched = np.union1d(near.left, near.right)
    old = touched[units.new[touched] == 0]
    if len(old) < 2:
        return near
    some = Units(units.packed[old], old, np.arange(len(old)), units.sizes[old], units.sizes[old])
    found = near_units(some, bits, near.radius, max_pairs)
    if found.radius < near.radius:
        within = near.distances <= found.radius
        near = NearUnits(near.left[within], near.right[within], near.distances[within], found.radius)
    left = np.concatenate([near.left, old[found.left]])
    right = np.concatenate([near.right, old[found.right]])
    distances = np.concatenate([near.distances, found.distances])
    order = np.lexsort((right, left, distances))
    return NearUnits(left[order], right[order], distances[order], found.radius)


def group_units(near: NearUnits, linkage: Linkage, excluded: Iterable[tuple[int, int]] = ()) -> list[Array]:
    """Join units to groups by greedy agglomeration.

    The pairs are gone through from the nearest on, equal distances by their units. The groups of the two are
    joined if no pair of units across them is excluded and, for complete linkage, each of these pairs is
    within the radius. A pair that fails never succeeds later, since groups only grow.

    Args:
        near: All pairs within the radius among the units in question, without excluded ones.
        linkage: ``"complete"`` or ``"single"``.
        excluded: Pairs of units that must not be in one group.

    Returns:
        The units of each group of several, ascending, in the order of their first units.
    """
    complete = linkage == "complete"
    # Of each group, by the unit that names it: its units, and how many pairs it has with others.
    units: dict[int, list[int]] = {}
    links: dict[int, dict[int, int]] = {}
    apart: dict[int, set[int]] = {}
    name = {unit: unit for pair in (near.left, near.right) for unit in np.unique(pair).tolist()}
    for unit in name:
        units[unit], links[unit], apart[unit] = [unit], {}, set()
    for one, two in excluded:
        if one in apart and two in apart:
            apart[one].add(two)
            apart[two].add(one)
    pairs = list(zip(near.left.tolist(), near.right.tolist(), strict=True))
    if complete:
        for one, two in pairs:
            links[one][two] = links[two][one] = 1
    for one, two in pairs:
        one, two = name[one], name[two]
        if one == two or two in apart[one]:
            continue
        if complete and links[one][two] < len(units[one]) * len(units[two]):
            continue
        if len(links[one]) + len(units[one]) < len(links[two]) + len(units[two]):
            one, two = two, one
        for unit in units[two]:
            name[unit] = one
        units[one] += units.pop(two)
        for other, count in links.pop(two).items():
            del links[other][two]
            if other != one:
                links[one][other] = links[other][one] = links[one].get(other, 0) + count
        for other in apart.pop(two):
            apart[other].discard(two)
            apart[other].add(one)
            apart[one].add(other)
    groups = [np.array(sorted(members)) for members in units.values() if len(members) > 1]
    return sorted(groups, key=lambda members: int(members[0]))
