"""Read rows of a data set as batches for a model; rows that cannot be read are set apart."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from hybridhash._inference import as_tensor, named_fields
from hybridhash.data.images import to_rgb
from hybridhash.encoding.manifest import Failure
from hybridhash.encoding.source import image_names
from hybridhash.labels import as_labels

__all__ = ["ImageBatch", "Reader", "Sample", "check_dataset", "collate", "model_transform"]

# Errors of the program, not of an image.
_PROGRAM = (TypeError, KeyError, AttributeError, NameError, ImportError, AssertionError, NotImplementedError)
# Errors of the system that concern one file; all others mean that the machine is in trouble.
_BAD_FILE = {
    None,
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EACCES,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.EOVERFLOW,
}
_LONGEST_REASON = 1000
_PATH = (
    "give hybridhash.data.ImageFiles for a folder of photos, ImageFolder of torchvision for one folder per "
    "class, hybridhash.data.ImageList for a list file, or TarImages for tar shards"
)


class Sample(NamedTuple):
    """An image that can be encoded."""

    row: int
    image: Tensor
    label: Any
    id: int


class ImageBatch(NamedTuple):
    """Rows ``start`` to ``stop - 1``: images that could be read, with labels and ids, and failures."""

    start: int
    stop: int
    images: Tensor | None
    labels: Tensor | None
    ids: Tensor
    failures: list[Failure]

    @property
    def name(self) -> str:
        """The name of the batch in error messages."""
        return f"rows {self.start} to {self.stop - 1}"


class Reader(Dataset[Any]):
    """Give the rows of a data set as images ready for the model, or as failures.

    Args:
        dataset: A map-style data set.
        transform: A function applied to each image. None takes ``model_transform`` for PIL images.
        model_transform: The preprocessing of the model, None if it is not known.
        strict: Whether an image that cannot be read raises.

    Attributes:
        decodes: Whether an image came as a PIL image so far.
    """

    def __init__(
        self,
        dataset: Any,
        transform: Callable[[Any], Any] | None,
        model_transform: Callable[[Any], Any] | None,
        strict: bool,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.model_transform = model_transform
        self.strict = strict
        self.decodes = False

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Sample | Failure:
        try:
            content = self.dataset[row]
        except Exception as error:
            return self._failure(error, row, None)
        image, label, id = _fields(content, row)
        try:
            return Sample(row, self._ready(image, row), label, id)
        except Exception as error:
            return self._failure(error, row, id)

    def _failure(self, error: Exception, row: int, id: int | None) -> Failure:
        """Return the error as a failure of the image, unless it is one of the program or the machine."""
        reason = f"{type(error).__name__}: {error}"
        name_of = image_names(self.dataset)
        name = None if name_of is None else name_of(row)
        if name is not None and name not in reason:
            reason = f"{name}: {reason}"
        of_the_machine = isinstance(error, OSError) and error.errno not in _BAD_FILE
        if of_the_machine or (isinstance(error, _PROGRAM) and not _is_decoding(error)):
            if sys.version_info >= (3, 11):
                error.add_note(f"in row {row} of the data set" + (f", {name}" if name else ""))
            raise error
        failure = Failure(row, id, reason[:_LONGEST_REASON])
        if self.strict:
            raise ValueError(f"the image of row {row} cannot be read: {failure.reason}") from error
        return failure

    def _ready(self, image: Any, row: int) -> Tensor:
        """Return an image as the model takes it."""
        from PIL import Image

        transform = self.transform
        if image is None:
            raise ValueError("there is no image, but None")
        if isinstance(image, Image.Image):
            self.decodes = True
            image = to_rgb(image)
            transform = transform or self.model_transform
            if transform is None:
                raise TypeError(
                    f"row {row} is a PIL image, and the model does not say how to prepare it: give transform="
                )
        if transform is not None:
            image = transform(image)
        if not isinstance(image, Tensor):
            raise TypeError(
                f"the image of row {row} must be a tensor or a PIL image, got {type(image).__name__}"
                + (" from transform" if transform else "")
            )
        return image


def _is_decoding(error: BaseException) -> bool:
    """Return whether an error, or the one that it is raised from, comes out of the decoder of an image.

    A broken file can make a decoder raise anything. The decoders are ``read_image`` and ``to_rgb``, and those
    of PIL under whatever calls them.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__"))
        if module == "PIL.ImageFile" or (module.startswith("PIL.") and module.endswith("ImagePlugin")):
            return True
        if module == "hybridhash.data.images" and frame.f_code.co_name in ("read_image", "to_rgb"):
            return True
    return error.__cause__ is not None and _is_decoding(error.__cause__)


def _fields(content: Any, row: int) -> tuple[Any, Any, int]:
    """Return image, label and id of an item of a data set; the id is the row where there is none."""
    if isinstance(content, Mapping):
        fields = named_fields(content, f"row {row}")
    elif isinstance(content, (tuple, list)) and 1 <= len(content) <= 3:
        fields = dict(zip(("images", "labels", "ids"), content, strict=False))
    else:
        fields = {"images": content}
    id = fields.get("ids")
    return fields["images"], fields.get("labels"), row if id is None else int(id)


def collate(rows: list[Sample | Failure]) -> ImageBatch:
    """Put the rows of a batch together, in the process that read them."""
    start = rows[0].row
    stop = rows[-1].row + 1
    name = f"rows {start} to {stop - 1}"
    samples = [row for row in rows if isinstance(row, Sample)]
    failures = [row for row in rows if isinstance(row, Failure)]
    ids = torch.tensor([sample.id for sample in samples], dtype=torch.int64)
    if not samples:
        return ImageBatch(start, stop, None, None, ids, failures)
    shapes = {tuple(sample.image.shape) for sample in samples}
    if len(shapes) > 1:
        raise ValueError(
            f"the images of {name} differ in shape, {sorted(shapes)[:3]}: a transform must bring all to one"
        )
    unlabelled = [sample.row for sample in samples if sample.label is None]
    labels = None
    if 0 < len(unlabelled) < len(samples):
        raise ValueError(f"row {unlabelled[0]} has no label (None), others of {name} have: give -1")
    if not unlabelled:
        values = [as_tensor(sample.label, f"the label of row {sample.row}") for sample in samples]
        if len({value.shape for value in values}) > 1:
            raise ValueError(f"the labels of {name} differ in shape: class ids, or rows of equal length")
        labels = as_labels(torch.stack(values), length=len(samples), name=f"labels of {name}")
    return ImageBatch(start, stop, torch.stack([sample.image for sample in samples]), labels, ids, failures)


def check_dataset(dataset: Any) -> None:
    """Raise unless a data set gives the image of any row by its number, or an error."""
    if isinstance(dataset, (str, os.PathLike)):
        raise TypeError(f"dataset must be a data set of images, got the path {os.fspath(dataset)!r}: {_PATH}")
    iterable = isinstance(dataset, (IterableDataset, DataLoader, bytes, Mapping))
    if iterable or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"dataset must be map-style, with len(dataset) and dataset[row], got {type(dataset).__name__}: "
            "resuming requires random access by row (TarImages gives it for tar shards)"
        )
    inner = dataset
    while isinstance(inner, Subset):
        inner = inner.dataset
    if isinstance(inner, timm.data.ImageDataset):
        raise TypeError(
            "timm's ImageDataset gives the next image in place of one that cannot be read: use "
            "torchvision.datasets.ImageFolder(root, loader=hybridhash.data.read_image)"
        )
    if len(dataset) == 0:
        raise ValueError("dataset is empty: there is nothing to encode")


def model_transform(model: nn.Module) -> Callable[[Any], Any] | None:
    """Return the preprocessing that a timm model names.

    Args:
        model: Any module; wrappers of DDP and ``torch.compile`` are taken off.

    Returns:
        A function from PIL images to tensors, or None if the model has no ``pretrained_cfg``.
    """
    model = timm.utils.unwrap_model(model)
    if not hasattr(model, "pretrained_cfg"):
        return None
    size = getattr(model, "img_size", None)  # may be another than that of the pretrained weights
    config = timm.data.resolve_model_data_config(model, {"img_size": size} if isinstance(size, int) else {})
    transform: Callable[[Any], Any] = timm.data.create_transform(**config)
    return transform
