"""timm's own test suite of models, of exactly the installed timm, passes on this package's models.

One small architecture by default; ``make timm-suite`` runs all of them. timm's source distribution, which
carries the tests, is fetched by pip; without a package index the test is skipped. Pretrained weights come
from a Hub on this machine, with random numbers for weights.
"""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm
from safetensors.torch import save
from timm.models import get_pretrained_cfg

from tests._hub_server import FakeHub

GLOB = os.environ.get("HYBRIDHASH_TIMM_MODELS", "hybridhash_tiny_16")
MARKS = "base forward backward cfg cfg_nonstd torchscript features fxforward fxbackward timeout"


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A folder with timm's tests and without timm, which would shadow the installed one."""
    folder = tmp_path_factory.mktemp("timm")
    version = timm.__version__
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
    pip += ["--dest", str(folder), f"timm=={version}"]
    result = subprocess.run(pip, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.skip(f"timm {version}'s source distribution cannot be fetched: {result.stderr.strip()[-200:]}")
    with tarfile.open(folder / f"timm-{version}.tar.gz") as archive:
        members = [m for m in archive.getmembers() if m.name.split("/")[1:2] == ["tests"]]
        archive.extractall(folder, members=members, filter="data")
    root = folder / f"timm-{version}"
    marks = "\n".join(f"    {mark}: timm" for mark in MARKS.split())
    (root / "pytest.ini").write_text(f"[pytest]\nmarkers =\n{marks}\n")
    return root


def test_timms_suite_passes_with_nothing_skipped(suite, tmp_path):
    with FakeHub() as hub:
        for repository in {get_pretrained_cfg(name).hf_hub_id for name in timm.list_models(GLOB)} - {None}:
            nest = timm.create_model(repository.removeprefix("timm/").split(".")[0])
            hub.add(repository, {"model.safetensors": save(nest.state_dict())})
        environment = {
            **{key: value for key, value in os.environ.items() if key != "GITHUB_ACTIONS"},
            "HYBRIDHASH_TIMM_MODELS": GLOB,
            "PYTHONPATH": str(Path(__file__).parent),
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
        }
        run = [sys.executable, "-m", "pytest", "-q", "-c", "pytest.ini", "-p", "_timm_suite_plugin"]
        run += ["-p", "no:cacheprovider", "tests/test_models.py"]
        result = subprocess.run(run, cwd=suite, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    summary = result.stdout.strip().splitlines()[-1]
    assert int(re.search(r"(\d+) passed", summary)[1]) >= 11, summary
    assert "skipped" not in summary
    assert "xfailed" not in summary
