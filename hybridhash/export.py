"""Export models for other runtimes.

The exported file maps images to packed codes and carries its own metadata. The network, the normalisation of
the images and the packing of the bits become one graph with a free batch size. It runs without this package:
in onnxruntime, in torch, or compiled in C++. The metadata are the name of the model, its bits, how images are
prepared, and the SHA-256 of the weights; :func:`read_metadata` reads them.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from timm.data import resolve_data_config
from timm.utils import unwrap_model
from torch import Tensor, nn

from hybridhash._checks import check_choice
from hybridhash._files import check_parent, replacing_files
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

    The input is ``images``, uint8 RGB of 0 to 255 or float32 normalised, ``(batch, C, H, W)``. The outputs
    are ``packed``, uint8 ``(batch, ceil(bits / 8))`` as :func:`hybridhash.pack_codes` gives them, and with
    ``real_codes`` also ``codes``, float32 ``(batch, bits)``. A code of exactly 0 is bit 0, and so is NaN,
    because a graph cannot raise. The batch size is free; height and width are fixed.

    The model is exported in eval mode as float32. Its mode, its weights and its device are not changed.

    Args:
        model: A hash model: ``hybridhash_*``, one of :func:`hybridhash.create_hash_model`, or any module that
            maps images to codes ``(B, bits)`` of 1 to 512 bits. Wrappers of DDP and ``torch.compile`` are
            taken off.
        path: The file to write, ``*.onnx``. An older file is replaced once the new one is complete. Weights
            of 2 GiB and more go to a second file beside it, ``<name>.<8 digits of their SHA-256>.data``.
        input: ``"uint8"`` puts the normalisation, ``(images / 255 - mean) / std``, into the graph.
            ``"float"`` expects normalised images.
        real_codes: Whether to return the real-valued codes too.
        image_size: Height and width. None takes the size that the model was built for.
        preprocessing: ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode`` of the training
            images, where they differ from ``model.pretrained_cfg``.
        opset_version: The version of ONNX's operators. None takes torch's default.

    Returns:
        The path.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        IsADirectoryError, FileNotFoundError, OSError: The path is a folder, its folder does not exist, or the
            file cannot be written. Nothing is left behind, and older files are unchanged.
        TypeError, ValueError: The model is no module, has no hash layer (``num_classes=0``), has weights
            other than float32 or returns no codes; ``input`` or a key of ``preprocessing`` is unknown; or
            the ``mean`` of the images is not known.
        RuntimeError: torch cannot trace the model, or not with a free batch size.

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
    """Write a program of ``torch.export``, which ``torch.export.load(path).module()`` loads.

    It runs on the device where the model is now, and returns ``packed`` or ``(packed, codes)``. The metadata
    are in the extra file ``hybridhash.json``. Everything else, and what is raised, is as in
    :func:`export_onnx`.

    Args:
        model: The model; see :func:`export_onnx` for it and for the arguments after ``path``.
        path: The file to write, ``*.pt2``.

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
    """Compile the model ahead of time to a package of AOTInductor, for Python, and for C++ without Python.

    ``torch._inductor.aoti_load_package(path)`` loads it. It is machine code for the device where the model is
    now, the processor that compiled it, and this version of torch. Compiling takes minutes. Everything else
    is as in :func:`export_onnx`.

    Args:
        model: The model; see :func:`export_onnx` for it and for the arguments up to ``preprocessing``.
        path: The file to write, ``*.pt2``.
        options: Settings of the compiler, by their names in ``torch._inductor.config``.

    Returns:
        The path.

    Raises:
        RuntimeError: There is no C++ compiler, or the compilation failed; otherwise as :func:`export_onnx`.
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
    (onnxruntime's dynamic quantisation). The packing of the bits is not touched. The metadata are kept, and
    ``quantization`` is ``"int8-dynamic"``.

    Args:
        path: A file of :func:`export_onnx`.
        out: The file to write, ``*.onnx``, not ``path`` itself.
        images: Images ``(N, C, H, W)`` as the graph takes them, on which both files are compared. Give 100 or
            more of the kind that the model is made for, because the share depends on them.
        batch_size: The number of images that are compared at a time.

    Returns:
        The share of bits of all images that differ between the two files, 0 to 1.

    Raises:
        ImportError: onnxruntime or onnx is not installed.
        ValueError: ``path`` is no file of :func:`export_onnx`, ``out`` is ``path``, or ``images`` are empty
            or have another shape or dtype.
        OSError: ``out`` cannot be written. An older file is unchanged.
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
        before = _packed_codes(path, images, batch_size)
        after = _packed_codes(built, images, batch_size)
        flipped = np.bitwise_count(before ^ after).sum(dtype=np.int64)
    return float(flipped) / (len(images) * int(metadata["bits"]))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the metadata of an exported file, without running any of it.

    Args:
        path: A file of :func:`export_onnx`, :func:`export_program`, :func:`export_aoti` or
            :func:`quantize_onnx`.

    Returns:
        ``name`` (architecture), ``bits``, ``input`` (``"uint8"`` or ``"float"``), ``real_codes``,
        ``input_size`` ``(C, H, W)``, ``mean``, ``std``, ``interpolation``, ``crop_pct``, ``crop_mode``,
        ``weights_sha256`` (that of :func:`hybridhash.hub.save_pretrained`'s ``model.safetensors``),
        ``hybridhash_version``, and ``quantization`` for an 8-bit file.

    Raises:
        FileNotFoundError: The file does not exist.
        ImportError: It is an ONNX file, and onnx is not installed.
        ValueError: It is of another kind, or was not exported by this package.
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
    """Map images to packed codes, with operations that every runtime has."""

    weights: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, bits: int, metadata: Mapping[str, Any], device: torch.device):
        super().__init__()
        self.model = model
        self.normalises = metadata["input"] == "uint8"
        self.real_codes = metadata["real_codes"]
        # The byte that each bit alone gives. A sum of products, not a shift, which runtimes lack, nor a
        # matrix product, which quantisation would round.
        self.register_buffer("weights", pack_bits(torch.eye(bits, dtype=torch.bool)).float().to(device))
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(metadata[name], device=device).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.normalises:
            images = (images.float() / 255 - self.mean) / self.std
        codes = self.model(images)
        packed = ((codes > 0).float().unsqueeze(2) * self.weights).sum(1).to(torch.uint8)
        return (packed, codes) if self.real_codes else packed


def _traced(
    model: nn.Module,
    input: str,
    real_codes: bool,
    image_size: int | tuple[int, int] | None,
    preprocessing: Mapping[str, Any] | None,
) -> tuple[torch.export.ExportedProgram, dict[str, str]]:
    """Trace a model with a free batch size; return the program and its metadata."""
    from hybridhash import __version__

    check_hash_model(model)
    check_choice("input", input, ("uint8", "float"))
    model = unwrap_model(model)
    others = {value.dtype for value in model.state_dict().values() if value.is_floating_point()}
    if others - {torch.float32}:
        got = ", ".join(sorted(map(str, others - {torch.float32})))
        raise ValueError(
            f"the model has {got} weights, and only float32 is exported: give copy.deepcopy(model).float(), "
            "and let the runtime lower the precision"
        )
    transform = _transform_of(model, image_size, preprocessing)
    device = input_device(model, None)
    dtype = torch.uint8 if input == "uint8" else torch.float32
    # Two images, because torch.export takes a size of 1 for a constant.
    example = torch.zeros((2, *transform["input_size"]), dtype=dtype, device=device)
    with eval_mode(model), torch.no_grad():
        bits = forward_packed(model, example.float(), nullcontext(), "the example").bits
        metadata = {
            "name": model_name(model),
            "bits": bits,
            "input": input,
            "real_codes": bool(real_codes),
            **transform,
            "weights_sha256": weights_sha256(model),
            "hybridhash_version": __version__,
        }
        hashing = _Hashing(model, bits, metadata, device).eval()
        batch = torch.export.Dim("batch", min=1)
        try:
            program = torch.export.export(
                hashing, (example,), dynamic_shapes={"images": {0: batch}}, strict=False
            )
        except RuntimeError as error:
            raise RuntimeError(
                f"torch.export cannot trace {metadata['name']} with a free batch size: {error}"
            ) from error
    texts = {key: str(v) if key in _TEXTS else json.dumps(v) for key, v in metadata.items()}
    return program, texts


def _transform_of(
    model: nn.Module, image_size: int | tuple[int, int] | None, preprocessing: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return ``input_size``, ``mean``, ``std`` and so on: as given, else as the model has them."""
    check_preprocessing(preprocessing)
    cfg = getattr(model, "pretrained_cfg", None)
    cfg = cfg or getattr(getattr(model, "backbone", None), "pretrained_cfg", None) or {}
    known = {**cfg, **(preprocessing or {})}
    missing = [key for key in ("mean", "std") if known.get(key) is None]
    if missing:
        raise ValueError(
            f"{type(model).__name__} does not say how its images are normalised: give "
            "preprocessing={'mean': (...), 'std': (...)}"
        )
    size = image_size or getattr(model, "img_size", None) or known.get("input_size", ())[-2:]
    if not size:
        raise ValueError(f"{type(model).__name__} does not say its image size: give image_size=224, or so")
    sides = (size, size) if isinstance(size, int) else tuple(size)
    channels = int(getattr(model, "in_chans", len(known["mean"])))
    transform = resolve_data_config({"input_size": (channels, *sides)}, pretrained_cfg=known)
    transform = {key: transform[key] for key in ("input_size", *PREPROCESSING)}
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
    """Yield where to build a file, under its own name; it moves to ``path`` when the block ends."""
    file = Path(os.path.realpath(path))
    if file.suffix != suffix:
        raise ValueError(f"path must end in {suffix}, got {os.fspath(path)!r}")
    if file.is_dir():
        raise IsADirectoryError(f"{os.fspath(path)!r} is a folder: give a file in it")
    check_parent(file)
    # In a folder, since formats write the name of their file into it, and some of them several files.
    with replacing_files(file.parent) as folder:
        yield folder / file.name


def _require(*modules: str) -> None:
    """Raise ImportError, with the command to install it, if a module is missing."""
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise ImportError(f"ONNX needs {module}: pip install hybridhash[export]") from error


def _check_compiler() -> None:
    """Raise RuntimeError if there is no C++ compiler, before the model is traced, which takes long."""
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
    """Run an ONNX file on images and return the packed codes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    return np.concatenate([session.run(["packed"], {"images": batch})[0] for batch in batches])


def _read_archive(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the metadata of the zip archive of a program or of a compiled package."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(f"/extra/{_EXTRA}"):
                return dict(json.loads(archive.read(name)))
            if name.endswith("_metadata.json"):
                texts = _unprefixed(json.loads(archive.read(name)))
                if texts:
                    return texts
    return {}


def _read_props(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the metadata of an ONNX file."""
    _require("onnx")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(os.fspath(path), load_external_data=False)
    except DecodeError as error:
        raise ValueError(
            f"{os.fspath(path)!r} is neither an ONNX file nor a .pt2 archive: {error}"
        ) from error
    return _unprefixed({prop.key: prop.value for prop in graph.metadata_props})


def _unprefixed(properties: Mapping[str, str]) -> dict[str, str]:
    """Return the properties of this package, without the prefix of their keys."""
    return {k.removeprefix(_PREFIX): v for k, v in properties.items() if k.startswith(_PREFIX)}
