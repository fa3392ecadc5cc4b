"""The quickstart: what it prints, what it writes, and that a seed decides the result."""

import re
import subprocess
import sys

import pytest
from matplotlib.image import imread

from hybridhash import HashCodes
from tests import ROOT

SCRIPT = ROOT / "examples" / "quickstart.py"


def quickstart(out, **options):
    arguments = [f"--{key}={value}" for key, value in {"epochs": 2, "out": out, **options}.items()]
    result = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, quickstart(out, bits=12)


def mean_average_precision_of(text, kind):
    return float(re.search(rf"^{kind} mAP (\d\.\d+)$", text, flags=re.MULTILINE)[1])


def test_training_raises_the_map(run):
    _, text = run
    assert mean_average_precision_of(text, "untrained") < 0.3
    assert mean_average_precision_of(text, "trained") > mean_average_precision_of(text, "untrained") + 0.1


def test_it_says_what_it_did(run):
    _, text = run
    assert "300 queries, 1497 images in the database, 12 bits" in text
    assert re.search(r"encoded at \d+ images/s, 2 bytes per image", text)


def test_codes_and_picture_are_written(run):
    out, _ = run
    codes = HashCodes.load(out / "database.safetensors")
    assert (len(codes), codes.bits, codes.labels.shape) == (1497, 12, (1497,))
    picture = imread(out / "retrieval.png")
    assert min(picture.shape[:2]) > 300
    assert picture.std() > 0.05


def test_the_same_seed_gives_the_same_codes(run, tmp_path):
    out, text = run
    again = quickstart(tmp_path, bits=12)
    assert HashCodes.load(tmp_path / "database.safetensors") == HashCodes.load(out / "database.safetensors")
    assert mean_average_precision_of(again, "trained") == mean_average_precision_of(text, "trained")
