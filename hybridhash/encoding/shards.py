"""Codes of a whole data set in a folder: a manifest, and shards that are one set of codes when opened.

The folder of :func:`hybridhash.encode_dataset` holds ``manifest.json`` and shards,
``shard-00000-of-00010.safetensors`` and so on, each a file that :meth:`HashCodes.load` reads; while it is
being written also ``parts/``, the rows that are not yet a whole shard. Every file appears at once and
complete, or not at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from hybridhash._files import replacing
from hybridhash.codes import HashCodes, check_joinable, read_codes, write_codes

__all__ = ["Failure", "Manifest", "Rows", "ShardFolder", "open_codes", "read_failures"]

_MANIFEST, _PARTS, _MERGED = "manifest.json", "parts", "merged.safetensors"
_FORMAT, _VERSION = "hybridhash.encoding", 1
_BYTES = {"I64": 8, "U8": 1}  # of the dtypes in codes files


class Failure(NamedTuple):
    """An image without a code: its row in the data set, its id where that is known, and why."""

    row: int
    id: int | None
    reason: str


class Rows(NamedTuple):
    """What became of the rows ``start`` to ``stop - 1`` of a data set."""

    start: int
    stop: int
    codes: HashCodes
    failures: list[Failure]


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds, and what made it.

    Attributes:
        model: name of the architecture.
        weights_sha256: see :func:`hybridhash._fingerprint.weights_sha256`.
        bits: code length.
        dtype: of autocast, None if the model ran as it was.
        transform: what was applied to the images, in words.
        labels: ``"none"``, ``"class ids"`` or ``"multi-hot"``.
        classes: number of classes of multi-hot labels, else None.
        images: size of the data set.
        shard_size: rows of the data set in a shard; the last one may have fewer.
        encoded: number of codes.
        failed: number of images without a code; :func:`read_failures` says why. Together with ``encoded``
            they are all ``images`` once it is complete.
        complete: whether all images were seen and all shards are written; before that both counts are 0.
    """

    model: str
    weights_sha256: str
    bits: int
    dtype: str | None
    transform: str | None
    labels: str
    classes: int | None
    images: int
    shard_size: int
    encoded: int = 0
    failed: int = 0
    complete: bool = False

    @property
    def identity(self) -> str:
        """SHA-256 of all that decides what the shards hold; every shard carries it."""
        fields = dataclasses.asdict(self)
        for progress in ("encoded", "failed", "complete"):
            del fields[progress]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def no_codes(self) -> HashCodes:
        """Codes of no image, of the bits and the kind of labels of all others."""
        labels = None
        if self.labels != "none":
            labels = torch.zeros(0, dtype=torch.int64)
        if self.classes is not None:
            labels = torch.zeros(0, self.classes, dtype=torch.bool)
        packed = torch.zeros(0, -(-self.bits // 8), dtype=torch.uint8)
        return HashCodes(packed, self.bits, labels, torch.zeros(0, dtype=torch.int64))

    def differences(self, other: Manifest) -> list[str]:
        """What decides the codes and differs, in words."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        progress = ("encoded", "failed", "complete")
        return [
            f"{key} {mine[key]!r} there and {theirs[key]!r} now"
            for key in mine
            if key not in progress and mine[key] != theirs[key]
        ]

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Manifest:
        """The manifest of a folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged or of another version; the message names the file.
        """
        path = Path(folder, _MANIFEST)
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no {_MANIFEST} in {folder}: it is no folder of hybridhash.encode_dataset"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): bring it back, or encode anew") from error
        if not isinstance(fields, dict) or fields.pop("format", None) != _FORMAT:
            raise ValueError(f"{path} is no manifest of {_FORMAT}: choose a folder of encode_dataset")
        version = fields.pop("version", None)
        if version != _VERSION:
            raise ValueError(
                f"{path} has version {version!r} of the format, this hybridhash reads {_VERSION}: upgrade "
                "hybridhash, or encode anew"
            )
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"{path} is damaged ({error}): bring it back, or encode anew") from error

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write or replace the manifest of a folder at once."""
        fields = {"format": _FORMAT, "version": _VERSION, **dataclasses.asdict(self)}
        with replacing(Path(folder, _MANIFEST)) as temporary:
            temporary.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


class ShardFolder:
    """The files of an encoding: which rows are done, and how rows get there.

    Args:
        folder: where they are.
        manifest: what they are.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.count = -(-manifest.images // manifest.shard_size)

    def shard(self, number: int) -> Path:
        """Path of a shard."""
        return self.folder / f"shard-{number:05d}-of-{self.count:05d}.safetensors"

    def rows_of(self, number: int) -> tuple[int, int]:
        """First row of a shard, and the row after its last one."""
        start = number * self.manifest.shard_size
        return start, min(start + self.manifest.shard_size, self.manifest.images)

    def prepare(self, resume: bool) -> None:
        """Make the folder, or check that what it holds is the same encoding, or empty it.

        Raises:
            ValueError: the folder holds another encoding, shards without a manifest, or a damaged shard.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            self._clear()
        for pattern in (".*.safetensors.*.tmp", f".{_MANIFEST}.*.tmp", f"{_PARTS}/*/.*.tmp"):
            for left in self.folder.glob(pattern):
                left.unlink(missing_ok=True)
        if not (self.folder / _MANIFEST).exists():
            if any(self.folder.glob("shard-*-of-*.safetensors")):
                raise ValueError(
                    f"{self.folder} holds shards without their {_MANIFEST}: choose another folder, or delete "
                    "them with resume=False"
                )
            self.manifest.write(self.folder)
        there = Manifest.read(self.folder)
        differences = there.differences(self.manifest)
        if differences:
            raise ValueError(
                f"{self.folder} holds another encoding: {'; '.join(differences)}. Choose another folder, or "
                "replace what is there with resume=False"
            )
        for number in range(self.count):
            if self.shard(number).exists():
                self._check(self.shard(number), *self.rows_of(number))

    def _clear(self) -> None:
        """Delete what an encoding wrote; the manifest last, so that a crash leaves one that can go on."""
        shutil.rmtree(self.folder / _PARTS, ignore_errors=True)
        for path in (*self.folder.glob("shard-*-of-*.safetensors"), self.folder / _MERGED):
            path.unlink(missing_ok=True)
        (self.folder / _MANIFEST).unlink(missing_ok=True)

    def missing(self) -> Iterator[tuple[int, int]]:
        """Runs of rows ``(start, stop)``, none beyond a shard, that are neither in a shard nor in a part.

        Raises:
            ValueError: a part is damaged or lies over another.
        """
        for number in range(self.count):
            if self.shard(number).exists():
                continue
            row, stop = self.rows_of(number)
            for first, after, part in self._parts(number):
                if first < row:
                    raise ValueError(f"{part} holds rows that another part holds too: delete it")
                self._check(part, first, after)
                if row < first:
                    yield row, first
                row = after
            if row < stop:
                yield row, stop

    def write_part(self, rows: Rows) -> None:
        """Write rows that lie in one shard; all of them are kept, or none."""
        folder = self._parts_folder(rows.start // self.manifest.shard_size)
        folder.mkdir(parents=True, exist_ok=True)
        self._write(folder / f"rows-{rows.start:012d}-{rows.stop:012d}.safetensors", rows)

    def join_parts(self, numbers: Iterable[int]) -> None:
        """Make shards of their parts, those that are not there."""
        for number in numbers:
            if not self.shard(number).exists():
                self._join_parts(number)

    def _join_parts(self, number: int) -> None:
        parts = [self._read(path, first, after) for first, after, path in self._parts(number)]
        start, stop = self.rows_of(number)
        if [start, *(part.stop for part in parts)] != [*(part.start for part in parts), stop]:
            raise RuntimeError(
                f"{self._parts_folder(number)} does not hold all rows {start}-{stop}, perhaps because the "
                "file system is slow to show what other machines wrote: call encode_dataset again"
            )
        codes = HashCodes.cat([self.manifest.no_codes(), *(part.codes for part in parts)])
        failures = [failure for part in parts for failure in part.failures]
        (self.folder / _MERGED).unlink(missing_ok=True)
        self._write(self.shard(number), Rows(start, stop, codes, failures))
        shutil.rmtree(self._parts_folder(number))

    def finish(self) -> Manifest:
        """Count what all shards hold, and write the complete manifest."""
        encoded = failed = 0
        for number in range(self.count):
            start, stop = self.rows_of(number)
            failures = len(_failures(self._check(self.shard(number), start, stop)))
            encoded, failed = encoded + stop - start - failures, failed + failures
        shutil.rmtree(self.folder / _PARTS, ignore_errors=True)
        manifest = dataclasses.replace(self.manifest, encoded=encoded, failed=failed, complete=True)
        manifest.write(self.folder)
        return manifest

    def _parts(self, number: int) -> list[tuple[int, int, Path]]:
        """First row, row after the last and path of each part of a shard, in order."""
        parts = []
        for path in self._parts_folder(number).glob("rows-*.safetensors"):
            first, after = (int(row) for row in path.stem.split("-")[1:])
            parts.append((first, after, path))
        return sorted(parts)

    def _parts_folder(self, number: int) -> Path:
        return self.folder / _PARTS / f"{number:05d}"

    def _write(self, path: Path, rows: Rows) -> None:
        metadata = {
            "encoding": self.manifest.identity,
            "rows": f"{rows.start}-{rows.stop}",
            "failures": json.dumps(rows.failures),
        }
        write_codes(path, rows.codes, metadata)

    def _read(self, path: Path, start: int, stop: int) -> Rows:
        metadata = self._check(path, start, stop)
        codes, _ = read_codes(path)
        check_joinable(self.manifest.no_codes(), codes, ("the manifest", str(path)))
        return Rows(start, stop, codes, _failures(metadata))

    def _check(self, path: Path, start: int, stop: int) -> dict[str, str]:
        """Metadata of a file that is there, whole, and holds these rows of this encoding."""
        return check_shard(path, self.manifest, start, stop)


def check_shard(path: Path, manifest: Manifest, start: int, stop: int) -> dict[str, str]:
    """Metadata of a shard or part, read from its header; a ValueError that names it if it does not fit."""
    again = "delete it and call encode_dataset again, which encodes its images anew"
    try:
        with safe_open(path, framework="pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
            size = opened.get_slice("packed").get_shape()[0]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: bring it back, or call encode_dataset again") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}): {again}") from error
    if metadata.get("encoding") != manifest.identity:
        raise ValueError(f"{path} belongs to another encoding than {_MANIFEST} describes: {again}")
    if metadata.get("rows") != f"{start}-{stop}" or size + len(_failures(metadata)) != stop - start:
        raise ValueError(
            f"{path} holds {size} codes of rows {metadata.get('rows')}, not rows {start}-{stop}: {again}"
        )
    return metadata


def _failures(metadata: dict[str, str]) -> list[Failure]:
    return [Failure(*failure) for failure in json.loads(metadata["failures"])]


def _shards(out: str | os.PathLike[str]) -> tuple[Manifest, list[Path], list[dict[str, str]]]:
    """Manifest of a complete encoding, with the path and the metadata of each of its shards, checked."""
    manifest = Manifest.read(out)
    if not manifest.complete:
        raise ValueError(f"{out} holds an unfinished encoding: call encode_dataset again, which goes on")
    files = ShardFolder(Path(out), manifest)
    paths = [files.shard(number) for number in range(files.count)]
    headers = [check_shard(path, manifest, *files.rows_of(n)) for n, path in enumerate(paths)]
    return manifest, paths, headers


def read_failures(out: str | os.PathLike[str]) -> list[Failure]:
    """The images of a complete encoding that have no code, by row, and why.

    Args:
        out: the folder of :func:`hybridhash.encode_dataset`.

    Returns:
        ``(row, id, reason)`` each; the id is None if the data set gives ids and could not give this one.

    Raises:
        FileNotFoundError, ValueError: as :func:`open_codes`.
    """
    _, _, headers = _shards(out)
    return [failure for metadata in headers for failure in _failures(metadata)]


def open_codes(out: str | os.PathLike[str], *, merged: str | os.PathLike[str] | None = None) -> HashCodes:
    """All codes of an encoding as one :class:`HashCodes` whose tensors are mapped from disk.

    Nothing is read before it is used, and the system may drop what was read: the codes of a data set beyond
    the memory can be opened, and processes of one machine share them. Multi-hot labels are the exception:
    they are unpacked into memory, one byte for each image and class. What is written to the tensors does not
    reach the files.

    One shard is mapped as it is. Several are copied once into one file, a shard at a time, which later calls
    find again: it takes as much disk as the shards, ``images * (ceil(bits / 8) + 8)`` bytes and 8 more for
    class ids. :meth:`HashCodes.load` reads it too.

    Args:
        out: the folder of :func:`hybridhash.encode_dataset`.
        merged: the file that several shards are copied to, by default ``merged.safetensors`` in ``out``;
            give another place if ``out`` cannot be written to.

    Returns:
        The codes in the order of the data set, without the images that could not be read.

    Raises:
        FileNotFoundError: no manifest, or a shard is missing; the message names it.
        ValueError: the encoding is not finished, or a shard is truncated or belongs to another encoding; the
            message names the file.
        OSError: the merged file cannot be written; nothing of it is left behind.

    Example:
        >>> import tempfile
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
    manifest, paths, _ = _shards(out)
    path = paths[0]
    if len(paths) > 1:
        path = Path(out, _MERGED) if merged is None else Path(merged)
        if not _is_merged(path, manifest):
            _merge(paths, path, manifest)
    codes, _ = read_codes(path, mapped=True)
    check_joinable(manifest.no_codes(), codes, ("the manifest", str(path)))
    return codes


def _is_merged(path: Path, manifest: Manifest) -> bool:
    """Whether a file holds the codes of all shards."""
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            size = opened.get_slice("packed").get_shape()[0]
    except (FileNotFoundError, SafetensorError):
        return False
    return metadata.get("encoding") == manifest.identity and size == manifest.encoded


def _merge(paths: Sequence[Path], target: Path, manifest: Manifest) -> None:
    """Write the tensors of several codes files, one after the other, as one codes file.

    safetensors writes only what is in memory as a whole. Its format is eight bytes with the length of a
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
        dtype, row = layout[name]
        end = offset + manifest.encoded * math.prod(row) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": [manifest.encoded, *row], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(target) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in _blocks(paths, names):
            file.write(block)


def _blocks(paths: Iterable[Path], names: Iterable[str]) -> Iterator[memoryview]:
    """The content of each tensor of all files in turn."""
    for name in names:
        for path in paths:
            with safe_open(path, framework="pt") as opened:
                tensor = opened.get_tensor(name)
                if tensor.numel():
                    yield memoryview(tensor.numpy()).cast("B")
