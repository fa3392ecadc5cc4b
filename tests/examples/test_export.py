"""The export example writes its files and compares them with PyTorch."""

import re
import runpy
import sys

import pytest
import torch

import hybridhash
from hybridhash.export import read_metadata
from hybridhash.hub import save_pretrained
from tests import ROOT

SCRIPT = ROOT / "examples" / "export.py"


def test_every_file_is_compared_with_pytorch(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    small = {"img_size": 32, "embed_dims": (16, 32, 64), "num_heads": (1, 2, 4), "depths": (1, 1, 1)}
    torch.manual_seed(0)
    save_pretrained(hybridhash.create_model("hybridhash_16", **small), tmp_path / "saved")
    arguments = [str(tmp_path / "saved"), "--count=5", "--formats", "int8", "onnx", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, "--repeats=1"])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    text = capsys.readouterr().out
    assert float(re.search(r"onnx +\S+ MB  equal bits (\S+)", text)[1]) > 0.98
    equal, flipped = re.search(r"int8 +\S+ MB  equal bits (\S+)  flipped against onnx (\S+)", text).groups()
    assert 0.5 < float(equal) < 1
    assert 0 < float(flipped) < 0.5
    assert read_metadata(tmp_path / "model.int8.onnx")["bits"] == 16
    assert "name=hybridhash_16" in text
