"""A hash head on timm backbones: one interface, whatever the backbone."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from torch import nn

import hybridhash
from hybridhash.hub import load, save_pretrained
from hybridhash.models import HashModel, create_hash_model, list_heads

# One small model of each family, with what makes it smaller.
BACKBONES = {
    "vgg11": {"mlp_ratio": 0.01},
    "resnet10t": {},
    "test_convnext": {},
    "test_vit": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "window_size": 4,
        "embed_dim": 16,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 4, 8),
    },
    "test_efficientnet": {},
    "mobilenetv3_small_050": {},
}


def make(name="resnet10t", bits=12, **kwargs):
    torch.manual_seed(0)
    return create_hash_model(name, bits, **{**BACKBONES.get(name, {}), **kwargs}).eval()


def images(rows=2, channels=3):
    return torch.randn(rows, channels, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BACKBONES)
def test_the_interface_of_hybridhash(name):
    model, x = make(name), images()
    codes = model(x)
    assert codes.shape == (2, 12)
    assert model.bits == model.num_classes == 12
    features = model.forward_features(x)
    torch.testing.assert_close(model.forward_head(features), codes)
    embedding = model.forward_head(features, pre_logits=True)
    assert embedding.shape == (2, model.head_hidden_size)
    assert isinstance(model.get_classifier(), nn.Linear)
    assert model.pretrained_cfg["num_classes"] == 12
    assert timm.data.resolve_model_data_config(model)["input_size"][0] == 3
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), embedding)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    assert model.bits == 5
    assert not model.head.training


def test_the_backbone_takes_weights_from_a_file(tmp_path):
    source = timm.create_model("resnet10t", num_classes=10).eval()
    path = tmp_path / "classifier.safetensors"
    save_file(source.state_dict(), path)
    overlay = {"file": str(path), "num_classes": 10, "mean": (0.5, 0.5, 0.5)}
    for kwargs in ({"pretrained": True, "pretrained_cfg_overlay": overlay}, {"checkpoint_path": path}):
        model = make(**kwargs)
        embedding = model.forward_head(model.forward_features(images()), pre_logits=True)
        expected = source.forward_head(source.forward_features(images()), pre_logits=True)
        torch.testing.assert_close(embedding, expected)
    model = make(pretrained_cfg_overlay={"mean": (0.5, 0.5, 0.5)})
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    assert "mean" not in str(model.model_args)  # weights are saved with the model, not where they came from


def test_a_file_that_is_no_checkpoint_of_the_backbone_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nothing"):
        make(checkpoint_path=tmp_path / "nothing")
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"{" * 100)
    with pytest.raises(ValueError, match=r"weights\.safetensors could not be loaded: .*header"):
        make(checkpoint_path=path)
    save_file({"norm.weight": torch.zeros(1)}, path)
    message = (
        r"weights\.safetensors could not be loaded: most weights of resnet10t are not in it, such as conv1"
    )
    with pytest.raises(ValueError, match=message):
        make(checkpoint_path=path)


def test_the_backbone_is_downloaded_to_the_cache_that_is_asked_for(monkeypatch, tmp_path):
    asked = []

    def fail(*args, **kwargs):
        asked.append(kwargs["cache_dir"])
        raise ConnectionError

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fail)
    with pytest.raises(ConnectionError, match=r"the transfer of timm/resnet10t\.c3_in1k failed"):
        create_hash_model("resnet10t", 16, pretrained=True, cache_dir=tmp_path)
    assert asked == [tmp_path]


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_efficientnet"])
def test_feature_maps_are_those_of_the_backbone(name, tmp_path):
    model, x = make(name), images()
    last, maps = model.forward_intermediates(x)
    expected_last, expected = model.backbone.forward_intermediates(x)
    assert torch.equal(last, expected_last)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    save_pretrained(model, tmp_path)
    extractor = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    assert all(torch.equal(a, b) for a, b in zip(extractor(x), expected[-3:], strict=True))
    assert extractor.feature_info.channels() == [a.shape[1] for a in expected[-3:]]


def test_a_backbone_without_groups_is_named():
    class Backbone(nn.Linear):
        num_features = 4
        forward_features = forward_head = nn.Linear.forward

    with pytest.raises(AttributeError, match="gives Backbone no parameter groups: train without layer_decay"):
        create_hash_model(Backbone(3, 4), 8).group_matcher()


def test_torchscript_gives_the_same_codes():
    model, x = make(), images()
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@pytest.mark.parametrize("name", BACKBONES)
def test_groups_decay_and_checkpointing_are_those_of_the_backbone(name):
    model, x = make(name), images()
    if name == "vgg11":
        with pytest.raises(AssertionError, match="not supported"):
            model.set_grad_checkpointing()
    else:
        model.set_grad_checkpointing()
    model.train()
    model(x).sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    names = {key for key, _ in model.named_parameters()}
    assert model.no_weight_decay() <= names
    assert ("backbone.pos_embed" in model.no_weight_decay()) == ("vit" in name)
    scales = {
        group["lr_scale"]
        for group in create_optimizer_v2(model, opt="adamw", lr=1.0, layer_decay=0.5).param_groups
    }
    assert len(scales) > 3
    assert max(scales) == 1.0
    head = {id(p) for p in model.head.parameters()}
    for group in create_optimizer_v2(model, opt="adamw", lr=1.0, layer_decay=0.5).param_groups:
        if any(id(p) in head for p in group["params"]):
            assert group["lr_scale"] == 1.0


@pytest.mark.parametrize("name", BACKBONES)
def test_export_autocast_and_copies(name):
    model, x = make(name), images()
    expected = model(x)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bool(model(x).isfinite().all())
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_saving_and_loading_is_exact(name, tmp_path):
    model, x = make(name, head="weighted"), images()
    model.head.set_weights(torch.arange(12.0))
    save_pretrained(model, tmp_path / "model")
    loaded = load(tmp_path / "model").eval()
    assert isinstance(loaded, HashModel)
    assert torch.equal(loaded(x), model(x))
    assert torch.equal(loaded.head.weights, model.head.weights)
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    assert torch.equal(by_timm(x), model(x))
    for key in ("mean", "std", "interpolation", "crop_pct", "input_size"):
        assert np.array_equal(loaded.pretrained_cfg[key], model.pretrained_cfg[key])
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architecture"] == "hash_model"
    assert config["bits"] == 12
    assert config["model_args"]["backbone"] == name


@pytest.mark.parametrize("where", ["when it is made", "when it is saved"])
def test_the_size_that_a_convolutional_backbone_was_trained_at_is_saved(where, tmp_path):
    size = {"input_size": (3, 64, 80)}
    if where == "when it is made":
        save_pretrained(make(pretrained_cfg_overlay=size), tmp_path)
    else:
        save_pretrained(make(), tmp_path, preprocessing=size)
    assert timm.data.resolve_model_data_config(load(tmp_path))["input_size"] == (3, 64, 80)
    assert "| input | 3 x 64 x 80 |" in (tmp_path / "README.md").read_text()


def test_a_size_that_the_model_does_not_take_is_refused(tmp_path):
    for model, size in [
        (make(), (1, 64, 64)),
        (make(), (64, 64)),
        (make("test_vit"), (3, 96, 96)),
        (timm.create_model("hybridhash_tiny_16", img_size=32), (3, 64, 64)),
    ]:
        with pytest.raises(ValueError, match=r"input_size=.* is not what the model takes: .* are \("):
            save_pretrained(model, tmp_path, preprocessing={"input_size": size})


def test_a_size_that_changes_a_backbone_is_saved_as_its_argument(tmp_path):
    model = create_hash_model("test_vit", 8, pretrained_cfg_overlay={"input_size": (3, 64, 64)}).eval()
    save_pretrained(model, tmp_path)
    assert torch.equal(load(tmp_path).eval()(images()), model(images()))


def test_what_is_saved_after_changes_is_what_loads(tmp_path):
    model, x = make(in_chans=4, head="mlp", head_args={"hidden": (9,)}), images(channels=4)
    model.reset_classifier(7)
    save_pretrained(model, tmp_path)
    loaded = load(tmp_path).eval()
    assert loaded.bits == 7
    assert torch.equal(loaded(x), model(x))
    assert "`hash_model` on `resnet10t`" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("head", list_heads())
def test_every_head_fits_a_backbone(head):
    model = make(head=head)
    codes = hybridhash.encode(model, [images()], progress=False)
    assert codes.bits == 12
    assert len(codes) == 2


def test_a_module_with_timms_interface_is_a_backbone():
    backbone = timm.create_model("resnet10t", num_classes=0)
    model = create_hash_model(backbone, 8, head="sign")
    assert model(images()).abs().unique().tolist() == [1.0]
    with pytest.raises(TypeError, match="must be a hash model made by"):
        save_pretrained(model, "nowhere")
    with pytest.raises(TypeError, match="backbone is a module already, so give img_size"):
        create_hash_model(backbone, 8, img_size=64)
    with pytest.raises(TypeError, match="backbone is a module already, so give pretrained"):
        create_hash_model(backbone, 8, pretrained=True)


def test_impossible_models_say_why():
    for bits in (0, 4097):
        with pytest.raises(ValueError, match=f"bits must be 1 to 4096, got {bits}"):
            create_hash_model("resnet10t", bits)
    with pytest.raises(ValueError, match="num_classes must be 0 to 4096, got 4097"):
        create_hash_model("resnet10t", 8).reset_classifier(4097)
    with pytest.raises(ValueError, match="timm has no model 'resnet50x'; nearest: resnet"):
        create_hash_model("resnet50x", 8)
    with pytest.raises(ValueError, match="no head is called 'tanhh'"):
        create_hash_model("resnet10t", 8, head="tanhh")
    with pytest.raises(TypeError, match="takes no argument 'gama'"):
        create_hash_model("resnet10t", 8, head="bihalf", head_args={"gama": 1})
    with pytest.raises(TypeError, match="the backbone resnet10t takes no argument 'img_sizes': leave it out"):
        create_hash_model("resnet10t", 8, img_sizes=64)
    with pytest.raises(TypeError, match=r"takes no argument 'img_size': .* any size .*preprocessing="):
        create_hash_model("resnet10t", 8, img_size=64)
    with pytest.raises(
        TypeError, match=r"pretrained_cfg would not reach the backbone.*pretrained_cfg_overlay"
    ):
        create_hash_model("resnet10t", 8, pretrained_cfg={"mean": (0.5, 0.5, 0.5)})
    with pytest.raises(ValueError, match=r"unknown tag in 'resnet10t\.in22k': there is resnet10t\.c3_in1k"):
        create_hash_model("resnet10t.in22k", 8)
    with pytest.raises(TypeError, match="Linear has no forward_features, forward_head, num_features"):
        create_hash_model(nn.Linear(3, 4), 8)
    model = create_hash_model("resnet10t", 8, global_pool="")
    with pytest.raises(ValueError, match="global_pool='avg'"):
        model(images())
    with pytest.raises(ValueError, match="num_classes must be 0 to 4096, got -1: it is the code length"):
        model.reset_classifier(-1)


def test_a_global_pool_can_be_reset():
    model = make()
    model.reset_classifier(4, "max")
    assert model(images()).shape == (2, 4)


def test_the_size_of_images_can_be_set_where_the_backbone_has_one(tmp_path):
    model = create_hash_model("vit_tiny_patch16_224", bits=8).eval()
    model.set_input_size(64)
    images = torch.randn(1, 3, 64, 64)
    expected = model(images)
    save_pretrained(model, tmp_path)
    loaded = load(tmp_path).eval()
    assert torch.equal(loaded(images), expected)
    assert loaded.pretrained_cfg["input_size"] == (3, 64, 64)
    with pytest.raises(AttributeError, match=r"timm gives ResNet no set_input_size: .*preprocessing="):
        create_hash_model("resnet10t", bits=8).set_input_size(64)
