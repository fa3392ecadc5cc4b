"""Products of half precision in float32, on processors that would emulate them."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import hybridhash  # noqa: F401
from hybridhash.models import products
from hybridhash.models.products import Conv2d, Linear, emulated_dtypes

HALVES = (torch.bfloat16, torch.float16)
PRODUCTS = ("aten.addmm", "aten.mm", "aten.convolution", "aten.convolution_backward")


class Products(TorchDispatchMode):
    """The dtypes of the matrix products and convolutions that run under it."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).rsplit(".", 1)[0] in PRODUCTS:
            self.dtypes.append(args[1].dtype)
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=[True, False], ids=["emulated", "native"])
def emulated(request, monkeypatch):
    """Whether this processor is said to emulate half precision."""
    monkeypatch.setattr(products, "EMULATED", frozenset(HALVES if request.param else ()))
    return request.param


def layers():
    """Ours, PyTorch's, and an input."""
    cases = {
        "linear": (Linear(24, 8), torch.nn.Linear(24, 8), torch.randn(5, 24)),
        "linear without bias": (
            Linear(24, 8, bias=False),
            torch.nn.Linear(24, 8, bias=False),
            torch.randn(5, 24),
        ),
        "conv": (Conv2d(4, 8, 3, padding=1), torch.nn.Conv2d(4, 8, 3, padding=1), torch.randn(2, 4, 6, 6)),
        "conv of stride 2": (
            Conv2d(4, 8, (1, 3), stride=2, padding=(0, 1), bias=False),
            torch.nn.Conv2d(4, 8, (1, 3), stride=2, padding=(0, 1), bias=False),
            torch.randn(2, 4, 6, 6),
        ),
    }
    for ours, plain, _ in cases.values():
        plain.load_state_dict(ours.state_dict())
    return cases


@pytest.mark.parametrize("case", list(layers()))
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_the_exact_product_rounded_once(case, dtype, emulated):
    ours, plain, x = layers()[case]
    plain.load_state_dict(ours.to(dtype).state_dict())
    x = x.to(dtype)
    with Products() as seen:
        got = ours(x)
    assert seen.dtypes == [torch.float32 if emulated else dtype]
    assert got.dtype == dtype
    torch.testing.assert_close(got, plain.double()(x.double()).to(dtype))


@pytest.mark.parametrize("case", list(layers()))
def test_gradients_have_the_dtype_of_what_they_belong_to(case, emulated):
    ours, plain, x = layers()[case]
    ours, x = ours.bfloat16(), x.bfloat16().requires_grad_()
    plain.load_state_dict(ours.state_dict())
    x64 = x.detach().double().requires_grad_()
    ours(x).float().square().sum().backward()
    plain.double()(x64).square().sum().backward()
    tensors = [(x, x64), *zip(ours.parameters(), plain.parameters(), strict=True)]
    for tensor, exact in tensors:
        assert tensor.grad.dtype == torch.bfloat16
        # The output that is squared is rounded by up to 2^-9, so small sums are wrong by that of large ones.
        error = (tensor.grad.double() - exact.grad).abs().max()
        assert error < 0.02 * exact.grad.abs().max()


@pytest.mark.parametrize("case", list(layers()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_dtypes_are_left_to_pytorch(case, dtype, emulated):
    ours, plain, x = (value.to(dtype) for value in layers()[case])
    assert torch.equal(ours(x), plain(x))


@pytest.mark.parametrize("case", list(layers()))
def test_autocast_gives_its_dtype_and_stays_on(case, emulated):
    ours, _, x = layers()[case]
    with torch.autocast("cpu", torch.bfloat16), Products() as seen:
        got = ours(x)
        assert torch.is_autocast_enabled("cpu")
    assert got.dtype == torch.bfloat16
    assert seen.dtypes == [torch.float32 if emulated else torch.bfloat16]
    torch.testing.assert_close(got, ours(x).bfloat16(), rtol=0.05, atol=0.05)


def test_autocast_leaves_double_precision_alone(emulated):
    layer, x = Linear(24, 8).double(), torch.randn(5, 24).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float64


def test_weights_and_input_of_two_dtypes_are_refused_as_by_pytorch(emulated):
    with pytest.raises(RuntimeError, match="dtype"):
        Linear(24, 8)(torch.randn(5, 24).bfloat16())


def test_an_exported_program_keeps_the_dtype_of_the_weights(emulated):
    layer, x = Linear(24, 8).bfloat16(), torch.randn(5, 24).bfloat16()
    programs = [torch.export.export(layer, (x,)).module(), torch.jit.trace(layer, x), torch.jit.script(layer)]
    for program in programs:
        with Products() as seen:
            got = program(x)
        assert seen.dtypes == [torch.bfloat16]
        torch.testing.assert_close(got, F.linear(x, layer.weight, layer.bias))


def test_compiled_it_gives_what_it_gives_eagerly(emulated):
    torch._dynamo.reset()
    layer, x = Linear(24, 8).bfloat16(), torch.randn(5, 24).bfloat16()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize("dtype", HALVES)
def test_the_network_widens_all_but_the_first_and_the_last_map(dtype, emulated, small_kwargs):
    model = timm.create_model("hybridhash_16", **small_kwargs).to(dtype).eval()
    images = torch.randn(2, 3, 32, 32).to(dtype)
    with torch.no_grad(), Products() as seen:
        codes = model(images)
    assert codes.dtype == dtype
    # PatchEmbed and the classifier are timm's: a hundredth of the arithmetic.
    assert seen.dtypes.count(dtype) == (2 if emulated else len(seen.dtypes))
    torch.testing.assert_close(codes.float(), model.float()(images.float()), rtol=0, atol=0.05)


def test_the_network_trains_in_bfloat16(emulated, small_kwargs):
    model = timm.create_model("hybridhash_16", **small_kwargs).bfloat16()
    model(torch.randn(2, 3, 32, 32).bfloat16()).float().square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.bfloat16, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, ()),
        ({"architecture": "arm64", "bf16": False}, ()),
        ({"architecture": "x86_64"}, HALVES),
        ({"architecture": "x86_64", "avx512_bf16": False, "avx512_fp16": False}, HALVES),
        ({"architecture": "x86_64", "avx512_bf16": True}, (torch.float16,)),
        ({"architecture": "x86_64", "amx_bf16": True, "avx512_fp16": True}, ()),
    ],
)
def test_what_a_processor_emulates(capabilities, expected):
    assert emulated_dtypes(capabilities) == frozenset(expected)
