"""Queries beside their nearest images, right and wrong ones told apart (extra ``plot``).

Right and wrong differ by colour, line style and sign, so that the figure can be read in grey.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_integer, check_positive
from hybridhash.data import to_rgb
from hybridhash.eval.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_image", "plot_retrieval_grid"]

_RIGHT, _WRONG = "#2e7d32", "#d32f2f"


def plot_retrieval_grid(
    query_images: Sequence[Any] | Tensor,
    database_images: Sequence[Any] | Tensor,
    indices: Tensor,
    relevant: Tensor,
    *,
    query_titles: Sequence[str] | None = None,
    cell: float = 1.0,
    columns: int = 10,
) -> Figure:
    """Draw queries with their nearest images: right ones framed green, wrong ones red, dashed and crossed.

    Args:
        query_images: One image a query: a PIL image of any mode, or a tensor or array ``(3, H, W)``,
            ``(1, H, W)``, ``(4, H, W)``, ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` or ``(H, W, 4)`` with
            integers in 0..255 or floats in 0..1.
        database_images: The same for the database, indexed by row.
        indices: integer ``(queries, k)``: the rows found, nearest first, as
            :func:`hybridhash.codes.hamming_topk` returns them; -1 leaves a cell empty.
        relevant: bool ``(queries, k)``: which of them are right.
        query_titles: A few words under each query, wrapped to its width.
        cell: The side of a cell in inches.
        columns: How many neighbours stand beside each other at most; more are spread over several lines.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed (``pip install hybridhash[plot]``).
        IndexError: A row lies outside the database.
        TypeError: ``relevant`` is not bool, or ``indices`` are not integers.
        ValueError: Shapes or titles do not fit each other, or an image is none.

    Example:
        >>> images = torch.rand(6, 3, 8, 8)
        >>> indices = torch.tensor([[1, 2, 3]])
        >>> figure = plot_retrieval_grid(images[:1], images, indices, torch.tensor([[True, False, True]]))
    """
    indices, relevant = torch.as_tensor(indices), torch.as_tensor(relevant)
    _check_found(indices, relevant, len(query_images), len(database_images))
    titles = _wrapped_titles(query_titles, len(indices), cell)
    check_positive(cell=cell)
    check_integer("columns", columns, 1)

    k = indices.shape[1]
    lines = math.ceil(k / columns)  # of each query
    beside = math.ceil(k / lines)
    text = sum(0.15 * (title.count("\n") + 1) for title in titles if title)
    size = ((beside + 1) * cell + 0.2, len(indices) * lines * cell * 1.12 + 0.3 * lines + text)
    figure, grid = new_figure(len(indices) * lines, beside + 1, size)
    for axes in (axes for row in grid for axes in row):
        axes.set_axis_off()
    for query, (items, rights) in enumerate(zip(indices.tolist(), relevant.tolist(), strict=True)):
        first = query * lines
        draw_image(grid[first][0], query_images[query], None)
        grid[first][0].set_xlabel(titles[query], fontsize=8, labelpad=2)
        for number, (item, right) in enumerate(zip(items, rights, strict=True)):
            if item >= 0:
                axes = grid[first + number // beside][1 + number % beside]
                draw_image(axes, database_images[item], right)
    grid[0][0].set_title("query", fontsize=9)
    for number in range(k):
        grid[number // beside][1 + number % beside].set_title(str(number + 1), fontsize=9)
    return figure


def _check_found(indices: Tensor, relevant: Tensor, queries: int, database: int) -> None:
    """Raise unless the rows found belong to these numbers of images."""
    if indices.ndim != 2 or indices.shape != relevant.shape or len(indices) != queries:
        raise ValueError(
            f"indices and relevant must be ({queries}, k), one row per query image, got "
            f"{tuple(indices.shape)} and {tuple(relevant.shape)}"
        )
    if indices.numel() == 0:
        raise ValueError(f"nothing to draw: indices have the shape {tuple(indices.shape)}")
    if indices.dtype == torch.bool or indices.is_floating_point():
        raise TypeError(f"indices must be integers, the rows found, got {indices.dtype}")
    if relevant.dtype != torch.bool:
        raise TypeError(f"relevant must be bool, True where a row found is right, got {relevant.dtype}")
    low, high = int(indices.min()), int(indices.max())
    if low < -1 or high >= database:
        raise IndexError(
            f"indices must be rows of the {database} database images, or -1, got {low} to {high}: are they "
            "ids, or rows of another set?"
        )


def _wrapped_titles(titles: Sequence[str] | None, queries: int, cell: float) -> list[str]:
    """Return one title a query, in lines that fit below a cell."""
    if titles is None:
        return [""] * queries
    if isinstance(titles, str) or len(titles) != queries:
        raise ValueError(f"query_titles must have one title for each of {queries} queries, got {titles!r}")
    letters = max(4, int(cell * 14))  # of 8 points that fit into a line
    return [textwrap.fill(str(title), letters) for title in titles]


def draw_image(axes: Axes, image: Any, right: bool | None) -> None:
    """Draw an image into axes, framed as right, wrong or, for None, plainly."""
    axes.set_axis_on()
    axes.imshow(_pixels(image), cmap="gray", vmin=0, vmax=1, aspect="equal")
    axes.set(xticks=[], yticks=[])
    frame = {
        None: ("#000000", "-", 1.0),
        True: (_RIGHT, "-", 3.0),
        False: (_WRONG, (0, (2, 1)), 3.0),
    }[right]
    for spine in axes.spines.values():
        spine.set(edgecolor=frame[0], linestyle=frame[1], linewidth=frame[2], capstyle="butt")
    if right is False:
        axes.text(
            0.94,
            0.94,
            "\N{MULTIPLICATION SIGN}",
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=10,
            fontweight="bold",
            color="white",
            bbox={"boxstyle": "square,pad=0.1", "facecolor": _WRONG, "edgecolor": "none"},
        )


def _pixels(image: Any) -> Any:
    """Return an image as an array ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)`` of floats in 0..1."""
    if hasattr(image, "getbands"):  # PIL: palettes, CMYK and 16 bits have no pixels of their own meaning
        image = to_rgb(image)
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.double() if image.is_floating_point() else image).numpy()
    array = np.asarray(image)
    channels = (1, 3, 4)
    if array.ndim == 3 and array.shape[0] in channels and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    is_grey = array.ndim == 2
    is_colour = array.ndim == 3 and array.shape[2] in channels
    if array.size == 0 or not (is_grey or is_colour):
        raise ValueError(f"an image must be (3, H, W), (H, W, 3) or (H, W), got shape {array.shape}")
    kind, white = ("integer", 255) if array.dtype.kind in "iu" else ("floating", 1)
    values = array.astype(np.float64)
    if not (values.min() >= 0 and values.max() <= white):
        raise ValueError(
            f"{kind} images must lie in 0..{white}, got {values.min():.3g}..{values.max():.3g}: undo the "
            "normalization, or scale them"
        )
    return values / white
