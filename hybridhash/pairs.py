"""All pairs of codes within a Hamming radius, exactly: the first step to duplicates."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_integer
from hybridhash._code_checks import check_numbers
from hybridhash._hamming import machine_words, packed_distances
from hybridhash.codes import HashCodes, as_packed
from hybridhash.codes.packing import is_packed

__all__ = ["pairs_within", "pairs_within_chunks"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_CANDIDATES = 1 << 17  # compared at a time, so that their codes stay in the cache
_BLOCK = 1 << 21  # distances of a block of all pairs
_PIECE = 1 << 20  # pairs of items in a piece of the output
_CANDIDATE_COST = 8  # times the cost of a pair in a block of all pairs, as measured
_KEY_BITS = 56  # with the bits before them in their first byte, they fit 8 bytes


def pairs_within(
    codes: Tensor | Array | HashCodes,
    radius: int,
    other: Tensor | Array | HashCodes | None = None,
    *,
    bits: int | None = None,
    max_pairs: int | None = 100_000_000,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find all pairs of codes whose Hamming distance is at most ``radius``.

    The result is exact for every radius and is that of comparing each code with each. Equal codes are grouped
    first. Then the bits are cut into ``radius + 1`` parts. Codes that differ in at most ``radius`` bits agree
    in at least one part, so only codes that agree in a part are compared. Where this does not pay (the parts
    are short, or many codes agree in them), all distinct codes are compared, block by block.

    Args:
        codes: Real-valued or ±1 ``(N, bits)``, packed uint8 ``(N, ceil(bits / 8))``, or
            :class:`~hybridhash.codes.HashCodes`. Only the signs of real-valued codes count.
        radius: The largest distance, 0 to ``bits``.
        other: A second collection of ``M`` codes, in any of these forms. None compares ``codes`` with
            themselves.
        bits: The code length. It is needed only if ``codes`` are a packed tensor.
        max_pairs: The largest number of pairs. More raise an error, since a wrong radius would else fill the
            memory (18 bytes a pair, and twice that while they are sorted). None sets no limit.

    Returns:
        ``(rows, other_rows, distances)``: int64, int64 and int16, all ``(pairs,)`` and on the CPU, sorted by
        ``rows`` and then by ``other_rows``. Without ``other`` each pair is there once, with
        ``rows < other_rows``.

    Raises:
        TypeError: ``radius`` is not an integer, or codes are of no accepted form.
        ValueError: ``radius`` is negative or above ``bits``, the collections have different bits, there are
            more than ``max_pairs`` pairs, or codes are not valid.

    Source: M. Norouzi, A. Punjani, D. J. Fleet, Fast Exact Search in Hamming Space with Multi-Index Hashing,
    TPAMI 2014.

    Example:
        >>> codes = torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1], [1, 1, 1, -1], [1, 1, 1, 1]])
        >>> rows, other_rows, distances = pairs_within(codes, 1)
        >>> rows, other_rows, distances
        (tensor([0, 0, 2]), tensor([2, 3, 3]), tensor([1, 0, 1], dtype=torch.int16))
    """
    if max_pairs is not None:
        max_pairs = check_integer("max_pairs", max_pairs, 1, advice="use None for no limit")
    pieces, found = [], 0
    for piece in pairs_within_chunks(codes, radius, other, bits=bits):
        found += len(piece[0])
        if max_pairs is not None and found > max_pairs:
            raise ValueError(
                f"more than {max_pairs:,} pairs are within radius {radius}: take a smaller radius, read them "
                "piece by piece with pairs_within_chunks, or raise max_pairs"
            )
        pieces.append(piece)
    if not pieces:
        empty = torch.empty(0, dtype=torch.int64)
        return empty, empty.clone(), torch.empty(0, dtype=torch.int16)
    rows, other_rows, distances = (torch.cat(column) for column in zip(*pieces, strict=True))
    order = torch.from_numpy(np.lexsort((other_rows.numpy(), rows.numpy())))
    return rows[order], other_rows[order], distances[order]


def pairs_within_chunks(
    codes: Tensor | Array | HashCodes,
    radius: int,
    other: Tensor | Array | HashCodes | None = None,
    *,
    bits: int | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Find the pairs of :func:`pairs_within` piece by piece, for collections with too many to hold.

    Args:
        codes: As in :func:`pairs_within`, and so are the others.
        radius: The largest distance.
        other: A second collection, or None.
        bits: The code length.

    Returns:
        An iterator of ``(rows, other_rows, distances)`` of about a million pairs at most. Each pair is in one
        piece; the order of pairs and pieces has no meaning.

    Raises:
        TypeError, ValueError: As :func:`pairs_within`, at the call.

    Example:
        >>> codes = torch.ones(1000, 8)
        >>> sum(len(rows) for rows, _, _ in pairs_within_chunks(codes, radius=0))
        499500
    """
    packed, bits = as_packed(codes, bits=bits)
    check_numbers(packed, "codes")
    other_packed = None
    if other is not None:
        other_packed, other_bits = as_packed(other, bits=bits if is_packed(other) else None, name="other")
        check_numbers(other_packed, "other")
        if other_bits != bits:
            raise ValueError(f"codes have {bits} bits but other has {other_bits}: compare codes of one model")
    radius = check_integer("radius", radius, 0, bits, advice="it counts the bits that may differ")
    return _pairs(packed.cpu(), None if other_packed is None else other_packed.cpu(), bits, radius)


class _Groups(NamedTuple):
    """A collection as its distinct codes, and the items that have each of them.

    Attributes:
        packed: The distinct codes, uint8 ``(groups, width)``.
        members: Rows of all items, group by group, ascending in each.
        starts: Where the items of a group start in ``members``.
        sizes: How many there are.
    """

    packed: Array
    members: Array
    starts: Array
    sizes: Array


def _group(packed: Array) -> _Groups:
    """Group equal codes, uint8 ``(N, width)``."""
    words = machine_words(packed)
    members = np.lexsort(words)
    differs = np.zeros(len(packed), bool)
    differs[:1] = True
    for word in words:
        ordered = word[members]
        differs[1:] |= ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(differs)
    sizes = np.diff(starts, append=len(packed))
    return _Groups(packed[members[starts]], members, starts, sizes)


def _pairs(
    packed: Tensor, other: Tensor | None, bits: int, radius: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Join the distinct codes and give the items of each group; codes on the CPU."""
    groups = _group(packed.numpy())
    others = groups if other is None else _group(other.numpy())
    join = _by_parts if _parts_pay(groups, others, bits, radius) else _by_blocks
    for left, right, distances in join(groups, others, bits, radius):
        for rows, other_rows, which in _items(groups, others, left, right):
            if other is None:
                rows, other_rows = np.minimum(rows, other_rows), np.maximum(rows, other_rows)
            yield _as_tensors(rows, other_rows, distances[which])
    if other is None:
        # The items of one group, at distance 0: of its pairs in both orders, one of each.
        same = np.flatnonzero(groups.sizes > 1)
        for rows, other_rows, _ in _items(groups, groups, same, same):
            once = rows < other_rows
            rows, other_rows = rows[once], other_rows[once]
            yield _as_tensors(rows, other_rows, np.zeros(len(rows), np.int16))


def _as_tensors(rows: Array, other_rows: Array, distances: Array) -> tuple[Tensor, Tensor, Tensor]:
    return torch.from_numpy(rows), torch.from_numpy(other_rows), torch.from_numpy(distances)


def _items(
    groups: _Groups, others: _Groups, left: Array, right: Array
) -> Iterator[tuple[Array, Array, Array]]:
    """Give the items of pairs of groups: their rows, and the pair of groups that each comes from."""
    ends = np.cumsum(groups.sizes[left] * others.sizes[right])
    for start in range(0, int(ends[-1]) if len(ends) else 0, _PIECE):
        # The n-th pair of items is in the first pair of groups that ends after n.
        number = np.arange(start, min(start + _PIECE, int(ends[-1])))
        which = np.searchsorted(ends, number, side="right")
        one, two = left[which], right[which]
        size = others.sizes[two]
        within = number - ends[which] + groups.sizes[one] * size
        yield (
            groups.members[groups.starts[one] + within // size],
            others.members[others.starts[two] + within % size],
            which,
        )


def _by_blocks(
    groups: _Groups, others: _Groups, bits: int, radius: int
) -> Iterator[tuple[Array, Array, Array]]:
    """Compare all pairs of distinct codes: ``(left, right, distances)`` of those within the radius."""
    left, right = torch.from_numpy(groups.packed), torch.from_numpy(others.packed)
    columns = 1 << 15
    rows = _BLOCK // columns
    for top in range(0, len(left), rows):
        # One collection: only what is right of the diagonal.
        for start in range(top + 1 if others is groups else 0, len(right), columns):
            block = packed_distances(left[top : top + rows], right[start : start + columns], bits).numpy()
            row, column = np.divmod(np.flatnonzero(block <= radius), block.shape[1])
            distances = block[row, column].astype(np.int16)
            row, column = row + top, column + start
            if others is groups:
                once = row < column
                row, column, distances = row[once], column[once], distances[once]
            yield row, column, distances


def _parts(bits: int, radius: int) -> list[tuple[int, int]]:
    """Cut the bits into ``radius + 1`` parts; what is too long for a key is left out at their ends."""
    edges = [bits * number // (radius + 1) for number in range(radius + 2)]
    return [(first, min(end, first + _KEY_BITS)) for first, end in pairwise(edges)]


def _keys(packed: Array, part: tuple[int, int]) -> Array:
    """Return the bits of a part of each code as one unsigned number ``(N,)``."""
    first, end = part
    keys = np.zeros(len(packed), np.uint64)
    for column in packed.T[first // 8 : -(-end // 8)]:
        keys <<= np.uint64(8)
        keys |= column
    keys >>= np.uint64(-end % 8)
    largest = (1 << end - first) - 1
    keys &= np.uint64(largest)
    return keys.astype(np.min_scalar_type(largest))


def _runs(keys: Array, other_keys: Array | None) -> tuple[Array, Array]:
    """Return where the equal keys of the other side start, and how many there are; both sides sorted.

    Without another side, they are the equal keys that follow.
    """
    if other_keys is not None:
        first = np.searchsorted(other_keys, keys)
        return first, np.searchsorted(other_keys, keys, side="right") - first
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    ends = np.append(starts[1:], len(keys))
    first = np.arange(1, len(keys) + 1)
    return first, np.repeat(ends, ends - starts) - first


def _parts_pay(groups: _Groups, others: _Groups, bits: int, radius: int) -> bool:
    """Tell whether comparing what agrees in a part takes less time than comparing all."""
    if not len(groups.packed) or not len(others.packed) or radius >= bits:
        return False
    pairs = len(groups.packed) * len(others.packed)
    if others is groups:
        pairs //= 2
    most = pairs / _CANDIDATE_COST
    parts = _parts(bits, radius)
    # Were all keys equally frequent, the fewest pairs would agree.
    if sum(pairs / 2 ** (end - first) for first, end in parts) > most:
        return False
    candidates = 0
    for part in parts:
        keys = np.sort(_keys(groups.packed, part))
        other_keys = None if others is groups else np.sort(_keys(others.packed, part))
        candidates += int(_runs(keys, other_keys)[1].sum())
        if candidates > most:
            return False
    return True


def _by_parts(
    groups: _Groups, others: _Groups, bits: int, radius: int
) -> Iterator[tuple[Array, Array, Array]]:
    """Compare the distinct codes that agree in a part: the same pairs as :func:`_by_blocks`."""
    parts = _parts(bits, radius)
    for number, part in enumerate(parts):
        keys = _keys(groups.packed, part)
        order = other_order = np.argsort(keys)
        keys, other_keys = keys[order], None
        words = other_words = machine_words(groups.packed[order])
        if others is not groups:
            other_keys = _keys(others.packed, part)
            other_order = np.argsort(other_keys)
            other_keys = other_keys[other_order]
            other_words = machine_words(others.packed[other_order])
        first, count = _runs(keys, other_keys)
        for left, right, distances in _near(words, other_words, first, count, radius):
            left, right = order[left], other_order[right]
            # Pairs that agree in an earlier part were found there.
            new = np.ones(len(left), bool)
            one, two = groups.packed[left], others.packed[right]
            for earlier in parts[:number]:
                new &= _keys(one, earlier) != _keys(two, earlier)
            yield left[new], right[new], distances[new]


def _near(
    words: Array, other_words: Array, first: Array, count: Array, radius: int
) -> Iterator[tuple[Array, Array, Array]]:
    """Compare code i with the codes ``first[i]`` to ``first[i] + count[i]`` of the other side, for all i."""
    ends = np.cumsum(count)
    kind = np.min_scalar_type(8 * words.itemsize * len(words))
    start = 0
    while start < len(count):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _CANDIDATES, side="right")))
        times = count[start:stop]
        size = int(ends[stop - 1]) - before
        right = np.arange(size) + np.repeat(first[start:stop] - (ends[start:stop] - times - before), times)
        distances = np.zeros(size, kind)
        for word, other_word in zip(words, other_words, strict=True):
            distances += np.bitwise_count(np.repeat(word[start:stop], times) ^ other_word[right])
        near = np.flatnonzero(distances <= radius)
        left = start + np.searchsorted(ends[start:stop] - before, near, side="right")
        yield left, right[near], distances[near].astype(np.int16)
        start = stop
