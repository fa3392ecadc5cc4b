"""Real-valued queries against packed codes: the bits of the database stay bits, the query keeps its values.

A Hamming distance uses the signs of the query only. The inner product of the real-valued query with the signs
of a database item weighs each bit by how sure the query is of it. It needs the same packed database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_choice, check_integer
from hybridhash._code_checks import from_numpy
from hybridhash._hamming import unpack_bits
from hybridhash.codes import HashCodes, as_packed_pair

__all__ = [
    "Metric",
    "RealQueries",
    "as_real_queries",
    "asymmetric_topk",
    "factors_of",
    "nearest",
    "rounded_queries",
]

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

Metric = Literal["dot", "euclidean"]

# A query is rounded to so many bits below its largest value: sums of 4,096 of them are exact in float64.
_PRECISION = 40
# Fewer queries than these look sums up by byte on the CPU; for more, unpacking the bits pays. As measured.
# Tables for two bytes at a time are slower: they lie outside of the fastest cache, and take a time to build.
_FEW = 16
# On the CPU: pairs, and unpacked bits, in a block of products; pairs in a block of sums that are looked up,
# so many that torch works on them in one thread, without waiting for others on busy cores.
_PAIRS, _UNPACKED, _LOOKED_UP = 1 << 18, 1 << 17, 1 << 15
_DEVICE_PAIRS = 1 << 24  # elsewhere: about 30 bytes each while they are ranked
_QUERIES = 256  # at a time


def asymmetric_topk(
    query_codes: Tensor | Array,
    database: Tensor | Array | HashCodes,
    top_k: int | None,
    *,
    metric: Metric = "dot",
) -> tuple[Tensor, Tensor]:
    """Find the nearest database items of real-valued queries, by their products with the database's signs.

    The score of a query ``q`` and an item with the signs ``s`` is ``<q, s> = sum_i q_i s_i``. With
    ``metric="euclidean"`` it is the squared distance ``bits + ||q||^2 - 2 <q, s>``, which ranks alike.

    If the database carries ``factors``, the norm ``||z||`` of the code before its signs were taken and the
    alignment ``a = <z / ||z||, s / sqrt(bits)>``, then scores estimate those of the real-valued ``z``:
    ``<q, z> ~ ||z|| / a * <q, s> / sqrt(bits)`` and ``||q||^2 + ||z||^2 - 2 <q, z>``. These rank differently
    unless all norms are equal. An estimated distance can be below 0.

    The database is read in blocks, so no ``(Nq, Nd)`` tensor is kept and memory does not grow with ``Nd``.

    Args:
        query_codes: Real-valued ``(Nq, bits)``, the outputs of a model before any sign; integers are taken as
            they are. Packed codes and HashCodes are refused, because their values are gone.
        database: Codes of ``Nd`` items: HashCodes, packed uint8 ``(Nd, ceil(bits / 8))``, or ±1 or
            real-valued ``(Nd, bits)``, of which only the signs count.
        top_k: The number of neighbours, at least 1. None, or more than ``Nd``, means the whole database.
        metric: ``"dot"``, largest scores first; or ``"euclidean"``, smallest squared distances first.

    Returns:
        ``(scores, rows)``: float32 and int64, both ``(Nq, min(top_k, Nd))``, nearest first, equal scores by
        row. Scores are exact sums that are rounded once, so the result does not depend on blocks or threads:
        the values of a query count down to 2^-41 of its largest.

    Raises:
        TypeError: The queries are packed or HashCodes, or as :func:`hybridhash.codes.as_packed_pair`.
        ValueError: A query is not finite or too large for float32, ``top_k < 1``, an unknown metric, or as
            :func:`hybridhash.codes.as_packed_pair`.

    Source: Gordo, Perronnin, Gong, Lazebnik, "Asymmetric Distances for Binary Embeddings", IEEE TPAMI 2014;
    factors as Gao, Long, "RaBitQ", SIGMOD 2024.

    Example:
        >>> database = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1]])
        >>> asymmetric_topk(torch.tensor([[0.75, 0.25, -0.25]]), database, top_k=2)
        (tensor([[0.7500, 0.7500]]), tensor([[0, 1]]))
    """
    query, _, packed = as_real_queries(query_codes, database, metric)
    if top_k is None:
        top_k = len(packed)
    top_k = min(check_integer("top_k", top_k, 1, advice="use None for the whole database"), len(packed))
    return nearest(query, packed, factors_of(database), top_k)


def as_real_queries(
    query_codes: Tensor | Array | HashCodes,
    database: Tensor | Array | HashCodes,
    metric: Metric = "dot",
    *,
    bits: int | None = None,
) -> tuple[RealQueries, Tensor, Tensor]:
    """Check both sides of :func:`asymmetric_topk`; return the queries, their bits and those of the database.

    Args:
        query_codes: The queries.
        database: The database.
        metric: ``"dot"`` or ``"euclidean"``.
        bits: The code length. The queries tell it; it must agree if it is given.

    Raises:
        TypeError, ValueError: As :func:`asymmetric_topk`.
    """
    check_choice("metric", metric, get_args(Metric))
    if isinstance(query_codes, HashCodes):
        raise TypeError(
            "query_codes are HashCodes, which hold only signs: give the real-valued outputs of the model, "
            "or query_codes.codes() for ±1"
        )
    if isinstance(query_codes, np.ndarray):
        query_codes = from_numpy(query_codes, "query_codes")
    if isinstance(query_codes, Tensor) and query_codes.dtype in (torch.uint8, torch.bool):
        kind = "packed codes" if query_codes.dtype == torch.uint8 else "bits"
        raise TypeError(
            f"query_codes are {str(query_codes.dtype).removeprefix('torch.')}, which means {kind}, whose "
            "values are gone: give the real-valued outputs of the model, or use hamming_topk"
        )
    query, packed, length = as_packed_pair(query_codes, database, bits=bits)
    assert isinstance(query_codes, Tensor)
    largest = float(query_codes.detach().double().abs().sum(1).max())
    if not largest < torch.finfo(torch.float32).max:
        raise ValueError(
            f"query_codes must be finite, and absolute values of a row add up to less than 3.4e38; got "
            f"{largest:g}: normalise them"
        )
    _check_scores(largest, factors_of(database), length, metric)
    return RealQueries(query_codes.detach(), length, metric), query, packed


def _check_scores(largest: float, factors: Tensor | None, bits: int, metric: Metric) -> None:
    """Raise unless all scores fit into float32, where those that do not are infinite and tie."""
    norm, scale = bits**0.5, 1.0
    if factors is not None:
        norm = float(factors[:, 0].max())
        scale = norm / (float(factors[:, 1].min()) * bits**0.5)
    score = largest * scale
    if metric == "euclidean":
        score = largest * largest + norm * norm + 2 * score
    if not score < torch.finfo(torch.float32).max:
        raise ValueError(
            f"scores of up to {score:.2g} are too large for float32 (3.4e38): the largest sum of absolute "
            f"values of a query is {largest:.2g}, the largest norm of the database {norm:.2g}; scale the "
            "embeddings, of which both are made"
        )


def factors_of(database: Tensor | Array | HashCodes) -> Tensor | None:
    """Return norm and alignment of each code, float32 ``(Nd, 2)``, or None if the database has none."""
    return database.factors if isinstance(database, HashCodes) else None


def rounded_queries(codes: Tensor) -> Tensor:
    """Round each query ``(q, bits)`` to whole multiples of a power of two, in float64.

    Sums of them are exact in any order, so equal codes score equally. The unit is 2^-40 of the power of two
    above the largest absolute value of the query.

    Example:
        >>> rounded_queries(torch.tensor([[0.5, -2.0]]))
        tensor([[ 0.5000, -2.0000]], dtype=torch.float64)
    """
    codes = codes.double()
    _, exponent = torch.frexp(codes.abs().amax(1, keepdim=True))
    unit = torch.exp2((exponent - _PRECISION).clamp(min=-900).double())
    return (codes / unit).round() * unit


class RealQueries:
    """Some real-valued queries, ready to be compared with blocks of packed codes.

    ``queries[rows]`` are some of them. The inputs are trusted; :func:`as_real_queries` checks them.

    Args:
        codes: ``(q, bits)``, finite.
        bits: The code length.
        metric: ``"dot"`` or ``"euclidean"``.
    """

    def __init__(self, codes: Tensor, bits: int, metric: Metric = "dot") -> None:
        self.codes = codes.double()
        self.bits, self.metric = bits, metric
        self.rounded = rounded_queries(codes)
        few = codes.device.type == "cpu" and len(codes) < _FEW
        self.tables = _byte_tables(self.rounded) if few else None

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice) -> RealQueries:
        return RealQueries(self.codes[rows], self.bits, self.metric)

    def block(self) -> int:
        """Return the number of database items that are best compared at a time."""
        if self.codes.device.type != "cpu":
            return max(1, _DEVICE_PAIRS // len(self))
        if self.tables is not None:
            return _LOOKED_UP // len(self)
        return max(64, min(_PAIRS // len(self), _UNPACKED // self.bits))

    def keys(self, packed: Tensor, factors: Tensor | None = None) -> Tensor:
        """Score a block of items, so that the smallest key is the nearest: dot products are negated.

        Args:
            packed: uint8 ``(n, ceil(bits / 8))`` with zero padding bits.
            factors: Norm and alignment of each code ``(n, 2)``, or None.

        Returns:
            float32 ``(q, n)``.
        """
        products = self._by_table(packed) if self.tables is not None else self._by_product(packed)
        norm_squared: float | Tensor = float(self.bits)
        if factors is not None:
            norm, alignment = factors.double().T
            products *= norm / (alignment * self.bits**0.5)
            norm_squared = norm.square()
        if self.metric == "dot":
            return products.float().neg_()
        return (self.codes.square().sum(1, keepdim=True) + norm_squared - 2 * products).float()

    def all_keys(self, packed: Tensor, factors: Tensor | None = None) -> Tensor:
        """Return :meth:`keys` of a whole database, compared block by block: float32 ``(q, Nd)``."""
        keys = torch.empty((len(self), len(packed)), dtype=torch.float32, device=packed.device)
        for start in range(0, len(packed), self.block()):
            rows = slice(start, start + self.block())
            keys[:, rows] = self.keys(packed[rows], None if factors is None else factors[rows])
        return keys

    def _by_product(self, packed: Tensor) -> Tensor:
        """Compute ``<q, s> = 2 <q, b> - <q, 1>`` for the bits ``b`` as numbers 0 and 1."""
        ones = unpack_bits(packed, self.bits).double()
        return (2 * self.rounded @ ones.T).sub_(self.rounded.sum(1, keepdim=True))

    def _by_table(self, packed: Tensor) -> Tensor:
        """Compute the same from the tables of every byte, on the CPU."""
        assert self.tables is not None
        products = np.zeros((len(packed), len(self)))
        sums = np.empty_like(products)
        for table, column in zip(self.tables, packed.numpy().T, strict=True):
            # No byte is beyond 255: clipping saves looking for one.
            products += table.take(column, axis=0, mode="clip", out=sums)
        return torch.from_numpy(products).T


def _byte_tables(query: Tensor) -> Array:
    """Compute what each value of each byte of a packed code adds to ``<q, s>``: ``(bytes, 256, q)``.

    A row has the sums of all queries, so that one look-up finds all of them side by side in memory.
    """
    signs = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1) * 2.0 - 1.0
    padded = np.pad(query.numpy(), ((0, 0), (0, -query.shape[1] % 8)))
    return np.ascontiguousarray(signs @ padded.reshape(len(query), -1, 8).transpose(1, 2, 0))


def nearest(query: RealQueries, packed: Tensor, factors: Tensor | None, top_k: int) -> tuple[Tensor, Tensor]:
    """Compute :func:`asymmetric_topk` of checked inputs, ``1 <= top_k <= Nd``."""
    pairs = _PAIRS if packed.device.type == "cpu" else _DEVICE_PAIRS
    step = max(1, min(_QUERIES, pairs // top_k))
    parts = [
        _nearest_of_some(query[start : start + step], packed, factors, top_k)
        for start in range(0, len(query), step)
    ]
    keys, rows = (torch.cat(values) for values in zip(*parts, strict=True))
    return (-keys if query.metric == "dot" else keys), rows


def _nearest_of_some(
    query: RealQueries, packed: Tensor, factors: Tensor | None, top_k: int
) -> tuple[Tensor, Tensor]:
    """Find keys and rows of the nearest: sort the first block, then merge what is nearer than the k-th."""
    size = max(top_k, query.block())
    first = min(size, 8 * top_k)  # to sort more costs more than to merge them
    keys, indices = query.keys(packed[:first], None if factors is None else factors[:first]).sort(
        dim=1, stable=True
    )
    keys, indices = keys[:, :top_k], indices[:, :top_k]
    parts = range(first, len(packed), size)
    waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # queries, keys and rows
    count = 0
    for start in parts:
        part = slice(start, start + size)
        block = query.keys(packed[part], None if factors is None else factors[part])
        # A later item with the key of the k-th loses the tie, so "nearer" is strict.
        places = _true_places(block < keys[:, -1:])
        owner, column = places // block.shape[1], places % block.shape[1]
        waiting.append((owner, block.flatten()[places], column + start))
        count += len(owner)
        # Few are nearer in any but the worst order: they wait until a merge is worth it.
        if start == parts[-1] or count > indices.numel():
            keys, indices = _merged(keys, indices, waiting)
            waiting, count = [], 0
    return keys, indices


def _true_places(mask: Tensor) -> Tensor:
    """Return where a mask is true, counted row by row; NumPy is twice as fast on the CPU."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]


def _merged(
    keys: Tensor, indices: Tensor, more: list[tuple[Tensor, Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return the smallest keys ``(q, k)`` and their rows, of those given and of more from later rows."""
    owner = torch.arange(len(keys), device=keys.device).repeat_interleave(keys.shape[1])
    owners = torch.cat([owner, *[part[0] for part in more]])
    values = torch.cat([keys.flatten(), *[part[1] for part in more]])
    rows = torch.cat([indices.flatten(), *[part[2] for part in more]])
    order = values.argsort(stable=True)  # stable twice: by query, then by key, then as they are
    order = order[owners[order].argsort(stable=True)]
    counts = torch.bincount(owners, minlength=len(keys))
    first = counts.cumsum(0) - counts
    best = order[first[:, None] + torch.arange(keys.shape[1], device=keys.device)]
    return values[best], rows[best]
