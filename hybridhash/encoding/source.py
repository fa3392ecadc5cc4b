"""What a data set holds: the names of its images, and samples by which another data set is told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Subset

from hybridhash._inference import as_tensor

__all__ = ["image_names", "names_sha256", "probe"]

_PARTS = 4


def image_names(dataset: Any) -> Callable[[int], str] | None:
    """Return a function from a row to the name of its image; None for a data set that knows no names.

    Known are the files of ``ImageFolder``, ``ImageList.path`` and data sets with the same method,
    ``TarImages.keys``, a sequence ``ids``, and ``Subset`` of all these.

    Example:
        >>> from types import SimpleNamespace
        >>> dataset = SimpleNamespace(samples=[("a/cat.jpg", 0), ("b/dog.jpg", 1)])
        >>> image_names(Subset(dataset, [1]))(0)
        'b/dog.jpg'
    """
    if isinstance(dataset, Subset):
        inner = image_names(dataset.dataset)
        indices = dataset.indices
        return None if inner is None else lambda row: inner(int(indices[row]))
    if callable(getattr(dataset, "path", None)):
        return lambda row: str(dataset.path(row))
    samples = getattr(dataset, "samples", None)
    if isinstance(samples, Sequence) and samples and isinstance(samples[0], tuple):
        return lambda row: str(samples[row][0])
    for column in (getattr(dataset, "keys", None), getattr(dataset, "ids", None)):
        if column is not None and not callable(column) and hasattr(column, "__getitem__"):
            return lambda row, column=column: str(column[row])  # type: ignore[misc]
    return None


def names_sha256(dataset: Any) -> str | None:
    """Return the SHA-256 of the names of all images in their order, None for a data set that knows none.

    Names begin after the ``root`` of the data set, so that it may be moved.
    """
    name_of = image_names(dataset)
    if name_of is None:
        return None
    inner = dataset
    while isinstance(inner, Subset):
        inner = inner.dataset
    root = str(getattr(inner, "root", ""))
    digest = hashlib.sha256()
    for row in range(len(dataset)):
        digest.update(name_of(row).removeprefix(root).lstrip("/\\").encode("utf-8", "surrogateescape"))
        digest.update(b"\n")
    return digest.hexdigest()


def probe(image: Tensor, label: Any, id: int) -> list[Any]:
    """Return a sample of an image: its id, a digest of its label, and the means of its quarters.

    Args:
        image: The values that go to the model, of any shape; four runs of them are averaged.
        label: The label in any form that becomes a tensor, or None.
        id: The id.

    Example:
        >>> import torch
        >>> probe(torch.tensor([1.0, 2.0, 3.0, 4.0]), None, 7)
        [7, None, [1.0, 2.0, 3.0, 4.0]]
    """
    digest = None
    if label is not None:
        values = as_tensor(label, "the label")
        digest = hashlib.sha256(str(values.tolist()).encode()).hexdigest()[:16]
    parts = image.detach().flatten().double().tensor_split(_PARTS)
    return [id, digest, [float(f"{part.mean().item():.6g}") for part in parts]]
