"""The checkpoint mapping: what it accepts, what it changes, what it refuses."""

import logging

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.nest import Nest

from hybridhash.models import checkpoint_filter_fn, create_hash_model, load_checkpoint

SMALL = {"embed_dims": (16, 32, 64), "num_heads": (1, 2, 4)}


def create(**kwargs):
    defaults = {"img_size": 32, "depths": (1, 1, 2), **SMALL}
    return timm.create_model("hybridhash_16", **{**defaults, **kwargs}).eval()


@pytest.fixture
def nest():
    return Nest(img_size=32, depths=(1, 1, 3), pad_type="same", **SMALL).eval()


def load(model, state_dict):
    model.load_state_dict(checkpoint_filter_fn(state_dict, model))
    return model


def test_native_round_trip_is_exact_and_leaves_the_callers_dict_alone():
    source = create()
    state_dict = source.state_dict()
    before = {key: x.clone() for key, x in state_dict.items()}
    model = load(create(), state_dict)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), source(x))
    assert list(state_dict) == list(before)
    assert all(torch.equal(state_dict[key], before[key]) for key in before)


@pytest.mark.filterwarnings("ignore:the weights are NesT's backbone")
def test_after_loading_nest_the_features_are_nests(nest):
    model = load(create(depths=(1, 1, 3)), nest.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.forward_features(x), nest.forward_features(x), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:the weights are NesT's backbone")
def test_after_loading_nest_the_embedding_is_nests_map_pooled_whatever_the_seed(nest):
    x = torch.randn(2, 3, 32, 32)
    padded = torch.nn.functional.pad(nest.forward_features(x), (0, 1, 0, 1), value=-torch.inf)
    pooled = torch.nn.functional.max_pool2d(padded, 3, 2).mean((2, 3))
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = load(create(depths=(1, 1, 3)), nest.state_dict())
        embedding = model.forward_head(model.forward_features(x), pre_logits=True)
        torch.testing.assert_close(embedding, pooled, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:the weights are NesT's backbone")
def test_surplus_layers_of_nest_are_dropped_and_logged(nest, caplog):
    with caplog.at_level(logging.INFO, logger="hybridhash.models.checkpoint"):
        model = load(create(depths=(1, 1, 2)), nest.state_dict())
    assert "levels.2.blocks.2" in caplog.text
    kept = nest.levels[2].transformer_encoder[1].mlp.fc1.weight
    assert torch.equal(model.levels[2].blocks[1].mlp.fc1.weight, kept)


def test_loading_nest_warns_that_the_hash_layer_is_untrained(nest):
    with pytest.warns(UserWarning, match="hash layer is untrained"):
        load(create(), nest.state_dict())


@pytest.mark.filterwarnings("error")
def test_loading_nest_for_embeddings_does_not_warn(nest):
    model = load(create(num_classes=0), nest.state_dict())
    assert torch.equal(model.norm.weight, nest.norm.weight)


@pytest.mark.filterwarnings("ignore:the weights are NesT's backbone")
def test_after_loading_nest_every_parameter_still_learns(nest):
    model = load(create(drop_path_rate=0.0), nest.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []


def test_reference_weights_warn_unless_read_in_their_order(reference_weights):
    kwargs = {"img_size": 224, "num_heads": (2, 4, 8), "pad_type": ""}
    with pytest.warns(UserWarning, match="legacy_token_order=True, pad_type=''"):
        load(create(**kwargs), reference_weights)


@pytest.mark.filterwarnings("error")
def test_reference_weights_read_in_their_order_do_not_warn(reference_weights):
    kwargs = {"img_size": 224, "num_heads": (2, 4, 8), "pad_type": "", "legacy_token_order": True}
    model = load(create(**kwargs), reference_weights)
    assert torch.equal(model.norm.weight, reference_weights["norm.weight"])


@pytest.mark.parametrize("img_size", [16, 64, 96])
def test_position_embeddings_follow_the_image_size(img_size):
    source, model = create(img_size=32), create(img_size=img_size)
    with torch.no_grad():
        for level in source.levels:  # a field linear in x and y survives resampling inside the borders
            side = level.grid * level.edge
            ramp = torch.linspace(0, 1, 2 * side + 1)[1::2].expand(side, side)
            blocks = ramp.reshape(level.grid, level.edge, level.grid, level.edge).transpose(1, 2)
            level.pos_embed.copy_(
                blocks.reshape(1, level.grid**2, level.edge**2, 1).expand_as(level.pos_embed)
            )
    load(model, source.state_dict())
    level = model.levels[0]
    side = level.grid * level.edge
    blocks = level.pos_embed[0, ..., 0].reshape(level.grid, level.grid, level.edge, level.edge)
    plane = blocks.transpose(1, 2).reshape(side, side)
    expected = torch.linspace(0, 1, 2 * side + 1)[1::2].expand(side, side)
    inner = slice(side // 4, side - side // 4)
    torch.testing.assert_close(plane[inner, inner], expected[inner, inner], rtol=0, atol=0.02)


def test_position_embeddings_follow_the_tokens_per_block():
    source, model = create(tokens_per_block=1), create(tokens_per_block=4)
    load(model, source.state_dict())
    assert model.levels[1].interaction.global_branch.pos_embed.shape[1] == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sd: sd.pop("norm.weight"), "missing: norm.weight"),
        (lambda sd: sd.update(extra=torch.zeros(1)), "unexpected: extra"),
        (
            lambda sd: sd.update({"norm.bias": torch.zeros(3)}),
            r"wrong shape: norm.bias \(3,\) instead of \(64,\)",
        ),
    ],
)
def test_native_checkpoints_are_checked_strictly(change, message):
    model = create()
    state_dict = dict(model.state_dict())
    change(state_dict)
    with pytest.raises(ValueError, match=message):
        checkpoint_filter_fn(state_dict, model)


@pytest.mark.filterwarnings("ignore:the weights are NesT's backbone")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda sd: sd.pop("levels.2.transformer_encoder.0.norm1.weight"),
            r"missing: levels.2.blocks.0.norm1",
        ),
        (
            lambda sd: sd.update({"levels.0.transformer_encoder.0.x": torch.zeros(1)}),
            "unexpected: levels.0.blo",
        ),
        (lambda sd: sd.update({"norm.bias": torch.zeros(3)}), "wrong shape: norm.bias"),
    ],
)
def test_nest_checkpoints_are_checked_strictly(nest, change, message):
    state_dict = dict(nest.state_dict())
    change(state_dict)
    with pytest.raises(ValueError, match=message):
        checkpoint_filter_fn(state_dict, create())


@pytest.mark.filterwarnings("ignore:the weights are NesT's backbone")
def test_nest_with_fewer_layers_than_the_model_is_refused(nest):
    with pytest.raises(ValueError, match=r"missing: levels.2.blocks.3"):
        checkpoint_filter_fn(nest.state_dict(), create(depths=(1, 1, 4)))


@pytest.mark.parametrize("source", ["nest", "hybridhash", "reference"])
@pytest.mark.filterwarnings("ignore:this checkpoint has the layout of the public")
@pytest.mark.filterwarnings("ignore:the weights are NesT's backbone")
def test_weights_of_another_width_are_refused_by_name(source, nest, reference_weights):
    weights = {
        "nest": nest.state_dict(),
        "hybridhash": create().state_dict(),
        "reference": reference_weights,
    }[source]
    # 3 heads do not divide the 16 channels of the file.
    model = create(embed_dims=(12, 24, 48), num_heads=(3, 6, 12), img_size=32)
    with pytest.raises(ValueError, match=r"does not fit the model.* wrong shape: .*instead of \("):
        checkpoint_filter_fn(weights, model)


@pytest.mark.filterwarnings("ignore:the weights are NesT's backbone")
def test_nest_that_loses_most_layers_of_a_stage_warns(nest):
    with pytest.warns(UserWarning, match="only 1 of the file's 3 layers of levels.2 fit"):
        checkpoint_filter_fn(nest.state_dict(), create(depths=(1, 1, 1)))


def test_a_hash_model_is_told_apart_from_the_network():
    model = create_hash_model("hybridhash_tiny_16", 8, img_size=32, depths=(1, 1, 1))
    with pytest.raises(TypeError, match=r"model must be a hybridhash_\*, got HashModel.*model.backbone"):
        checkpoint_filter_fn({}, model)


def test_another_architecture_is_refused_with_some_of_its_keys():
    other = {"conv1.weight": torch.zeros(1), "layer1.0.bn1.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"neither HybridHash nor .*conv1.weight, layer1.0.bn1.bias"):
        checkpoint_filter_fn(other, create())


def test_an_empty_checkpoint_is_refused():
    with pytest.raises(ValueError, match="no tensor at all"):
        checkpoint_filter_fn({}, create())


def test_other_code_length_is_left_to_timm_with_a_warning():
    source = create(num_classes=24)
    with pytest.warns(UserWarning, match="24-bit hash layer .* 16 bits"):
        mapped = checkpoint_filter_fn(source.state_dict(), create(num_classes=16))
    assert mapped["head.fc.weight"].shape == (24, 64)


class TestLoadCheckpoint:
    def save(self, tmp_path, model):
        path = tmp_path / "model.safetensors"
        save_file(model.state_dict(), path)
        return path

    def test_a_file_gives_the_models_codes(self, tmp_path):
        source, model = create(), create()
        load_checkpoint(model, self.save(tmp_path, source))
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(model(x), source(x))

    def test_a_training_checkpoint_gives_its_averaged_weights(self, tmp_path):
        source, average, model = create(), create(), create()
        path = tmp_path / "last.pth"
        torch.save({"state_dict": source.state_dict(), "state_dict_ema": average.state_dict()}, path)
        load_checkpoint(model, path)
        assert torch.equal(model.head.fc.weight, average.head.fc.weight)
        load_checkpoint(model, str(path), use_ema=False)
        assert torch.equal(model.head.fc.weight, source.head.fc.weight)

    @pytest.mark.parametrize("key", ["net", "model_state_dict", "state_dict", "generator"])
    @pytest.mark.parametrize("prefix", ["", "net.", "module.net."])
    def test_wrappers_of_a_training_script_are_removed(self, key, prefix, tmp_path):
        source, model = create(), create()
        path = tmp_path / "last.pth"
        weights = {prefix + name: x for name, x in source.state_dict().items()}
        optimizer = {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}
        torch.save({"epoch": 3, key: weights, "optimizer_state_dict": optimizer}, path)
        load_checkpoint(model, path)
        assert torch.equal(model.head.fc.weight, source.head.fc.weight)

    def test_a_loss_beside_the_network_is_left_out_with_a_warning(self, tmp_path):
        source, model = create(), create()
        path = tmp_path / "last.ckpt"
        weights = {f"net.{name}": x for name, x in source.state_dict().items()}
        torch.save({"state_dict": {**weights, "loss.classifier.weight": torch.zeros(3, 16)}}, path)
        with pytest.warns(
            UserWarning, match=r"only what is below net\. .*left out are loss\.classifier\.weight"
        ):
            load_checkpoint(model, path)
        assert torch.equal(model.head.fc.weight, source.head.fc.weight)

    def test_two_networks_in_one_file_are_refused(self, tmp_path):
        path = tmp_path / "last.pth"
        torch.save({"student": create().state_dict(), "teacher": create().state_dict()}, path)
        with pytest.raises(ValueError, match="it has: student, teacher"):
            load_checkpoint(create(), path)

    @pytest.mark.filterwarnings("ignore:this checkpoint has the layout of the public")
    def test_a_reference_file_gives_its_codes(self, golden, reference_weights, tmp_path):
        tensors, metadata = golden
        path = tmp_path / "reference.pth"
        torch.save({f"module.{key}": x for key, x in reference_weights.items()}, path)
        model = create(img_size=224, num_heads=(2, 4, 8), pad_type="")
        load_checkpoint(model, path)
        mean, std = (
            torch.tensor([float(x) for x in metadata[k].split(",")]).view(3, 1, 1) for k in ("mean", "std")
        )
        codes = model((tensors["image"].float() / 255 - mean) / std)
        torch.testing.assert_close(codes, tensors["correct/code"], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("in_chans", [1, 4])
    def test_input_channels_are_adapted(self, in_chans, tmp_path):
        source, model = create(), create(in_chans=in_chans)
        load_checkpoint(model, self.save(tmp_path, source))
        weight = source.patch_embed.proj.weight
        adapted = model.patch_embed.proj.weight
        if in_chans == 1:
            torch.testing.assert_close(adapted, weight.sum(dim=1, keepdim=True))
        else:
            torch.testing.assert_close(adapted, weight[:, [0, 1, 2, 0]] * 3 / 4)

    def test_input_channels_that_cannot_be_adapted_are_refused(self, tmp_path):
        path = self.save(tmp_path, create(in_chans=4))
        with pytest.raises(ValueError, match="for 4 input channels, the model has 3"):
            load_checkpoint(create(), path)

    def test_another_code_length_keeps_the_models_last_map_and_warns(self, tmp_path):
        source, model = create(num_classes=24), create(num_classes=16)
        before = model.head.fc.weight.clone()
        with pytest.warns(UserWarning, match="24-bit hash layer"):
            load_checkpoint(model, self.save(tmp_path, source))
        assert torch.equal(model.head.fc.weight, before)
        assert torch.equal(model.norm.weight, source.norm.weight)

    def test_hash_weights_load_into_an_embedding_model(self, tmp_path):
        source, model = create(), create(num_classes=0)
        load_checkpoint(model, self.save(tmp_path, source))
        x = torch.randn(2, 3, 32, 32)
        expected = source.forward_head(source.forward_features(x), pre_logits=True)
        assert torch.equal(model(x), expected)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*absent\.safetensors"):
            load_checkpoint(create(), tmp_path / "absent.safetensors")

    def test_a_truncated_file_is_named_and_changes_nothing(self, tmp_path):
        model = create()
        before = {key: x.clone() for key, x in model.state_dict().items()}
        path = self.save(tmp_path, create())
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"model\.safetensors is no intact safetensors file"):
            load_checkpoint(model, path)
        assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())

    def test_a_pickle_that_could_run_code_is_refused(self, tmp_path):
        path = tmp_path / "model.pth"
        torch.save({"state_dict": create().state_dict(), "hook": print}, path)
        with pytest.raises(ValueError, match="could run code"):
            load_checkpoint(create(), path)
