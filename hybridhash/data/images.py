"""Read image files of every kind as 8-bit RGB, and tar shards of them by row.

For a folder with one folder per class use ``torchvision.datasets.ImageFolder(root, loader=read_image)``, with
``is_valid_file=os.path.isfile`` to include GIFs.
"""

from __future__ import annotations

import io
import os
import tarfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGE_ENDINGS", "StringList", "TarImages", "read_image", "to_rgb"]

IMAGE_ENDINGS = frozenset(
    {
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "mpo",
        "png",
        "webp",
        "gif",
        "bmp",
        "tif",
        "tiff",
        "ppm",
        "pgm",
        "jp2",
        "avif",
    }
)

_ORIENTATION = 0x0112  # the number of the tag in EXIF data


def read_image(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """Decode an image file completely and bring it to upright 8-bit RGB with :func:`to_rgb`.

    Args:
        source: The path of an image file, or its bytes.

    Returns:
        A PIL image of mode RGB.

    Raises:
        OSError: The file does not exist, is no image (``PIL.UnidentifiedImageError``) or is truncated.
        PIL.Image.DecompressionBombError: It has more than twice ``PIL.Image.MAX_IMAGE_PIXELS`` pixels.
        SyntaxError, ValueError: The image is damaged, or has no unambiguous 8-bit form. Whatever else a
            decoder of Pillow raises is a ValueError here, and all messages name the path.

    Example:
        >>> read_image(b"")
        Traceback (most recent call last):
        ...
        PIL.UnidentifiedImageError: the image cannot be read: the file is empty (0 bytes)
    """
    if isinstance(source, bytes):
        return _decoded(source, "the image")
    path = os.fsencode(source).decode("utf-8", "backslashreplace")
    return _decoded(source, f"the image {path}")


def _decoded(source: str | os.PathLike[str] | bytes, name: str) -> Image.Image:
    """Decode an image that error messages call ``name``; otherwise as :func:`read_image`."""
    from PIL import Image, UnidentifiedImageError

    size = len(source) if isinstance(source, bytes) else os.stat(source).st_size
    if size == 0:
        raise UnidentifiedImageError(f"{name} cannot be read: the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return to_rgb(image)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        # The reason is said anew: Pillow's has the path again, or the address of a buffer.
        raise UnidentifiedImageError(
            f"{name} cannot be read: Pillow cannot identify it as an image"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system, which names the path
        # Decoders raise all kinds of errors for damaged files, those of programs too.
        documented = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
        kind = type(error) if type(error) in documented else ValueError
        reason = str(error) if kind is type(error) else f"{type(error).__name__}: {error}"
        raise kind(f"{name} cannot be read: {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB, upright.

    The orientation in EXIF or XMP data is applied, as viewers do, and the image returned has none of that
    data: a second call does not turn it again. Every source of images in this package goes through here.

    An animation gives its first frame. Grey images of 16 bits are scaled by ``round(v / 257)``, so that 65535
    is white; they are not clipped. Float images with values from 0 to 1 are scaled by 255. All other modes
    (CMYK, palettes, grey, YCbCr) go through PIL's ``convert("RGB")``, which drops transparency and ignores
    ICC profiles.

    Args:
        image: A PIL image. It is not changed, except that an animation is left at its first frame.

    Returns:
        A PIL image of mode RGB, in memory; ``image`` itself if it already is one and upright.

    Raises:
        OSError, SyntaxError: The file behind the image is truncated or damaged.
        ValueError: Integers need more than 16 bits or floats lie outside 0 to 1, so white is not known.

    Example:
        >>> from PIL import Image
        >>> to_rgb(Image.new("I;16", (1, 1), 40000)).getpixel((0, 0))
        (156, 156, 156)
    """
    from PIL import Image

    if getattr(image, "is_animated", False):
        image.seek(0)
    image.load()  # decoders of TIFF turn the image themselves, and drop the tag
    to_upright = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(_orientation(image))
    rgb = _converted(image)
    if to_upright is None:
        return rgb
    upright = rgb.transpose(to_upright)
    upright.info = {}  # it has the orientation too
    return upright


def _orientation(image: Image.Image) -> int:
    """Return the orientation of EXIF or XMP data, 1 to 8; 1, upright, where it is missing or damaged."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises errors of all kinds for damaged data
        return 1


def _converted(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "RGB":
        return image if type(image) is Image.Image else image.copy()  # not bound to a file
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        white = 1.0 if image.mode == "F" else 65535.0
        if values.size and not 0 <= values.min() <= values.max() <= white:
            raise ValueError(
                f"white is not known in a {image.mode} image with values {values.min()} to {values.max()}: "
                f"scale it to 0..{white:g}"
            )
        return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; PIL warns if it is left out
    return image.convert("RGB")


class StringList(Sequence[str]):
    """Strings in one block of bytes.

    Worker processes share the block. They would copy a list of Python objects, one by one, because reading
    an object changes its reference count.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])

    def append(self, text: str) -> None:
        self._bytes += text.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __repr__(self) -> str:
        first = [self[row] for row in range(min(3, len(self)))]
        more = f" and {len(self) - 3:,} more" if len(self) > 3 else ""
        return f"{first}{more}"

    def __getitem__(self, index: Any) -> Any:
        row = range(len(self))[index]
        return self._bytes[self._ends[row] : self._ends[row + 1]].decode("utf-8", "surrogateescape")


class TarImages(Dataset[Any]):
    """Read the images of WebDataset tar shards by row: ``key.jpg`` and, if present, ``key.cls``.

    The shards are read in place. Their members are listed once, without reading the content, and an image is
    read when its row is asked for. The samples and their order are those of ``webdataset.WebDataset``:
    consecutive files whose names agree up to the first dot form one sample.

    Args:
        paths: The uncompressed tar files, in the order of the rows.
        transform: A function applied to each image, PIL RGB. None returns the image itself.

    Attributes:
        keys: The key of each row.
        labels: Class ids int64 ``(N,)``, -1 where a ``.cls`` is missing; None if no sample has one.

    Raises:
        FileNotFoundError: A shard is missing.
        ValueError: A shard is truncated, compressed or no tar file, a sample has no image or several, or a
            label is no integer. The message names the shard. A damaged image raises when it is read.

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
        self.keys = StringList()
        spans = array("q")  # for each image: number of the tar file, offset, size
        labels = array("q")
        has_labels = False
        for number, path in enumerate(self.paths):
            for key, (start, size), label in _samples(path):
                self.keys.append(key)
                spans.extend((number, start, size))
                labels.append(-1 if label is None else label)
                has_labels |= label is not None
        if not spans:
            raise ValueError(f"no image in the tar files {self.paths[:3]}")
        self._spans = np.array(spans).reshape(-1, 3)
        self.labels = torch.from_numpy(np.array(labels)) if has_labels else None

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, row: int) -> Any:
        number, start, size = (int(value) for value in self._spans[row])
        with open(self.paths[number], "rb") as shard:
            shard.seek(start)
            content = shard.read(size)
        if len(content) < size:
            raise ValueError(f"{self.paths[number]} ends in the middle of {self.keys[row]}")
        image: Any = _decoded(content, f"{self.paths[number]}: the image {self.keys[row]}")
        if self.transform is not None:
            image = self.transform(image)
        return image if self.labels is None else (image, self.labels[row])


def _samples(path: str) -> Iterator[tuple[str, tuple[int, int], int | None]]:
    """Yield the key, the (offset, size) of the image and the class id of each sample of a tar file."""
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
                    labels[key] = _class_id(content.read() if content else b"-1", key)
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


def _class_id(content: bytes, key: str) -> int:
    """Return the class id in a ``.cls`` file."""
    try:
        label = int(content)
    except ValueError:
        raise ValueError(f"{key}.cls has no class id, but {content[:40]!r}") from None
    if not -1 <= label < 2**63:
        raise ValueError(f"{key}.cls has the class id {label}: ids are 0 and more, or -1 for no label")
    return label
