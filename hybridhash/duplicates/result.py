"""What was found: pairs, groups, and which photos to keep; as text, CSV, JSON and a picture."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from hybridhash._checks import check_integer, check_positive
from hybridhash._files import replacing
from hybridhash.duplicates.photos import Unread
from hybridhash.duplicates.radius import RadiusEstimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Duplicates", "Group", "Pair", "Unread"]

Array: TypeAlias = "np.ndarray[Any, Any]"


class Pair(NamedTuple):
    """Two photos within the radius.

    Attributes:
        first: The name of one, which comes first in the collection.
        second: The name of the other.
        distance: The Hamming distance of their codes.
    """

    first: str
    second: str
    distance: int


class Group(NamedTuple):
    """Photos that are taken for copies of one.

    Attributes:
        names: The names of all photos, in the order of the collection.
        distances: The Hamming distance of each to the photo to keep.
        rows: Their rows.
        kept: Which of them is the photo to keep.
    """

    names: tuple[str, ...]
    distances: tuple[int, ...]
    rows: tuple[int, ...]
    kept: int

    @property
    def keep(self) -> str:
        """The name of the photo to keep."""
        return self.names[self.kept]


@dataclass(frozen=True, eq=False, repr=False)
class Duplicates:
    """The copies in a collection of photos: see :func:`hybridhash.find_duplicates`, which makes it.

    Attributes:
        names: The names of all photos with a code, paths relative to their folder; those of the existing
            collection (``against``) come last.
        new: How many of them are not of the existing collection.
        bits: The code length.
        radius: The radius within which pairs were searched. It is smaller than the one asked for if there
            were too many pairs.
        radius_asked: The radius that was given or estimated.
        estimate: How the radius was estimated, None if it was not.
        network_rate: The rate of false pairs for which the radius was taken that the shipped network has on
            other photos. None if it was given or estimated, or is 0 for want of different codes.
        linkage: ``"complete"`` or ``"single"``.
        failed: The photos that could not be read, with the reasons.
        total_pairs: How many pairs of photos are within the radius, equal codes and all.
        groups: The groups of two and more photos, by their first photo.
    """

    names: Sequence[str]
    new: int
    bits: int
    radius: int
    radius_asked: int
    estimate: RadiusEstimate | None
    network_rate: float | None
    linkage: str
    failed: list[Unread]
    total_pairs: int
    groups: list[Group]
    _pair_rows: tuple[Array, Array, Array]
    _image: Callable[[int], Any] | None = field(default=None)

    @cached_property
    def pairs(self) -> list[Pair]:
        """The pairs within the radius, sorted by distance, one for each pair of different codes.

        Photos of equal codes are paired with the first of them only, and of two different codes the first
        photos are named. So a thousand blank photos give 999 pairs, not half a million; ``total_pairs``
        counts those.
        """
        columns = (column.tolist() for column in self._pair_rows)
        return [
            Pair(self.names[one], self.names[two], distance)
            for one, two, distance in zip(*columns, strict=True)
        ]

    @cached_property
    def keep(self) -> list[str]:
        """The photos to keep: of each group one, or all that are in the existing collection."""
        removed = set(self.remove_rows)
        return [self.names[row] for group in self.groups for row in group.rows if row not in removed]

    @cached_property
    def remove(self) -> list[str]:
        """The photos that can go: all others of the groups. None is of the existing collection."""
        return [self.names[row] for row in self.remove_rows]

    @cached_property
    def remove_rows(self) -> list[int]:
        """The rows of :attr:`remove`."""
        rows = []
        for group in self.groups:
            rows += [row for row in group.rows if row != group.rows[group.kept] and row < self.new]
        return rows

    def __len__(self) -> int:
        """The number of groups."""
        return len(self.groups)

    def __repr__(self) -> str:
        return (
            f"Duplicates(photos={len(self.names)}, bits={self.bits}, radius={self.radius}, "
            f"groups={len(self.groups)}, remove={len(self.remove_rows)}, failed={len(self.failed)})"
        )

    def __str__(self) -> str:
        """Counts, the radius, and the first groups."""
        old = len(self.names) - self.new
        lines = [
            f"{self.new:,} photos" + (f" against {old:,}" if old else "") + f", {self.bits} bits",
            self._radius_in_words(),
            f"{self.total_pairs:,} pairs, {len(self.groups):,} groups ({self.linkage} linkage), "
            f"{len(self.remove_rows):,} photos to remove",
        ]
        if self.failed:
            lines.append(
                f"{len(self.failed):,} photos could not be read, the first is {self.failed[0].name}: "
                f"{self.failed[0].reason}"
            )
        for group in self.groups[:_SHOWN]:
            others = [
                f"{name} ({distance})"
                for place, (name, distance) in enumerate(zip(group.names, group.distances, strict=True))
                if place != group.kept
            ]
            more = f" and {len(others) - _SHOWN:,} more" if len(others) > _SHOWN else ""
            lines.append(f"  keep {group.keep}: {', '.join(others[:_SHOWN])}{more}")
        if len(self.groups) > _SHOWN:
            lines.append(f"  and {len(self.groups) - _SHOWN:,} more groups")
        return "\n".join(lines)

    def _radius_in_words(self) -> str:
        words = f"radius {self.radius}" if self.estimate is None else str(self.estimate)
        if self.network_rate is not None:
            words += f", within which {self.network_rate:g} of the pairs of other photos lie"
        if self.radius < self.radius_asked:
            words += f"; lowered from {self.radius_asked} to {self.radius}, too many pairs lie within"
        elif self.estimate is not None:
            old = len(self.names) - self.new
            pairs = self.new * (self.new - 1) // 2 + self.new * old
            words += f"; of {pairs:,} pairs searched about {self.estimate.share * pairs:,.1f} may be false"
        return words

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a line for each photo of a group: ``group, photo, distance, action``.

        The distance is that to the photo to keep, and the action is ``keep`` or ``remove``.

        Raises:
            FileNotFoundError: The folder does not exist.
        """
        removed = set(self.remove_rows)
        with (
            replacing(path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["group", "photo", "distance", "action"])
            for number, group in enumerate(self.groups):
                for name, distance, row in zip(group.names, group.distances, group.rows, strict=True):
                    writer.writerow([number, name, distance, "remove" if row in removed else "keep"])

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pictures as lists, numbers and strings."""
        return {
            "photos": self.new,
            "existing_photos": len(self.names) - self.new,
            "bits": self.bits,
            "radius": self.radius,
            "radius_asked": self.radius_asked,
            "estimate": None if self.estimate is None else asdict(self.estimate),
            "network_rate": self.network_rate,
            "linkage": self.linkage,
            "total_pairs": self.total_pairs,
            "groups": [
                {"keep": group.keep, "names": list(group.names), "distances": list(group.distances)}
                for group in self.groups
            ],
            "pairs": [list(pair) for pair in self.pairs],
            "remove": self.remove,
            "failed": [unread._asdict() for unread in self.failed],
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` to a JSON file.

        Raises:
            FileNotFoundError: The folder does not exist.
        """
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def plot(self, *, groups: int = 10, columns: int = 6, cell: float = 1.4) -> Figure:
        """Draw the first groups, one a line: the photo to keep, then the others with their distances.

        Args:
            groups: How many groups at most.
            columns: How many photos of a group at most.
            cell: The side of a photo in inches.

        Returns:
            The figure; ``figure.savefig(path)`` saves it.

        Raises:
            ImportError: matplotlib is not installed (``pip install hybridhash[plot]``).
            ValueError: There is no group, or there are codes without photos.
        """
        from hybridhash.eval.plots import new_figure
        from hybridhash.eval.retrieval_grid import draw_image

        check_integer("groups", groups, 1)
        check_integer("columns", columns, 2)
        check_positive(cell=cell)
        if self._image is None:
            raise ValueError("codes have no photos to draw: plot needs a folder or a data set")
        if not self.groups:
            raise ValueError("there is no group to draw")
        shown = self.groups[:groups]
        columns = min(columns, max(len(group.rows) for group in shown))
        figure, grid = new_figure(len(shown), columns, (columns * cell, len(shown) * cell * 1.25))
        for line, group in zip(grid, shown, strict=True):
            for axes in line:
                axes.set_axis_off()
            order = sorted(
                range(len(group.rows)), key=lambda place: (place != group.kept, group.distances[place])
            )
            for axes, place in zip(line, order, strict=False):
                draw_image(axes, self._image(group.rows[place]), None)
                words = "keep" if place == group.kept else f"distance {group.distances[place]}"
                axes.set_title(f"{_end_of(group.names[place])}\n{words}", fontsize=7)
        return figure


_SHOWN = 10


def _end_of(name: str) -> str:
    return name if len(name) <= 22 else f"…{name[-21:]}"
