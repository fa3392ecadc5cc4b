"""Threads and processes that share an index or its folder. HYBRIDHASH_LOAD_SECONDS makes the load longer."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from hybridhash import HashCodes, pack_codes
from hybridhash.search import FaissIndex, MilvusIndex
from tests import ROOT
from tests.search._codes import needs_lite
from tests.search._codes import random_codes as codes

pytest.importorskip("faiss")

SECONDS = float(os.environ.get("HYBRIDHASH_LOAD_SECONDS", "0.7"))
WRITERS, READERS = 3, 3
OPTIONS = {
    "flat": {},
    "ivf": {"nlist": 16, "nprobe": 16},
    "hnsw": {},
    "multihash": {"hash_bits": 8, "nhash": 8},
}


class _Load:
    """Threads that add, remove, search and look up; errors and counts of what they did."""

    def __init__(self, index, numbered):
        self.index, self.numbered = index, numbered
        self.pool = HashCodes.from_codes(codes(5000, 64, seed=3))
        self.stop = threading.Event()
        self.errors, self.searches, self.held = [], 0, [set() for _ in range(WRITERS)]
        self.added = [0] * WRITERS

    def write(self, number):
        """Add batches with ids of this thread only, and remove some of its own."""
        random = torch.Generator().manual_seed(number)
        while not self.stop.is_set():
            rows = torch.randint(len(self.pool), (20,), generator=random)
            start = self.added[number]
            ids = [WRITERS * one + number for one in range(start, start + 20)]
            self.added[number] += 20
            if self.numbered:
                self.index.add(self.pool[rows])
                continue
            self.index.add(self.pool[rows], ids=ids)
            self.held[number].update(ids)
            if start % 100 == 0:
                self.index.remove(ids[:7])
                self.held[number].difference_update(ids[:7])

    def read(self, number):
        """Search for codes that are there all the time, which must be found."""
        query = self.pool[:16]
        while not self.stop.is_set():
            distances, ids = self.index.search(query, 3)
            assert (distances[:, 0] == 0).all(), "a code that is there was not found"
            assert (ids[:, 0] >= 0).all()
            limits, distances, _ = self.index.range_search(query[:2], 1)
            assert limits[-1] >= 2
            assert (distances <= 1).all()
            assert self.index.contains(ids[:, 0][:1]).numel() == 1
            self.searches += 1

    def run(self, seconds):
        def guarded(work, number):
            try:
                work(number)
            except BaseException as error:
                self.errors.append(error)
                self.stop.set()

        jobs = [(self.write, number) for number in range(WRITERS)]
        jobs += [(self.read, number) for number in range(READERS)]
        threads = [threading.Thread(target=guarded, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        self.stop.wait(seconds)
        self.stop.set()
        for thread in threads:
            thread.join()
        assert self.errors == []


def _check(index, load, first):
    """Nothing is lost and nothing is there twice."""
    if load.numbered:
        count = sum(load.added)
        assert len(index) == first + count
        assert index.contains(range(first + count)).all()
    else:
        held = set().union(*load.held)
        assert len(index) == first + len(held)
        assert index.contains(sorted(held)).all()
    assert load.searches > 0


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("kind", OPTIONS)
def test_threads_that_add_remove_and_search_lose_and_double_nothing(kind, numbered):
    index = FaissIndex(64, kind, **OPTIONS[kind])
    load = _Load(index, numbered)
    index.add(load.pool[:1000], ids=range(10**12, 10**12 + 1000) if not numbered else None)
    load.run(SECONDS)
    _check(index, load, 1000)
    _, ids = index.search(codes(1, 64), None)
    found = ids[ids >= 0]
    assert len(found.unique()) == len(found)


@needs_lite
@pytest.mark.parametrize("numbered", [False, True])
def test_threads_that_share_a_collection_lose_and_double_nothing(numbered, tmp_path):
    pytest.importorskip("pymilvus")
    index = MilvusIndex(tmp_path / "codes.db", "codes", 64)
    load = _Load(index, numbered)
    index.add(load.pool[:1000], ids=range(10**12, 10**12 + 1000) if not numbered else None)
    load.run(2 * SECONDS)
    _check(index, load, 1000)


def test_an_index_is_loaded_by_others_while_it_is_saved_and_changed(tmp_path):
    index = FaissIndex(64, "hnsw")
    index.add(codes(500, 64), ids=[f"{row}.jpg" for row in range(500)])
    index.save(tmp_path)
    failures, loaded = [], 0
    stop = threading.Event()

    def save():
        number = 500
        while not stop.is_set():
            index.add(codes(10, 64, seed=number), ids=[f"{row}.jpg" for row in range(number, number + 10)])
            number += 10
            index.save(tmp_path)

    saver = threading.Thread(target=save)
    saver.start()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            other = FaissIndex.load(tmp_path)
        except Exception as error:
            failures.append(error)
            continue
        distances, ids = other.search(codes(500, 64), 1)
        assert (distances == 0).all()
        assert other.names(ids)[499] == ["499.jpg"]
        loaded += 1
    stop.set()
    saver.join()
    assert failures == []
    assert loaded > 0


KILLS = """
import os, random, signal, sys, time, torch
from hybridhash.search import FaissIndex

folder, kills = sys.argv[1], int(sys.argv[2])
index = FaissIndex(64, "hnsw")
index.add(torch.randn(2000, 64))
index.save(folder)
for number in range(kills):
    child = os.fork()
    if child == 0:
        while True:
            index.save(folder)
    time.sleep(random.Random(number).uniform(0.005, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(FaissIndex.load(folder)) == 2000
index.save(folder)
"""


def test_a_killed_save_leaves_a_whole_index_and_no_files_for_ever(tmp_path):
    kills = str(int(20 * SECONDS))
    subprocess.run([sys.executable, "-c", KILLS, str(tmp_path), kills], cwd=ROOT, check=True)
    endings = sorted(path.suffix for path in tmp_path.iterdir())
    assert endings == [".faiss", ".json", ".nodes"]


def test_leftovers_of_every_file_of_a_killed_save_are_removed(tmp_path):
    stem = "0" * 16
    for name in (f"index-{stem}.faiss", f"index-{stem}.nodes", f"index-{stem}.names", "manifest.json"):
        (tmp_path / f".{name}.{'1' * 16}.tmp").write_bytes(b"half")
        if name != "manifest.json":
            (tmp_path / name).write_bytes(b"old")
    (tmp_path / ".notes.tmp").write_bytes(b"mine")
    index = FaissIndex(8)
    index.add(pack_codes(codes(3, 8)))
    index.save(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".faiss", ".json", ".tmp"]
    assert (tmp_path / ".notes.tmp").exists()
