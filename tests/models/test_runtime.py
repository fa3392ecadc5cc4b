"""The network under PyTorch's compilers and exporters, each size at its real width."""

import io

import pytest
import timm
import torch
from torch import fx

import hybridhash  # noqa: F401


# At these depths hybridhash_small_16 is the network of hybridhash_tiny_16.
@pytest.fixture(params=["hybridhash_16", "hybridhash_tiny_16"])
def model(request):
    return timm.create_model(request.param, img_size=32, depths=(1, 1, 1), drop_path_rate=0.0).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


@pytest.fixture
def more_images():
    return torch.randn(5, 3, 32, 32)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(model, images, backend):
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(images), model(images))


def test_compiled_training_gives_the_eager_gradients(model, images):
    model.train()
    model(images).square().sum().backward()
    expected = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(images).square().sum().backward()
    for key, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("strict", [True, False])
def test_exports_with_a_dynamic_batch(model, images, more_images, strict):
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (images,), dynamic_shapes=(batch,), strict=strict)
    torch.testing.assert_close(program.module()(more_images), model(more_images))


def test_onnx_gives_the_same_codes_at_any_batch_size(model, images, more_images, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    torch.onnx.export(model, (images,), path, dynamo=True, dynamic_shapes=(batch,), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (codes,) = session.run(None, {session.get_inputs()[0].name: more_images.numpy()})
    torch.testing.assert_close(torch.from_numpy(codes), model(more_images), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torchscript_by_script_and_by_trace(model, images, more_images):
    for scripted in (torch.jit.script(model), torch.jit.trace(model, images)):
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer)
        buffer.seek(0)
        torch.testing.assert_close(torch.jit.load(buffer)(more_images), model(more_images))


def test_fx_traces(model, images, more_images):
    graph = fx.symbolic_trace(model)
    torch.testing.assert_close(graph(more_images), model(more_images))


def test_channels_last_input_and_weights(model, images):
    expected = model(images)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), expected)


def test_inductor_compiles_the_small_network(small_kwargs, images):
    model = timm.create_model("hybridhash_16", **small_kwargs).eval()
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-5)
