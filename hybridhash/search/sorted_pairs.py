"""Pairs of a key and a row that are found by their keys, while more are added."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

__all__ = ["SortedPairs"]

Array: TypeAlias = "np.ndarray[Any, Any]"


class SortedPairs:
    """Keys and their rows in sorted levels, each at most half as long as the one before it.

    ``k`` new pairs make a level, which is merged with the last ones while these are not twice as long. So a
    pair is merged O(log n) times, and adding ``k`` to ``n`` costs O(k log n) on average. This is the
    logarithmic method of Bentley and Saxe ("Decomposable searching problems", J. Algorithms 1980).

    Example:
        >>> pairs = SortedPairs()
        >>> pairs.add(np.array([30, 10]), np.array([0, 1]))
        >>> pairs.add(np.array([10]), np.array([2]))
        >>> pairs.find(np.array([10, 20]))
        (array([0, 0]), array([1, 2]))
    """

    def __init__(self) -> None:
        self._levels: list[tuple[Array, Array]] = []
        self.merged = 0  # pairs that were sorted so far, again and again: the cost of all adds

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._levels)

    def add(self, keys: Array, rows: Array) -> None:
        """Add pairs; keys may occur more than once."""
        level = (keys, rows)
        while self._levels and len(self._levels[-1][0]) < 2 * len(level[0]):
            older = self._levels.pop()
            level = (np.concatenate([older[0], level[0]]), np.concatenate([older[1], level[1]]))
        # A stable sort merges runs that are sorted, and leaves equal keys in the order in which they came.
        order = np.argsort(level[0], kind="stable")
        self.merged += len(order)
        self._levels.append((level[0][order], level[1][order]))

    def find(self, keys: Array) -> tuple[Array, Array]:
        """Return all pairs whose key is one of ``keys``, as positions in ``keys`` and rows; both int64."""
        positions, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for held, held_rows in self._levels:
            first = np.searchsorted(held, keys, "left")
            counts = np.searchsorted(held, keys, "right") - first
            found = np.repeat(np.arange(len(keys)), counts)
            # The places first[i], first[i] + 1, ... of each key.
            steps = np.arange(len(found)) - np.repeat(np.cumsum(counts) - counts, counts)
            positions.append(found)
            rows.append(held_rows[np.repeat(first, counts) + steps])
        return np.concatenate(positions), np.concatenate(rows)
