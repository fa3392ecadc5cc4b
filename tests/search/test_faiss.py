"""What every index promises, on FAISS: exactness, ids, files, and what happens to bad input."""

import errno
import itertools
import json
import re
import resource
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridhash import HashCodes, hamming_distance, hamming_topk, pack_codes
from hybridhash.search import FaissIndex, SearchIndex, faiss_files
from hybridhash.search.interface import nearest_first
from hybridhash.search.manifest import write_manifest
from tests.search._codes import random_codes as codes
from tests.search._codes import recall, trained_codes

faiss = pytest.importorskip("faiss")

KINDS = ["flat", "ivf", "hnsw", "multihash"]


def _filled(bits=24, kind="flat", rows=200, **options):
    index = FaissIndex(bits, kind, **options)
    index.add(codes(rows, bits, seed=1))
    return index


def _same(results, others):
    return all(torch.equal(a, b) for a, b in zip(results, others, strict=True))


# Exact search -----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    bits=st.integers(1, 130),
    rows=st.integers(1, 80),
    top_k=st.integers(1, 100),
    radius=st.integers(0, 140),
    seed=st.integers(0, 9),
)
def test_flat_gives_the_distances_of_hamming_topk_and_the_ids_that_belong_to_them(
    bits, rows, top_k, radius, seed
):
    query, database = codes(4, bits, seed), codes(rows, bits, seed + 10)
    index = FaissIndex(bits)
    index.add(database)
    distances, ids = index.search(query, top_k)
    assert torch.equal(distances, hamming_topk(query, database, top_k)[0])
    every = hamming_distance(query, database)
    assert torch.equal(every.gather(1, ids), distances)
    assert all(len(row.unique()) == min(top_k, rows) for row in ids)

    limits, distances, ids = index.range_search(query, radius)
    for row, (start, stop) in enumerate(itertools.pairwise(limits)):
        assert sorted(ids[start:stop].tolist()) == (every[row] <= radius).nonzero()[:, 0].tolist()
        assert torch.equal(every[row][ids[start:stop]], distances[start:stop])


@pytest.mark.parametrize("form", ["real", "packed", "HashCodes"])
def test_codes_of_every_form_are_taken(form):
    query, database = codes(3, 13), codes(50, 13, seed=1)
    make = {"real": lambda c: c, "packed": pack_codes, "HashCodes": HashCodes.from_codes}[form]
    index = FaissIndex(13)
    index.add(make(database))
    assert torch.equal(index.search(make(query), 5)[0], hamming_topk(query, database, 5)[0])


def test_results_have_the_promised_types_and_order():
    index = _filled(bits=6)
    distances, ids = index.search(codes(5, 6), 40)
    assert (distances.dtype, ids.dtype, distances.shape) == (torch.int16, torch.int64, (5, 40))
    keys = distances.long() * 1000 + ids
    assert (keys.diff(dim=1) > 0).all()
    limits, distances, ids = index.range_search(codes(5, 6), 2)
    assert (limits.dtype, distances.dtype, ids.dtype) == (torch.int64, torch.int16, torch.int64)
    for start, stop in itertools.pairwise(limits):
        assert ((distances[start:stop].long() * 1000 + ids[start:stop]).diff() > 0).all()


def test_top_k_above_the_size_gives_all_codes():
    for kind in ("flat", "hnsw"):
        distances, ids = _filled(kind=kind, rows=7).search(codes(2), top_k=50)
        assert distances.shape == (2, 7)
        assert sorted(ids[0].tolist()) == list(range(7))


def test_no_top_k_gives_all_codes():
    distances, ids = _filled(rows=7).search(codes(2), None)
    assert distances.shape == (2, 7)
    assert sorted(ids[0].tolist()) == list(range(7))


def test_top_k_is_still_taken_by_its_old_name():
    index, query = _filled(), codes(3)
    with pytest.deprecated_call(match=r"FaissIndex\.search: k= is now top_k="):
        assert _same(index.search(query, k=5), index.search(query, 5))
    with pytest.raises(TypeError, match="k= and top_k=, give top_k= only"):
        index.search(query, top_k=5, k=5)


def test_codes_are_not_written_to():
    query, database = pack_codes(codes(3)), pack_codes(codes(20, seed=1))
    before = query.clone(), database.clone()
    index = FaissIndex(24)
    index.add(database)
    index.search(query, 5)
    assert torch.equal(query, before[0])
    assert torch.equal(database, before[1])


def test_an_index_is_a_search_index():
    assert isinstance(FaissIndex(8), SearchIndex)


# Approximate search -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "least"), [("ivf", 0.95), ("hnsw", 0.98), ("multihash", 0.9)])
def test_recall_at_100_on_codes_of_a_trained_model(kind, least):
    query, database = trained_codes()
    exact, _ = hamming_topk(query, database, 100)
    index = FaissIndex(64, kind)
    index.add(database)
    distances, ids = index.search(query, 100)
    assert recall(distances, exact) >= least
    # What is found is right: the distance of an id is that of its code.
    found = ids >= 0
    every = hamming_distance(query, database).gather(1, ids.clamp(min=0))
    assert torch.equal(every[found], distances[found])


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "multihash"])
def test_what_a_range_search_finds_is_within_the_radius_and_nearly_all(kind):
    query, database = trained_codes()
    index = FaissIndex(64, kind)
    index.add(database)
    limits, distances, ids = index.range_search(query, 3)
    rows = torch.repeat_interleave(torch.arange(len(query)), limits.diff())
    every = hamming_distance(query, database)
    assert torch.equal(every[rows, ids], distances)
    assert distances.max() <= 3
    assert len(ids) >= 0.9 * (every <= 3).sum()


def test_looking_at_more_finds_more():
    query, database = trained_codes()
    exact, _ = hamming_topk(query, database, 100)
    for kind, little, much in (
        ("ivf", {"nprobe": 1}, {"nprobe": 1000}),
        ("multihash", {"nflip": 0}, {"nflip": 2}),
    ):
        index = FaissIndex(64, kind, **little)
        index.add(database)
        before = recall(index.search(query, 100)[0], exact)
        index.tune(**much)
        after = recall(index.search(query, 100)[0], exact)
        assert after > before
    hnsw = FaissIndex(64, "hnsw", ef_search=1)
    hnsw.add(database)
    hnsw.tune(ef_search=500)
    assert faiss.downcast_IndexBinary(hnsw.index.index).hnsw.efSearch == 500


def test_every_list_of_an_inverted_file_makes_it_exact():
    query, database = codes(5, 20), codes(400, 20, seed=1)
    index = FaissIndex(20, "ivf", nlist=8, nprobe=8)
    index.add(database)
    assert torch.equal(index.search(query, 30)[0], hamming_topk(query, database, 30)[0])


def test_places_that_an_approximate_index_cannot_fill_say_so():
    index = FaissIndex(16, "multihash", nflip=0, nhash=2, hash_bits=8)
    index.add(torch.ones(3, 16))
    distances, ids = index.search(torch.full((1, 16), -1.0), top_k=2)
    assert ids.tolist() == [[-1, -1]]
    assert distances.tolist() == [[17, 17]]
    assert index.range_search(torch.full((1, 16), -1.0), 16)[0].tolist() == [0, 0]


def test_places_without_a_result_come_last():
    distances, ids = nearest_first(np.array([[0, 8, 3]]), np.array([[-1, 4, 2]]), bits=8)
    assert distances.tolist() == [[3, 8, 9]]
    assert ids.tolist() == [[2, 4, -1]]


def test_training_comes_before_adding_and_once():
    index = FaissIndex(24, "ivf", nlist=4)
    index.train(codes(100))
    assert len(index) == 0
    index.add(codes(3, seed=1))
    assert len(index) == 3
    with pytest.raises(ValueError, match="trained already"):
        index.train(codes(100))
    with pytest.raises(ValueError, match="'flat' needs no training"):
        FaissIndex(24).train(codes(100))
    with pytest.raises(ValueError, match="nlist=50 lists need as many codes to train, got 9"):
        FaissIndex(24, "ivf", nlist=50).add(codes(9))


# Ids --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_64_bits_are_kept(kind):
    ids = torch.arange(60) * 2**56 + 7
    database = HashCodes.from_codes(codes(60, seed=1), ids=ids)
    index = FaissIndex(24, kind)
    index.add(database)
    nearest = index.search(database, 1)[1][:, 0]
    assert torch.equal(nearest, ids)


def test_codes_without_ids_are_numbered_on():
    database = codes(30, seed=1)
    index = FaissIndex(24)
    for part in database.split(11):
        index.add(part)
    assert len(index) == 30
    assert torch.equal(index.search(database, 1)[1][:, 0], torch.arange(30))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([5, 9, 5, 9, 1]), "2 ids occur more than once, 5, 9: each"),
        (torch.tensor([0, -4, 2, 3, 1]), "ids must be >= 0, got -4"),
        (torch.tensor([500, 3, 2, 600, 700]), "holds 2 of these 5 ids already, 2, 3: nothing was added"),
    ],
)
def test_ids_that_cannot_be_added_raise_and_add_nothing(ids, message):
    index = _filled()
    with pytest.raises(ValueError, match=message):
        index.add(HashCodes.from_codes(codes(5), ids=ids))
    assert len(index) == 200


def test_ids_between_those_of_the_index_are_added_and_its_own_are_named():
    rows = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    index = FaissIndex(24)
    index.add(HashCodes.from_codes(codes(200), ids=2 * rows))
    for ids in ([1], [399, 3, 201], [500]):
        index.add(HashCodes.from_codes(codes(len(ids)), ids=torch.tensor(ids)))
    with pytest.raises(ValueError, match=r"holds 4 of these 5 ids already, 0, 3, 398, \.\.\.: nothing"):
        index.add(HashCodes.from_codes(codes(5), ids=torch.tensor([398, 7, 0, 500, 3])))
    assert len(index) == 205


def test_numbers_for_codes_without_ids_follow_the_largest_id():
    index = FaissIndex(24)
    index.add(HashCodes.from_codes(codes(2), ids=torch.tensor([3, 9])))
    index.add(codes(2, seed=1))
    assert index.search(codes(2, seed=1), 1)[1].tolist() == [[10], [11]]
    index.add(HashCodes.from_codes(codes(1, seed=2), ids=torch.tensor([2**63 - 1])))
    with pytest.raises(ValueError, match="no numbers are left after the id 9223372036854775807: give the"):
        index.add(codes(1, seed=3))
    assert len(index) == 5


def test_ids_of_queries_do_not_matter():
    query = HashCodes.from_codes(codes(2), ids=torch.tensor([-1, -1]))
    assert _filled().search(query, 3)[1].shape == (2, 3)


def test_threads_add_and_search_at_the_same_time():
    index = _filled(rows=50)
    parts = [codes(20, seed=seed) for seed in range(100)]
    with ThreadPoolExecutor(4) as pool:
        added = [pool.submit(index.add, part) for part in parts]
        searched = [pool.submit(index.search, codes(4), 5) for _ in range(100)]
        for future in added + searched:
            future.result()
    assert len(index) == 2050
    assert sorted(index.search(codes(1), None)[1][0].tolist()) == list(range(2050))
    assert (index.search(torch.cat(parts), 1)[0] == 0).all()


# Bad input --------------------------------------------------------------------------------------------------

NAN = codes(2)
NAN[1, 3] = float("nan")


@pytest.mark.parametrize("action", ["add", "search", "range_search"])
@pytest.mark.parametrize(
    ("given_codes", "error", "message"),
    [
        (codes(2, 32), ValueError, r"codes have 32 bits, but the index holds codes of 24.*truncate\(24\)"),
        (HashCodes.from_codes(codes(2, 20)), ValueError, "codes have 20 bits, but the index holds"),
        (pack_codes(codes(2, 32)), ValueError, r"codes of 24 bits must be \(N, 3\), got shape \(2, 4\)"),
        (NAN, ValueError, "codes has NaN in 1 of 48"),
        ([[1.0] * 24], TypeError, "codes must be a tensor or HashCodes, got list"),
    ],
)
def test_codes_that_do_not_fit_raise(action, given_codes, error, message):
    index = _filled()
    arguments = () if action == "add" else (1,)
    with pytest.raises(error, match=message):
        getattr(index, action)(given_codes, *arguments)
    assert len(index) == 200


@pytest.mark.parametrize("action", ["add", "search", "range_search"])
def test_codes_of_another_model_raise(action):
    index = _filled(model_id="resnet50 1f2e")
    arguments = () if action == "add" else (1,)
    getattr(index, action)(codes(2, seed=5), *arguments, model_id="resnet50 1f2e")
    getattr(index, action)(codes(2, seed=6), *arguments)  # not known
    with pytest.raises(ValueError, match="holds codes of the model 'resnet50 1f2e', these are of 'x'"):
        getattr(index, action)(codes(2, seed=7), *arguments, model_id="x")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: _filled().search(codes(2), 0),
            ValueError,
            "top_k must be >= 1, got 0: use None for the whole index",
        ),
        (lambda: _filled().search(codes(2), 2.0), TypeError, "top_k must be an int >= 1, got 2.0"),
        (lambda: _filled().range_search(codes(2), -1), ValueError, "radius must be >= 0, got -1"),
        (
            lambda: _filled().search(codes(0), 1),
            ValueError,
            "codes is empty: search needs at least one query",
        ),
        (
            lambda: FaissIndex(24).search(codes(2), 1),
            ValueError,
            "the index is empty: add codes before",
        ),
        (lambda: FaissIndex(24, "ivf").range_search(codes(2), 1), ValueError, "the index is empty"),
        (lambda: FaissIndex(0), ValueError, "bits must be 1 to 4096, got 0"),
        (lambda: FaissIndex("64"), TypeError, "bits must be an int 1 to 4096, got '64'"),
        (lambda: FaissIndex(64, "pq"), ValueError, "unknown kind 'pq' of FAISS index: use 'flat', 'ivf'"),
        (lambda: FaissIndex(64, nprobe=3), ValueError, "nprobe is an option of kind 'ivf', but kind='flat'"),
        (lambda: FaissIndex(64, "ivf", nlist=0), ValueError, "nlist must be >= 1, got 0"),
        (lambda: FaissIndex(64, "hnsw", links=1.5), TypeError, "links must be an int >= 2, got 1.5"),
        (
            lambda: FaissIndex(30, "multihash", nhash=4),
            ValueError,
            "nhash=4 tables of hash_bits=16 need",
        ),
        (lambda: _filled(kind="hnsw").tune(nprobe=3), ValueError, "nprobe is an option of kind 'ivf'"),
        (lambda: FaissIndex(64, model_id=5), TypeError, "model_id must be a str"),
    ],
)
def test_arguments_out_of_range_raise(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_adding_no_codes_changes_nothing():
    index = _filled()
    index.add(codes(0))
    assert len(index) == 200


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [1, 7, 512, 4095])
def test_every_kind_takes_codes_of_any_length(kind, bits):
    database = codes(50, bits, seed=1)
    index = FaissIndex(bits, kind)
    index.add(database)
    assert (index.search(database, 1)[0] == 0).all()


def test_without_faiss_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=re.escape("pip install hybridhash[faiss]")):
        FaissIndex(64)


# Files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_index_gives_the_same_results_and_goes_on(kind, tmp_path):
    index = _filled(kind=kind, model_id="m")
    index.save(tmp_path / "index")
    loaded = FaissIndex.load(tmp_path / "index", bits=24, model_id="m")
    assert _same(loaded.search(codes(3), 20), index.search(codes(3), 20))
    assert (repr(loaded), loaded.model_id) == (repr(index), "m")
    more = codes(30, seed=4)
    loaded.add(more)
    assert len(loaded) == 230
    assert torch.equal(loaded.search(more, 1)[1][:, 0], torch.arange(200, 230))


def test_what_is_tuned_is_saved(tmp_path):
    index = _filled(kind="ivf", nlist=4, nprobe=1)
    index.tune(nprobe=4)
    index.save(tmp_path)
    loaded = FaissIndex.load(tmp_path)
    assert torch.equal(loaded.search(codes(3), 9)[0], hamming_topk(codes(3), codes(200, seed=1), 9)[0])


def test_model_id_is_still_taken_by_its_old_name(tmp_path):
    with pytest.deprecated_call(match=r"FaissIndex\.__init__: model= is now model_id="):
        index = FaissIndex(24, model="m")
    with pytest.deprecated_call(match=r"FaissIndex\.add: model= is now model_id="):
        index.add(codes(5), model="m")
    with pytest.deprecated_call(match="model="), pytest.raises(ValueError, match="these are of 'x'"):
        index.search(codes(5), 1, model="x")
    index.save(tmp_path)
    with pytest.deprecated_call(match=r"FaissIndex\.load: model= is now model_id="):
        loaded = FaissIndex.load(tmp_path, model="m")
    with pytest.deprecated_call(match=r"FaissIndex\.model is now FaissIndex\.model_id"):
        assert loaded.model == "m"


def test_a_manifest_of_the_first_version_is_read(tmp_path):
    _filled(model_id="m").save(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    content["model"] = content.pop("model_id")
    (tmp_path / "manifest.json").write_text(json.dumps(content | {"version": "1"}))
    assert FaissIndex.load(tmp_path, model_id="m").model_id == "m"
    with pytest.raises(ValueError, match="holds codes of the model 'm', these are of 'other'"):
        FaissIndex.load(tmp_path, model_id="other")


def test_an_index_of_other_codes_is_not_loaded(tmp_path):
    _filled(model_id="m").save(tmp_path)
    with pytest.raises(ValueError, match="holds codes of 24 bits, not of 64"):
        FaissIndex.load(tmp_path, bits=64)
    with pytest.raises(ValueError, match="holds codes of the model 'm', these are of 'other'"):
        FaissIndex.load(tmp_path, model_id="other")


def _the_file(folder):
    return next(folder.glob("index-*.faiss"))


def _change_manifest(folder, **changes):
    """Change the manifest and its SHA-256, as another program might write it."""
    content = json.loads((folder / "manifest.json").read_text()) | changes
    del content["sha256"]
    backend = content.pop("backend")
    write_manifest(folder, backend, content)


def _damage_manifest(folder, old, new):
    file = folder / "manifest.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda f: (f / "manifest.json").unlink(),
            FileNotFoundError,
            "no index at .* it has no manifest",
        ),
        (lambda f: (f / "manifest.json").write_text("{"), ValueError, "manifest.json is damaged"),
        (lambda f: (f / "manifest.json").write_text("[]"), ValueError, "is no manifest of an index"),
        (lambda f: _change_manifest(f, version="9"), ValueError, "version '9' of the format"),
        (lambda f: _change_manifest(f, backend="milvus"), ValueError, "is of a milvus index, not of faiss"),
        (
            lambda f: _change_manifest(f, count=5),
            ValueError,
            "200 codes of 24 bits, the manifest says 5",
        ),
        (
            lambda f: _change_manifest(f, bits=64),
            ValueError,
            "codes of 24 bits, the manifest says 200 of 64",
        ),
        (lambda f: _damage_manifest(f, '"bits": 24', '"bits": 23'), ValueError, "damaged, its SHA-256 is"),
        (lambda f: _the_file(f).unlink(), FileNotFoundError, "index-.*is missing, which the manifest names"),
        (
            lambda f: _the_file(f).write_bytes(_the_file(f).read_bytes()[:-9]),
            ValueError,
            "truncated or foreign",
        ),
        (
            lambda f: _the_file(f).write_bytes(b"x" * _the_file(f).stat().st_size),
            ValueError,
            "faiss is damaged, its SHA-256 is another: save the index again",
        ),
    ],
)
def test_damaged_files_say_what_is_wrong(damage, error, message, tmp_path):
    _filled().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message):
        FaissIndex.load(tmp_path)


def test_a_manifest_without_a_key_is_damaged(tmp_path):
    _filled().save(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    for key in ("kind", "files"):
        (tmp_path / "manifest.json").write_text(
            json.dumps({name: value for name, value in content.items() if name != key} | {"version": "2"})
        )
        with pytest.raises(ValueError, match=rf"damaged \(no {key}\)"):
            FaissIndex.load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_anywhere_in_the_file_is_noticed(kind, tmp_path):
    _filled(kind=kind).save(tmp_path)
    file = _the_file(tmp_path)
    whole = file.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 50)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged, its SHA-256 is another"):
            FaissIndex.load(tmp_path)


def test_files_of_others_are_not_overwritten_or_deleted(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": "hybridhash.shards"}')
    (tmp_path / "index-mine.faiss").write_text("mine")
    with pytest.raises(FileExistsError, match=r"manifest.json is not of an index: save the index to another"):
        _filled().save(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == '{"format": "hybridhash.shards"}'
    (tmp_path / "manifest.json").unlink()
    _filled().save(tmp_path)
    assert (tmp_path / "index-mine.faiss").read_text() == "mine"


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path):
    left = tmp_path / f".index-{'0' * 16}.faiss.{'1' * 16}.tmp"
    left.write_bytes(b"half")
    _filled().save(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".faiss", ".json"]


def test_an_index_is_loaded_while_it_is_saved(tmp_path, monkeypatch):
    index = _filled()
    index.save(tmp_path)
    index.add(codes(10, seed=7))
    real = faiss_files.read_manifest
    saved = []

    def read_then_save(*args):
        """Save between reading the manifest and opening the file that it names."""
        manifest = real(*args)
        if not saved:
            saved.append(True)
            index.save(tmp_path)
        return manifest

    monkeypatch.setattr(faiss_files, "read_manifest", read_then_save)
    assert len(FaissIndex.load(tmp_path)) == 210


def test_saving_again_replaces_the_older_save(tmp_path):
    index = _filled()
    index.save(tmp_path)
    index.add(codes(10, seed=7))
    index.save(tmp_path)
    assert len(FaissIndex.load(tmp_path)) == 210
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("limit", [0, 100, 3000])
def test_a_full_disk_leaves_the_older_save_as_it_was(limit, tmp_path):
    index = _filled()
    index.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    index.add(codes(1000, seed=7))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write|File too large") as caught:
            index.save(tmp_path)
        assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(FaissIndex.load(tmp_path)) == 200


def test_a_failure_between_the_two_files_leaves_the_older_save(tmp_path, monkeypatch):
    index = _filled()
    index.save(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    index.add(codes(10, seed=7))

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr("hybridhash.search.faiss_files.write_manifest", fail)
    with pytest.raises(OSError, match="no space left"):
        index.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert len(FaissIndex.load(tmp_path)) == 200


def test_an_empty_index_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="the index is empty: add codes before saving"):
        FaissIndex(24).save(tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_the_folder_above_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError):
        _filled().save(tmp_path / "none" / "index")
