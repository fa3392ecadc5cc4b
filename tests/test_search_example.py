"""The search example runs as a user runs it, with FAISS and with Milvus Lite, and finds the right digits."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "examples" / "search.py"


def run(folder, *arguments):
    command = [sys.executable, SCRIPT, "--bits=20", f"--out={folder}", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def number(text, before):
    return float(re.search(rf"{before} (\d\.\d+)", text)[1])


def test_faiss_finds_the_right_digits(tmp_path):
    pytest.importorskip("faiss")
    text = run(tmp_path, "--kind=ivf", "--epochs=1")
    assert "indexed 1497 codes: FaissIndex(bits=20, kind='ivf', size=1497" in text
    assert number(text, "recall@10 by distance") > 0.95
    assert number(text, "of the 10 nearest images") > 0.5
    assert (tmp_path / "index" / "manifest.json").exists()


def test_milvus_gives_exact_results_by_the_same_calls(tmp_path):
    pytest.importorskip("pymilvus")
    try:
        version = metadata.version("milvus-lite")
    except metadata.PackageNotFoundError:
        version = None
    if version != "2.5.1":
        pytest.skip("needs milvus-lite==2.5.1")
    text = run(tmp_path, f"--milvus={tmp_path / 'codes.db'}", "--epochs=0")
    assert "indexed 1497 codes: MilvusIndex(" in text
    assert number(text, "recall@10 by distance") == 1
