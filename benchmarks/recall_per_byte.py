"""Recall per byte: share of the ten nearest embeddings that codes find, against FAISS at the same bytes.

    python benchmarks/recall_per_byte.py [--bytes 16 24 40] [--seeds 5] [--images images.npz] [--figure FILE]

Features and data are those of ``unsupervised.py``: patches of the digits and, with ``--images``, of an npz
file of encoded images. Everything is fitted to the training set; queries search the database for their ten
nearest, and the truth is the exact order by Euclidean distance. The columns:

- ``PQ``: FAISS's product quantiser, one byte for each part of the features;
- ``RaBitQ``: FAISS's ``IndexRaBitQ`` after PCA and a random rotation, 8 bytes of which are its factors;
- ``with factors``: codes of ``hash_embeddings``, 8 bytes of which are factors, and real-valued queries;
- ``without factors``: codes of ``hash_embeddings`` that spend all bytes on bits, and real-valued queries;
- ``Hamming``: the same codes by Hamming distance.

FAISS's flat index, which keeps all floats, is the upper end. ``--figure`` draws the table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from functools import partial

import faiss
import torch
import torch.nn.functional as F
from common import machine, table
from image_sets import digits, encoded_images
from torch import Tensor
from unsupervised import Patches

from hybridhash import asymmetric_topk, hamming_topk, hash_embeddings
from hybridhash.embeddings import encode_embeddings

TOP_K = 10
FACTORS = 8  # bytes of the factors of a code, here and in FAISS
COLUMNS = ("PQ", "RaBitQ", "with factors", "without factors", "Hamming")
Parts = tuple[Tensor, Tensor, Tensor]  # features to fit to, of the queries and of the database
Result = dict[int, dict[str, list[float]]]  # by bytes, by column, of each seed


def recall(found: Tensor, nearest: Tensor) -> float:
    """Share of the nearest neighbours that were found, both ``(Nq, TOP_K)``."""
    return float((found[:, :, None] == nearest[:, None, :]).any(2).double().mean())


def searched(index: faiss.Index, parts: Parts) -> Tensor:
    """Rows that a FAISS index finds, after training."""
    train, query, database = (part.numpy() for part in parts)
    index.train(train)
    index.add(database)
    return torch.from_numpy(index.search(query, TOP_K)[1])


def product_quantiser(parts: Parts, size: int, seed: int) -> Tensor:
    """FAISS's PQ; zeros fill the features up to a multiple of the bytes, which changes no distance."""
    padded = [F.pad(part, (0, -part.shape[1] % size)) for part in parts]
    index = faiss.IndexPQ(padded[0].shape[1], size, 8)
    index.pq.cp.seed = seed
    index.pq.cp.min_points_per_centroid = 1  # the digits are few: no warning
    assert index.pq.code_size == size
    return searched(index, tuple(padded))


def principal_components(parts: Parts, bits: int) -> Parts:
    """The features by FAISS's PCA."""
    pca = faiss.PCAMatrix(parts[0].shape[1], bits)
    pca.train(parts[0].numpy())
    train, query, database = (torch.from_numpy(pca.apply(part.numpy())) for part in parts)
    return train, query, database


def faiss_rabitq(reduced: Parts, seed: int) -> Tensor:
    """FAISS's RaBitQ after a random rotation; queries have 8 bits, the most, and not the usual 4."""
    bits = reduced[0].shape[1]
    turn = faiss.RandomRotationMatrix(bits, bits)
    turn.init(seed)
    index = faiss.IndexRaBitQ(bits, faiss.METRIC_L2)
    index.qb = 8
    assert index.code_size == bits // 8 + FACTORS
    train, query, database = (torch.from_numpy(turn.apply(part.numpy())) for part in reduced)
    return searched(index, (train, query, database))


@torch.no_grad()
def with_factors(parts: Parts, size: int, seed: int) -> Tensor:
    """Codes of this package, 8 bytes of which are factors."""
    train, query, database = parts
    _, head = hash_embeddings(train, 8 * (size - FACTORS), generator=torch.Generator().manual_seed(seed))
    return asymmetric_topk(head(query), encode_embeddings(head, database), TOP_K, metric="euclidean")[1]


@torch.no_grad()
def without_factors(parts: Parts, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Codes of this package that are bits alone: by real-valued queries, and by Hamming distance."""
    train, query, database = parts
    _, head = hash_embeddings(train, 8 * size, generator=torch.Generator().manual_seed(seed))
    codes = replace(encode_embeddings(head, database), factors=None)
    return asymmetric_topk(head(query), codes, TOP_K)[1], hamming_topk(head(query), codes, TOP_K)[1]


def recalls(parts: Parts, nearest: Tensor, size: int, seeds: int) -> dict[str, list[float]]:
    """The recall of each of ``COLUMNS``, for each seed."""
    reduced = principal_components(parts, 8 * (size - FACTORS))
    values: dict[str, list[float]] = {column: [] for column in COLUMNS}
    for seed in range(seeds):
        real, hamming = without_factors(parts, size, seed)
        found = {
            "PQ": product_quantiser(parts, size, seed),
            "RaBitQ": faiss_rabitq(reduced, seed),
            "with factors": with_factors(parts, size, seed),
            "without factors": real,
            "Hamming": hamming,
        }
        for column, rows in found.items():
            values[column].append(recall(rows, nearest))
    return values


def cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def draw(results: dict[str, Result], path: str) -> None:
    """Recall over bytes, a panel for each data set; bars are standard deviations over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    styles = {
        "with factors": ("#d55e00", "o", "-", "codes with factors, real-valued query"),
        "RaBitQ": ("#0072b2", "s", "--", "FAISS RaBitQ"),
        "PQ": ("#009e73", "^", "--", "FAISS PQ"),
        "without factors": ("#e69f00", "D", "-", "codes, real-valued query"),
        "Hamming": ("#555555", "v", "-", "codes, Hamming distance"),
    }
    figure, panels = plt.subplots(1, len(results), figsize=(3.9 * len(results), 3.6), squeeze=False)
    for axes, (name, sizes) in zip(panels[0], results.items(), strict=True):
        for column, (color, marker, line, label) in styles.items():
            runs = [values[column] for values in sizes.values()]
            means = [statistics.fmean(run) for run in runs]
            spread = [statistics.stdev(run) if len(run) > 1 else 0.0 for run in runs]
            axes.errorbar(list(sizes), means, spread, color=color, marker=marker, linestyle=line, label=label)
        axes.set_title(f"patches of the {name}")
        axes.set_xticks(list(sizes))
        axes.set_xlabel("bytes an item")
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel(f"recall@{TOP_K} of the nearest embeddings")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0.2, 1, 1))
    figure.savefig(path, dpi=110)


def measured(name: str, parts: Parts, sizes: list[int], seeds: int) -> Result:
    """The recalls of one data set, with a line on stdout for each number of bytes."""
    nearest = torch.cdist(parts[1].double(), parts[2].double()).topk(TOP_K, largest=False).indices
    flat = recall(searched(faiss.IndexFlatL2(parts[0].shape[1]), parts), nearest)
    print(f"{name}: FAISS flat, {4 * parts[0].shape[1]:,} bytes, {flat:.3f}", flush=True)
    result = {}
    for size in sizes:
        start = time.process_time()
        result[size] = recalls(parts, nearest, size, seeds)
        print(f"{' | '.join(row(name, size, result[size]))}, {time.process_time() - start:.0f} s", flush=True)
    return result


def row(name: str, size: int, values: dict[str, list[float]]) -> list[str]:
    """A row of the table: mean and deviation of each column, and the ratio to FAISS's RaBitQ."""
    ratio = statistics.fmean(values["with factors"]) / statistics.fmean(values["RaBitQ"])
    return [name, str(size), *(cell(values[column]) for column in COLUMNS), f"{ratio:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, nargs="+", default=[16, 24, 40], help="more than 8 each")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", help="npz file of encoded images, to be used as well")
    parser.add_argument("--figure", help="image file to draw the table into")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    sources = {"digits": digits}
    if arguments.images:
        sources["images"] = partial(encoded_images, arguments.images)
    print(f"recall@{TOP_K}, mean of {arguments.seeds} seeds\n{machine()}, FAISS {faiss.__version__}\n")
    results = {}
    for name, read in sources.items():
        splits = read()
        network = Patches(splits[0][0])
        train, query, database = (network(images) for images, _ in splits)
        results[name] = measured(name, (train, query, database), arguments.bytes, arguments.seeds)
    header = ["patches of", "bytes", *COLUMNS, "with factors / RaBitQ"]
    rows = [row(name, size, values) for name, sizes in results.items() for size, values in sizes.items()]
    print(f"\n{table(header, rows)}")
    if arguments.figure:
        draw(results, arguments.figure)


if __name__ == "__main__":
    main()
