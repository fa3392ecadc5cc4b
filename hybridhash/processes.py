"""Processes that share one encoding: their steps in common, their rows, and the lock against any other."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

__all__ = ["Batches", "Ranks", "only_writer"]

T = TypeVar("T")


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


class Ranks:
    """The processes of ``torch.distributed``, or this one alone."""

    def __init__(self) -> None:
        self.group: Any = None
        self.rank, self.size = 0, 1
        if dist.is_available() and dist.is_initialized():
            # One process may be done long before the others.
            self.group = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=30))
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
        elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RuntimeError(
                f"this is one of {os.environ['WORLD_SIZE']} processes of torchrun (WORLD_SIZE), which would "
                'all do the same: call torch.distributed.init_process_group("gloo") first'
            )

    def together(self, step: Callable[[], T]) -> list[T]:
        """What a step returns in each process; if it fails in one, all of them raise."""
        if self.group is None:
            return [step()]
        result, error = None, None
        try:
            result = step()
        except Exception as caught:
            error = caught
        outcomes: list[Any] = [None] * self.size
        said = None if error is None else f"{type(error).__name__}: {error}"
        dist.all_gather_object(outcomes, (result, said), group=self.group)
        if error is not None:
            raise error
        for rank, (_, said) in enumerate(outcomes):
            if said is not None:
                raise RuntimeError(f"process {rank} of {self.size} failed: {said}")
        return [result for result, _ in outcomes]

    def close(self) -> None:
        if self.group is not None:
            dist.destroy_process_group(self.group)
