"""Speed, recall and memory of search engines on codes that a trained hash layer gives, in one run.

    python benchmarks/search.py                       # 1,000,000 codes of 64 bits, top 100, one core
    python benchmarks/search.py --items 100000 --only flat ivf
    python benchmarks/search.py --bits 128 --only flat ivf --rescore 4
    python benchmarks/search.py --threads 2
    python benchmarks/search.py --cpu-time            # on a machine that is busy with other work

The codes: a hash layer is trained with the WML loss on synthetic embeddings of 1,000 classes in 50 groups;
then it hashes others of the same classes. Recall is by distance: a result counts if it is as near as
the exact k-th neighbour, since codes at equal distances are equally right. All rivals are built first, one
after the other, and then search in turn; medians are compared. The process and the server of Milvus Lite
share the cores that ``--threads`` allows; ``--cpu-time`` counts the seconds that both run, not those that
pass.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import interleaved, machine, table
from torch import Tensor, nn

from hybridhash import HashCodes, hamming_distance, hamming_topk
from hybridhash.losses import WMLLoss
from hybridhash.search import FaissIndex, MilvusIndex

GROUPS, CLASSES, FEATURES = 50, 1000, 128
RIVALS = {
    "flat": ("FAISS flat", 1000),
    "hamming_topk": ("`hamming_topk`", 1000),
    "ivf": ("FAISS ivf", 1000),
    "hnsw": ("FAISS hnsw", 1000),
    "multihash": ("FAISS multihash", 200),
    "usearch": ("usearch b1", 1000),
    "duckdb": ("DuckDB", 20),
    "milvus": ("Milvus Lite 2.5.1", 20),
}


@dataclass
class Rival:
    """An engine that holds the codes, and what it took to get there."""

    name: str
    queries: int
    search: Callable[[HashCodes], Tensor]  # distances (Nq, top_k)
    build: float = 0.0
    memory: float = 0.0


def embeddings(count: int, centres: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images as a backbone might see them: a centre for each class, and a spread that differs by image."""
    labels = torch.randint(len(centres), (count,), generator=generator)
    spread = 0.4 + 0.6 * torch.rand(count, 1, generator=generator)
    return centres[labels] + spread * torch.randn(count, FEATURES, generator=generator), labels


def trained_codes(items: int, queries: int, bits: int, seed: int = 0) -> tuple[HashCodes, HashCodes]:
    """Queries and database, hashed by a layer that was trained on other images of the same classes."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randn(GROUPS, FEATURES, generator=generator)
    centres = groups[torch.arange(CLASSES) % GROUPS]
    centres = centres + 0.7 * torch.randn(CLASSES, FEATURES, generator=generator)
    torch.manual_seed(seed)
    layer = nn.Sequential(nn.Linear(FEATURES, bits), nn.Tanh())
    loss_fn, optimizer = WMLLoss(), torch.optim.Adam(layer.parameters(), lr=3e-3)
    for _ in range(400):
        images, labels = embeddings(512, centres, generator)
        loss = loss_fn(layer(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def hashed(count: int) -> HashCodes:
        parts = []
        for start in range(0, count, 50_000):
            images, labels = embeddings(min(50_000, count - start), centres, generator)
            with torch.no_grad():
                parts.append(HashCodes.from_codes(layer(images), labels))
        return HashCodes.cat(parts)

    return hashed(queries), hashed(items)


def describe(query: HashCodes, database: HashCodes, exact: Tensor) -> str:
    """How the codes lie, in one line."""
    some = slice(0, 50)
    distances = hamming_distance(query[some], database).float()
    same = query.labels[some, None] == database.labels
    distinct = len(np.unique(database.packed.numpy(), axis=0))
    return (
        f"Codes: mean distance {distances[same].mean():.1f} within a class, {distances[~same].mean():.1f} to "
        f"others; {distinct:,} of {len(database):,} distinct; neighbour {exact.shape[1]} at "
        f"{exact[:, -1].float().mean():.1f} on average"
    )


def cpu_time() -> float:
    """Seconds that this process and its children ran (Linux)."""
    total, own = time.process_time(), os.getpid()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == own:  # the parent
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def resident() -> float:
    """MiB of memory of this process and its children (Linux)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that was freed before does not count
    total, own = 0.0, os.getpid()
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if own in (int(fields["Pid"]), int(fields["PPid"])) and "VmRSS" in fields:
            total += float(fields["VmRSS"].split()[0]) / 1024
    return total


def built(name: str, make: Callable[[], Callable[[HashCodes], Tensor]], clock: Callable[[], float]) -> Rival:
    """A rival, and the time and memory that it took to build."""
    before, start = resident(), clock()
    search = make()
    seconds = clock() - start
    title, queries = RIVALS[name]
    print(f"built {title} in {seconds:.1f} s", file=sys.stderr)
    return Rival(title, queries, search, seconds, resident() - before)


def make_usearch(database: HashCodes, top_k: int, threads: int) -> Callable[[HashCodes], Tensor]:
    from usearch.index import Index

    index = Index(ndim=database.bits, metric="hamming", dtype="b1", expansion_search=128)
    index.add(np.arange(len(database)), database.packed.numpy(), threads=threads)

    def search(query: HashCodes) -> Tensor:
        return torch.from_numpy(index.search(query.packed.numpy(), top_k, threads=threads).distances)

    return search


def make_duckdb(database: HashCodes, top_k: int, threads: int) -> Callable[[HashCodes], Tensor]:
    import duckdb
    import pyarrow as pa

    blobs = pa.array([row.tobytes() for row in database.packed.numpy()], pa.binary())
    codes = pa.table({"id": pa.array(range(len(database))), "code": blobs})
    connection = duckdb.connect(config={"threads": threads})
    connection.register("given", codes)
    connection.execute("CREATE TABLE codes AS SELECT id, code::BIT AS code FROM given")
    connection.unregister("given")
    nearest = "SELECT bit_count(xor(code, ?::BLOB::BIT)) AS distance, id FROM codes ORDER BY ALL LIMIT ?"

    def search(query: HashCodes) -> Tensor:
        packed = query.packed.numpy()
        found = [connection.execute(nearest, [row.tobytes(), top_k]).fetchall() for row in packed]
        return torch.tensor([[distance for distance, _ in rows] for rows in found])

    return search


def make_index(
    index: FaissIndex | MilvusIndex, database: HashCodes, top_k: int
) -> Callable[[HashCodes], Tensor]:
    index.add(database)
    return lambda query: index.search(query, top_k)[0]


def rivals(database: HashCodes, options: argparse.Namespace, folder: str) -> list[Rival]:
    """All engines that are asked for, with the codes in them; ``hamming_topk`` has nothing to build."""
    bits, top_k = database.bits, options.top_k
    threads, clock = options.threads, options.clock
    found: list[Rival] = []
    for name in options.only:
        if name == "hamming_topk":
            found.append(Rival(*RIVALS[name], lambda query: hamming_topk(query, database, top_k)[0]))
        elif name == "usearch":
            found.append(built(name, lambda: make_usearch(database, top_k, threads), clock))
        elif name == "duckdb":
            found.append(built(name, lambda: make_duckdb(database, top_k, threads), clock))
        elif name == "milvus":
            index = MilvusIndex(f"{folder}/codes.db", "codes", bits, timeout=600)
            found.append(built(name, lambda index=index: make_index(index, database, top_k), clock))
        else:
            index = FaissIndex(bits, name)
            found.append(built(name, lambda index=index: make_index(index, database, top_k), clock))
            print(index, file=sys.stderr)
            if options.rescore > 1:
                found.append(rescoring(found[-1], index, options.rescore, top_k))
                continue
            found += [again(found[-1], index, option, top_k) for option in more_of(index)]
    return found


def more_of(index: FaissIndex) -> list[dict[str, int]]:
    """Settings with which an approximate index looks at more."""
    return {
        "ivf": [{"nprobe": 4 * (index.options.get("nprobe") or 1)}],
        "hnsw": [{"ef_search": 512}],
        "multihash": [{"nflip": 2}],
    }.get(index.kind, [])


def again(rival: Rival, index: FaissIndex, option: dict[str, int], top_k: int) -> Rival:
    """The same index, with an option changed for the time of its searches."""
    ((name, value),) = option.items()
    usual = index.options[name]

    def search(query: HashCodes) -> Tensor:
        index.tune(**option)
        try:
            return index.search(query, top_k)[0]
        finally:
            index.tune(**{name: usual})

    queries = max(20, rival.queries // 5)
    return Rival(f"{rival.name}, {name}={value}", queries, search, rival.build, rival.memory)


def rescoring(rival: Rival, index: FaissIndex, rescore: int, top_k: int) -> Rival:
    """The same index, ranking by the values of the query: its signs here, so that recall is by distance."""

    def search(query: HashCodes) -> Tensor:
        scores, _ = index.search(query.codes(), top_k, rescore=rescore)
        return (index.bits - scores) / 2

    return Rival(f"{rival.name}, rescore={rescore}", rival.queries, search, rival.build, rival.memory)


def run(options: argparse.Namespace) -> None:
    query, database = trained_codes(options.items, max(q for _, q in RIVALS.values()), options.bits)
    exact, _ = hamming_topk(query, database, options.top_k)
    print(describe(query, database, exact), "\n")
    with tempfile.TemporaryDirectory() as folder:
        found = rivals(database, options, folder)
        calls = {r.name: lambda r=r: r.search(query[: r.queries]) for r in found}
        recalls = {
            r.name: float((r.search(query[: r.queries]) <= exact[: r.queries, -1:]).float().mean())
            for r in found
        }
        seconds = interleaved(calls, options.repeats, clock=options.clock)
        single = {
            r.name: [timed(r.search, query[i : i + 1], options.clock) for i in range(20)] for r in found
        }
    base = next((r for r in found if r.name == "FAISS flat"), found[0])
    rows = []
    for r in found:
        rate = r.queries / seconds[r.name]
        rows.append(
            [
                r.name,
                f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}",
                f"{rate * seconds[base.name] / base.queries:.2f}",
                f"{1000 * float(np.mean(single[r.name])):.2f}",
                f"{recalls[r.name]:.4f}",
                f"{r.build:.1f}",
                f"{r.memory:.0f}" if r.build else f"{database.packed.numel() / 2**20:.0f} (the codes)",
            ]
        )
    header = ["engine", "queries/s", f"against {base.name}", "ms, one query alone"]
    print(table([*header, f"recall@{options.top_k} by distance", "build, s", "memory, MiB"], rows))


def timed(search: Callable[[HashCodes], Tensor], query: HashCodes, clock: Callable[[], float]) -> float:
    start = clock()
    search(query)
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rescore", type=int, default=1, help="above 1: compare FAISS with rescoring")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(RIVALS), default=list(RIVALS))
    parser.add_argument("--cpu-time", action="store_true", help="seconds of running, not of the clock")
    options = parser.parse_args()
    options.clock = cpu_time if options.cpu_time else time.perf_counter
    threads = str(options.threads)
    if os.environ.get("OMP_NUM_THREADS") != threads:  # read when NumPy, torch and FAISS are loaded
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **variables})
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # children too: Milvus Lite
    torch.set_num_threads(options.threads)
    clock = "CPU time" if options.cpu_time else "wall time"
    print(machine(), "\n")
    print(
        f"{options.items:,} codes of {options.bits} bits, k = {options.top_k}, {threads} thread(s), {clock}."
    )
    run(options)


if __name__ == "__main__":
    main()
