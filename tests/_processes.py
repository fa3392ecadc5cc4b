"""Processes for tests: forks of one that has imported torch and the package, so that each starts at once."""

from __future__ import annotations

import multiprocessing
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hybridhash", "hybridhash.eval", "hybridhash.losses", "pytest", __name__])


def _worker(rank, world, folder, function, argument):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        torch.save(function(rank, argument), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_on_ranks(function, argument=None, *, world=2, start_method="forkserver"):
    """``function(rank, argument)`` in ``world`` processes of a gloo group; their results in rank order.

    "spawn" is for a function that needs other environment variables than the tests began with.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = (world, folder, function, argument)
        mp.start_processes(_worker, given, nprocs=world, start_method=start_method)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)]
