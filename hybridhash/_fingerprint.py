"""Fingerprints for files: SHA-256 of content and weights, the names of architecture and transform."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from hybridhash._distributed import whole

__all__ = ["describe", "file_sha256", "json_sha256", "model_name", "rest_sha256", "weights_sha256"]

_CHUNK = 1 << 20


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits.

    Raises:
        FileNotFoundError: The file does not exist.
    """
    with path.open("rb") as file:
        return rest_sha256(file)


def rest_sha256(file: BinaryIO) -> str:
    """Return the SHA-256 of what is left to read of an open file."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def json_sha256(content: Any) -> str:
    """Return the SHA-256 of what JSON can write, whatever the order of its keys.

    Example:
        >>> json_sha256({"a": 1, "b": 2}) == json_sha256({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def weights_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers, as a safetensors file without metadata.

    ``sha256sum model.safetensors`` prints the same after :func:`hybridhash.hub.save_pretrained`, and the Hub
    shows it for that file. Wrappers of DDP and ``torch.compile`` are removed. The device and the memory
    format do not change the digest, the dtype does.

    Args:
        model: Any module whose weights fit into memory once more.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = weights_sha256(layer)
        >>> with torch.no_grad():
        ...     _ = layer.bias.add_(1)
        >>> weights_sha256(layer) == before
        False
    """
    tensors = {
        # Clones, because safetensors refuses tensors that share memory, as tied weights do.
        name: whole(value.detach()).cpu().clone(memory_format=torch.contiguous_format)
        for name, value in unwrap_model(model).state_dict().items()
        if isinstance(value, Tensor)
    }
    return hashlib.sha256(safetensors.torch.save(tensors)).hexdigest()


def model_name(model: nn.Module) -> str:
    """Return the name of the architecture: timm's if it has one, else that of the class.

    Example:
        >>> model_name(nn.Linear(2, 2))
        'Linear'
    """
    model = unwrap_model(model)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return str(cfg.get("architecture") or type(model).__name__)


def describe(transform: object) -> str:
    """Describe a transform by a text that is the same in every process: its ``repr``, or a function's name.

    Example:
        >>> describe(weights_sha256), describe(nn.ReLU())
        ('hybridhash._fingerprint.weights_sha256', 'ReLU()')
    """
    name = getattr(transform, "__qualname__", None)
    if name is not None:
        return f"{getattr(transform, '__module__', '')}.{name}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(transform))
