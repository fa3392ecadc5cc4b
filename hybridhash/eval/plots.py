"""Curves of retrieval experiments (extra ``plot``): returned as figures, never shown or saved.

Methods differ by colour, line style and marker, so that every figure can be read in grey.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from hybridhash._checks import check_choice, check_integer
from hybridhash.eval.curves import PrecisionRecallCurve
from hybridhash.eval.report import RetrievalReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "new_figure",
    "plot_distance_histogram",
    "plot_precision_at_k",
    "plot_precision_recall",
    "plot_precision_within_radius",
    "plot_recall_at_k",
    "plot_report",
]

# Colours that stay apart for colour-blind readers (Okabe and Ito). The three lists have no common length, so
# that 420 methods pass before one looks like another; the first 12 have 12 markers.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">", "p", "h")

Method: TypeAlias = RetrievalReport | PrecisionRecallCurve
Methods: TypeAlias = Method | Mapping[Any, Method]


def plot_precision_recall(
    reports: Methods,
    *,
    by: Literal["rank", "radius"] = "rank",
    top_k: int | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw precision against recall of one or several methods.

    The legend stands to the right of the panel. In axes of your own it has room if the figure is made with
    ``layout="constrained"``; ``ax.get_legend().remove()`` takes it away where one serves several panels.

    Args:
        reports: A report, a curve of
            :func:`precision_recall_curve <hybridhash.eval.curves.precision_recall_curve>`, or a dict of them
            by the name of the method.
        by: Which curve of a report to draw: along the number of retrieved items, or along the Hamming
            radius. A curve that is no report is drawn as it was computed.
        top_k: The last rank to draw; None draws all. A radius has no rank.
        ax: The matplotlib axes to draw into; None makes a new figure.
        figsize: Width and height of the new figure in inches, the legend included. None takes 4.8 x 3.6 and
            adds the room that the legend needs.

    Returns:
        The figure; ``figure.savefig(path)`` saves it.

    Raises:
        ImportError: matplotlib is not installed (``pip install hybridhash[plot]``).
        TypeError: ``reports`` or ``ax`` is something else.
        ValueError: There is nothing to draw, or a method lacks this curve.

    Example:
        >>> import torch
        >>> from hybridhash.eval import evaluate
        >>> codes, labels = torch.randn(20, 8), torch.arange(20) % 4
        >>> figure = plot_precision_recall({"random": evaluate(codes, labels, codes, labels)})
    """
    axes = _axes(ax, figsize)
    _draw_precision_recall(axes, reports, by, top_k)
    return _finish(axes, reports, fit=ax is None, widen=figsize is None)


def plot_precision_at_k(
    reports: Methods,
    *,
    top_k: int | None = None,
    xscale: Literal["log", "linear"] = "log",
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw the precision among the first k items against k.

    Args:
        reports: As for :func:`plot_precision_recall`; a curve must have been computed with ``by="rank"``.
        top_k: The largest k to draw; None draws all.
        xscale: Whether the axis of k is logarithmic or linear.
        ax: The axes to draw into, as for :func:`plot_precision_recall`.
        figsize: The size of a new figure, as for :func:`plot_precision_recall`.

    Returns:
        The figure.

    Raises:
        ImportError, TypeError, ValueError: As for :func:`plot_precision_recall`.
    """
    axes = _axes(ax, figsize)
    _draw_at_k(axes, reports, "precision", top_k, xscale)
    return _finish(axes, reports, fit=ax is None, widen=figsize is None)


def plot_recall_at_k(
    reports: Methods,
    *,
    top_k: int | None = None,
    xscale: Literal["log", "linear"] = "log",
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw the share of relevant items found among the first k against k.

    Arguments, result and errors are those of :func:`plot_precision_at_k`.
    """
    axes = _axes(ax, figsize)
    _draw_at_k(axes, reports, "recall", top_k, xscale)
    return _finish(axes, reports, fit=ax is None, widen=figsize is None)


def plot_precision_within_radius(
    reports: Methods, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None
) -> Figure:
    """Draw the precision within a Hamming radius against the radius.

    A query that finds nothing within a radius counts as ``empty`` of the report or curve says. A curve must
    have been computed with ``by="radius"``. Arguments, result and errors are otherwise those of
    :func:`plot_precision_recall`.
    """
    axes = _axes(ax, figsize)
    _draw_within_radius(axes, reports)
    return _finish(axes, reports, fit=ax is None, widen=figsize is None)


def plot_distance_histogram(
    report: RetrievalReport, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None
) -> Figure:
    """Draw the share of relevant and of irrelevant pairs at each Hamming distance, of one report.

    Args:
        report: A report of codes; that of a ranking has no distances.
        ax: The axes to draw into, as for :func:`plot_precision_recall`.
        figsize: The size of a new figure in inches; None takes 4.8 x 3.6.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed (``pip install hybridhash[plot]``).
        TypeError: ``report`` is no report.
        ValueError: The report is of a ranking.
    """
    _check_report(report)
    axes = _axes(ax, figsize)
    _draw_distance_histogram(axes, report)
    return axes.figure.figure


def plot_report(report: RetrievalReport, *, figsize: tuple[float, float] | None = None) -> Figure:
    """Draw all curves of a report in one figure.

    Args:
        report: The report. That of a ranking has two panels, any other four.
        figsize: The size of the figure in inches; None takes 9 x 7, or 9 x 3.6 for two panels.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed (``pip install hybridhash[plot]``).
        TypeError: ``report`` is no report.
    """
    _check_report(report)
    if report.radius is None:
        figure, panels = new_figure(1, 2, figsize or (9.0, 3.6))
    else:
        figure, panels = new_figure(2, 2, figsize or (9.0, 7.0))
        _draw_within_radius(panels[1][0], report)
        _draw_distance_histogram(panels[1][1], report)
    _draw_precision_recall(panels[0][0], report, "rank", None)
    _draw_at_k(panels[0][1], report, "precision", None, "log")
    cut = "" if report.top_k is None else f"@{report.top_k}"
    bits = "" if report.bits is None else f", {report.bits} bits"
    title = f"mAP{cut} {report['map']:.4f} ({report.queries:,} queries, {report.database:,} items{bits})"
    letters = int(figure.get_figwidth() * 10)  # of 12 points that fit into a line
    figure.suptitle(textwrap.fill(title, max(10, letters)))
    for axes in figure.axes:
        _fit_letters(axes, figure.get_figheight() / len(panels))
    return figure


def _draw_precision_recall(axes: Axes, reports: Methods, by: str, top_k: int | None) -> None:
    check_choice("by", by, ("rank", "radius"))
    for name, method, style in _methods(reports):
        along = by if isinstance(method, RetrievalReport) else _kind(method)
        word = "at" if along == "rank" else "by"
        x = _values(name, method, f"recall_{word}_{along}", along, top_k)
        y = _values(name, method, f"precision_{word}_{along}", along, top_k)
        _draw_line(axes, x, y, name, style)
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def _draw_at_k(axes: Axes, reports: Methods, metric: str, top_k: int | None, xscale: str) -> None:
    check_choice("xscale", xscale, ("log", "linear"))
    for name, method, style in _methods(reports):
        x = _values(name, method, "rank", "rank", top_k)
        y = _values(name, method, f"{metric}_at_rank", "rank", top_k)
        _draw_line(axes, x, y, name, style)
    axes.set(xlabel="number of retrieved items k", ylabel=f"{metric} at k", ylim=(-0.02, 1.02))
    axes.set_xscale(xscale)


def _draw_within_radius(axes: Axes, reports: Methods) -> None:
    for name, method, style in _methods(reports):
        x = _values(name, method, "radius", "radius", None)
        y = _values(name, method, "precision_within_radius", "radius", None)
        _draw_line(axes, x, y, name, style)
    axes.set(xlabel="Hamming radius", ylabel="precision within radius", ylim=(-0.02, 1.02))


def _draw_distance_histogram(axes: Axes, report: RetrievalReport) -> None:
    distances = _values("", report, "radius", "radius", None)
    for key, name, colour, hatch in (
        ("irrelevant_by_distance", "irrelevant", "#b0b0b0", ""),
        ("relevant_by_distance", "relevant", _COLOURS[0], "///"),
    ):
        counts = report.curves[key]
        total = sum(counts) or 1.0
        bars = axes.bar(distances, [count / total for count in counts], width=1.0, label=name)
        red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
        for bar in bars:
            bar.set(facecolor=(red, green, blue, 0.45), edgecolor=colour, hatch=hatch, linewidth=0.8)
    axes.set(xlabel="Hamming distance", ylabel="share of pairs")
    axes.spines[["top", "right"]].set_visible(False)
    above = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 2}
    axes.legend(**above, frameon=False, fontsize=8, handlelength=1.5, columnspacing=1.0)


def _draw_line(axes: Axes, x: list[float], y: list[float], name: str, style: dict[str, Any]) -> None:
    """Draw one curve, with about ten markers, or say that it has no value anywhere."""
    if all(math.isnan(value) for value in y):
        name = f"{name} (not defined)".strip()
        axes.text(0.5, 0.5, "no query has a relevant item", transform=axes.transAxes, ha="center")
    step = max(1, sum(not math.isnan(value) for value in y) // 10)
    axes.plot(x, y, label=name, markevery=step, markersize=5, linewidth=1.6, **style)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _methods(reports: Methods) -> Iterator[tuple[str, Method, dict[str, Any]]]:
    """Name, report or curve, and line style of each method."""
    named = {"": reports} if isinstance(reports, Method) else reports
    if not isinstance(named, Mapping):
        raise TypeError(
            "reports must be a RetrievalReport, a PrecisionRecallCurve or a dict of them by name, "
            f"got {type(named).__name__}: name the methods, as in {{'ours': report}}"
        )
    if not named:
        raise ValueError("no report to draw: give a report, or a dict of reports by name")
    for number, (name, method) in enumerate(named.items()):
        if not isinstance(method, Method):
            raise TypeError(
                f"{name!r} must be a RetrievalReport or a PrecisionRecallCurve, got {type(method).__name__}"
            )
        style = {
            "color": _COLOURS[number % len(_COLOURS)],
            "linestyle": _LINES[number % len(_LINES)],
            "marker": _MARKERS[number % len(_MARKERS)],
        }
        yield str(name), method, style


def _check_report(report: object) -> None:
    if not isinstance(report, RetrievalReport):
        raise TypeError(f"report must be one RetrievalReport, got {type(report).__name__}")


def _kind(curve: PrecisionRecallCurve) -> str:
    """Tell whether a curve is by rank, which begins at 1 at the earliest, or by radius, which begins at 0."""
    return "radius" if (curve.thresholds == 0).any() else "rank"


def _values(name: str, method: Method, key: str, along: str, top_k: int | None) -> list[float]:
    """Return the values ``key`` of a report's curve, or of a curve, up to rank ``top_k``."""
    curves = method.curves if isinstance(method, RetrievalReport) else _curves_of(method)
    if key not in curves:
        name = repr(name) if name else "the report"
        if not isinstance(method, RetrievalReport):
            raise ValueError(f"{name} is a curve by {_kind(method)}: compute it with by={along!r}")
        raise ValueError(f"{name} has no curve {key!r}: it is of a ranking, which has no Hamming distances")
    if top_k is None:
        return curves[key]
    check_integer("top_k", top_k, 1, advice="use None for all ranks")
    if along == "radius":
        raise ValueError(f"top_k={top_k} is a rank, and a curve by radius has none: use by='rank'")
    pairs = zip(curves["rank"], curves[key], strict=True)
    values = [value for rank, value in pairs if rank <= top_k]
    if not values:
        raise ValueError(f"top_k={top_k} leaves nothing of a curve that begins at rank {curves['rank'][0]:g}")
    return values


def _curves_of(curve: PrecisionRecallCurve) -> dict[str, list[float]]:
    """Name the lists of a curve as a report names them."""
    if curve.precision.ndim != 1:
        raise ValueError(
            f"a curve must have one value a point, got precision of shape {tuple(curve.precision.shape)}: "
            "compute it with aggregation='mean'"
        )
    precision, recall = curve.precision.tolist(), curve.recall.tolist()
    points = [float(point) for point in curve.thresholds.tolist()]
    if _kind(curve) == "rank":
        return {"rank": points, "precision_at_rank": precision, "recall_at_rank": recall}
    named = {"radius": points, "precision_by_radius": precision, "recall_by_radius": recall}
    return named | {"precision_within_radius": precision}


def _finish(axes: Axes, reports: Methods, *, fit: bool, widen: bool) -> Figure:
    """Add the legend of named methods beside the axes, and return the figure.

    Args:
        axes: Axes with all curves.
        reports: What was drawn; a single report without a name needs no legend.
        fit: Whether the figure is ours, so that the letters or the figure may change until the legend fits.
        widen: Whether the figure may grow; if not, the letters shrink.
    """
    figure: Figure = axes.figure.figure
    if isinstance(reports, Method):
        return figure
    handles, names = axes.get_legend_handles_labels()
    names = [textwrap.fill(name, 30) for name in names]
    width, height = figure.get_size_inches()
    for points in (10, 8, 6, 5, 4):
        legend = axes.legend(
            handles,
            names,
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            frameon=False,
            fontsize=points,
            handlelength=3.5,
        )
        if not fit:
            break
        box = legend.get_window_extent()
        needed_width, needed_height = box.width / figure.dpi, box.height / figure.dpi
        if widen:
            figure.set_size_inches(width + needed_width, max(height, needed_height + 0.7))
            break
        if needed_width <= 0.5 * width and needed_height <= 0.9 * height:
            break
    return figure


def _axes(ax: Axes | None, figsize: tuple[float, float] | None) -> Axes:
    """Return the axes to draw into: the user's, or those of a new figure."""
    if ax is None:
        figure, ((axes,),) = new_figure(1, 1, figsize or (4.8, 3.6))
        _fit_letters(axes, figure.get_figheight())
        return axes
    if figsize is not None:
        raise ValueError("figsize is the size of a new figure: leave it out with ax, which has a figure")
    if not (hasattr(ax, "plot") and hasattr(ax, "figure")):
        raise TypeError(f"ax must be one matplotlib Axes, got {type(ax).__name__}")
    return ax


def _fit_letters(axes: Axes, height: float) -> None:
    """Shrink the words at the axes of a panel that is less than 2.5 inches high."""
    points = min(10.0, 4 * height)
    axes.tick_params(labelsize=points)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(points)


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure that no window knows of, and return it with its axes by row.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install hybridhash[plot]") from error
    figure = Figure(figsize=size, layout="constrained", dpi=120)
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()
