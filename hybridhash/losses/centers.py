"""Hash centers: one binary code for each class, as far from each other as the bits allow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_integer, generator_device
from hybridhash.codes import hamming_topk
from hybridhash.losses._hadamard import hadamard_matrix, hadamard_order

__all__ = ["CenterMethod", "hash_centers", "minimum_distance", "target_distance"]

CenterMethod = Literal["hadamard", "bernoulli", "gilbert-varshamov", "mds", "nested"]


def hash_centers(
    num_classes: int,
    bits: int,
    method: CenterMethod = "hadamard",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Make one ±1 codeword for each class, no two of them equal.

    - ``"hadamard"``: the first rows of ``[H; -H]`` for a Hadamard matrix H, pairwise distance ``bits / 2`` or
      ``bits``; not random. H is built by Sylvester's, Paley's and the Kronecker construction, so 12, 20, 24,
      28, 36, 40, 44, 48 ... bits work as well as powers of two. For other lengths (not a multiple of 4; 52,
      92, 100, 116) columns are cut off the next larger matrix: a column costs at most one bit of distance.
      With more classes than ``[H; -H]`` has rows it is ``"bernoulli"``, as in CSQ.
    - ``"bernoulli"``: random rows with half the bits (rounded down) at -1. Up to 20 sets (5 for 10,000
      classes) are drawn, until the minimum distance is above ``bits / 4``; the best set is returned. If there
      are too few such rows, all codewords are allowed. Source: CSQ (Yuan et al., CVPR 2020).
    - ``"gilbert-varshamov"``: random codewords are accepted one after the other if they keep a distance from
      all accepted ones. It begins at 0.61 bits and is lowered by 1 after 10,000 refused codewords (3 per
      class, if that is more). Up to 16 bits every codeword is tried, so that the Gilbert-Varshamov bound,
      ``target_distance - 1``, is certain. Source: the rejection sampling of DPN and OrthoHash.
    - ``"mds"``: minimal-distance-separated centers, the largest minimum distance that is found. The problem
      is that of MDSHC (Wang et al., CVPR 2023); its ALM solver is replaced by codes: the best of Hadamard
      rows (where there are enough of them) and of 17 linear codes, one grown from the first-order
      Reed-Muller code and its Kasami or Gold cosets (16, 32, 64, 128 ... bits), the others from random
      generators, each of these the best of up to 2,048 (half of the codes: of codewords of even weight).

    - ``"nested"``: every prefix of the centers is well separated too, for codes that are cut to their first
      bits (:class:`NestedLoss`). The codewords of a linear code that grows bit by bit, each new bit the one
      that lowers the sum of ``exp(-beta * distance)`` over all pairs most; the best of up to 16 such codes.
      Prefixes of ``ceil(log2(num_classes))`` bits on are distinct. With 10 classes the first 8, 16, 32, 64
      and 128 bits keep a distance of 4, 8, 16, 33 and 67; with 100 classes of 2, 6, 13, 29 and 61, where
      ``"mds"`` has 2, 6, 12, 24 and 64 (the lowest of 5 seeds).

    The minimum distance that ``"mds"`` reaches (target of MDSHC in brackets), the lowest of 5 seeds (of 2
    for 10,000 classes):

    =========== ======= ======= ======= =======
    classes     16 bits 32 bits 48 bits 64 bits
    =========== ======= ======= ======= =======
    10          8 (6)   16 (13) 24 (21) 32 (28)
    21          8 (6)   16 (12) 24 (19) 32 (26)
    80, 81      6 (5)   12 (11) 24 (17) 32 (24)
    100         6 (4)   12 (10) 20 (17) 32 (24)
    196, 200    4 (4)   12 (10) 18 (16) 28 (23)
    555         4 (3)   12 (9)  16 (15) 28 (21)
    1,000       4 (3)   12 (8)  16 (14) 28 (21)
    10,000      2 (2)   8 (7)   14 (12) 20 (18)
    =========== ======= ======= ======= =======

    All targets are reached. ``"gilbert-varshamov"`` reaches them up to 1,000 classes too. On one busy core
    1,000 classes of 64 bits took 2 seconds at most, 10,000 took 3 to 9 seconds, with any method.

    Args:
        num_classes: number of centers C, 1 to ``2**bits``.
        bits: code length, 1 or more.
        method: see above.
        generator: source of the random choices. None means torch's global one.

    Returns:
        float32 ``(num_classes, bits)`` of -1 and 1, on the CPU, whatever torch's defaults are.

    Raises:
        TypeError: a size that is not an integer.
        ValueError: an unknown method, a size below 1, or more classes than there are codes.

    Example:
        >>> centers = hash_centers(100, bits=48, method="mds", generator=torch.Generator().manual_seed(0))
        >>> centers.shape, minimum_distance(centers) >= target_distance(100, bits=48)
        (torch.Size([100, 48]), True)
    """
    _check_sizes(num_classes, bits)
    if method not in get_args(CenterMethod):
        raise ValueError(
            f"unknown method {method!r}: use one of {', '.join(map(repr, get_args(CenterMethod)))}"
        )
    with torch.device("cpu"):
        if method == "gilbert-varshamov":
            return _greedy_codewords(num_classes, bits, generator)
        if method == "mds":
            return _separated_codewords(num_classes, bits, generator)
        if method == "nested":
            return _nested_codewords(num_classes, bits, generator)
        if method == "hadamard" and num_classes <= 2 * hadamard_order(bits):
            return _hadamard_rows(num_classes, bits)
        return _balanced_codewords(num_classes, bits, generator)


def minimum_distance(centers: Tensor) -> int:
    """Return the smallest Hamming distance between two rows, or the code length if there is only one row.

    Args:
        centers: real-valued or ±1 ``(C, bits)``.

    Raises:
        TypeError: not a floating-point or integer tensor.
        ValueError: not of shape ``(C, bits)``, or NaN entries.

    Example:
        >>> minimum_distance(torch.tensor([[1.0, 1.0, -1.0], [1.0, -1.0, 1.0]]))
        2
    """
    distances, _ = hamming_topk(centers, centers, top_k=2)
    return int(distances[:, 1].min()) if centers.shape[0] > 1 else centers.shape[1]


def target_distance(num_classes: int, bits: int) -> int:
    """Return the minimum distance that MDSHC aims at.

    It is the smallest d with ``sum_{i<d} C(bits, i) >= 2**bits / num_classes``. By Gilbert and Varshamov
    ``num_classes`` codewords of distance ``d - 1`` exist; d itself is an aim, which can be impossible (no 200
    codewords of 8 bits have distance 2) or easily exceeded (see :func:`hash_centers`).

    Args:
        num_classes: number of centers, 1 to ``2**bits``.
        bits: code length.

    Returns:
        1 to ``bits``.

    Raises:
        ValueError: a size below 1, or more classes than there are codes.

    Source: Wang et al., CVPR 2023, and ``get_margin`` of the official code.

    Example:
        >>> [target_distance(100, bits) for bits in (16, 32, 48, 64)]
        [4, 10, 17, 24]
    """
    _check_sizes(num_classes, bits)
    ball = 0
    for radius in range(bits):
        ball += math.comb(bits, radius)
        if ball * num_classes >= 2**bits:
            return radius + 1
    return bits


def _check_sizes(num_classes: int, bits: int) -> None:
    check_integer("num_classes", num_classes, 1)
    check_integer("bits", bits, 1)
    if num_classes > 2**bits:
        raise ValueError(
            f"{num_classes} classes need different codes, but {bits} bits have only {2**bits}: use more bits"
        )


def _draw(high: int, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Draw integers below ``high``, on the CPU wherever the generator lives."""
    device = generator_device(generator)
    return torch.randint(high, shape, generator=generator, device=device).cpu()


def _shuffle(length: int, generator: torch.Generator | None) -> Tensor:
    device = generator_device(generator)
    return torch.randperm(length, generator=generator, device=device).cpu()


def _uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    device = generator_device(generator)
    return torch.rand(shape, generator=generator, device=device, dtype=torch.float32).cpu()


def _random_codewords(rows: int, bits: int, generator: torch.Generator | None) -> Tensor:
    return _draw(2, (rows, bits), generator).float() * 2 - 1


def _codewords_of(numbers: Tensor, bits: int) -> Tensor:
    """Return the binary digits of integers ``(N,)`` as ±1 rows ``(N, bits)``."""
    return (numbers[:, None] >> torch.arange(bits) & 1).float() * 2 - 1


def _hadamard_rows(num_classes: int, bits: int) -> Tensor:
    matrix = hadamard_matrix(hadamard_order(bits))
    return torch.cat((matrix, -matrix))[:num_classes, :bits].contiguous()


# Random rows with as many ones as minus ones


def _balanced_codewords(num_classes: int, bits: int, generator: torch.Generator | None) -> Tensor:
    best = torch.empty(0, bits, dtype=torch.float32)
    best_distance = 0
    # 10,000 classes take half a second a try; there no set passes the test anyway.
    for _ in range(min(20, max(1, 5 * 10**8 // num_classes**2))):
        codewords = _draw_balanced(num_classes, bits, generator)
        distance = minimum_distance(codewords)
        if distance > best_distance:
            best, best_distance = codewords, distance
        if 4 * distance > bits:
            break
    return best


def _draw_balanced(num_classes: int, bits: int, generator: torch.Generator | None) -> Tensor:
    half = bits // 2
    if math.comb(bits, half) < 2 * num_classes:
        return _codewords_of(_shuffle(2**bits, generator)[:num_classes], bits)
    codewords = torch.empty(0, bits, dtype=torch.float32)
    while codewords.shape[0] < num_classes:
        order = _uniform((num_classes - codewords.shape[0], bits), generator).argsort(1)
        codewords = _without_repeats(torch.cat((codewords, 1 - 2 * (order < half).float())))
    return codewords


def _without_repeats(codewords: Tensor) -> Tensor:
    """Return the rows in their order, each at its first occurrence only."""
    _, group = torch.unique(codewords, dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), codewords.shape[0])
    first.scatter_reduce_(0, group, torch.arange(codewords.shape[0]), "amin")
    return codewords[first.sort().values]


# Words accepted one by one


def _greedy_codewords(num_classes: int, bits: int, generator: torch.Generator | None) -> Tensor:
    chosen = torch.empty(num_classes, bits, dtype=torch.float32)
    count = 0
    patience = max(10_000, 3 * num_classes)
    for distance in range(math.ceil(0.61 * bits), 0, -1):
        refused = 0
        for candidates in _candidates(bits, generator):
            taken = _accept(candidates, chosen[:count], distance)[: num_classes - count]
            chosen[count : count + taken.shape[0]] = taken
            count += taken.shape[0]
            refused += candidates.shape[0] - taken.shape[0]
            if count == num_classes:
                return chosen[_shuffle(num_classes, generator)]
            if bits > 16 and refused >= patience:
                break
    raise AssertionError("distance 1 accepts every new codeword")


def _candidates(bits: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Yield every codeword once, in random order, up to 16 bits; random codewords without end for more."""
    if bits <= 16:
        for numbers in _shuffle(2**bits, generator).split(1024):  # type: ignore[no-untyped-call]
            yield _codewords_of(numbers, bits)
    while bits > 16:
        yield _random_codewords(1024, bits, generator)


def _accept(candidates: Tensor, chosen: Tensor, distance: int) -> Tensor:
    """Return the candidates that keep the distance from all chosen codewords and from each other."""
    limit = candidates.shape[1] - 2 * distance
    if chosen.shape[0]:
        candidates = candidates[(candidates @ chosen.T).amax(1) <= limit]
    conflicts = (candidates @ candidates.T > limit).numpy()
    accepted: list[int] = []
    blocked = np.zeros(candidates.shape[0], dtype=bool)
    for index in range(candidates.shape[0]):
        if not blocked[index]:
            accepted.append(index)
            blocked |= conflicts[index]
    return candidates[accepted]


# Linear codes: closed under the product of ±1 codewords, so the minimum distance is that from the ones


def _separated_codewords(num_classes: int, bits: int, generator: torch.Generator | None) -> Tensor:
    dimension = (num_classes - 1).bit_length()
    known = _bent_cosets(bits)[:dimension]
    starts = [known] * bool(known.shape[0]) + [known[:0]] * 16
    codes = [_linear_code(start, dimension, generator, even=i % 2 == 0) for i, start in enumerate(starts)]
    codewords = min(codes, key=lambda code: float(code[1:].sum(1).max()) if dimension else 0)
    codewords = codewords[_shuffle(codewords.shape[0], generator)[:num_classes]]
    if num_classes <= 2 * hadamard_order(bits):
        return max(_hadamard_rows(num_classes, bits), codewords, key=minimum_distance)
    return codewords


def _linear_code(start: Tensor, dimension: int, generator: torch.Generator | None, *, even: bool) -> Tensor:
    """Return the ``2**dimension`` products of the start rows and of random rows, each the best of many.

    ``even``: only codewords with an even number of -1, so that the minimum distance is even.
    """
    bits = start.shape[1]
    codewords = torch.ones(1, bits, dtype=torch.float32)
    for row in start:
        codewords = torch.cat((codewords, codewords * row))
    for _ in range(dimension - start.shape[0]):
        tries = min(max(2**21 // codewords.shape[0], 64), 2048)
        candidates = _random_codewords(tries, bits, generator)
        if even:
            candidates[:, -1] = candidates[:, :-1].prod(1)
        # The new codewords are the products with the candidate; the nearest to ones has the largest sum.
        best = (candidates @ codewords.T).amax(1).argmin()
        codewords = torch.cat((codewords, codewords * candidates[best]))
    return codewords


# A linear code that grows bit by bit, so that its prefixes are codes as well


def _nested_codewords(num_classes: int, bits: int, generator: torch.Generator | None) -> Tensor:
    dimension = (num_classes - 1).bit_length()
    if dimension == 0:
        return torch.ones(1, bits, dtype=torch.float32)
    best, best_quality = torch.empty(0), -1.0
    # 10,000 classes of 128 bits take half a second a try.
    for number in range(min(16, max(1, 2**24 // (2**dimension * bits)))):
        beta = (0.5, 1.0, 1.5, 2.0)[number % 4]
        codewords = _grow_bit_by_bit(dimension, bits, beta, generator, opposites=number % 8 < 4)
        # The distance from the first codeword, which is all ones, is the minimum one: at every length.
        distances = (codewords[1:] < 0).cumsum(1).amin(0)
        # Relative distances at whole bytes, weighted so that each doubling of the length counts the same.
        lengths = torch.tensor([*range(8, bits, 8), bits])
        quality = float((distances[lengths - 1] / lengths.square()).sum())
        if quality > best_quality:
            best, best_quality = codewords, quality
    return best[_shuffle(best.shape[0], generator)[:num_classes]]


def _grow_bit_by_bit(
    dimension: int, bits: int, beta: float, generator: torch.Generator | None, *, opposites: bool
) -> Tensor:
    """Return the ``2**dimension`` codewords of a linear code whose prefixes keep large distances.

    Bit k of the codeword of message m is ``(-1)**<m, c_k>``, an inner product of binary numbers. With w(m),
    the number of -1 that the codeword has so far, c_k minimises ``sum_m exp(-beta * w(m)) (-1)**<m, c>``:
    codewords that have few get one more. The sums of all c at once are the Walsh-Hadamard transform of the
    exponentials.

    ``opposites``: the first half of ``2**dimension`` bits take odd c_k only. The code so far then holds the
    opposite of each codeword, as ``[H; -H]`` does, and is often further apart. Later bits take any c_k, since
    classes that are parted by few different bits are learned less well.
    """
    messages = torch.arange(2**dimension)
    weights = torch.zeros(2**dimension, dtype=torch.float64)
    codewords = torch.empty(2**dimension, bits, dtype=torch.float32)
    for bit in range(bits):
        potentials = torch.exp(-beta * (weights - weights[1:].min()))
        # Messages that have no -1 yet outweigh the others, so that soon no two codewords are equal.
        potentials[weights == 0] = 2.0**dimension
        potentials[0] = 0
        sums = _walsh_hadamard(potentials)
        if opposites and bit < 2 ** (dimension - 1):
            sums[::2] = torch.inf
        lowest = (sums <= sums.min() + 1e-9 * potentials.sum()).nonzero()[:, 0]
        chosen = lowest[_draw(lowest.shape[0], (1,), generator)]
        ones = (messages & chosen)[:, None] >> torch.arange(dimension) & 1
        parity = ones.sum(1) % 2
        weights += parity
        codewords[:, bit] = 1 - 2 * parity
    return codewords


def _walsh_hadamard(values: Tensor) -> Tensor:
    """Return ``sum_m values[m] (-1)**<m, c>`` for all c, ``(2**n,)``."""
    size = 1
    while size < values.shape[0]:
        pairs = values.view(-1, 2, size)
        values = torch.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), 1).flatten()
        size *= 2
    return values


def _bent_cosets(bits: int) -> Tensor:
    """Return independent rows: the first-order Reed-Muller code, then Kasami's functions on GF(2^m).

    For odd m they are Gold's functions.

    Their products are at least ``2**(m - 1) - 2**(m / 2 - 1)`` apart, ``2**(m - 1) - 2**((m - 1) / 2)`` for
    odd m. No rows unless ``bits`` is ``2**m`` with m from 3 to 10.
    """
    m = bits.bit_length() - 1
    if bits != 2**m or m not in _IRREDUCIBLE:
        return torch.empty(0, bits, dtype=torch.float32)
    power = 2 ** (m // 2) + 1 if m % 2 == 0 else 3
    values = torch.tensor([_field_power(x, power, m) for x in range(bits)])
    ones = torch.ones(1, bits, dtype=torch.float32)
    rows = torch.cat((-ones, _codewords_of(torch.arange(bits), m).T, _codewords_of(values, m).T))
    independent = []
    codewords = ones
    for row in rows:
        if (codewords @ row).max() < bits:
            independent.append(row)
            codewords = torch.cat((codewords, codewords * row))
    return torch.stack(independent)


_IRREDUCIBLE = {3: 0xB, 4: 0x13, 5: 0x25, 6: 0x43, 7: 0x83, 8: 0x11B, 9: 0x211, 10: 0x409}
"""Polynomials over GF(2), the bits their coefficients, that define GF(2^m)."""


def _field_power(x: int, exponent: int, m: int) -> int:
    """Return ``x**exponent`` in GF(2^m)."""
    product = 1
    for _ in range(exponent):
        total, factor = 0, product
        for bit in range(m):
            total ^= factor if x >> bit & 1 else 0
            factor <<= 1
            factor ^= _IRREDUCIBLE[m] if factor >> m else 0
        product = total
    return product
