import pytest
import torch

from hybridhash.eval import evaluate
from tests._hub_server import FakeHub, Process


@pytest.fixture(scope="session")
def hub():
    """A Hub on this machine."""
    with FakeHub() as server:
        yield server


@pytest.fixture(scope="session")
def online(hub, tmp_path_factory):
    """A process whose Hub is ``hub``."""
    process = Process(tmp_path_factory.mktemp("home"), HF_ENDPOINT=hub.url)
    yield process
    process.close()


@pytest.fixture(scope="session")
def offline(tmp_path_factory):
    """A process that must not ask any Hub."""
    process = Process(tmp_path_factory.mktemp("home"), HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    yield process
    process.close()


@pytest.fixture(scope="session")
def unconnected(tmp_path_factory):
    """A process whose Hub refuses every connection."""
    process = Process(tmp_path_factory.mktemp("home"), HF_ENDPOINT="http://127.0.0.1:9")
    yield process
    process.close()


@pytest.fixture
def report():
    """Metrics of random 16-bit codes."""
    generator = torch.Generator().manual_seed(2)
    query, database = (torch.randn(n, 16, generator=generator) for n in (5, 30))
    return evaluate(
        query,
        torch.arange(5) % 3,
        database,
        torch.arange(30) % 3,
        top_k=20,
        ks=(1, 10),
        denominator="relevant",
    )
