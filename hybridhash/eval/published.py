"""The mean average precision that published code computes, to compare with published tables.

The definitions differ in what they do with a query without a hit, with an unlabelled query, with a code of
exactly 0, and with the cut. All of them rely on an unstable sort for ties; here tied items stay in database
order (``ties="stable"``), so that a number can be reproduced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_choice
from hybridhash._code_checks import from_numpy
from hybridhash._hamming import pack_bits, unpack_bits
from hybridhash.codes import HashCodes
from hybridhash.eval import functional
from hybridhash.eval.histogram import Array, DistanceHistogram, QueryDatabase
from hybridhash.eval.ranking import stable_rankings
from hybridhash.labels import labelled

__all__ = ["DEFINITIONS", "MapDefinition", "published_average_precision"]


@dataclass(frozen=True)
class MapDefinition:
    """How one code base computes mean average precision.

    Attributes:
        source: The code.
        zero: What a code of exactly 0 is: a third value at half a bit from both others (``sign(0) = 0``), or
            ``+1``, or bit 0.
        no_hit: A query without a hit counts ``zero``, or is left out (``skip``).
        unlabelled: The same for a query without a label.
        drops_last: "everything" leaves out the last item of the ranking (``topK = -1`` slices ``[0:-1]``).
        first_hits: ``top_k`` is the number of relevant items looked at, wherever they rank, not of items.
    """

    source: str
    zero: Literal["half", "one", "bit 0"] = "half"
    no_hit: Literal["zero", "skip"] = "zero"
    unlabelled: Literal["zero", "skip"] = "zero"
    drops_last: bool = False
    first_hits: bool = False


DEFINITIONS: dict[str, MapDefinition] = {
    "deephash-pytorch": MapDefinition(
        "CalcTopMap of DeepHash-pytorch (swuxyj), HybridHash and many that followed", drops_last=True
    ),
    "hashnet": MapDefinition(
        "mean_average_precision of HashNet (thuml), on binary codes; its PyTorch release ranks by the inner "
        "product of real-valued outputs, which is not a Hamming ranking",
        no_hit="skip",
        unlabelled="skip",
    ),
    "csq": MapDefinition("mean_average_precision of CSQ (yuanli2333)", zero="one", unlabelled="skip"),
    "torchcmh": MapDefinition("calc_map_k of torchcmh and the DCMH family", first_hits=True),
    "torchmetrics": MapDefinition("RetrievalMAP of torchmetrics on bits + 1 - distance", zero="bit 0"),
}


def published_average_precision(
    definition: str,
    query_codes: Tensor | Array | HashCodes,
    database_codes: Tensor | Array | HashCodes | None,
    data: QueryDatabase,
    cuts: Sequence[int | None],
) -> Tensor:
    """Compute the average precision of each query by one of :data:`DEFINITIONS`.

    Args:
        definition: A key of :data:`DEFINITIONS`.
        query_codes: The codes that ``data`` was made of: packed bits do not tell which were exactly 0.
        database_codes: The same for the database.
        data: Queries and database.
        cuts: Values of ``top_k``, None for the whole database.

    Returns:
        float64 ``(cuts, Nq)``; NaN for a query that the definition leaves out of the mean.

    Raises:
        ValueError: An unknown definition.
    """
    check_choice("definition", definition, tuple(DEFINITIONS))
    rule = DEFINITIONS[definition]
    zeros = (_zeros(query_codes), _zeros(database_codes))
    if rule.zero != "bit 0" and any(zero is not None for zero in zeros):
        data = _with_zeros(data, zeros, half=rule.zero == "half")
    known = [cut for cut in cuts if cut is not None]
    whole = rule.first_hits or len(known) < len(cuts)
    columns = []
    for ranking in stable_rankings(data, None if whole else max(known), graded=False):
        columns.append(torch.stack([_average_precision(ranking, cut, rule) for cut in cuts]))
    values = torch.cat(columns, 1)
    if rule.no_hit == "zero":
        values = values.nan_to_num(0.0)
    if rule.unlabelled == "skip":
        values = values.masked_fill(~labelled(data.query_labels), math.nan)
    return values


def _average_precision(ranking: DistanceHistogram, cut: int | None, rule: MapDefinition) -> Tensor:
    """Average precision of some rankings down to one cut, NaN without a hit."""
    size = ranking.counts.shape[1]
    if rule.first_hits:
        return _precision_of_first_hits(ranking, size if cut is None else cut)
    if cut is None and rule.drops_last:
        cut = size - 1
        if cut == 0:  # nothing is left of a list of one item
            return torch.full_like(ranking.total_items, math.nan, dtype=torch.float64)
    return functional.average_precision(ranking, cut)


def _precision_of_first_hits(ranking: DistanceHistogram, most: int) -> Tensor:
    """Return the mean precision at the first ``min(most, all relevant)`` relevant items of whole rankings."""
    relevant = ranking.counts[:, :, 1:].any(2)
    hits = relevant.cumsum(1)
    wanted = ranking.total_relevant.clamp(max=most)
    ranks = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64, device=hits.device)
    total = (hits / ranks).mul_(relevant & (hits <= wanted[:, None])).sum(1)
    return total / wanted.double().where(wanted > 0, math.nan)


def _zeros(codes: Tensor | Array | HashCodes | None) -> Tensor | None:
    """Return which entries of real-valued codes are exactly 0, bool ``(N, bits)``; None if there is none."""
    if isinstance(codes, np.ndarray):
        codes = from_numpy(codes, "codes")
    if not isinstance(codes, Tensor) or codes.dtype == torch.uint8:
        return None
    zero = codes == 0
    return zero if bool(zero.any()) else None


def _with_zeros(
    data: QueryDatabase, zeros: tuple[Tensor | None, Tensor | None], *, half: bool
) -> QueryDatabase:
    """Make zeros of the codes a third value between the others (``half``, ``sign(0) = 0``), or +1.

    For the former each bit becomes four: +1 is 1111, -1 is 0000, and 0 is 1100 in a query and 1010 in the
    database. Four times ``(bits - <q, d>) / 2`` is then the Hamming distance of the longer codes.
    """
    width = 4 if half else 1
    patterns = ([[1, 1, 0, 0], [1, 0, 1, 0]]) if half else [[1], [1]]
    packed = []
    for side, zero, pattern in zip((data.query, data.database), zeros, patterns, strict=True):
        ones = unpack_bits(side, data.bits).bool()[:, :, None].expand(-1, -1, width)
        if zero is not None:
            ones = ones | (zero[:, :, None] & torch.tensor(pattern, dtype=torch.bool, device=zero.device))
        packed.append(pack_bits(ones.flatten(1)))
    return replace(data, query=packed[0], database=packed[1], bits=data.bits * width)
