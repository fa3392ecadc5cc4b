"""Re-ranking against a full sort of distances, and the score of rankings against the metrics."""

from __future__ import annotations

import pytest
import torch

from hybridhash import eval as evaluation
from hybridhash.codes import hamming_topk
from hybridhash.eval import evaluate, evaluate_ranking, rerank
from tests.eval._oracles import random_case


def features(seed=0, queries=5, items=40, width=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(queries, width, generator=generator), torch.randn(items, width, generator=generator)


@pytest.mark.parametrize("distance", ["euclidean", "cosine", "dot"])
def test_reranking_everything_is_a_full_search(distance):
    query, database = features()
    if distance == "euclidean":
        literal = torch.cdist(query.double(), database.double())
    else:
        a, b = query.double(), database.double()
        if distance == "cosine":
            a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
        literal = float(distance == "cosine") - a @ b.T
    generator = torch.Generator().manual_seed(1)
    candidates = torch.stack([torch.randperm(40, generator=generator) for _ in range(5)])
    values, indices = rerank(candidates, query, database, distance=distance)
    assert torch.equal(indices, literal.argsort(dim=1))
    torch.testing.assert_close(values.double(), literal.sort(dim=1).values, rtol=1e-5, atol=1e-5)


def test_reranking_keeps_to_its_candidates_and_their_order_in_ties():
    query, database = features()
    database[11] = database[3]
    candidates = torch.tensor([[11, 3, -1, 20]] * 5)
    values, indices = rerank(candidates, query, database)
    assert bool((indices[:, -1] == -1).all())
    assert bool(values[:, -1].isinf().all())
    for row in range(5):
        found = indices[row].tolist()
        assert sorted(found[:3]) == [3, 11, 20]
        assert found.index(11) < found.index(3)
    assert torch.equal(rerank(candidates, query, database, top_k=2)[1], indices[:, :2])


def test_reranking_a_hamming_ball():
    query, _, codes, _ = random_case(seed=50)
    distances, indices = hamming_topk(query, codes, 150)
    pool = indices.masked_fill(distances > 2, -1)
    _, found = rerank(pool, query, codes)
    for row in range(len(query)):
        inside = indices[row][distances[row] <= 2].tolist()
        assert sorted(found[row][: len(inside)].tolist()) == sorted(inside)
        assert bool((found[row][len(inside) :] == -1).all())


def test_bad_candidates_and_features_are_refused():
    query, database = features()
    candidates = torch.zeros(5, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"0\.\.39 or -1, got 0\.\.40"):
        rerank(torch.tensor([[0, 40]] * 5), query, database)
    with pytest.raises(ValueError, match="row for each of 5 queries"):
        rerank(candidates[:4], query, database)
    with pytest.raises(TypeError, match=r"an integer tensor, got torch\.float32"):
        rerank(candidates.float(), query, database)
    with pytest.raises(ValueError, match="have 6 columns"):
        rerank(candidates, query[:, :6], database)
    with pytest.raises(ValueError, match="NaN or infinity"):
        rerank(candidates, query * torch.nan, database)
    with pytest.raises(ValueError, match="distance must be one of"):
        rerank(candidates, query, database, distance="l2")


@pytest.mark.parametrize("denominator", ["hits", "relevant"])
@pytest.mark.parametrize("labels", ["single", "multi"])
def test_the_score_of_a_stable_ranking_is_the_stable_report(denominator, labels):
    case = list(random_case(seed=51))
    if labels == "single":
        case[1], case[3] = case[1].byte().argmax(1), case[3].byte().argmax(1)
    _, indices = hamming_topk(case[0], case[2], 40)
    got = evaluate_ranking(indices, case[1], case[3], denominator=denominator, ks=(1, 5, 40, 100))
    want = evaluate(*case, top_k=40, ties="stable", denominator=denominator, ks=(1, 5, 40))
    assert set(got.metrics) == {name for name in want.metrics if not name.endswith("radius")}
    for name, value in got.metrics.items():
        assert value == pytest.approx(want[name], abs=1e-12), name
    assert got.bits is None
    assert "a given ranking" in str(got)


def test_missing_results_count_as_nothing_found():
    labels = torch.tensor([1, 0, 1, 1])
    report = evaluate_ranking(
        torch.tensor([[2, -1, 1, -1]]), torch.tensor([1]), labels, denominator="relevant"
    )
    assert report["map"] == pytest.approx(1 / 3)
    assert report["recall@1"] == pytest.approx(1 / 3)


def test_queries_are_left_out_of_their_own_rankings():
    query, query_labels, codes, labels = random_case(seed=52)
    rows = torch.tensor([5, 9, -1])
    _, indices = hamming_topk(codes[rows[:2]], codes, 150)
    indices = torch.cat([indices, hamming_topk(query[:1], codes, 150)[1]])
    three = torch.cat([labels[rows[:2]], query_labels[:1]])
    got = evaluate_ranking(indices, three, labels, exclude_self=rows)
    stable = evaluation.mean_average_precision(
        torch.cat([codes[rows[:2]], query[:1]]), three, codes, labels, ties="stable", exclude_self=rows
    )
    assert got["map"] == pytest.approx(stable.item(), abs=1e-12)


def test_bad_rankings_are_refused():
    labels, query_labels = torch.tensor([1, 0, 1, 1]), torch.tensor([1])
    with pytest.raises(ValueError, match="twice for the same query"):
        evaluate_ranking(torch.tensor([[0, 1, 0]]), query_labels, labels)
    with pytest.raises(ValueError, match=r"got 0\.\.4"):
        evaluate_ranking(torch.tensor([[0, 4]]), query_labels, labels)
    with pytest.raises(ValueError, match="only 2 ranks: search deeper"):
        evaluate_ranking(torch.tensor([[0, 1]]), query_labels, labels, top_k=3)
    with pytest.raises(ValueError, match="row for each of 1 queries"):
        evaluate_ranking(torch.tensor([[0, 1], [1, 0]]), query_labels, labels)


def test_arrays_give_what_tensors_give():
    generator = torch.Generator().manual_seed(5)
    query, database = torch.randn(4, 6, generator=generator), torch.randn(30, 6, generator=generator)
    candidates = torch.stack([torch.randperm(30, generator=generator)[:8] for _ in range(4)])
    want = rerank(candidates, query, database)
    got = rerank(candidates.numpy().astype("int16"), query.numpy(), database.numpy())
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    labels = torch.arange(30) % 3
    report = evaluate_ranking(want[1], labels[:4], labels, exclude_self=torch.arange(4))
    arrays = (want[1].numpy(), labels[:4].numpy(), labels.numpy())
    assert evaluate_ranking(*arrays, exclude_self=torch.arange(4).numpy()) == report


def test_a_candidate_that_is_found_twice_is_refused():
    database = torch.randn(5, 3, generator=torch.Generator().manual_seed(6))
    with pytest.raises(ValueError, match="candidates hold a database row twice for the same query"):
        rerank(torch.tensor([[2, 1, 2]]), database[:1], database)
    assert rerank(torch.tensor([[2, -1, -1]]), database[:1], database)[1].tolist() == [[2, -1, -1]]


def test_nothing_to_rank():
    database = torch.randn(5, 3, generator=torch.Generator().manual_seed(7))
    distances, indices = rerank(torch.zeros(0, 4, dtype=torch.long), database[:0], database)
    assert distances.shape == indices.shape == (0, 4)
    with pytest.raises(ValueError, match="at least one query and one database item, got labels of 0 and 5"):
        evaluate_ranking(torch.zeros(0, 4, dtype=torch.long), torch.zeros(0).long(), torch.arange(5))
    with pytest.raises(TypeError, match="candidates must be a tensor, got list: wrap it"):
        rerank([[1, 2]], database[:1], database)
