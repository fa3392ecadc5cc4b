"""Metrics of rankings by real-valued queries: the enumeration of tied orders, and Hamming for ±1 queries."""

from __future__ import annotations

import json
from functools import partial

import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridhash import HashCodes
from hybridhash import eval as evaluation
from hybridhash.codes import binarize
from hybridhash.eval import RetrievalReport, evaluate, ranking
from tests.eval import _oracles as oracles
from tests.eval._oracles import random_case
from tests.eval.test_metrics import METRICS, TIES

SIGNS = st.lists(st.sampled_from([-1.0, 1.0]), min_size=3, max_size=3)
ITEMS = st.lists(st.tuples(SIGNS, st.sampled_from([0, 0, 1, 1, 2, 3])), min_size=1, max_size=6)
VALUES = st.lists(st.sampled_from([-1.0, -0.5, 0.25, 0.5, 1.0]), min_size=3, max_size=3)


def _single(case):
    query, query_labels, codes, labels = case
    return query, query_labels.byte().argmax(1), codes, labels.byte().argmax(1)


CASES = {"multi-hot": random_case(), "class ids": _single(random_case())}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.filterwarnings("ignore:all .* codes are the same")
@settings(max_examples=25, deadline=None)
@given(items=ITEMS, values=VALUES, top_k=st.one_of(st.none(), st.integers(1, 7)))
def test_every_tie_rule_equals_the_enumeration_of_all_orders_of_equal_scores(name, items, values, top_k):
    metric, oracle = METRICS[name]
    signs, grades = [list(signs) for signs, _ in items], [grade for _, grade in items]
    far = [-sum(q * s for q, s in zip(values, item, strict=True)) for item in signs]
    cut = min(top_k or len(items), len(items))
    want = oracles.over_orders(lambda ranked: oracle(ranked, cut), far, grades)
    _, query_labels, _, labels = oracles.instance([0] * len(items), grades)
    arguments = (torch.tensor([values]), query_labels, torch.tensor(signs), labels)
    for ties in TIES:
        got = metric(*arguments, top_k=top_k, ties=ties, scoring="asymmetric")
        assert got.item() == pytest.approx(want[ties], abs=1e-12), ties


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("top_k", [None, 20])
def test_signs_as_queries_give_the_report_of_hamming_distances(case, ties, top_k):
    query, *rest = CASES[case]
    settings = {"top_k": top_k, "ties": ties, "ks": (1, 7, 150)}
    hamming = evaluate(query, *rest, **settings)
    report = evaluate(binarize(query), *rest, **settings, scoring="asymmetric")
    by_radius = {"precision_within_radius", "recall_within_radius"}
    assert set(hamming.metrics) - set(report.metrics) == by_radius
    for name, value in report.metrics.items():
        assert value == pytest.approx(hamming[name], abs=1e-12), name
    assert set(report.curves) == {"rank", "precision_at_rank", "recall_at_rank"}
    for name, curve in report.curves.items():
        assert curve == pytest.approx(hamming.curves[name], abs=1e-12), name
    assert report.codes == hamming.codes
    assert (report.radius, report.scoring, report.metric) == (None, "asymmetric", "dot")


@pytest.mark.parametrize("case", CASES)
def test_a_ranking_without_ties_is_that_of_the_scores(case):
    _, query_labels, _, labels = CASES[case]
    query = torch.randn(len(query_labels), 40, generator=torch.Generator().manual_seed(4))
    codes = binarize(torch.randn(60, 40, generator=torch.Generator().manual_seed(5)))
    scores = query.double() @ codes.double().T
    want = evaluation.evaluate_ranking(
        scores.argsort(dim=1, descending=True), query_labels, labels[:60], ks=(1, 10)
    )
    for ties in TIES:
        report = evaluate(
            query, query_labels, codes, labels[:60], ks=(1, 10), ties=ties, scoring="asymmetric"
        )
        for name, value in want.metrics.items():
            assert report[name] == pytest.approx(value, abs=1e-12), (ties, name)


def test_queries_are_left_out_of_their_own_ranking():
    _, _, codes, labels = CASES["class ids"]
    rows = torch.tensor([3, 0, -1, 149])
    own = rows.clamp(min=0)
    query = codes[own]
    for ties in TIES:
        got = evaluation.mean_average_precision(
            query, labels[own], codes, labels, ties=ties, exclude_self=rows, aggregation=None,
            scoring="asymmetric",
        )  # fmt: skip
        for place, row in enumerate(rows.tolist()):
            others = torch.arange(len(codes)) != row
            want = evaluation.mean_average_precision(
                query[[place]], labels[own[[place]]], codes[others], labels[others], ties=ties,
                scoring="asymmetric",
            )  # fmt: skip
            assert got[place].item() == pytest.approx(want.item(), abs=1e-12)


def test_pieces_of_queries_change_nothing(monkeypatch):
    case = CASES["multi-hot"]
    arguments = {"aggregation": None, "scoring": "asymmetric", "top_k": [3, 30, None]}
    want = evaluation.ndcg_at_k(*case, **arguments)
    monkeypatch.setattr(ranking, "_SCORES", 2 * len(case[2]))
    torch.testing.assert_close(evaluation.ndcg_at_k(*case, **arguments), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ties", TIES)
def test_a_curve_by_rank_holds_precision_and_recall(ties):
    case = CASES["class ids"]
    curve = evaluation.precision_recall_curve(
        *case, by="rank", top_k=[1, 9, 150], ties=ties, scoring="asymmetric"
    )
    options = {"top_k": [1, 9, 150], "ties": ties, "scoring": "asymmetric"}
    torch.testing.assert_close(curve.precision, evaluation.precision_at_k(*case, **options))
    torch.testing.assert_close(curve.recall, evaluation.recall_at_k(*case, **options))


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_factors_of_the_database_are_used_and_reported(metric):
    query, query_labels, codes, labels = CASES["class ids"]
    norm = codes.norm(dim=1)
    database = HashCodes.from_codes(codes, labels)
    factors = torch.stack([norm, codes.abs().sum(1) / (8**0.5 * norm)], 1)
    object.__setattr__(database, "factors", factors)
    estimate = query @ (binarize(codes) * (factors[:, :1] / (factors[:, 1:] * 8**0.5))).T
    scores = estimate if metric == "dot" else 2 * estimate - norm.square()
    want = evaluation.evaluate_ranking(scores.argsort(1, descending=True), query_labels, labels)
    report = evaluate(query, query_labels, database, scoring="asymmetric", metric=metric, ties="stable")
    assert report["map"] == pytest.approx(want["map"], abs=1e-9)
    assert report.factors
    assert f"metric='{metric}'" in str(report)
    assert "the signs of the database and its factors" in str(report)


def test_a_report_says_its_scoring_and_keeps_it(tmp_path):
    case = CASES["class ids"]
    report = evaluate(*case, scoring="asymmetric")
    for text in (str(report), report.to_markdown()):
        assert "scoring='asymmetric', metric='dot' (ranked by real-valued queries against the signs" in text
        assert "exact mean over all orders of equal scores" in text
        assert "P@H" not in text
    assert "scoring='hamming' (ranked by Hamming distance)" in str(evaluate(*case))
    report.to_json(tmp_path / "report.json")
    assert RetrievalReport.from_json(tmp_path / "report.json") == report
    figure = report.plot()
    assert len(figure.axes) == 2
    plt.close(figure)
    plt.close(evaluation.plot_precision_recall({"real": report, "signs": evaluate(*case)}))


def test_a_report_of_an_earlier_version_is_one_of_hamming_distances():
    case = CASES["class ids"]
    for report in (evaluate(*case), evaluation.evaluate_ranking(torch.tensor([[0, 1]]), *_labels())):
        values = json.loads(json.dumps(report.to_dict()))
        for name in ("scoring", "metric", "factors"):
            del values[name]
        assert RetrievalReport.from_dict(values) == report


def _labels():
    return torch.tensor([0]), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (evaluation.precision_within_radius, "within a radius needs Hamming.*use precision_at_k"),
        (evaluation.recall_within_radius, "within a radius needs Hamming.*or recall_at_k"),
        (evaluation.precision_recall_curve, "a curve by radius needs Hamming distances.*use by='rank'"),
        (evaluation.distance_histogram, "a histogram of distances needs Hamming distances"),
        (partial(evaluation.mean_average_precision, definition="csq"), "definition='csq' needs Hamming"),
    ],
)
def test_what_needs_hamming_distances_refuses_scores(call, message):
    with pytest.raises(ValueError, match=message):
        call(*CASES["class ids"], scoring="asymmetric")


def test_options_that_do_not_fit_are_refused():
    query, query_labels, codes, labels = CASES["class ids"]
    with pytest.raises(ValueError, match="scoring must be one of 'hamming', 'asymmetric'"):
        evaluate(query, query_labels, codes, labels, scoring="real")
    with pytest.raises(ValueError, match="metric='dot' goes with scoring='asymmetric'"):
        evaluate(query, query_labels, codes, labels, metric="dot")
    with pytest.raises(ValueError, match="metric must be one of 'dot', 'euclidean'"):
        evaluate(query, query_labels, codes, labels, scoring="asymmetric", metric="cosine")
    hashed = HashCodes.from_codes(query, query_labels), HashCodes.from_codes(codes, labels)
    with pytest.raises(TypeError, match="HashCodes, which hold only signs"):
        evaluate(*hashed, scoring="asymmetric")
    assert evaluate(query, query_labels, hashed[1], scoring="asymmetric").metric == "dot"
