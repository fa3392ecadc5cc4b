"""What timm and its users expect of a model, for every registered architecture."""

import copy
import io
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, freeze
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hybridhash  # noqa: F401
from hybridhash.models import HybridHash

ARCHITECTURES = timm.list_models("hybridhash*")


@pytest.fixture(params=ARCHITECTURES)
def name(request):
    return request.param


# At the sizes of small_kwargs all entry points build this network, up to the rows of the last layer:
# test_constructor_and_factory_agree.
@pytest.fixture(params=["hybridhash_16", "hybridhash_tiny_64"])
def create(request, small_kwargs):
    def create(**kwargs):
        return timm.create_model(request.param, **{"drop_path_rate": 0.0, **small_kwargs, **kwargs})

    return create


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


class Float32Outputs(TorchDispatchMode):
    """Counts the elements of every float32 tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.elements += tensor.numel()
        return result


class TestConfig:
    def test_the_default_tag_is_the_pretrained_backbone(self, name):
        cfg = get_pretrained_cfg(name)
        if "nano" in name:
            assert cfg.tag == "copies"
            assert cfg.file
            return
        assert cfg.tag == "nest_goog_in1k"
        assert cfg.hf_hub_filename == "model.safetensors"
        size = name.split("_")[1]
        nest = size if size in ("small", "tiny") else "base"
        assert cfg.hf_hub_id == f"timm/nest_{nest}_jx.goog_in1k"

    def test_the_config_describes_the_model(self, name):
        cfg = get_pretrained_cfg(name)
        with torch.device("meta"):
            model = timm.create_model(name)
        assert cfg.num_classes == model.num_classes == model.bits == int(name.rsplit("_", 1)[1])
        assert cfg.input_size == (model.in_chans, model.img_size, model.img_size)
        assert cfg.fixed_input_size
        assert cfg.license == "apache-2.0"
        assert model.get_submodule(cfg.first_conv) is model.patch_embed.proj
        assert model.get_submodule(cfg.classifier) is model.get_classifier()
        assert model.pretrained_cfg["architecture"] == name
        assert model.default_cfg is model.pretrained_cfg
        edge = model.levels[-1].edge
        assert tuple(cfg.pool_size) == (edge, edge)

    def test_an_unknown_tag_is_refused(self, name):
        with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
            timm.create_model(f"{name}.no_such_tag")


class TestAttributes:
    def test_features_and_head(self, create, images):
        model = create().eval()
        features = model.forward_features(images)
        assert features.shape == (2, model.num_features, 2, 2)
        pre_logits = model.forward_head(features, pre_logits=True)
        assert pre_logits.shape == (2, model.head_hidden_size)
        assert torch.equal(model.forward_head(features), model(images))

    def test_feature_info_describes_the_stages(self, create, images):
        model = create().eval()
        _, maps = model.forward_intermediates(images)
        for info, x in zip(model.feature_info, maps, strict=True):
            assert x.shape[1] == info["num_chs"]
            assert 32 // x.shape[-1] == info["reduction"]
            assert isinstance(model.get_submodule(info["module"]), nn.Module)

    def test_the_classifier_has_weight_and_bias(self, create):
        classifier = create().get_classifier()
        assert isinstance(classifier, nn.Linear)
        assert classifier.bias is not None


class TestResetClassifier:
    def test_bits_can_be_changed(self, create, images):
        model = create().eval()
        interaction = copy.deepcopy(model.head.interaction.state_dict())
        model.reset_classifier(24)
        assert model(images).shape == (2, 24)
        assert model.bits == model.num_classes == 24
        assert all(torch.equal(x, interaction[key]) for key, x in model.head.interaction.state_dict().items())

    def test_zero_bits_equal_the_pre_logits_of_both_ways(self, create, images):
        model = create().eval()
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
        bare = create(num_classes=0).eval()
        bare.load_state_dict(
            {key: x for key, x in model.state_dict().items() if not key.startswith("head.fc.")}
        )
        model.reset_classifier(0)
        assert torch.equal(model(images), expected)
        assert torch.equal(bare(images), expected)

    def test_pooling_is_kept_unless_named(self, create, images):
        model = create(global_pool="catavgmax").eval()
        assert model.head_hidden_size == 2 * model.num_features
        model.reset_classifier(0)
        assert model(images).shape == (2, model.head_hidden_size)
        model.reset_classifier(8, "avg")
        assert model.head_hidden_size == model.num_features
        assert model(images).shape == (2, 8)

    def test_without_pooling_and_bits_the_map_comes_back(self, create, images):
        model = create().eval()
        model.reset_classifier(0, "")
        assert torch.equal(model(images), model.forward_features(images))
        model.reset_classifier(2)  # as timm's scripts do; only running it needs a pooling

    @pytest.mark.parametrize("training", [True, False])
    def test_new_layers_inherit_dtype_and_mode_and_frozen_ones_stay_frozen(self, create, training):
        model = create().to(torch.float64).train(training)
        freeze(model)
        model.reset_classifier(5)
        assert model.head.fc.weight.dtype == torch.float64
        assert all(module.training == training for module in model.head.modules())
        trainable = {key for key, p in model.named_parameters() if p.requires_grad}
        assert trainable == {"head.fc.weight", "head.fc.bias"}

    def test_negative_bits_are_refused(self, create):
        with pytest.raises(ValueError, match="got -3"):
            create().reset_classifier(-3)


class TestIntermediates:
    def test_taps_agree_however_they_are_taken(self, create, images):
        model = create().eval()
        final, maps = model.forward_intermediates(images, norm=True)
        torch.testing.assert_close(final, model.forward_features(images))
        torch.testing.assert_close(maps[-1], final)
        early = model.forward_intermediates(images, indices=[0, 1], stop_early=True, intermediates_only=True)
        for x, expected in zip(early, maps, strict=False):
            torch.testing.assert_close(x, expected)

    def test_only_nchw_is_offered(self, create, images):
        with pytest.raises(ValueError, match="must be 'NCHW', got 'NLC'"):
            create().forward_intermediates(images, output_fmt="NLC")

    @pytest.mark.parametrize("index", [0, 1, 2])
    def test_pruning_leaves_no_unused_parameter(self, create, images, index):
        model = create().eval()
        expected = model.forward_intermediates(images, indices=[index], intermediates_only=True)[0]
        assert model.prune_intermediate_layers([index]) == [index]
        assert model.num_features == model.head_hidden_size == expected.shape[1]
        pruned = model.forward_intermediates(images, indices=[index], intermediates_only=True)[0]
        torch.testing.assert_close(pruned, expected)
        model.reset_classifier(0, "avg")
        features = model.forward_features(images)
        torch.testing.assert_close(model(images), features.mean(dim=(2, 3)))
        model.reset_classifier(7)
        model(images).sum().backward()
        assert [key for key, p in model.named_parameters() if p.grad is None] == []

    @pytest.mark.parametrize("feature_cls", ["list", "getter", "fx", "hook"])
    def test_features_only(self, create, images, feature_cls):
        torch.manual_seed(1)
        whole = create().eval()
        torch.manual_seed(1)
        model = create(features_only=True, feature_cls=feature_cls, out_indices=(0, 2)).eval()
        maps = model(images)
        assert [x.shape[1] for x in maps] == model.feature_info.channels() == [16, 64]
        assert model.feature_info.reduction() == [4, 16]
        taps = whole.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
        for x, tap in zip(maps, taps, strict=True):
            torch.testing.assert_close(x, tap)

    @pytest.mark.parametrize("prune", [False, True])
    def test_the_getter_can_be_scripted(self, create, images, prune):
        indices = (0, 1) if prune else (0, 2)
        model = create(features_only=True, feature_cls="getter", out_indices=indices).eval()
        scripted = torch.jit.script(model)
        for x, expected in zip(scripted(images), model(images), strict=True):
            assert torch.equal(x, expected)


class TestTraining:
    def test_parameter_groups_cover_all_with_the_head_last(self, create):
        model = create()
        groups = timm.models.group_parameters(model, model.group_matcher(coarse=False))
        layers = timm.models.group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        assert set(layers) == {key for key, _ in model.named_parameters()}
        assert len(groups) > 3
        assert layers["patch_embed.proj.weight"] == 0
        assert layers["head.fc.weight"] == max(layers.values())
        assert layers["levels.1.interaction.local.weight"] == layers["levels.1.blocks.0.norm1.weight"]

    def test_layer_decay_gives_the_head_the_full_rate(self, create):
        model = create()
        optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
        scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
        assert len(scale) == len(list(model.parameters()))
        assert scale[id(model.head.fc.weight)] == 1.0
        assert scale[id(model.patch_embed.proj.weight)] == min(scale.values()) < 0.2

    def test_position_embeddings_are_spared_weight_decay(self, create):
        model = create()
        spared = model.no_weight_decay()
        assert spared == {key for key, _ in model.named_parameters() if "pos_embed" in key}
        assert len(spared) == 6
        optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
        decayed = {
            id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]
        }
        assert not decayed & {id(p) for key, p in model.named_parameters() if key in spared}

    def test_gradient_checkpointing_changes_no_gradient(self, create, images):
        model = create().train()
        model(images).square().sum().backward()
        expected = {key: p.grad.clone() for key, p in model.named_parameters()}
        model.zero_grad()
        model.set_grad_checkpointing()
        assert all(level.grad_checkpointing for level in model.levels)
        model(images).square().sum().backward()
        for key, p in model.named_parameters():
            torch.testing.assert_close(p.grad, expected[key])
        model.set_grad_checkpointing(False)
        assert not any(level.grad_checkpointing for level in model.levels)

    def test_weights_can_be_averaged(self, create, images):
        model = create()
        ema = ModelEmaV3(model, decay=0.5)
        with torch.no_grad():
            model.head.fc.weight.add_(1.0)
        ema.update(model)
        torch.testing.assert_close(ema.module.head.fc.weight, model.head.fc.weight - 0.5)
        assert ema.module.eval()(images).shape == (2, model.bits)


class TestCopies:
    def test_deepcopy_and_pickle(self, create, images):
        model = create().eval()
        expected = model(images)
        assert torch.equal(copy.deepcopy(model)(images), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(images), expected)

    def test_state_dict_through_a_file(self, create, images):
        model, other = create().eval(), create().eval()
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        buffer.seek(0)
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(other(images), model(images))


class TestDeviceAndDtype:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_the_dtype_reaches_every_tensor_at_construction(self, create, dtype):
        model = create(dtype=dtype)
        assert {x.dtype for x in model.state_dict().values()} == {dtype}
        model.reset_classifier(3)
        assert {x.dtype for x in model.state_dict().values()} == {dtype}

    def test_no_float32_copy_is_made_on_the_way_to_a_smaller_dtype(self, create, tmp_path):
        path = tmp_path / "model.safetensors"
        source = create(dtype=torch.bfloat16)
        save_file(source.state_dict(), path)
        with Float32Outputs() as outputs:
            model = create(dtype=torch.bfloat16, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
        assert torch.equal(model.norm.weight, source.norm.weight)
        assert torch.equal(model.head.fc.weight, source.head.fc.weight)
        # What there is in float32 are the rates of stochastic depth, some dozens of numbers.
        assert outputs.elements < 0.01 * sum(p.numel() for p in model.parameters())

    def test_the_device_reaches_every_tensor_at_construction(self, create):
        assert {x.device.type for x in create(device="meta").state_dict().values()} == {"meta"}

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_flips_bits_near_zero_only(self, create, images, dtype):
        model = create().eval()
        with torch.no_grad():
            codes = model(images)
            half = model.to(dtype)(images.to(dtype))
            with torch.autocast("cpu", dtype=dtype):
                mixed = model.float()(images)
        assert half.dtype == dtype
        for other in (half.float(), mixed.float()):
            assert (other - codes).abs().max() < 0.05

    def test_constructor_and_factory_agree(self, name, small_kwargs):
        model = timm.create_model(name, **small_kwargs, drop_path_rate=0.1)
        direct = HybridHash(num_classes=model.num_classes, **small_kwargs, drop_path_rate=0.1)
        assert str(direct) == str(model)
        shapes, expected = (
            {key: x.shape for key, x in network.state_dict().items()} for network in (model, direct)
        )
        assert list(shapes.items()) == list(expected.items())

    def test_model_args_rebuild_the_network(self, create, images):
        model = create(
            img_size=64, in_chans=4, patch_size=2, depths=(1, 2, 1), tokens_per_block=4, pad_type=""
        )
        rebuilt = HybridHash(num_classes=model.num_classes, **model.model_args).eval()
        rebuilt.load_state_dict(model.state_dict())
        images = torch.randn(1, 4, 64, 64)
        assert torch.equal(rebuilt(images), model.eval()(images))

    def test_none_means_the_default_layer(self, create):
        model = create(norm_layer=None, act_layer=None)
        assert isinstance(model.norm, nn.LayerNorm)
        assert model.norm.eps == 1e-6
        assert isinstance(model.levels[0].blocks[0].mlp.act, nn.GELU)

    @pytest.mark.parametrize("img_size", [64, (64, 64), [64, 64]])
    def test_the_image_size_has_three_forms(self, create, img_size):
        assert create(img_size=img_size).img_size == 64
