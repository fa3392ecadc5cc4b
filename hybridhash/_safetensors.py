"""Safetensors files that carry SHA-256 digests of their header and their tensors.

A file is eight bytes with the length of its header, the header in JSON, and the tensors without gaps. Two
entries of the metadata are the digests: ``sha256`` of the bytes of all tensors, and ``header_sha256`` of the
header without that entry, as JSON with sorted keys. Equal content gives equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from safetensors import SafetensorError, safe_open

from hybridhash._fingerprint import json_sha256, rest_sha256

__all__ = ["DIGEST", "HEADER_DIGEST", "read_header", "write_tensors"]

DIGEST = "sha256"
HEADER_DIGEST = "header_sha256"
_ITEM_BYTES = {"I64": 8, "F32": 4, "U8": 1}


def write_tensors(
    path: str | os.PathLike[str],
    layout: Mapping[str, tuple[str, Sequence[int]]],
    contents: Callable[[str], Iterable[memoryview]],
    metadata: Mapping[str, str],
) -> None:
    """Write tensors, which need not be in memory as a whole, as ``safetensors.torch.save_file`` demands.

    Args:
        path: The file to write.
        layout: The dtype of each tensor, ``"I64"``, ``"F32"`` or ``"U8"``, and its shape.
        contents: A function from the name of a tensor to its bytes, in pieces.
        metadata: The metadata, to which the digests are added.
    """
    header: dict[str, Any] = {}
    offset = 0
    # Widest type first, so that every tensor is aligned.
    for name in sorted(layout, key=lambda name: (-_ITEM_BYTES[layout[name][0]], name)):
        dtype, shape = layout[name]
        end = offset + math.prod(shape) * _ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    names = list(header)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        # The digest of the tensors is known when they are written; its place is kept free for it.
        file.write(_header_bytes(header, {**metadata, DIGEST: digest.hexdigest()}))
        for name in names:
            for content in contents(name):
                digest.update(content)
                file.write(content)
        file.seek(0)
        file.write(_header_bytes(header, {**metadata, DIGEST: digest.hexdigest()}))


def read_header(path: str | os.PathLike[str], *, check_tensors: bool = False) -> dict[str, Any]:
    """Return the header of a safetensors file, checked against its digest if it has one.

    Args:
        path: The file.
        check_tensors: Whether to check the tensors, too; the file is read as a whole then, in pieces.

    Raises:
        OSError: The file cannot be opened.
        ValueError: It is no safetensors file or damaged. The message continues "the file is".
    """
    # It is opened once for both digests, since another file may take its place at any moment.
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            with safe_open(path, framework="pt"):  # checks the structure, and the length before it is read
                header: dict[str, Any] = json.loads(file.read(length))
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"truncated or not a safetensors file ({error})") from error
        metadata = header.setdefault("__metadata__", {})
        if HEADER_DIGEST in metadata and metadata[HEADER_DIGEST] != _header_digest(header):
            raise ValueError("damaged (its header is not what its SHA-256 says)")
        if check_tensors and DIGEST in metadata and metadata[DIGEST] != rest_sha256(file):
            raise ValueError("damaged (its tensors are not what their SHA-256 says)")
    return header


def _header_bytes(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Return what precedes the tensors, with the digest of the header."""
    header = {"__metadata__": dict(metadata), **tensors}
    header["__metadata__"][HEADER_DIGEST] = _header_digest(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _header_digest(header: Mapping[str, Any]) -> str:
    metadata = {key: value for key, value in header["__metadata__"].items() if key != HEADER_DIGEST}
    return json_sha256({**header, "__metadata__": metadata})
