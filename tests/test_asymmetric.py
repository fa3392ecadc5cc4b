"""Real-valued queries against packed codes: the sums of the definition, ties by row, any length and order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hybridhash
from hybridhash import HashCodes, asymmetric, asymmetric_topk, hamming_topk, pack_codes
from hybridhash.asymmetric import RealQueries
from hybridhash.codes import MAX_BITS, binarize

# Both forms on the CPU: sums that are looked up by byte, and a product with unpacked bits.
SOME_QUERIES = (1, 3, 20)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


def _case(queries=3, items=200, bits=20, seed=0, repeated=True):
    """Queries on a grid, so that many scores tie; every database code occurs twice if ``repeated``."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randint(-9, 10, (queries, bits), generator=generator) / 8
    database = torch.randn(items, bits, generator=generator)
    if repeated:
        database[items // 2 :] = database[: items - items // 2]
    return query, database


def _naive(query, database, factors=None, metric="dot"):
    """Scores by the definition, in loops; sums are rounded once."""
    bits = query.shape[1]
    scores = []
    for q in query.double().tolist():
        row = []
        for item, z in enumerate(database.tolist()):
            score = math.fsum(value if entry > 0 else -value for value, entry in zip(q, z, strict=True))
            squared = bits
            if factors is not None:
                norm, alignment = factors[item].double().tolist()
                score *= norm / (alignment * math.sqrt(bits))
                squared = norm**2
            if metric == "euclidean":
                score = math.fsum(value**2 for value in q) + squared - 2 * score
            row.append(score)
        scores.append(row)
    return torch.tensor(scores, dtype=torch.float64).float()


def _ranked(scores, top_k, largest):
    order = scores.sort(dim=1, descending=largest, stable=True)
    return order.values[:, :top_k], order.indices[:, :top_k]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", ["dot", "euclidean"])
@pytest.mark.parametrize("queries", SOME_QUERIES)
@pytest.mark.parametrize("bits", [1, 7, 8, 13, 64, 130])
def test_scores_and_rows_are_those_of_the_definition(bits, queries, metric, device):
    query, database = _case(queries, bits=bits)
    want, order = _ranked(_naive(query, database, metric=metric), 50, metric == "dot")
    scores, rows = asymmetric_topk(query.to(device), database.to(device), 50, metric=metric)
    assert (scores.dtype, rows.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(scores.cpu(), want, rtol=0, atol=0)
    assert torch.equal(rows.cpu(), order)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(1, 40),
    queries=st.sampled_from(SOME_QUERIES),
    top_k=st.one_of(st.none(), st.integers(1, 40)),
    seed=st.integers(0, 99),
    metric=st.sampled_from(["dot", "euclidean"]),
)
def test_any_values_give_the_rounded_sums(bits, queries, top_k, seed, metric):
    query, database = _case(queries, 30, bits, seed)
    query = query * torch.randn(query.shape, generator=torch.Generator().manual_seed(seed)).exp()
    scores, rows = asymmetric_topk(query, HashCodes.from_codes(database), top_k, metric=metric)
    naive = _naive(query, database, metric=metric)
    want, _ = _ranked(naive, top_k, metric == "dot")
    rounding = {"rtol": 1e-6, "atol": 1e-10 * float(query.abs().max())}
    torch.testing.assert_close(scores, want, **rounding)
    torch.testing.assert_close(naive.gather(1, rows), scores, **rounding)


def test_the_longest_codes_are_exact():
    query, database = _case(9, 40, MAX_BITS)
    for some in (query, query[:2]):
        scores, rows = asymmetric_topk(some, database, None)
        want, order = _ranked(_naive(some, database), None, True)
        assert torch.equal(scores, want)
        assert torch.equal(rows, order)


def test_all_forms_and_places_give_equal_codes_the_same_score():
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(20, 100, generator=generator) * torch.randn(20, 1, generator=generator).exp()
    once = torch.randn(7, 100, generator=generator)
    database = once.repeat(5000, 1)
    scores, rows = asymmetric_topk(query, database, None)
    assert all(len(row.unique()) == 7 for row in scores)
    tied = scores[:, 1:] == scores[:, :-1]
    assert bool((rows[:, 1:] > rows[:, :-1])[tied].all())
    few = [asymmetric_topk(query[start : start + 3], database, 100) for start in range(0, 20, 3)]
    assert torch.equal(torch.cat([values for values, _ in few]), scores[:, :100])
    assert torch.equal(torch.cat([items for _, items in few]), rows[:, :100])


@pytest.mark.parametrize("queries", SOME_QUERIES)
@pytest.mark.parametrize("order", ["nearest first", "nearest last"])
def test_the_order_of_the_database_changes_no_score(queries, order):
    query = torch.randn(queries, 24, generator=torch.Generator().manual_seed(2))
    database = binarize(torch.randn(40_000, 24, generator=torch.Generator().manual_seed(3)))
    want = asymmetric_topk(query, database, 30)[0]
    arranged = database[(database @ query[0]).argsort(descending=order == "nearest first")]
    scores, rows = asymmetric_topk(query, arranged, 30)
    assert torch.equal(scores, want)
    torch.testing.assert_close((query[:, None] * arranged[rows]).sum(2), scores)


def test_signs_as_queries_rank_as_hamming_distances():
    query, database = (torch.randn(n, 19, generator=torch.Generator().manual_seed(n)) for n in (15, 3000))
    distances, want = hamming_topk(query, database, 100)
    scores, rows = asymmetric_topk(binarize(query), database, 100)
    assert torch.equal(rows, want)
    assert torch.equal(scores, 19 - 2 * distances.float())
    for integers in (binarize(query).to(torch.int8), binarize(query).numpy().astype(np.int64)):
        assert torch.equal(asymmetric_topk(integers, database, 100)[1], want)


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
@pytest.mark.parametrize("queries", SOME_QUERIES)
def test_factors_turn_scores_into_estimates_of_the_real_valued_codes(queries, metric):
    query, database = _case(queries, 60, 20)
    norm = database.norm(dim=1)
    factors = torch.stack([norm, database.abs().sum(1) / (20**0.5 * norm)], 1)
    codes = HashCodes.from_codes(database)
    object.__setattr__(codes, "factors", factors)
    scores, rows = asymmetric_topk(query, codes, 40, metric=metric)
    want, order = _ranked(_naive(query, database, factors, metric), 40, metric == "dot")
    torch.testing.assert_close(scores, want)
    assert torch.equal(rows, order)


def test_factors_estimate_a_code_of_equal_magnitudes_exactly():
    magnitude = torch.tensor([[0.5], [2.0], [3.0]])
    signs = binarize(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))
    query = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    factors = torch.cat([magnitude * 4, torch.ones(3, 1)], 1)
    keys = RealQueries(query, 16, "euclidean").keys(pack_codes(signs), factors)
    torch.testing.assert_close(keys, torch.cdist(query, magnitude * signs).square())


@pytest.mark.parametrize("scale", [2.0**-120, 2.0**-40, 2.0**60, 2.0**120])
def test_the_scale_of_a_query_changes_no_row(scale):
    query, database = torch.randn(9, 33).double(), torch.randn(500, 33)  # float32 would underflow
    scores, rows = asymmetric_topk(query, database, 40)
    scaled, same = asymmetric_topk(query * scale, database, 40)
    assert torch.equal(rows, same)
    assert torch.equal(scaled, scores * scale)


def test_a_query_of_zeros_ties_all_items():
    scores, rows = asymmetric_topk(torch.zeros(1, 12), torch.randn(50, 12), 20)
    assert not scores.any()
    assert rows.tolist() == [list(range(20))]


def test_forms_modes_and_inputs_change_nothing():
    query, database = torch.randn(9, 21), torch.randn(400, 21)
    before = query.clone()
    want = asymmetric_topk(query, database, 30)
    packed = pack_codes(database)
    for form in (database.numpy(), packed, packed.numpy(), HashCodes(packed, 21), binarize(database)):
        for got, expected in zip(asymmetric_topk(query.numpy(), form, 30), want, strict=True):
            assert torch.equal(got, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert torch.equal(asymmetric_topk(query, database, 30)[0], want[0])
    assert torch.equal(asymmetric_topk(query.clone().requires_grad_(), database, 30)[0], want[0])
    assert torch.equal(query, before)
    half = asymmetric_topk(query.bfloat16(), database, 30)
    assert torch.equal(half[0], asymmetric_topk(query.bfloat16().float(), database, 30)[0])
    assert hybridhash.asymmetric_topk is asymmetric_topk


@pytest.mark.parametrize("queries", [1, 15, 300])
def test_the_database_is_read_in_blocks(monkeypatch, queries):
    seen = []
    keys = RealQueries.keys

    def watched(self, packed, factors=None):
        seen.append((len(self), len(packed)))
        return keys(self, packed, factors)

    monkeypatch.setattr(RealQueries, "keys", watched)
    asymmetric_topk(torch.randn(queries, 32), torch.randn(50_000, 32), 5)
    assert sum(q * n for q, n in seen) == queries * 50_000
    # Of few queries torch works on a block in one thread: it shares more than 2^15 numbers between threads.
    assert max(q * n for q, n in seen) <= (2**15 if queries < asymmetric._FEW else asymmetric._PAIRS)


@pytest.mark.parametrize(
    ("query", "arguments", "error", "message"),
    [
        (torch.zeros(2, 1, dtype=torch.uint8), {}, TypeError, "query_codes are uint8, which means packed"),
        (np.zeros((2, 1), np.uint8), {}, TypeError, "or use hamming_topk"),
        (HashCodes.from_codes(torch.ones(2, 8)), {}, TypeError, "HashCodes, which hold only signs"),
        (torch.full((1, 8), math.nan), {}, ValueError, "query_codes has NaN in 8 of 8"),
        (torch.full((1, 8), math.inf), {}, ValueError, "must be finite.* got inf"),
        (torch.full((1, 8), 1e38), {}, ValueError, r"less than 3.4e38; got 8e\+38: normalise them"),
        (torch.ones(1, 7), {}, ValueError, "query_codes have 7 bits but database_codes have 8"),
        (torch.ones(0, 8), {}, ValueError, "query_codes is empty"),
        (torch.ones(8), {}, ValueError, r"query_codes must be \(N, bits\)"),
        ([[1.0]], {}, TypeError, "query_codes must be a tensor"),
        (torch.ones(1, 8), {"top_k": 0}, ValueError, "top_k must be >= 1, got 0: use None"),
        (torch.ones(1, 8), {"metric": "cosine"}, ValueError, "metric must be one of 'dot', 'euclidean'"),
    ],
)
def test_bad_input_is_refused(query, arguments, error, message):
    with pytest.raises(error, match=message):
        asymmetric_topk(query, torch.ones(3, 8), **{"top_k": 1, **arguments})


def test_bits_and_scores_beyond_float32_are_refused():
    query, database = torch.randn(2, 8), HashCodes.from_codes(torch.randn(5, 8))
    with pytest.raises(TypeError, match=r"query_codes are bool, which means bits, whose values are gone"):
        asymmetric_topk(query > 0, database, 2)
    # Infinite scores would tie, and come in the order of the rows.
    with pytest.raises(ValueError, match=r"scores of up to .* are too large for float32"):
        asymmetric_topk(query * 1e20, database, 2, metric="euclidean")
    assert asymmetric_topk(query * 1e20, database, 2)[0].isfinite().all()
    large = HashCodes(database.packed, 8, factors=torch.tensor([[3e38, 0.01]] * 5))
    with pytest.raises(ValueError, match="the largest norm of the database 3e"):
        asymmetric_topk(query, large, 2)


@pytest.mark.parametrize(
    "search", [lambda q, b: asymmetric_topk(q, b, 2), lambda q, b: hamming_topk(q, b, 2)]
)
def test_tensors_without_numbers_are_refused(search):
    query, database = torch.randn(2, 8), HashCodes.from_codes(torch.randn(5, 8))
    with pytest.raises(TypeError, match=r"query_codes must be a dense tensor, got torch.sparse_coo"):
        search(query.to_sparse(), database)
    with pytest.raises(ValueError, match="query_codes are on cpu but database_codes on meta"):
        search(query, database.to("meta"))
    with pytest.raises(ValueError, match="codes is on the meta device and holds no numbers"):
        hybridhash.pairs_within(database.to("meta"), 1)
