"""Any data set with known labels as ``(image, label, index)``; CIFAR-10 and the digits of scikit-learn."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from hybridhash._code_checks import as_ids
from hybridhash.labels import as_labels, count_classes, labelled

__all__ = ["LabelledImages", "cifar10", "digits"]


class LabelledImages(Dataset[Any]):
    """Give rows of any data set as ``(image, label, index)``, with labels known without decoding.

    Args:
        dataset: A map-style data set whose ``dataset[row]`` is an image, or a tuple that begins with one:
            ``ImageFolder`` and CIFAR of torchvision, :class:`ImageList`, ``TensorDataset`` and so on.
        labels: Labels of all rows of ``dataset``, class ids ``(N,)`` or multi-hot ``(N, C)``. None takes
            ``dataset.labels`` or ``dataset.targets``.
        rows: Integers ``(n,)``, the rows to give, in this order. None gives all.
        transform: A function applied to each image.
        classes: The names of the classes, in the order of their ids. None takes ``dataset.classes`` if it
            exists.

    Attributes:
        labels: The labels of the chosen rows, int64 ``(n,)`` or bool ``(n, C)``.
        rows: The chosen rows of ``dataset``, int64 ``(n,)``. The index in an item counts the chosen rows
            from 0, as a :class:`hybridhash.losses.CodeBank` of ``len(self)`` rows needs it.

    Raises:
        IndexError: A row lies outside the data set.
        TypeError: No labels are given, and the data set has none; the rows are no integers; or ``classes`` is
            a string.
        ValueError: The labels do not fit the data set, or the classes do not fit the labels: a class id has
            no name, or multi-hot labels have another number of columns than there are names.

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
            labels = _labels_of(dataset)
        labels = as_labels(labels, length=len(dataset)).cpu()
        if rows is None:
            rows = torch.arange(len(dataset))
        rows = as_ids(rows, length=len(rows), name="rows").cpu()
        outside = rows[(rows < 0) | (rows >= len(dataset))]
        if len(outside):
            raise IndexError(f"row {int(outside[0])} is outside the data set of {len(dataset)} images")
        if classes is None:
            classes = getattr(dataset, "classes", None)
        if classes is not None:
            _check_classes(classes, labels)
        self.dataset = dataset
        self.rows = rows
        self.labels = labels[rows]
        self.transform = transform
        self.classes = None if classes is None else tuple(classes)

    @property
    def num_classes(self) -> int:
        """Number of class names, or of columns of multi-hot labels, or the largest class id plus one."""
        return len(self.classes) if self.classes is not None else count_classes(self.labels)

    @property
    def unlabelled(self) -> int:
        """Number of rows without any label."""
        return int((~labelled(self.labels)).sum())

    def file(self, index: int) -> str:
        """Return the path of the file behind an item.

        Raises:
            TypeError: The images are no files, or their data set has neither ``path(row)`` nor ``samples``.
        """
        row = int(self.rows[index])
        if isinstance(self.dataset, LabelledImages):
            return self.dataset.file(row)
        if hasattr(self.dataset, "path"):
            return str(self.dataset.path(row))
        if hasattr(self.dataset, "samples"):  # of torchvision.datasets.ImageFolder
            return str(self.dataset.samples[row][0])
        raise TypeError(f"{type(self.dataset).__name__} has neither path(row) nor samples: no file is known")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, Tensor, int]:
        content = self.dataset[int(self.rows[index])]
        image = content[0] if isinstance(content, (tuple, list)) else content
        if self.transform is not None:
            image = self.transform(image)
        return image, self.labels[index], index


def _labels_of(dataset: Any) -> Tensor:
    """Return the ``labels`` or ``targets`` of a data set."""
    for name in ("labels", "targets"):
        labels = getattr(dataset, name, None)
        if labels is not None:
            return torch.as_tensor(labels)
    raise TypeError(f"{type(dataset).__name__} has neither .labels nor .targets: give labels")


def _check_classes(classes: Sequence[str], labels: Tensor) -> None:
    """Raise if the names cannot be those of the labels, such as names of another data set."""
    if isinstance(classes, str):
        raise TypeError(f"classes must be a sequence of names, got the string {classes!r}")
    there = count_classes(labels)
    if there > len(classes) or (labels.ndim == 2 and there < len(classes)):
        got = f"{there} columns" if labels.ndim == 2 else f"the class id {there - 1}"
        raise ValueError(
            f"labels have {got}, but there are {len(classes)} names of classes: give the classes of these "
            "labels as classes="
        )


def cifar10(root: str | os.PathLike[str], *, download: bool = False) -> LabelledImages:
    """Load all 60,000 images of CIFAR-10, the 50,000 of the training set first.

    Hashing papers pool both sets and draw their own split: ``get_protocol("cifar10").split(...)``.

    Args:
        root: The folder that contains ``cifar-10-batches-py``.
        download: Whether to fetch missing files.

    Returns:
        A data set of ``(PIL image of 32 x 32, class id, index)``.

    Raises:
        RuntimeError: The files are missing or damaged.
    """
    from torchvision.datasets import CIFAR10

    parts = [CIFAR10(root, train=train, download=download) for train in (True, False)]
    labels = torch.tensor([target for part in parts for target in part.targets])
    return LabelledImages(ConcatDataset(parts), labels, classes=parts[0].classes)


def digits() -> LabelledImages:
    """Load the 1,797 scanned digits that ship with scikit-learn: real images that need no download.

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
