"""Real-valued queries against packed codes: what they gain over Hamming distances, and their speed.

    python benchmarks/asymmetric.py [--bits 16 32 64] [--seeds 5] [--images images.npz]
    python benchmarks/asymmetric.py --speed [--items 1000000] [--cpu-time]

The first compares the mAP of the same packed codes, ranked by the signs of the queries, by what the hash head
gives for them, and by its linear map without the tanh. The features are the patches of ``unsupervised.py``;
the heads are fitted to the training set.
The second searches random codes of 128 bits for the 100 nearest, with FAISS's IndexRaBitQ as the baseline in
the same run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from functools import partial

import torch
from common import interleaved, machine, table
from image_sets import Split, digits, encoded_images
from torch import nn
from unsupervised import Patches

from hybridhash import HashCodes, asymmetric_topk, hamming_topk
from hybridhash.eval import mean_average_precision
from hybridhash.models import fit_hash_head

METHODS = ("itq", "lsh")
SPEED_BITS, TOP_K, QUERIES = 128, 100, 200


def scores(head: nn.Module, query: Split, database: Split) -> list[float]:
    """mAP over the whole database by Hamming distance, by the outputs of the head, and by its linear map."""
    with torch.no_grad():
        outputs, linear, items = head.eval()(query[0]), head.fc(query[0]), head(database[0])
    codes = HashCodes.from_codes(items, database[1])
    real = [mean_average_precision(q, query[1], codes, scoring="asymmetric") for q in (outputs, linear)]
    return [float(value) for value in (mean_average_precision(outputs, query[1], codes), *real)]


def compare(name: str, method: str, bits: int, seeds: int, data: tuple[Split, Split, Split]) -> list[str]:
    """A row of the table: the mean over seeds, and the gains with their deviation."""
    (features, _), query, database = data
    values = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        head = fit_hash_head(features.split(500), method, bits, generator)  # type: ignore[arg-type]
        values.append(scores(head, query, database))
    hamming, *real = zip(*values, strict=True)
    cells = [name, method, str(bits), f"{statistics.fmean(hamming):.3f}"]
    for after in real:
        gains = [b - a for a, b in zip(hamming, after, strict=True)]
        spread = f" ± {statistics.stdev(gains):.3f}" if seeds > 1 else ""
        cells.append(f"{statistics.fmean(gains):+.3f}{spread}")
    return cells


def compare_all(bits: list[int], seeds: int, images: str | None) -> None:
    """Print the table of mAP."""
    sources = {"digits": digits}
    if images:
        sources["images"] = partial(encoded_images, images)
    rows = []
    for name, read in sources.items():
        splits = read()
        network = Patches(splits[0][0])
        train, query, database = ((network(pictures), labels) for pictures, labels in splits)
        for method in METHODS:
            for length in bits:
                rows.append(compare(name, method, length, seeds, (train, query, database)))
                print(rows[-1], flush=True)
    print(table(["features", "head", "bits", "mAP, Hamming", "gain, outputs", "gain, without tanh"], rows))


def measure(items: int, repeats: int, cpu_time: bool) -> None:
    """Print the table of queries per second."""
    import faiss

    faiss.omp_set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    database = torch.randn(items, SPEED_BITS, generator=generator)
    query = torch.randn(QUERIES, SPEED_BITS, generator=generator)
    index = faiss.IndexRaBitQ(SPEED_BITS, faiss.METRIC_INNER_PRODUCT)
    index.train(database[:10_000].numpy())
    index.add(database.numpy())
    codes = HashCodes.from_codes(database)
    del database
    baseline = "FAISS IndexRaBitQ"
    rows = []
    for count in (QUERIES, 8, 1):
        some = query[:count]
        calls = {
            baseline: lambda some=some: index.search(some.numpy(), TOP_K),
            "`asymmetric_topk`": lambda some=some: asymmetric_topk(some, codes, TOP_K),
            "`hamming_topk`": lambda some=some: hamming_topk(some, codes, TOP_K),
        }
        seconds = interleaved(calls, repeats, clock=time.process_time if cpu_time else time.perf_counter)
        for name, value in seconds.items():
            rows.append([name, str(count), f"{count / value:.0f}", f"{seconds[baseline] / value:.2f}"])
    print(table(["search", "queries a call", "queries/s", f"against {baseline}"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", help="npz file of encoded images, to be used as well")
    parser.add_argument("--speed", action="store_true", help="measure the time instead of mAP")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="seconds of running, not of the clock")
    arguments = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":  # read when torch and FAISS are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"})
    torch.set_num_threads(1)
    print(f"{machine()}\n")
    if arguments.speed:
        print(f"{arguments.items:,} random codes of {SPEED_BITS} bits, k = {TOP_K}, one thread.")
        measure(arguments.items, arguments.repeats, arguments.cpu_time)
    else:
        print(f"mAP over the whole database, mean of {arguments.seeds} seeds")
        compare_all(arguments.bits, arguments.seeds, arguments.images)


if __name__ == "__main__":
    main()
