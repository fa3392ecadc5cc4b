"""Running statistics of batch norm on other images: exact in every model, and nothing else changes."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hybridhash import create_hash_model, encode, fit_hash_layer, reestimate_batch_norm, unpack_codes
from tests._processes import run_on_ranks


def _images(rows=30, seed=1):
    return 2 + 3 * torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def _model(backbone="test_convnext", **kwargs):
    torch.manual_seed(0)
    model = create_hash_model(backbone, 8, **{"head": "batchnorm", **kwargs}).eval()
    for module in model.modules():  # not those of a fresh layer, which hide a mistake
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return model


def _reestimate(model, images, batch_size=7, **kwargs):
    return reestimate_batch_norm(model, images.split(batch_size), progress=False, **kwargs)


@torch.no_grad()
def _inputs_of_the_norm(model, images):
    return model.head.fc(model.forward_head(model.forward_features(images), pre_logits=True))


def test_statistics_are_those_of_all_images():
    model, images = _model(), _images()
    z = _inputs_of_the_norm(model, images)
    _reestimate(model, images)
    torch.testing.assert_close(model.head.norm.running_mean, z.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.head.norm.running_var, z.var(0), rtol=1e-5, atol=1e-6)


def test_every_bit_is_cut_at_the_mean_of_the_collection():
    model, images = _model(), _images()
    centred = _inputs_of_the_norm(model, images)
    centred -= centred.mean(0)
    _reestimate(model, images)
    codes = encode(model, [images], progress=False)
    bits = unpack_codes(codes.packed, codes.bits) > 0
    assert torch.equal(bits[centred.abs() > 1e-4], (centred > 0)[centred.abs() > 1e-4])


@pytest.mark.parametrize("batch_size", [1, 7, 29, 30])
def test_one_layer_does_not_depend_on_the_batches(batch_size):
    images = _images()
    whole = _reestimate(_model(), images, 30).head.norm
    parts = _reestimate(_model(), images, batch_size).head.norm
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "backbone", ["test_resnet", "test_efficientnet"]
)  # the latter's norms have activations
def test_all_layers_in_one_batch_are_those_of_pytorch(backbone):
    images = _images()
    model, expected = _model(backbone), _model(backbone)
    for module in expected.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.momentum = 1.0
    expected.train()(images)
    _reestimate(model, images, 30, layers="all")
    names = [name for name in expected.state_dict() if "running" in name]
    assert len(names) > 4
    for name in names:
        torch.testing.assert_close(
            model.state_dict()[name], expected.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name
        )


def test_all_layers_in_several_batches_are_near():
    images = _images(60)
    whole = _reestimate(_model("test_resnet"), images, 60, layers="all").state_dict()
    parts = _reestimate(_model("test_resnet"), images, 20, layers="all").state_dict()
    untouched = _model("test_resnet").state_dict()
    for name in whole:
        if "running" in name:
            assert (parts[name] - whole[name]).norm() < 0.2 * (untouched[name] - whole[name]).norm(), name


@pytest.mark.parametrize("layers", ["head", "all"])
def test_nothing_else_changes(layers):
    model = _model("test_resnet")
    model.head.train()
    model.backbone.layer1.train()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    assert _reestimate(model, _images(), layers=layers) is model
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    running = {name for name in before if "running" in name}
    assert changed == (running if layers == "all" else {"head.norm.running_mean", "head.norm.running_var"})
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert dict(model.named_buffers()).keys() >= running


def test_what_loaders_yield_and_wrappers():
    images, model = _images(), _model()
    data = TensorDataset(images, torch.arange(30) % 3, torch.arange(30))
    compiled = torch.compile(model, backend="eager")
    assert reestimate_batch_norm(compiled, DataLoader(data, batch_size=8), progress=False) is compiled
    expected = _reestimate(_model(), images).head.norm.state_dict()
    torch.testing.assert_close(model.head.norm.state_dict(), expected, rtol=1e-5, atol=1e-6)
    reestimate_batch_norm(model, [{"pixel_values": images}], dtype=torch.bfloat16, progress=False)
    assert (model.head.norm.running_mean - expected["running_mean"]).abs().max() < 0.1


def test_layers_without_statistics_or_not_run_stay():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3072), nn.BatchNorm1d(3072, track_running_stats=False))
    model.unused = nn.BatchNorm1d(3)
    model.forward = lambda x: model[1](model[0](x))
    _reestimate(model, _images(), layers="all")
    assert model[1].running_mean.mean() > 1
    assert model[2].running_mean is None
    assert torch.equal(model.unused.running_mean, torch.zeros(3))


def _bad(rows=()):
    images = _images()
    images[list(rows)] = torch.nan
    return images


@pytest.mark.parametrize(
    ("model", "images", "layers", "message"),
    [
        (_model, _bad([9]), "head", r"batch 1 hold NaN or infinity in 1 of 7 rows, the first is row 2"),
        (_model, _bad()[:0], "head", r"two images or more"),
        (_model, _bad()[:1], "head", r"two images or more"),
        (lambda: _model("test_resnet"), _bad()[:8], "all", r"one value a channel.*drop_last=True"),
        (lambda: _model(head="tanh"), _bad(), "head", r"the head, a TanhHead, has no batch norm.*batchnorm"),
        (lambda: _model(head="tanh"), _bad(), "all", r"the model has no batch norm"),
        (lambda: nn.Sequential(nn.BatchNorm2d(3)), _bad(), "head", r"Sequential has no .* head: .*\"all\""),
        (_model, _bad(), "first", r"layers must be one of 'head', 'all', got 'first'"),
    ],
    ids=["nan", "nothing", "one", "one-value", "no-norm", "none-at-all", "no-head", "layers"],
)
def test_what_cannot_be_leaves_the_model_alone(model, images, layers, message):
    model = model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        _reestimate(model, images, layers=layers)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_is_no_model_or_no_loader():
    with pytest.raises(TypeError, match=r"loader must yield batches, got a tensor"):
        reestimate_batch_norm(_model(), _images())
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got str"):
        reestimate_batch_norm("model", [])
    with pytest.raises(ValueError, match=r"the loader gave fewer"):
        reestimate_batch_norm(_model(), [], progress=False)
    with pytest.raises(ValueError, match="the head, a HashHead, has no batch norm"):
        reestimate_batch_norm(timm.create_model("hybridhash_tiny_16", depths=(1, 1, 1), img_size=32), [])


def _norm_on_rank(rank, images):
    model = _reestimate(_model(), (images[:22], images[22:])[rank])
    return model.head.norm.state_dict()


def test_processes_measure_all_images():
    first, second = run_on_ranks(_norm_on_rank, _images())
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    alone = _reestimate(_model(), _images()).head.norm.state_dict()
    torch.testing.assert_close(first, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("call", ["encode", "fit", "batch norm"])
def test_a_batch_that_the_model_cannot_take_is_named(call):
    model = create_hash_model("resnet10t", bits=8, head="batchnorm").eval()
    run = {
        "encode": lambda loader, model=model: encode(model, loader, progress=False),
        "fit": lambda loader: fit_hash_layer(
            create_hash_model("resnet10t", 8), loader, "lsh", progress=False
        ),
        "batch norm": lambda loader, model=model: reestimate_batch_norm(model, loader, progress=False),
    }[call]
    images = torch.randn(4, 3, 32, 32)
    before = copy.deepcopy(model.state_dict())
    for batch, words in (
        (images.half(), "cannot run on batch 1: the batch is torch.float16, its weights are torch.float32"),
        ((images * 9).to(torch.uint8), "batch 1: the batch is torch.uint8, .*the values that its transform"),
        (images[0], r"batch 1: .*shape \(3, 32, 32\), it takes images \(B, 3, height, width\)"),
        (images[:, :2], r"batch 1: .*shape \(4, 2, 32, 32\), it takes images \(B, 3, height, width\)"),
        (images.to("meta"), "images are on the meta device"),
    ):
        with pytest.raises(ValueError, match=words):
            run([images, batch])
    with pytest.raises(TypeError, match="loader must yield batches, got None"):
        run(None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_without_weights_is_named():
    model = create_hash_model("resnet10t", bits=8, head="batchnorm").to("meta")
    with pytest.raises(ValueError, match="meta device"):
        reestimate_batch_norm(model, [torch.randn(4, 3, 32, 32)], progress=False)
