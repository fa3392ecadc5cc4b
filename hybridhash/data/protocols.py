"""Protocols of the hashing literature: which images are queries, training set and database."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridhash._checks import check_flags, check_integer
from hybridhash._tables import aligned
from hybridhash.data.lists import ImageList, check_disjoint
from hybridhash.data.splits import Split, SplitDatasets, SplitRule, draw_split
from hybridhash.labels import as_labels, count_classes, labelled

__all__ = ["Protocol", "custom_protocol", "describe_protocols", "get_protocol", "list_protocols"]


@dataclass(frozen=True)
class Protocol:
    """The sizes and rules of a benchmark; ``str()`` shows them.

    Attributes:
        name: The name that :func:`get_protocol` knows it by.
        dataset: The name of the images.
        num_classes: The number of classes.
        multi_label: Whether an image may have several labels.
        query: The number of queries.
        train: The number of training images.
        database: The number of database images.
        top_k: The cut of mAP in published tables. None means the whole database.
        train_in_database: Whether the training images are searched too.
        draw: How the split is drawn. None if it is published as list files.
        unverified: The names of the fields above that are not certain, because sources differ or could not
            be read.
        notes: What to know before comparing numbers.
    """

    name: str
    dataset: str
    num_classes: int
    multi_label: bool
    query: int
    train: int
    database: int
    top_k: int | None
    train_in_database: bool
    draw: SplitRule | None
    unverified: tuple[str, ...] = ()
    notes: str = ""

    @property
    def images(self) -> int:
        """Number of images in all."""
        return self.query + self.database + (0 if self.train_in_database else self.train)

    def __str__(self) -> str:
        labels = "several labels" if self.multi_label else "one label"
        inside = "in" if self.train_in_database else "not in"
        cut = "the whole database" if self.top_k is None else f"the nearest {self.top_k:,}"
        lines = [
            f"{self.name}: {self.dataset}, {self.num_classes} classes, {labels} an image",
            f"query {self.query:,}, train {self.train:,} ({inside} the database), database {self.database:,}",
            f"mAP over {cut}; the split is {_drawn(self.draw)}",
        ]
        if self.unverified:
            lines.append(f"not certain: {', '.join(self.unverified)}")
        return "\n".join([*lines, self.notes] if self.notes else lines)

    def split(self, labels: Tensor, generator: torch.Generator) -> Split:
        """Draw queries, training set and database.

        Images without label are neither queries nor, unless the rule is ``"any"``, training images; they stay
        in the database.

        Args:
            labels: The labels of the whole data set: class ids ``(N,)``, or multi-hot ``(N, C)``, which
                ``multi_label`` protocols need.
            generator: The source of the random order. Save the split, because another version of torch may
                draw another one.

        Returns:
            The rows of each part, in ascending order.

        Raises:
            ValueError: The split is published as list files, the labels are of another kind or number of
                classes, or a class has too few images. Another total number of images only warns.

        Example:
            >>> split = get_protocol("cifar10").split(
            ...     torch.arange(60_000) % 10, torch.Generator().manual_seed(0)
            ... )
            >>> len(split.query), len(split.train), len(split.database)
            (1000, 5000, 54000)
        """
        if self.draw is None:
            raise ValueError(
                f"{self.name} is not drawn at random but published as test.txt, train.txt, database.txt: use "
                "load_lists"
            )
        labels = as_labels(labels).cpu()
        self._check_labels(labels)
        split = draw_split(self.name, labels, self.draw, self.train_in_database, generator)
        self._compare_sizes("the split", split.query, split.train, split.database)
        return split

    def load_lists(
        self,
        folder: str | os.PathLike[str],
        root: str | os.PathLike[str] | None = None,
        *,
        transform: Callable[[Any], Any] | None = None,
        train_transform: Callable[[Any], Any] | None = None,
        strip_prefix: str = "",
        check_files: bool = True,
        allow_duplicates: bool = False,
    ) -> SplitDatasets:
        """Read ``test.txt`` (the queries), ``train.txt`` and ``database.txt``, and check them.

        Args:
            folder: The folder of the lists.
            root: The folder that the paths in them start from. None takes ``folder``.
            transform: A function applied to the images of queries and database.
            train_transform: A function applied to training images. None takes ``transform``.
            strip_prefix: A prefix of all paths that ``root`` replaces; see :class:`ImageList`.
            check_files: Whether to look for each image; see :class:`ImageList`.
            allow_duplicates: Whether a path may be listed twice; see :class:`ImageList`.

        Returns:
            The three data sets, whose items are ``(image, label, row)``. Single-label benchmarks have class
            ids, also from one-hot lists.

        Raises:
            FileNotFoundError: A list or an image is missing.
            ValueError: :class:`ImageList` refuses a line, or a query is in the database or the training set
                too. The message names file and line. Sizes other than the published ones only warn.
        """

        def read(name: str, transform: Callable[[Any], Any] | None) -> ImageList:
            return ImageList(
                Path(folder, name),
                folder if root is None else root,
                transform,
                with_rows=True,
                num_classes=self.num_classes,
                multi_label=self.multi_label,
                strip_prefix=strip_prefix,
                check_files=check_files,
                allow_duplicates=allow_duplicates,
            )

        query = read("test.txt", transform)
        train = read("train.txt", train_transform or transform)
        database = read("database.txt", transform)
        check_disjoint(query, database)
        check_disjoint(query, train)
        self._compare_sizes(f"the lists in {folder}", query, train, database)
        return SplitDatasets(query, train, database)

    def _compare_sizes(self, what: str, query: Sized, train: Sized, database: Sized) -> None:
        got = {"query": len(query), "train": len(train), "database": len(database)}
        other = [
            f"{name} {size:,} instead of {getattr(self, name):,}"
            for name, size in got.items()
            if size != getattr(self, name) and name not in self.unverified
        ]
        if other:
            warnings.warn(
                f"{what} has not the sizes of {self.name}: {', '.join(other)}; numbers cannot be compared "
                "with published ones",
                stacklevel=3,
            )

    def _check_labels(self, labels: Tensor) -> None:
        if self.multi_label and labels.ndim == 1:
            raise ValueError(f"{self.name} needs multi-hot labels (N, {self.num_classes}), got class ids")
        if labels.ndim == 2 and labels.shape[1] != self.num_classes:
            raise ValueError(f"{self.name} has {self.num_classes} classes, got {labels.shape[1]} columns")
        if labels.ndim == 2 and not self.multi_label:
            several = (labels.sum(1) > 1).nonzero()[:, 0].tolist()
            if several:
                raise ValueError(
                    f"{self.name} has one class an image, but {len(several):,} rows have several labels, the "
                    f"first are {several[:5]}"
                )
        if labels.ndim == 1 and len(labels) and int(labels.max()) >= self.num_classes:
            row = int(labels.argmax())
            raise ValueError(
                f"{self.name} has {self.num_classes} classes, row {row} has the class id {int(labels[row])}"
            )


_CIFAR = "Training and test set are pooled; published code draws the split anew in each run, without a seed."
_PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "cifar10", "CIFAR-10", 10, False, 1000, 5000, 54_000, None, False,
            SplitRule("per class", 100, 500), notes=_CIFAR,
        ),
        Protocol(
            "cifar10-1", "CIFAR-10", 10, False, 1000, 5000, 59_000, None, True,
            SplitRule("per class", 100, 500), notes=_CIFAR,
        ),
        Protocol(
            "cifar10-2", "CIFAR-10", 10, False, 10_000, 50_000, 50_000, None, True,
            SplitRule("per class", 1000, 5000), notes=_CIFAR,
        ),
        Protocol(
            "nuswide_21", "NUS-WIDE, images of the 21 most frequent concepts", 21, True, 2100, 10_500,
            193_734, 5000, True, SplitRule("greedy", 100, 500),
            notes="Published code draws both sets in one pass over the images; here the queries come first.",
        ),
        Protocol(
            "nuswide_21_m", "NUS-WIDE-m, 21 concepts", 21, True, 2100, 10_500, 149_736, 5000, False, None,
            ("database",),
            "The lists of DHN's release. CSQ uses 10,455 of the training images and 2,040 of the queries.",
        ),
        Protocol(
            "nuswide_81_m", "NUS-WIDE-m, 81 concepts", 81, True, 5000, 10_000, 168_692, 5000, True, None,
            ("train_in_database",),
            "HashNet's lists of this name are others (118 queries in common), and 1,131 of its queries have "
            "no label, hence no relevant image.",
        ),
        Protocol(
            "coco", "MS COCO, train2014 and val2014 mixed", 80, True, 5000, 10_000, 112_218, 5000, False,
            None, ("database", "train_in_database"),
            "Lists differ between code bases. HashNet's database of this size contains all 5,000 queries of "
            "its test list; load_lists refuses that, since a query that finds itself raises every metric.",
        ),
        Protocol(
            "imagenet100", "ImageNet, 100 classes", 100, False, 5000, 13_000, 128_503, 1000, True, None,
            notes="130 training images of each class; the queries are the 50 of each class of ILSVRC's val.",
        ),
        Protocol(
            "mirflickr", "MIRFLICKR-25k", 38, True, 1000, 4000, 20_000, None, False,
            SplitRule("any", 1000, 4000),
            notes="Some images have no label. Published code numbers the labels in the order of a folder, "
            "which differs by machine.",
        ),
        Protocol(
            "voc2012", "PASCAL VOC 2012 trainval", 20, True, 1000, 4000, 6540, None, False,
            SplitRule("any", 1000, 4000),
        ),
    )
}  # fmt: skip


def get_protocol(name: str) -> Protocol:
    """Return a benchmark by name; the case does not matter.

    Raises:
        ValueError: No benchmark has that name. The message names the nearest ones.

    Example:
        >>> print(get_protocol("voc2012"))
        voc2012: PASCAL VOC 2012 trainval, 20 classes, several labels an image
        query 1,000, train 4,000 (not in the database), database 6,540
        mAP over the whole database; the split is drawn from all images
    """
    key = name.lower()
    if key not in _PROTOCOLS:
        near = difflib.get_close_matches(key, _PROTOCOLS, n=3, cutoff=0.4) or list(_PROTOCOLS)
        raise ValueError(
            f"no protocol is called {name!r}; nearest: {', '.join(near)} (all: list_protocols()); for data "
            "of your own, custom_protocol"
        )
    return _PROTOCOLS[key]


def list_protocols() -> list[str]:
    """List the names that :func:`get_protocol` takes.

    Example:
        >>> len(list_protocols())
        10
    """
    return list(_PROTOCOLS)


def describe_protocols() -> str:
    """Return a table of all benchmarks; ``?`` marks what is not certain.

    Example:
        >>> print("\\n".join(describe_protocols().splitlines()[:2]))
        name          classes   labels   query   train  database  train in database  top_k  split is
        cifar10            10      one   1,000   5,000    54,000                 no    all  drawn per class
    """
    rows = [
        ["name", "classes", "labels", "query", "train", "database", "train in database", "top_k", "split is"]
    ]
    for protocol in _PROTOCOLS.values():
        marks = {
            name: "?" if name in protocol.unverified else "" for name in ("database", "train_in_database")
        }
        rows.append(
            [
                protocol.name,
                str(protocol.num_classes),
                "several" if protocol.multi_label else "one",
                f"{protocol.query:,}",
                f"{protocol.train:,}",
                f"{protocol.database:,}{marks['database']}",
                ("yes" if protocol.train_in_database else "no") + marks["train_in_database"],
                "all" if protocol.top_k is None else f"{protocol.top_k:,}",
                _drawn(protocol.draw),
            ]
        )
    return aligned(rows)


def custom_protocol(
    name: str,
    labels: Tensor,
    *,
    query_per_class: int,
    train_per_class: int | None = None,
    train_in_database: bool = True,
    top_k: int | None = None,
) -> Protocol:
    """Make a protocol for your own data, with a number of images of each class.

    Args:
        name: A name for it.
        labels: The labels of the whole data set, class ids ``(N,)`` or multi-hot ``(N, C)``.
        query_per_class: The number of queries of each class.
        train_per_class: The number of training images of each class. None takes all labelled images that are
            not queries.
        train_in_database: Whether the training images are searched too.
        top_k: The cut of mAP. None means the whole database.

    Returns:
        The protocol; ``split(labels, generator)`` draws it.

    Raises:
        TypeError: A number is not an integer.
        ValueError: A number is below 1, or the database would be empty. A class with too few images raises
            when the split is drawn.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1, 1])
        >>> split = custom_protocol("mine", labels, query_per_class=1).split(labels, torch.Generator())
        >>> len(split.query), len(split.train), len(split.database)
        (2, 5, 5)
    """
    check_integer("query_per_class", query_per_class, 1)
    check_flags(train_in_database=train_in_database)
    if top_k is not None:
        check_integer("top_k", top_k, 1, advice="use None for the whole database")
    if train_per_class is not None:
        check_integer("train_per_class", train_per_class, 1)
    if train_per_class is None and not train_in_database:
        raise ValueError("the database would be empty: give train_per_class, or train_in_database=True")
    labels = as_labels(labels)
    multi_label = labels.ndim == 2
    has_label = labelled(labels)
    present = int(labels.any(0).sum()) if multi_label else len(torch.unique(labels[has_label]))
    query = query_per_class * present
    train = int(has_label.sum()) - query if train_per_class is None else train_per_class * present
    return Protocol(
        name=name,
        dataset="own data",
        num_classes=count_classes(labels),
        multi_label=multi_label,
        query=query,
        train=train,
        database=len(labels) - query - (0 if train_in_database else train),
        top_k=top_k,
        train_in_database=train_in_database,
        draw=SplitRule("greedy" if multi_label else "per class", query_per_class, train_per_class),
    )


def _drawn(draw: SplitRule | None) -> str:
    if draw is None:
        return "published as lists"
    if draw.kind == "any":
        return "drawn from all images"
    return f"drawn {draw.kind}" if draw.kind == "per class" else "drawn greedily per class"
