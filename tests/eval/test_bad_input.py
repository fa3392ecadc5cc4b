"""Bad input never gives a silent wrong number: every metric refuses it, or has a documented value for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hybridhash import eval as evaluation
from hybridhash.codes import HashCodes, pack_codes
from tests.eval._oracles import WITH_A_CUT, random_case

CUTS = (*WITH_A_CUT, evaluation.evaluate)
RADII = (evaluation.precision_within_radius, evaluation.recall_within_radius, evaluation.evaluate)
ALL = {metric.__name__: metric for metric in (*CUTS, *RADII, evaluation.precision_recall_curve)}


@pytest.fixture(params=ALL)
def metric(request):
    return ALL[request.param]


def test_bits_that_differ_are_refused(metric):
    query, query_labels, codes, labels = random_case()
    with pytest.raises(ValueError, match=r"query_codes have 7 bits but database_codes have 8"):
        metric(query[:, :7], query_labels, codes, labels)


def test_label_spaces_of_different_width_are_refused(metric):
    query, query_labels, codes, labels = random_case()
    with pytest.raises(ValueError, match="query_labels have 4 classes but database_labels have 5"):
        metric(query, query_labels[:, :4], codes, labels)
    with pytest.raises(ValueError, match="class id 5, but the other side has only 5 classes"):
        metric(query, torch.full((12,), 5), codes, labels)


def test_lengths_that_differ_are_refused(metric):
    query, query_labels, codes, labels = random_case()
    with pytest.raises(ValueError, match="query_labels has 11 rows, expected 12"):
        metric(query, query_labels[:11], codes, labels)
    with pytest.raises(ValueError, match="database_labels has 149 rows, expected 150"):
        metric(query, query_labels, codes, labels[1:])


@pytest.mark.parametrize("side", ["query", "database"])
def test_empty_sets_are_refused(metric, side):
    query, query_labels, codes, labels = random_case()
    if side == "query":
        query, query_labels = query[:0], query_labels[:0]
    else:
        codes, labels = codes[:0], labels[:0]
    with pytest.raises(ValueError, match=f"{side}_codes is empty"):
        metric(query, query_labels, codes, labels)


def test_nan_codes_are_refused(metric):
    query, query_labels, codes, labels = random_case()
    codes[3, 1] = torch.nan
    with pytest.raises(ValueError, match="database_codes has NaN"):
        metric(query, query_labels, codes, labels)


def test_packed_codes_without_bits_are_refused(metric):
    query, query_labels, codes, labels = random_case()
    with pytest.raises(ValueError, match="bits="):
        metric(pack_codes(query), query_labels, pack_codes(codes), labels)


def test_missing_arguments_are_named(metric):
    query, query_labels, codes, labels = random_case()
    with pytest.raises(TypeError, match="database_codes is missing"):
        metric(query, query_labels)
    with pytest.raises(TypeError, match="database_labels is missing"):
        metric(query, query_labels, codes)
    unlabelled = HashCodes(pack_codes(query), 8)
    with pytest.raises(ValueError, match="query_labels is missing: the HashCodes carry no labels"):
        metric(unlabelled, HashCodes(pack_codes(codes), 8, labels))
    with pytest.raises(TypeError, match="it is the database"):
        metric(HashCodes(pack_codes(query), 8, query_labels), HashCodes(pack_codes(codes), 8, labels), codes)


def test_codes_that_are_all_the_same_warn(metric):
    query, query_labels, codes, labels = random_case()
    with pytest.warns(UserWarning, match="all 150 database codes are the same: every item ties"):
        metric(query, query_labels, torch.ones_like(codes), labels)


@pytest.mark.filterwarnings("ignore:all .* codes are the same")
def test_codes_that_are_all_the_same_score_at_chance():
    query, query_labels, codes, labels = random_case()
    value = evaluation.precision_at_k(
        query, query_labels, torch.ones_like(codes), labels, top_k=7, empty="skip", aggregation=None
    )
    share = (query_labels.float() @ labels.float().T > 0).double().mean(1)
    labelled = query_labels.any(1)
    torch.testing.assert_close(value[labelled], share[labelled])


def test_labels_that_are_all_zero_score_zero(metric):
    query, query_labels, codes, labels = random_case()
    value = metric(query, torch.zeros_like(query_labels), codes, labels, empty="zero")
    if metric is evaluation.evaluate:
        assert set(value.metrics.values()) == {0.0}
        assert value.unlabelled_queries == 12
    elif metric is evaluation.precision_recall_curve:
        assert not value.precision.any()
        assert not value.recall.any()
    else:
        assert value.item() == 0.0


@pytest.mark.parametrize("top_k", [0, -1])
@pytest.mark.parametrize("metric", CUTS)
def test_a_cut_below_one_is_refused(metric, top_k):
    with pytest.raises(ValueError, match=f"top_k must be >= 1, got {top_k}: use top_k=None"):
        metric(*random_case(), top_k=top_k)


@pytest.mark.parametrize("metric", WITH_A_CUT)
def test_cuts_of_the_wrong_type_and_no_cuts_are_refused(metric):
    with pytest.raises(TypeError, match="top_k must be an int"):
        metric(*random_case(), top_k=2.5)
    with pytest.raises(ValueError, match="empty sequence"):
        metric(*random_case(), top_k=[])
    with pytest.raises(ValueError, match="got 0"):
        metric(*random_case(), top_k=[5, 0])


@pytest.mark.parametrize("metric", WITH_A_CUT)
def test_a_cut_beyond_the_database_is_the_whole_database(metric):
    case = random_case()
    for ties in ("expected", "stable", "best", "worst"):
        assert metric(*case, top_k=10**9, ties=ties) == metric(*case, ties=ties)


@pytest.mark.parametrize("metric", RADII)
def test_a_negative_radius_is_refused(metric):
    with pytest.raises(ValueError, match="radius must be >= 0, got -1"):
        metric(*random_case(), radius=-1)
    with pytest.raises(TypeError, match="radius must be an int"):
        metric(*random_case(), radius=1.5)


@pytest.mark.parametrize("metric", CUTS)
def test_unknown_rules_are_refused_with_the_known_ones(metric):
    with pytest.raises(
        ValueError, match="ties must be one of 'expected', 'stable', 'best', 'worst', got 'mean'"
    ):
        metric(*random_case(), ties="mean")
    with pytest.raises(ValueError, match="empty must be one of 'zero', 'skip'"):
        metric(*random_case(), empty="drop")


def test_other_unknown_rules_are_refused():
    case = random_case()
    for metric in (evaluation.mean_average_precision, evaluation.weighted_map, evaluation.evaluate):
        with pytest.raises(ValueError, match="denominator must be one of 'hits', 'relevant'"):
            metric(*case, denominator="all")
    with pytest.raises(ValueError, match="gain must be one of"):
        evaluation.ndcg_at_k(*case, gain="square")
    with pytest.raises(ValueError, match="aggregation must be one of"):
        evaluation.ndcg_at_k(*case, aggregation="sum")
    with pytest.raises(ValueError, match="by must be one of"):
        evaluation.precision_recall_curve(*case, by="k")


def test_bad_ways_to_leave_queries_out_are_refused():
    query, query_labels, codes, labels = random_case()
    metric = evaluation.mean_average_precision
    with pytest.raises(ValueError, match="give HashCodes with ids"):
        metric(query, query_labels, codes, labels, exclude_self=True)
    with pytest.raises(ValueError, match=r"database rows 0\.\.149 or -1, got 0\.\.150"):
        metric(query, query_labels, codes, labels, exclude_self=torch.tensor([150] + [0] * 11))
    with pytest.raises(ValueError, match="row for each of 12 queries"):
        metric(query, query_labels, codes, labels, exclude_self=torch.arange(11))
    with pytest.raises(TypeError, match=r"an integer tensor, got torch\.float32"):
        metric(query, query_labels, codes, labels, exclude_self=torch.arange(12.0))
    queries = HashCodes(pack_codes(query), 8, query_labels, torch.arange(12))
    repeated = HashCodes(pack_codes(codes), 8, labels, torch.arange(150) // 2)
    with pytest.raises(ValueError, match="unique database ids, got id 0 twice"):
        metric(queries, repeated, exclude_self=True)


def test_a_chunk_size_below_one_is_refused(metric):
    with pytest.raises(ValueError, match="chunk_size must be >= 1, got 0"):
        metric(*random_case(), chunk_size=0)


def test_unknown_options_are_refused_with_the_near_miss(metric):
    with pytest.raises(TypeError, match="unknown option 'chunksize': did you mean 'chunk_size'"):
        metric(*random_case(), chunksize=5)
    with pytest.raises(TypeError, match="unknown option 'x': there are "):
        metric(*random_case(), x=5)


@pytest.mark.parametrize("metric", CUTS)
def test_numpy_integers_arrays_and_tensors_of_cuts_are_cuts(metric):
    case = random_case()
    five = metric(*case, top_k=np.int64(5))
    assert five == metric(*case, top_k=5)
    if metric is not evaluation.evaluate:
        assert metric(*case, top_k=np.array([5, 6])).tolist() == metric(*case, top_k=[5, 6]).tolist()
        assert metric(*case, top_k=torch.tensor([5]))[0] == five


def test_values_that_are_no_way_to_leave_queries_out_are_refused():
    query, query_labels, codes, labels = random_case()
    with pytest.raises(TypeError, match="exclude_self must be a bool or a tensor"):
        evaluation.mean_average_precision(query, query_labels, codes, labels, exclude_self=list(range(12)))
    with pytest.raises(TypeError, match="ks must be a sequence"):
        evaluation.evaluate(query, query_labels, codes, labels, ks=5)
    with pytest.raises(ValueError, match="radius is an empty sequence"):
        evaluation.precision_within_radius(query, query_labels, codes, labels, radius=[])
    with pytest.raises(ValueError, match="top_k is an empty sequence"):
        evaluation.precision_recall_curve(query, query_labels, codes, labels, by="rank", top_k=[])


def test_the_old_name_of_map_definition_warns():
    with pytest.warns(DeprecationWarning, match="hybridhash.eval.MapDefinition"):
        assert evaluation.Definition is evaluation.MapDefinition


def test_odd_cuts_and_radii():
    query, query_labels, codes, labels = case = random_case()
    curve = evaluation.precision_recall_curve(*case, by="rank", top_k=[5, 10**20])
    assert curve.thresholds.tolist() == [5, 150]
    with pytest.raises(TypeError, match=r"ks must be a sequence of cuts, got 5: use ks=\(5,\)"):
        evaluation.evaluate(*case, ks=np.int64(5))
    for metric in (evaluation.precision_within_radius, evaluation.recall_within_radius):
        with pytest.raises(ValueError, match="radius is an empty sequence"):
            metric(*case, radius=[])
    want = evaluation.mean_average_precision(*case)
    assert evaluation.mean_average_precision(*case, exclude_self=None) == want
    with pytest.raises(ValueError, match="query_codes is on the meta device"):
        evaluation.mean_average_precision(query.to("meta"), query_labels, codes, labels)
