"""Open a complete encoding: its codes, mapped from disk, and the images without a code."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hybridhash._files import replacing
from hybridhash.codes import HashCodes, check_joinable, read_codes
from hybridhash.encoding.manifest import Failure, Manifest
from hybridhash.encoding.shards import MERGED, ShardFolder, failures_of

__all__ = ["open_codes", "read_failures"]

_ITEM_BYTES = {"I64": 8, "U8": 1}  # of the dtypes in codes files


def open_codes(out: str | os.PathLike[str], *, merged: str | os.PathLike[str] | None = None) -> HashCodes:
    """Open all codes of an encoding as one :class:`HashCodes` whose tensors are mapped from disk.

    Nothing is read before it is used, and the system may drop what was read. So codes that exceed the memory
    can be opened, and processes of one machine share them. Multi-hot labels are the exception: they are
    unpacked into memory, one byte for each image and class. Writing to the tensors does not change the files.

    A single shard is mapped as it is. Several shards are first copied into one file, a shard at a time; later
    calls use that file. It takes as much disk space as the shards: ``images * (ceil(bits / 8) + 8)`` bytes,
    and 8 more per image for class ids. :meth:`HashCodes.load` reads it too.

    Args:
        out: The folder of :func:`hybridhash.encode_dataset`.
        merged: The file that several shards are copied to. None takes ``merged.safetensors`` in ``out``; give
            another path if ``out`` cannot be written to.

    Returns:
        The codes in the order of the data set, without the images that could not be read.

    Raises:
        FileNotFoundError: The manifest or a shard is missing. The message names it.
        ValueError: The encoding is not finished, or a shard is truncated or belongs to another encoding. The
            message names the file.
        OSError: The merged file cannot be written. Nothing of it is left behind.

    Example:
        >>> import tempfile, torch
        >>> from hybridhash import encode_dataset
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 16))
        >>> images = torch.randn(5, 3, 2, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = encode_dataset(
        ...         model, images, folder, batch_size=2, num_workers=0, shard_size=4, progress=False
        ...     )
        ...     open_codes(folder)
        HashCodes(size=5, bits=16, bytes=10, labels=None, ids=int64)
    """
    shards = _complete(out)
    paths = [shards.path(number) for number in range(shards.count)]
    for number in range(shards.count):
        shards.check(number)
    path = paths[0]
    if len(paths) > 1:
        path = Path(out, MERGED) if merged is None else Path(merged)
        if not _is_merged(path, shards.manifest):
            _merge(paths, path, shards.manifest)
    codes, _ = read_codes(path, mapped=True)
    check_joinable(shards.manifest.empty_codes(), codes, ("the manifest", str(path)))
    return codes


def read_failures(out: str | os.PathLike[str]) -> list[Failure]:
    """List the images of a complete encoding that have no code, by row, with the reasons.

    Args:
        out: The folder of :func:`hybridhash.encode_dataset`.

    Returns:
        A list of ``(row, id, reason)``. The id is None if the data set could not give it.

    Raises:
        FileNotFoundError, ValueError: As :func:`open_codes`.
    """
    shards = _complete(out)
    return [failure for number in range(shards.count) for failure in failures_of(shards.check(number))]


def _complete(out: str | os.PathLike[str]) -> ShardFolder:
    """Return the shards of a complete encoding."""
    manifest = Manifest.read(out)
    if not manifest.complete:
        raise ValueError(f"{out} holds an unfinished encoding: call encode_dataset again, which goes on")
    return ShardFolder(Path(out), manifest)


def _is_merged(path: Path, manifest: Manifest) -> bool:
    """Return whether a file holds the codes of all shards."""
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            size = opened.get_slice("packed").get_shape()[0]
    except (FileNotFoundError, SafetensorError):
        return False
    return metadata.get("encoding") == manifest.identity and size == manifest.encoded


def _merge(paths: Sequence[Path], target: Path, manifest: Manifest) -> None:
    """Write the tensors of several codes files, one after the other, as one codes file.

    safetensors can only write what is in memory as a whole. Its format is eight bytes with the length of a
    header, the header in JSON, and the tensors without gaps, widest type first.
    """
    with safe_open(paths[0], framework="pt") as first:
        metadata = {**first.metadata(), "rows": f"0-{manifest.images}", "failures": "[]"}
        slices = {name: first.get_slice(name) for name in first.keys()}  # noqa: SIM118
        layout = {name: (part.get_dtype(), part.get_shape()[1:]) for name, part in slices.items()}
    names = sorted(layout, key=lambda name: (layout[name][0] != "I64", name))
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name in names:
        dtype, row_shape = layout[name]
        end = offset + manifest.encoded * math.prod(row_shape) * _ITEM_BYTES[dtype]
        shape = [manifest.encoded, *row_shape]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(target) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for content in _contents(paths, names):
            file.write(content)


def _contents(paths: Iterable[Path], names: Iterable[str]) -> Iterator[memoryview]:
    """Yield the bytes of each tensor of all files in turn."""
    for name in names:
        for path in paths:
            with safe_open(path, framework="pt") as opened:
                tensor = opened.get_tensor(name)
                if tensor.numel():
                    yield memoryview(tensor.numpy()).cast("B")
