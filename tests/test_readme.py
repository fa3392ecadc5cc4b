"""The README's Python blocks run as they stand."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

README = Path(__file__).parent.parent / "README.md"


def blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def images_of(count):
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, 3, 64, 64, generator=generator)
    return TensorDataset(images, torch.arange(count) % 3, torch.arange(count))


def test_there_is_usage_of_about_15_lines():
    assert blocks()
    assert len([line for line in blocks()[0].splitlines() if line.strip()]) <= 18


@pytest.mark.filterwarnings("error::UserWarning")
def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_set = images_of(8)
    namespace = {
        "train_set": train_set,
        "train_loader": DataLoader(train_set, batch_size=4),
        "query_loader": DataLoader(images_of(3), batch_size=4),
        "database_loader": DataLoader(images_of(7), batch_size=4),
    }
    for block in blocks():
        exec(compile(block, str(README), "exec"), namespace)
    assert Path("database.safetensors").exists()
