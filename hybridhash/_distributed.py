"""Steps that all processes of ``torch.distributed`` take together."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Ranks", "whole"]

T = TypeVar("T")


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that ``fully_shard`` has split; every process must call it. Else the tensor."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


class Ranks:
    """The processes of ``torch.distributed``, or this one alone; a context manager.

    Attributes:
        rank: The number of this process.
        size: The number of processes.

    Raises:
        RuntimeError: torchrun started several processes that have not joined a process group.

    Example:
        >>> with Ranks() as ranks:
        ...     ranks.collect(lambda: ranks.rank), ranks.first(lambda: "done")
        ([0], 'done')
    """

    def __init__(self) -> None:
        self._group: Any = None
        self.rank = 0
        self.size = 1
        if dist.is_available() and dist.is_initialized():
            # One process may finish long before the others.
            self._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=30))
            self.rank = dist.get_rank()
            self.size = dist.get_world_size()
        elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RuntimeError(
                f"this is one of {os.environ['WORLD_SIZE']} processes of torchrun (WORLD_SIZE), which would "
                'all do the same: call torch.distributed.init_process_group("gloo") first'
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def collect(self, step: Callable[[], T]) -> list[T]:
        """Run a step in every process and return the results of all, by rank; if one fails, all raise.

        Args:
            step: A function whose result can be pickled.
        """
        if self._group is None:
            return [step()]
        result = None
        error = None
        try:
            result = step()
        except Exception as caught:
            error = caught
        message = None if error is None else f"{type(error).__name__}: {error}"
        outcomes: list[Any] = [None] * self.size
        dist.all_gather_object(outcomes, (result, message), group=self._group)
        if error is not None:
            raise error
        for rank, (_, message) in enumerate(outcomes):
            if message is not None:
                raise RuntimeError(f"process {rank} of {self.size} failed: {message}")
        return [result for result, _ in outcomes]

    def first(self, step: Callable[[], T]) -> T:
        """Run a step in process 0 only and return its result in all; if it fails, all raise."""
        results = self.collect(lambda: step() if self.rank == 0 else None)
        return results[0]  # type: ignore[return-value]
