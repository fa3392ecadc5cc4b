"""Labelled images of benchmarks: list files, tables, CIFAR-10, and parts of any data set."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from hybridhash.data import images
from hybridhash.labels import as_labels

__all__ = ["ImageList", "LabelledImages", "check_disjoint", "cifar10", "digits", "labelled", "read_csv"]

_SHOWN = 3  # offending rows that a message names


class ImageList(images.ImageList):
    """Images of a benchmark's list file, ``(image, label, index)``, checked when it is opened.

    A line is a path and its labels: ``train/cat 1.jpg 0 1 0`` (multi-hot; one-hot in single-label lists) or,
    with a space or a tab between, a path and a class id. Empty lines are skipped. How lines are read and held
    is that of :class:`hybridhash.data.ImageList`; this class adds the row number that banks need, and
    refuses what would spoil a benchmark.

    Args:
        path: the list file, UTF-8.
        root: folder that relative paths start from; by default that of the list file.
        transform: applied to each image, PIL RGB; None leaves it.
        num_classes: the number of labels in a line (or the bound of class ids); None takes what is there.
        multi_label: False demands at most one label of an image, and gives class ids; True multi-hot rows.
            None leaves the labels as they are written.
        strip_prefix: what all paths begin with and ``root`` does not contain, as in
            ``./data/imagenet/val/1.JPEG`` with the prefix ``./data/imagenet/``.
        check_files: look whether each image is there. It is one system call for each.
        allow_duplicates: keep a path that is listed twice.

    Attributes:
        labels: int64 ``(N,)`` class ids, -1 without label, or bool ``(N, C)``; no image is decoded for them.

    Raises:
        FileNotFoundError: no list file, or a missing image.
        ValueError: a line without label or with another number of labels, a class id beyond the classes,
            several labels in a single-label list, a path that is listed twice or lacks the prefix, a file
            that is no text. All messages name file and line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "test.txt").write_text("a.jpg 0 1\\nb.jpg 1 0\\nc.jpg 0 0\\n")
        ...     photos = ImageList(f"{folder}/test.txt", multi_label=False, check_files=False)
        >>> photos.labels, photos.unlabelled
        (tensor([ 1,  0, -1]), 1)
    """

    labels: Tensor

    def __init__(
        self,
        path: str | os.PathLike[str],
        root: str | os.PathLike[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        *,
        num_classes: int | None = None,
        multi_label: bool | None = None,
        strip_prefix: str = "",
        check_files: bool = True,
        allow_duplicates: bool = False,
    ) -> None:
        self.file = Path(path)
        self.strip_prefix = strip_prefix
        try:
            super().__init__(path, root, transform)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no list of images in UTF-8: {error}") from error
        if self.labels is None:
            raise ValueError(
                f"{self.place(0)}: no label after the path {self._paths[0]!r}; class names belong into a CSV "
                "file, see read_csv"
            )
        self._check_labels(num_classes)
        if multi_label is False:
            self.labels = self._class_ids()
        elif multi_label and self.labels.ndim == 1:
            raise ValueError(f"{self.place(0)}: one class id, but multi-hot labels 0 1 0 ... are expected")
        for row, name in enumerate(self._paths):
            if not name.startswith(strip_prefix):
                raise ValueError(f"{self.place(row)}: {name!r} does not begin with {strip_prefix!r}")
        if not allow_duplicates:
            _refuse_duplicates(self._files(), self.place)
        if check_files:
            _refuse_missing(self._files(), self.place)

    @property
    def num_classes(self) -> int:
        """Columns of multi-hot labels, or one more than the largest class id."""
        return _num_classes(self.labels)

    @property
    def unlabelled(self) -> int:
        """Rows without any label."""
        return int((~labelled(self.labels)).sum())

    def path(self, row: int) -> str:
        """Path of the image of a row."""
        return os.path.join(self.root, self._paths[row][len(self.strip_prefix) :])

    def place(self, row: int) -> str:
        """Where a row is listed: the file and the number of the line, for messages."""
        with open(self.file, encoding="utf-8", errors="replace") as lines:
            numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
        return f"{self.file}, line {numbers[row]}"

    def __getitem__(self, row: int) -> tuple[Any, Tensor, int]:
        image = _read(self.path(row), lambda: self.place(row))
        return self.transform(image) if self.transform else image, self.labels[row], row

    def _files(self) -> Iterable[str]:
        return (self.path(row) for row in range(len(self)))

    def _check_labels(self, num_classes: int | None) -> None:
        if self.labels.ndim == 2:
            if num_classes not in (None, self.labels.shape[1]):
                raise ValueError(f"{self.place(0)}: {self.labels.shape[1]} labels, expected {num_classes}")
            return
        beyond = self.labels < -1
        if num_classes is not None:
            beyond |= self.labels >= num_classes
        for row in beyond.nonzero()[:1, 0].tolist():
            end = "" if num_classes is None else f" to {num_classes - 1}"
            raise ValueError(
                f"{self.place(row)}: class id {int(self.labels[row])}, but classes are 0{end or ' and more'} "
                "(or -1 for no label)"
            )

    def _class_ids(self) -> Tensor:
        if self.labels.ndim == 1:
            return self.labels
        several = (self.labels.sum(1) > 1).nonzero()
        if len(several):
            row = int(several[0])
            raise ValueError(
                f"{self.place(row)}: {int(self.labels[row].sum())} labels are 1, but each image has one class"
                + _others(len(several))
            )
        return torch.where(self.labels.any(1), self.labels.int().argmax(1), -1)


class LabelledImages(Dataset[Any]):
    """Rows of any data set as ``(image, label, index)``, with labels that are known without decoding.

    Args:
        dataset: map-style; ``dataset[row]`` is an image, or a tuple that begins with it. ``ImageFolder`` and
            CIFAR of torchvision, :class:`ImageList` and ``TensorDataset`` are such.
        labels: of all rows of ``dataset``, ``(N,)`` class ids or ``(N, C)`` multi-hot; None takes its
            ``labels`` or ``targets``.
        rows: integers ``(n,)``, which rows and in which order; None for all.
        transform: applied to each image.
        classes: names of the classes, if they are known; None takes those of ``dataset``.

    Attributes:
        labels: int64 ``(n,)`` or bool ``(n, C)`` of the chosen rows.
        rows: int64 ``(n,)``, rows of ``dataset``. The index that an item carries counts the chosen rows, as
            a :class:`hybridhash.losses.CodeBank` of ``len(self)`` rows wants it.

    Raises:
        IndexError: a row outside the data set.
        TypeError: no labels given and none to be found.
        ValueError: labels that do not fit the data set.

    Example:
        >>> photos = LabelledImages(["a", "b", "c"], torch.tensor([0, 1, 0]), rows=torch.tensor([2, 1]))
        >>> photos[0]
        ('c', tensor(0), 0)
    """

    def __init__(
        self,
        dataset: Any,
        labels: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        transform: Callable[[Any], Any] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        if labels is None:
            known = getattr(dataset, "labels", None)
            known = getattr(dataset, "targets", None) if known is None else known
            if known is None:
                raise TypeError(f"{type(dataset).__name__} has neither .labels nor .targets: give labels")
            labels = torch.as_tensor(known)
        labels = as_labels(labels, length=len(dataset)).cpu()
        rows = torch.arange(len(dataset)) if rows is None else rows.cpu().long()
        outside = rows[(rows < 0) | (rows >= len(dataset))]
        if len(outside):
            raise IndexError(f"row {int(outside[0])} is outside the data set of {len(dataset)} images")
        self.dataset = dataset
        self.rows = rows
        self.labels = labels[rows]
        self.transform = transform
        found = getattr(dataset, "classes", None) if classes is None else classes
        self.classes = None if found is None else tuple(found)

    @property
    def num_classes(self) -> int:
        """Number of names, or columns of multi-hot labels, or one more than the largest class id."""
        return len(self.classes) if self.classes is not None else _num_classes(self.labels)

    @property
    def unlabelled(self) -> int:
        """Rows without any label."""
        return int((~labelled(self.labels)).sum())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, Tensor, int]:
        content = self.dataset[int(self.rows[index])]
        image = content[0] if isinstance(content, (tuple, list)) else content
        return self.transform(image) if self.transform else image, self.labels[index], index


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
    """Images and classes of a CSV file with a header.

    Args:
        path: the file, UTF-8.
        root: folder that relative paths start from; by default that of the file.
        image: the column of paths.
        label: the column of classes, names or numbers; an empty cell is an image without label.
        separator: what stands between several classes in a cell, ``";"`` say; None: one class, class ids.
        classes: the names in the order of their ids; None: all that occur, sorted (numbers by value).
        transform: applied to each image, PIL RGB.
        check_files: look whether each image is there.

    Returns:
        A data set of ``(image, label, index)``; labels are class ids, or multi-hot with a ``separator``.

    Raises:
        FileNotFoundError: no such file, or a missing image (file and line are named).
        ValueError: a column that is not there, a short row, a class that is not among ``classes``, a path
            that is listed twice; the message names file and line.

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
    cells: list[list[str]] = []
    lines: list[int] = []

    def place(row: int) -> str:
        return f"{path}, line {lines[row]}"

    with open(path, encoding="utf-8-sig", newline="") as content:
        reader = csv.reader(content)
        header = next(reader, [])
        for column in (image, label):
            if column not in header:
                raise ValueError(f"{path}, line 1: no column {column!r}, only {', '.join(header) or 'none'}")
        for cell in filter(None, reader):
            lines.append(reader.line_num)
            if len(cell) != len(header):
                raise ValueError(f"{place(-1)}: {len(cell)} cells, expected {len(header)}: {cell[:5]}")
            files.append(os.path.join(folder, cell[header.index(image)]))
            names = cell[header.index(label)].split(separator) if separator else [cell[header.index(label)]]
            cells.append([name.strip() for name in names if name.strip()])
    if not files:
        raise ValueError(f"{path} lists no image below its header")
    found = {name for names in cells for name in names}
    numbers = all(name.isdecimal() for name in found)
    known = list(classes) if classes is not None else sorted(found, key=int if numbers else None)
    ids = {name: number for number, name in enumerate(known)}
    labels = torch.zeros(len(files), len(known), dtype=torch.bool)
    for row, names in enumerate(cells):
        for name in names:
            if name not in ids:
                raise ValueError(f"{place(row)}: the class {name!r} is not among {', '.join(known[:10])}")
            labels[row, ids[name]] = True
    if not separator:
        labels = torch.where(labels.any(1), labels.int().argmax(1), -1)
    _refuse_duplicates(files, place)
    if check_files:
        _refuse_missing(files, place)
    return LabelledImages(_Files(files, place), labels, transform=transform, classes=known)


def cifar10(root: str | os.PathLike[str], *, download: bool = False) -> LabelledImages:
    """All 60,000 images of CIFAR-10, the 50,000 of the training set first.

    Hashing papers pool both sets and draw their own split: ``get_protocol("cifar10").split(...)``.

    Args:
        root: folder with ``cifar-10-batches-py``.
        download: fetch what is missing.

    Returns:
        A data set of ``(PIL image of 32 x 32, class id, index)``.

    Raises:
        RuntimeError: the files are missing or damaged.
    """
    from torchvision.datasets import CIFAR10

    parts = [CIFAR10(root, train=train, download=download) for train in (True, False)]
    labels = torch.tensor([target for part in parts for target in part.targets])
    return LabelledImages(ConcatDataset(parts), labels, classes=parts[0].classes)


def digits() -> LabelledImages:
    """The 1,797 scanned digits that ship with scikit-learn: real images that need no download.

    Returns:
        A data set of ``(PIL image of 8 x 8, RGB, dark on white, class id, index)``.

    Raises:
        ImportError: scikit-learn is not installed.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (CC BY 4.0).

    Example:
        >>> images = digits()
        >>> len(images), images[0][0].size, images.num_classes
        (1797, (8, 8), 10)
    """
    from PIL import Image

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install hybridhash[examples]") from error
    content = load_digits()
    pixels = torch.as_tensor(255 - content.images * (255 / 16)).byte().numpy()
    images = [Image.fromarray(image).convert("RGB") for image in pixels]
    return LabelledImages(images, torch.as_tensor(content.target), classes=[str(k) for k in range(10)])


def labelled(labels: Tensor) -> Tensor:
    """Which rows have a label: bool ``(N,)`` of labels as :func:`hybridhash.labels.as_labels` returns them.

    Example:
        >>> labelled(torch.tensor([2, -1]))
        tensor([ True, False])
    """
    return labels >= 0 if labels.ndim == 1 else labels.any(1)


def check_disjoint(first: ImageList, second: ImageList) -> None:
    """That no image is in both lists, by its path. Copies under another name are not seen.

    Raises:
        ValueError: there are such; the message names lines of both files.
    """
    rows = {os.path.normpath(first.path(row)): row for row in range(len(first))}
    files = (os.path.normpath(second.path(row)) for row in range(len(second)))
    common = [(rows[file], row) for row, file in enumerate(files) if file in rows]
    if common:
        places = "; ".join(f"{first.place(a)} and {second.place(b)}" for a, b in common[:_SHOWN])
        raise ValueError(
            f"{len(common):,} images are in both {first.file} and {second.file}, the first is "
            f"{first.path(common[0][0])}: {places}. A query that finds itself, or that was trained on, "
            "raises every metric: remove these lines"
        )


class _Files:
    """Image files that are read when they are asked for."""

    def __init__(self, files: list[str], place: Callable[[int], str]) -> None:
        self.files = files
        self.places = [place(row) for row in range(len(files))]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Any:
        return _read(self.files[row], lambda: self.places[row])


def _read(path: str, place: Callable[[], str]) -> Any:
    """Decode an image; errors name the line that lists it."""
    try:
        return images.read_image(path)
    except (OSError, SyntaxError, ValueError) as error:
        message = f"{place()}: the image {path} cannot be read: {error}"
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, message) from error
        raise ValueError(message) from error


def _refuse_duplicates(files: Iterable[str], place: Callable[[int], str]) -> None:
    first: dict[str, int] = {}
    again = []
    for row, file in enumerate(files):
        name = os.path.normpath(file)
        if first.setdefault(name, row) != row:
            again.append((name, row))
    if again:
        name, row = again[0]
        raise ValueError(f"{place(row)}: {name} is listed already, {place(first[name])}{_others(len(again))}")


def _refuse_missing(files: Iterable[str], place: Callable[[int], str]) -> None:
    missing = [(row, file) for row, file in enumerate(files) if not os.path.isfile(file)]
    if missing:
        row, file = missing[0]
        raise FileNotFoundError(
            f"{place(row)}: there is no image {file}{_others(len(missing))}; give root=, the folder that the "
            "paths start from, or strip_prefix= if they begin with another"
        )


def _others(count: int) -> str:
    return f" (and so for {count - 1:,} more lines)" if count > 1 else ""


def _num_classes(labels: Tensor) -> int:
    if labels.ndim == 2:
        return labels.shape[1]
    return int(labels.max()) + 1 if labels.numel() else 0
