"""CSV files as data sets: a column of paths and a column of classes."""

from __future__ import annotations

import csv
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridhash.data.labelled import LabelledImages
from hybridhash.data.listed import ListedImages, undecoded

__all__ = ["read_csv"]

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


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

    The file is UTF-8, with or without a byte order mark. Spaces around a cell are not part of it. With one
    class per cell a row takes about 50 bytes and its path.

    Args:
        path: The file.
        root: The folder that relative paths start from. None takes the folder of the file.
        image: The name of the column of paths.
        label: The name of the column of classes, which are names or numbers. An empty cell means no label,
            and so does -1, unless it is one of ``classes``.
        separator: The character between several classes in a cell, such as ``";"``, which gives multi-hot
            labels. None reads one class per cell and gives class ids.
        classes: The names of the classes in the order of their ids. None takes all that occur, sorted, and
            numbers by value if all are numbers.
        transform: A function applied to each image, PIL RGB.
        check_files: Whether to look for each image. Where the path is not UTF-8 it is looked for in any case.

    Returns:
        A data set of ``(image, label, index)``.

    Raises:
        FileNotFoundError: The file or an image is missing. The message names file and line.
        TypeError: ``classes`` is a string.
        ValueError: A column is missing or there twice, a row is too short, a class is not UTF-8 or not among
            ``classes``, two classes are the same number (1 and 01), a number is negative and ``classes`` does
            not name it, or a path is listed twice. The message names file and line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "birds.csv").write_text("file,species\\na.jpg,wren\\nb.jpg,crow\\n")
        ...     birds = read_csv(f"{folder}/birds.csv", image="file", label="species", check_files=False)
        >>> birds.classes, birds.labels
        (('crow', 'wren'), tensor([1, 0]))
    """
    known = None if classes is None else _checked_classes(classes)
    images = ListedImages(path, Path(path).parent if root is None else root)
    first_lines, numbers, counts = _read_rows(images, image, label, separator)
    ids = _class_ids(first_lines, images.file, known)
    id_of_number = np.array([ids[name] for name in first_lines])
    labels = torch.from_numpy(id_of_number[np.frombuffer(numbers, np.int64)])
    names = [name for name in sorted(ids, key=ids.__getitem__) if ids[name] >= 0]
    if separator:
        labels = _multi_hot(labels, torch.tensor(counts), len(names), images)
    images.check(files=check_files, duplicates=True)
    return LabelledImages(images, labels, transform=transform, classes=names)


def _checked_classes(classes: Sequence[str]) -> list[str]:
    if isinstance(classes, str):
        raise TypeError(f"classes must be a sequence of names, got the string {classes!r}")
    names = [str(name) for name in classes]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"classes has {repeated[0]!r} twice: each name must have one id")
    return names


def _read_rows(
    images: ListedImages, image: str, label: str, separator: str | None
) -> tuple[dict[str, int], array[int], array[int]]:
    """Add the rows of a CSV file to ``images``, and return their classes as numbers.

    Returns:
        ``(first_lines, numbers, counts)``: the line where each name of a class is met first, in the order of
        their numbers; the numbers of the names in all rows, one row after the other; and, with a separator,
        how many each row has. A row without a class has the empty name.
    """
    number_of_name: dict[str, int] = {}
    lines: list[int] = []
    numbers = array("q")
    counts = array("q")
    for line, name, cell in _rows(images.file, image, label):
        images.append(name, line)
        names = [cell]
        if separator:
            names = [part.strip() for part in cell.split(separator) if part.strip()] or [""]
            counts.append(len(names))
        for name in names:
            if name not in number_of_name:
                number_of_name[name] = len(lines)
                lines.append(line)
            numbers.append(number_of_name[name])
    if not len(images):
        raise ValueError(f"{images.file} lists no image below its header")
    return dict(zip(number_of_name, lines, strict=True)), numbers, counts


def _rows(file: str, image: str, label: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line number, the path and the cell of classes of each row of a CSV file."""
    # utf-8-sig drops the byte order mark of Excel; surrogateescape keeps names that are not UTF-8.
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as content:
        reader = csv.reader(content)
        try:
            header = [cell.strip() for cell in next(reader, [])]
            for column in (image, label):
                if header.count(column) != 1:
                    found = "two columns" if column in header else "no column"
                    raise ValueError(
                        f"{file}, line 1: {found} {column!r}, only {', '.join(header) or 'none'}"
                    )
            image_column = header.index(image)
            label_column = header.index(label)
            for cells in filter(None, reader):
                if len(cells) != len(header):
                    raise ValueError(
                        f"{file}, line {reader.line_num}: {len(cells)} cells, expected {len(header)}: "
                        f"{cells[:5]}"
                    )
                yield reader.line_num, cells[image_column].strip(), cells[label_column].strip()
        except csv.Error as error:
            raise ValueError(
                f"{file}, line {reader.line_num}: {error}: is a quote not closed? If cells are that "
                "long, call csv.field_size_limit(characters) first"
            ) from error


def _class_ids(first_lines: dict[str, int], file: str, classes: list[str] | None) -> dict[str, int]:
    """Return the id of each name of a class, -1 for names that mean no label.

    Args:
        first_lines: The line of each name where it is met first.
        file: The CSV file, for messages.
        classes: The names in the order of their ids. None sorts those that are met.
    """
    ids = {name: number for number, name in enumerate(classes or ())}
    unlabelled = {name for name in first_lines if name not in ids and (not name or _value(name) == -1)}
    met = [name for name in first_lines if name not in unlabelled]
    for name in met:
        location = f"{file}, line {first_lines[name]}"
        if undecoded(name):
            raise ValueError(f"{location}: the class {name!a} is not UTF-8: save the file as UTF-8")
        if classes is not None and name not in ids:
            raise ValueError(f"{location}: the class {name!r} is not among {', '.join(classes[:10])}")
    if classes is None:
        _check_numbers(met, unlabelled, first_lines, file)
        in_order = sorted(met, key=_value if all(map(_is_number, met)) else None)
        ids = {name: number for number, name in enumerate(in_order)}
    return {**ids, **dict.fromkeys(unlabelled, -1)}


def _check_numbers(met: list[str], unlabelled: set[str], first_lines: dict[str, int], file: str) -> None:
    """Raise if it is not certain which class a number means."""
    spellings: dict[Decimal, str] = {}
    for name in filter(_is_number, met):
        location = f"{file}, line {first_lines[name]}"
        if _value(name) < 0:
            raise ValueError(
                f"{location}: the class {name} is negative, and -1 means no label: if they are classes, give "
                "all names as classes="
            )
        other = spellings.setdefault(_value(name), name)
        if other != name:
            raise ValueError(
                f"{location}: the class {name} is the number {other} of line {first_lines[other]}: "
                "write it in one way, or give both as classes="
            )
    if met == ["1"] and unlabelled - {""}:
        raise ValueError(
            f"{file}: all labels are 1 or -1, and -1 means no label: if both are classes, give "
            "classes=['-1', '1']"
        )


def _is_number(name: str) -> bool:
    return _NUMBER.fullmatch(name) is not None


def _value(name: str) -> Decimal:
    """Return the value of a number, NaN for another name."""
    return Decimal(name if _is_number(name) else "NaN")


def _multi_hot(ids: Tensor, counts: Tensor, num_classes: int, images: ListedImages) -> Tensor:
    """Return multi-hot rows bool ``(N, num_classes)``.

    Args:
        ids: The ids of all rows, one row after the other; -1 where there is no label.
        counts: The number of ids in each row.
        num_classes: The number of classes.
        images: The images, whose lines a message names.
    """
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    mixed = rows[(ids < 0) & (counts[rows] > 1)]
    if len(mixed):
        raise ValueError(f"{images.location(int(mixed[0]))}: -1 means no label, but there are others")
    labels = torch.zeros(len(counts), num_classes, dtype=torch.bool)
    labels[rows[ids >= 0], ids[ids >= 0]] = True
    return labels
