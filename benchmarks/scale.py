"""Memory, time per query and machines from 10^5 to 10^10 codes, computed from what `search.py` measured.

    python benchmarks/scale.py        # reads the table of benchmarks/README.md, prints those of docs/scale.md

Memory grows with the number of codes. So does the time of what scans all codes or a fixed share of them; that
of a graph grows with the logarithm. A machine keeps 48 of its 64 GiB for codes; as many machines as the
memory takes share the codes evenly and look at the same time, each in one thread for a query. The network and
the merging of their results are left out.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from common import table

SIZES = [10**power for power in range(5, 11)]
MEASURED, USABLE, PATIENCE = 10**6, 48 * 1024, 100  # codes; MiB of a machine; ms of a query
HEADING = "## Search"
GRAPHS = ("FAISS hnsw", "usearch b1")


class Engine(NamedTuple):
    """What an engine takes for a million codes."""

    name: str
    ms: float
    recall: float
    build: float | None
    memory: float

    def time(self, size: float) -> float:
        """Milliseconds of a query among ``size`` codes on one machine."""
        if self.name.startswith(GRAPHS):
            return self.ms * math.log(size) / math.log(MEASURED)
        return self.ms * size / MEASURED

    def space(self, size: float) -> float:
        """MiB of ``size`` codes."""
        return self.memory * size / MEASURED

    def machines(self, size: float) -> int:
        return max(1, math.ceil(self.space(size) / USABLE))

    def cell(self, size: int) -> str:
        count = self.machines(size)
        machines = f" on {count}" if count > 1 else ""
        return f"{memory_text(self.space(size))}{machines}, {time_text(self.time(size / count))}"

    def reach(self) -> str:
        """The most codes that one machine holds and looks through in the time, and what ends first."""
        by_memory = USABLE / self.memory * MEASURED
        if self.time(by_memory) <= PATIENCE:
            return f"{number_text(by_memory)}, memory"
        return f"{number_text(PATIENCE / self.ms * MEASURED)}, time"

    def build_text(self, size: int) -> str:
        if self.build is None:
            return ""
        growth = math.log(size) / math.log(MEASURED) if self.name.startswith(GRAPHS) else 1
        return time_text(1000 * self.build * size / MEASURED * growth)


def memory_text(mib: float) -> str:
    units = [(1 << 20, "TiB"), (1 << 10, "GiB"), (0, "MiB")]
    least, unit = next((least, unit) for least, unit in units if mib >= least)
    return f"{two_digits(mib / max(least, 1))} {unit}"


def time_text(ms: float) -> str:
    units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"), (0, "ms")]
    least, unit = next((least, unit) for least, unit in units if ms >= least)
    return f"{two_digits(ms / max(least, 1))} {unit}"


def number_text(value: float) -> str:
    power = math.floor(math.log10(value))
    return f"{value / 10**power:.1f} x 10^{power}"


def two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def measured(readme: str) -> list[Engine]:
    """The engines of the first table below the heading on search."""
    section = readme.split(HEADING, 1)[1].split("\n## ", 1)[0]
    if f"{MEASURED:,} codes" not in section:
        raise ValueError(f"the section {HEADING!r} must hold measurements of {MEASURED:,} codes")
    lines = section[section.index("\n|") :].strip().split("\n\n")[0].splitlines()
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found = []
    for cells in rows:
        row = dict(zip(header, cells, strict=True))
        recall = next(value for name, value in row.items() if name.startswith("recall"))
        build, memory = float(row["build, s"]) or None, float(row["memory, MiB"].split()[0])
        ms = float(row["ms, one query alone"])
        found.append(Engine(cells[0], ms, float(recall), build, memory))
    return found


def tables(readme: str) -> str:
    """The Markdown of both tables."""
    engines = measured(readme)
    powers = [f"10^{round(math.log10(size))}" for size in SIZES]
    reach = f"one machine, {PATIENCE} ms: up to"
    look = [[e.name, f"{e.recall:.3f}", *map(e.cell, SIZES), e.reach()] for e in engines]
    builds = [[e.name, *map(e.build_text, SIZES)] for e in engines if e.build]
    columns = ["engine", "recall", *powers, reach]
    return f"{table(columns, look)}\n\n{table(['build in one thread', *powers], builds)}"


if __name__ == "__main__":
    print(tables((Path(__file__).parent / "README.md").read_text()))
