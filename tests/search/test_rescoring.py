"""Search by the real values of queries: candidates by Hamming distance, ranked by inner products."""

import inspect
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridhash import HashCodes, hamming_distance, pack_codes
from hybridhash.codes import MAX_BITS
from hybridhash.search import FaissIndex, MilvusIndex, SearchIndex
from tests.search._codes import needs_lite
from tests.search._codes import random_codes as codes

pytest.importorskip("faiss")

# Options with which each kind looks at all codes.
KINDS = {
    "flat": {},
    "ivf": {"nlist": 4, "nprobe": 4},
    "hnsw": {},
    "multihash": {"hash_bits": 1, "nhash": 1, "nflip": 1},
}
NAMES = (f"collection_{number}" for number in itertools.count())


@pytest.fixture(params=[*KINDS, pytest.param("milvus", marks=needs_lite)])
def make(request, tmp_path_factory):
    """Make an index of some bits, of each kind."""
    if request.param != "milvus":
        return lambda bits: FaissIndex(bits, request.param, **KINDS[request.param])
    pytest.importorskip("pymilvus")
    file = tmp_path_factory.mktemp("milvus") / "codes.db"
    return lambda bits: MilvusIndex(file, next(NAMES), bits)


def products(query, database):
    """The inner products of queries with the signs of codes, float64 ``(Nq, Nd)``."""
    return query.double() @ torch.where(database > 0, 1.0, -1.0).double().T


def ranked(scores, ids, top_k):
    """The candidates ``ids (Nq, candidates)`` with the largest scores ``(Nq, Nd)``, equal ones by id."""
    rows = []
    for row, candidates in zip(scores, ids.tolist(), strict=True):
        best = sorted((id for id in candidates if id >= 0), key=lambda id: (-row[id].item(), id))
        rows.append(best[:top_k])
    return rows


def check(query, database, candidates, scores, ids):
    """Check a ranking, given a search by distance for as many results as there were candidates.

    Of codes at the distance of the last candidate any may be one.
    """
    every, distances = products(query, database), hamming_distance(query, database)
    assert torch.equal(scores, every.gather(1, ids).float())
    farthest = distances.gather(1, candidates).amax(1)
    assert (distances.gather(1, ids) <= farthest[:, None]).all()
    for row, found in enumerate(ids.tolist()):
        surely = [id for id in candidates[row].tolist() if distances[row, id] < farthest[row]]
        assert ranked(every[row : row + 1], torch.tensor([sorted({*surely, *found})]), len(found)) == [found]


@pytest.mark.parametrize("rescore", [2, 5])
def test_candidates_by_distance_are_ranked_by_inner_products(make, rescore):
    query, database = codes(7, 24), codes(400, 24, seed=1)
    index = make(24)
    index.add(database)
    _, candidates = index.search(query, 10 * rescore)
    scores, ids = index.search(query, 10, rescore=rescore)
    assert (scores.dtype, ids.dtype, ids.shape) == (torch.float32, torch.int64, (7, 10))
    check(query, database, candidates, scores, ids)


@pytest.mark.parametrize("bits", [1, 13, 64, MAX_BITS])
def test_enough_candidates_give_the_exact_ranking_for_every_length(make, bits):
    query, database = codes(5, bits), codes(60, bits, seed=1)
    index = make(bits)
    index.add(database)
    scores, ids = index.search(query, 20, rescore=3)
    every = products(query, database).float()
    assert ids.tolist() == ranked(every, torch.arange(60).repeat(5, 1), 20)
    assert torch.equal(scores, every.gather(1, ids))


def test_equal_codes_have_equal_scores_and_come_by_id(make):
    """Also if a processor adds their products in another order."""
    query, one = codes(3, 61), codes(1, 61, seed=1)
    index = make(61)
    order = torch.randperm(101, generator=torch.Generator().manual_seed(0))
    index.add(one.repeat(101, 1), ids=order)
    scores, ids = index.search(query, 101, rescore=2)
    assert ids.tolist() == [list(range(101))] * 3
    assert (scores == scores[:, :1]).all()


def test_removed_codes_are_no_candidates(make):
    query, database = codes(4, 24), codes(300, 24, seed=1)
    index = make(24)
    index.add(database)
    _, nearest = index.search(query, 20)
    index.remove(nearest.unique())
    _, candidates = index.search(query, 20)
    scores, ids = index.search(query, 5, rescore=4)
    assert not set(ids.flatten().tolist()) & set(nearest.flatten().tolist())
    check(query, database, candidates, scores, ids)


def test_strings_as_ids_and_a_choice_of_them(make):
    query, database = codes(3, 24), codes(100, 24, seed=1)
    index = make(24)
    index.add(database, ids=[f"{row}.jpg" for row in range(100)])
    chosen = [f"{row}.jpg" for row in range(40, 80)]
    scores, ids = index.search(query, 8, rescore=5, among=[*chosen, "unknown.jpg"])
    every = products(query, database)[:, 40:80]
    expected = every.topk(8)
    assert torch.equal(scores, expected.values.float())
    assert index.names(ids) == [[f"{40 + row}.jpg" for row in rows] for rows in expected.indices.tolist()]
    scores, ids = index.search(query, 8, rescore=5, among=["unknown.jpg"])
    assert (scores.shape, scores.dtype, ids.shape) == ((3, 0), torch.float32, (3, 0))


def test_what_an_approximate_index_does_not_find_has_no_score():
    index = FaissIndex(32, "multihash", nflip=0)
    index.add(torch.cat([torch.ones(2, 32), -torch.ones(3, 32)]))
    query = torch.full((1, 32), 0.5)
    scores, ids = index.search(query, 4, rescore=2)
    assert ids.tolist() == [[0, 1, -1, -1]]
    assert scores.tolist() == [[16.0, 16.0, -torch.inf, -torch.inf]]


def test_it_never_finds_less_than_the_distance_alone(make):
    query, database = codes(20, 32), codes(500, 32, seed=1)
    index = make(32)
    index.add(database)
    every, (_, by_distance) = products(query, database), index.search(query, 10)
    scores, _ = index.search(query, 10, rescore=4)
    assert (scores >= every.gather(1, by_distance).sort(descending=True).values.float()).all()
    assert scores.mean() > every.gather(1, by_distance).mean()


def test_without_it_the_values_of_a_query_do_not_count(make):
    query, database = codes(3, 24), codes(50, 24, seed=1)
    index = make(24)
    index.add(database)
    for same in (query.sign(), pack_codes(query), HashCodes.from_codes(query)):
        for one, other in zip(index.search(same, 9), index.search(query, 9, rescore=1), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("query", "rescore", "error", "message"),
    [
        (pack_codes(codes(2)), 4, TypeError, "rescore=4 ranks by the real values.*packed codes have only"),
        (pack_codes(codes(2)).numpy(), 4, TypeError, "packed codes have only their signs"),
        (HashCodes.from_codes(codes(2)), 2, TypeError, "HashCodes have only their signs: give the outputs"),
        (codes(2) / 0, 2, ValueError, "rescore=2 needs finite queries.* got inf"),
        (codes(2).double() * 1e40, 2, ValueError, r"less than 3.4e38, got \d.*e\+41: check"),
        (codes(2), 0, ValueError, "rescore must be >= 1, got 0"),
        (codes(2), 2.5, TypeError, "rescore must be an int"),
        (codes(2, 16), 2, ValueError, "codes have 16 bits, but the index holds codes of 24"),
    ],
)
def test_queries_that_cannot_be_ranked_are_refused(make, query, rescore, error, message):
    index = make(24)
    index.add(codes(5))
    with pytest.raises(error, match=message):
        index.search(query, 1, rescore=rescore)


def test_arrays_and_other_dtypes_are_queries_too():
    query, database = codes(4, 24), codes(80, 24, seed=1)
    index = FaissIndex(24)
    index.add(database)
    scores, ids = index.search(query, 5, rescore=16)
    frozen = query.numpy().copy()
    frozen.flags.writeable = False
    for same in (frozen, query.double(), query.clone().requires_grad_(), query * 1e-30, query * 1e30):
        assert torch.equal(index.search(same, 5, rescore=16)[1], ids)
    signs = torch.where(query > 0, 1, -1)
    scores, ids = index.search(signs, 80, rescore=2)
    distances, _ = index.search(signs, 80)
    assert torch.equal(scores, (24 - 2 * distances).float())


@needs_lite
def test_more_candidates_than_milvus_gives_are_refused(tmp_path):
    index = MilvusIndex(tmp_path / "codes.db", "photos", 8)
    index.add(torch.ones(17_000, 8))
    with pytest.raises(ValueError, match=r"top_k=5000 with rescore=4 asks for 17,000 results.* 16,384"):
        index.search(codes(1, 8), 5000, rescore=4)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 6), st.integers(2, 4))
def test_any_sizes(seed, size, top_k, rescore):
    query, database = codes(2, 9, seed=seed), codes(size, 9, seed=seed + 1)
    index = FaissIndex(9)
    index.add(database)
    _, candidates = index.search(query, rescore * top_k)
    _, ids = index.search(query, top_k, rescore=rescore)
    assert ids.tolist() == ranked(products(query, database).float(), candidates, top_k)


@pytest.mark.parametrize("index", [FaissIndex, MilvusIndex])
def test_every_index_takes_the_arguments_of_the_interface(index):
    wanted = inspect.signature(SearchIndex.search).parameters
    given = inspect.signature(inspect.unwrap(index.search)).parameters
    assert [(p.name, p.kind, p.default) for p in given.values()] == [
        (p.name, p.kind, p.default) for p in wanted.values()
    ]


def test_numpy_integers_count_and_bits_are_refused():
    pytest.importorskip("faiss")
    index = FaissIndex(24)
    index.add(codes(20))
    expected = index.search(codes(2), 3, rescore=4)
    for got, wanted in zip(index.search(codes(2), 3, rescore=np.int64(4)), expected, strict=True):
        assert torch.equal(got, wanted)
    with pytest.raises(TypeError, match=r"rescore=4 .* bool codes have only their signs"):
        index.search(codes(2) > 0, 3, rescore=4)
    with pytest.raises(TypeError, match="ids must be a list or a tensor, got 3: put it into a list"):
        index.search(codes(2), 3, among=3)
