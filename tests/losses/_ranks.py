"""Two gloo processes on one machine, for the tests of losses under ``torch.distributed``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _worker(rank, world, folder, function, argument):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        torch.save(function(rank, argument), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_on_ranks(function, argument=None, *, world=2):
    """``function(rank, argument)`` in ``world`` processes; their results in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (world, folder, function, argument), nprocs=world)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)]
