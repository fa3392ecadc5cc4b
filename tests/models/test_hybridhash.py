"""The network: shapes, configurations, initialisation, errors."""

import pytest
import timm
import torch

import hybridhash  # noqa: F401
from hybridhash.models import HybridHash

ARCHITECTURES = [f"hybridhash{size}_{bits}" for size in ("", "_small", "_tiny") for bits in (16, 32, 48, 64)]
ARCHITECTURES += [f"hybridhash_nano_{bits}" for bits in (64, 128, 256)]


def test_every_architecture_is_registered():
    assert sorted(timm.list_models("hybridhash*")) == sorted(ARCHITECTURES)
    assert sorted(timm.list_models(module="hybridhash")) == sorted(ARCHITECTURES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bits_follow_the_name(name, small_kwargs):
    model = timm.create_model(name, **small_kwargs).eval()
    bits = int(name.rsplit("_", 1)[1])
    codes = model(torch.randn(2, 3, 32, 32))
    assert codes.shape == (2, bits)
    assert model.bits == model.num_classes == bits
    assert codes.abs().max() < 1


def test_full_size_has_the_published_parameters_and_all_get_a_gradient():
    model = timm.create_model("hybridhash_64", drop_path_rate=0.0)
    assert sum(p.numel() for p in model.parameters()) == 55_586_240
    model(torch.randn(1, 3, 224, 224)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A softmax over the hash layer's single token is constant, so queries and keys get zeros there;
    # they are rows of qkv, whose value rows do get a gradient.
    assert without == []


def test_state_dict_keys_are_readable(small_kwargs):
    model = timm.create_model("hybridhash_16", **small_kwargs)
    keys = {key for key in model.state_dict() if not key.startswith("levels.2")}
    assert {key for key in keys if key.startswith("head.")} == {
        "head.fc.bias",
        "head.fc.weight",
        "head.interaction.global_branch.attn.proj.bias",
        "head.interaction.global_branch.attn.proj.weight",
        "head.interaction.global_branch.attn.qkv.weight",
        "head.interaction.global_branch.pos_embed",
        "head.interaction.local_col.bias",
        "head.interaction.local_col.weight",
        "head.interaction.local_row.bias",
        "head.interaction.local_row.weight",
    }
    assert {key for key in keys if key.startswith("levels.1") and ".blocks." not in key} == {
        "levels.1.interaction.global_branch.attn.proj.bias",
        "levels.1.interaction.global_branch.attn.proj.weight",
        "levels.1.interaction.global_branch.attn.qkv.weight",
        "levels.1.interaction.global_branch.pos_embed",
        "levels.1.interaction.global_branch.reduce.weight",
        "levels.1.interaction.local.bias",
        "levels.1.interaction.local.weight",
        "levels.1.interaction.norm.bias",
        "levels.1.interaction.norm.weight",
        "levels.1.pos_embed",
    }


@pytest.mark.parametrize("img_size", [16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 288, 384])
def test_any_multiple_of_16_pixels(img_size, small_kwargs):
    model = timm.create_model("hybridhash_32", **{**small_kwargs, "img_size": img_size}).eval()
    x = torch.randn(1, 3, img_size, img_size)
    features = model.forward_features(x)
    assert features.shape == (1, 64, img_size // 16, img_size // 16)
    assert model.forward_head(features).shape == (1, 32)


@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_input_channels(in_chans, small_kwargs):
    model = timm.create_model("hybridhash_16", in_chans=in_chans, **small_kwargs).eval()
    assert model(torch.randn(2, in_chans, 32, 32)).shape == (2, 16)


@pytest.mark.parametrize("bits", [1, 7, 24, 100, 4096])
def test_any_code_length(bits, small_kwargs):
    model = timm.create_model("hybridhash_64", num_classes=bits, **small_kwargs).eval()
    codes = model(torch.randn(2, 3, 32, 32))
    assert codes.shape == (2, bits)
    assert model.bits == bits


def test_no_bits_is_the_embedding_without_tanh(small_kwargs):
    model = timm.create_model("hybridhash_64", **small_kwargs).eval()
    x = torch.randn(2, 3, 32, 32)
    embedding = model.forward_head(model.forward_features(x), pre_logits=True)
    codes = model(x)
    torch.testing.assert_close(codes, torch.tanh(model.head.fc(embedding)))
    model.reset_classifier(0)
    assert model.bits == 0
    torch.testing.assert_close(model(x), embedding)
    assert embedding.abs().max() > 1


@pytest.mark.parametrize(
    "kwargs",
    [
        {"depths": (2, 1, 3)},
        {"embed_dims": (8, 16, 24)},
        {"num_heads": [4, 8, 16]},
        {"patch_size": 2},
        {"tokens_per_block": 4},
        {"interaction_heads": 4},
        {"pad_type": ""},
        {"legacy_token_order": True},
        {"global_pool": "catavgmax"},
        {"global_pool": "max"},
        {"drop_path_rate": 0.0, "drop_rate": 0.1, "attn_drop_rate": 0.1, "proj_drop_rate": 0.1},
        {"mlp_ratio": 2.0, "qkv_bias": False},
        {"norm_layer": torch.nn.LayerNorm, "act_layer": torch.nn.ReLU},
    ],
    ids=str,
)
def test_every_architecture_argument_can_be_overridden(kwargs, small_kwargs):
    model = timm.create_model("hybridhash_16", **{**small_kwargs, **kwargs})
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"img_size": 225}, "multiple of 16 .* got 225: the nearest possible is 224 or 240"),
        ({"img_size": 8}, "nearest possible is 16"),
        ({"img_size": (224, 192)}, r"must be square, got \(224, 192\)"),
        ({"num_classes": -1}, "num_classes must be 0 to 4096, got -1: it is the code length"),
        ({"num_classes": 4097}, "num_classes must be 0 to 4096, got 4097: it is the code length"),
        ({"in_chans": 0}, "in_chans must be >= 1, got 0"),
        ({"depths": (2, 2)}, r"depths needs 3 numbers >= 1, one for each stage, got \(2, 2\)"),
        ({"depths": (2, 0, 2)}, "depths needs 3 numbers"),
        ({"embed_dims": 64}, "embed_dims needs 3 numbers"),
        ({"num_heads": (3, 8, 16)}, r"num_heads=3 does not divide 128 channels: possible are \[1, 2, 4, 8"),
        ({"interaction_heads": 7}, "interaction_heads=7 does not divide 256 channels"),
        ({"tokens_per_block": 3}, r"must be one of \[1, 4, 49, 196\] .* 14x14 positions, got 3"),
        ({"pad_type": "valid"}, "pad_type must be one of 'same', '', got 'valid'"),
        ({"patch_size": 0}, "patch_size must be >= 1, got 0"),
    ],
    ids=str,
)
def test_impossible_configurations_say_what_is_possible(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("hybridhash_64", **kwargs)


def test_a_misspelt_argument_is_refused():
    with pytest.raises(TypeError, match="img_sice"):
        timm.create_model("hybridhash_64", img_sice=64)


def test_images_of_another_size_are_refused_with_advice(small_kwargs):
    model = timm.create_model("hybridhash_16", **small_kwargs).eval()
    with pytest.raises(AssertionError, match=r"got images of 32x48, the model takes 32x32: .*img_size="):
        model(torch.randn(1, 3, 32, 48))


def test_codes_without_pooling_are_refused_when_run_not_before(small_kwargs):
    model = timm.create_model("hybridhash_16", global_pool="", **small_kwargs).eval()
    with pytest.raises(ValueError, match="global_pool=''"):
        model(torch.randn(1, 3, 32, 32))
    model.reset_classifier(0)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 64, 2, 2)
    model.reset_classifier(8, "avg")
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 8)


def test_memory_format_does_not_change_the_codes(small_kwargs):
    model = timm.create_model("hybridhash_16", **small_kwargs).eval()
    x = torch.randn(2, 3, 32, 32)
    codes = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), codes)


def test_each_image_is_hashed_by_itself(small_kwargs):
    model = timm.create_model("hybridhash_16", **small_kwargs).eval()
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


def test_the_convolutions_of_the_hash_layer_start_as_the_identity_and_noise():
    interaction = HybridHash(img_size=32, embed_dims=(16, 32, 64), num_heads=(1, 2, 4)).head.interaction
    for conv in (interaction.local_row, interaction.local_col):
        noise = conv.weight.detach() - torch.nn.init.dirac_(torch.empty_like(conv.weight))
        assert 0.015 < noise.std() < 0.025
        assert noise.abs().max() < 0.2


def test_init_weights_fills_a_model_made_on_the_meta_device(small_kwargs):
    with torch.device("meta"):
        model = timm.create_model("hybridhash_16", **small_kwargs)
    assert all(p.is_meta for p in model.parameters())
    model = model.to_empty(device="cpu")
    for p in model.parameters():
        torch.nn.init.constant_(p, float("nan"))
    model.init_weights()
    assert all(p.isfinite().all() for p in model.parameters())
    assert model.eval()(torch.randn(1, 3, 32, 32)).isfinite().all()
