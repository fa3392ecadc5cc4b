"""The tables of memory, time and machines follow from those of the measurements."""

import re
import runpy
import sys

import pytest

from tests import ROOT

MEASURED = """
## Search (`python benchmarks/search.py`)
1,000,000 codes of 64 bits, k = 100.

| engine | queries/s | ms, one query alone | recall@100 by distance | build, s | memory, MiB |
| --- | --- | --- | --- | --- | --- |
| FAISS flat | 400 | 2.00 | 1.0000 | 0.1 | 16 |
| `hamming_topk` | 300 | 4.00 | 1.0000 | 0.0 | 8 (the codes) |
| FAISS hnsw, ef_search=512 | 900 | 0.50 | 0.9900 | 60.0 | 400 |

## Another

| engine | no number |
| --- | --- |
"""


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    return runpy.run_path(str(ROOT / "benchmarks" / "scale.py"))


def test_times_memory_and_machines_follow_from_the_measurements(scale):
    flat, topk, hnsw = scale["measured"](MEASURED)
    assert (flat.cell(10**5), flat.cell(10**9)) == ("1.6 MiB, 0.2 ms", "16 GiB, 2 s")
    assert flat.cell(10**10) == "156 GiB on 4, 5 s"  # a quarter of the codes on each
    assert topk.cell(10**10) == "78 GiB on 2, 20 s"
    assert hnsw.cell(10**6) == "400 MiB, 0.5 ms"
    assert hnsw.machines(10**9) == 9
    assert hnsw.time(10**9) == pytest.approx(0.75)  # logarithm: 9 digits for 6
    assert (flat.reach(), hnsw.reach()) == ("5.0 x 10^7, time", "1.2 x 10^8, memory")
    assert (flat.build_text(10**6), topk.build_text(10**6), hnsw.build_text(10**6)) == ("100 ms", "", "1 min")


def test_the_manual_has_the_tables_of_the_measurements(scale):
    tables = scale["tables"]((ROOT / "benchmarks" / "README.md").read_text())
    assert re.search(r"10\^10", tables)
    assert tables in (ROOT / "docs" / "scale.md").read_text(), (
        "run benchmarks/scale.py, and paste what it prints"
    )
