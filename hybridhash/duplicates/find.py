"""Find the copies in a collection of photos or of codes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hybridhash._checks import check_choice, check_integer
from hybridhash._hamming import packed_distances
from hybridhash.codes import HashCodes
from hybridhash.duplicates.groups import (
    Array,
    Linkage,
    NearUnits,
    Units,
    group_units,
    near_units,
    pairs_of_old,
    units_of,
)
from hybridhash.duplicates.photos import CodedPhotos, copy_network, photos_of
from hybridhash.duplicates.quality import best_of
from hybridhash.duplicates.radius import NETWORK_RADII, RadiusEstimate, check_share, estimate_radius
from hybridhash.duplicates.result import Duplicates, Group

__all__ = ["find_duplicates"]

Keep = Literal["largest", "sharpest", "first"]


def find_duplicates(
    images: Any,
    *,
    model: nn.Module | None = None,
    radius: int | None = None,
    false_pairs: float = 1e-5,
    linkage: Linkage = "complete",
    keep: Keep | None = None,
    exclude: Iterable[tuple[str, str]] | None = None,
    against: Any = None,
    out: str | os.PathLike[str] | None = None,
    names: Sequence[str] | None = None,
    against_names: Sequence[str] | None = None,
    max_pairs: int = 2_000_000,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
) -> Duplicates:
    """Find copies: photos whose codes are within a Hamming radius, as pairs, as groups, and what to keep.

    All pairs within the radius are found (:func:`hybridhash.pairs_within`). They are gone through from the
    nearest on, equal distances in the order of the photos, and the groups of the two photos are joined.
    With complete linkage they are joined only if all photos across them are within the radius of one another,
    so that a chain of photos, each a little different from the last, does not become one group. Photos of
    equal codes are one from the start; so a thousand blank ones cost no more than one.

    Args:
        images: A folder, flat or deep, of photos (:class:`hybridhash.data.ImageFiles`); the path of one
            photo; a sequence of paths; any data set that :func:`hybridhash.encode_dataset` takes; or
            :class:`~hybridhash.HashCodes`.
        model: The hash model that gives the codes of photos. None takes ``hybridhash_nano_256``, which ships
            with the package and was trained to find copies; nothing is fetched.
        radius: The largest Hamming distance of copies. None estimates it on the photos. Where they are too
            few to show the rate, and ``model`` is None, it is the radius of this rate on other photos.
        false_pairs: The share of the pairs of unlike photos that may be within the radius, if it is
            estimated: see :func:`estimate_radius`. A thousand photos form half a million pairs, a million
            photos 5 x 10^11: the more photos, the lower it should be.
        linkage: ``"complete"``; or ``"single"``, which joins whatever a chain of pairs connects.
        keep: Which photo of a group to keep: the ``"largest"``, with most pixels and then bytes; the
            ``"sharpest"``, with the largest variance of the Laplacian of its grey values at 256 x 256 pixels;
            or the ``"first"``. Ties go to the first. None is ``"largest"`` for photos, ``"first"`` for codes.
        exclude: Pairs of names of photos known to be different. Neither are they pairs nor in one group.
            Names that are not there are ignored, so a list may outlive its photos.
        against: An existing collection, in any form of ``images``. Then pairs of the new photos with it and
            among themselves are searched, and none of its photos is to be removed. Its names are whole paths.
        out: A folder that keeps the codes, also those of ``against``. A second call reads only photos that
            are new there, by name, size and time of change, and a call that was killed goes on. For a data
            set that is no folder it is one of :func:`hybridhash.encode_dataset`, with its rules. None keeps
            the codes for this call only.
        names: The names of codes. None takes their ids, or else their rows.
        against_names: The same for the codes of ``against``.
        max_pairs: The largest number of pairs of different codes. If there are more, the radius is lowered
            until there are not, and the result says so. A pair takes some 400 bytes while groups are made.
        batch_size: The number of photos in a batch of the model.
        num_workers: The number of processes that read photos. 0 reads them in this one.
        progress: Whether to show the progress of reading on stderr.

    Returns:
        The :class:`Duplicates`. Photos that cannot be read are in ``failed``.

    Raises:
        FileNotFoundError: The folder does not exist.
        TypeError: An argument has a wrong type.
        ValueError: There is no photo, or none can be read; the radius is above the bits; codes differ in
            bits, or those in ``out`` are of another model; or a radius is to be estimated and the codes do
            not allow it (:func:`estimate_radius`). One photo has no pair, and codes that are all equal have
            radius 0: both need no estimate.

    Example:
        >>> codes = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
        >>> codes[7], codes[9] = codes[2], -codes[2]
        >>> found = find_duplicates(HashCodes.from_codes(codes))
        >>> found.groups[0].names, found.remove
        (('2', '7'), ['7'])
    """
    check_choice("linkage", linkage, ("complete", "single"))
    if keep is not None:
        check_choice("keep", keep, ("largest", "sharpest", "first"))
    max_pairs = check_integer("max_pairs", max_pairs, 1)
    check_share(false_pairs)
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "progress": progress,
    }
    sides = [images] if against is None else [images, against]
    shipped = model is None and not all(isinstance(side, HashCodes) for side in sides)
    model = copy_network() if shipped else model
    photos = photos_of(images, model, out, names, **settings)
    new = len(photos.names)
    if against is not None:
        old = photos_of(against, model, out, against_names, **settings, what="against")
        photos = _joined(photos, old)
    elif against_names is not None:
        raise ValueError("against_names are names of against, which is None: give it too")
    if keep not in (None, "first") and photos.image is None:
        raise ValueError(f"keep={keep!r} needs photos, codes have none: give keep='first'")

    radius, estimate, network_rate = _radius(photos, radius, false_pairs, shipped)
    apart = _excluded_rows(exclude, photos.names)
    units = units_of(photos.packed.numpy(), new, {row for pair in apart for row in pair})
    unit_of = np.empty(len(photos.names), np.int64)
    unit_of[units.members] = np.repeat(np.arange(len(units.sizes)), units.sizes)
    unit_pairs = {(int(unit_of[one]), int(unit_of[two])) for one, two in apart}

    near = _without(near_units(units, photos.bits, radius, max_pairs), unit_pairs)
    linked = near
    if new < len(photos.names):
        linked = _without(pairs_of_old(units, near, photos.bits, max_pairs), unit_pairs)
        within = near.distances <= linked.radius
        near = NearUnits(near.left[within], near.right[within], near.distances[within], linked.radius)
    best = best_of("first" if keep is None and photos.image is None else keep or "largest", photos)
    return Duplicates(
        names=photos.names,
        new=new,
        bits=photos.bits,
        radius=near.radius,
        radius_asked=radius,
        estimate=estimate,
        network_rate=network_rate,
        linkage=linkage,
        failed=photos.failed,
        total_pairs=_count_pairs(units, near),
        groups=_groups(photos, new, units, group_units(linked, linkage, unit_pairs), best),
        _pair_rows=_pair_rows(units, near, new),
        _image=photos.image,
    )


def _joined(new: CodedPhotos, old: CodedPhotos) -> CodedPhotos:
    """New photos and an existing collection as one."""
    if new.bits != old.bits:
        raise ValueError(
            f"images have codes of {new.bits} bits and against of {old.bits}: compare codes of one model"
        )
    size = len(new.names)

    def either(one: Callable[[int], Any] | None, two: Callable[[int], Any] | None) -> Any:
        if one is None or two is None:
            return None
        return lambda row: one(row) if row < size else two(row - size)

    return CodedPhotos(
        [*new.names, *old.names],
        torch.cat([new.packed, old.packed]),
        new.bits,
        [*new.failed, *old.failed],
        either(new.image, old.image),
        either(new.path, old.path),
    )


def _radius(
    photos: CodedPhotos, radius: int | None, false_pairs: float, shipped: bool
) -> tuple[int, RadiusEstimate | None, float | None]:
    """The radius, its estimate if it was estimated, and its rate if it is that of the shipped network."""
    if radius is not None:
        advice = "it counts the bits that may differ"
        return check_integer("radius", radius, 0, photos.bits, advice=advice), None, None
    if bool((photos.packed == photos.packed[:1]).all()):  # one photo, or all equal
        return 0, None, None
    pairs = len(photos.names) * (len(photos.names) - 1) // 2
    if shipped and false_pairs * pairs < 10:  # too few to show the rate
        rate = max((rate for rate in NETWORK_RADII if rate <= false_pairs), default=None)
        if rate is not None:
            return NETWORK_RADII[rate], None, rate
    estimate = estimate_radius(HashCodes(photos.packed, photos.bits), false_pairs)
    return estimate.radius, estimate, None


def _excluded_rows(exclude: Iterable[tuple[str, str]] | None, names: Sequence[str]) -> list[tuple[int, int]]:
    """The rows of pairs of names."""
    pairs = []
    for pair in exclude or ():
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(name, str) for name in pair):
            raise TypeError(f"exclude must be pairs of names, got {pair!r}")
        pairs.append(pair)
    if not pairs:
        return []
    wanted = {name for pair in pairs for name in pair}
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name in wanted:
            rows.setdefault(name, []).append(row)
    return [
        (one, two)
        for first, second in pairs
        for one in rows.get(first, [])
        for two in rows.get(second, [])
        if one != two
    ]


def _without(near: NearUnits, excluded: set[tuple[int, int]]) -> NearUnits:
    """Leave out the excluded pairs of units."""
    if not excluded:
        return near
    either = excluded | {(two, one) for one, two in excluded}
    kept = np.array(
        [pair not in either for pair in zip(near.left.tolist(), near.right.tolist(), strict=True)], bool
    )
    return NearUnits(near.left[kept], near.right[kept], near.distances[kept], near.radius)


def _count_pairs(units: Units, near: NearUnits) -> int:
    """Pairs of photos within the radius of which at least one is new."""
    sizes, old = units.sizes, units.sizes - units.new
    across = sizes[near.left] * sizes[near.right] - old[near.left] * old[near.right]
    inside = sizes * (sizes - 1) // 2 - old * (old - 1) // 2
    return int(across.sum()) + int(inside.sum())


def _pair_rows(units: Units, near: NearUnits, new: int) -> tuple[Array, Array, Array]:
    """The rows and distances of :attr:`Duplicates.pairs`."""
    first = units.members[units.starts]
    same = (units.sizes > 1) & (units.new > 0)
    others = np.ones(len(units.members), bool)
    others[units.starts] = False
    in_same = np.repeat(same, units.sizes) & others
    one = np.concatenate([np.repeat(first, units.sizes)[in_same], first[near.left]])
    two = np.concatenate([units.members[in_same], first[near.right]])
    distances = np.concatenate([np.zeros(int(in_same.sum()), np.int64), near.distances])
    order = np.lexsort((two, one, distances))
    return one[order], two[order], distances[order]


def _groups(
    photos: CodedPhotos,
    new: int,
    units: Units,
    joined: list[Array],
    best: Callable[[list[int]], int],
) -> list[Group]:
    """The groups with at least one new photo, and which photo of each to keep."""
    alone = np.ones(len(units.sizes), bool)
    for members in joined:
        alone[members] = False
    equal = np.flatnonzero(alone & (units.sizes > 1))
    found = []
    for members in [*joined, *equal[:, None]]:
        rows = sorted(int(row) for unit in members for row in units.rows(int(unit)))
        if rows[0] >= new:  # all of them are of the existing collection
            continue
        existing = [row for row in rows if row >= new]
        kept = best(existing or rows)
        found.append(
            Group(
                tuple(photos.names[row] for row in rows),
                tuple(_distances(photos.packed, kept, rows, photos.bits)),
                tuple(rows),
                rows.index(kept),
            )
        )
    return sorted(found, key=lambda group: group.rows[0])


def _distances(packed: Tensor, row: int, rows: list[int], bits: int) -> list[int]:
    """The distances of some codes to that of a row."""
    distances: list[int] = packed_distances(packed[row : row + 1], packed[rows], bits)[0].tolist()
    return distances
