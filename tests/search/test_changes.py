"""Indexes that change: remove, contains, string ids, search among some ids, and equal codes."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridhash import HashCodes, hamming_distance, hamming_topk
from hybridhash.losses import hash_centers
from hybridhash.search import FaissIndex, MilvusIndex
from hybridhash.search.ids import name_numbers
from hybridhash.search.sorted_pairs import SortedPairs
from tests.search._codes import needs_lite, recall, trained_codes
from tests.search._codes import random_codes as codes

faiss = pytest.importorskip("faiss")

KINDS = ["flat", "ivf", "hnsw", "multihash"]
# Options with which each kind looks at all codes.
EXACT = {
    "flat": {},
    "ivf": {"nlist": 4, "nprobe": 4},
    "hnsw": {},
    "multihash": {"hash_bits": 4, "nhash": 6, "nflip": 4},
}
COLLECTIONS = (f"changes_{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    return tmp_path_factory.mktemp("milvus") / "codes.db"


@pytest.fixture(params=[*KINDS, pytest.param("milvus", marks=needs_lite)])
def index(request, lite):
    """An empty, exact index of 24 bits of every kind."""
    if request.param == "milvus":
        pytest.importorskip("pymilvus")
        return MilvusIndex(lite, next(COLLECTIONS), 24, batch_size=50)
    index = FaissIndex(24, request.param, **EXACT[request.param])
    if request.param == "ivf":
        index.train(codes(200, seed=9))
    return index


def _exact(query, database, top_k):
    """Distances and ids of an exact search, ties by id."""
    order = database.ids.argsort()
    distances, rows = hamming_topk(query, database[order], top_k)
    return distances, database.ids[order][rows]


# Remove -----------------------------------------------------------------------------------------------------


def test_removed_codes_are_not_found_and_all_others_are(index):
    database = HashCodes.from_codes(codes(120, seed=1), ids=torch.randperm(500)[:120])
    index.add(database)
    query = codes(5)
    rest = database
    for _ in range(4):  # the last times, more are removed than left
        index.remove(rest.ids[:25])
        rest = rest[25:]
        assert len(index) == len(rest)
        for top_k in (1, 15, None):
            distances, _ = _exact(query, rest, top_k)
            found_distances, found_ids = index.search(query, top_k)
            assert torch.equal(found_distances, distances)
            of_ids = dict(zip(rest.ids.tolist(), hamming_distance(query, rest).T, strict=True))
            for row, found in enumerate(found_ids.tolist()):
                assert [int(of_ids[number][row]) for number in found] == distances[row].tolist()
        limits, _, ids = index.range_search(query, 8)
        within = hamming_distance(query, rest) <= 8
        assert limits.diff().tolist() == within.sum(1).tolist()
        for row, (start, stop) in enumerate(itertools.pairwise(limits)):
            assert sorted(ids[start:stop].tolist()) == sorted(rest.ids[within[row]].tolist())


def test_an_id_that_was_removed_can_be_added_again(index):
    index.add(HashCodes.from_codes(codes(9, seed=1), ids=torch.arange(9)))
    index.remove([4, 2])
    assert index.contains([4, 2, 3]).tolist() == [False, False, True]
    index.add(HashCodes.from_codes(codes(1, seed=2), ids=torch.tensor([4])))
    assert index.search(codes(1, seed=2), 1)[1].item() == 4
    assert (len(index), index.contains([4, 2]).tolist()) == (8, [True, False])


def test_ids_that_cannot_be_removed_raise_and_remove_nothing(index):
    index.add(HashCodes.from_codes(codes(9, seed=1), ids=torch.arange(9)))
    with pytest.raises(ValueError, match="does not hold 2 of these 3 ids, 77, 99: nothing was removed"):
        index.remove([77, 3, 99])
    with pytest.raises(ValueError, match="ids must be >= 0, got -2"):
        index.remove(torch.tensor([-2]))
    with pytest.raises(TypeError, match=r"must be a list of str, got the str .a\.jpg."):
        index.remove("a.jpg")
    assert len(index) == 9


def test_an_id_is_removed_once():
    index = FaissIndex(24)
    index.add(codes(9))
    with pytest.raises(ValueError, match="give each id once"):
        index.remove([3, 3])
    assert len(index) == 9


def test_an_index_of_which_all_was_removed_is_empty(index):
    index.add(codes(9, seed=1))
    index.remove(range(9))
    assert len(index) == 0
    with pytest.raises(ValueError, match="the index is empty"):
        index.search(codes(1), 1)
    index.add(HashCodes.from_codes(codes(3, seed=2), ids=torch.arange(3)))
    assert (index.search(codes(3, seed=2), 1)[0] == 0).all()


@settings(max_examples=30, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["flat", "hnsw", "ivf"]))
def test_any_order_of_adding_and_removing_leaves_the_codes_that_a_dict_would(data, kind):
    index = FaissIndex(24, kind, **EXACT[kind])
    if kind == "ivf":
        index.train(codes(50, seed=9))
    held = {}
    pool = HashCodes.from_codes(codes(12, seed=1))
    for _ in range(data.draw(st.integers(1, 15))):
        ids = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=6, unique=True))
        new = [number for number in ids if number not in held]
        old = [number for number in ids if number in held]
        assert index.contains(ids).tolist() == [number in held for number in ids]
        if new:
            rows = [data.draw(st.integers(0, 11)) for _ in new]
            index.add(pool[rows], ids=new)
            held.update(zip(new, rows, strict=True))
        if old:
            index.remove(old)
            for number in old:
                del held[number]
        assert len(index) == len(held)
        if held:
            ids = torch.tensor(sorted(held))
            database = HashCodes(pool[[held[number] for number in ids.tolist()]].packed, 24, ids=ids)
            distances, found = index.search(pool[:3], None)
            assert torch.equal(distances, hamming_topk(pool[:3], database, None)[0])
            assert all(sorted(row) == ids.tolist() for row in found.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_removals_are_saved_and_numbers_are_not_given_again(kind, tmp_path):
    index = FaissIndex(24, kind, **EXACT[kind])
    index.add(codes(100, seed=1))
    index.remove([99, 5])
    index.save(tmp_path)
    loaded = FaissIndex.load(tmp_path)
    assert len(loaded) == 98
    loaded.add(codes(1, seed=3))
    assert loaded.contains([99, 5, 100]).tolist() == [False, False, True]
    assert 5 not in loaded.search(codes(3), None)[1]


# Ids --------------------------------------------------------------------------------------------------------


def test_string_ids_are_given_back(index):
    names = [f"cats/{number} ä.jpg" for number in range(120)]
    database = codes(120, seed=1)
    index.add(database, ids=names)
    distances, ids = index.search(database, 1)
    assert index.names(ids) == [[name] for name in names]
    assert (distances == 0).all()
    assert index.contains(["cats/3 ä.jpg", "dogs/3.jpg"]).tolist() == [True, False]
    index.remove(names[:60])
    assert index.contains(names).tolist() == [False] * 60 + [True] * 60
    assert index.names(index.search(database[60:], 1)[1]) == [[name] for name in names[60:]]
    assert index.names(torch.tensor([[-1]])) == [[None]]
    with pytest.raises(ValueError, match=r"does not hold 1 of these 1 ids, cats/0 ä\.jpg"):
        index.remove(names[:1])
    with pytest.raises(ValueError, match="has no name"):
        index.names(torch.tensor([5]))


@pytest.mark.parametrize("kind", KINDS)
def test_string_ids_are_saved(kind, tmp_path):
    index = FaissIndex(24, kind, **EXACT[kind])
    names = [f"{number}.jpg" for number in range(50)]
    index.add(codes(50, seed=1), ids=names)
    index.remove(["7.jpg"])
    index.save(tmp_path)
    loaded = FaissIndex.load(tmp_path)
    assert loaded.names(loaded.search(codes(50, seed=1)[8:], 1)[1]) == [[name] for name in names[8:]]
    with pytest.raises(ValueError, match=r"holds 1 of these 2 ids already, 9\.jpg"):
        loaded.add(codes(2), ids=["x", "9.jpg"])


def test_strings_and_numbers_are_not_mixed_up():
    strings, numbers = FaissIndex(24), FaissIndex(24)
    strings.add(codes(1), ids=["a"])
    numbers.add(codes(1))
    with pytest.raises(ValueError, match="the index has strings as ids: give these codes ids= of str"):
        strings.add(codes(1))
    for call in (
        lambda: numbers.add(codes(1), ids=["a"]),
        lambda: numbers.contains(["a"]),
        lambda: numbers.remove(["a"]),
        lambda: numbers.search(codes(1), 1, among=["a"]),
    ):
        with pytest.raises(ValueError, match="the index has numbers as ids, got the str 'a': give numbers"):
            call()


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (["a", "b", "a"], ValueError, "1 ids occur more than once, a: each code needs its own"),
        (["a", "b"], ValueError, "ids must be one for each of the 3 codes, got 2"),
        (["a", 5, "c"], TypeError, "all str or all integers, got 5 among str"),
        ([5, "a", 3], TypeError, "an id must be an int"),
        ([5, -1, 3], ValueError, "an id must be 0 to"),
        ("abc", TypeError, "must be a list of str, got the str 'abc'"),
        (torch.tensor([0.5, 1, 2]), TypeError, "ids must be integers, got torch.float32"),
    ],
)
def test_ids_that_are_no_ids_raise(index, ids, error, message):
    with pytest.raises(error, match=message):
        index.add(codes(3), ids=ids)
    assert len(index) == 0


def test_ids_that_are_given_replace_those_of_the_codes(index):
    index.add(HashCodes.from_codes(codes(3), ids=torch.arange(3)), ids=[10, 11, 12])
    assert index.contains([0, 10]).tolist() == [False, True]


def test_strings_have_the_same_number_everywhere():
    sha256_of_nothing = 0xE3B0C44298FC1C14  # its first 64 bits, as FIPS 180 gives them
    assert name_numbers([""]).tolist() == [sha256_of_nothing >> 1]


@needs_lite
def test_milvus_refuses_strings_with_the_number_of_another(lite, monkeypatch):
    pytest.importorskip("pymilvus")
    index = MilvusIndex(lite, next(COLLECTIONS), 24)
    index.add(codes(1), ids=["a"])
    monkeypatch.setattr("hybridhash.search.ids.name_numbers", lambda names: name_numbers(["a"] * len(names)))
    with pytest.raises(ValueError, match="has 'a' under the number of the id 'b': rename one"):
        index.add(codes(1, seed=1), ids=["b"])
    with pytest.raises(ValueError, match="must have 1 to 4096 bytes"):
        index.add(codes(1, seed=1), ids=["x" * 5000])
    assert index.names(index.search(codes(1), 1)[1]) == [["a"]]


# Search among some ids --------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 40, None])
def test_a_search_among_ids_is_exact(index, top_k):
    database = HashCodes.from_codes(codes(300, seed=1), ids=torch.randperm(900)[:300])
    index.add(database)
    index.remove(database.ids[:50])
    allowed = torch.cat([database.ids[:120], torch.tensor([1000, 1001])])  # removed, held, and unknown ones
    query, chosen = codes(5), database[50:120]
    distances, ids = index.search(query, top_k, among=allowed)
    exact_distances, exact_ids = _exact(query, chosen, top_k)
    assert torch.equal(distances, exact_distances)
    assert set(ids.flatten().tolist()) <= set(chosen.ids.tolist())
    if top_k is None:
        assert torch.equal(ids, exact_ids)
    limits, _, ids = index.range_search(query, 9, among=allowed)
    within = hamming_distance(query, chosen) <= 9
    for row, (start, stop) in enumerate(itertools.pairwise(limits)):
        assert sorted(ids[start:stop].tolist()) == sorted(chosen.ids[within[row]].tolist())


def test_a_search_among_no_ids_finds_nothing(index):
    index.add(codes(9, seed=1))
    for among in ([], [77]):
        distances, ids = index.search(codes(3), 5, among=among)
        assert distances.shape == ids.shape == (3, 0)
        assert (distances.dtype, ids.dtype) == (torch.int16, torch.int64)
        assert index.range_search(codes(3), 24, among=among)[0].tolist() == [0, 0, 0, 0]


def test_a_search_among_the_images_of_a_class(index):
    database = HashCodes.from_codes(codes(90, seed=1), torch.arange(90) % 3, torch.arange(90))
    index.add(database)
    _, ids = index.search(codes(4), 10, among=database.ids[database.labels == 2])
    assert (database.labels[ids] == 2).all()


# Equal codes ------------------------------------------------------------------------------------------------


def _around_centers(rows, seed, flip):
    """Codes at 100 centers of classes, each bit flipped with a probability."""
    centers = hash_centers(100, 64, generator=torch.Generator().manual_seed(0)).float()
    generator = torch.Generator().manual_seed(seed)
    signs = centers[torch.randint(100, (rows,), generator=generator)]
    return torch.where(torch.rand(signs.shape, generator=generator) < flip, -signs, signs)


@pytest.mark.parametrize(("flip", "scanned"), [(0.0, 1 << 16), (0.02, 0), (0.02, 1 << 16)])
def test_a_graph_finds_codes_of_which_many_are_equal(flip, scanned, monkeypatch):
    monkeypatch.setattr("hybridhash.search.faiss_graph._SCANNED", scanned)
    query, database = _around_centers(100, 2, flip), _around_centers(20_000, 1, flip)
    index = FaissIndex(64, "hnsw")
    for part in database.split(3000):
        index.add(part)
    distances, ids = index.search(query, 100)
    assert recall(distances, hamming_topk(query, database, 100)[0]) >= 0.999
    assert torch.equal(hamming_distance(query, database).gather(1, ids), distances)
    assert all(len(row.unique()) == 100 for row in ids)
    limits, _, _ = index.range_search(query, 2)
    assert limits[-1] >= 0.999 * (hamming_distance(query, database) <= 2).sum()


def test_a_graph_of_many_different_codes_is_walked(monkeypatch):
    monkeypatch.setattr("hybridhash.search.faiss_graph._SCANNED", 0)
    query, database = trained_codes()
    exact, _ = hamming_topk(query, database, 100)
    index = FaissIndex(64, "hnsw")
    index.add(database)
    assert recall(index.search(query, 100)[0], exact) >= 0.98


def test_a_graph_of_an_older_version_is_built_again(tmp_path):
    database = HashCodes.from_codes(_around_centers(5000, 1, 0.0))
    graph = faiss.IndexBinaryIDMap(faiss.IndexBinaryHNSW(64, 32))
    graph.add_with_ids(database.packed.numpy(), 2 * np.arange(5000))
    faiss.write_index_binary(graph, str(tmp_path / "index-0123456789abcdef.faiss"))
    manifest = {
        "format": "hybridhash.search",
        "version": "2",
        "backend": "faiss",
        "file": "index-0123456789abcdef.faiss",
        "bytes": (tmp_path / "index-0123456789abcdef.faiss").stat().st_size,
        "count": 5000,
        "bits": 64,
        "kind": "hnsw",
        "model_id": None,
        "options": {"links": 32, "ef_construction": 80, "ef_search": 128},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    index = FaissIndex.load(tmp_path)
    query = _around_centers(50, 2, 0.0)
    distances, ids = index.search(query, 30)
    assert torch.equal(distances, hamming_topk(query, database, 30)[0])
    assert (ids % 2 == 0).all()


# Cost -------------------------------------------------------------------------------------------------------


def test_adding_one_pair_at_a_time_sorts_each_a_logarithmic_number_of_times():
    pairs = SortedPairs()
    numbers = np.random.default_rng(0).permutation(4096)
    for row, number in enumerate(numbers):
        pairs.add(np.array([number]), np.array([row]))
    assert pairs.merged <= 4096 * (1 + np.log2(4096))
    assert len(pairs._levels) <= np.log2(4096) + 1
    positions, rows = pairs.find(np.arange(4096))
    assert (numbers[rows] == positions).all()
    assert sorted(positions.tolist()) == list(range(4096))


@pytest.mark.parametrize("kind", KINDS)
def test_adding_a_few_ids_to_many_looks_at_few(kind, monkeypatch):
    """The ids that are compared when two codes go between those of a large index are O(log n)."""
    index = FaissIndex(24, kind)
    ids = 3 * np.random.default_rng(0).permutation(20_000)
    index.add(codes(20_000, seed=1), ids=torch.from_numpy(ids))
    index.add(codes(1), ids=[1])  # fills the lookup table
    before = index._held.merged
    for number in range(50):
        index.add(codes(1), ids=[3 * number + 2])
    assert index._held.merged - before <= 50 * (1 + np.log2(20_050))
