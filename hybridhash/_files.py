"""Atomic file writes."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_parent", "replacing", "replacing_files"]


def check_parent(file: Path) -> None:
    """Raise FileNotFoundError if the folder of a file to write does not exist."""
    if not file.parent.is_dir():
        raise FileNotFoundError(f"cannot write {file}: the folder {file.parent} does not exist, create it")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file atomically: yield a temporary file that replaces ``path`` when the block ends.

    Links are followed. If the block raises, the temporary file is removed and ``path`` is unchanged.

    Args:
        path: The file to write or replace.

    Yields:
        The path to write to, in the same folder.

    Raises:
        FileNotFoundError: The folder does not exist.
        OSError: The file cannot be written or replaced.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/notes.txt") as temporary:
        ...         _ = temporary.write_text("all or nothing")
        ...     print([file.name for file in Path(folder).iterdir()])
        ['notes.txt']
    """
    file = Path(os.path.realpath(path))
    check_parent(file)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Write several files, all or none: yield a temporary folder whose files move into ``folder``.

    They move when the block ends, in reverse order of their names, so that ``model.onnx.data`` is there
    before the ``model.onnx`` that names it. If the block or a move raises, ``folder`` is as it was before.

    Args:
        folder: The folder to write to. It is made if it does not exist.

    Yields:
        An empty folder on the same file system.

    Raises:
        OSError: A file cannot be written or replaced.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing_files(Path(folder, "model")) as temporary:
        ...         for name in ("config.json", "weights"):
        ...             _ = (temporary / name).write_text("new")
        ...     sorted(file.name for file in Path(folder, "model").iterdir())
        ['config.json', 'weights']
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder, ignore_cleanup_errors=True) as aside:
            written = Path(aside, "new")
            kept = Path(aside, "old")
            written.mkdir()
            kept.mkdir()
            yield written
            _move_files(written, folder, kept)
    except BaseException:
        if is_new:
            folder.rmdir()
        raise


def _move_files(source: Path, target: Path, kept: Path) -> None:
    """Move all files from ``source`` to ``target``; if a move fails, undo those before, from ``kept``."""
    files = sorted(source.iterdir(), reverse=True)
    for file in files:
        _flush(file)
    moved = []
    try:
        for file in files:
            replaced = target / file.name
            if replaced.exists():
                _link_or_copy(replaced, kept / file.name)
            os.replace(file, replaced)
            moved.append(replaced)
    except BaseException:
        for replaced in moved:
            if (kept / replaced.name).exists():
                os.replace(kept / replaced.name, replaced)
            else:
                replaced.unlink()
        raise


def _flush(file: Path) -> None:
    """Wait until a file is on the disk."""
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
