"""The files of a saved FAISS index: written beside the older ones, named and checked by a manifest."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from hybridhash._files import remove_stale, replacing
from hybridhash._fingerprint import rest_sha256
from hybridhash.search.manifest import MANIFEST, check_replaceable, read_manifest, write_manifest

__all__ = ["Write", "open_files", "save_files"]

Write: TypeAlias = Callable[[bytes], int]

_KEYS = ("files", "count", "bits", "kind", "model_id", "options")
# The files of saved indexes, and what is left of them and of the manifest if a save is killed.
_OURS = re.compile(r"index-[0-9a-f]{16}\.(faiss|nodes|names)")
_UNFINISHED = (f".index-{'[0-9a-f]' * 16}.*.tmp", f".{MANIFEST}.*.tmp")


def save_files(
    folder: str | os.PathLike[str],
    parts: Mapping[str, Callable[[Write], object]],
    content: Mapping[str, Any],
) -> None:
    """Write the parts of an index and a manifest that names them; remove those that it replaces.

    Args:
        folder: Where the files go. It is made if it does not exist.
        parts: For each ending (``"faiss"``), a function that hands all bytes of the file to its argument.
        content: Further entries of the manifest.

    Raises:
        FileExistsError: The folder has a manifest of something else.
        OSError: A file cannot be written. The older files are as they were.
    """
    folder = Path(folder)
    check_replaceable(folder)
    folder.mkdir(exist_ok=True)
    stem = f"index-{secrets.token_hex(8)}"
    files = {part: folder / f"{stem}.{part}" for part in parts}
    try:
        entries = {part: _write(file, parts[part]) for part, file in files.items()}
        write_manifest(folder, "faiss", {"files": entries, **content})
    except BaseException:
        for file in files.values():
            file.unlink(missing_ok=True)
        raise
    for other in folder.iterdir():
        if other not in files.values() and _OURS.fullmatch(other.name):
            other.unlink(missing_ok=True)
    for pattern in _UNFINISHED:
        remove_stale(folder, pattern)


@contextmanager
def open_files(folder: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any], dict[str, BinaryIO]]]:
    """Open what :func:`save_files` wrote, also while another process saves: yield manifest and open files.

    Raises:
        FileNotFoundError: The folder has no manifest, or a file that it names is missing.
        ValueError: The manifest is damaged.
    """
    manifest = read_manifest(folder, "faiss", _KEYS)
    while True:
        with ExitStack() as stack:
            files: dict[str, BinaryIO] = {}
            try:
                for part, entry in manifest["files"].items():
                    file = Path(folder) / entry["name"]
                    files[part] = stack.enter_context(open(file, "rb"))
            except FileNotFoundError:
                newer = read_manifest(folder, "faiss", _KEYS)
                if newer == manifest:
                    raise FileNotFoundError(
                        f"{file} is missing, which the manifest names: save the index again"
                    ) from None
                manifest = newer  # another process saved in between
                continue
            for part, opened in files.items():
                _check(opened, manifest["files"][part])
            yield manifest, files
            return


def _write(file: Path, write_to: Callable[[Write], object]) -> dict[str, Any]:
    """Write a file; return its name, size and SHA-256."""
    digest = hashlib.sha256()
    try:
        with replacing(file) as temporary, open(temporary, "wb") as opened:

            def write(block: bytes) -> int:
                digest.update(block)
                return opened.write(block)

            write_to(write)
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, f"cannot write {file}: {error.strerror or error}") from error
    except RuntimeError as error:  # of FAISS
        raise OSError(f"cannot write {file}: {error}") from error
    return {"name": file.name, "bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def _check(opened: BinaryIO, entry: Mapping[str, Any]) -> None:
    """Raise ValueError unless a file has the size and the SHA-256 noted for it; leave it at its start."""
    size = os.fstat(opened.fileno()).st_size
    if size != entry["bytes"]:
        raise ValueError(
            f"{opened.name} is truncated or foreign: it has {size:,} bytes, the manifest says "
            f"{entry['bytes']:,}. Save the index again"
        )
    if "sha256" in entry:  # not in the first version
        if rest_sha256(opened) != entry["sha256"]:
            raise ValueError(f"{opened.name} is damaged, its SHA-256 is another: save the index again")
        opened.seek(0)
