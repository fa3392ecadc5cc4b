"""WMLLoss against a bank, computed in chunks: time and memory next to two forms of plain autograd.

    python benchmarks/wml.py [--num-samples 100000] [--bits 64] [--classes 100] [--batch 128] [--repeats 7]

Times are medians of interleaved repeats in one process, for one thread and for all. Memory is the peak of the
resident set above what is resident before the step (with the bank), each form in a fresh process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridhash.losses import CodeBank, WMLLoss

Form = Callable[[], tuple[Tensor, Tensor]]


def make_forms(num_samples: int, bits: int, classes: int, batch: int) -> dict[str, Form]:
    """The forms to compare; each does forward and backward and returns value and gradient."""
    generator = torch.Generator().manual_seed(0)
    bank_codes = torch.tanh(torch.randn(num_samples, bits, generator=generator))
    bank_ids = torch.randint(classes, (num_samples,), generator=generator)
    codes, ids = bank_codes[:batch].clone(), bank_ids[:batch]
    indices = torch.arange(batch)
    losses = {
        "ids": WMLLoss(bank=CodeBank(num_samples, bits)),
        "multi-hot": WMLLoss(bank=CodeBank(num_samples, bits, classes)),
    }
    for loss in losses.values():
        loss.bank.update(torch.arange(num_samples), bank_codes, bank_ids)
    one_hot, bank_one_hot = F.one_hot(ids, classes).float(), F.one_hot(bank_ids, classes).float()

    def step(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        leaf = codes.clone().requires_grad_()
        value = function(leaf)
        value.backward()
        assert leaf.grad is not None
        return value.detach(), leaf.grad

    def terms(u: Tensor) -> tuple[Tensor, Tensor]:
        similar = (one_hot @ bank_one_hot.T > 0).float()
        theta = 0.5 * u @ bank_codes.T
        term = torch.log(1 + torch.exp(-theta.abs())) + theta.clamp(min=0) - similar * theta
        return term, similar

    def weighted(u: Tensor) -> Tensor:
        term, similar = terms(u)
        weight = similar / similar.sum() + (1 - similar) / (1 - similar).sum()
        return (weight * term).sum()

    def masked(u: Tensor) -> Tensor:
        term, similar = terms(u)
        positive, negative = similar > 0, similar <= 0
        s1, s0 = positive.float().sum(), negative.float().sum()
        term[positive] = term[positive] * ((s1 + s0) / s1)
        term[negative] = term[negative] * ((s1 + s0) / s0)
        return term.sum() / (s1 + s0)

    return {
        "plain autograd": lambda: step(weighted),
        "plain autograd, weights by masks (the public code)": lambda: step(masked),
        "WMLLoss, class ids": lambda: step(lambda u: losses["ids"](u, ids, indices=indices)),
        "WMLLoss, multi-hot": lambda: step(lambda u: losses["multi-hot"](u, one_hot, indices=indices)),
    }


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_above_bank(name: str, sizes: tuple[int, int, int, int], queue: multiprocessing.Queue[int]) -> None:
    """Put the peak memory of one form, above what is resident before its first step, into ``queue``."""
    torch.set_num_threads(1)
    form = make_forms(*sizes)[name]
    small = torch.randn(8, 8, requires_grad=True)
    (small @ small.T).sum().backward()
    start, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(3):
        form()
    done.set()
    watcher.join()
    queue.put(peak - start)


def memory_of(name: str, sizes: tuple[int, int, int, int]) -> float:
    """MiB above the bank."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=peak_above_bank, args=(name, sizes, queue))
    process.start()
    used = queue.get()
    process.join()
    return float(used) / 2**20


def time_of(forms: dict[str, Form], threads: int, repeats: int) -> dict[str, float]:
    """Median seconds of each form, interleaved."""
    torch.set_num_threads(threads)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for repeat in range(repeats + 1):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def cpu_name() -> str:
    """The processor's own name, where the system tells it."""
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":")[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-samples", type=int, default=100_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    sizes = (arguments.num_samples, arguments.bits, arguments.classes, arguments.batch)
    threads = torch.get_num_threads()
    forms = make_forms(*sizes)
    value, gradient = forms["plain autograd"]()
    single, default = (time_of(forms, count, arguments.repeats) for count in (1, threads))
    print(
        f"batch {sizes[3]} against a bank of {sizes[0]:,} x {sizes[1]} bits, {sizes[2]} classes; forward and "
        f"backward, float32\n{cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}\n"
    )
    print(f"| form | ms, 1 thread | ratio | ms, {threads} threads | ratio | MiB above the bank | max error |")
    print("|---|---|---|---|---|---|---|")
    for name, form in forms.items():
        got, grad = form()
        error = max(
            float((got - value).abs() / value), float((grad - gradient).abs().max() / gradient.abs().max())
        )
        base_single, base_default = single["plain autograd"], default["plain autograd"]
        print(
            f"| {name} | {1e3 * single[name]:.0f} | {base_single / single[name]:.1f}x "
            f"| {1e3 * default[name]:.0f} | {base_default / default[name]:.1f}x "
            f"| {memory_of(name, sizes):.0f} | {error:.0e} |"
        )


if __name__ == "__main__":
    main()
