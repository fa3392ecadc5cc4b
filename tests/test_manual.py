"""The manual builds without a warning, and each of its pages can be reached."""

import re
import subprocess
import sys

import pytest

from tests import ROOT


def test_the_manual_builds_in_strict_mode(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    page = (tmp_path / "reference" / "losses" / "index.html").read_text()
    assert "WMLLoss" in page


def test_every_page_is_in_the_navigation():
    navigation = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert navigation == pages


def test_every_public_module_is_in_the_reference():
    text = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    package = ROOT / "hybridhash"
    rooms = {path.stem for path in package.glob("[a-z]*") if path.suffix in ("", ".py")}
    aliases, private = {"bits", "images", "shards"}, {"labels"}
    assert sorted(name for name in rooms - aliases - private if f"::: hybridhash.{name}" not in text) == []
