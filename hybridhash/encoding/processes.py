"""Processes that share one encoding: the rows of each, and the lock on the output folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

__all__ = ["Batches", "only_writer"]


class Batches:
    """The rows of each batch of this process: those of all, cut into as many runs as there are processes."""

    def __init__(self, runs: list[tuple[int, int]], batch_size: int, rank: int, size: int) -> None:
        self.runs = runs
        self.batch_size = batch_size
        total = sum(-(-(stop - start) // batch_size) for start, stop in runs)
        self.first, self.last = total * rank // size, total * (rank + 1) // size

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
def only_writer(out: Path) -> Iterator[None]:
    """A lock that the system releases when the process ends, however it does; none on Windows."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as file:
        if fcntl is not None:
            try:
                # Not flock: the workers of a DataLoader, which outlive a killed process, would inherit it.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise RuntimeError(f"another process is encoding to {out}: wait until it is done") from None
        yield
