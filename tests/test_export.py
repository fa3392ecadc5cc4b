"""Exported files give PyTorch's bits, in onnxruntime and in torch, and say what they are."""

import itertools
import json
import os
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

import hybridhash
from hybridhash import export
from hybridhash._fingerprint import model_name
from hybridhash._inference import eval_mode
from hybridhash.export import (
    export_aoti,
    export_onnx,
    export_program,
    quantize_onnx,
    read_metadata,
)
from hybridhash.hub import weights_sha256
from hybridhash.models import list_heads

SMALL = {"img_size": 32, "embed_dims": (16, 32, 64), "num_heads": (1, 2, 4), "depths": (1, 1, 1)}
HALF = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 0.2)}


def _images_of(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def _normalised(images, metadata):
    mean, std = (torch.tensor(metadata[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    return (images / 255 - mean) / std


def _same_bits(packed, codes):
    """Return whether packed codes are PyTorch's wherever the real-valued codes are more than 1e-4 from 0."""
    wanted = np.packbits(codes.numpy() > 0, axis=1)
    sure = np.packbits(codes.abs().numpy() > 1e-4, axis=1)
    packed = np.asarray(packed)
    assert packed.dtype == np.uint8
    assert packed.shape == wanted.shape
    # np.packbits pads both with zeros, so set padding bits of the graph show up here.
    padding = -codes.shape[1] % 8
    assert not (packed[:, -1] & (2**padding - 1)).any()
    return not ((packed ^ wanted) & sure).any()


class _Plain(nn.Module):
    """The smallest hash model: a linear map of the pixels, with real-valued codes on both sides of 0."""

    def __init__(self, bits, size=4):
        super().__init__()
        self.img_size, self.pretrained_cfg = size, {**HALF, "architecture": "plain"}
        self.in_chans = 3
        self.fc = nn.Linear(3 * size * size, bits)

    def forward(self, x):
        return self.fc(x.flatten(1))


def _session_of(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def hybrid(folder):
    """A HybridHash network of 65 bits in training mode, and its ONNX file: uint8 in, both outputs."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = hybridhash.create_model("hybridhash_16", num_classes=65, **SMALL)
    return model, export_onnx(model, folder / "hybrid.onnx", real_codes=True)


@pytest.fixture(scope="module")
def resnet(folder):
    """A hash head of 12 bits on a convolutional backbone, and its ONNX file: normalised images in."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(1)
    model = hybridhash.create_hash_model("resnet10t", bits=12, head="batchnorm").eval()
    return model, export_onnx(model, folder / "resnet.onnx", input="float", image_size=32)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_onnx_of_hybridhash_gives_the_bits_and_codes_of_pytorch(hybrid, count):
    model, path = hybrid
    images = _images_of(count, 32, seed=count)
    packed, real = _session_of(path).run(["packed", "codes"], {"images": images.numpy()})
    with eval_mode(model), torch.no_grad():
        codes = model(_normalised(images, read_metadata(path)))
    assert _same_bits(packed, codes)
    torch.testing.assert_close(torch.from_numpy(real), codes, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_onnx_of_a_resnet_takes_normalised_images(resnet, count):
    model, path = resnet
    images = _normalised(_images_of(count, 32, seed=count), read_metadata(path))
    with torch.no_grad():
        codes = model(images)
    session = _session_of(path)
    assert [output.name for output in session.get_outputs()] == ["packed"]
    assert _same_bits(session.run(None, {"images": images.numpy()})[0], codes)


@pytest.mark.parametrize("bits", [1, 16, 48, 4095])
def test_onnx_packs_any_number_of_bits(tmp_path, bits):
    pytest.importorskip("onnxscript")
    model = _Plain(bits).eval()
    with torch.no_grad():
        model.fc.weight[0] = 0
        model.fc.bias[0] = 0  # exactly 0 is bit 0
    session = _session_of(export_onnx(model, tmp_path / "model.onnx"))
    images = _images_of(5, 4)
    with torch.no_grad():
        wanted = hybridhash.pack_codes(model(_normalised(images, HALF)))
    packed = session.run(None, {"images": images.numpy()})[0]
    assert packed.tolist() == wanted.tolist()
    assert (packed[:, 0] < 128).all()


def test_the_onnx_file_says_what_it_is(hybrid):
    model, path = hybrid
    session = _session_of(path)
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    texts = session.get_modelmeta().custom_metadata_map
    assert texts["hybridhash.bits"] == "65"
    assert read_metadata(path) == {
        "name": "hybridhash_16",
        "bits": 65,
        "input": "uint8",
        "real_codes": True,
        "input_size": [3, 32, 32],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "crop_mode": "center",
        "weights_sha256": weights_sha256(model),
        "hybridhash_version": hybridhash.__version__,
    }


@pytest.mark.parametrize("which", ["hybrid", "resnet"])
def test_the_flipped_share_of_8_bits_is_the_true_count(which, request, tmp_path):
    _, path = request.getfixturevalue(which)
    metadata = read_metadata(path)
    images = _images_of(21, 32)
    images = images if which == "hybrid" else _normalised(images, metadata)
    out = tmp_path / "int8.onnx"
    share = quantize_onnx(path, out, images, batch_size=8)
    # In the batches of the function: the scale of dynamic quantisation is that of the batch.
    runs = [
        np.concatenate([s.run(["packed"], {"images": batch.numpy()})[0] for batch in images.split(8)])
        for s in (_session_of(path), _session_of(out))
    ]
    bits = [np.unpackbits(packed, axis=1, count=metadata["bits"]) for packed in runs]
    assert share == (bits[0] != bits[1]).mean()
    assert share < 0.3
    assert share > 0 or which == "resnet"  # whose few codes may be far from 0
    assert read_metadata(out) == {**metadata, "quantization": "int8-dynamic"}
    assert out.stat().st_size < 0.6 * path.stat().st_size


def test_quantisation_refuses_images_that_the_graph_does_not_take(resnet, tmp_path):
    _, path = resnet
    out = tmp_path / "int8.onnx"
    for images in (_images_of(2, 32), torch.zeros(2, 3, 16, 16), torch.zeros(0, 3, 32, 32)):
        with pytest.raises(ValueError, match=r"images must be float32 \(N, 3, 32, 32\)"):
            quantize_onnx(path, out, images)
    with pytest.raises(ValueError, match="another name"):
        quantize_onnx(path, path, torch.zeros(1, 3, 32, 32))
    assert list(tmp_path.iterdir()) == []


def test_weights_too_large_for_one_onnx_file_go_beside_it(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(export, "_LARGEST", 1000)
    model = _Plain(64, size=8).eval()
    path = export_onnx(model, tmp_path / "model.onnx")
    data = f"model.onnx.{weights_sha256(model)[:8]}.data"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", data]
    assert path.stat().st_size < 20_000 < (tmp_path / data).stat().st_size
    images = _images_of(2, 8)
    with torch.no_grad():
        codes = model(_normalised(images, HALF))
    assert _same_bits(_session_of(path).run(None, {"images": images.numpy()})[0], codes)
    assert read_metadata(path)["bits"] == 64
    path.unlink()
    (tmp_path / data).unlink()

    def failing(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("hybridhash._files.os.fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        export_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("input", "real_codes", "size"), [("uint8", True, 32), ("float", False, 4)])
def test_a_program_is_the_model_after_it_was_loaded(tmp_path, input, real_codes, size):
    torch.manual_seed(2)
    model = _Plain(12)
    if size == 32:
        model = hybridhash.create_model("hybridhash_tiny_16", num_classes=12, **SMALL)
    path = export_program(model, tmp_path / "model.pt2", input=input, real_codes=real_codes)
    hashing, metadata = torch.export.load(path).module(), read_metadata(path)
    for count in (1, 2, 5):
        images = _images_of(count, size, seed=count)
        with eval_mode(model), torch.no_grad():
            codes = model(_normalised(images, metadata))
        given = images if input == "uint8" else _normalised(images, metadata)
        result = hashing(given)
        packed = result[0] if real_codes else result
        assert _same_bits(packed, codes)
        if real_codes:
            torch.testing.assert_close(result[1], codes, rtol=0, atol=1e-5)
    extra = {"hybridhash.json": ""}
    torch.export.load(path, extra_files=extra)
    assert json.loads(extra["hybridhash.json"])["weights_sha256"] == metadata["weights_sha256"]
    assert (metadata["bits"], metadata["input"], metadata["name"]) == (12, input, model_name(model))


class _Backbone(nn.Module):
    """The least that ``create_hash_model`` takes."""

    num_features, num_classes, img_size = 48, 0, 4

    def __init__(self):
        super().__init__()
        self.pretrained_cfg = dict(HALF)
        self.norm = nn.LayerNorm(48)

    def forward_features(self, x):
        return self.norm(x.flatten(1))

    def forward_head(self, x, pre_logits=False):
        return x


@pytest.mark.parametrize("head", list_heads())
def test_every_head_is_exported(tmp_path, head):
    torch.manual_seed(3)
    model = hybridhash.create_hash_model(_Backbone(), bits=12, head=head).eval()
    images = _images_of(3, 4)
    path = export_program(model, tmp_path / "model.pt2", image_size=4, real_codes=True)
    packed, real = torch.export.load(path).module()(images)
    with torch.no_grad():
        codes = model(_normalised(images, HALF))
    assert _same_bits(packed, codes)
    torch.testing.assert_close(real, codes, rtol=0, atol=1e-5)


def test_the_model_is_left_as_it_was(tmp_path):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), _Plain(8))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    before, gradients = weights_sha256(model), [p.requires_grad for p in model.parameters()]
    export_program(model, tmp_path / "model.pt2", image_size=4, preprocessing=HALF)
    assert [module.training for module in model.modules()] == modes
    assert weights_sha256(model) == before
    assert [p.requires_grad for p in model.parameters()] == gradients
    model(torch.zeros(2, 3, 4, 4)).sum().backward()


def test_a_compiled_wrapper_is_taken_off(tmp_path):
    path = export_program(torch.compile(_Plain(8)), tmp_path / "model.pt2")
    assert read_metadata(path)["name"] == "plain"


@pytest.mark.skipif("HYBRIDHASH_AOTI" not in os.environ, reason="compiles for minutes: set HYBRIDHASH_AOTI=1")
def test_a_compiled_package_gives_the_bits_of_pytorch(tmp_path):
    model = _Plain(12).eval()
    path = export_aoti(model, tmp_path / "model.pt2", real_codes=True)
    compiled = torch._inductor.aoti_load_package(str(path))
    for count in (1, 5):
        images = _images_of(count, 4)
        with torch.no_grad():
            codes = model(_normalised(images, HALF))
        packed, real = compiled(images)
        assert _same_bits(packed, codes)
        torch.testing.assert_close(real, codes, rtol=0, atol=1e-5)
    assert (read_metadata(path)["bits"], read_metadata(path)["name"]) == (12, "plain")


def test_a_package_without_a_compiler_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(RuntimeError, match=r"needs a C\+\+ compiler.*CXX.*no-such-compiler"):
        export_aoti(_Plain(8), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"needs {missing}: pip install hybridhash\[export\]"):
        export_onnx(_Plain(8), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": "int8"}, "input must be one of 'uint8', 'float', got 'int8'"),
        ({"preprocessing": {"size": 3}}, r"unknown keys \['size'\]"),
        ({"preprocessing": {"mean": (0.5,)}}, "mean has 1 values for 3 channels"),
        ({"model": _Plain(8).half()}, r"torch.float16 weights, and only float32.*copy.deepcopy\(model\)"),
        ({"model": _Plain(8).bfloat16()}, "torch.bfloat16 weights"),
        ({"model": _Plain(5000)}, "1 to 4096 bits"),
        ({"model": nn.Flatten()}, "does not say how its images are normalised"),
        ({"path": "model.bin"}, "must end in .pt2"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_words(tmp_path, change, message):
    arguments = {"model": _Plain(8), "path": "model.pt2", **change}
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(ValueError, match=message):
        export_program(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_hash_layer_is_refused(tmp_path):
    model = hybridhash.create_model("hybridhash_16", **{**SMALL, "num_classes": 0})
    with pytest.raises(ValueError, match="num_classes=0, which means no hash layer"):
        export_program(model, tmp_path / "model.pt2")
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module"):
        export_program("hybridhash_16", tmp_path / "model.pt2")


def test_a_network_that_cannot_be_traced_says_so(tmp_path):
    class Fixed(_Plain):
        def forward(self, x):
            return super().forward(x) if x.shape[0] == 2 else x

    with pytest.raises(RuntimeError, match="cannot trace plain with a free batch size"):
        export_program(Fixed(8), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for module, name in ((torch.export, "save"), (export.os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(OSError, match="No space left"):
                export_program(_Plain(8), path)
        assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
        assert path.read_bytes() == b"old"
    export_program(_Plain(8), path)
    assert read_metadata(path)["bits"] == 8


def test_a_path_that_cannot_be_a_file_is_refused(tmp_path):
    (tmp_path / "model.pt2").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        export_program(_Plain(8), tmp_path / "model.pt2")
    with pytest.raises(FileNotFoundError, match="does not exist, create it"):
        export_program(_Plain(8), tmp_path / "nowhere" / "model.pt2")


def test_metadata_of_a_foreign_file_are_an_error(tmp_path):
    onnx = pytest.importorskip("onnx")
    with pytest.raises(FileNotFoundError, match="no file"):
        read_metadata(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match="neither an ONNX file nor"):
        read_metadata(tmp_path / "text.onnx")
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "foreign.onnx")
    with zipfile.ZipFile(tmp_path / "foreign.pt2", "w") as archive:
        archive.writestr("foreign/version", "1")
    for name, kind in itertools.product(["foreign"], ["onnx", "pt2"]):
        with pytest.raises(ValueError, match="not exported by this package"):
            read_metadata(tmp_path / f"{name}.{kind}")
