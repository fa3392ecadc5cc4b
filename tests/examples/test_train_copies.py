"""The example that trains a network to find copies: a stopped run goes on as if it had not been stopped."""

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hybridhash.models import HybridHash, load_checkpoint
from tests import ROOT


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_copies", ROOT / "examples/train_copies.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SMALL = ["--batch-size=6", "--warmup=1", "--dims", "16", "32", "32", "--heads", "1", "2", "2"]
SMALL += ["--depths", "1", "1", "1", "--save-every=2", "--log-every=2"]


def test_a_stopped_run_goes_on_exactly(script, tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(16):
        pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number}.png")
    runs = {"whole": (4,), "stopped": (2, 4)}
    for name, stops in runs.items():
        for steps in stops:
            arguments = script.parse([str(tmp_path / "photos"), "--out", str(tmp_path / name), *SMALL])
            arguments.steps = 4
            if steps < 4:
                _stop_after(script, arguments, steps)
            else:
                script.train(arguments)
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in runs)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    model = HybridHash(
        64, embed_dims=(16, 32, 32), num_heads=(1, 2, 2), depths=(1, 1, 1), interaction_heads=4,
        num_classes=128,
    )  # fmt: skip
    load_checkpoint(model, tmp_path / "whole" / "model.safetensors")  # folded: the plain head
    assert model.lengths == (64, 128)
    assert torch.equal(model.head.fc.weight, whole["head.fc.weight"][:128].float())


def _stop_after(script, arguments, steps):
    """Interrupt a run when it has written its checkpoint of a step."""
    write = script.write_weights

    def interrupt(*given):
        write(*given)
        raise KeyboardInterrupt

    script.write_weights = interrupt
    try:
        with pytest.raises(KeyboardInterrupt):
            script.train(arguments)
    finally:
        script.write_weights = write
    assert torch.load(f"{arguments.out}/checkpoint.pt", weights_only=True)["step"] == steps


def test_compression_is_close_to_jpeg(script, tmp_path):
    y, x = np.mgrid[:128, :128]
    smooth = np.stack([y + x, 2 * x, 255 - y], 2).clip(0, 255).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=20)
    image = torch.from_numpy(smooth).permute(2, 0, 1)[None] / 255
    ours = script.compress(image, torch.tensor([20.0]))[0]
    theirs = torch.from_numpy(np.array(Image.open(tmp_path / "a.jpg"))).permute(2, 0, 1) / 255
    assert (ours - theirs).abs().mean() < 0.02
