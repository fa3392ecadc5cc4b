"""The Ray example gives the codes of a plain loop, to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm

from hybridhash import HashCodes, open_codes
from hybridhash.encoding import read_failures
from hybridhash.hub import save_pretrained
from tests import ROOT
from tests._hub_models import SMALL
from tests.data._images import encoded, photo
from tests.encoding._helpers import image_folder, run

SCRIPT = ROOT / "examples" / "encode_ray.py"


def test_ray_gives_the_codes_of_the_plain_loop(tmp_path):
    pytest.importorskip("ray")
    pytest.importorskip("pyarrow")
    model = timm.create_model("hybridhash_16", **SMALL)
    save_pretrained(model, tmp_path / "model")
    for row in range(22):
        path = tmp_path / "images" / "ab"[row % 2] / f"{row:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if row in (0, 2, 4, 5) else encoded(photo(row, 40), "png"))
    out = tmp_path / "codes.safetensors"
    command = [sys.executable, SCRIPT, tmp_path / "model", tmp_path / "images", out, "--cpus", "2"]
    result = subprocess.run(
        [*map(str, command), "--batch-size", "3"],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "18 images encoded, 4 could not be decoded" in result.stdout
    with pytest.warns(UserWarning, match="4 of 22"):
        run(model, image_folder(tmp_path / "images"), tmp_path / "plain", batch_size=3, shard_size=100)
    assert HashCodes.load(out) == open_codes(tmp_path / "plain")
    failures = json.loads(Path(f"{out}.failures.json").read_text())
    assert failures == [[failure.row, failure.reason] for failure in read_failures(tmp_path / "plain")]
