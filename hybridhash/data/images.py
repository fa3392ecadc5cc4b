"""Images from files of every kind as 8-bit RGB, and data sets of them for list files and tar shards.

A folder with one folder per class is ``torchvision.datasets.ImageFolder(root, loader=read_image)``; with
``is_valid_file=os.path.isfile`` its GIFs are not left out.
"""

from __future__ import annotations

import io
import os
import tarfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageList", "TarImages", "read_image", "to_rgb"]

IMAGE_ENDINGS = frozenset({"jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm"})


def read_image(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """Decode an image file completely and bring it to 8-bit RGB with :func:`to_rgb`.

    The orientation in EXIF data is not applied, as torchvision's and timm's loaders do not.

    Args:
        source: path of a file, or the bytes of one.

    Returns:
        A PIL image of mode RGB.

    Raises:
        OSError: no such file, no image (``PIL.UnidentifiedImageError``), or a truncated one.
        PIL.Image.DecompressionBombError: more than twice ``PIL.Image.MAX_IMAGE_PIXELS``.
        SyntaxError, ValueError: a damaged image, or one without an unambiguous 8-bit form.

    Example:
        >>> read_image(b"")
        Traceback (most recent call last):
        ...
        PIL.UnidentifiedImageError: the file is empty (0 bytes)
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, bytes):
        empty, opened = not source, io.BytesIO(source)
    else:
        empty, opened = os.stat(source).st_size == 0, source  # type: ignore[assignment]
    if empty:
        raise UnidentifiedImageError("the file is empty (0 bytes)")
    with Image.open(opened) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB.

    Of an animation the first frame is taken. Grey images of 16 bits are scaled, ``round(v / 257)``, not
    clipped, so that 65535 is white; float images of values 0 to 1 are scaled by 255. All other modes (CMYK,
    palettes, grey, YCbCr) are PIL's ``convert("RGB")``, which drops transparency and ignores ICC profiles.

    Args:
        image: a PIL image; it is left as it is, except that an animation is at its first frame afterwards.

    Returns:
        A PIL image of mode RGB, in memory; ``image`` itself if it was that.

    Raises:
        OSError, SyntaxError: the file behind the image is truncated or damaged.
        ValueError: integers beyond 16 bits or floats beyond 0 to 1, whose white is not known.

    Example:
        >>> from PIL import Image
        >>> to_rgb(Image.new("I;16", (1, 1), 40000)).getpixel((0, 0))
        (156, 156, 156)
    """
    from PIL import Image

    if getattr(image, "is_animated", False):
        image.seek(0)
    if image.mode == "RGB":
        return image if type(image) is Image.Image else image.copy()  # not bound to a file
    if image.mode.startswith("I") or image.mode == "F":
        values, white = np.asarray(image), 1.0 if image.mode == "F" else 65535.0
        if values.size and not 0 <= values.min() <= values.max() <= white:
            raise ValueError(
                f"white is not known in a {image.mode} image with values {values.min()} to {values.max()}: "
                f"scale it to 0..{white:g}"
            )
        return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; PIL warns if it is left out
    return image.convert("RGB")


class ImageList(Dataset[Any]):
    """Images of a list file: a path and its labels in each line.

    ``photos/cat 1.jpg 3`` has the class id 3, ``photos/cat.jpg 0 1 0`` the multi-hot labels of 3 classes,
    ``photos/cat.jpg`` no label; all lines alike. Empty lines are skipped. The paths are held as bytes, about
    their own size, so that ten million of them fit and worker processes share them.

    Args:
        path: the list file, UTF-8.
        root: folder that relative paths start from; by default that of the list file.
        transform: applied to each image, PIL RGB; None leaves it.

    Attributes:
        labels: None, int64 ``(N,)`` or bool ``(N, C)``.

    Raises:
        FileNotFoundError: no list file.
        ValueError: no line, or a line with another number of labels than the first; the message has its
            number. A path that is no image raises when it is read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "list.txt").write_text("a.jpg 0 1\\nb c.jpg 1 1\\n")
        ...     images = ImageList(f"{folder}/list.txt", "/data")
        >>> len(images), images.path(1), images.labels.tolist()
        (2, '/data/b c.jpg', [[False, True], [True, True]])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        root: str | os.PathLike[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.root = os.fspath(Path(path).parent if root is None else root)
        self.transform = transform
        self._paths = _Texts()
        labels: array[int] = array("q")
        columns = None
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                name, numbers = _split_line(line.strip())
                if not name:
                    continue
                if columns is None:
                    columns = len(numbers)
                    labels = array("q" if columns == 1 else "b")
                if len(numbers) != columns:
                    raise ValueError(
                        f"{path}, line {number}: {len(numbers)} labels, but {columns} in the lines before: "
                        f"{line.strip()[:80]!r}"
                    )
                if columns > 1 and not {0, 1}.issuperset(numbers):
                    raise ValueError(
                        f"{path}, line {number}: several labels must be 0 or 1, got {numbers[:10]}"
                    )
                self._paths.append(name)
                labels.extend(numbers)
        if columns is None:
            raise ValueError(f"{path} lists no image: each line is a path and its labels")
        self.labels: Tensor | None = None
        if columns:
            values = torch.from_numpy(np.array(labels))
            self.labels = values if columns == 1 else values.view(-1, columns).bool()

    def path(self, row: int) -> str:
        """Path of the image of a row."""
        return os.path.join(self.root, self._paths[row])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> Any:
        image: Any = read_image(self.path(row))
        if self.transform is not None:
            image = self.transform(image)
        return image if self.labels is None else (image, self.labels[row])


def _split_line(line: str) -> tuple[str, list[int]]:
    """A line as path, which may contain spaces, and the integers that follow it."""
    words = line.split(" ") if "\t" not in line else line.split("\t")
    values: list[int] = []
    while len(words) > 1 and words[-1].lstrip("-").isdecimal():
        values.append(int(words.pop()))
    return " ".join(words).rstrip(), values[::-1]


class _Texts(Sequence[str]):
    """Strings in one block of bytes: many Python objects would be copied into each worker process."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        self._bytes += text.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        row = range(len(self))[index]
        return self._bytes[self._ends[row] : self._ends[row + 1]].decode("utf-8", "surrogateescape")


class TarImages(Dataset[Any]):
    """Images of tar shards of the WebDataset layout, by row: ``key.jpg`` and, if there is one, ``key.cls``.

    The shards are read in place: their members are listed once, which skips over the content, and an image
    is read when it is asked for. The samples and their order are those of ``webdataset.WebDataset``: files
    in a row whose names agree up to the first dot are one sample.

    Args:
        paths: uncompressed tar files, in the order of the rows.
        transform: applied to each image, PIL RGB; None leaves it.

    Attributes:
        keys: the key of each row.
        labels: None if no sample has a ``.cls``, else the class ids, int64 ``(N,)``; -1 where it is missing.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a shard is truncated, compressed or no tar file, a sample has no image or two, or a label
            is no integer; the message names the shard. A damaged image raises when it is read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with tarfile.open(f"{folder}/0.tar", "w") as shard:
        ...         for name, content in (("cat.jpg", b"..."), ("cat.cls", b"3")):
        ...             member = tarfile.TarInfo(name)
        ...             member.size = len(content)
        ...             shard.addfile(member, io.BytesIO(content))
        ...     images = TarImages([f"{folder}/0.tar"])
        >>> list(images.keys), images.labels
        (['cat'], tensor([3]))
    """

    def __init__(
        self, paths: Iterable[str | os.PathLike[str]], transform: Callable[[Any], Any] | None = None
    ) -> None:
        self.paths = [os.fspath(path) for path in paths]
        self.transform = transform
        self.keys = _Texts()
        places, labels = array("q"), array("q")
        labelled = False
        for number, path in enumerate(self.paths):
            for key, (start, size), label in _samples(path):
                self.keys.append(key)
                places.extend((number, start, size))
                labels.append(-1 if label is None else label)
                labelled |= label is not None
        if not places:
            raise ValueError(f"no image in the tar files {self.paths[:3]}")
        self._places = np.array(places).reshape(-1, 3)
        self.labels = torch.from_numpy(np.array(labels)) if labelled else None

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, row: int) -> Any:
        number, start, size = (int(value) for value in self._places[row])
        with open(self.paths[number], "rb") as shard:
            shard.seek(start)
            content = shard.read(size)
        if len(content) < size:
            raise ValueError(f"{self.paths[number]} ends in the middle of {self.keys[row]}")
        image: Any = read_image(content)
        if self.transform is not None:
            image = self.transform(image)
        return image if self.labels is None else (image, self.labels[row])


def _samples(path: str) -> Iterator[tuple[str, tuple[int, int], int | None]]:
    """Key, place of the image (offset and size) and class id of each sample of a tar file."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                folder, name = os.path.split(member.name)
                stem, _, ending = name.partition(".")
                if not member.isfile() or not stem or (name.startswith("__") and name.endswith("__")):
                    continue
                key, ending = os.path.join(folder, stem), ending.lower()
                sample = samples.setdefault(key, {})
                if ending in sample:
                    raise ValueError(f"two files are called {key}.{ending}")
                sample[ending] = (member.offset_data, member.size)
                if ending == "cls":
                    content = shard.extractfile(member)
                    labels[key] = int(content.read()) if content else -1
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(f"{path} is no tar shard that can be read by row: {error}") from error
    for key, sample in samples.items():
        images = sorted(IMAGE_ENDINGS.intersection(sample))
        if len(images) != 1:
            raise ValueError(
                f"{path}: the sample {key!r} must have one image, got the files {sorted(sample)}: images end "
                f"in {', '.join(sorted(IMAGE_ENDINGS))}"
            )
        yield key, sample[images[0]], labels.get(key)
