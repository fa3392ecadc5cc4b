"""Speed and memory of evaluation, against the literal loop of deep-hashing repositories in the same run.

    python benchmarks/eval.py                    # all cases on the CPU, one thread
    python benchmarks/eval.py --case nuswide --repeats 5
    python benchmarks/eval.py --device cuda      # absolute seconds on a GPU

Contestants of a case run in turn, several times, in one process; medians are compared. The literal loop is
timed on a part of the queries and scaled to all of them; the ceiling is what XOR and bit counting alone take
for the same pairs, in NumPy on buffers that fit the cache. With one thread, seconds are CPU time, which other
work on the machine changes least; with more they are wall time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from common import extra_memory, interleaved, machine, synchronize, table
from torch import Tensor

from hybridhash.codes import HashCodes, pack_codes
from hybridhash.eval import mean_average_precision


@dataclass(frozen=True)
class Case:
    """Sizes of a retrieval protocol."""

    title: str
    queries: int
    items: int
    bits: int
    classes: int
    multi_label: bool
    top_k: int
    literal_queries: int


CASES = {
    "imagenet": Case("ImageNet-100", 5_000, 128_503, 64, 100, False, 1_000, 50),
    "nuswide": Case("NUS-WIDE-21", 2_100, 193_734, 32, 21, True, 5_000, 30),
    "hundred": Case("100,000 items", 1_000, 100_000, 64, 100, False, 1_000, 20),
    "million": Case("1,000,000 items", 1_000, 1_000_000, 64, 100, False, 1_000, 3),
}


def sides(case: Case, device: str = "cpu", seed: int = 0) -> tuple[HashCodes, HashCodes]:
    """Codes around a centre for each class, so that mAP is neither at chance nor perfect."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(case.classes, case.bits, generator=generator)

    def side(count: int) -> HashCodes:
        noise = torch.randn(count, case.bits, generator=generator)
        if case.multi_label:
            labels = torch.rand(count, case.classes, generator=generator) < 2.4 / case.classes
            codes = labels.float() @ centres + 2 * noise
        else:
            labels = torch.randint(case.classes, (count,), generator=generator)
            codes = centres[labels] + noise
        return HashCodes(pack_codes(codes).to(device), case.bits, labels.to(device))

    return side(case.queries), side(case.items)


def literal(
    query: np.ndarray, query_labels: np.ndarray, codes: np.ndarray, labels: np.ndarray, k: int
) -> float:
    """The loop of the field's repositories: one distance row and one argsort for each query."""
    total = 0.0
    for i in range(len(query)):
        relevant = (np.dot(query_labels[i, :], labels.transpose()) > 0).astype(np.float32)
        distance = 0.5 * (codes.shape[1] - np.dot(query[i, :], codes.transpose()))
        found = relevant[np.argsort(distance)][0:k]
        hits = np.sum(found).astype(int)
        if hits == 0:
            continue
        total += np.mean(np.linspace(1, hits, hits) / (np.asarray(np.where(found == 1)) + 1.0))
    return total / len(query)


def ceiling(query: HashCodes, database: HashCodes, queries: int, tile: int = 1 << 15) -> None:
    """XOR and bit counts of all pairs of some queries, tile by tile, thrown away."""
    kind = np.uint32 if database.bits <= 32 else np.uint64
    a = np.ascontiguousarray(query.packed.numpy()).view(kind)
    b = np.ascontiguousarray(np.ascontiguousarray(database.packed.numpy()).view(kind).T)
    words, counts = np.empty(tile, kind), np.empty(tile, np.uint8)
    for i in range(queries):
        for word in range(len(b)):
            for start in range(0, b.shape[1], tile):
                part = b[word, start : start + tile]
                np.bitwise_count(
                    np.bitwise_xor(part, a[i, word], out=words[: len(part)]), out=counts[: len(part)]
                )


def cpu_clock() -> Callable[[], float]:
    """CPU time of the process for one thread, else wall time."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def one_hot(side: HashCodes, rows: slice, classes: int) -> np.ndarray:
    labels = side.labels[rows]
    hot = labels if labels.ndim == 2 else torch.nn.functional.one_hot(labels, classes)
    return hot.float().numpy()


def run_case(case: Case, repeats: int) -> list[str]:
    """One row of the table."""
    query, database = sides(case)
    some = slice(0, case.literal_queries)
    everything = slice(None)
    arrays = (
        query[some].codes().numpy(),
        one_hot(query, some, case.classes),
        database.codes().numpy(),
        one_hot(database, everything, case.classes),
    )
    ceiling_queries = max(1, case.queries // 10)

    def ours() -> Tensor:
        return mean_average_precision(query, database, top_k=case.top_k)

    memory = extra_memory(ours)
    seconds = interleaved(
        {
            "ours": ours,
            "literal": lambda: literal(*arrays, case.top_k),
            "ceiling": lambda: ceiling(query, database, ceiling_queries),
        },
        repeats,
        clock=cpu_clock(),
    )
    pairs = case.queries * case.items
    literal_seconds = seconds["literal"] * case.queries / case.literal_queries
    ceiling_seconds = seconds["ceiling"] * case.queries / ceiling_queries
    return [
        case.title,
        f"{case.queries:,} x {case.items:,} x {case.bits}, k={case.top_k:,}",
        f"{float(ours()):.4f}",
        f"{seconds['ours']:.2f}",
        f"{literal_seconds:.0f} ({case.literal_queries} queries, scaled)",
        f"{literal_seconds / seconds['ours']:.0f}x",
        f"{seconds['ours'] / pairs * 1e9:.2f}",
        f"{pairs / seconds['ours'] / 1e9:.2f}",
        f"{ceiling_seconds / seconds['ours']:.0%}",
        f"{memory:.0f}",
    ]


def run_torchmetrics(repeats: int) -> list[str] | None:
    """Against RetrievalMAP at a size it can hold; None where torchmetrics is not installed."""
    try:
        from torchmetrics.retrieval import RetrievalMAP
    except ImportError:
        return None
    case = Case("torchmetrics", 200, 10_000, 64, 10, False, 1_000, 0)
    query, database = sides(case)
    scores = case.bits + 1 - (case.bits - query.codes() @ database.codes().T) / 2
    target = query.labels[:, None] == database.labels
    index = torch.arange(case.queries)[:, None].expand_as(target)

    def theirs() -> Tensor:
        metric = RetrievalMAP(top_k=case.top_k)
        metric.update(scores.flatten(), target.flatten(), indexes=index.flatten())
        return metric.compute()

    seconds = interleaved(
        {"ours": lambda: mean_average_precision(query, database, top_k=case.top_k), "theirs": theirs},
        repeats,
        clock=cpu_clock(),
    )
    return [
        "torchmetrics RetrievalMAP",
        f"{case.queries:,} x {case.items:,} x {case.bits}, k={case.top_k:,}",
        f"{seconds['ours']:.3f}",
        f"{seconds['theirs']:.3f} (distances and relevance given)",
        f"{seconds['theirs'] / seconds['ours']:.0f}x",
    ]


def run_cuda(case: Case, repeats: int) -> list[str]:
    """Seconds and extra device memory on a GPU."""
    query, database = sides(case, "cuda")

    def ours() -> None:
        mean_average_precision(query, database, top_k=case.top_k)
        synchronize("cuda")

    ours()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds = interleaved({"ours": ours}, repeats)["ours"]
    memory = (torch.cuda.max_memory_allocated() - before) / 2**20
    pairs = case.queries * case.items
    size = f"{case.queries:,} x {case.items:,} x {case.bits}, k={case.top_k:,}"
    return [case.title, size, f"{seconds:.3f}", f"{pairs / seconds / 1e9:.1f}", f"{memory:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=[*CASES, "torchmetrics"], action="append", help="default: all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU cases")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    threads = str(options.threads)
    if os.environ.get("OMP_NUM_THREADS") != threads:  # read when NumPy and torch are loaded: start again
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **variables})
    torch.set_num_threads(options.threads)
    names = options.case or [*CASES, "torchmetrics"]
    print(machine(options.device), "\n")
    if options.device == "cuda":
        rows = [run_cuda(CASES[name], options.repeats) for name in names if name in CASES]
        print(table(["case", "queries x items x bits", "seconds", "Gpairs/s", "extra MiB"], rows))
        return
    header = ["case", "queries x items x bits", "mAP", "seconds", "literal loop, seconds", "ratio"]
    header += ["ns per pair", "Gpairs/s", "of the xor + popcount ceiling", "extra MiB"]
    rows = [run_case(CASES[name], options.repeats) for name in names if name in CASES]
    if rows:
        print(table(header, rows), "\n")
    if "torchmetrics" in names:
        row = run_torchmetrics(options.repeats)
        if row is None:
            print("torchmetrics is not installed: its comparison is left out")
        else:
            print(table(["against", "queries x items x bits", "ours, s", "theirs, s", "ratio"], [row]))


if __name__ == "__main__":
    main()
