"""Export models for other runtimes.

The exported file maps images to packed codes: the normalisation of the images, the network and the packing of
the bits are one graph with a free batch size. It runs without this package: in onnxruntime, in torch, or
compiled in C++. It carries its own metadata, which :func:`read_metadata` reads: the name of the model, its
bits, how images are prepared, and the SHA-256 of the weights.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from timm.layers import to_2tuple
from timm.utils import unwrap_model
from torch import Tensor, nn

from hybridhash._checks import check_choice
from hybridhash._files import replacing_files, resolved_path
from hybridhash._fingerprint import model_name, weights_sha256
from hybridhash._hamming import pack_bits
from hybridhash._inference import (
    PREPROCESSING,
    check_hash_model,
    check_preprocessing,
    eval_mode,
    forward_packed,
    input_device,
)

__all__ = ["export_aoti", "export_onnx", "export_program", "quantize_onnx", "read_metadata"]

Input = Literal["uint8", "float"]

_PREFIX = "hybridhash."  # of the keys in the metadata of ONNX files and AOTInductor packages
_EXTRA = "hybridhash.json"  # torch.export's extra file with the metadata
# Metadata that are words; the others are JSON.
_TEXTS = frozenset(
    {"name", "input", "interpolation", "crop_mode", "weights_sha256", "hybridhash_version", "quantization"}
)
_LARGEST = 2**31 - 2**26  # bytes of weights in one ONNX file: protobuf ends at 2 GiB, the graph needs some


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    input: Input = "uint8",
    real_codes: bool = False,
    image_size: int | tuple[int, int] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    opset_version: int | None = None,
) -> Path:
    """Write an ONNX file that maps images to packed codes (extra ``export``).

    The graph has one input, ``images``, of shape ``(batch, C, H, W)``: uint8 RGB of 0 to 255, or normalised
    float32. Its output ``packed`` is uint8 ``(batch, ceil(bits / 8))``, as :func:`hybridhash.pack_codes`
    packs: big-endian, padded on the right with zeros, a code of exactly 0 is bit 0. NaN is bit 0 too, because
    a graph cannot raise. With ``real_codes`` there is a second output, ``codes``, float32 ``(batch, bits)``.
    The batch size is free, height and width are fixed.

    The model is exported in eval mode as float32. Its own mode, weights and device do not change.

    Args:
        model: A hash model: ``hybridhash_*``, one of :func:`hybridhash.create_hash_model`, or any module that
            maps images to codes ``(B, bits)``. Wrappers of DDP and ``torch.compile`` are removed.
        path: The file to write, ``*.onnx``. An existing file is replaced once the new one is complete.
            Weights of 2 GiB and more go to a second file beside it, whose name ends in the first 8 digits of
            their SHA-256 and ``.data``.
        input: ``"uint8"`` puts the normalisation, ``(images / 255 - mean) / std``, into the graph;
            ``"float"`` expects normalised images.
        real_codes: Whether the graph also returns the real-valued codes.
        image_size: Height and width of the images. By default the size that the model was built for.
        preprocessing: The ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode`` that the model
            was trained with, where they differ from ``model.pretrained_cfg``.
        opset_version: Version of ONNX's operators. None means torch's default.

    Returns:
        The path.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        IsADirectoryError, FileNotFoundError, OSError: The path is a folder, its folder does not exist, or the
            file cannot be written. The files that were there are unchanged.
        TypeError: ``model`` is not a module, or does not return codes.
        ValueError: The model has no hash layer (``num_classes=0``) or weights other than float32, its
            ``mean`` and ``std`` are not known, or ``input`` or a key of ``preprocessing`` is unknown.
        RuntimeError: torch cannot trace the model with a free batch size.

    Example:
        >>> import hybridhash, tempfile
        >>> model = hybridhash.create_hash_model("resnet10t", bits=24)
        >>> export_onnx(model, "model.txt")
        Traceback (most recent call last):
        ...
        ValueError: path must end in .onnx, got 'model.txt'
    """
    _require("onnx", "onnxscript")
    import onnx_ir

    with _building(path, ".onnx") as built:
        program, metadata = _traced(model, input, real_codes, image_size, preprocessing)
        outputs = ["packed", "codes"] if real_codes else ["packed"]
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=outputs,
            opset_version=opset_version,
        )
        assert exported is not None
        graph = exported.model.graph
        for value in (*graph.inputs, *graph.outputs):
            assert value.shape is not None
            value.shape = onnx_ir.Shape(["batch", *list(value.shape)[1:]])
        exported.model.metadata_props.update({_PREFIX + key: text for key, text in metadata.items()})
        size = sum(tensor.nbytes for tensor in program.state_dict.values())
        data = f"{built.name}.{metadata['weights_sha256'][:8]}.data" if size > _LARGEST else None
        onnx_ir.save(exported.model, built, external_data=data)
    return Path(path)


def export_program(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    input: Input = "uint8",
    real_codes: bool = False,
    image_size: int | tuple[int, int] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> Path:
    """Write a program of ``torch.export``; ``torch.export.load(path).module()`` loads it.

    The program runs on the device where the model is now, and returns ``packed`` or ``(packed, codes)``. Its
    extra file ``hybridhash.json`` holds the metadata. Inputs, outputs and errors are those of
    :func:`export_onnx`.

    Args:
        model: A hash model, as in :func:`export_onnx`.
        path: The file to write, ``*.pt2``.
        input: As in :func:`export_onnx`.
        real_codes: As in :func:`export_onnx`.
        image_size: As in :func:`export_onnx`.
        preprocessing: As in :func:`export_onnx`.

    Returns:
        The path.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh())
        >>> prepared = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_program(model, f"{folder}/model.pt2", image_size=2, preprocessing=prepared)
        ...     hashing, bits = torch.export.load(path).module(), read_metadata(path)["bits"]
        >>> hashing(torch.zeros(3, 3, 2, 2, dtype=torch.uint8)).shape, bits
        (torch.Size([3, 2]), 16)
    """
    with _building(path, ".pt2") as built:
        program, metadata = _traced(model, input, real_codes, image_size, preprocessing)
        torch.export.save(program, built, extra_files={_EXTRA: json.dumps(metadata)})
    return Path(path)


def export_aoti(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    input: Input = "uint8",
    real_codes: bool = False,
    image_size: int | tuple[int, int] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Compile a model ahead of time to a package of AOTInductor, which C++ runs without Python.

    ``torch._inductor.aoti_load_package(path)`` loads it in Python. The package is machine code: it runs on
    the device where the model is now, on processors like this one, and with the same version of torch.
    Compiling takes minutes. Inputs and outputs are those of :func:`export_onnx`.

    Args:
        model: A hash model, as in :func:`export_onnx`.
        path: The file to write, ``*.pt2``.
        input: As in :func:`export_onnx`.
        real_codes: As in :func:`export_onnx`.
        image_size: As in :func:`export_onnx`.
        preprocessing: As in :func:`export_onnx`.
        options: Settings of the compiler, by their names in ``torch._inductor.config``.

    Returns:
        The path.

    Raises:
        ImportError: torch is older than 2.6.
        RuntimeError: There is no C++ compiler, or the compilation failed.
        TypeError, ValueError, OSError: As in :func:`export_onnx`.
    """
    compile_package = getattr(torch._inductor, "aoti_compile_and_package", None)
    if compile_package is None:
        raise ImportError(f"AOTInductor packages need torch>=2.6, here is torch {torch.__version__}")
    _check_compiler()
    with _building(path, ".pt2") as built:
        program, metadata = _traced(model, input, real_codes, image_size, preprocessing)
        named = {_PREFIX + key: text for key, text in metadata.items()}
        configs = {**(options or {}), "aot_inductor.metadata": named}
        try:
            compile_package(program, package_path=str(built), inductor_configs=configs)
        except RuntimeError as error:
            raise RuntimeError(
                f"AOTInductor could not compile {metadata['name']}: {error}; export_program and export_onnx "
                "need no compiler"
            ) from error
    return Path(path)


def quantize_onnx(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    images: Tensor | np.ndarray[Any, Any],
    *,
    batch_size: int = 16,
) -> float:
    """Quantise a file of :func:`export_onnx` to 8 bits; return the share of code bits that change.

    Weights of matrix products and convolutions become uint8, and activations are quantised at run time
    (onnxruntime's dynamic quantisation). The packing of the bits is not quantised. The metadata stay, with
    ``quantization`` set to ``"int8-dynamic"``.

    Args:
        path: A file of :func:`export_onnx`.
        out: The file to write, ``*.onnx``, other than ``path``.
        images: Images ``(N, C, H, W)`` on which the two files are compared, as the graph takes them. Give 100
            or more of the kind that the model will see, because the share depends on them.
        batch_size: Number of images that are compared at a time.

    Returns:
        Share of all code bits that differ between the two files, 0 to 1.

    Raises:
        ImportError: onnxruntime or onnx is not installed.
        ValueError: ``path`` is not a file of :func:`export_onnx`, ``out`` is ``path``, or ``images`` is empty
            or has another shape or dtype.
        OSError: ``out`` cannot be written; an existing file is unchanged.
    """
    _require("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if os.path.realpath(path) == os.path.realpath(out):
        raise ValueError(f"out is the file to quantise, {os.fspath(path)!r}: give another name")
    metadata = read_metadata(path)
    images = np.ascontiguousarray(images)
    dtype = np.dtype("uint8" if metadata["input"] == "uint8" else "float32")
    shape = tuple(metadata["input_size"])
    if images.dtype != dtype or images.shape[1:] != shape or not len(images):
        raise ValueError(
            f"images must be {dtype} (N, {', '.join(map(str, shape))}) with N >= 1, as the graph takes them, "
            f"got {images.dtype} {images.shape}"
        )
    with _building(out, ".onnx") as built:
        graph = onnx.load(os.fspath(path))
        # The quantiser transposes weights, and then stumbles over their shapes of before.
        del graph.graph.value_info[:]
        graph.metadata_props.add(key=_PREFIX + "quantization", value="int8-dynamic")
        # Or onnxruntime logs the advice to optimise the graph first, which torch.onnx has done.
        graph.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
        # QUInt8, because onnxruntime has no convolution of int8 weights on the CPU.
        quantize_dynamic(graph, built, weight_type=QuantType.QUInt8)
        before, after = (_packed_codes(file, images, batch_size) for file in (path, built))
        flipped = np.bitwise_count(before ^ after).sum(dtype=np.int64)
    return float(flipped) / (len(images) * int(metadata["bits"]))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the metadata of an exported file without running anything in it.

    Args:
        path: A file of :func:`export_onnx`, :func:`export_program`, :func:`export_aoti` or
            :func:`quantize_onnx`.

    Returns:
        ``name`` (architecture), ``bits``, ``input`` (``"uint8"`` or ``"float"``), ``real_codes``,
        ``input_size`` ``(C, H, W)``, ``mean``, ``std``, ``interpolation``, ``crop_pct``, ``crop_mode``,
        ``weights_sha256`` (that of :func:`hybridhash.hub.save_pretrained`'s ``model.safetensors``),
        ``hybridhash_version``, and ``quantization`` for an 8-bit file.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: It is an ONNX file, and onnx is not installed.
        ValueError: It is a file of another kind, or this package did not export it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {os.fspath(path)!r}")
    texts = _read_archive(path) if zipfile.is_zipfile(path) else _read_props(path)
    if "bits" not in texts:
        raise ValueError(
            f"{os.fspath(path)!r} has no metadata of hybridhash: it was not exported by this package"
        )
    return {key: text if key in _TEXTS else json.loads(text) for key, text in texts.items()}


class _Hashing(nn.Module):
    """Map images to packed codes by operations that every runtime has."""

    weights: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, bits: int, metadata: Mapping[str, Any], device: torch.device):
        super().__init__()
        self.model = model
        self.raw, self.real_codes = metadata["input"] == "uint8", metadata["real_codes"]
        self.width, self.padding = -(-bits // 8), -bits % 8
        # The byte that each of eight bits alone gives. A sum of products, not a shift, which runtimes lack,
        # nor a matrix product, which quantisation would round.
        self.register_buffer(
            "weights", pack_bits(torch.eye(8, dtype=torch.bool)).float().flatten().to(device)
        )
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(metadata[name], device=device).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.raw:
            images = (images.float() / 255 - self.mean) / self.std
        codes = self.model(images)
        signs = F.pad((codes > 0).float(), (0, self.padding))
        packed = (signs.view(-1, self.width, 8) * self.weights).sum(2).to(torch.uint8)
        return (packed, codes) if self.real_codes else packed


def _traced(
    model: nn.Module,
    input: Input,
    real_codes: bool,
    image_size: int | tuple[int, int] | None,
    preprocessing: Mapping[str, Any] | None,
) -> tuple[torch.export.ExportedProgram, dict[str, str]]:
    """Return the program of a model with a free batch size, and its metadata as texts."""
    check_choice("input", input, get_args(Input))
    model = _exportable(model)
    transform = _transform_of(model, image_size, preprocessing)
    dtype = torch.uint8 if input == "uint8" else torch.float32
    # Two images, because torch.export takes a size of 1 for a constant.
    example = torch.zeros((2, *transform["input_size"]), dtype=dtype, device=input_device(model, None))
    with eval_mode(model), torch.no_grad():
        bits = forward_packed(model, example.float(), nullcontext(), "the example").bits
        metadata = {
            "name": model_name(model),
            "bits": bits,
            "input": input,
            "real_codes": bool(real_codes),
            **transform,
            "weights_sha256": weights_sha256(model),
            "hybridhash_version": _version(),
        }
        program = _trace(_Hashing(model, bits, metadata, example.device).eval(), example, model_name(model))
    texts = {key: str(v) if key in _TEXTS else json.dumps(v) for key, v in metadata.items()}
    return program, texts


def _exportable(model: nn.Module) -> nn.Module:
    """Return a hash model without its wrappers; raise unless its weights are float32."""
    check_hash_model(model)
    model = unwrap_model(model)
    dtypes = {value.dtype for value in model.state_dict().values() if value.is_floating_point()}
    others = ", ".join(sorted(map(str, dtypes - {torch.float32})))
    if others:
        raise ValueError(
            f"the model has {others} weights, and only float32 is exported: give "
            "copy.deepcopy(model).float(), and let the runtime lower the precision"
        )
    return model


def _trace(hashing: _Hashing, example: Tensor, name: str) -> torch.export.ExportedProgram:
    """Trace a module with a free batch size; ``name`` is what an error calls it."""
    batch = torch.export.Dim("batch", min=1)
    try:
        return torch.export.export(hashing, (example,), dynamic_shapes={"images": {0: batch}}, strict=False)
    except RuntimeError as error:
        raise RuntimeError(f"torch.export cannot trace {name} with a free batch size: {error}") from error


def _version() -> str:
    from hybridhash import __version__  # not there yet while the package is imported

    return __version__


def _transform_of(
    model: nn.Module, image_size: int | tuple[int, int] | None, preprocessing: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return ``input_size`` and the settings of ``PREPROCESSING``: those given, else those of the model."""
    check_preprocessing(preprocessing)
    cfg = getattr(model, "pretrained_cfg", None)
    cfg = cfg or getattr(getattr(model, "backbone", None), "pretrained_cfg", None) or {}
    known = {**cfg, **(preprocessing or {})}
    if known.get("mean") is None or known.get("std") is None:
        raise ValueError(
            f"{type(model).__name__} does not say how its images are normalised: give "
            "preprocessing={'mean': (...), 'std': (...)}"
        )
    size = image_size or getattr(model, "img_size", None) or known.get("input_size", ())[-2:]
    if not size:
        raise ValueError(f"{type(model).__name__} does not say its image size: give image_size=224, or so")
    channels = int(getattr(model, "in_chans", len(known["mean"])))
    resolved = resolve_data_config({"input_size": (channels, *to_2tuple(size))}, pretrained_cfg=known)
    transform = {key: resolved[key] for key in ("input_size", *PREPROCESSING)}
    for key in ("mean", "std"):
        transform[key] = tuple(map(float, known[key]))  # timm's default for one channel is not the model's
        if len(transform[key]) != channels:
            raise ValueError(
                f"{key} has {len(transform[key])} values for {channels} channels: give "
                f"preprocessing={{{key!r}: ...}} with one for each channel"
            )
    return transform


@contextmanager
def _building(path: str | os.PathLike[str], suffix: str) -> Iterator[Path]:
    """Yield where to write a file under its own name; it replaces ``path``, with any files beside it."""
    file = resolved_path(path)
    if file.suffix != suffix:
        raise ValueError(f"path must end in {suffix}, got {os.fspath(path)!r}")
    if file.is_dir():
        raise IsADirectoryError(f"{os.fspath(path)!r} is a folder: give a file in it")
    # Formats write the name of their file into it. Weights move in before the graph that names them; those
    # of another version have another name.
    with replacing_files(file.parent, last=file.name) as folder:
        yield folder / file.name


def _require(*modules: str) -> None:
    """Raise ImportError, naming the extra, unless all modules can be imported."""
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise ImportError(f"ONNX needs {module}: pip install hybridhash[export]") from error


def _check_compiler() -> None:
    """Raise RuntimeError without a C++ compiler, before the model is traced, which takes long."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise RuntimeError(
            f"AOTInductor needs a C++ compiler: install g++, or name one in the environment variable CXX "
            f"({error})"
        ) from error


def _packed_codes(path: str | os.PathLike[str], images: Any, batch_size: int) -> Any:
    """Return the packed codes ``(N, bytes)`` that an ONNX file gives for images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    return np.concatenate([session.run(["packed"], {"images": batch})[0] for batch in batches])


def _read_archive(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata in the zip archive of a program or of a compiled package."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(f"/extra/{_EXTRA}"):
                return dict(json.loads(archive.read(name)))
            if name.endswith("_metadata.json"):
                texts = _without_prefix(json.loads(archive.read(name)))
                if texts:
                    return texts
    return {}


def _read_props(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of an ONNX file."""
    _require("onnx")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(os.fspath(path), load_external_data=False)
    except DecodeError as error:
        raise ValueError(
            f"{os.fspath(path)!r} is neither an ONNX file nor a .pt2 archive: {error}"
        ) from error
    return _without_prefix({prop.key: prop.value for prop in graph.metadata_props})


def _without_prefix(properties: Mapping[str, str]) -> dict[str, str]:
    """Return our own entries among the metadata of a file, without their prefix."""
    ours = {key: text for key, text in properties.items() if key.startswith(_PREFIX)}
    return {key.removeprefix(_PREFIX): text for key, text in ours.items()}
