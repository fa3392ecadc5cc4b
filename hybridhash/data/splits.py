"""Splits: the rows of queries, training set and database, drawn at random, saved and applied."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hybridhash._files import replacing
from hybridhash._tables import aligned
from hybridhash.data.lists import LabelledImages
from hybridhash.labels import as_labels

__all__ = ["Draw", "Parts", "Split", "draw_split"]

_FORMAT = "hybridhash.split/1"


class Draw(NamedTuple):
    """How a split is drawn.

    Attributes:
        kind: ``"per class"``: so many images of each class. ``"greedy"``, for several labels an image: images
            come in random order, and each counts for the first of its classes that is not full. ``"any"``: so
            many images in all.
        query: images of each class (of all classes for ``"any"``).
        train: the same; None: all that are no queries.
    """

    kind: Literal["per class", "greedy", "any"]
    query: int
    train: int | None


@dataclass(frozen=True, eq=False)
class Split:
    """Which rows of a data set are queries, training set and database.

    Attributes:
        protocol: name of the protocol that it was drawn by.
        images: rows of the whole data set.
        labels_sha256: digest of its labels in their order, by which another data set is recognised.
        query: int64, rows in ascending order.
        train: the same.
        database: the same.

    Raises:
        ValueError: a row outside the data set or twice in a part, or a query that is in another part too.
    """

    protocol: str
    images: int
    labels_sha256: str
    query: Tensor
    train: Tensor
    database: Tensor

    def __post_init__(self) -> None:
        for name, rows in self._rows().items():
            if rows.dtype != torch.int64 or rows.ndim != 1:
                raise ValueError(f"{name} must be int64 rows (n,), got {rows.dtype} {tuple(rows.shape)}")
            outside = rows[(rows < 0) | (rows >= self.images)]
            if len(outside):
                raise ValueError(f"{name} has row {int(outside[0])}, but there are {self.images:,} images")
            unique, counts = torch.unique(rows, return_counts=True)
            if len(unique) < len(rows):
                raise ValueError(f"{name} has rows twice, the first are {unique[counts > 1][:5].tolist()}")
        for name in ("train", "database"):
            common = self.query[torch.isin(self.query, getattr(self, name))]
            if len(common):
                raise ValueError(
                    f"{len(common):,} rows are in query and {name}, the first are {common[:5].tolist()}: a "
                    "query must be in no other part"
                )

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in self._rows().items())
        return f"split of {self.images:,} images by {self.protocol}: {sizes}"

    def datasets(
        self,
        dataset: Any,
        *,
        transform: Callable[[Any], Any] | None = None,
        train_transform: Callable[[Any], Any] | None = None,
    ) -> Parts:
        """The three parts of a data set, each ``(image, label, index)``.

        Args:
            dataset: with ``labels`` or ``targets`` (see :class:`LabelledImages`), those of the split.
            transform: for queries and database.
            train_transform: for training images; None takes ``transform``.

        Raises:
            ValueError: it is not the data set that the split was drawn for.
        """
        whole = dataset if isinstance(dataset, LabelledImages) else LabelledImages(dataset)
        self.check(whole.labels)
        return Parts(
            *(
                LabelledImages(
                    whole,
                    rows=rows,
                    transform=train_transform or transform if name == "train" else transform,
                )
                for name, rows in self._rows().items()
            )
        )

    def check(self, labels: Tensor, name: str = "the split") -> None:
        """That these are the labels the split was drawn for.

        Raises:
            ValueError: another number of rows, or other labels. Two data sets with the same labels in the
                same order cannot be told apart.
        """
        labels = as_labels(labels)
        if len(labels) != self.images:
            raise ValueError(
                f"{name} was drawn for {self.images:,} images, the data set has {len(labels):,}: it is "
                "another data set, or a part of it"
            )
        if _sha256(labels) != self.labels_sha256:
            raise ValueError(
                f"{name} was drawn for a data set with other labels, or in another order: rows would name "
                "other images"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the split (safetensors), in one step: a failure leaves what was there before.

        Raises:
            OSError: the folder does not exist or cannot be written to.
        """
        about = {
            "format": _FORMAT,
            "protocol": self.protocol,
            "images": str(self.images),
            "labels_sha256": self.labels_sha256,
        }
        with replacing(path) as temporary:
            save_file({k: rows.contiguous() for k, rows in self._rows().items()}, temporary, metadata=about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], labels: Tensor) -> Split:
        """Read a split that :meth:`save` wrote, for the data set with these labels.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is no split, is damaged, or was drawn for another data set.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                rows = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is no split, or is damaged: {error}") from error
        if about.get("format") != _FORMAT or set(rows) != {"query", "train", "database"}:
            raise ValueError(f"{path} is no split: format is {about.get('format')!r}, expected {_FORMAT!r}")
        try:
            split = cls(about["protocol"], int(about["images"]), about["labels_sha256"], **rows)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        split.check(labels, name=str(path))
        return split

    def _rows(self) -> dict[str, Tensor]:
        return {"query": self.query, "train": self.train, "database": self.database}


class Parts(NamedTuple):
    """Queries, training set and database: data sets of ``(image, label, index)``; ``str()`` is a table."""

    query: Any
    train: Any
    database: Any

    def describe(self) -> str:
        """Images, labels and images without label of each part, as a table."""
        rows = [["", "images", "unlabelled", "labels per image", "images per class"]]
        for name, part in self._asdict().items():
            labels = part.labels
            if labels.ndim == 1:
                counts = torch.bincount(labels[labels >= 0], minlength=part.num_classes)
            else:
                counts = labels.sum(0)
            mean = f"{int(counts.sum()) / max(len(labels), 1):.2f}"
            spread = f"{int(counts.min())}..{int(counts.max())}" if len(counts) else "-"
            rows.append([name, f"{len(part):,}", f"{part.unlabelled:,}", mean, spread])
        return aligned(rows)

    def __str__(self) -> str:
        return self.describe()


def draw_split(
    protocol: str, labels: Tensor, draw: Draw, train_in_database: bool, generator: torch.Generator
) -> Split:
    """Draw the rows of each part, which ascend; ``labels`` as ``as_labels`` gives them."""
    query, train = _DRAWS[draw.kind](labels, draw, generator)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[query] = True
    if not train_in_database:
        chosen[train] = True
    database = (~chosen).nonzero()[:, 0]
    return Split(protocol, len(labels), _sha256(labels), query.sort().values, train.sort().values, database)


def _sha256(labels: Tensor) -> str:
    """Digest of labels and their order; class ids and multi-hot rows differ."""
    labels = as_labels(labels).cpu().contiguous()
    digest = hashlib.sha256(f"{labels.dtype} {tuple(labels.shape)}".encode())
    digest.update(labels.numpy().tobytes())
    return digest.hexdigest()


def _per_class(labels: Tensor, draw: Draw, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if labels.ndim == 2:
        labels = torch.where(labels.any(1), labels.int().argmax(1), -1)
    query, train = [], []
    for number in torch.unique(labels[labels >= 0]).tolist():
        members = (labels == number).nonzero()[:, 0]
        members = members[_shuffle(len(members), generator)]
        stop = len(members) if draw.train is None else draw.query + draw.train
        if len(members) < stop or len(members) <= draw.query:
            _refuse_class(number, len(members), draw)
        query.append(members[: draw.query])
        train.append(members[draw.query : stop])
    return torch.cat(query), torch.cat(train)


def _greedy(labels: Tensor, draw: Draw, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    order = _shuffle(len(labels), generator)
    order = order[labels[order].any(1)]
    query = _fill(labels, order, draw.query, draw)
    rest = order[~torch.isin(order, query)]
    return query, rest if draw.train is None else _fill(labels, rest, draw.train, draw)


def _fill(labels: Tensor, order: Tensor, quota: int, draw: Draw) -> Tensor:
    """Images in this order, each taken for the first of its classes that is not full, until all are."""
    counts = labels.any(0).long().mul(quota).tolist()
    open_classes = sum(count > 0 for count in counts)
    taken = []
    for row in order.tolist():
        if not open_classes:
            break
        for number in labels[row].nonzero()[:, 0].tolist():
            if counts[number]:
                counts[number] -= 1
                open_classes -= counts[number] == 0
                taken.append(row)
                break
    for number, missing in enumerate(counts):
        if missing:
            _refuse_class(number, int(labels[:, number].sum()), draw)
    return torch.tensor(taken, dtype=torch.int64)


def _any(labels: Tensor, draw: Draw, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    # Without a label a query has no relevant image; published code draws such queries all the same.
    order = _shuffle(len(labels), generator)
    stop = draw.query + (draw.train or 0)
    if stop >= len(labels):
        raise ValueError(
            f"{len(labels):,} images are too few for {draw.query:,} queries, {draw.train or 0:,} training "
            "images and a database"
        )
    return order[: draw.query], order[draw.query : stop]


_DRAWS = {"per class": _per_class, "greedy": _greedy, "any": _any}


def _shuffle(length: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(length, generator=generator, device=generator.device).cpu()


def _refuse_class(number: int, images: int, draw: Draw) -> None:
    wanted = f"{draw.query} queries and {draw.train if draw.train is not None else 'some'} training images"
    raise ValueError(
        f"class {number} has {images} images, too few for {wanted} of each class: ask for fewer, or leave "
        "the class out"
    )
