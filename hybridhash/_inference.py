"""Run a model over images: read batches, choose device, precision and mode, pack the codes."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from hybridhash._code_checks import MAX_BITS, as_ids
from hybridhash._hamming import pack_bits, row_factors
from hybridhash.labels import as_labels

__all__ = [
    "NO_LOADERS",
    "PREPROCESSING",
    "PackedBatch",
    "as_tensor",
    "autocast_of",
    "check_hash_model",
    "check_loader",
    "check_preprocessing",
    "eval_mode",
    "forward_packed",
    "image_batches",
    "input_device",
    "multiplies_natively",
    "named_batch",
    "named_fields",
    "read_batch",
    "running_dtype",
    "to_device",
]

# What is given in place of a loader by mistake; check_loader says what to do.
NO_LOADERS = (Tensor, str, os.PathLike, Dataset, int, type(None))
# How the images of a model are prepared, in the words of timm's pretrained_cfg.
PREPROCESSING = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
_KEYS = {
    "images": ("image", "images", "pixel_values"),
    "labels": ("label", "labels"),
    "ids": ("index", "indices", "id", "ids"),
}
# What multiplies matrices of a half-precision dtype on an x86-64 processor; one of them is enough.
_INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}


class PackedBatch(NamedTuple):
    """Packed codes of a batch of images, perhaps still being computed on the device.

    Attributes:
        packed: uint8 ``(B, ceil(bits / 8))``.
        nan: bool ``(B,)``, the images whose codes contain NaN; with factors, also those with infinite ones.
        bits: The code length.
        codes: The real-valued codes ``(B, bits)``.
        factors: The correction factors float32 ``(B, 2)``, or None.
    """

    packed: Tensor
    nan: Tensor
    bits: int
    codes: Tensor
    factors: Tensor | None

    @property
    def useless(self) -> str:
        """Say in words what the codes of the images in ``nan`` are."""
        return "NaN" if self.factors is None else "NaN or infinite"


def check_hash_model(model: object) -> None:
    """Raise unless ``model`` is a module that may have a hash layer."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if getattr(model, "num_classes", None) == 0:
        raise ValueError(
            "model has num_classes=0, which means no hash layer: it gives embeddings, not codes. Create it "
            "with num_classes=bits, or call model.reset_classifier(bits)"
        )


def check_loader(loader: object) -> None:
    """Raise if what should yield batches is a tensor, a path, a data set of single images, or one number."""
    if loader is None or isinstance(loader, int):
        raise TypeError(f"loader must yield batches, got {loader!r}: give a DataLoader or a list of batches")
    if isinstance(loader, Tensor):
        raise TypeError("loader must yield batches, got a tensor: give [images] for one batch of images")
    if isinstance(loader, (str, os.PathLike)):
        raise TypeError(
            f"loader must yield batches, got the path {os.fspath(loader)!r}: give a loader of the images, "
            "hybridhash.encoding.image_loader(model, hybridhash.data.ImageFiles(path), batch_size)"
        )
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise TypeError(
            f"loader must yield batches, got the data set {type(loader).__name__} of single images: "
            "give hybridhash.encoding.image_loader(model, dataset, batch_size)"
        )


def check_preprocessing(
    preprocessing: Mapping[str, Any] | None, keys: tuple[str, ...] = PREPROCESSING
) -> None:
    """Raise unless all keys are known."""
    unknown = sorted(set(preprocessing or ()) - set(keys))
    if unknown:
        raise ValueError(f"preprocessing has unknown keys {unknown}: there are {sorted(keys)}")


def forward_packed(
    model: nn.Module,
    images: Tensor,
    autocast: AbstractContextManager[Any],
    name: str,
    *,
    factors: bool = False,
) -> PackedBatch:
    """Run a model on a batch and pack the signs of its output, without waiting for the device.

    Args:
        model: A module that maps images ``(B, ...)`` to real-valued codes ``(B, bits)``.
        images: The images, on the device of the model.
        autocast: The context of :func:`autocast_of`.
        name: The name of the batch in error messages.
        factors: Whether to compute the correction factors, too.

    Raises:
        TypeError, ValueError: The output is not a tensor of codes ``(B, bits)``.
    """
    # Not inference_mode: what a module caches in it could never again be part of training.
    with torch.no_grad(), autocast, named_batch(model, images, name):
        codes = model(images)
    if not isinstance(codes, Tensor) or codes.dtype == torch.uint8 or codes.dtype.is_complex:
        got = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
        raise TypeError(f"the model must return a tensor of real-valued codes (B, bits), got {got}")
    rows = images.shape[0]
    if codes.ndim != 2 or codes.shape[0] != rows or not 1 <= codes.shape[1] <= MAX_BITS:
        raise ValueError(
            f"the model must return codes ({rows}, bits) of 1 to {MAX_BITS} bits for the {rows} images of "
            f"{name}, got shape {tuple(codes.shape)}"
        )
    kept = row_factors(codes) if factors else None
    useless = codes.isnan().any(1) if kept is None else ~kept.isfinite().all(1)
    return PackedBatch(pack_bits(codes > 0), useless, codes.shape[1], codes, kept)


def named_fields(content: Mapping[Any, Any], name: str) -> dict[str, Any]:
    """Return the images, labels and ids of a dict under these names.

    Args:
        content: A batch or an item of a data set, with keys of ``_KEYS``.
        name: The name of the dict in error messages.
    """
    known = {key: field for field, keys in _KEYS.items() for key in keys}
    unknown = [key for key in content if key not in known]
    if unknown:
        raise ValueError(f"{name} has the unknown keys {unknown}: known are {', '.join(known)}")
    fields = {known[key]: value for key, value in content.items()}
    if len(fields) < len(content):
        raise ValueError(f"{name} has two keys for the same thing: {list(content)}")
    if "images" not in fields:
        raise ValueError(f"{name} has no images, only the keys {list(content)}")
    return fields


def as_tensor(values: Any, name: str) -> Tensor:
    """Return ``torch.as_tensor(values)``; errors call it ``name``."""
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a tensor or numbers, got {type(values).__name__}: {error}"
        ) from error


def read_batch(content: Any, number: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return images, labels and indices of what a loader yields, the latter two checked and on the CPU.

    Args:
        content: Images, ``(images, labels)``, ``(images, labels, indices)`` or a dict with keys of ``_KEYS``.
        number: The number of the batch, for error messages.
    """
    if isinstance(content, Tensor):
        fields: dict[str, Any] = {"images": content}
    elif isinstance(content, Mapping):
        fields = named_fields(content, f"batch {number}")
    elif isinstance(content, (tuple, list)) and 1 <= len(content) <= 3:
        fields = dict(zip(_KEYS, content, strict=False))
    else:
        size = f" of {len(content)}" if isinstance(content, (tuple, list)) else ""
        raise TypeError(
            f"batch {number} is a {type(content).__name__}{size}: the loader must yield images, "
            "(images, labels), (images, labels, indices) or a dict"
        )
    images, labels, ids = (fields.get(name) for name in _KEYS)
    if not isinstance(images, Tensor) or images.ndim == 0:
        got = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images of batch {number} must be a tensor (B, ...), got {got}")
    # Clones, because memory shared by the workers of a DataLoader stays open as long as anything views it.
    if labels is not None:
        name = f"labels of batch {number}"
        labels = as_labels(as_tensor(labels, name), length=images.shape[0], name=name).cpu().clone()
    if ids is not None:
        name = f"indices of batch {number}"
        ids = as_ids(as_tensor(ids, name), length=images.shape[0], name=name).cpu().clone()
    return images, labels, ids


def image_batches(loader: Iterable[Any], task: str, progress: bool) -> Iterator[tuple[int, Tensor]]:
    """Yield number and images of what a loader yields, with a progress bar on stderr if it is wanted."""
    bar = tqdm(desc=task, unit="image", disable=not progress)  # type: ignore[no-untyped-call]
    with bar:
        for number, content in enumerate(loader):
            images = read_batch(content, number)[0]
            yield number, images
            bar.update(len(images))


def input_device(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """Return the device that images go to.

    Args:
        model: The model, which is never moved.
        device: A device where the model has weights, or None for the device of its first parameter.

    Raises:
        ValueError: The model has weights, but none on ``device``.
    """
    tensors = itertools.chain(model.parameters(), model.buffers())
    model_devices = list(dict.fromkeys(tensor.device for tensor in tensors))
    if device is None:
        return model_devices[0] if model_devices else torch.device("cpu")
    device = torch.device(device)
    for candidate in model_devices:
        if candidate.type == device.type and device.index in (None, candidate.index):
            return candidate
    if model_devices:
        raise ValueError(
            f"the model is on {model_devices[0]}, but device={str(device)!r} was given: move it with "
            f"model.to({str(device)!r}) first, encode does not"
        )
    return device


def autocast_of(
    model: nn.Module, device: torch.device, dtype: torch.dtype | None
) -> AbstractContextManager[Any]:
    """Return the context that runs ``model`` in ``dtype``.

    Half precision is autocast, float32 is no autocast, and None leaves the caller's context as it is. A
    processor that only emulates the half-precision dtype runs float32 weights in float32 instead, which is
    several times faster; a UserWarning says so.

    Raises:
        ValueError: ``dtype`` is none of these.
    """
    if dtype is None:
        return nullcontext()
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    if dtype not in _INSTRUCTIONS:
        raise ValueError(f"dtype must be None, torch.bfloat16, torch.float16 or torch.float32, got {dtype}")
    # Weights in half precision need the autocast: it casts the images to their dtype.
    full_precision = all(p.dtype not in _INSTRUCTIONS for p in model.parameters())
    if device.type == "cpu" and full_precision and not multiplies_natively(dtype):
        warnings.warn(
            f"this processor has no instructions for {dtype}, so the model runs in float32, which is faster "
            "here: give dtype=torch.float32 or None on such a machine",
            stacklevel=1,  # here, so that Python shows it once a process and not once a caller
        )
        return torch.autocast("cpu", enabled=False)
    return torch.autocast(device.type, dtype=dtype)


def running_dtype(
    model: nn.Module, device: torch.device, autocast: AbstractContextManager[Any]
) -> torch.dtype:
    """Return the dtype that matrices are multiplied in: that of autocast, else that of the weights.

    Args:
        model: The model.
        device: Where it runs.
        autocast: The context of :func:`autocast_of`, which may have fallen back to float32.
    """
    with autocast:
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
    floating = (p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    return next(floating, torch.get_default_dtype())


def multiplies_natively(dtype: torch.dtype) -> bool:
    """Return whether this processor multiplies matrices of a half-precision dtype without emulation.

    True where it is not known: on processors other than x86-64, and in versions of PyTorch that do not tell.
    """
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities.get("architecture") != "x86_64":
        return True
    return any(capabilities.get(name) for name in _INSTRUCTIONS[dtype])


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """Move images to a device; a copy to CUDA goes through pinned memory and does not block."""
    if images.is_meta and device.type != "meta":
        raise ValueError("images are on the meta device and hold no numbers: give those on the CPU or a GPU")
    if device.type == "cuda" and images.device.type == "cpu":
        return images.pin_memory().to(device, non_blocking=True)
    return images.to(device)


@contextmanager
def named_batch(model: nn.Module, inputs: Tensor, name: str) -> Iterator[None]:
    """Name the batch that a model failed on, if the batch does not look like what the model takes.

    Args:
        model: The model.
        inputs: What it is run on.
        name: The name of the batch in error messages.

    Raises:
        ValueError: The model raised, and the reason can be seen. Other errors pass as they are.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = _unfit(model, inputs)
        if reason is None:
            raise
        raise ValueError(f"the model cannot run on {name}: {reason} ({error})") from error


def _unfit(model: nn.Module, inputs: Tensor) -> str | None:
    """Say why a model cannot run on these inputs, or return None if no reason can be seen."""
    weights = list(model.parameters())
    if any(weight.is_meta for weight in weights):
        return "it is on the meta device and has no weights, load them first"
    if inputs.layout != torch.strided:
        return f"the batch is {inputs.layout}, give a dense tensor"
    kind = next((weight.dtype for weight in weights if weight.is_floating_point()), inputs.dtype)
    if inputs.dtype != kind:
        scaled = "" if inputs.is_floating_point() else ", with the values that its transform gives"
        return f"the batch is {inputs.dtype}, its weights are {kind}: give {kind}{scaled}"
    channels: Any = getattr(model, "in_chans", None)
    if channels is not None and (inputs.ndim != 4 or inputs.shape[1] != channels):
        shape = tuple(inputs.shape)
        return f"the batch has the shape {shape}, it takes images (B, {channels}, height, width)"
    return None


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and afterwards each module back into the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
