"""Models that ``fully_shard`` has split over processes are saved and pushed whole."""

import pytest
import torch
import torch.distributed.fsdp as fsdp
from torch.distributed.device_mesh import init_device_mesh

from hybridhash.hub import load, push_to_hub, save_pretrained, weights_sha256
from tests._hub_models import FILES, create, images_for
from tests._hub_server import READ_ONLY, TOKEN
from tests._processes import run_on_ranks

pytestmark = pytest.mark.skipif(
    not hasattr(fsdp, "fully_shard"), reason="PyTorch before 2.6 has no fully_shard there"
)


def _sharded():
    model = create(num_classes=24)
    mesh = init_device_mesh("cpu", (2,))
    for level in model.levels:
        fsdp.fully_shard(level, mesh=mesh)
    fsdp.fully_shard(model, mesh=mesh)
    return model


def _save_sharded(rank, folder):
    model = _sharded()
    save_pretrained(model, folder)
    return weights_sha256(model)


def _push_sharded(rank, names):
    """Return the URL of the commit to the first name, and the error of the other push."""
    model = _sharded()
    url = push_to_hub(model, names[0], token=TOKEN)
    try:
        push_to_hub(model, names[1], token=TOKEN)
    except Exception as error:
        return url, f"{type(error).__name__}: {error}"
    return url, ""


def test_a_sharded_model_is_saved_whole(tmp_path):
    model = create(num_classes=24)
    digests = run_on_ranks(_save_sharded, tmp_path / "model")
    assert digests == [weights_sha256(model)] * 2
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES
    images = images_for(model)
    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "model").eval()(images), model(images))


def test_a_sharded_model_is_pushed_whole_by_one_process(hub, tmp_path, monkeypatch):
    # The processes read these when they import huggingface_hub.
    home = str(tmp_path / "home")
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": home,
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    repository = hub.add("someone/sharded", {})
    hub.add("someone/sharded-refused", {}, fault=READ_ONLY)
    names = ["someone/sharded", "someone/sharded-refused"]
    ranks = run_on_ranks(_push_sharded, names, start_method="spawn")
    (url, refusal), (other_url, other_refusal) = ranks
    assert url == f"{hub.url}/someone/sharded/commit/{repository.head}"
    assert other_url == url
    assert refusal.startswith("PermissionError: the Hub refuses")
    assert other_refusal == f"RuntimeError: process 0 of 2 failed: {refusal}"
    assert repository.commits == ["initial", "Add model"]
    for name, content in repository.files.items():
        (tmp_path / name).write_bytes(content)
    save_pretrained(create(num_classes=24), tmp_path / "whole")
    weights = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert repository.files["model.safetensors"] == weights
    images, model = images_for(create()), create(num_classes=24)
    with torch.inference_mode():
        assert torch.equal(load(tmp_path).eval()(images), model(images))
