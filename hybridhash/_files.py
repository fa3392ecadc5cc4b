"""Writing files so that a failure leaves what was there before."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place once the block is left without an error.

    Links are followed. If the block raises, the temporary file is removed and ``path`` stays as it was.

    Args:
        path: the file to write or replace.

    Yields:
        Where to write: a path in the same folder.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: the file cannot be written or replaced.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/notes.txt") as temporary:
        ...         _ = temporary.write_text("all or nothing")
        ...     print([file.name for file in Path(folder).iterdir()])
        ['notes.txt']
    """
    file = Path(os.path.realpath(path))
    if not file.parent.is_dir():
        raise FileNotFoundError(f"cannot write {file}: the folder {file.parent} does not exist, create it")
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
