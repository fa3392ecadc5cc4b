"""What the benchmarks share: the machine in words, and fair timing of rivals in one process."""

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def machine(device: str = "cpu") -> str:
    """One line on the processor (and GPU), the threads in use and the libraries."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    parts = [
        cpu,
        f"{os.cpu_count()} cores",
        f"{torch.get_num_threads()} thread(s) used",
        f"CPU capability {torch.backends.cpu.get_cpu_capability()}",
        f"torch {torch.__version__}",
        f"Python {platform.python_version()}",
    ]
    if device.startswith("cuda"):
        parts.insert(0, torch.cuda.get_device_name(device))
    return ", ".join(parts)


def synchronize(device: str = "cpu") -> None:
    """Wait for a GPU's queue, so that a timer sees its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def interleaved(
    rivals: dict[str, Callable[[], object]],
    repeats: int,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds per call of each rival, taking turns so that a busy machine hits all alike."""
    for call in rivals.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, call in rivals.items():
            synchronize(device)
            start = clock()
            call()
            synchronize(device)
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def extra_memory(run: Callable[[], object]) -> float:
    """MiB by which the resident memory of this process rises during a call, at most (Linux)."""

    def status(field: str) -> float:
        with open("/proc/self/status") as file:
            return next(float(line.split()[1]) / 1024 for line in file if line.startswith(field))

    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier cases freed must not hide what this one takes
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak
        before = status("VmRSS")
        run()
        return status("VmHWM") - before
    except (OSError, AttributeError):  # no Linux, or no GNU C library
        return float("nan")
