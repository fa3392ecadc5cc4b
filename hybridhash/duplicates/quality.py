"""Which of several copies is the best."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from hybridhash.data import to_rgb
from hybridhash.duplicates.photos import CodedPhotos

__all__ = ["best_of"]

_SIDE = 256  # pixels of the square at which sharpness is compared


def best_of(keep: str, photos: CodedPhotos) -> Callable[[list[int]], int]:
    """Return a function from the rows of copies to the row of the one to keep.

    Args:
        keep: ``"largest"``, ``"sharpest"`` or ``"first"``.
        photos: The photos.
    """

    def value(row: int) -> tuple[float, ...]:
        assert photos.image is not None
        try:
            size = _pixels_and_bytes(photos, row)
            if keep == "largest":
                return size
            return (_sharpness(photos.image(row)), *size)
        except (OSError, SyntaxError, ValueError):  # it vanished after its code was made: not the one to keep
            return (-1.0,)

    def best(rows: list[int]) -> int:
        return rows[0] if keep == "first" else max(rows, key=lambda row: (value(row), -row))

    return best


def _pixels_and_bytes(photos: CodedPhotos, row: int) -> tuple[float, ...]:
    """Pixels and bytes of a photo; the header of a file tells them."""
    if photos.path is not None:
        from PIL import Image

        path = photos.path(row)
        with Image.open(path) as opened:
            return float(opened.width * opened.height), float(os.stat(path).st_size)
    assert photos.image is not None
    image = photos.image(row)
    height, width = image.shape[-2:] if hasattr(image, "shape") else image.size
    return float(width * height), 0.0


def _sharpness(image: Any) -> float:
    """The variance of the Laplacian of the grey values (0..255) of a photo brought to one size."""
    if hasattr(image, "getbands"):
        image = np.asarray(to_rgb(image).convert("L").resize((_SIDE, _SIDE)), np.float64)
    else:
        image = np.asarray(image, np.float64)
        image = image.mean(0) if image.ndim == 3 else image
    laplacian = (
        image[:-2, 1:-1] + image[2:, 1:-1] + image[1:-1, :-2] + image[1:-1, 2:] - 4 * image[1:-1, 1:-1]
    )
    return float(laplacian.var())
