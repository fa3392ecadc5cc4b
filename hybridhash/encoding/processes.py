"""Processes that share one encoding: the batches of each, and the output lock."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

__all__ = ["RankBatches", "write_lock"]

# A lock on a file is one of the process; these are the folders that its threads write to.
_locked: set[str] = set()
_locked_lock = threading.Lock()
_READ_ONLY = "cannot be written to, choose another folder for out"


class RankBatches:
    """The rows of each batch of one process, for use as a batch sampler.

    The batches of all processes are the same however many processes there are; each process takes a
    consecutive share of them.

    Args:
        runs: Rows to encode, as ``(start, stop)``.
        batch_size: The number of rows in a batch. The last batch of a run may have fewer.
        rank: The number of this process.
        size: The number of processes.

    Example:
        >>> list(RankBatches([(0, 5), (8, 10)], batch_size=2, rank=1, size=2))
        [range(4, 5), range(8, 10)]
    """

    def __init__(self, runs: Sequence[tuple[int, int]], batch_size: int, rank: int, size: int) -> None:
        self.runs = runs
        self.batch_size = batch_size
        total = sum(-(-(stop - start) // batch_size) for start, stop in runs)
        self.first = total * rank // size
        self.last = total * (rank + 1) // size

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[range]:
        number = 0
        for start, stop in self.runs:
            count = -(-(stop - start) // self.batch_size)
            for k in range(max(self.first - number, 0), min(self.last - number, count)):
                row = start + k * self.batch_size
                yield range(row, min(row + self.batch_size, stop))
            number += count


@contextmanager
def write_lock(out: Path) -> Iterator[None]:
    """Lock an output folder against other threads and processes while the context and this process last.

    The folder is made if it does not exist. Windows has no lock against other processes.

    Raises:
        RuntimeError: Another thread or process holds the lock.
        NotADirectoryError: There is a file or a link to nothing in its place.
        PermissionError: It cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        kind = "a link to nothing" if out.is_symlink() and not out.exists() else "a file"
        raise NotADirectoryError(f"out must be a folder, but {out} is {kind}: choose another") from None
    except PermissionError as error:
        raise PermissionError(error.errno, _READ_ONLY, str(out)) from error
    folder = os.path.realpath(out)
    with _locked_lock:
        if folder in _locked:
            raise RuntimeError(f"another thread is encoding to {out}: wait until it is done")
        _locked.add(folder)
    try:
        with _opened(out / ".lock") as file:
            if fcntl is not None:
                try:
                    # Not flock: the workers of a DataLoader outlive a killed process and would inherit it.
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError):
                    raise RuntimeError(
                        f"another process is encoding to {out}: wait until it is done"
                    ) from None
            yield
    finally:
        with _locked_lock:
            _locked.remove(folder)


def _opened(file: Path) -> TextIO:
    """Open the file of the lock."""
    try:
        return open(file, "w")
    except PermissionError as error:
        raise PermissionError(error.errno, _READ_ONLY, str(file.parent)) from error
