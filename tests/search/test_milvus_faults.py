"""Milvus with faults: the real engine behind a port and killed, and a client whose requests fail."""

import itertools
import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch

from hybridhash import HashCodes
from hybridhash.search import MilvusIndex, milvus_connection
from tests.search._codes import needs_lite
from tests.search._codes import random_codes as codes

pymilvus = pytest.importorskip("pymilvus")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(milvus_connection, "_FIRST_PAUSE", 0.01)


# A server that is killed ------------------------------------------------------------------------------------


def _free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


class _Server:
    """Milvus Lite behind a port, which can be killed and started again on the same file."""

    def __init__(self, folder):
        from milvus_lite.server import BIN_PATH

        self.address = f"127.0.0.1:{_free_port()}"
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
    server = _Server(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def patient(monkeypatch):
    """Make an index wait for a server as long as gRPC does before it connects again."""
    return lambda: monkeypatch.setattr(milvus_connection, "_FIRST_PAUSE", 0.5)


def _before_insert(index, number, action, monkeypatch):
    """Run ``action`` before one of the next inserts of an index, counted from 1."""
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
    _before_insert(index, 5, server.kill, monkeypatch)
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

    _before_insert(index, 3, restart, monkeypatch)
    index.add(codes(500, seed=1))
    assert len(index) == 500


@needs_lite
def test_a_new_process_goes_on_after_the_codes_that_are_there(server, patient, monkeypatch):
    database = codes(700, seed=1)
    index = MilvusIndex(server.address, "photos", 24, batch_size=100, retries=0, timeout=2)
    _before_insert(index, 4, server.kill, monkeypatch)
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
    address = f"127.0.0.1:{_free_port()}"
    with pytest.raises(ConnectionError, match=rf"{address}.*2 attempts: is the server up") as caught:
        MilvusIndex(prefix + address, "photos", 24, retries=1, timeout=1)
    assert "secret" not in str(caught.value)


# A client whose requests fail -------------------------------------------------------------------------------


CLIENT = pymilvus.MilvusClient


class _Stub:
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
        if "code" in output_fields:
            return [{"id": key, "code": [self.rows[key]]} for key in bounds if key in self.rows]
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
    monkeypatch.setattr(pymilvus, "MilvusClient", _Stub)
    return MilvusIndex("localhost:19530", "photos", 24, batch_size=10, retries=3)


def _fault(code, message="no"):
    return pymilvus.exceptions.MilvusException(code, message)


BUSY = _fault(8, "rate limit")


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
    monkeypatch.setattr(pymilvus, "MilvusClient", _Stub)
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


@pytest.mark.parametrize("moment", ["before", "after"])
def test_numbers_that_another_process_gives_at_the_same_time_are_noticed(stub, moment):
    """It stores its codes around the second batch, which starts at 10."""
    others, upsert, batches = codes(5, seed=2), stub.client.do_upsert, itertools.count()
    packed = HashCodes.from_codes(others).packed.numpy()
    rows = [{"id": 10 + row, "code": code.tobytes()} for row, code in enumerate(packed)]

    def stored(data):
        batch = next(batches)
        upsert(data)
        if batch == ["before", "after"].index(moment):
            upsert(rows)

    stub.client.do_upsert = stored
    with pytest.raises(RuntimeError, match=r"another process.*from 10 on.* 10 of these codes.*codes\[10:\]"):
        stub.add(codes(25, seed=1))
    kept = dict(stub.client.rows)
    stub.client.do_upsert = upsert
    first = len(stub)
    stub.add(codes(25, seed=1)[10:])
    assert {key: stub.client.rows[key] for key in kept} == kept
    assert len(stub) == first + 15


@needs_lite
def test_two_processes_that_number_codes_lose_none_without_an_error(server):
    """The second begins while the first is at work, in the real engine."""
    first, second = (MilvusIndex(server.address, "photos", 24, batch_size=100) for _ in range(2))
    upsert, batches = first.client.upsert, itertools.count()

    def interrupted(*args, **kwargs):
        answer = upsert(*args, **kwargs)
        if next(batches) == 1:
            second.add(codes(50, seed=2))
        return answer

    first.client.upsert = interrupted
    with pytest.raises(RuntimeError, match=r"200 of these codes are known to be stored: add codes\[200:\]"):
        first.add(codes(500, seed=1))
    first.add(codes(500, seed=1)[200:])
    assert len(first) == 550
    every = torch.cat([codes(500, seed=1), codes(50, seed=2)])
    assert (first.search(every, 1)[0] == 0).all()


@pytest.mark.parametrize("ids", [torch.arange(25), torch.arange(25) * 3])
def test_codes_that_a_server_takes_but_does_not_keep_are_noticed(stub, ids):
    stub.client.forgotten = {3, 6}
    with pytest.raises(RuntimeError, match="lacks 2 of the 25 codes that it has just taken"):
        stub.add(HashCodes.from_codes(codes(25), ids=ids))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (_fault(1400, "auth check failure"), PermissionError, "auth check failure.*wants another token="),
        (_fault(16, "StatusCode.UNAUTHENTICATED"), PermissionError, "wants another token="),
        (_fault(1100, "bad expression"), ValueError, "bad expression.*does not take this request"),
        (_fault(100, "collection not found"), ValueError, "collection not found"),
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


@pytest.mark.parametrize("key", ["model_id", "model"])
def test_the_model_of_a_collection_is_read_by_its_old_name_too(key, monkeypatch):
    about = {"hybridhash": "codes", "bits": 24, "kind": "flat", key: "m"}

    class Existing(_Stub):
        def has_collection(self, *args, **kwargs):
            return True

        def describe_collection(self, *args, **kwargs):
            return {"description": json.dumps(about), "fields": [{"name": "id"}, {"name": "code"}]}

    monkeypatch.setattr(pymilvus, "MilvusClient", Existing)
    assert MilvusIndex("localhost:19530", "photos", 24).model_id == "m"
    with pytest.raises(ValueError, match="holds codes of the model 'm', these are of 'n'"):
        MilvusIndex("localhost:19530", "photos", 24, model_id="n")


def test_a_refused_token_is_an_error_of_permission_while_adding(stub):
    stub.client.faults = [("upsert", _fault(1401, "denied"))]
    with pytest.raises(PermissionError, match=r"denied.*0 of these 5 codes"):
        stub.add(codes(5))


def test_inverted_lists_are_asked_for_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(pymilvus, "MilvusClient", _Stub)
    index = MilvusIndex("https://user:secret@host:19530", "photos", 60, "ivf", nlist=256, model_id="m")
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
    monkeypatch.setattr(pymilvus, "MilvusClient", _Stub)
    connection = MilvusIndex(uri, "photos", 24)._connection
    assert (connection.uri, connection.lite) == (address, False)
