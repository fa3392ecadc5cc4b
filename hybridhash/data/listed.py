"""Image files that a text file lists; what would spoil a benchmark is refused by file and line."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hybridhash.data.images import IMAGE_ENDINGS, StringList, read_image

__all__ = ["ListedImages", "and_others", "undecoded"]

# An ending of images, and then words without a dot or slash: a label that was taken for a part of the path.
_PATH_AND_MORE = re.compile(
    rf"\.(?:{'|'.join(sorted(IMAGE_ENDINGS))})[ \t]*[ \t,;|][^./\\]*$", flags=re.IGNORECASE
)


class ListedImages(Sequence[Any]):
    """The images that a text file lists, decoded when a row is asked for.

    A row takes 16 bytes and its path, in blocks that worker processes share.

    Args:
        file: The text file.
        root: The folder that relative paths start from.
        strip_prefix: A prefix of all paths that ``root`` replaces.

    Attributes:
        names: The path of each row as it is written in the file.
    """

    def __init__(
        self, file: str | os.PathLike[str], root: str | os.PathLike[str], strip_prefix: str = ""
    ) -> None:
        self.file = os.fspath(file)
        self.root = os.fspath(root)
        self.strip_prefix = strip_prefix
        self.names = StringList()
        self._line_numbers = array("q")
        self._doubtful: dict[int, str] = {}

    def append(self, name: str, line_number: int, doubt: str = "") -> None:
        """Add a row.

        Args:
            name: The path as it is written.
            line_number: Where it is written, counted from 1.
            doubt: Why the path may have been misread; :meth:`check` then demands that the image exists.
        """
        if not doubt and not name.isascii() and undecoded(name):
            doubt = "the line is not UTF-8: if the paths are, save the list as UTF-8"
        if doubt:
            self._doubtful[len(self.names)] = doubt
        self.names.append(name)
        self._line_numbers.append(line_number)

    def path(self, row: int) -> str:
        """Return the path of the image in a row."""
        return os.path.join(self.root, self.names[row][len(self.strip_prefix) :])

    def location(self, row: int) -> str:
        """Return the file and the line number that list a row, for messages."""
        return f"{self.file}, line {self._line_numbers[row]}"

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: Any) -> Any:
        try:
            return read_image(self.path(row))
        except (OSError, SyntaxError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                message = f"{self.location(row)}: the image {self.path(row)} cannot be read: {error}"
                raise OSError(error.errno, message) from error
            raise ValueError(f"{self.location(row)}: {error}") from error

    def check(self, *, files: bool, duplicates: bool) -> None:
        """Raise unless all paths can be meant.

        Args:
            files: Whether to look for each image. Those of doubtful lines are looked for in any case.
            duplicates: Whether to refuse a path that is listed twice.

        Raises:
            FileNotFoundError: An image is missing. The message names file and line.
            ValueError: A path lacks the prefix, ends in what looks like a label, or is listed twice; or a
                line may have been misread. The message names file and line.
        """
        for row, name in enumerate(self.names):
            if not name.startswith(self.strip_prefix):
                raise ValueError(f"{self.location(row)}: {name!r} does not begin with {self.strip_prefix!r}")
            if _PATH_AND_MORE.search(name) and not os.path.isfile(self.path(row)):
                raise ValueError(
                    f"{self.location(row)}: {name!r} is no file, it looks like a path and a label: labels "
                    "are whole numbers after spaces or tabs; for class names or commas use read_csv"
                )
        for row, doubt in self._doubtful.items():
            if not os.path.isfile(self.path(row)):
                raise ValueError(f"{self.location(row)}: there is no image {self.names[row]!a}, and {doubt}")
        if duplicates:
            self._refuse_duplicates()
        if files:
            self._refuse_missing()

    def _refuse_duplicates(self) -> None:
        # Hashes take 8 bytes a row, where a dict of the paths takes some 200.
        hashes = np.fromiter((hash(name) for name in self._normal_paths()), np.int64, len(self))
        order = hashes.argsort(kind="stable")
        in_order = hashes[order]
        suspects = order[1:][in_order[1:] == in_order[:-1]]
        if not len(suspects):
            return
        suspected = set(hashes[suspects].tolist())
        del hashes, order, in_order
        first_rows: dict[str, int] = {}
        repeated = []
        for row, name in enumerate(self._normal_paths()):
            if hash(name) in suspected and first_rows.setdefault(name, row) != row:
                repeated.append(row)
        if repeated:
            row = repeated[0]
            name = os.path.normpath(self.path(row))
            raise ValueError(
                f"{self.location(row)}: {name} is listed already, {self.location(first_rows[name])}"
                + and_others(len(repeated))
            )

    def _refuse_missing(self) -> None:
        first = None
        missing = 0
        for row in range(len(self)):
            if not os.path.isfile(self.path(row)):
                first = row if first is None else first
                missing += 1
        if first is not None:
            raise FileNotFoundError(
                f"{self.location(first)}: there is no image {self.path(first)}{and_others(missing)}; give "
                "root=, the folder that the paths start from, or strip_prefix= if they begin with another"
            )

    def _normal_paths(self) -> Iterator[str]:
        return (os.path.normpath(self.path(row)) for row in range(len(self)))


def undecoded(text: str) -> bool:
    """Return whether a text holds bytes that are not UTF-8, as ``surrogateescape`` keeps them."""
    return any("\udc80" <= character <= "\udcff" for character in text)


def and_others(count: int) -> str:
    """Return how many more lines than one a message is about."""
    return f" (and so for {count - 1:,} more lines)" if count > 1 else ""
