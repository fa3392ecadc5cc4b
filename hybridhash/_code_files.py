"""The files of :class:`hybridhash.codes.HashCodes`: safetensors with digests and metadata.

They hold ``packed``, ``labels`` (class ids int64; or ``multi_hot``, packed to bits as codes are), ``ids`` and
``factors``, as far as the codes have them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from torch import Tensor, float32, int64, uint8

from hybridhash._code_checks import check_width
from hybridhash._files import replacing
from hybridhash._hamming import pack_bits, unpack_bits
from hybridhash._safetensors import HEADER_DIGEST, read_header, write_tensors

if TYPE_CHECKING:
    from hybridhash.codes import HashCodes

__all__ = ["damaged", "read_fields", "tensor_bytes", "write_codes"]

_FORMAT, _VERSION = "hybridhash.codes", "2"
_WITHOUT_DIGESTS = "1"  # the version before, which is read, too
_WITH_FACTORS = "3"  # of files with factors only: all others are what they were in version 2
_DTYPES = {int64: "I64", float32: "F32", uint8: "U8"}


def write_codes(
    path: str | os.PathLike[str], codes: HashCodes, metadata: Mapping[str, str] | None = None
) -> None:
    """Write codes as :meth:`HashCodes.save` does, with further ``metadata``."""
    tensors = {"packed": codes.packed}
    version = _VERSION if codes.factors is None else _WITH_FACTORS
    metadata = {**(metadata or {}), "format": _FORMAT, "version": version, "bits": str(codes.bits)}
    if codes.labels is not None and codes.labels.ndim == 2:
        tensors["multi_hot"] = pack_bits(codes.labels)
        metadata["classes"] = str(codes.labels.shape[1])
    elif codes.labels is not None:
        tensors["labels"] = codes.labels
    if codes.ids is not None:
        tensors["ids"] = codes.ids
    if codes.factors is not None:
        tensors["factors"] = codes.factors
    layout = {name: (_DTYPES[tensor.dtype], tensor.shape) for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        write_tensors(temporary, layout, lambda name: tensor_bytes(tensors[name]), metadata)


def tensor_bytes(tensor: Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a tensor, in one piece; nothing if it is empty."""
    if tensor.numel():
        values: Any = tensor.cpu().contiguous().numpy()
        yield memoryview(values).cast("B")


def read_fields(path: str | os.PathLike[str], *, mapped: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the arguments of :class:`HashCodes` that a file holds, and its metadata.

    Args:
        path: The file.
        mapped: Whether the tensors are views of the file on disk.

    Raises:
        FileNotFoundError, ValueError: As :meth:`HashCodes.load`.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no codes file at {file}: HashCodes.save writes one")
    metadata = _read_metadata(file, whole=not mapped)
    with safe_open(file, framework="pt") as opened:
        if opened.metadata() != metadata:  # another file has taken its place since
            return read_fields(file, mapped=mapped)
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if not mapped:
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        if "classes" in metadata:
            classes, multi_hot = int(metadata["classes"]), tensors.pop("multi_hot")
            check_width(multi_hot, classes, "multi_hot")
            tensors["labels"] = unpack_bits(multi_hot, classes).bool()
        fields: dict[str, Any] = {"packed": tensors.pop("packed"), "bits": int(metadata["bits"])}
        fields |= {name: tensors.pop(name, None) for name in ("labels", "ids", "factors")}
        if tensors:
            raise ValueError(f"unexpected tensors {sorted(tensors)}")
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(file, f"no {error}" if isinstance(error, KeyError) else error) from error
    return fields, metadata


def damaged(file: str | os.PathLike[str], reason: object) -> ValueError:
    """Return the error of a file whose content is not that of codes."""
    return ValueError(f"{file} is damaged ({reason}): write it again with HashCodes.save")


def _read_metadata(file: Path, whole: bool) -> dict[str, str]:
    """Return the metadata of a codes file, checked: the header, and the tensors if ``whole``."""
    try:
        metadata: dict[str, str] = read_header(file, check_tensors=whole)["__metadata__"]
    except ValueError as error:
        raise ValueError(f"{file} is {error}: write it again with HashCodes.save") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{file} is a safetensors file, but not of hash codes (format {metadata.get('format')!r}, "
            f"expected {_FORMAT!r}): give a file that HashCodes.save wrote"
        )
    version = metadata.get("version")
    if version not in (_WITHOUT_DIGESTS, _VERSION, _WITH_FACTORS):
        raise ValueError(
            f"{file} has version {version!r} of the format, this hybridhash reads up to {_WITH_FACTORS!r}: "
            "upgrade hybridhash, or write the codes again"
        )
    if version != _WITHOUT_DIGESTS and HEADER_DIGEST not in metadata:
        raise damaged(file, f"no {HEADER_DIGEST}")
    return metadata
