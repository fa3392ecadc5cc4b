"""Supervised baselines on features against codes without labels: mAP on raw pixels, and the time of fitting.

    python benchmarks/shallow.py [--bits 8 16 32 48] [--seeds 3] [--images images.npz]

The digits ship with scikit-learn; with ``--images``, an npz file of encoded images (see ``losses.py``) is
used as well, at 16 x 16. All methods see the same pixels; queries search the training set or database of
``losses.py``. Means over seeds, which draw anchors, first codes and rotations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from common import machine, table
from image_sets import Split, digits, encoded_images
from torch import Tensor

from hybridhash.eval import mean_average_precision
from hybridhash.models import fit_hash_head
from hybridhash.shallow import ITQCCA, KSH, SDH

Codes = Callable[[Tensor], Tensor]
Fit = Callable[[Tensor, Tensor, int, torch.Generator], Codes]

METHODS: dict[str, Fit] = {
    "ITQ, no labels": lambda x, _, bits, generator: fit_hash_head(x, "itq", bits, generator),
    "ITQ-CCA": lambda x, y, bits, generator: ITQCCA(bits).fit(x, y, generator=generator).transform,
    "KSH": lambda x, y, bits, generator: KSH(bits).fit(x, y, generator=generator).transform,
    "SDH": lambda x, y, bits, generator: SDH(bits).fit(x, y, generator=generator).transform,
}


def results(fit: Fit, bits: int, seeds: int, data: tuple[Split, Split, Split]) -> tuple[float, float]:
    """mAP over the whole database, and median seconds of fitting."""
    train, query, database = ((images.flatten(1), labels) for images, labels in data)
    scores, seconds = [], []
    for seed in range(seeds):
        start = time.perf_counter()
        codes = fit(*train, bits, torch.Generator().manual_seed(seed))
        seconds.append(time.perf_counter() - start)
        with torch.no_grad():
            found = mean_average_precision(codes(query[0]), query[1], codes(database[0]), database[1])
        scores.append(float(found))
    return statistics.fmean(scores), statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 16, 32, 48])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", help="npz file of encoded images, to be used as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sets = {"digits": digits()}
    if arguments.images:
        sets["images"] = encoded_images(arguments.images, px=16)
    print(f"raw pixels, mean of {arguments.seeds} seeds\n{machine()}\n")
    rows = []
    for name, data in sets.items():
        unlabelled = 0.0
        for method, fit in METHODS.items():
            found = [results(fit, bits, arguments.seeds, data) for bits in arguments.bits]
            seconds = found[-1][1]
            unlabelled = unlabelled or seconds
            rows.append(
                [name, method, *(f"{score:.3f}" for score, _ in found), f"{seconds / unlabelled:.1f}x"]
            )
            print(rows[-1], flush=True)
    header = ["pixels of", "method", *(f"mAP, {bits} bits" for bits in arguments.bits)]
    print(table([*header, f"time to fit {arguments.bits[-1]} bits"], rows))


if __name__ == "__main__":
    main()
