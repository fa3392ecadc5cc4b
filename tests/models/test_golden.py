"""The network reproduces the public reference, through the checkpoint mapping."""

import json

import pytest
import timm
import torch

import hybridhash  # noqa: F401
from hybridhash.models import checkpoint_filter_fn

pytestmark = [
    pytest.mark.filterwarnings("ignore:this checkpoint has the layout of the public HybridHash reference"),
    pytest.mark.parametrize("order", ["correct", "legacy"]),
]


@pytest.fixture
def model(golden, reference_weights, order):
    _, metadata = golden
    model = timm.create_model(
        "hybridhash_16",
        embed_dims=json.loads(metadata["embed_dims"]),
        num_heads=json.loads(metadata["num_heads"]),
        depths=json.loads(metadata["depths"]),
        img_size=int(metadata["img_size"]),
        drop_path_rate=0.0,
        pad_type="",
        legacy_token_order=order == "legacy",
    ).eval()
    model.load_state_dict(checkpoint_filter_fn(reference_weights, model))
    return model


@pytest.fixture
def images(golden):
    tensors, metadata = golden
    mean, std = (
        torch.tensor([float(x) for x in metadata[key].split(",")]).view(3, 1, 1) for key in ("mean", "std")
    )
    return (tensors["image"].float() / 255 - mean) / std


def test_codes_and_maps_match(model, images, golden, order):
    tensors, _ = golden
    modules = {
        "patch_embed": model.patch_embed,
        "interaction_1": model.levels[1].interaction,
        "interaction_2": model.levels[2].interaction,
        "level_0": model.levels[0],
        "level_1": model.levels[1],
        "level_2": model.levels[2],
    }
    maps = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda _m, _i, out, name=name: maps.__setitem__(name, out))
    with torch.no_grad():
        codes = model(images)
        features = model.forward_features(images)
    torch.testing.assert_close(codes, tensors[f"{order}/code"], rtol=0, atol=1e-5)
    torch.testing.assert_close(features[..., ::3, ::3], tensors[f"{order}/features/slice"], rtol=0, atol=1e-5)
    for name, x in maps.items():
        step = 7 if x.shape[-1] > 14 else 3
        expected = tensors[f"{order}/act/{name}/slice"]
        torch.testing.assert_close(x[..., ::step, ::step], expected, rtol=0, atol=1e-5, msg=name)


def test_gradient_norms_match(model, images, golden, reference_weights, order):
    tensors, _ = golden
    (model(images) * tensors["grad_weight"]).sum().backward()
    # The name of each tensor after the mapping: constants survive its permutations.
    tags = {key: torch.full_like(x, i) for i, (key, x) in enumerate(reference_weights.items())}
    keys = list(tags)
    mapped = checkpoint_filter_fn(tags, model)
    source = {name: keys[int(x.flatten()[0])] for name, x in mapped.items()}
    assert len(source) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        expected = tensors[f"{order}/grad/{source[name]}"].item()
        assert parameter.grad.norm().item() == pytest.approx(expected, rel=1e-3), name
