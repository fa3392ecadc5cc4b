"""Codes of the maps of ITQ and RaBitQ cut to their first bits, made for several lengths and for one.

    python benchmarks/prefixes.py [--lengths 16 32 64] [--seeds 5] [--methods itq] [--images images.npz]

Features and data are those of ``unsupervised.py``: patches of the digits or, with ``--images``, of an npz
file of encoded images. Maps are fitted to the training set as ``fit_hash_head`` does it, RaBitQ's with the
rotation of ITQ. For ITQ the table has the mAP by Hamming distance; for RaBitQ the recall@10 of the exact
float neighbours by distances estimated from the first real values of each code. The rows:

- own: a map for each length;
- cut: the map of the longest length, its codes cut to the first bits;
- lengths: the same, made with ``lengths``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import machine, table
from image_sets import digits, encoded_images
from recall_per_byte import TOP_K, cell, recall
from torch import Tensor
from unsupervised import Patches

from hybridhash import HashCodes
from hybridhash.eval import mean_average_precision
from hybridhash.shallow.rabitq import estimated_distances, rabitq_map
from hybridhash.shallow.unsupervised import nested_itq, principal_directions

Maker = Callable[[tuple[int, ...], torch.Generator], Tensor]


def measured(
    make: Maker, score: Callable[[Tensor], float], lengths: tuple[int, ...], seeds: int
) -> list[list[str]]:
    """Title and figures of the three rows."""
    runs: dict[str, list[list[float]]] = {"own": [], "cut": [], "lengths": []}
    for seed in range(seeds):
        drawn = torch.Generator().manual_seed(seed)
        one = make(lengths[-1:], drawn)
        several = make(lengths, drawn)
        shorter = [score(make((bits,), drawn)) for bits in lengths[:-1]]
        runs["own"].append([*shorter, score(one)])
        runs["cut"].append([score(one[:, :bits]) for bits in lengths])
        runs["lengths"].append([score(several[:, :bits]) for bits in lengths])
    return [
        [title, *(cell(list(column)) for column in zip(*run, strict=True))] for title, run in runs.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=["itq", "rabitq"], choices=["itq", "rabitq"])
    parser.add_argument("--images", help="npz file of encoded images, to be used in place of the digits")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lengths = tuple(arguments.lengths)
    splits = encoded_images(arguments.images) if arguments.images else digits()
    network = Patches(splits[0][0])
    train, query, database = (network(images).double() for images, _ in splits)
    mean = train.mean(0)
    train, query, database = train - mean, query - mean, database - mean
    directions, _ = principal_directions(torch.cov(train.T), lengths[-1])
    nearest = torch.cdist(query, database).topk(TOP_K, largest=False).indices

    def itq(chosen: tuple[int, ...], generator: torch.Generator) -> Tensor:
        own = directions[:, : chosen[-1]]
        return own @ nested_itq(train @ own, chosen, generator=generator)

    def rabitq(chosen: tuple[int, ...], generator: torch.Generator) -> Tensor:
        settings = {"lengths": chosen, "rotation": "itq", "generator": generator}
        return rabitq_map(train, directions, chosen[-1], **settings)  # type: ignore[arg-type]

    def mean_ap(matrix: Tensor) -> float:
        sides = ((query, splits[1][1]), (database, splits[2][1]))
        codes = (HashCodes.from_codes(features @ matrix, labels) for features, labels in sides)
        return float(mean_average_precision(*codes))

    def recall_of(matrix: Tensor) -> float:
        estimates = estimated_distances(query, database, matrix)
        return recall(estimates.topk(TOP_K, largest=False).indices, nearest)

    print(f"mean of {arguments.seeds} seeds\n{machine()}\n")
    rows = []
    for method in arguments.methods:
        make, score = (itq, mean_ap) if method == "itq" else (rabitq, recall_of)
        rows += [[method, *row] for row in measured(make, score, lengths, arguments.seeds)]
        print(*rows[-3:], sep="\n", flush=True)
    print(table(["method", "map", *(f"{bits} bits" for bits in lengths)], rows))


if __name__ == "__main__":
    main()
