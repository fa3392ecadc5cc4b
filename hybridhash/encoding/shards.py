"""The files of an encoding: shards, and parts of shards while it is being written.

The folder of :func:`hybridhash.encode_dataset` holds ``manifest.json`` and shards named
``shard-00000-of-00010.safetensors``, each a file that :meth:`HashCodes.load` reads. While it is being written
it also holds ``parts/``, the rows that do not fill a shard yet. Every file appears complete or not at all,
and carries digests of its content. Other files in the folder are left alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from hybridhash._files import remove_stale
from hybridhash._safetensors import HEADER_DIGEST, read_header
from hybridhash.codes import HashCodes, check_joinable, read_codes, write_codes
from hybridhash.encoding.manifest import MANIFEST, Failure, Manifest, Rows, is_manifest

__all__ = ["MERGED", "ShardFolder", "failures_of"]

MERGED = "merged.safetensors"
_PARTS = "parts"
_SHARD_NAME = re.compile(r"shard-\d{5,}-of-\d{5,}\.safetensors")
_PART_NAME = re.compile(r"rows-\d{12,}-\d{12,}\.safetensors")
_ENCODE_AGAIN = "delete it and call encode_dataset again, which encodes its images anew"


class ShardFolder:
    """The shards and parts of an encoding.

    Args:
        folder: The folder of the files.
        manifest: What the folder holds.

    Attributes:
        count: The number of shards of the complete encoding.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.count = -(-manifest.images // manifest.shard_size)

    def path(self, number: int) -> Path:
        """Return the path of a shard."""
        return self.folder / f"shard-{number:05d}-of-{self.count:05d}.safetensors"

    def rows_of(self, number: int) -> tuple[int, int]:
        """Return the first row of a shard, and the row after its last one."""
        start = number * self.manifest.shard_size
        return start, min(start + self.manifest.shard_size, self.manifest.images)

    def open(self, resume: bool) -> list[tuple[int, int]]:
        """Make the folder, check that it holds this encoding, and return the rows that are still to do.

        Args:
            resume: Whether to keep what is in the folder. False deletes an encoding in it.

        Returns:
            Runs of rows ``(start, stop)`` in no shard and no part, each within one shard.

        Raises:
            ValueError: The folder holds another encoding, shards without a manifest, or a damaged file.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            self._clear()
        self._remove_temporary_files()
        if not (self.folder / MANIFEST).exists():
            if self._shards():
                raise ValueError(
                    f"{self.folder} holds shards without their {MANIFEST}: choose another folder, or delete "
                    "them"
                )
            self.manifest.write(self.folder)
        stored = Manifest.read(self.folder)
        differences = stored.differences(self.manifest)
        if differences:
            raise ValueError(
                f"{self.folder} holds another encoding: {'; '.join(differences)}. Choose another folder, or "
                "replace what is there with resume=False"
            )
        # What is stored goes on: the shards carry its digest, and samples of images differ by rounding.
        self.manifest = dataclasses.replace(stored, encoded=0, failed=0, complete=False)
        return [run for number in range(self.count) for run in self._missing(number)]

    def _clear(self) -> None:
        """Delete an encoding, its manifest last, so that a crash leaves one that can be resumed."""
        manifest = self.folder / MANIFEST
        if not manifest.exists():
            return
        if not is_manifest(manifest):
            raise ValueError(f"{manifest} is not of encode_dataset: choose another folder, or delete it")
        self._remove_parts()
        for path in self._shards():
            path.unlink()
        self._remove_merged()
        manifest.unlink()

    def _shards(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if _SHARD_NAME.fullmatch(path.name)]

    def _remove_merged(self) -> None:
        """Delete the merged file, unless it is one that :func:`open_codes` did not write."""
        path = self.folder / MERGED
        with suppress(FileNotFoundError, ValueError):
            if "encoding" in read_header(path)["__metadata__"]:
                path.unlink()

    def _remove_parts(self, folders: str = "*") -> None:
        """Delete the parts of shards, and their folders where nothing else is in them."""
        for folder in (self.folder / _PARTS).glob(folders):
            if folder.is_dir():
                for path in folder.iterdir():
                    if _PART_NAME.fullmatch(path.name):
                        path.unlink()
                with suppress(OSError):  # not empty
                    folder.rmdir()
        with suppress(OSError):
            (self.folder / _PARTS).rmdir()

    def _remove_temporary_files(self) -> None:
        """Delete what killed processes left behind."""
        remove_stale(self.folder, ".shard-*.safetensors.*.tmp")
        remove_stale(self.folder, f".{MANIFEST}.*.tmp")
        for folder in (self.folder / _PARTS).glob("*"):
            remove_stale(folder, ".rows-*.tmp")

    def _missing(self, number: int) -> Iterator[tuple[int, int]]:
        """Yield the runs of rows of a shard that are neither in it nor in a part; all files are checked."""
        if self.path(number).exists():
            self.verify(number)
            return
        row, stop = self.rows_of(number)
        for first, after, part in self._parts(number):
            if first < row:
                raise ValueError(f"{part} holds rows that another part holds too: delete it")
            self._check(part, first, after, tensors=True)
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
        """Make the shards with these numbers from their parts, where they do not exist."""
        for number in numbers:
            if not self.path(number).exists():
                self._join_parts(number)

    def _join_parts(self, number: int) -> None:
        parts = [self._read(path, first, after) for first, after, path in self._parts(number)]
        start, stop = self.rows_of(number)
        if [start, *(part.stop for part in parts)] != [*(part.start for part in parts), stop]:
            raise RuntimeError(
                f"{self._parts_folder(number)} does not hold all rows {start}-{stop}, perhaps because the "
                "file system is slow to show what other machines wrote: call encode_dataset again"
            )
        codes = HashCodes.cat([self.manifest.empty_codes(), *(part.codes for part in parts)])
        failures = [failure for part in parts for failure in part.failures]
        self._remove_merged()
        self._write(self.path(number), Rows(start, stop, codes, failures))
        self._remove_parts(self._parts_folder(number).name)

    def finish(self) -> Manifest:
        """Count the codes and failures of all shards, and write the complete manifest."""
        failed = sum(len(failures_of(self.check(number))) for number in range(self.count))
        self._remove_parts()
        encoded = self.manifest.images - failed
        manifest = dataclasses.replace(self.manifest, encoded=encoded, failed=failed, complete=True)
        manifest.write(self.folder)
        return manifest

    def check(self, number: int) -> dict[str, str]:
        """Return the metadata of a shard, read from its header.

        Raises:
            FileNotFoundError: The shard is missing.
            ValueError: It is damaged, of another encoding, or holds other rows. The message names it.
        """
        return self._check(self.path(number), *self.rows_of(number))

    def verify(self, number: int) -> None:
        """Read a shard as a whole and check it against its digests; raises as :meth:`check` does."""
        self._check(self.path(number), *self.rows_of(number), tensors=True)

    def sha256(self) -> str:
        """Return a digest of all shards, from their headers, which hold the digests of their tensors."""
        digest = hashlib.sha256()
        for number in range(self.count):
            metadata = self.check(number)
            status = self.path(number).stat()
            # Shards of version 1 have no digest; a new file has another time.
            content = metadata.get(HEADER_DIGEST, f"{status.st_size} {status.st_mtime_ns}")
            digest.update(f"{content}\n".encode())
        return digest.hexdigest()

    def _check(self, path: Path, start: int, stop: int, *, tensors: bool = False) -> dict[str, str]:
        """Return the metadata of a shard or part that holds rows ``start`` to ``stop - 1``."""
        try:
            header = read_header(path, check_tensors=tensors)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path} is missing: bring it back, or call encode_dataset again"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path} is {error}: {_ENCODE_AGAIN}") from error
        metadata: dict[str, str] = header["__metadata__"]
        if metadata.get("encoding") != self.manifest.identity:
            raise ValueError(f"{path} belongs to another encoding than {MANIFEST} describes: {_ENCODE_AGAIN}")
        try:
            size = header["packed"]["shape"][0]
            failures = failures_of(metadata)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error!r} in its header): {_ENCODE_AGAIN}") from error
        if HEADER_DIGEST not in metadata and self.manifest.probes is not None:  # version 1 had no digests
            raise ValueError(f"{path} is damaged (no {HEADER_DIGEST}): {_ENCODE_AGAIN}")
        if metadata.get("rows") != f"{start}-{stop}" or size + len(failures) != stop - start:
            raise ValueError(
                f"{path} holds {size} codes of rows {metadata.get('rows')}, not rows {start}-{stop}: "
                f"{_ENCODE_AGAIN}"
            )
        return metadata

    def _parts(self, number: int) -> list[tuple[int, int, Path]]:
        """Return the first row, the row after the last and the path of each part of a shard, in order."""
        parts = []
        folder = self._parts_folder(number)
        for path in folder.iterdir() if folder.is_dir() else ():
            if not _PART_NAME.fullmatch(path.name):
                continue
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
        check_joinable(self.manifest.empty_codes(), codes, ("the manifest", str(path)))
        return Rows(start, stop, codes, failures_of(metadata))


def failures_of(metadata: dict[str, str]) -> list[Failure]:
    """Return the failures that the metadata of a shard or part list."""
    return [Failure(*failure) for failure in json.loads(metadata["failures"])]
