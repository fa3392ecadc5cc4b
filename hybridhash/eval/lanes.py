"""Distances of long rows on the CPU, six at a time: a product of doubles that hold six items each.

With bits of 0 and 1, ``d(q, b) = |q| + sum_j (1 - 2 q_j) b_j``. The same product with ``sum_i w_i b_ij`` in
place of ``b_j`` gives ``sum_i w_i d(q, b_i)``, one whole number for several items i; doubles are exact up to
2^53. With 2^52 added, the number stands in the low bits of the double as it is stored: it can be read from
there in lanes of 16 bits, which the weights ``w_i`` are made for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hybridhash._hamming import unpack_bits

__all__ = ["MAX_KEYS", "DistanceLanes"]

Array = npt.NDArray[Any]

MAX_KEYS = 1 << 15  # of a lane, which has a sign

_TABLES = 1 << 17  # counts of some rows that are held at a time


class DistanceLanes:
    """Database items laid out in doubles, and their keys ``grades * distance + grade`` for some queries.

    A double has three lanes and its exponent. If they fit, a lane holds two keys as ``a + size b``, so that
    one look into a table counts both. Only for machines that store the low byte first.

    Attributes:
        items: database items in a double.
        row_bytes: bytes of the keys of a query.
        raises: int64 ``(256,)``: what to add to a double, read as an int64, to raise by one the grade of its
            items whose bits are set in a byte, the first item being the highest bit.
    """

    def __init__(self, packed: Tensor, bits: int, grades: int = 1) -> None:
        """Lay out items, uint8 ``(n, ceil(bits / 8))`` on the CPU; ``(bits + 1) * grades <= MAX_KEYS``."""
        self._bits, self._size = bits, (bits + 1) * grades
        self._in_lane = 2 if self._size**2 <= MAX_KEYS else 1
        self.items = 3 * self._in_lane
        weights = [self._size**place << 16 * lane for lane in range(3) for place in range(self._in_lane)]
        self.raises = (
            np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, : self.items] @ weights
        )
        size, width = packed.shape[0], -(-packed.shape[0] // self.items)
        self.row_bytes = 8 * width
        # Huge pages, which NumPy asks for, make the products a tenth faster; few bits, the order of memory.
        memory = np.empty((width, bits + 2)).T if bits <= 32 else np.empty((bits + 2, width))
        self._doubles = torch.from_numpy(memory)
        self._product = torch.empty((0, width), dtype=torch.float64)
        columns = packed.new_zeros((packed.shape[1], width * self.items))
        columns[:, :size] = packed.T
        weight = grades * torch.tensor(weights, dtype=torch.float64)
        for bit in range(bits):
            ones = (columns[bit // 8] >> (7 - bit % 8)) & 1
            self._doubles[bit] = ones.view(width, self.items).double() @ weight
        self._doubles[bits] = (torch.arange(width * self.items) < size).view(
            width, self.items
        ).double() @ weight
        # The exponents take turns with 16 keys: to count a single one would be slow.
        exponents = 2.0**52 + 2.0**48 * (torch.arange(width, dtype=torch.float64) % 16)
        self._doubles[bits + 1] = exponents
        # What exponents and the end of the last double, where there are no items, add to the counts.
        self._surplus = self._fold(exponents[None])[0]
        self._surplus[0] -= size

    def keys(self, query: Tensor) -> Tensor:
        """Keys of all items at grade 0, for packed queries: the doubles, float64 ``(q, doubles)``.

        Valid until the next call: touching new memory for each block of queries would take a tenth longer.
        """
        bits = unpack_bits(query, self._bits).double()
        left = torch.cat([1 - 2 * bits, bits.sum(1, keepdim=True), torch.ones_like(bits[:, :1])], 1)
        if len(left) > len(self._product):
            self._product = torch.from_numpy(np.empty((len(left), self._doubles.shape[1])))
        return torch.mm(left, self._doubles, out=self._product[: len(left)])

    def segment(self, keys: Tensor, start: int, stop: int) -> Tensor:
        """Single keys of the items ``start`` to ``stop``: int32 ``(q, stop - start)``."""
        first, last = start // self.items, -(-stop // self.items)
        lanes = keys[:, first:last].numpy().view(np.uint16).reshape(len(keys), -1, 4)[:, :, :3]
        single = np.empty((*lanes.shape, self._in_lane), np.int32)
        single[..., -1] = lanes // self._size ** (self._in_lane - 1)
        if self._in_lane == 2:
            single[..., 0] = lanes - self._size * single[..., 1]
        start, stop = start - first * self.items, stop - first * self.items
        return torch.from_numpy(single.reshape(len(keys), -1)[:, start:stop])

    def count(self, keys: Tensor) -> Array:
        """How many items have each key, for some rows of doubles: int64 ``(q, (bits + 1) * grades)``."""
        step = max(1, _TABLES // self._size**self._in_lane)
        counts: Array = np.concatenate([self._fold(part) for part in torch.split(keys, step)])
        counts -= self._surplus
        return counts

    def _fold(self, keys: Tensor) -> Array:
        """Counts of the keys in all lanes, the exponents taken for keys."""
        size = self._size**self._in_lane
        tables = np.empty((len(keys), size), np.int64)
        for row, table in zip(keys.view(torch.int16), tables, strict=True):
            table[:] = torch.bincount(row, minlength=size).numpy()[:size]
        if self._in_lane == 1:
            return tables
        tables = tables.reshape(-1, self._size, self._size)
        return np.asarray(np.add.reduce(tables, axis=1) + np.add.reduce(tables, axis=2))
