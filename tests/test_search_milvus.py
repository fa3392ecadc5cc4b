"""Milvus: the real engine in a file, the same behind a port and killed, and a client whose requests fail."""

import itertools
import json
import os
import re
import socket
import subprocess
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch

from hybridhash import HashCodes, hamming_distance, hamming_topk, pack_codes
from hybridhash.search import MilvusIndex, SearchIndex, milvus_connection, milvus_index

pymilvus = pytest.importorskip("pymilvus")

NAMES = (f"collection_{number}" for number in itertools.count())


def lite_is_there():
    try:
        return metadata.version("milvus-lite") == "2.5.1"
    except metadata.PackageNotFoundError:
        return False


needs_lite = pytest.mark.skipif(not lite_is_there(), reason="needs milvus-lite==2.5.1")


def codes(rows, bits=24, seed=0):
    return torch.randn(rows, bits, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    """A file of Milvus Lite; every test makes its own collection in it."""
    return tmp_path_factory.mktemp("milvus") / "codes.db"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(milvus_connection, "_FIRST_PAUSE", 0.01)


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
    with pytest.raises(ValueError, match="k=9 is more than the 8 results that Milvus gives"):
        index.search(query, 9)


@needs_lite
def test_many_queries_are_asked_in_several_requests(index, monkeypatch):
    index.add(codes(50, seed=1))
    query = codes(30)
    whole = index.search(query, 10)
    monkeypatch.setattr(milvus_index, "_HITS", 70)
    assert all(torch.equal(a, b) for a, b in zip(index.search(query, 10), whole, strict=True))


@needs_lite
def test_k_above_the_size_gives_all_codes(index):
    index.add(codes(7, seed=1))
    assert index.search(codes(2), 50)[1].sort(1).values.tolist() == [list(range(7))] * 2
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
def test_bad_searches_raise(index):
    with pytest.raises(ValueError, match="the index is empty"):
        index.search(codes(1), 1)
    index.add(codes(3))
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        index.search(codes(1), 0)
    with pytest.raises(ValueError, match="radius must be >= 0, got -1"):
        index.range_search(codes(1), -1)
    with pytest.raises(ValueError, match="codes is empty"):
        index.search(codes(0), 1)


# Opening, saving, loading -----------------------------------------------------------------------------------


@needs_lite
def test_a_collection_that_exists_is_opened_and_must_hold_such_codes(lite):
    name = next(NAMES)
    MilvusIndex(lite, name, 24, model="m").add(codes(9))
    again = MilvusIndex(lite, name, 24)
    assert (len(again), again.model) == (9, "m")
    with pytest.raises(ValueError, match="holds codes of 24 bits in an index of kind 'flat', not of 23"):
        MilvusIndex(lite, name, 23)
    with pytest.raises(ValueError, match="the index holds codes of the model 'm', these are of 'n'"):
        MilvusIndex(lite, name, 24, model="n")
    with pytest.raises(ValueError, match="these are of 'n'"):
        again.search(codes(1), 1, model="n")


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
    index = MilvusIndex(lite, next(NAMES), 24, model="m")
    index.add(codes(30, seed=1))
    index.save(tmp_path / "index")
    loaded = MilvusIndex.load(tmp_path / "index", bits=24, model="m")
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.search(codes(3), 5), index.search(codes(3), 5), strict=True)
    )
    with pytest.raises(ValueError, match="holds codes of 24 bits, not of 64"):
        MilvusIndex.load(tmp_path / "index", bits=64)
    with pytest.raises(ValueError, match="of the model 'm', these are of 'n'"):
        MilvusIndex.load(tmp_path / "index", model="n")


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
        (("a:1", "a", 513), {}, "bits must be 1 to 512, got 513"),
        (("a:1", "a", 24), {"retries": -1}, "retries must be >= 0, got -1"),
        (("a:1", "a", 24), {"timeout": 0}, "timeout must be > 0 seconds, got 0"),
        (("a:1", "a", 24), {"batch_size": 0}, "batch_size must be >= 1, got 0"),
    ],
)
def test_arguments_out_of_range_raise(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        MilvusIndex(*arguments, **options)


# A server that is killed ------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


class Server:
    """Milvus Lite behind a port, which can be killed and started again on the same file."""

    def __init__(self, folder):
        from milvus_lite.server import BIN_PATH

        self.address = f"127.0.0.1:{free_port()}"
        binary = Path(BIN_PATH) / "milvus"
        self._command = [str(binary), str(folder / "server.db"), self.address, "ERROR"]
        self._environment = {**os.environ, "LD_LIBRARY_PATH": BIN_PATH}
        self._folder = folder
        self.start()

    def start(self):
        self._process = subprocess.Popen(
            self._command, env=self._environment, cwd=self._folder, stdout=subprocess.DEVNULL
        )
        host, port = self.address.split(":")
        for _ in range(200):
            with socket.socket() as opened:
                if opened.connect_ex((host, int(port))) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the server did not start")

    def kill(self):
        self._process.kill()
        self._process.wait()


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def patient(monkeypatch):
    """Have an index wait for a server as long as gRPC does before it tries to connect again."""
    return lambda: monkeypatch.setattr(milvus_connection, "_FIRST_PAUSE", 0.5)


def before_insert(index, number, action, monkeypatch):
    """Have ``action`` done before one of the next inserts of an index, counted from 1."""
    upsert, count = index.client.upsert, itertools.count(1)

    def counted(*args, **kwargs):
        if next(count) == number:
            action()
        return upsert(*args, **kwargs)

    monkeypatch.setattr(index.client, "upsert", counted)


@needs_lite
@pytest.mark.parametrize("ids", [None, torch.arange(900) * 7])
def test_a_server_that_dies_in_the_middle_of_an_insert_costs_nothing(server, ids, patient, monkeypatch):
    database = HashCodes.from_codes(codes(900, seed=1), ids=ids)
    index = MilvusIndex(server.address, "photos", 24, batch_size=100, retries=3, timeout=2)
    before_insert(index, 5, server.kill, monkeypatch)
    with pytest.raises(ConnectionError, match=r"400 of these 900 codes are known to be stored: add the same"):
        index.add(database)
    with pytest.raises(ConnectionError, match="is the server up"):
        len(index)
    patient()
    server.start()
    index.add(database)
    assert len(index) == 900
    limits, distances, found = index.range_search(database, 0)
    assert (distances == 0).all()
    expected = torch.arange(900) if ids is None else ids
    assert all(own in found[limits[row] : limits[row + 1]] for row, own in enumerate(expected))


@needs_lite
def test_a_server_that_comes_back_during_the_pauses_is_waited_for(server, patient, monkeypatch):
    patient()
    index = MilvusIndex(server.address, "photos", 24, batch_size=100, timeout=2)

    def restart():
        server.kill()
        server.start()

    before_insert(index, 3, restart, monkeypatch)
    index.add(codes(500, seed=1))
    assert len(index) == 500


@needs_lite
def test_a_new_process_goes_on_after_the_codes_that_are_there(server, patient, monkeypatch):
    database = codes(700, seed=1)
    index = MilvusIndex(server.address, "photos", 24, batch_size=100, retries=0, timeout=2)
    before_insert(index, 4, server.kill, monkeypatch)
    with pytest.raises(ConnectionError):
        index.add(database)
    patient()
    server.start()
    index = MilvusIndex(server.address, "photos", 24)
    assert len(index) == 300
    index.add(database[len(index) :])
    assert (index.search(database, 1)[0] == 0).all()
    assert len(index) == 700


@pytest.mark.parametrize("prefix", ["", "http://", "http://user:secret@"])
def test_a_server_that_is_down_is_named_without_the_password(prefix):
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionError, match=rf"{address}.*2 attempts: is the server up") as caught:
        MilvusIndex(prefix + address, "photos", 24, retries=1, timeout=1)
    assert "secret" not in str(caught.value)


# A client whose requests fail -------------------------------------------------------------------------------


CLIENT = pymilvus.MilvusClient


class Stub:
    """A client in memory: ``faults`` are raised in turn by the calls of the methods that they name."""

    def __init__(self, *args, **kwargs):
        self.rows, self.faults, self.calls, self.forgotten = {}, [], [], set()

    def __getattr__(self, name):
        def call(*args, timeout, **kwargs):
            self.calls.append((name, kwargs))
            if self.faults and self.faults[0][0] == name:
                raise self.faults.pop(0)[1]
            return getattr(self, f"do_{name}")(**kwargs) if name in ("upsert", "query", "search") else None

        return call

    def create_schema(self, **options):
        return CLIENT.create_schema(**options)

    def prepare_index_params(self):
        return CLIENT.prepare_index_params()

    def do_upsert(self, data):
        self.rows |= {row["id"]: row["code"] for row in data if row["id"] not in self.forgotten}

    def do_query(self, filter, output_fields):
        bounds = [int(number) for number in re.findall(r"\d+", filter)]
        if " in " in filter:
            count = len(self.rows.keys() & set(bounds))
        elif bounds:
            count = sum(bounds[0] <= key < bounds[1] + ("<=" in filter) for key in self.rows)
        else:
            count = len(self.rows)
        return [{"count(*)": count}]

    def do_search(self, data, limit, **options):
        return [[{"id": 0, "distance": 0.0}] for _ in data]

    def names(self):
        return [name for name, _ in self.calls]


@pytest.fixture
def stub(monkeypatch):
    """An index on a stub, which is its ``client``."""
    monkeypatch.setattr(pymilvus, "MilvusClient", Stub)
    return MilvusIndex("localhost:19530", "photos", 24, batch_size=10, retries=3)


def fault(code, message="no"):
    return pymilvus.exceptions.MilvusException(code, message)


BUSY = fault(8, "rate limit")


def test_a_request_that_fails_is_repeated_after_growing_pauses(stub, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    stub.client.faults = [("upsert", BUSY), ("upsert", BUSY), ("upsert", BUSY)]
    stub.add(codes(25, seed=1))
    assert pauses == [0.01, 0.02, 0.04]
    assert stub.client.names().count("upsert") == 3 + 3
    assert len(stub) == 25


def test_pauses_are_bounded(monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(milvus_connection, "_FIRST_PAUSE", 0.5)
    monkeypatch.setattr(pymilvus, "MilvusClient", Stub)
    index = MilvusIndex("localhost:19530", "photos", 24, retries=7)
    index.client.faults = [("query", BUSY)] * 7
    assert len(index) == 0
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


@pytest.mark.parametrize("ids", [None, torch.arange(25) * 3])
def test_after_a_server_that_keeps_refusing_the_same_call_goes_on(stub, ids):
    database = HashCodes.from_codes(codes(25, seed=1), ids=ids)
    stub.add(HashCodes.from_codes(codes(2), ids=torch.tensor([1000, 1001])) if ids is not None else codes(2))
    stub.client.faults = [("upsert", BUSY)] * 4
    with pytest.raises(ConnectionError, match=r"rate limit.*No success in 4 attempts.* 0 of these 25 codes"):
        stub.add(database)
    upsert = stub.client.do_upsert
    stub.client.faults = []

    def store_and_die(data):
        """The batch is stored, but the answer is lost."""
        upsert(data)
        raise BUSY

    stub.client.do_upsert = store_and_die
    with pytest.raises(ConnectionError, match="0 of these 25 codes are known to be stored"):
        stub.add(database)
    assert len(stub) == 12
    stub.client.do_upsert = upsert
    stub.add(database)
    assert len(stub) == 27
    stored = HashCodes.from_codes(codes(25, seed=1)).packed.numpy()
    expected = range(2, 27) if ids is None else ids.tolist()
    assert [stub.client.rows[key] for key in expected] == [row.tobytes() for row in stored]


@pytest.mark.parametrize("ids", [torch.arange(25), torch.arange(25) * 3])
def test_codes_that_a_server_takes_but_does_not_keep_are_noticed(stub, ids):
    stub.client.forgotten = {3, 6}
    with pytest.raises(RuntimeError, match="lacks 2 of the 25 codes that it has just taken"):
        stub.add(HashCodes.from_codes(codes(25), ids=ids))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (fault(1400, "auth check failure"), PermissionError, "auth check failure.*wants another token="),
        (fault(16, "StatusCode.UNAUTHENTICATED"), PermissionError, "wants another token="),
        (fault(1100, "bad expression"), ValueError, "bad expression.*does not take this request"),
        (fault(100, "collection not found"), ValueError, "collection not found"),
        (
            pymilvus.exceptions.ParamError(message="bad"),
            ValueError,
            "collection 'photos' at http://localhost",
        ),
    ],
)
def test_what_another_attempt_does_not_heal_is_raised_at_once(stub, error, kind, message):
    stub.client.faults = [("query", error)]
    with pytest.raises(kind, match=message):
        len(stub)
    assert stub.client.names().count("query") == 1


def test_a_refused_token_is_an_error_of_permission_while_adding(stub):
    stub.client.faults = [("upsert", fault(1401, "denied"))]
    with pytest.raises(PermissionError, match=r"denied.*0 of these 5 codes"):
        stub.add(codes(5))


def test_inverted_lists_are_asked_for_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(pymilvus, "MilvusClient", Stub)
    index = MilvusIndex("https://user:secret@host:19530", "photos", 60, "ivf", nlist=256, model="m")
    created = dict(index.client.calls)["create_collection"]
    (described,) = created["index_params"]
    described = described.to_dict()
    assert (described["index_type"], described["metric_type"]) == ("BIN_IVF_FLAT", "HAMMING")
    assert described["nlist"] == 256 or described["params"] == {"nlist": 256}
    code = next(field for field in created["schema"].fields if field.name == "code")
    assert (code.dtype, code.params) == (pymilvus.DataType.BINARY_VECTOR, {"dim": 64})
    index.add(codes(3, 60))
    index.search(codes(2, 60), 1)
    (asked,) = [options for name, options in index.client.calls if name == "search"]
    assert asked["search_params"] == {"metric_type": "HAMMING", "params": {"nprobe": 8}}

    index.save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["uri"] == "https://host:19530"
    assert (manifest["kind"], manifest["options"]) == ("ivf", {"nlist": 256, "nprobe": 8})
    assert "secret" not in repr(index)


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("https://h:1", "https://h:1"),
        ("h.example-1.org:19530", "http://h.example-1.org:19530"),
        ("tcp://h:1", "tcp://h:1"),
    ],
)
def test_addresses_are_those_of_servers(uri, address, monkeypatch):
    monkeypatch.setattr(pymilvus, "MilvusClient", Stub)
    connection = MilvusIndex(uri, "photos", 24)._connection
    assert (connection.uri, connection.lite) == (address, False)
