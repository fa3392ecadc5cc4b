"""The map of RaBitQ: principal directions, and a rotation at random or fitted, as held-out neighbours say."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridhash.shallow.unsupervised import itq_rotation, random_normal, random_rotation

__all__ = ["Rotation", "estimated_distances", "rabitq_map"]

Rotation = Literal["auto", "random", "itq"]

_NEIGHBOURS = 10  # of a held-out query, whose recall decides
_QUERIES = 500  # at most held out
_FEWEST = 100  # rows below which a recall says nothing
_WIDEST = 1024  # bits above which the singular value decompositions of ITQ take minutes


def rabitq_map(
    features: Tensor,
    directions: Tensor,
    bits: int,
    *,
    lengths: Sequence[int] | None = None,
    rotation: Rotation = "auto",
    iterations: int = 50,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the map of RaBitQ: ``x -> x M`` onto principal directions, rotated.

    With ``k = min(bits, D')`` directions P, ``M = P R``. R are the first k rows of a rotation of ``bits``
    dimensions: features are padded with zeros if there are more bits than directions. It is drawn at random,
    as in the paper, or by :func:`itq_rotation`. The one gives estimates without bias, the other often less
    variance. ``"auto"`` tries both on a fifth of the features, at most 500, that neither has seen: it takes
    the one whose estimated distances find more of the 10 nearest among the others, and fits ITQ's to all.
    Below 100 features and above 1,024 bits it is the random one.

    With ``lengths``, R is made of blocks: the first directions, as many as the shortest length, are rotated
    among themselves, then those up to the next length, and so on. So the first k outputs are a rotation of
    the first k directions, for each length k, and estimates from them are those of that projection. A map
    that reads the leading directions again for later bits, as :func:`nested_itq` does, is no rotation, and
    no longer keeps inner products.

    Args:
        features: Centred features, float64 ``(N, D)``.
        directions: Principal directions, orthonormal columns, float64 ``(D, D')``.
        bits: The number of bits.
        lengths: The code lengths, ascending to ``bits``; the directions must reach into the last block. None
            makes one block.
        rotation: ``"auto"``, ``"random"`` or ``"itq"``.
        iterations: The largest number of rounds of ITQ.
        generator: The source of all random numbers.

    Returns:
        M, float64 ``(D, bits)``: orthonormal columns, or rows that are, in the span of P.

    Source: Gao, Long, RaBitQ, SIGMOD 2024, section 3.1.

    Example:
        >>> M = rabitq_map(torch.randn(9, 4).double(), torch.eye(4).double(), 6, rotation="random")
        >>> torch.allclose(M @ M.T, torch.eye(4).double())
        True
    """
    directions = directions[:, :bits]
    ends = (bits,) if lengths is None else tuple(lengths)

    def rotated(kind: str, seen: Tensor) -> Tensor:
        blocks = []
        for start, end in pairwise((0, *ends)):
            if kind == "random":
                blocks.append(random_rotation(end - start, generator))
                continue
            own = directions[:, start:end]
            projected = F.pad(seen @ own, (0, end - start - own.shape[1]))
            blocks.append(itq_rotation(projected, iterations=iterations, generator=generator))
        turn: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
        return directions @ turn[: directions.shape[1]]

    if rotation != "auto":
        return rotated(rotation, features)
    if len(features) < _FEWEST or bits > _WIDEST:
        return rotated("random", features)
    order = random_normal(len(features), generator=generator).argsort()
    held_out = min(_QUERIES, len(features) // 5)
    queries, database = features[order[:held_out]], features[order[held_out:]]
    nearest = torch.cdist(queries, database).topk(_NEIGHBOURS, largest=False).indices

    def recall(matrix: Tensor) -> float:
        found = estimated_distances(queries, database, matrix).topk(_NEIGHBOURS, largest=False).indices
        return float((found[:, :, None] == nearest[:, None, :]).any(2).double().mean())

    at_random = rotated("random", database)
    if recall(at_random) >= recall(rotated("itq", database)):
        return at_random
    return rotated("itq", features)  # now of all features


def estimated_distances(queries: Tensor, database: Tensor, matrix: Tensor) -> Tensor:
    """Estimate squared distances of queries to vectors of which signs, scale and norm are kept.

    With ``z = x M`` it is ``||x||^2 + ||q||^2 - 2 ||z||^2 / ||z||_1 <sign(z), q M>``: what
    :class:`hybridhash.HashCodes` with factors and norms gives.

    Args:
        queries: Centred queries ``(Nq, D)``.
        database: Centred vectors ``(N, D)``.
        matrix: M, ``(D, bits)``.

    Returns:
        ``(Nq, N)``, in the dtype of the arguments.
    """
    z = database @ matrix
    scale = z.square().sum(1) / z.abs().sum(1).clamp(min=torch.finfo(z.dtype).tiny)
    signs = 2 * (z > 0).to(z.dtype) - 1
    inner = scale * ((queries @ matrix) @ signs.T)
    return database.square().sum(1) + queries.square().sum(1, keepdim=True) - 2 * inner
