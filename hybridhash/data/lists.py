"""List files and CSV files as data sets; what would spoil a benchmark is refused by file and line."""

from __future__ import annotations

import csv
import os
import warnings
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hybridhash.data.images import StringList, read_image
from hybridhash.data.labelled import LabelledImages, count_classes
from hybridhash.labels import class_ids, labelled

__all__ = ["ImageList", "check_disjoint", "read_csv"]

_SHOWN = 3  # offending rows that a message names


class ImageList(Dataset[Any]):
    """Read the images of a list file: each line is a path and its labels.

    ``photos/cat 1.jpg 3`` has the class id 3, ``photos/cat.jpg 0 1 0`` the multi-hot labels of 3 classes, and
    ``photos/cat.jpg`` no label; all lines have the same form. Spaces or tabs separate the labels. Empty lines
    are skipped. The paths take about their own size in bytes, and worker processes share them.

    Args:
        path: The list file, in UTF-8.
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
        allow_duplicates: Whether a path may be listed twice. True also saves the memory of the check, about
            200 bytes per image.

    Attributes:
        labels: int64 ``(N,)`` class ids, -1 where there is none; bool ``(N, C)``; or None if no line has a
            label. They are known without decoding an image.

    Raises:
        FileNotFoundError: The list file or an image is missing.
        ValueError: The file is no text or lists no image; lines have different numbers of labels, or none
            where they are needed; a class id is beyond the classes; a single-label list has several labels
            in a line; or a path is listed twice or lacks the prefix. The message names file and line. A file
            that is no image raises when its row is read.

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
        self.file = Path(path)
        self.root = os.fspath(self.file.parent if root is None else root)
        self.transform = transform
        self.with_rows = with_rows
        self.strip_prefix = strip_prefix
        self._paths, labels = _read_list(self.file)
        if labels is not None:
            labels = self._checked_labels(labels, num_classes, multi_label)
        elif with_rows or num_classes is not None or multi_label is not None:
            raise ValueError(
                f"{self.location(0)}: no label after the path {self._paths[0]!r}; write class names in a CSV "
                "file and use read_csv"
            )
        self.labels = labels
        for row, name in enumerate(self._paths) if strip_prefix else ():
            if not name.startswith(strip_prefix):
                raise ValueError(f"{self.location(row)}: {name!r} does not begin with {strip_prefix!r}")
        if not allow_duplicates:
            _refuse_duplicates(self._files(), self.location)
        if check_files:
            _refuse_missing(self._files(), self.location)

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
        return os.path.join(self.root, self._paths[row][len(self.strip_prefix) :])

    def location(self, row: int) -> str:
        """Return the file and the line number that list a row, for messages."""
        return f"{self.file}, line {self._line_numbers[row]}"

    def place(self, row: int) -> str:
        """Return :meth:`location`, the name of this method now."""
        warnings.warn("ImageList.place is now ImageList.location", DeprecationWarning, stacklevel=2)
        return self.location(row)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> Any:
        image = _read_listed(self.path(row), lambda: self.location(row))
        if self.transform is not None:
            image = self.transform(image)
        if self.labels is None:
            return image
        label = self.labels[row]
        return (image, label, row) if self.with_rows else (image, label)

    @cached_property
    def _line_numbers(self) -> array[int]:
        """Line number of each row; empty lines have no row."""
        with open(self.file, encoding="utf-8", errors="replace") as lines:
            return array("q", (number for number, line in enumerate(lines, 1) if line.strip()))

    def _files(self) -> Iterable[str]:
        return (self.path(row) for row in range(len(self)))

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
                + _and_others(len(several))
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


def _read_list(path: Path) -> tuple[StringList, Tensor | None]:
    """Read the paths of a list file and their labels, int64 ``(N,)`` or bool ``(N, C)``, None without."""
    paths = StringList()
    labels: array[int] = array("q")
    columns = None
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                name, values = _split_line(line.strip())
                if not name:
                    continue
                if columns is None:
                    columns = len(values)
                    labels = array("q" if columns == 1 else "b")
                _check_line(f"{path}, line {number}", line, values, columns)
                paths.append(name)
                labels.extend(values)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no list of images in UTF-8: {error}") from error
    if columns is None:
        raise ValueError(f"{path} lists no image: each line is a path and its labels")
    if columns == 0:
        return paths, None
    tensor = torch.from_numpy(np.array(labels))
    return paths, tensor if columns == 1 else tensor.view(-1, columns).bool()


def _split_line(line: str) -> tuple[str, list[int]]:
    """Split a line into a path, which may contain spaces, and the integers that follow it."""
    words = line.split(" ") if "\t" not in line else line.split("\t")
    values: list[int] = []
    while len(words) > 1 and words[-1].lstrip("-").isdecimal():
        values.append(int(words.pop()))
    return " ".join(words).rstrip(), values[::-1]


def _check_line(location: str, line: str, values: list[int], columns: int) -> None:
    if len(values) != columns:
        raise ValueError(
            f"{location}: {len(values)} labels, but {columns} in the lines before: {line.strip()[:80]!r}"
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


def read_csv(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    image: str = "image",
    label: str = "label",
    separator: str | None = None,
    classes: Sequence[str] | None = None,
    transform: Callable[[Any], Any] | None = None,
    check_files: bool = True,
) -> LabelledImages:
    """Read images and their classes from a CSV file with a header.

    Args:
        path: The file, in UTF-8.
        root: The folder that relative paths start from. None takes the folder of the file.
        image: The name of the column of paths.
        label: The name of the column of classes, which are names or numbers. An empty cell means no label.
        separator: The character between several classes in a cell, such as ``";"``, which gives multi-hot
            labels. None reads one class per cell and gives class ids.
        classes: The names of the classes in the order of their ids. None takes all that occur, sorted
            (numbers by value).
        transform: A function applied to each image, PIL RGB.
        check_files: Whether to look for each image.

    Returns:
        A data set of ``(image, label, index)``.

    Raises:
        FileNotFoundError: The file or an image is missing. The message names file and line.
        ValueError: A column is missing, a row is too short, a class is not among ``classes``, or a path is
            listed twice. The message names file and line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "birds.csv").write_text("file,species\\na.jpg,wren\\nb.jpg,crow\\n")
        ...     birds = read_csv(f"{folder}/birds.csv", image="file", label="species", check_files=False)
        >>> birds.classes, birds.labels
        (('crow', 'wren'), tensor([1, 0]))
    """
    folder = Path(path).parent if root is None else root
    files: list[str] = []
    names_of_rows: list[list[str]] = []
    line_numbers: list[int] = []

    def location(row: int) -> str:
        return f"{path}, line {line_numbers[row]}"

    with open(path, encoding="utf-8-sig", newline="") as content:
        reader = csv.reader(content)
        header = next(reader, [])
        for column in (image, label):
            if column not in header:
                raise ValueError(f"{path}, line 1: no column {column!r}, only {', '.join(header) or 'none'}")
        for cells in filter(None, reader):
            line_numbers.append(reader.line_num)
            if len(cells) != len(header):
                raise ValueError(f"{location(-1)}: {len(cells)} cells, expected {len(header)}: {cells[:5]}")
            files.append(os.path.join(folder, cells[header.index(image)]))
            classes_cell = cells[header.index(label)]
            names = classes_cell.split(separator) if separator else [classes_cell]
            names_of_rows.append([name.strip() for name in names if name.strip()])
    if not files:
        raise ValueError(f"{path} lists no image below its header")
    known = _sorted_classes(names_of_rows) if classes is None else list(classes)
    labels = _multi_hot(names_of_rows, known, location)
    _refuse_duplicates(files, location)
    if check_files:
        _refuse_missing(files, location)
    return LabelledImages(
        _Files(files, location),
        labels if separator else class_ids(labels),
        transform=transform,
        classes=known,
    )


def _sorted_classes(names_of_rows: list[list[str]]) -> list[str]:
    """Return all class names in order, numbers by their value."""
    names = {name for names in names_of_rows for name in names}
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=int if numbers else None)


def _multi_hot(names_of_rows: list[list[str]], known: list[str], location: Callable[[int], str]) -> Tensor:
    ids = {name: number for number, name in enumerate(known)}
    labels = torch.zeros(len(names_of_rows), len(known), dtype=torch.bool)
    for row, names in enumerate(names_of_rows):
        for name in names:
            if name not in ids:
                raise ValueError(f"{location(row)}: the class {name!r} is not among {', '.join(known[:10])}")
            labels[row, ids[name]] = True
    return labels


class _Files:
    """Image files that are read when they are asked for."""

    def __init__(self, files: list[str], location: Callable[[int], str]) -> None:
        self.files = files
        self.locations = [location(row) for row in range(len(files))]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Any:
        return _read_listed(self.files[row], lambda: self.locations[row])


def _read_listed(path: str, location: Callable[[], str]) -> Any:
    """Decode an image; errors name the line that lists it."""
    try:
        return read_image(path)
    except (OSError, SyntaxError, ValueError) as error:
        message = f"{location()}: the image {path} cannot be read: {error}"
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, message) from error
        raise ValueError(message) from error


def _refuse_duplicates(files: Iterable[str], location: Callable[[int], str]) -> None:
    first_rows: dict[str, int] = {}
    repeated = []
    for row, file in enumerate(files):
        name = os.path.normpath(file)
        if first_rows.setdefault(name, row) != row:
            repeated.append((name, row))
    if repeated:
        name, row = repeated[0]
        raise ValueError(
            f"{location(row)}: {name} is listed already, {location(first_rows[name])}"
            + _and_others(len(repeated))
        )


def _refuse_missing(files: Iterable[str], location: Callable[[int], str]) -> None:
    missing = [(row, file) for row, file in enumerate(files) if not os.path.isfile(file)]
    if missing:
        row, file = missing[0]
        raise FileNotFoundError(
            f"{location(row)}: there is no image {file}{_and_others(len(missing))}; give root=, the folder "
            "that the paths start from, or strip_prefix= if they begin with another"
        )


def _and_others(count: int) -> str:
    return f" (and so for {count - 1:,} more lines)" if count > 1 else ""
