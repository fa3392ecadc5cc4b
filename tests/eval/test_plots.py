"""Figures show what the report says, and nothing is shown or saved by itself."""

from __future__ import annotations

import builtins

import pytest
import torch

from hybridhash.codes import hamming_topk
from hybridhash.eval import (
    evaluate,
    evaluate_ranking,
    plot_distance_histogram,
    plot_precision_at_k,
    plot_precision_recall,
    plot_precision_within_radius,
    plot_report,
    plot_retrieval_grid,
)
from tests.eval._oracles import random_case

pytest.importorskip("matplotlib")
CURVES = {
    plot_precision_recall: ("recall_at_rank", "precision_at_rank"),
    plot_precision_at_k: ("rank", "precision_at_rank"),
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
    axes = plot_precision_recall({str(number): report for number in range(7)}).axes[0]
    assert len({line.get_marker() for line in axes.lines}) == 7
    assert len({str(line._dash_pattern) for line in axes.lines}) == 7


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


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, report):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install hybridhash\[plot\]"):
        plot_precision_recall(report)
