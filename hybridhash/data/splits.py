"""Splits: the rows of queries, training set and database, drawn at random, saved and applied."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from hybridhash._checks import generator_device
from hybridhash._code_files import tensor_bytes
from hybridhash._files import replacing
from hybridhash._safetensors import HEADER_DIGEST, read_header, write_tensors
from hybridhash._tables import aligned
from hybridhash.data.labelled import LabelledImages
from hybridhash.labels import as_labels, class_ids

__all__ = ["Split", "SplitDatasets", "SplitRule", "draw_split"]

_FORMAT = "hybridhash.split/2"
_WITHOUT_DIGESTS = "hybridhash.split/1"  # the version before, which is read, too


class SplitRule(NamedTuple):
    """How a split is drawn.

    Attributes:
        kind: ``"per class"`` draws a number of images of each class. ``"greedy"``, for several labels per
            image, takes images in random order, and each counts for the first of its classes that is not
            full. ``"any"`` draws a number of images in all.
        query: The number of queries of each class (in all for ``"any"``).
        train: The number of training images, likewise. None takes all that are not queries.
    """

    kind: Literal["per class", "greedy", "any"]
    query: int
    train: int | None


@dataclass(frozen=True, eq=False)
class Split:
    """Which rows of a data set are queries, training set and database.

    Attributes:
        protocol: The name of the protocol that drew it.
        images: The number of rows of the whole data set.
        labels_sha256: The digest of its labels in their order, which tells other data sets apart.
        query: Row numbers, int64, ascending.
        train: Row numbers, likewise.
        database: Row numbers, likewise.

    Raises:
        ValueError: A row is outside the data set or twice in a part, or a query is in another part too.
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
    ) -> SplitDatasets:
        """Return the three parts of a data set, whose items are ``(image, label, index)``.

        Args:
            dataset: The data set that the split was drawn for, with ``labels`` or ``targets`` (see
                :class:`LabelledImages`).
            transform: A function applied to the images of queries and database.
            train_transform: A function applied to training images. None takes ``transform``.

        Raises:
            ValueError: It is not the data set that the split was drawn for.
        """
        whole = dataset if isinstance(dataset, LabelledImages) else LabelledImages(dataset)
        self.check(whole.labels)
        return SplitDatasets(
            query=LabelledImages(whole, rows=self.query, transform=transform),
            train=LabelledImages(whole, rows=self.train, transform=train_transform or transform),
            database=LabelledImages(whole, rows=self.database, transform=transform),
        )

    def check(self, labels: Tensor, name: str = "the split") -> None:
        """Raise unless these are the labels that the split was drawn for.

        Args:
            labels: Class ids ``(N,)`` or multi-hot labels ``(N, C)`` of the whole data set.
            name: The name of the split in error messages.

        Raises:
            ValueError: The number of rows or the labels differ. Two data sets with the same labels in the
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
        """Write the split as safetensors, atomically: a failure leaves the old file unchanged.

        Raises:
            OSError: The folder does not exist or cannot be written to.
        """
        metadata = {
            "format": _FORMAT,
            "protocol": self.protocol,
            "images": str(self.images),
            "labels_sha256": self.labels_sha256,
        }
        parts = self._rows()
        layout = {name: ("I64", rows.shape) for name, rows in parts.items()}
        with replacing(path) as temporary:
            write_tensors(temporary, layout, lambda name: tensor_bytes(parts[name]), metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], labels: Tensor) -> Split:
        """Read a split that :meth:`save` wrote, for the data set with these labels.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: It is no split, is damaged, or was drawn for another data set.
        """
        try:
            metadata = read_header(path, check_tensors=True)["__metadata__"]
        except ValueError as error:
            raise ValueError(f"{path} is no split, or is damaged: it is {error}") from error
        found = metadata.get("format")
        if found not in (_FORMAT, _WITHOUT_DIGESTS):
            raise ValueError(f"{path} is no split: format is {found!r}, expected {_FORMAT!r}")
        if found == _FORMAT and HEADER_DIGEST not in metadata:
            raise ValueError(f"{path} is damaged: it has no {HEADER_DIGEST}")
        rows = load_file(path)
        if set(rows) != {"query", "train", "database"}:
            raise ValueError(f"{path} is damaged: it holds {', '.join(sorted(rows)) or 'nothing'}")
        try:
            split = cls(metadata["protocol"], int(metadata["images"]), metadata["labels_sha256"], **rows)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        split.check(labels, name=str(path))
        return split

    def _rows(self) -> dict[str, Tensor]:
        return {"query": self.query, "train": self.train, "database": self.database}


class SplitDatasets(NamedTuple):
    """Queries, training set and database: data sets of ``(image, label, index)``; ``str()`` is a table."""

    query: Any
    train: Any
    database: Any

    def describe(self) -> str:
        """Return a table of the images, labels and images without label of each part."""
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
    protocol: str, labels: Tensor, rule: SplitRule, train_in_database: bool, generator: torch.Generator
) -> Split:
    """Draw the rows of each part, in ascending order.

    Args:
        protocol: The name of the protocol.
        labels: int64 ``(N,)`` or bool ``(N, C)``, as :func:`hybridhash.labels.as_labels` returns them.
        rule: How to draw.
        train_in_database: Whether the training images are part of the database.
        generator: The source of the random order.
    """
    query, train = _RULES[rule.kind](labels, rule, generator)
    in_database = torch.ones(len(labels), dtype=torch.bool)
    in_database[query] = False
    if not train_in_database:
        in_database[train] = False
    return Split(
        protocol=protocol,
        images=len(labels),
        labels_sha256=_sha256(labels),
        query=query.sort().values,
        train=train.sort().values,
        database=in_database.nonzero()[:, 0],
    )


def _sha256(labels: Tensor) -> str:
    """Return the digest of labels and their order; class ids and multi-hot rows differ."""
    labels = as_labels(labels).cpu().contiguous()
    digest = hashlib.sha256(f"{labels.dtype} {tuple(labels.shape)}".encode())
    digest.update(labels.numpy().tobytes())
    return digest.hexdigest()


def _per_class(labels: Tensor, rule: SplitRule, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    ids = class_ids(labels)
    query, train = [], []
    for number in torch.unique(ids[ids >= 0]).tolist():
        members = (ids == number).nonzero()[:, 0]
        members = members[_shuffle(len(members), generator)]
        stop = len(members) if rule.train is None else rule.query + rule.train
        if len(members) < stop or len(members) <= rule.query:
            _refuse_class(number, len(members), rule)
        query.append(members[: rule.query])
        train.append(members[rule.query : stop])
    return torch.cat(query), torch.cat(train)


def _greedy(labels: Tensor, rule: SplitRule, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    order = _shuffle(len(labels), generator)
    order = order[labels[order].any(1)]
    query = _fill(labels, order, rule.query, rule)
    others = order[~torch.isin(order, query)]
    if rule.train is None:
        return query, others
    return query, _fill(labels, others, rule.train, rule)


def _fill(labels: Tensor, order: Tensor, quota: int, rule: SplitRule) -> Tensor:
    """Take images in this order, each for the first of its classes that is not full, until all are full."""
    missing = labels.any(0).long().mul(quota).tolist()
    open_classes = sum(count > 0 for count in missing)
    taken = []
    for row in order.tolist():
        if not open_classes:
            break
        for number in labels[row].nonzero()[:, 0].tolist():
            if missing[number]:
                missing[number] -= 1
                open_classes -= missing[number] == 0
                taken.append(row)
                break
    for number, count in enumerate(missing):
        if count:
            _refuse_class(number, int(labels[:, number].sum()), rule)
    return torch.tensor(taken, dtype=torch.int64)


def _any(labels: Tensor, rule: SplitRule, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    # A query without a label has no relevant image; published code draws such queries all the same.
    order = _shuffle(len(labels), generator)
    stop = rule.query + (rule.train or 0)
    if stop >= len(labels):
        raise ValueError(
            f"{len(labels):,} images are too few for {rule.query:,} queries, {rule.train or 0:,} training "
            "images and a database"
        )
    return order[: rule.query], order[rule.query : stop]


_RULES = {"per class": _per_class, "greedy": _greedy, "any": _any}


def _shuffle(length: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(length, generator=generator, device=generator_device(generator)).cpu()


def _refuse_class(number: int, images: int, rule: SplitRule) -> None:
    train = "some" if rule.train is None else rule.train
    raise ValueError(
        f"class {number} has {images} images, too few for {rule.query} queries and {train} training images "
        "of each class: ask for fewer, or leave the class out"
    )
