"""The mean average precision that published code computes, to compare with published tables.

Each definition differs from the others in what it does with a query without a hit, with an unlabelled query,
with a code of exactly 0, and with the cut. All of them leave tied items in the order of a sort that promises
none; here that is the order of the database (``ties="stable"``), so that a number can be reproduced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from hybridhash._hamming import pack_bits, unpack_bits
from hybridhash.codes import MAX_BITS, HashCodes
from hybridhash.eval.average_precision import average_precision
from hybridhash.eval.histogram import DistanceHistogram
from hybridhash.eval.inputs import Sides, as_sides, check_choice
from hybridhash.eval.measure import Form, per_query

__all__ = ["DEFINITIONS", "Definition", "published_average_precision"]


@dataclass(frozen=True)
class Definition:
    """How one code base computes mean average precision.

    Attributes:
        source: the code.
        zero: what a code of exactly 0 is: a third value at half a bit from both others (``sign(0) = 0``), or
            ``+1``, or bit 0.
        no_hit: a query without a hit counts ``zero``, or is left out (``skip``).
        unlabelled: the same for a query without a label.
        drops_last: "everything" leaves out the last item of the ranking (``topK = -1`` slices ``[0:-1]``).
        first_hits: ``top_k`` is the number of relevant items looked at, wherever they rank, not of items.
    """

    source: str
    zero: Literal["half", "one", "bit 0"] = "half"
    no_hit: Literal["zero", "skip"] = "zero"
    unlabelled: Literal["zero", "skip"] = "zero"
    drops_last: bool = False
    first_hits: bool = False


DEFINITIONS: dict[str, Definition] = {
    "deephash-pytorch": Definition(
        "CalcTopMap of DeepHash-pytorch (swuxyj), HybridHash and many that followed", drops_last=True
    ),
    "hashnet": Definition(
        "mean_average_precision of HashNet (thuml), on binary codes; its PyTorch release ranks by the inner "
        "product of real-valued outputs, which is not a Hamming ranking",
        no_hit="skip",
        unlabelled="skip",
    ),
    "csq": Definition("mean_average_precision of CSQ (yuanli2333)", zero="one", unlabelled="skip"),
    "torchcmh": Definition("calc_map_k of torchcmh and the DCMH family", first_hits=True),
    "torchmetrics": Definition("RetrievalMAP of torchmetrics on bits + 1 - distance", zero="bit 0"),
}


def published_average_precision(
    definition: str,
    query_codes: Tensor | HashCodes,
    query_labels: Tensor | HashCodes | None,
    database_codes: Tensor | HashCodes | None,
    database_labels: Tensor | None,
    *,
    top_k: Sequence[int | None],
    bits: int | None = None,
    exclude_self: bool | Tensor = False,
    chunk_size: int | None = None,
) -> Tensor:
    """Average precision of each query by one of :data:`DEFINITIONS`.

    Args:
        definition: a key of :data:`DEFINITIONS`.
        query_codes: this and the other arguments as in
            :func:`mean_average_precision <hybridhash.eval.metrics.mean_average_precision>`.
        top_k: the cuts.

    Returns:
        float64 ``(cuts, Nq)``; NaN for a query that the definition leaves out of the mean.

    Raises:
        ValueError: an unknown definition; codes of exactly 0 with more than 128 bits where they are a third
            value.
    """
    check_choice("definition", definition, tuple(DEFINITIONS))
    rule = DEFINITIONS[definition]
    sides = as_sides(
        query_codes, query_labels, database_codes, database_labels, bits=bits, exclude_self=exclude_self
    )
    raw = (_zeros(query_codes), _zeros(database_codes))
    if rule.zero != "bit 0" and any(zero is not None for zero in raw):
        sides = _with_zeros(sides, raw, half=rule.zero == "half")
    forms: list[Form] = []
    for cut in top_k:
        if rule.first_hits:
            forms.append(partial(_first_hits_precision, hits=sides.size if cut is None else cut))
        elif cut is None and rule.drops_last:
            forms.append(partial(average_precision, top_k=sides.size - 1) if sides.size > 1 else _nothing)
        else:
            forms.append(partial(average_precision, top_k=cut))
    deepest = None if rule.first_hits or None in top_k else max(cut for cut in top_k if cut is not None)
    values = per_query(forms, sides, "stable", deepest, chunk_size=chunk_size)
    if rule.no_hit == "zero":
        values = values.nan_to_num(0.0)
    if rule.unlabelled == "skip":
        labels = sides.query_labels
        values = values.masked_fill(labels < 0 if labels.ndim == 1 else ~labels.any(1), math.nan)
    return values


def _zeros(codes: Tensor | HashCodes | None) -> Tensor | None:
    """Which entries of real-valued codes are exactly 0: bool ``(N, bits)``, or None if there is none."""
    if not isinstance(codes, Tensor) or codes.dtype == torch.uint8:
        return None
    zero = codes == 0
    return zero if bool(zero.any()) else None


def _with_zeros(sides: Sides, zeros: tuple[Tensor | None, Tensor | None], *, half: bool) -> Sides:
    """The same codes with zeros as ``sign(0) = 0`` (``half``), or as +1.

    For the former each bit becomes four: +1 is 1111, -1 is 0000, and 0 is 1100 in a query and 1010 in the
    database. Four times ``(bits - <q, d>) / 2`` is then the Hamming distance of the longer codes.
    """
    width = 4 if half else 1
    if sides.bits * width > MAX_BITS:
        raise ValueError(
            f"codes of exactly 0 at {sides.bits} bits: this definition gives them a third value, which works "
            f"up to {MAX_BITS // width} bits; binarize the codes first"
        )
    patterns = ([[1, 1, 0, 0], [1, 0, 1, 0]]) if half else [[1], [1]]
    packed = []
    for side, zero, pattern in zip((sides.query, sides.database), zeros, patterns, strict=True):
        ones = unpack_bits(side, sides.bits).bool()[:, :, None].expand(-1, -1, width)
        if zero is not None:
            ones = ones | (zero[:, :, None] & torch.tensor(pattern, dtype=torch.bool, device=zero.device))
        packed.append(pack_bits(ones.flatten(1)))
    return replace(sides, query=packed[0], database=packed[1], bits=sides.bits * width)


def _first_hits_precision(histogram: DistanceHistogram, hits: int) -> Tensor:
    """Mean precision at the first ``min(hits, all relevant)`` relevant items of whole rankings."""
    relevant = histogram.relevant.double()
    found = relevant.cumsum(1)
    wanted = histogram.total_relevant[:, None].clamp(max=hits).double()
    ranks = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    return (relevant * (found <= wanted) * found / ranks).sum(1) / wanted[:, 0].where(
        wanted[:, 0] > 0, math.nan
    )


def _nothing(histogram: DistanceHistogram) -> Tensor:
    """The average precision of an empty list."""
    return torch.full((len(histogram),), math.nan, dtype=torch.float64, device=histogram.counts.device)
