"""The steps of CONTRIBUTING.md work as they are written."""

import re
import subprocess
import sys

from tests import ROOT


def test_the_steps_add_a_loss_and_a_model():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    loss_steps, model_steps = text.split("## Add a loss in four steps")[1].split(
        "## Add a model in four steps"
    )
    for steps in (loss_steps, model_steps):
        assert re.findall(r"^(\d)\. \*\*", steps, flags=re.MULTILINE) == ["1", "2", "3", "4"]
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    check = "assert 'example' in losses.list_losses() and timm.is_model('hybridhash_example_16')"
    # In a process of its own: what is registered would meet the tests that walk the registries.
    script = "\n".join([*blocks, check])
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_files_that_the_steps_name_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    names = re.findall(r"`((?:hybridhash|tests|benchmarks|docs)/[\w/.]*)`", text)
    assert len(names) > 5
    assert [name for name in names if not (ROOT / name).exists()] == []
