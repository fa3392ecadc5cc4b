"""evaluate and its report: the same numbers as the metrics, and round trips through every form."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from hybridhash import eval as evaluation
from hybridhash.codes import HashCodes, pack_codes
from hybridhash.eval import RetrievalReport, evaluate
from tests.eval._oracles import random_case


def ids_of(case):
    query, query_labels, codes, labels = case
    return query, query_labels.byte().argmax(1), codes, labels.byte().argmax(1)


@pytest.mark.parametrize("ties", ["expected", "stable", "best", "worst"])
@pytest.mark.parametrize("rules", [("hits", "zero"), ("relevant", "skip")])
@pytest.mark.parametrize("top_k", [None, 30])
def test_numbers_equal_those_of_the_metrics(ties, rules, top_k):
    case = random_case(seed=30)
    common = {"ties": ties, "empty": rules[1]}
    report = evaluate(*case, top_k=top_k, ks=(1, 20), radius=1, denominator=rules[0], **common)
    want = {
        "map": evaluation.mean_average_precision(*case, top_k=top_k, denominator=rules[0], **common),
        "weighted_map": evaluation.weighted_map(*case, top_k=top_k, denominator=rules[0], **common),
        "mrr": evaluation.mean_reciprocal_rank(*case, top_k=top_k, **common),
        "precision_within_radius": evaluation.precision_within_radius(*case, radius=1, empty=rules[1]),
        "recall_within_radius": evaluation.recall_within_radius(*case, radius=1, empty=rules[1]),
    }
    if ties == "expected":
        for rule in ("best", "worst"):
            want[f"map_{rule}"] = evaluation.mean_average_precision(
                *case, top_k=top_k, denominator=rules[0], ties=rule, empty=rules[1]
            )
    for k in (1, 20):
        want[f"precision@{k}"] = evaluation.precision_at_k(*case, top_k=k, **common)
        want[f"recall@{k}"] = evaluation.recall_at_k(*case, top_k=k, **common)
        want[f"hit_rate@{k}"] = evaluation.hit_rate_at_k(*case, top_k=k, **common)
        want[f"ndcg@{k}"] = evaluation.ndcg_at_k(*case, top_k=k, **common)
        want[f"acg@{k}"] = evaluation.acg_at_k(*case, top_k=k, **common)
    assert set(report.metrics) == set(want)
    for name, value in want.items():
        assert report[name] == pytest.approx(value.item(), abs=1e-12), name


def test_hash_codes_and_class_ids_give_the_report_of_their_tensors():
    query, query_ids, codes, ids = ids_of(random_case(seed=31))
    want = evaluate(query, query_ids, codes, ids, top_k=50)
    queries, database = HashCodes(pack_codes(query), 8, query_ids), HashCodes(pack_codes(codes), 8, ids)
    assert evaluate(queries, database, top_k=50) == want
    assert not any(name.startswith(("acg", "weighted")) for name in want.metrics)


def test_cuts_beyond_the_database_are_left_out():
    report = evaluate(*random_case(seed=32), ks=(1000, 10, 10, 150))
    assert report.ks == [10, 150]


def test_curves_are_those_of_the_precision_recall_curve():
    case = random_case(seed=33)
    report = evaluate(*case)
    ranks = [int(rank) for rank in report.curves["rank"]]
    assert set(evaluation.precision_recall_curve(*case, by="rank").thresholds.tolist()) <= set(ranks)
    by_rank = evaluation.precision_recall_curve(*case, by="rank", top_k=ranks)
    by_radius = evaluation.precision_recall_curve(*case, by="radius")
    assert report.curves["rank"] == by_rank.thresholds.tolist()
    assert report.curves["precision_at_rank"] == by_rank.precision.tolist()
    assert report.curves["recall_at_rank"] == by_rank.recall.tolist()
    assert report.curves["precision_by_radius"] == by_radius.precision.tolist()
    assert report.curves["recall_by_radius"] == by_radius.recall.tolist()
    radii = evaluation.precision_within_radius(*case, radius=range(9))
    assert report.curves["precision_within_radius"] == radii.tolist()
    pairs = sum(report.curves["relevant_by_distance"]) + sum(report.curves["irrelevant_by_distance"])
    assert pairs == 12 * 150


def test_text_states_sizes_and_definition():
    text = str(evaluate(*random_case(seed=34), top_k=30, denominator="relevant", empty="skip"))
    for part in (
        "8 bits, 12 queries (",
        "150 database items",
        "top_k=30",
        "ties='expected'",
        "denominator='relevant' (AP is divided by min(30, all relevant items))",
        "empty='skip'",
        "mAP@30",
        "over the orders of ties",
        "P@H<=2",
        "distinct of 150",
    ):
        assert part in text


def test_markdown_has_the_values_of_the_report():
    report = evaluate(*random_case(seed=35), top_k=30, ks=(5,))
    markdown = report.to_markdown()
    assert f"| mAP@30 | {report['map']:.4f} |" in markdown
    assert f"| 5 | {report['precision@5']:.4f} | {report['recall@5']:.4f} |" in markdown
    for table in markdown.split("\n\n"):
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) <= 1


@pytest.mark.parametrize("top_k", [None, 20])
def test_a_report_survives_json(tmp_path, top_k):
    report = evaluate(*random_case(seed=36), top_k=top_k)
    path = tmp_path / "report.json"
    report.to_json(path)
    assert RetrievalReport.from_json(path) == report
    assert json.loads(path.read_text())["metrics"]["map"] == report["map"]
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_numbers_that_are_not_defined_are_null_in_json(tmp_path):
    query, query_labels, codes, labels = random_case(seed=37)
    report = evaluate(query, torch.zeros_like(query_labels), codes, labels, empty="skip")
    assert math.isnan(report["map"])
    assert report.unlabelled_queries == 12
    report.to_json(tmp_path / "report.json")
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["metrics"]["map"] is None
    assert math.isnan(RetrievalReport.from_json(tmp_path / "report.json")["map"])
    assert re.search(r"^mAP +-$", str(report), re.MULTILINE)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    report = evaluate(*random_case(seed=38))
    path = tmp_path / "report.json"
    report.to_json(path)
    before = path.read_text()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(OSError, match="disk full"):
        report.to_json(path)
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_files_that_are_no_report_are_refused(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="not a retrieval report"):
        RetrievalReport.from_json(path)
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match="format is None"):
        RetrievalReport.from_json(path)
    values = evaluate(*random_case(seed=39)).to_dict()
    del values["curves"]
    with pytest.raises(ValueError, match="lacks curves"):
        RetrievalReport.from_dict(values)


def test_a_changed_figure_of_a_report_file_is_refused(tmp_path):
    path, report = tmp_path / "report.json", evaluate(*random_case(seed=40))
    report.to_json(path)
    text = path.read_text()
    shown = f"{report['map']!r}"
    assert text.count(shown) >= 1
    path.write_text(text.replace(shown, shown[:-1] + ("1" if shown[-1] != "1" else "2"), 1))
    with pytest.raises(ValueError, match=r"report.json is damaged \(it is not what its SHA-256 says\)"):
        RetrievalReport.from_json(path)
    values = json.loads(path.read_text())
    del values["sha256"]  # as reports of older versions are, and those changed on purpose
    path.write_text(json.dumps(values))
    assert RetrievalReport.from_json(path)["mrr"] == report["mrr"]


def test_an_unknown_metric_names_those_there_are():
    with pytest.raises(KeyError, match=r"no metric 'mAP'.*map"):
        evaluate(*random_case(seed=40))["mAP"]


def _rank(report, k):
    return report.curves["rank"].index(float(k))


@pytest.mark.parametrize("ties", ["expected", "stable"])
@pytest.mark.parametrize("empty", ["zero", "skip"])
def test_curves_and_table_follow_one_rule_for_queries_without_a_label(ties, empty):
    query, _, codes, _ = random_case(seed=80)
    query_labels = torch.where(torch.arange(12) % 2 == 0, -1, torch.arange(12) % 4)
    report = evaluate(
        query, query_labels, codes, torch.arange(150) % 4, ks=(1, 7, 33), empty=empty, ties=ties
    )
    for k in (1, 7, 33):
        assert report.curves["precision_at_rank"][_rank(report, k)] == report[f"precision@{k}"]
        assert report.curves["recall_at_rank"][_rank(report, k)] == report[f"recall@{k}"]
    assert report.curves["precision_by_radius"][2] == report["precision_within_radius"]
    assert report.curves["recall_by_radius"][2] == report["recall_within_radius"]


@pytest.mark.parametrize("ks", [(5, 100), (1, 7, 333)])
def test_cuts_of_the_table_are_points_of_the_curves(ks):
    generator = torch.Generator().manual_seed(81)
    codes, labels = torch.randn(500, 16, generator=generator), torch.arange(500) % 5
    report = evaluate(codes[:9], labels[:9], codes, labels, ks=ks)
    assert {float(k) for k in ks} <= set(report.curves["rank"])
    ranking = torch.stack([torch.randperm(500, generator=generator) for _ in range(9)])
    report = evaluation.evaluate_ranking(ranking, labels[:9], labels, ks=ks)
    for k in ks:
        assert report.curves["precision_at_rank"][_rank(report, k)] == report[f"precision@{k}"]


@pytest.mark.parametrize("ties", ["expected", "stable"])
def test_progress_is_shown_where_it_is_asked_for(capsys, ties):
    case = random_case(seed=82)
    quiet = evaluate(*case, ties=ties)
    assert capsys.readouterr().err == ""
    shown = evaluate(*case, ties=ties, progress=True)
    text = capsys.readouterr().err
    assert "compare" in text
    assert ("rank" in text) == (ties == "stable")
    assert shown == quiet
    evaluation.mean_average_precision(*case, ties=ties, progress=True)
    assert "100%" in capsys.readouterr().err
    with pytest.raises(ValueError, match="progress must be one of True, False, got 'yes'"):
        evaluate(*case, progress="yes")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("metrics", None, "metrics must be a dict, got None"),
        ("metrics", {"map": "abc"}, "map must be a number or None, got 'abc'"),
        ("metrics", {"map": 0.5}, "no 'mrr'"),
        ("curves", [1], r"curves must be a dict, got \[1\]"),
        ("curves", {"rank": 5}, "rank must be a list of numbers, got 5"),
        ("curves", {"rank": ["a"]}, "rank must be a number or None, got 'a'"),
        ("codes", 5, "codes must be a dict, got 5"),
        ("codes", {"items": 1}, "no 'distinct'"),
        ("queries", "many", "queries must be an int >= 0, got 'many'"),
        ("top_k", 2.5, "top_k must be an int >= 0, got 2.5"),
        ("ties", "mean", "ties must be one of"),
        ("denominator", [], "denominator must be one of"),
        ("empty", None, "empty must be one of"),
        ("exclude_self", "no", "exclude_self must be one of"),
    ],
)
def test_damaged_fields_are_named(field, value, message):
    values = evaluate(*random_case(seed=83)).to_dict()
    with pytest.raises(ValueError, match=f"the retrieval report is damaged: {message}"):
        RetrievalReport.from_dict({**values, field: value})


def test_many_grades_of_relevance_take_little_memory(monkeypatch):
    generator = torch.Generator().manual_seed(84)
    labels = torch.rand(120, 312, generator=generator) < 0.2
    codes = torch.randn(120, 16, generator=generator)
    largest = 0
    plain = torch.Tensor.cumsum

    def watched(values, *args, **kwargs):
        nonlocal largest
        largest = max(largest, values.numel())
        return plain(values, *args, **kwargs)

    want = evaluate(codes[:40], labels[:40], codes, labels, top_k=20)
    monkeypatch.setattr(torch.Tensor, "cumsum", watched)
    monkeypatch.setattr(evaluation.metrics, "_COUNTS", 1 << 12)
    got = evaluate(codes[:40], labels[:40], codes, labels, top_k=20)
    assert largest <= 1 << 12
    assert got.metrics == pytest.approx(want.metrics, abs=1e-12)
