"""The notebook runs from top to bottom, and its model learns."""

import re

import pytest

from tests import ROOT

NOTEBOOK = ROOT / "examples" / "tutorial.ipynb"


def test_the_tutorial_runs_and_learns(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    trained = float(re.search(r"^mAP@100 +([0-9.]+)", printed, flags=re.MULTILINE)[1])
    untrained = float(
        next(
            output.data["text/plain"]
            for output in outputs
            if "." in output.get("data", {}).get("text/plain", "")
        )
    )
    assert untrained < 0.5
    assert trained > 0.8
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
