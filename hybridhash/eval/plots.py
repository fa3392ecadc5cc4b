"""Figures of retrieval experiments (extra ``plot``): returned, never shown or saved.

Methods differ by colour, line style and marker, and right from wrong by colour, line style and sign, so that
every figure can be read in grey.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from hybridhash._checks import check_choice
from hybridhash.eval.report import RetrievalReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "plot_distance_histogram",
    "plot_precision_at_k",
    "plot_precision_recall",
    "plot_precision_within_radius",
    "plot_report",
    "plot_retrieval_grid",
]

# Colours that stay apart for colour-blind readers (Okabe and Ito), with as many styles and markers.
_STYLES = (
    ("#0072b2", "-", "o"),
    ("#d55e00", "--", "s"),
    ("#009e73", "-.", "^"),
    ("#cc79a7", ":", "D"),
    ("#56b4e9", (0, (5, 1)), "v"),
    ("#e69f00", (0, (3, 1, 1, 1)), "P"),
    ("#000000", (0, (1, 1)), "X"),
)
_RIGHT, _WRONG = "#2e7d32", "#d32f2f"

Reports = Mapping[str, RetrievalReport] | RetrievalReport


def plot_precision_recall(reports: Reports, *, by: Literal["rank", "radius"] = "rank") -> Figure:
    """Precision against recall of one or several methods.

    Args:
        reports: a report, or the reports of several methods by name.
        by: along the number of retrieved items, or along the Hamming radius.

    Returns:
        The figure; ``figure.savefig(path)`` saves it.

    Raises:
        ImportError: matplotlib is not installed (``pip install hybridhash[plot]``).
        ValueError: no report, or no such curve in a report.

    Example:
        >>> import torch
        >>> from hybridhash.eval import evaluate
        >>> codes, labels = torch.randn(20, 8), torch.arange(20) % 4
        >>> figure = plot_precision_recall({"random": evaluate(codes, labels, codes, labels)})
    """
    figure, axes = _figure()
    _draw_precision_recall(axes, reports, by)
    return figure


def plot_precision_at_k(reports: Reports) -> Figure:
    """Precision among the first k items against k; arguments and errors as :func:`plot_precision_recall`."""
    figure, axes = _figure()
    _draw_precision_at_k(axes, reports)
    return figure


def plot_precision_within_radius(reports: Reports) -> Figure:
    """Precision within a Hamming radius against the radius; as :func:`plot_precision_recall`.

    A query that finds nothing within a radius counts as the report's ``empty`` says.
    """
    figure, axes = _figure()
    _draw_precision_within_radius(axes, reports)
    return figure


def plot_distance_histogram(report: RetrievalReport) -> Figure:
    """Share of relevant and of irrelevant pairs at each Hamming distance.

    Raises:
        ImportError: matplotlib is not installed (``pip install hybridhash[plot]``).
        ValueError: the report is of a ranking, which has no distances.
    """
    figure, axes = _figure()
    _draw_distance_histogram(axes, report)
    return figure


def plot_report(report: RetrievalReport) -> Figure:
    """All curves of a report in one figure; errors as :func:`plot_precision_recall`."""
    if report.radius is None:
        figure, ((left, right),) = _grid(1, 2, (9.0, 3.6))
    else:
        figure, ((left, right), (below_left, below_right)) = _grid(2, 2, (9.0, 7.0))
        _draw_precision_within_radius(below_left, report)
        _draw_distance_histogram(below_right, report)
    _draw_precision_recall(left, report, "rank")
    _draw_precision_at_k(right, report)
    cut = "" if report.top_k is None else f"@{report.top_k}"
    bits = "" if report.bits is None else f", {report.bits} bits"
    figure.suptitle(
        f"mAP{cut} {report['map']:.4f} ({report.queries:,} queries, {report.database:,} items{bits})"
    )
    return figure


def plot_retrieval_grid(
    query_images: Sequence[Any] | Tensor,
    database_images: Sequence[Any] | Tensor,
    indices: Tensor,
    relevant: Tensor,
    *,
    query_titles: Sequence[str] | None = None,
    cell: float = 1.0,
) -> Figure:
    """Queries with their nearest images: right ones framed green, wrong ones framed red, dashed and crossed.

    Args:
        query_images: one image per row of the grid: ``(3, H, W)``, ``(1, H, W)``, ``(H, W)`` or ``(H, W, 3)``
            tensors or arrays, uint8, or floating in 0..1; or PIL images.
        database_images: the same for the database, indexed by row.
        indices: integer ``(rows, k)``: the items found, nearest first, as
            :func:`hybridhash.codes.hamming_topk` returns them; -1 leaves a cell empty.
        relevant: bool ``(rows, k)``: which of them are right.
        query_titles: a word or two under each query.
        cell: side of a cell in inches.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed (``pip install hybridhash[plot]``).
        ValueError: shapes that do not fit each other, or an image that is none.

    Example:
        >>> import torch
        >>> images = torch.rand(6, 3, 8, 8)
        >>> indices = torch.tensor([[1, 2, 3]])
        >>> figure = plot_retrieval_grid(images[:1], images, indices, torch.tensor([[True, False, True]]))
    """
    if indices.ndim != 2 or indices.shape != relevant.shape or len(indices) != len(query_images):
        raise ValueError(
            f"indices and relevant must be ({len(query_images)}, k), one row per query image, got "
            f"{tuple(indices.shape)} and {tuple(relevant.shape)}"
        )
    rows, columns = len(indices), indices.shape[1] + 1
    figure, grid = _grid(rows, columns, (columns * cell + 0.2, rows * cell * 1.12 + 0.3))
    for row in range(rows):
        _draw_image(grid[row][0], query_images[row], None)
        if query_titles is not None:
            grid[row][0].set_xlabel(query_titles[row], fontsize=8, labelpad=2)
        for column, (item, right) in enumerate(
            zip(indices[row].tolist(), relevant[row].tolist(), strict=True), start=1
        ):
            if item < 0:
                grid[row][column].set_axis_off()
            else:
                _draw_image(grid[row][column], database_images[item], bool(right))
    grid[0][0].set_title("query", fontsize=9)
    for column in range(1, columns):
        grid[0][column].set_title(str(column), fontsize=9)
    return figure


def _draw_precision_recall(axes: Axes, reports: Reports, by: str) -> None:
    check_choice("by", by, ("rank", "radius"))
    x, y = (f"{name}_{'at' if by == 'rank' else 'by'}_{by}" for name in ("recall", "precision"))
    for name, report, style in _methods(reports, x):
        axes.plot(report.curves[x], report.curves[y], label=name, **style)
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _finish(axes, reports)


def _draw_precision_at_k(axes: Axes, reports: Reports) -> None:
    for name, report, style in _methods(reports, "rank"):
        axes.plot(report.curves["rank"], report.curves["precision_at_rank"], label=name, **style)
    axes.set(xlabel="number of retrieved items k", ylabel="precision at k", xscale="log", ylim=(-0.02, 1.02))
    _finish(axes, reports)


def _draw_precision_within_radius(axes: Axes, reports: Reports) -> None:
    for name, report, style in _methods(reports, "radius"):
        axes.plot(report.curves["radius"], report.curves["precision_within_radius"], label=name, **style)
    axes.set(xlabel="Hamming radius", ylabel="precision within radius", ylim=(-0.02, 1.02))
    _finish(axes, reports)


def _draw_distance_histogram(axes: Axes, report: RetrievalReport) -> None:
    _check_curve(report, "radius", "the report")
    distances = report.curves["radius"]
    for key, name, colour, hatch in (
        ("irrelevant_by_distance", "irrelevant", "#b0b0b0", ""),
        ("relevant_by_distance", "relevant", _STYLES[0][0], "///"),
    ):
        counts = report.curves[key]
        total = sum(counts) or 1.0
        axes.bar(
            distances,
            [count / total for count in counts],
            width=1.0,
            label=f"{name} pairs",
            facecolor=(*_rgb(colour), 0.45),
            edgecolor=colour,
            hatch=hatch,
            linewidth=0.8,
        )
    axes.set(xlabel="Hamming distance", ylabel="share of pairs")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_image(axes: Axes, image: Any, right: bool | None) -> None:
    pixels = _pixels(image)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, aspect="equal")
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
    """An image as an array ``(H, W)`` or ``(H, W, 3)`` of floats in 0..1."""
    import numpy as np

    array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ValueError(f"an image must be (3, H, W), (H, W, 3) or (H, W), got shape {array.shape}")
    if array.dtype == np.uint8:
        return array / 255.0
    array = array.astype(np.float64)
    if not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            f"floating images must lie in 0..1, got {array.min():.3g}..{array.max():.3g}: undo the "
            "normalization"
        )
    return array


def _methods(reports: Reports, curve: str) -> Iterator[tuple[str, RetrievalReport, dict[str, Any]]]:
    """Name, report and line style of each method."""
    named = {"": reports} if isinstance(reports, RetrievalReport) else reports
    if not named:
        raise ValueError("no report to draw: give a report, or a dict of reports by name")
    for number, (name, report) in enumerate(named.items()):
        _check_curve(report, curve, name or "the report")
        colour, line, marker = _STYLES[number % len(_STYLES)]
        points = sum(not math.isnan(value) for value in report.curves[curve])
        style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
        yield name, report, style | {"markevery": max(1, points // 10), "linewidth": 1.6}


def _check_curve(report: RetrievalReport, curve: str, name: str) -> None:
    if curve not in report.curves:
        raise ValueError(f"{name} has no curve {curve!r}: it is of a ranking, which has no Hamming distances")


def _finish(axes: Axes, reports: Reports) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if not isinstance(reports, RetrievalReport):
        axes.legend(frameon=False)


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return red, green, blue


def _figure() -> tuple[Figure, Axes]:
    """A figure with one axes."""
    figure, ((axes,),) = _grid(1, 1, (4.8, 3.6))
    return figure, axes


def _grid(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[list[Axes]]]:
    """A figure that no window knows of, and its axes by row."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install hybridhash[plot]") from error
    figure = Figure(figsize=size, layout="constrained", dpi=120)
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()
