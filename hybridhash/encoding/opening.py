"""Open a complete encoding: its codes, mapped from disk, and the images without a code."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
from safetensors import safe_open

from hybridhash._files import check_local, replacing
from hybridhash._safetensors import read_header, write_tensors
from hybridhash.codes import HashCodes, check_joinable, read_codes, tensor_bytes
from hybridhash.encoding.manifest import Failure, Manifest
from hybridhash.encoding.shards import MERGED, ShardFolder, failures_of

__all__ = ["open_codes", "read_failures", "verify"]


def open_codes(
    out: str | os.PathLike[str],
    *,
    merged: str | os.PathLike[str] | None = None,
    check: bool = True,
    progress: bool = True,
) -> HashCodes:
    """Open all codes of an encoding as one :class:`HashCodes` whose tensors are mapped from disk.

    The codes are not kept in memory: the system may drop what was read. So codes that exceed the memory can
    be opened, and processes of one machine share them. Multi-hot labels are the exception: they are unpacked
    into memory, one byte for each image and class. Writing to the tensors does not change the files.

    The file that is mapped is first read once, in pieces, and checked against its SHA-256. ``check=False``
    opens it at once; :func:`verify` checks all files later. Files of before version 2 of the format have no
    digest and are opened unchecked.

    A single shard is mapped as it is. Several shards are first copied into one file, a shard at a time; later
    calls use that file. It takes as much disk space as the shards: ``images * (ceil(bits / 8) + 8)`` bytes,
    and 8 more per image for class ids, and for factors. :meth:`HashCodes.load` reads it too.

    Args:
        out: The folder of :func:`hybridhash.encode_dataset`.
        merged: The file that several shards are copied to. None takes ``merged.safetensors`` in ``out``; give
            another path if ``out`` cannot be written to. It names its shards by their digest: if it is of
            other shards, it is written anew. A file of another kind is never replaced.
        check: Whether to check the codes against their SHA-256. The headers are always checked.
        progress: Whether to show a progress bar on stderr if it takes more than a second, unless those of
            ``huggingface_hub`` are disabled.

    Returns:
        The codes in the order of the data set, without the images that could not be read.

    Raises:
        FileNotFoundError: The manifest or a shard is missing. The message names it.
        ValueError: The encoding is not finished, a file is truncated or not what its digests say, a shard
            belongs to another encoding, or ``merged`` is another kind of file. The message names the file.
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
    shards_sha256 = shards.sha256()
    path = paths[0]
    if len(paths) > 1:
        path = Path(out, MERGED) if merged is None else Path(merged)
        if not _is_merged(path, shards.manifest, shards_sha256):
            _merge(shards, path, shards_sha256, progress)
            check = False  # it was checked on its way
    if check:
        _check_tensors(path, "delete it, and call encode_dataset again if it is a shard")
    codes, _ = read_codes(path, mapped=True)
    check_joinable(shards.manifest.empty_codes(), codes, ("the manifest", str(path)))
    return codes


def verify(
    out: str | os.PathLike[str], *, merged: str | os.PathLike[str] | None = None, progress: bool = True
) -> None:
    """Read all files of a complete encoding and check them against their SHA-256 digests.

    Args:
        out: The folder of :func:`hybridhash.encode_dataset`.
        merged: The merged file of :func:`open_codes`, which is checked if it exists. None takes that in
            ``out``.
        progress: Whether to show a progress bar, as in :func:`open_codes`.

    Raises:
        FileNotFoundError: The manifest is missing.
        ValueError: The encoding is not finished, or files are missing or damaged. The message names all.

    Example:
        >>> import tempfile, torch
        >>> from hybridhash import encode_dataset
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 16))
        >>> images = torch.randn(5, 3, 2, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = encode_dataset(model, images, folder, batch_size=2, num_workers=0, progress=False)
        ...     verify(folder)
    """
    shards = _complete(out)
    damaged = []
    for number in _progress(range(shards.count), "verify", progress):
        try:
            shards.verify(number)
        except (ValueError, FileNotFoundError) as error:
            damaged.append(str(error))
    path = Path(out, MERGED) if merged is None else Path(merged)
    if path.exists():
        try:
            _check_tensors(path, "delete it: open_codes writes it anew")
        except ValueError as error:
            damaged.append(str(error))
    if damaged:
        raise ValueError("\n".join(damaged))


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
    check_local(out)
    manifest = Manifest.read(out)
    if not manifest.complete:
        raise ValueError(f"{out} holds an unfinished encoding: call encode_dataset again, which goes on")
    return ShardFolder(Path(out), manifest)


def _progress(numbers: Iterable[int], name: str, progress: bool) -> Any:
    return tqdm(numbers, desc=name, unit="shard", delay=1, disable=not progress)  # type: ignore[no-untyped-call]


def _check_tensors(path: Path, advice: str) -> None:
    try:
        read_header(path, check_tensors=True)
    except ValueError as error:
        raise ValueError(f"{path} is {error}: {advice}") from error


def _is_merged(path: Path, manifest: Manifest, shards_sha256: str) -> bool:
    """Return whether a file holds the codes of all shards; raise if it is none that may be replaced."""
    try:
        metadata = read_header(path)["__metadata__"]
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise ValueError(f"{path} is {error}: delete it, or give another merged=") from error
    # Merged files of version 1 do not name their shards.
    old = "encoding" in metadata and metadata.get("rows") == f"0-{manifest.images}"
    if "shards" not in metadata and not old:
        raise ValueError(f"{path} is no merged file of open_codes: delete it, or give another merged=")
    return bool(metadata.get("shards") == shards_sha256)


def _merge(shards: ShardFolder, target: Path, shards_sha256: str, progress: bool) -> None:
    """Write the tensors of all shards, one after the other, as one codes file; all are checked first."""
    paths = [shards.path(number) for number in range(shards.count)]
    for number in _progress(range(shards.count), "check", progress):
        shards.verify(number)
    first = read_header(paths[0])
    metadata = first.pop("__metadata__")
    rows = f"0-{shards.manifest.images}"
    metadata = {**metadata, "rows": rows, "failures": "[]", "shards": shards_sha256}
    encoded = shards.manifest.encoded
    layout = {name: (part["dtype"], [encoded, *part["shape"][1:]]) for name, part in first.items()}
    try:
        with replacing(target) as temporary:
            write_tensors(temporary, layout, lambda name: _contents(paths, name), metadata)
    except PermissionError as error:
        raise PermissionError(error.errno, "cannot be written, give merged=", str(target)) from error


def _contents(paths: Sequence[Path], name: str) -> Iterator[memoryview]:
    """Yield the bytes of a tensor of all files in turn."""
    for path in paths:
        with safe_open(path, framework="pt") as opened:
            yield from tensor_bytes(opened.get_tensor(name))
