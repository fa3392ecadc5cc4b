import pytest
import torch
from safetensors import safe_open

from tests import GOLDEN

collect_ignore = ["_timm_suite_plugin.py"]  # replaces timm.list_models where it is imported

GOLDEN_FILE = GOLDEN / "model_tiny.safetensors"


@pytest.fixture(scope="session")
def golden():
    """Tensors of the golden file, and its metadata."""
    with safe_open(GOLDEN_FILE, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture(scope="session")
def reference_weights(golden):
    """State dict in the layout of the public reference."""
    tensors, _ = golden
    return {key.removeprefix("weights/"): x for key, x in tensors.items() if key.startswith("weights/")}


@pytest.fixture
def small_kwargs():
    """A configuration that runs in milliseconds."""
    return {
        "img_size": 32,
        "embed_dims": (16, 32, 64),
        "num_heads": (1, 2, 4),
        "depths": (1, 1, 2),
    }


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
