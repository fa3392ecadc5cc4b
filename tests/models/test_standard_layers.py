"""Tools that know layers by their exact class find all of them: counters of operations, quantisation."""

import io

import ptflops
import pytest
import thop
import timm
import torch
import torch.ao.quantization as ao
from timm import layers
from timm.models.nest import Nest
from torch import nn
from torch.ao.quantization import quantize_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

import hybridhash
from hybridhash.models.blocks import Attention

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")

ARCHITECTURES = timm.list_models("hybridhash_*")


@pytest.fixture
def network(small_kwargs):
    return timm.create_model("hybridhash_16", **small_kwargs).eval()


@pytest.fixture
def nest(small_kwargs):
    return Nest(**small_kwargs, num_classes=16, pad_type="same").eval()


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32)


def _is_standard(layer):
    kind = type(layer)
    return getattr(nn, kind.__name__, None) is kind or getattr(layers, kind.__name__, None) is kind


@pytest.mark.parametrize("name", [*ARCHITECTURES, "hash_model"])
def test_every_layer_with_weights_is_one_of_torch_or_timm(name):
    with torch.device("meta"):
        if name == "hash_model":
            model = hybridhash.create_hash_model("hybridhash_tiny_16", bits=16)
        else:
            model = timm.create_model(name)
    leaves = [module for module in model.modules() if not list(module.children())]
    weighted = [leaf for leaf in leaves if list(leaf.parameters())]
    assert len(weighted) > 40
    assert {type(leaf) for leaf in weighted if not _is_standard(leaf)} == set()
    mlps = [module for module in model.modules() if "Mlp" in type(module).__name__]
    assert len(mlps) >= 4
    assert {type(mlp) for mlp in mlps} == {layers.Mlp}


def _by_thop(model):
    def count(attention, inputs, output):
        _, _, positions, channels = output.shape
        attention.total_ops += output.numel() * (4 * channels + 2 * positions)

    return thop.profile(model, (torch.zeros(1, 3, 224, 224),), custom_ops={Attention: count}, verbose=False)


def _by_ptflops(model):
    with sdpa_kernel(SDPBackend.MATH):
        return ptflops.get_model_complexity_info(
            model, (3, 224, 224), backend="aten", as_strings=False, print_per_layer_stat=False
        )


def _by_torch(model):
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 224, 224))
    return counter.get_total_flops() / 2, sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("count", [_by_torch, _by_thop, _by_ptflops])
def test_counters_report_the_arithmetic_and_the_parameters(count):
    macs, parameters = count(timm.create_model("hybridhash_tiny_16").eval())
    assert macs == pytest.approx(5.99e9, rel=0.01)
    assert parameters == pytest.approx(19.0e6, rel=0.05)  # thop leaves out parameters beside layers


def _quantized(model, kind):
    return [m for m in model.modules() if type(m).__name__ == kind and "quantized" in type(m).__module__]


def _file_size(model):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def test_dynamic_quantisation_swaps_every_linear_layer(network, images):
    linear = [m for m in network.modules() if type(m) is nn.Linear]
    assert len(linear) == 25
    quantized = ao.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)
    assert len(_quantized(quantized, "Linear")) == 25
    torch.testing.assert_close(quantized(images), network(images), rtol=0, atol=0.05)


def test_dynamic_quantisation_makes_the_file_small():
    model = timm.create_model("hybridhash_tiny_16").eval()
    quantized = ao.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert _file_size(quantized) <= 0.4 * _file_size(model)


def test_fx_quantisation_swaps_every_linear_layer_and_convolution(network, images):
    # timm's NesT cannot be traced for it, so its own layers are the measure.
    mapping = ao.get_default_qconfig_mapping("x86")
    prepared = quantize_fx.prepare_fx(network, mapping, (images,))
    prepared(images)
    quantized = quantize_fx.convert_fx(prepared)
    assert len(_quantized(quantized, "Linear")) == 25
    assert len(_quantized(quantized, "Conv2d")) == 5
    torch.testing.assert_close(quantized(images), network(images), rtol=0, atol=0.1)


def _pt2e_weights(model, images):
    """How many weights PT2E quantises: one per output channel each."""
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(model, (images,)).module(), quantizer)
    prepared(images)
    graph = convert_pt2e(prepared).graph
    return sum("dequantize_per_channel" in str(node.target) for node in graph.nodes)


def test_pt2e_quantises_every_layer_as_in_nest(network, nest, images):
    for model in (network, nest):
        expected = sum(type(m) in (nn.Linear, nn.Conv2d) for m in model.modules())
        assert _pt2e_weights(model, images) == expected
