"""Steps that all processes of ``torch.distributed`` take together."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

__all__ = ["Ranks"]

T = TypeVar("T")


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
