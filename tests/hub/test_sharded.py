"""Models that ``fully_shard`` has split over processes are saved whole."""

import pytest
import torch
import torch.distributed.fsdp as fsdp
from torch.distributed.device_mesh import init_device_mesh

from hybridhash.hub import load, save_pretrained, weights_sha256
from tests._hub_models import FILES, create, images_for
from tests.losses._ranks import run_on_ranks


def _save_sharded(rank, folder):
    model = create(num_classes=24)
    mesh = init_device_mesh("cpu", (2,))
    for level in model.levels:
        fsdp.fully_shard(level, mesh=mesh)
    fsdp.fully_shard(model, mesh=mesh)
    save_pretrained(model, folder)
    return weights_sha256(model)


@pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="PyTorch before 2.6 has no fully_shard there")
def test_a_sharded_model_is_saved_whole(tmp_path):
    model = create(num_classes=24)
    digests = run_on_ranks(_save_sharded, tmp_path / "model")
    assert digests == [weights_sha256(model)] * 2
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES
    images = images_for(model)
    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "model").eval()(images), model(images))
