"""The Python blocks of the README and the manual run as they stand, each document from top to bottom."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import hybridhash
from tests import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_ELSEWHERE = {"publishing", "methods", "embeddings"}  # by the tests of these


def blocks(document):
    return re.findall(r"```python\n(.*?)```", document.read_text(), flags=re.DOTALL)


def images_of(count):
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, 3, 64, 64, generator=generator)
    return TensorDataset(images, torch.arange(count) % 3, torch.arange(count))


@pytest.fixture
def namespace():
    """What the documents take for granted: the user's own data and model."""
    train_set = images_of(8)
    loaders = {
        "query_loader": DataLoader(images_of(3), batch_size=4),
        "database_loader": DataLoader(images_of(7), batch_size=4),
    }
    model = hybridhash.create_model("hybridhash_tiny_64", img_size=64, depths=(1, 1, 1)).eval()
    return {
        "train_set": train_set,
        "train_loader": DataLoader(train_set, batch_size=4),
        **loaders,
        "model": model,
        "query": hybridhash.encode(model, loaders["query_loader"], progress=False),
        "database": hybridhash.encode(model, loaders["database_loader"], progress=False),
        "query_features": torch.randn(3, 8),
        "database_features": torch.randn(7, 8),
    }


def test_the_readme_shows_usage_in_about_15_lines():
    usage = blocks(ROOT / "README.md")[0]
    assert len([line for line in usage.splitlines() if line.strip()]) <= 18


def run(block, document, namespace):
    exec(compile(block, str(document), "exec"), namespace)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of the user, with a file that one page takes for granted."""
    monkeypatch.chdir(tmp_path)
    np.save("embeddings.npy", np.random.default_rng(0).normal(size=(300, 40)))


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if blocks(d) and d.stem not in RUN_ELSEWHERE], ids=lambda d: d.stem
)
@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.usefixtures("folder")
def test_python_blocks_run(document, namespace):
    first, *others = blocks(document)
    if document.stem == "README":  # which says that its data are yours
        Path("photos").mkdir()
        Image.effect_noise((64, 64), 50).save("photos/a.png")
    # The first block of a page needs nothing else.
    alone = namespace if document.stem == "README" else {}
    run(first, document, alone)
    namespace.update(alone)
    for block in others:
        run(block, document, namespace)
    for path in re.findall(r'\.save\("([^"]+)"\)', "".join(blocks(document))):
        assert Path(path).exists()


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if blocks(d) and d.stem in RUN_ELSEWHERE], ids=lambda d: d.stem
)
@pytest.mark.usefixtures("folder")
def test_the_first_block_of_a_page_needs_nothing_else(document):
    run(blocks(document)[0], document, {})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.stem)
def test_links_between_documents_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []
