"""Figures show what the report says, and nothing is shown or saved by itself."""

from __future__ import annotations

import builtins
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from hybridhash.codes import hamming_topk
from hybridhash.eval import (
    evaluate,
    evaluate_ranking,
    plot_distance_histogram,
    plot_precision_at_k,
    plot_precision_recall,
    plot_precision_within_radius,
    plot_recall_at_k,
    plot_report,
    plot_retrieval_grid,
    precision_recall_curve,
)
from tests.eval._oracles import random_case

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

CURVES = {
    plot_precision_recall: ("recall_at_rank", "precision_at_rank"),
    plot_precision_at_k: ("rank", "precision_at_rank"),
    plot_recall_at_k: ("rank", "recall_at_rank"),
    plot_precision_within_radius: ("radius", "precision_within_radius"),
}


@pytest.fixture(scope="module")
def report():
    return evaluate(*random_case(seed=60), top_k=20)


def of_ranking():
    query, query_labels, codes, labels = random_case(seed=60)
    return evaluate_ranking(hamming_topk(query, codes, 50)[1], query_labels, labels)


@pytest.mark.parametrize("plot", CURVES)
def test_lines_are_the_curves_of_the_reports(plot, report):
    other = evaluate(*random_case(seed=61))
    axes = plot({"ours": report, "theirs": other}).axes[0]
    for line, source in zip(axes.lines, (report, other), strict=True):
        x, y = (torch.tensor(list(values)) for values in line.get_data())
        torch.testing.assert_close(
            x, torch.tensor(source.curves[CURVES[plot][0]]), equal_nan=True, check_dtype=False
        )
        torch.testing.assert_close(
            y, torch.tensor(source.curves[CURVES[plot][1]]), equal_nan=True, check_dtype=False
        )
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ours", "theirs"]
    assert axes.get_xlabel()
    assert axes.get_ylabel()


def test_methods_differ_in_more_than_colour(report):
    axes = plot_precision_recall({str(number): report for number in range(12)}).axes[0]
    assert len({line.get_marker() for line in axes.lines}) == 12
    assert len({(line.get_color(), str(line._dash_pattern)) for line in axes.lines}) == 12
    assert len({line.get_color() for line in axes.lines}) == 7


@pytest.mark.parametrize("plot", CURVES)
@pytest.mark.parametrize(("methods", "figsize"), [(2, (3.3, 2.5)), (12, (2.4, 1.8)), (12, None), (30, None)])
def test_the_legend_covers_nothing_and_all_fits_into_the_figure(plot, figsize, methods, report):
    names = [f"method {number} of theirs" for number in range(methods)]
    names[0] += ", with a name that needs two lines"
    figure = plot({name: report for name in names}, figsize=figsize)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "axes sizes collapsed to zero"
        figure.draw_without_rendering()
    if figsize is not None:
        assert tuple(figure.get_size_inches()) == figsize
    axes = figure.axes[0]
    legend = axes.get_legend().get_window_extent()
    assert legend.x0 >= axes.get_window_extent().x1
    assert axes.get_window_extent().width > 0.2 * figure.bbox.width
    everything = figure.get_tightbbox().padded(-0.01)  # in inches
    width, height = figure.get_size_inches()
    assert everything.x0 >= 0
    assert everything.y0 >= 0
    assert everything.x1 <= width
    assert everything.y1 <= height


@pytest.mark.parametrize("plot", [*CURVES, plot_distance_histogram])
def test_plots_draw_into_given_axes(plot, report):
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    assert plot(report, ax=right) is figure
    assert not left.has_data()
    assert right.has_data()
    inset = figure.add_subfigure(figure.add_gridspec(1, 1)[0]).subplots()
    assert plot(report, ax=inset) is figure
    with pytest.raises(TypeError, match="ax must be one matplotlib Axes, got ndarray"):
        plot(report, ax=np.array([left, right]))
    with pytest.raises(ValueError, match="figsize is the size of a new figure"):
        plot(report, ax=left, figsize=(3, 3))
    assert tuple(plot(report, figsize=(7, 5)).get_size_inches()) == (7, 5)


def test_the_title_of_a_report_is_wrapped(report):
    figure = plot_report(report, figsize=(3, 4))
    figure.draw_without_rendering()
    title = figure._suptitle.get_window_extent()
    assert title.x0 >= 0
    assert title.x1 <= figure.bbox.width


@pytest.mark.parametrize("plot", [plot_precision_recall, plot_precision_at_k, plot_recall_at_k])
def test_top_k_ends_the_curves(plot, report):
    line = plot(report, top_k=20).axes[0].lines[0]
    ranks = [rank for rank in report.curves["rank"] if rank <= 20]
    assert 0 < len(ranks) < len(report.curves["rank"])
    assert len(line.get_xdata()) == len(ranks)
    with pytest.raises(ValueError, match="top_k must be >= 1, got 0"):
        plot(report, top_k=0)
    with pytest.raises(ValueError, match="top_k=5 leaves nothing of a curve that begins at rank 10"):
        plot(precision_recall_curve(*random_case(seed=60), by="rank", top_k=[10, 20]), top_k=5)


def test_k_can_stand_on_a_linear_axis(report):
    assert plot_precision_at_k(report).axes[0].get_xscale() == "log"
    assert plot_recall_at_k(report, xscale="linear").axes[0].get_xscale() == "linear"
    with pytest.raises(ValueError, match="xscale must be one of"):
        plot_precision_at_k(report, xscale="logarithmic")


def test_curves_are_drawn_beside_reports(report):
    by_rank = precision_recall_curve(*random_case(seed=60), by="rank")
    by_radius = precision_recall_curve(*random_case(seed=60))
    for curve in (by_rank, by_radius):
        line = plot_precision_recall({"curve": curve, "report": report}).axes[0].lines[0]
        assert line.get_xdata().tolist() == curve.recall.tolist()
        assert line.get_ydata() == pytest.approx(curve.precision.numpy(), nan_ok=True)
    for plot, values in ((plot_precision_at_k, by_rank.precision), (plot_recall_at_k, by_rank.recall)):
        line = plot(by_rank).axes[0].lines[0]
        assert line.get_xdata().tolist() == by_rank.thresholds.tolist()
        assert line.get_ydata().tolist() == values.tolist()
    line = plot_precision_within_radius(by_radius).axes[0].lines[0]
    assert line.get_xdata().tolist() == by_radius.thresholds.tolist()
    assert line.get_ydata() == pytest.approx(by_radius.precision.numpy(), nan_ok=True)

    with pytest.raises(ValueError, match="'ours' is a curve by radius: compute it with by='rank'"):
        plot_recall_at_k({"ours": by_radius})
    with pytest.raises(ValueError, match="is a curve by rank: compute it with by='radius'"):
        plot_precision_within_radius(by_rank)
    with pytest.raises(ValueError, match="top_k=5 is a rank"):
        plot_precision_recall(by_radius, top_k=5)
    per_query = precision_recall_curve(*random_case(seed=60), aggregation=None)
    with pytest.raises(ValueError, match="compute it with aggregation='mean'"):
        plot_precision_recall(per_query)


@pytest.mark.parametrize("plot", CURVES)
def test_what_is_no_report_is_refused_by_name(plot, report):
    with pytest.raises(TypeError, match="got list: name the methods"):
        plot([report])
    with pytest.raises(
        TypeError, match="'ours' must be a RetrievalReport or a PrecisionRecallCurve, got float"
    ):
        plot({"ours": 0.5})


def test_what_is_not_one_report_is_refused_where_one_is_drawn(report):
    for plot in (plot_distance_histogram, plot_report):
        with pytest.raises(TypeError, match="must be one RetrievalReport, got dict"):
            plot({"ours": report})


def test_a_curve_without_a_value_says_so(report):
    query, labels, codes, database_labels = random_case(seed=60)
    nothing = precision_recall_curve(
        query, torch.zeros_like(labels), codes, database_labels, by="rank", empty="skip"
    )
    axes = plot_recall_at_k({"ours": nothing, "theirs": report}).axes[0]
    assert [text.get_text() for text in axes.texts] == ["no query has a relevant item"]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["ours (not defined)", "theirs"]


def test_precision_recall_by_radius(report):
    line = plot_precision_recall(report, by="radius").axes[0].lines[0]
    assert len(line.get_xdata()) == 9
    with pytest.raises(ValueError, match="by must be"):
        plot_precision_recall(report, by="k")


def test_bars_of_the_distance_histogram_sum_to_one_for_each_kind(report):
    axes = plot_distance_histogram(report).axes[0]
    for bars in axes.containers:
        assert sum(bar.get_height() for bar in bars) == pytest.approx(1.0)


def test_a_ranking_has_no_radius_to_draw():
    for plot in (plot_precision_within_radius, plot_distance_histogram):
        with pytest.raises(ValueError, match="of a ranking"):
            plot(of_ranking())
    assert len(plot_report(of_ranking()).axes) == 2
    with pytest.raises(ValueError, match="no report"):
        plot_precision_recall({})


def test_report_plot_saves_only_where_it_is_told_to(report, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figure = report.plot()
    assert len(figure.axes) == 4
    assert not list(tmp_path.iterdir())
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000


@pytest.mark.parametrize("layout", ["chw", "hwc", "hw", "bytes"])
def test_grid_frames_right_green_and_wrong_red_with_a_cross(layout):
    images = torch.rand(6, 3, 8, 8)
    images = {
        "chw": images,
        "hwc": images.permute(0, 2, 3, 1),
        "hw": images[:, 0],
        "bytes": (images * 255).to(torch.uint8),
    }[layout]
    indices = torch.tensor([[1, 2], [3, -1]])
    relevant = torch.tensor([[True, False], [True, False]])
    figure = plot_retrieval_grid(images[:2], images, indices, relevant, query_titles=["a", "b"])
    cells = [figure.axes[i : i + 3] for i in (0, 3)]
    colours = [[tuple(cell.spines["left"].get_edgecolor()) for cell in row[1:]] for row in cells]
    right, wrong = colours[0]
    assert right[1] > right[0]
    assert wrong[0] > wrong[1]
    assert colours[1][0] == right
    assert [len(cell.texts) for cell in cells[0]] == [0, 0, 1]
    assert cells[0][2].spines["left"].get_linestyle() != cells[0][1].spines["left"].get_linestyle()
    assert not cells[1][2].axison
    assert cells[0][0].get_xlabel() == "a"


def test_grid_refuses_what_does_not_fit():
    images = torch.rand(6, 3, 8, 8)
    with pytest.raises(ValueError, match=r"must be \(2, k\)"):
        plot_retrieval_grid(images[:2], images, torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2).bool())
    with pytest.raises(ValueError, match="undo the normalization"):
        plot_retrieval_grid(images[:1] - 3, images, torch.tensor([[0]]), torch.tensor([[True]]))
    with pytest.raises(ValueError, match="an image must be"):
        plot_retrieval_grid(torch.rand(1, 5, 8, 8), images, torch.tensor([[0]]), torch.tensor([[True]]))


def test_grid_says_which_argument_is_wrong():
    images = torch.rand(6, 3, 8, 8)
    found, right = torch.tensor([[0, 5]]), torch.tensor([[True, False]])
    for wrong, message in ((6, "rows of the 6 database images, or -1, got 0 to 6"), (-2, "got -2 to 0")):
        with pytest.raises(IndexError, match=message):
            plot_retrieval_grid(images[:1], images, torch.tensor([[0, wrong]]), right)
    with pytest.raises(TypeError, match=r"indices must be integers, the rows found, got torch\.float32"):
        plot_retrieval_grid(images[:1], images, found.float(), right)
    with pytest.raises(TypeError, match=r"relevant must be bool.*got torch\.int64"):
        plot_retrieval_grid(images[:1], images, found, found)
    for titles in ([], ["a", "b"], "a"):
        with pytest.raises(ValueError, match="query_titles must have one title for each of 1 queries"):
            plot_retrieval_grid(images[:1], images, found, right, query_titles=titles)
    for shape in ((0, 2), (1, 0)):
        nothing = torch.zeros(shape, dtype=torch.long)
        with pytest.raises(ValueError, match="nothing to draw"):
            plot_retrieval_grid(images[: shape[0]], images, nothing, nothing.bool())
    with pytest.raises(ValueError, match="cell must be a positive number, got 0"):
        plot_retrieval_grid(images[:1], images, found, right, cell=0)
    with pytest.raises(ValueError, match="columns must be >= 1, got 0"):
        plot_retrieval_grid(images[:1], images, found, right, columns=0)
    with pytest.raises(ValueError, match=r"integer images must lie in 0\.\.255, got 0\.\.300"):
        plot_retrieval_grid([np.array([[0, 300]])], images, found, right)


def test_fifty_neighbours_stand_in_lines_of_ten():
    images = torch.arange(50)[:, None, None].expand(50, 4, 4) / 50
    found = torch.arange(50).repeat(2, 1).flip(1)
    figure = plot_retrieval_grid(images[:2], images, found, found > 9)
    assert figure.get_figwidth() < 12
    figure.draw_without_rendering()
    drawn = [axes for axes in figure.axes if axes.axison]
    values = [axes.images[0].get_array()[0, 0] for axes in drawn]
    expected = [value / 50 for query in (0, 1) for value in (query, *range(49, -1, -1))]
    assert values == pytest.approx(expected)
    lines = {round(axes.get_position().y1, 3) for axes in drawn}
    assert len(lines) == 10
    numbers = [axes.get_title() for axes in drawn[:51]]
    assert numbers == ["query", *map(str, range(1, 51))]


def test_long_query_titles_are_wrapped_within_the_figure():
    images = torch.rand(2, 3, 8, 8)
    found = torch.tensor([[0, 1], [1, 0]])
    titles = ["plane with a long name that goes on", "averylongwordwithoutanyspaces"]
    for cell in (0.5, 1.0, 2.0):
        figure = plot_retrieval_grid(images, images, found, found > 0, query_titles=titles, cell=cell)
        figure.draw_without_rendering()
        for axes, title in zip((figure.axes[0], figure.axes[3]), titles, strict=True):
            box = axes.xaxis.label.get_window_extent()
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert axes.get_xlabel().replace("\n", "").replace(" ", "") == title.replace(" ", "")
        first, second = figure.axes[0].xaxis.label, figure.axes[3]
        assert first.get_window_extent().y0 > second.get_window_extent().y1


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "RGBA", "L", "LA", "1", "I;16"])
def test_images_of_every_mode_have_their_colours(mode):
    colour = Image.new("RGB", (4, 4), (255, 0, 0))
    image = Image.new("I;16", (4, 4), 19532) if mode == "I;16" else colour.convert(mode)
    figure = plot_retrieval_grid([image], [image], torch.tensor([[0]]), torch.tensor([[True]]))
    pixel = figure.axes[0].images[0].get_array()[0, 0][:3]
    expected = {"L": 76 / 255, "LA": 76 / 255, "I;16": 76 / 255, "1": pixel}.get(mode, (1.0, 0.0, 0.0))
    assert pixel.tolist() == pytest.approx(np.broadcast_to(expected, 3).tolist(), abs=0.01)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.uint8, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("width", [4, 8])
def test_tensors_of_every_kind_have_their_colours(dtype, channels, width):
    bytes_ = torch.randint(0, 256, (channels, 6, width))
    image = (bytes_ / 255).to(dtype) if dtype.is_floating_point else bytes_.to(dtype)
    expected = (bytes_ / 255).permute(1, 2, 0).squeeze(2)
    figure = plot_retrieval_grid([image], [image], torch.tensor([[0]]), torch.tensor([[True]]))
    drawn = torch.as_tensor(np.array(figure.axes[0].images[0].get_array()))
    torch.testing.assert_close(drawn.float(), expected, atol=0.005, rtol=0)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, report):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install hybridhash\[plot\]"):
        plot_precision_recall(report)
