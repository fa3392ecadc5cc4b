"""Every metric with a cut, against the enumeration of all orders of the ties and other implementations."""

from __future__ import annotations

import inspect
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hybridhash.eval
from hybridhash import eval as evaluation
from hybridhash.codes import pack_codes
from tests.eval import _oracles as oracles
from tests.eval._oracles import random_case

TIES = ("expected", "stable", "best", "worst")
ITEMS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 0, 1, 1, 2, 3])), min_size=1, max_size=6)
METRICS = {
    "map hits": (evaluation.mean_average_precision, oracles.average_precision),
    "map relevant": (
        partial(evaluation.mean_average_precision, denominator="relevant"),
        partial(oracles.average_precision, denominator="relevant"),
    ),
    "weighted map hits": (evaluation.weighted_map, partial(oracles.average_precision, weighted=True)),
    "weighted map relevant": (
        partial(evaluation.weighted_map, denominator="relevant"),
        partial(oracles.average_precision, denominator="relevant", weighted=True),
    ),
    "precision": (evaluation.precision_at_k, oracles.precision),
    "recall": (evaluation.recall_at_k, oracles.recall),
    "hit rate": (evaluation.hit_rate_at_k, oracles.hit_rate),
    "reciprocal rank": (evaluation.mean_reciprocal_rank, oracles.reciprocal_rank),
    "acg": (evaluation.acg_at_k, oracles.average_cumulative_gain),
    "ndcg": (evaluation.ndcg_at_k, oracles.ndcg),
    "ndcg linear": (
        partial(evaluation.ndcg_at_k, gain="linear"),
        partial(oracles.ndcg, exponential=False),
    ),
}


def test_every_metric_with_a_cut_is_under_test():
    public = {
        name
        for name in hybridhash.eval.__all__
        if {"top_k", "aggregation"} <= set(_parameters(getattr(hybridhash.eval, name)))
    }
    tested = {getattr(metric, "func", metric).__name__ for metric, _ in METRICS.values()}
    assert public - tested <= {"precision_recall_curve"}


def _parameters(thing):
    return inspect.signature(thing).parameters if inspect.isfunction(thing) else ()


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.filterwarnings("ignore:all .* codes are the same")
@settings(max_examples=25, deadline=None)
@given(items=ITEMS, top_k=st.one_of(st.none(), st.integers(1, 7)))
def test_every_tie_rule_equals_the_enumeration_of_all_orders(name, items, top_k):
    metric, oracle = METRICS[name]
    distances, grades = [d for d, _ in items], [g for _, g in items]
    cut = min(top_k or len(items), len(items))
    want = oracles.over_orders(lambda ranked: oracle(ranked, cut), distances, grades)
    arguments = oracles.instance(distances, grades)
    for ties in TIES:
        got = metric(*arguments, top_k=top_k, ties=ties)
        assert got.item() == pytest.approx(want[ties], abs=1e-12), ties


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("labels", ["single", "multi"])
def test_best_bounds_expected_and_worst_and_stable_lies_between(name, labels):
    case = list(random_case())
    if labels == "single":
        case[1], case[3] = case[1].byte().argmax(1), case[3].byte().argmax(1)
    for top_k in (1, 7, 40, None):
        value = {ties: METRICS[name][0](*case, top_k=top_k, ties=ties, aggregation=None) for ties in TIES}
        for ties in ("expected", "stable"):
            assert bool((value["best"] >= value[ties] - 1e-12).all())
            assert bool((value["worst"] <= value[ties] + 1e-12).all())


@pytest.mark.parametrize("name", METRICS)
def test_neither_the_order_of_the_database_nor_a_mask_on_all_codes_moves_a_number(name):
    query, query_labels, codes, labels = random_case(seed=1)
    generator = torch.Generator().manual_seed(2)
    order = torch.randperm(len(codes), generator=generator)
    mask = torch.randint(2, (codes.shape[1],), generator=generator) * 2.0 - 1
    metric = partial(METRICS[name][0], top_k=[3, 30, None], aggregation=None)
    for ties in ("expected", "best", "worst"):
        want = metric(query, query_labels, codes, labels, ties=ties)
        shuffled = metric(query, query_labels, codes[order], labels[order], ties=ties)
        torch.testing.assert_close(shuffled, want, rtol=0, atol=1e-12)
    for ties in TIES:
        want = metric(query, query_labels, codes, labels, ties=ties)
        masked = metric(query * mask, query_labels, codes * mask, labels, ties=ties)
        assert torch.equal(masked, want)


@pytest.mark.parametrize("name", METRICS)
def test_several_cuts_equal_one_cut_at_a_time(name):
    case = random_case(seed=3)
    for ties in TIES:
        many = METRICS[name][0](*case, top_k=[5, 20, None], ties=ties)
        one = [METRICS[name][0](*case, top_k=k, ties=ties) for k in (5, 20, len(case[2]) + 9)]
        assert many.tolist() == pytest.approx([value.item() for value in one], abs=1e-12)


def test_real_packed_and_class_id_inputs_give_the_same_numbers():
    query, query_labels, codes, labels = random_case(seed=4, bits=19)
    query_ids, ids = query_labels.byte().argmax(1), labels.byte().argmax(1)
    classes = torch.eye(5)
    for metric, _ in METRICS.values():
        want = metric(query, query_ids, codes, ids, top_k=25)
        assert metric(query, classes[query_ids], codes, ids, top_k=25) == want
        assert metric(query.sign().short(), classes[query_ids], codes, classes[ids], top_k=25) == want
        packed = metric(pack_codes(query), query_ids, pack_codes(codes), ids, top_k=25, bits=19)
        assert packed == want
        assert metric(pack_codes(query), query_ids, codes, ids, top_k=25) == want


def test_linear_ndcg_with_ties_equals_scikit_learn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    query, query_labels, codes, labels = random_case(seed=5)
    shared = (query_labels.float() @ labels.float().T).numpy()
    scores = ((query > 0).float() * 2 - 1) @ ((codes > 0).float() * 2 - 1).T
    for k in (1, 10, 60, None):
        want = sklearn_metrics.ndcg_score(shared, scores.numpy(), k=k)
        got = evaluation.ndcg_at_k(query, query_labels, codes, labels, top_k=k, gain="linear")
        assert got.item() == pytest.approx(want, abs=1e-12)


def test_average_precision_without_ties_equals_scikit_learn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    distances = np.arange(40)
    grades = np.random.default_rng(0).integers(0, 2, 40)
    codes = torch.ones(40, 40)
    for item in range(40):
        codes[item, :item] = -1
    got = evaluation.mean_average_precision(
        torch.ones(1, 40), torch.tensor([1]), codes, torch.from_numpy(grades), denominator="relevant"
    )
    assert got.item() == pytest.approx(sklearn_metrics.average_precision_score(grades, -distances), abs=1e-12)


def test_numbers_equal_torchmetrics_where_no_ties_matter():
    retrieval = pytest.importorskip("torchmetrics.retrieval")
    bits, items = 40, 30
    generator = torch.Generator().manual_seed(6)
    order = torch.stack([torch.randperm(items, generator=generator) for _ in range(4)])
    distances = order  # a permutation: no ties
    relevant = torch.rand(4, items, generator=generator) < 0.4
    for query in range(4):
        codes = torch.ones(items, bits)
        for item in range(items):
            codes[item, : distances[query, item]] = -1
        arguments = (torch.ones(1, bits), torch.tensor([1]), codes, relevant[query].long())
        scores = (bits + 1 - distances[query]).float()
        index = torch.zeros(items, dtype=torch.long)
        for oracle, metric in (
            (retrieval.RetrievalMAP(), partial(evaluation.mean_average_precision, denominator="relevant")),
            (retrieval.RetrievalPrecision(top_k=5), partial(evaluation.precision_at_k, top_k=5)),
            (retrieval.RetrievalRecall(top_k=5), partial(evaluation.recall_at_k, top_k=5)),
            (retrieval.RetrievalHitRate(top_k=2), partial(evaluation.hit_rate_at_k, top_k=2)),
            (retrieval.RetrievalMRR(), evaluation.mean_reciprocal_rank),
            (retrieval.RetrievalNormalizedDCG(top_k=9), partial(evaluation.ndcg_at_k, top_k=9)),
        ):
            want = oracle(scores, relevant[query], indexes=index)
            assert metric(*arguments).item() == pytest.approx(want.item(), abs=1e-6)


def test_first_hit_deep_in_a_wide_tie_equals_the_exact_mean():
    # 5,000 tied items, 3 of them relevant: P(first hit at rank i) = C(5000 - i, 2) / C(5000, 3).
    codes, ids = torch.ones(5001, 4), torch.zeros(5001, dtype=torch.long)
    ids[:3] = 1
    codes[-1] = -1
    i = np.arange(1, 4999, dtype=np.float64)
    chance = (5000 - i) * (4999 - i) / 2 / (5000 * 4999 * 4998 / 6)
    arguments = (torch.ones(1, 4), torch.tensor([1]), codes, ids)
    got = evaluation.mean_reciprocal_rank(*arguments)
    assert got.item() == pytest.approx(float((chance / i).sum()), rel=1e-11)
    hit = evaluation.hit_rate_at_k(*arguments, top_k=1000)
    assert hit.item() == pytest.approx(float(chance[:1000].sum()), rel=1e-11)


@pytest.mark.parametrize("ties", ["expected", "stable", "best", "worst"])
def test_ndcg_of_more_labels_than_a_double_has_powers_of_two(ties):
    generator = torch.Generator().manual_seed(70)
    query, codes = torch.randn(4, 8, generator=generator), torch.randn(20, 8, generator=generator)
    everything = torch.ones(4, 1100, dtype=torch.bool), torch.ones(20, 1100, dtype=torch.bool)
    assert evaluation.ndcg_at_k(query, everything[0], codes, everything[1], ties=ties) == 1.0

    # Items share 1,090 to 1,099 labels: an item above another by s gains 2^s times as much.
    shared = torch.randint(1090, 1100, (20,), generator=generator)
    labels = torch.arange(1100) < shared[:, None]
    got = evaluation.ndcg_at_k(query, everything[0], codes, labels, ties=ties)
    few = torch.arange(10) <= (shared - 1090)[:, None]  # the same up to the small "- 1" of 2^s - 1
    near = evaluation.ndcg_at_k(query, torch.ones(4, 10, dtype=torch.bool), codes, few, ties=ties)
    assert got == pytest.approx(near.item(), abs=0.05)


def test_a_query_with_few_shared_labels_keeps_its_ndcg_beside_one_with_many():
    generator = torch.Generator().manual_seed(71)
    query, codes = torch.randn(2, 8, generator=generator), torch.randn(20, 8, generator=generator)
    labels = torch.zeros(20, 1200, dtype=torch.bool)
    labels[:10, :3] = torch.rand(10, 3, generator=generator) < 0.5
    labels[10:, 3:] = True
    query_labels = torch.zeros(2, 1200, dtype=torch.bool)
    query_labels[0, :3] = True
    query_labels[1, 3:] = True
    both = evaluation.ndcg_at_k(query, query_labels, codes, labels, aggregation=None)
    alone = evaluation.ndcg_at_k(query[:1], query_labels[:1, :3], codes, labels[:, :3], aggregation=None)
    assert both[0] == alone[0] > 0
