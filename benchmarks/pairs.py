"""CPU time and memory of all pairs within a Hamming radius, against comparing each code with each.

    python benchmarks/pairs.py                # 100,000 to 10,000,000 codes, one thread
    python benchmarks/pairs.py --case million

Of each collection a tenth are near copies of other items, with up to ``flips`` bits that differ. The others
are random, or near one of 1,000 centers. To compare each code with each is timed on some rows, exclusive or
and bit count only, and scaled to all pairs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from common import extra_memory, machine, table

from hybridhash import HashCodes, pairs_within
from hybridhash._hamming import packed_distances


@dataclass(frozen=True)
class Case:
    """A collection, the bits in which its copies differ at most, and the radius."""

    items: int
    bits: int
    radius: int
    flips: int
    clustered: bool = False


CASES = {
    "million": Case(1_000_000, 64, 3, 3),
    "clustered": Case(1_000_000, 64, 3, 3, clustered=True),
    "ten million": Case(10_000_000, 64, 3, 3),
    "wide": Case(100_000, 256, 20, 20),
    "wide, clustered": Case(100_000, 256, 20, 20, clustered=True),
    "blocks": Case(100_000, 64, 16, 3),
}


def collection(case: Case, seed: int = 0) -> HashCodes:
    """Codes of a case."""
    random = np.random.default_rng(seed)
    width = case.bits // 8
    if case.clustered:  # each bit differs from that of the center in one item of eight
        centers = random.integers(0, 256, (1000, width), dtype=np.uint8)
        noise = random.integers(0, 256, (3, case.items, width), dtype=np.uint8)
        packed = centers[random.integers(0, 1000, case.items)] ^ np.bitwise_and.reduce(noise, axis=0)
    else:
        packed = random.integers(0, 256, (case.items, width), dtype=np.uint8)
    copies = case.items // 10
    packed[:copies] = packed[copies : 2 * copies]
    rows = np.arange(copies)
    for _ in range(case.flips):
        bit = random.integers(0, case.bits, copies)
        packed[rows, bit // 8] ^= (128 >> bit % 8).astype(np.uint8)
    return HashCodes(torch.from_numpy(packed[random.permutation(case.items)]), case.bits)


def seconds_of_all_pairs(codes: HashCodes, rows: int = 64, columns: int = 1 << 15) -> float:
    """CPU seconds to compute the distances of all pairs, from some rows; in blocks that fit the cache."""
    start = time.process_time()
    for left in range(0, len(codes), columns):
        packed_distances(codes.packed[:rows], codes.packed[left : left + columns], codes.bits)
    return (time.process_time() - start) / rows * len(codes) / 2


def run_case(name: str, case: Case) -> list[str]:
    """A row of the table."""
    codes = collection(case)
    found: list[torch.Tensor] = []
    start = time.process_time()
    memory = extra_memory(lambda: found.extend(pairs_within(codes, case.radius)))
    seconds = time.process_time() - start
    everything = seconds_of_all_pairs(codes)
    return [
        name,
        f"{case.items:,} x {case.bits}, radius {case.radius}",
        f"{len(found[0]):,}",
        f"{seconds:.2f}",
        f"{memory:.0f}",
        f"{everything:.0f}",
        f"{everything / seconds:.1f}x",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=[*CASES], action="append", help="default: all")
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":  # read when NumPy and torch are loaded: start again
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **variables})
    torch.set_num_threads(1)
    print(machine(), "\n")
    header = ["case", "codes x bits", "pairs", "CPU s", "MiB above the codes", "all pairs, CPU s", "ratio"]
    print(table(header, [run_case(name, CASES[name]) for name in options.case or CASES]))


if __name__ == "__main__":
    main()
