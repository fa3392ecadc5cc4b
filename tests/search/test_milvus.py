"""Milvus: the real engine in a file; what it takes and refuses."""

import itertools
import json
import re
from importlib import metadata

import pytest
import torch

from hybridhash import HashCodes, hamming_distance, hamming_topk, pack_codes
from hybridhash.search import (
    MilvusIndex,
    SearchIndex,
    milvus_connection,
)
from hybridhash.search import (
    milvus as milvus_index,
)
from tests.search._codes import needs_lite
from tests.search._codes import random_codes as codes

pymilvus = pytest.importorskip("pymilvus")

NAMES = (f"collection_{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    """A file of Milvus Lite; every test makes its own collection in it."""
    return tmp_path_factory.mktemp("milvus") / "codes.db"


@pytest.fixture
def index(lite):
    return MilvusIndex(lite, next(NAMES), 24)


# Search in the real engine ----------------------------------------------------------------------------------


@needs_lite
@pytest.mark.parametrize("bits", [1, 13, 64])
def test_it_gives_the_distances_of_hamming_topk_and_the_ids_that_belong_to_them(lite, bits):
    query, database = codes(5, bits), codes(300, bits, seed=1)
    index = MilvusIndex(lite, next(NAMES), bits)
    index.add(database)
    distances, ids = index.search(query, 40)
    every = hamming_distance(query, database)
    assert (distances.dtype, ids.dtype) == (torch.int16, torch.int64)
    assert torch.equal(distances, hamming_topk(query, database, 40)[0])
    assert torch.equal(every.gather(1, ids), distances)
    limits, distances, ids = index.range_search(query, bits // 3)
    for row, (start, stop) in enumerate(itertools.pairwise(limits)):
        assert sorted(ids[start:stop].tolist()) == (every[row] <= bits // 3).nonzero()[:, 0].tolist()
        assert torch.equal(every[row][ids[start:stop]], distances[start:stop])


@needs_lite
def test_more_results_than_one_request_gives_are_all_found(index, monkeypatch):
    database = HashCodes.from_codes(codes(500, seed=1), ids=torch.randperm(500) ** 4)
    index.add(database)
    query = codes(3)
    every = index.range_search(query, 9)
    assert every[0][-1] == (hamming_distance(query, database) <= 9).sum()
    monkeypatch.setattr(milvus_index, "_LIMIT", 8)
    assert all(torch.equal(a, b) for a, b in zip(index.range_search(query, 9), every, strict=True))
    with pytest.raises(ValueError, match="top_k=9 asks for 9 results, Milvus gives at most 8"):
        index.search(query, 9)


@needs_lite
def test_many_queries_are_asked_in_several_requests(index, monkeypatch):
    index.add(codes(50, seed=1))
    query = codes(30)
    whole = index.search(query, 10)
    monkeypatch.setattr(milvus_index, "_HITS", 70)
    assert all(torch.equal(a, b) for a, b in zip(index.search(query, 10), whole, strict=True))


@needs_lite
def test_top_k_above_the_size_gives_all_codes(index):
    index.add(codes(7, seed=1))
    assert index.search(codes(2), 50)[1].sort(1).values.tolist() == [list(range(7))] * 2
    assert index.search(codes(2), None)[1].shape == (2, 7)
    with pytest.deprecated_call(match=r"MilvusIndex\.search: k= is now top_k="):
        assert index.search(codes(2), k=3)[1].shape == (2, 3)
    assert isinstance(index, SearchIndex)


# Adding -----------------------------------------------------------------------------------------------------


@needs_lite
def test_ids_of_64_bits_are_kept_and_adding_twice_stores_once(index):
    database = HashCodes.from_codes(codes(40, seed=1), ids=torch.arange(40) * 2**57 + 3)
    index.add(database)
    index.add(database)
    assert len(index) == 40
    assert torch.equal(index.search(database, 1)[1][:, 0], database.ids)


@needs_lite
def test_a_code_replaces_that_of_its_id(index):
    index.add(HashCodes.from_codes(codes(1, seed=1), ids=torch.tensor([5])))
    index.add(HashCodes.from_codes(codes(1, seed=2), ids=torch.tensor([5])))
    assert len(index) == 1
    assert index.search(codes(1, seed=2), 1)[0].item() == 0


@needs_lite
def test_codes_without_ids_are_numbered_on(lite):
    database = codes(25, seed=1)
    index = MilvusIndex(lite, next(NAMES), 24, batch_size=4)
    index.add(database[:11])
    index.add(database[11:])
    assert torch.equal(index.search(database, 1)[1][:, 0], torch.arange(25))
    index.add(database[:0])
    assert len(index) == 25


@needs_lite
def test_numbers_for_codes_without_ids_never_overwrite(index):
    index.add(HashCodes.from_codes(codes(2), ids=torch.tensor([3, 9])))
    with pytest.raises(ValueError, match=r"holds ids from 2 on already.*Nothing was added"):
        index.add(codes(5, seed=1))
    assert len(index) == 2


NAN = codes(2)
NAN[0, 1] = float("nan")


@needs_lite
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (codes(2, 32), "codes have 32 bits, but the index holds codes of 24"),
        (pack_codes(codes(2, 32)), r"codes of 24 bits must be \(N, 3\)"),
        (NAN, "codes has NaN in 1 of 48"),
        (HashCodes.from_codes(codes(2), ids=torch.tensor([4, 4])), "1 ids occur more than once, 4"),
        (HashCodes.from_codes(codes(2), ids=torch.tensor([4, -4])), "ids must be >= 0, got -4"),
    ],
)
def test_codes_that_do_not_fit_raise_and_add_nothing(index, given, message):
    with pytest.raises(ValueError, match=message):
        index.add(given)
    assert len(index) == 0


@needs_lite
@pytest.mark.parametrize("action", ["search", "range_search"])
def test_queries_that_do_not_fit_raise(index, action):
    index.add(codes(3))
    for given, message in [
        (codes(2, 32), "codes have 32 bits, but the index holds codes of 24"),
        (pack_codes(codes(2, 32)), r"codes of 24 bits must be \(N, 3\)"),
        (NAN, "codes has NaN in 1 of 48"),
    ]:
        with pytest.raises(ValueError, match=message):
            getattr(index, action)(given, 1)


@needs_lite
def test_bad_searches_raise(index):
    with pytest.raises(ValueError, match="the index is empty"):
        index.search(codes(1), 1)
    index.add(codes(3))
    with pytest.raises(ValueError, match="top_k must be >= 1, got 0"):
        index.search(codes(1), 0)
    with pytest.raises(ValueError, match="radius must be >= 0, got -1"):
        index.range_search(codes(1), -1)
    with pytest.raises(ValueError, match="codes is empty"):
        index.search(codes(0), 1)


# Opening, saving, loading -----------------------------------------------------------------------------------


@needs_lite
def test_a_collection_that_exists_is_opened_and_must_hold_such_codes(lite):
    name = next(NAMES)
    MilvusIndex(lite, name, 24, model_id="m").add(codes(9))
    again = MilvusIndex(lite, name, 24)
    assert (len(again), again.model_id) == (9, "m")
    with pytest.raises(ValueError, match="holds codes of 24 bits in an index of kind 'flat', not of 23"):
        MilvusIndex(lite, name, 23)
    with pytest.raises(ValueError, match="the index holds codes of the model 'm', these are of 'n'"):
        MilvusIndex(lite, name, 24, model_id="n")
    with pytest.raises(ValueError, match="these are of 'n'"):
        again.search(codes(1), 1, model_id="n")
    with pytest.raises(ValueError, match="these are of 'n'"):
        again.add(codes(1), model_id="n")
    assert len(again) == 9


@needs_lite
def test_a_collection_of_others_is_left_alone(index, lite):
    name = next(NAMES)
    index.client.create_collection(name, dimension=4)
    with pytest.raises(ValueError, match=rf"collection '{name}' at .* was not made by MilvusIndex"):
        MilvusIndex(lite, name, 24)


@needs_lite
def test_a_collection_is_not_created_if_that_is_not_wanted(lite):
    name = next(NAMES)
    with pytest.raises(FileNotFoundError, match=f"collection '{name}' at .* does not exist"):
        MilvusIndex(lite, name, 24, create=False)
    assert not MilvusIndex(lite, next(NAMES), 24).client.has_collection(name)


@needs_lite
def test_a_saved_index_is_found_again(lite, tmp_path):
    index = MilvusIndex(lite, next(NAMES), 24, model_id="m")
    index.add(codes(30, seed=1))
    index.save(tmp_path / "index")
    loaded = MilvusIndex.load(tmp_path / "index", bits=24, model_id="m")
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.search(codes(3), 5), index.search(codes(3), 5), strict=True)
    )
    with pytest.raises(ValueError, match="holds codes of 24 bits, not of 64"):
        MilvusIndex.load(tmp_path / "index", bits=64)
    with pytest.raises(ValueError, match="of the model 'm', these are of 'n'"):
        MilvusIndex.load(tmp_path / "index", model_id="n")


@needs_lite
def test_a_collection_that_lost_codes_or_is_gone_is_not_loaded(lite, tmp_path):
    index = MilvusIndex(lite, next(NAMES), 24)
    index.add(codes(30, seed=1))
    index.save(tmp_path)
    index.client.delete(index.collection, ids=[3, 4])
    with pytest.raises(ValueError, match="has 28 codes, but had 30 when it was saved"):
        MilvusIndex.load(tmp_path)
    index.client.drop_collection(index.collection)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        MilvusIndex.load(tmp_path)


def test_a_damaged_or_foreign_manifest_is_not_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"it has no manifest\.json"):
        MilvusIndex.load(tmp_path)
    (tmp_path / "manifest.json").write_text(
        json.dumps({"format": "hybridhash.search", "version": "1", "backend": "faiss"})
    )
    with pytest.raises(ValueError, match="is of a faiss index, not of milvus"):
        MilvusIndex.load(tmp_path)


# Milvus Lite ------------------------------------------------------------------------------------------------


def test_another_milvus_lite_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "3.0.1")
    with pytest.raises(ImportError, match=r"Milvus Lite 3.0.1 is installed, but 3.x refuses binary.*2\.5\.1"):
        MilvusIndex(tmp_path / "a.db", "a", 24)


def test_a_missing_milvus_lite_is_named(tmp_path, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ImportError, match=r"pip install milvus-lite==2\.5\.1"):
        MilvusIndex(tmp_path / "a.db", "a", 24)


def test_a_setuptools_without_pkg_resources_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "2.5.1")
    find = milvus_connection.importlib.util.find_spec
    monkeypatch.setattr(
        milvus_connection.importlib.util,
        "find_spec",
        lambda name: None if name == "pkg_resources" else find(name),
    )
    with pytest.raises(
        ImportError, match=r"needs pkg_resources, which newer setuptools do not have: .*setuptools<81"
    ):
        MilvusIndex(tmp_path / "a.db", "a", 24)


def test_without_pymilvus_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(milvus_connection.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=re.escape("pip install hybridhash[milvus]")):
        MilvusIndex("localhost:19530", "a", 24)


@needs_lite
def test_the_folder_of_a_file_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist, create it"):
        MilvusIndex(tmp_path / "none" / "a.db", "a", 24)


@needs_lite
def test_lite_has_no_inverted_lists(lite):
    with pytest.raises(ValueError, match="Milvus Lite has no BIN_IVF_FLAT"):
        MilvusIndex(lite, "a", 24, "ivf")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("codes.sqlite", "a", 24), {}, "uri must be http.*got 'codes.sqlite'"),
        (("a:1", "a", 24, "hnsw"), {}, "unknown kind 'hnsw' of Milvus index: use 'flat', 'ivf'"),
        (("a:1", "a", 24), {"nprobe": 3}, "options of kind 'ivf', but kind='flat'"),
        (("a:1", "a", 24, "ivf"), {"nlist": 4, "nprobe": 5}, "nprobe must be 1 to 4, got 5"),
        (("a:1", "a", 4097), {}, "bits must be 1 to 4096, got 4097"),
        (("a:1", "a", 24), {"retries": -1}, "retries must be >= 0, got -1"),
        (("a:1", "a", 24), {"timeout": 0}, "timeout must be > 0 seconds, got 0"),
        (("a:1", "a", 24), {"batch_size": 0}, "batch_size must be >= 1, got 0"),
    ],
)
def test_arguments_out_of_range_raise(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        MilvusIndex(*arguments, **options)
