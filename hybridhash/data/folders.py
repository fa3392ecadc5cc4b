"""A folder of photos as a data set, without classes."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from torch.utils.data import Dataset

from hybridhash.data.images import IMAGE_ENDINGS, StringList, read_image

__all__ = ["ImageFiles"]

_MAYBE_READABLE = frozenset({"heic", "heif", "hif"})


class ImageFiles(Dataset[Any]):
    """Read all images in a folder and its subfolders, however they are arranged.

    ``hybridhash.encode_dataset(model, ImageFiles("photos"), ...)`` encodes them. The id of a code is then the
    row of its image, and ``names[row]`` is the file. For one folder per class use
    ``torchvision.datasets.ImageFolder`` with ``loader=read_image``.

    An image is a file with one of ``IMAGE_ENDINGS``, or HEIC where Pillow can read it
    (``pillow_heif.register_heif_opener()``). Files and folders whose names begin with a dot are skipped.
    Links to folders are followed, but a folder is read once.

    Args:
        root: The folder.
        transform: A function applied to each image, upright PIL RGB. None returns the image itself.

    Attributes:
        names: The path of each row, relative to ``root``, with ``/`` between folders, in the order of the
            alphabet (of code points, so ``B.jpg`` is before ``a.jpg``).
        left_out: The paths of all other files, likewise. A warning counts them.

    Raises:
        OSError: The folder or one of its subfolders cannot be listed.
        ValueError: There is no image in it.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "2024").mkdir()
        ...     Image.new("RGB", (3, 2), "red").save(f"{folder}/2024/rose.png")
        ...     photos = ImageFiles(folder)
        ...     list(photos.names), photos[0].size
        (['2024/rose.png'], (3, 2))
    """

    def __init__(self, root: str | os.PathLike[str], transform: Callable[[Any], Any] | None = None) -> None:
        self.root = os.fspath(root)
        self.transform = transform
        self.names = StringList()
        self.left_out = StringList()
        endings = _readable_endings()
        for name in sorted(_files(self.root)):
            taken = _ending(name) in endings
            (self.names if taken else self.left_out).append(name)
        if self.left_out:
            warnings.warn(_describe(self.root, self.left_out), stacklevel=2)
        if not self.names:
            raise ValueError(f"there is no image in {self.root}: images end in {', '.join(sorted(endings))}")

    def path(self, row: int) -> str:
        """Return the path of the image in a row."""
        return os.path.join(self.root, self.names[row])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> Any:
        image = read_image(self.path(row))
        return image if self.transform is None else self.transform(image)


def _files(root: str) -> Iterator[str]:
    """Yield the relative paths of all files below a folder but hidden ones."""

    def fail(error: OSError) -> None:
        raise error

    visited = set()
    for folder, subfolders, files in os.walk(root, onerror=fail, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for file in files:
            if not file.startswith("."):
                yield os.path.relpath(os.path.join(folder, file), root).replace(os.sep, "/")


def _readable_endings() -> frozenset[str]:
    from PIL import Image

    registered = {
        ending[1:] for ending, format in Image.registered_extensions().items() if format in Image.OPEN
    }
    return IMAGE_ENDINGS | (_MAYBE_READABLE & registered)


def _ending(name: str) -> str:
    return PurePosixPath(name).suffix[1:].lower()


def _describe(root: str, left_out: StringList) -> str:
    """Return what a warning says about files that are not taken."""
    endings = Counter(_ending(name) for name in left_out)
    counts = ", ".join(
        f"{count:,} .{ending}" if ending else f"{count:,} without ending"
        for ending, count in endings.most_common(10)
    )
    advice = ""
    if _MAYBE_READABLE & endings.keys():
        advice = "; for HEIC install pillow-heif and call pillow_heif.register_heif_opener() first"
    number = f"{len(left_out):,} files in {root} are no images and left out"
    return f"{number} ({counts}); left_out names them{advice}"
