"""Atomic file writes: a failure at any step leaves the files that were there before."""

from __future__ import annotations

import glob
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

_CAN_LOCK = fcntl is not None

__all__ = ["check_local", "locked", "remove_stale", "replacing", "replacing_files", "resolved_path"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write one file: yield a temporary path whose file takes its place at the end.

    Links are followed. If the block raises, the temporary file is removed and ``path`` stays as it was.
    Readers see the old file or the new one, never a part of it. The mode of the new file is what the umask
    allows, whatever mode the block gives it. What killed processes left of the same file is removed.

    Args:
        path: The file to write or replace. Its folder must exist.

    Yields:
        Where to write: a file of the same name, in a hidden folder beside it.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: ``path`` is a URL.
        OSError: The file cannot be written or replaced. It has the errno and names the file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/notes.txt") as temporary:
        ...         _ = temporary.write_text("all or nothing")
        ...     print([file.name for file in Path(folder).iterdir()])
        ['notes.txt']
    """
    file = resolved_path(path)
    try:
        with ExitStack() as stack:
            with locked(file.parent):
                _remove_stale(file.parent, f".{glob.escape(file.name)}.*.tmp")
                # A folder of its own is locked, since some writers replace the file that they are given, and
                # a lock on that would go with it.
                made = tempfile.TemporaryDirectory(
                    prefix=f".{file.name}.", suffix=".tmp", dir=file.parent, ignore_cleanup_errors=True
                )
                folder = Path(stack.enter_context(made))
                stack.enter_context(locked(folder))
            temporary = folder / file.name
            mode = _mode_of_new(temporary)
            yield temporary
            _finish(temporary, mode)
            os.replace(temporary, file)
    except OSError as error:
        # A write has no file name, and that of the temporary folder says nothing to the caller.
        hidden = str(error.filename).startswith(str(file.parent / f".{file.name}."))
        if error.errno is not None and (error.filename is None or hidden):
            error.filename = str(file)
        raise


@contextmanager
def replacing_files(folder: str | os.PathLike[str], *, last: str | None = None) -> Iterator[Path]:
    """Write several files of a folder, all or none: yield an empty folder whose files move in at the end.

    They replace the files of the same names; other files of ``folder`` stay. If the block raises, or a file
    cannot be moved, those already replaced come back, new ones are removed, and so is ``folder`` if it was
    made here. The files move one after the other, so a reader may meet new files beside old ones.

    Args:
        folder: Where the files go. It is made, with its parents, if it does not exist.
        last: Name of the file that is moved last, for a format in which one file names the others.

    Yields:
        Where to write: a folder on the same file system, so that its files keep their own names.

    Raises:
        ValueError: ``folder`` is a URL.
        OSError: The folder cannot be made, or a file cannot be written or replaced.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     with replacing_files(f"{root}/model") as temporary:
        ...         _ = (temporary / "weights.bin").write_bytes(b"weights")
        ...         _ = (temporary / "config.json").write_text("{}")
        ...     print(sorted(file.name for file in Path(root, "model").iterdir()))
        ['config.json', 'weights.bin']
    """
    check_local(folder)
    folder = Path(os.path.realpath(folder))
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            with locked(folder):
                _remove_stale(folder, ".saving-*")
                # Inside the folder, since os.replace moves within one file system only.
                made = tempfile.TemporaryDirectory(prefix=".saving-", dir=folder, ignore_cleanup_errors=True)
                temporary = stack.enter_context(made)
                stack.enter_context(locked(Path(temporary)))
            new = Path(temporary, "new")
            old = Path(temporary, "old")
            new.mkdir()
            old.mkdir()
            mode = _mode_of_new(Path(temporary, "empty"))
            yield new
            for file in new.iterdir():
                _finish(file, mode)
            _move_in(new, folder, old, last)
    except BaseException:
        for path in missing:
            with suppress(OSError):  # not made yet, or no longer empty
                path.rmdir()
        raise


def resolved_path(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a file to write, links followed; raise if its folder does not exist."""
    check_local(path)
    file = Path(os.path.realpath(path))
    if not file.parent.is_dir():
        raise FileNotFoundError(f"cannot write {file}: the folder {file.parent} does not exist, create it")
    return file


def check_local(path: str | os.PathLike[str]) -> None:
    """Raise ValueError if a path is a URL, which would become a folder called ``s3:`` or the like."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)):
        raise ValueError(
            f"{os.fspath(path)!r} is a URL: give a local or mounted folder, and copy what is there to the "
            "store afterwards"
        )


def remove_stale(folder: Path, pattern: str) -> None:
    """Delete the temporary files and folders of a pattern whose process has ended; others are in use.

    Nothing is deleted on systems without ``flock``, where the two cannot be told apart.
    """
    with locked(folder):
        _remove_stale(folder, pattern)


def _remove_stale(folder: Path, pattern: str) -> None:
    """Do the same in a folder that is locked, so that no temporary file is made and not yet in use."""
    for path in folder.glob(pattern):
        with suppress(OSError), locked(path, wait=False):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def locked(path: Path, *, wait: bool = True, shared: bool = False) -> Iterator[None]:
    """Lock a file or folder against others that do the same, or go on if it cannot be locked.

    Args:
        path: What to lock. It must exist.
        wait: Whether to wait for it. False raises BlockingIOError, also if it cannot be locked at all.
        shared: Whether others may hold the lock at the same time, if they share it too.
    """
    if not _CAN_LOCK:
        if not wait:
            raise BlockingIOError(f"{path} cannot be locked")
        yield
        return
    number = os.open(path, os.O_RDONLY)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        if wait:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(number, kind)
        else:
            fcntl.flock(number, kind | fcntl.LOCK_NB)
        yield
    finally:
        # Closing is not enough where a process forked meanwhile holds a copy.
        with suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_UN)
        os.close(number)


def _move_in(new: Path, folder: Path, old: Path, last: str | None) -> None:
    """Move the files of ``new`` to ``folder``, keeping those they replace in ``old`` until all are moved."""
    replaced = []
    try:
        for file in sorted(new.iterdir(), key=lambda file: (file.name == last, file.name)):
            target = folder / file.name
            if target.exists():
                _link_or_copy(target, old / file.name)
            os.replace(file, target)
            replaced.append(target)
    except BaseException:
        for target in replaced:
            if (old / target.name).exists():
                os.replace(old / target.name, target)
            else:
                target.unlink()
        raise


def _mode_of_new(file: Path) -> int:
    """Make an empty file and return its mode, which the umask limits; Python cannot only read the umask."""
    file.touch()
    return stat.S_IMODE(file.stat().st_mode)


def _finish(file: Path, mode: int) -> None:
    """Set the mode of a file and have the operating system write it to the disk."""
    # safetensors makes files that nobody else may read.
    file.chmod(mode)
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
