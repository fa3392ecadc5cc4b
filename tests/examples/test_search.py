"""The search example runs, with FAISS and with Milvus Lite, and finds the right digits."""

import re
import runpy
import sys

import pytest
import torch

from tests import ROOT
from tests.search._codes import needs_lite

SCRIPT = ROOT / "examples" / "search.py"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the script in this process, which saves importing everything, and give what it printed."""
    threads = torch.get_num_threads()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--bits=20", f"--out={tmp_path}", *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


def number(text, before):
    return float(re.search(rf"{before} (\d\.\d+)", text)[1])


def test_faiss_finds_the_right_digits(run, tmp_path):
    pytest.importorskip("faiss")
    text = run("--kind=ivf", "--epochs=1", "--rescore=4")
    assert "indexed 1497 codes: FaissIndex(bits=20, kind='ivf', size=1497" in text
    assert number(text, "recall@10 by distance") > 0.95
    assert number(text, "of the 10 nearest images") > 0.5
    assert number(text, "with rescore=4") > number(text, "of the 10 nearest images")
    assert (tmp_path / "index" / "manifest.json").exists()


@needs_lite
def test_milvus_gives_exact_results_by_the_same_calls(run, tmp_path):
    pytest.importorskip("pymilvus")
    text = run(f"--milvus={tmp_path / 'codes.db'}", "--epochs=0")
    assert "indexed 1497 codes: MilvusIndex(" in text
    assert number(text, "recall@10 by distance") == 1
