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


def test_an_unknown_metric_names_those_there_are():
    with pytest.raises(KeyError, match=r"no metric 'mAP'.*map"):
        evaluate(*random_case(seed=40))["mAP"]
