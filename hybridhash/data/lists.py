"""List files as data sets: a path and its labels in each line."""

from __future__ import annotations

import os
import re
import warnings
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hybridhash.data.images import StringList
from hybridhash.data.listed import ListedImages, and_others
from hybridhash.labels import class_ids, count_classes, labelled

__all__ = ["ImageList", "check_disjoint"]

_SHOWN = 3  # offending rows that a message names
_LABELS = re.compile(r"(?:[ \t]+-?[0-9]+)+$")


class ImageList(Dataset[Any]):
    """Read the images of a list file: each line is a path and its labels.

    ``photos/cat 1.jpg 3`` has the class id 3, ``photos/cat.jpg 0 1 0`` the multi-hot labels of 3 classes, and
    ``photos/cat.jpg`` no label; all lines have the same form. The labels are the whole numbers at the end of
    a line, after any number of spaces or tabs; the path may contain spaces. Empty lines are skipped. The
    paths take about their own size in bytes, and worker processes share them.

    The file is UTF-8, with or without a byte order mark, and with the line ends of any system. Where a name
    on the disk is not UTF-8, the line has the same bytes as the name. Lines that are not UTF-8 are doubtful,
    and so are those with a tab after the first of their numbers: their images must exist, whatever
    ``check_files`` is.

    Args:
        path: The list file.
        root: The folder that relative paths start from. None takes the folder of the list file.
        transform: A function applied to each image, PIL RGB. None returns the image itself.
        with_rows: Whether an item also has its row number, as a :class:`hybridhash.losses.CodeBank` needs
            it: ``(image, label, row)`` instead of ``(image, label)``. All lines must have a label then.
        num_classes: The expected number of labels in a line, or the bound of class ids. None accepts any.
        multi_label: False demands at most one label per image and gives class ids. True demands multi-hot
            labels. None keeps the labels as they are written.
        strip_prefix: A prefix of all paths that ``root`` replaces: ``./data/imagenet/`` for
            ``./data/imagenet/val/1.JPEG``.
        check_files: Whether to look for each image when the list is opened, with one system call each. Turn
            this off for millions of images.
        allow_duplicates: Whether a path may be listed twice. True also saves the time of the check.

    Attributes:
        labels: int64 ``(N,)`` class ids, -1 where there is none; bool ``(N, C)``; or None if no line has a
            label. They are known without decoding an image.

    Raises:
        FileNotFoundError: The list file or an image is missing.
        ValueError: The file lists no image; lines have different numbers of labels, or none where they are
            needed; a class id is beyond the classes; a single-label list has several labels in a line; a path
            is listed twice, lacks the prefix or looks like a path and a label; or a line may have been
            misread. The message names file and line. A file that is no image raises when its row is read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "test.txt").write_text("a.jpg 0 1\\nb c.jpg 1 0\\nd.jpg 0 0\\n")
        ...     photos = ImageList(f"{folder}/test.txt", "/data", multi_label=False, check_files=False)
        >>> photos.path(1), photos.labels, photos.unlabelled
        ('/data/b c.jpg', tensor([ 1,  0, -1]), 1)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        root: str | os.PathLike[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        *,
        with_rows: bool = False,
        num_classes: int | None = None,
        multi_label: bool | None = None,
        strip_prefix: str = "",
        check_files: bool = True,
        allow_duplicates: bool = False,
    ) -> None:
        self.transform = transform
        self.with_rows = with_rows
        self._images = ListedImages(path, Path(path).parent if root is None else root, strip_prefix)
        labels = _read_list(self._images)
        if labels is not None:
            labels = self._checked_labels(labels, num_classes, multi_label)
        elif with_rows or num_classes is not None or multi_label is not None:
            raise ValueError(
                f"{self.location(0)}: no label after the path {self.names[0]!r}; write class names in a CSV "
                "file and use read_csv"
            )
        self.labels = labels
        self._images.check(files=check_files, duplicates=not allow_duplicates)

    @property
    def file(self) -> Path:
        """The list file."""
        return Path(self._images.file)

    @property
    def root(self) -> str:
        """The folder that relative paths start from."""
        return self._images.root

    @property
    def names(self) -> StringList:
        """The path of each row as it is written in the list file."""
        return self._images.names

    @property
    def num_classes(self) -> int:
        """Number of columns of multi-hot labels, or the largest class id plus one; 0 without labels."""
        return 0 if self.labels is None else count_classes(self.labels)

    @property
    def unlabelled(self) -> int:
        """Number of rows without any label."""
        return len(self) if self.labels is None else int((~labelled(self.labels)).sum())

    def path(self, row: int) -> str:
        """Return the path of the image in a row."""
        return self._images.path(row)

    def location(self, row: int) -> str:
        """Return the file and the line number that list a row, for messages."""
        return self._images.location(row)

    def place(self, row: int) -> str:
        """Return :meth:`location`, the name of this method now."""
        warnings.warn("ImageList.place is now ImageList.location", DeprecationWarning, stacklevel=2)
        return self.location(row)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> Any:
        image = self._images[row]
        if self.transform is not None:
            image = self.transform(image)
        if self.labels is None:
            return image
        label = self.labels[row]
        return (image, label, row) if self.with_rows else (image, label)

    def _checked_labels(self, labels: Tensor, num_classes: int | None, multi_label: bool | None) -> Tensor:
        """Return labels as class ids or multi-hot rows, whichever ``multi_label`` asks for."""
        if labels.ndim == 1:
            self._check_class_ids(labels, num_classes)
            if multi_label:
                raise ValueError(f"{self.location(0)}: one class id, expected multi-hot labels 0 1 0 ...")
            return labels
        if num_classes not in (None, labels.shape[1]):
            raise ValueError(f"{self.location(0)}: {labels.shape[1]} labels, expected {num_classes}")
        if multi_label is not False:
            return labels
        several = (labels.sum(1) > 1).nonzero()
        if len(several):
            row = int(several[0])
            raise ValueError(
                f"{self.location(row)}: {int(labels[row].sum())} labels are 1, but each image has one class"
                + and_others(len(several))
            )
        return class_ids(labels)

    def _check_class_ids(self, labels: Tensor, num_classes: int | None) -> None:
        beyond = labels < -1
        if num_classes is not None:
            beyond |= labels >= num_classes
        if bool(beyond.any()):
            row = int(beyond.nonzero()[0])
            bound = "and more" if num_classes is None else f"to {num_classes - 1}"
            raise ValueError(
                f"{self.location(row)}: class id {int(labels[row])}, but classes are 0 {bound} "
                "(or -1 for no label)"
            )


def _read_list(images: ListedImages) -> Tensor | None:
    """Read the lines of ``images.file``; return int64 ``(N,)`` or bool ``(N, C)``, None without labels."""
    labels: array[int] = array("q")
    columns = None
    # utf-8-sig drops the byte order mark of Windows; surrogateescape keeps names that are not UTF-8.
    with open(images.file, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            line = line.strip(" \t\n")
            if not line:
                continue
            name, values, doubt = _split_line(line, f"{images.file}, line {number}")
            if columns is None:
                columns = len(values)
                labels = array("q" if columns == 1 else "b")
            _check_line(f"{images.file}, line {number}", line, values, columns)
            images.append(name, number, doubt)
            labels.extend(values)
    if columns is None:
        raise ValueError(f"{images.file} lists no image: each line is a path and its labels")
    if columns == 0:
        return None
    tensor = torch.from_numpy(np.array(labels))
    return tensor if columns == 1 else tensor.view(-1, columns).bool()


def _split_line(line: str, location: str) -> tuple[str, list[int], str]:
    """Split a line into a path, the whole numbers at its end, and why the two may be mistaken, if so."""
    match = _LABELS.search(line)
    if match is None:
        return line, [], ""
    start = match.start()
    doubt = ""
    before_tab, tab, _ = match[0].partition("\t")
    if tab and before_tab.strip():
        # "IMG 1<tab>7" is the path "IMG 1" in a list that tabs separate.
        start += len(before_tab)
        doubt = "spaces and a tab separate its numbers: separate path and labels in one way"
    words = line[start:].split()
    longest = max(words, key=len)
    if len(longest) > 18:
        raise ValueError(f"{location}: the class id {longest[:40]} has more than 18 digits")
    return line[:start].rstrip(" \t"), [int(word) for word in words], doubt


def _check_line(location: str, line: str, values: list[int], columns: int) -> None:
    if len(values) != columns:
        raise ValueError(
            f"{location}: {len(values)} labels, but {columns} in the lines before: {line[:80]!r}"
        )
    if columns > 1 and not {0, 1}.issuperset(values):
        raise ValueError(f"{location}: several labels must be 0 or 1, got {values[:10]}")


def check_disjoint(first: ImageList, second: ImageList) -> None:
    """Raise unless two lists have no image in common, by path. Copies under other names are not found.

    Raises:
        ValueError: Some images are in both lists. The message names lines of both files.
    """
    rows = {os.path.normpath(first.path(row)): row for row in range(len(first))}
    files = (os.path.normpath(second.path(row)) for row in range(len(second)))
    common = [(rows[file], row) for row, file in enumerate(files) if file in rows]
    if common:
        pairs = (f"{first.location(a)} and {second.location(b)}" for a, b in common[:_SHOWN])
        raise ValueError(
            f"{len(common):,} images are in both {first.file} and {second.file}, the first is "
            f"{first.path(common[0][0])}: {'; '.join(pairs)}. A query that finds itself, or that was trained "
            "on, raises every metric: remove these lines"
        )
