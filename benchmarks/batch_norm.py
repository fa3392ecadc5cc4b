"""mAP in another collection than that of the training, with batch norm as trained and re-estimated there.

    python benchmarks/batch_norm.py clothing=clothing10_128.npz cifar=cifar10_16k.npz

Each file is an npz of encoded images (see ``image_sets.py``). A narrow ResNet-18 with OrthoHash's head learns
the training set of the first one, as in ``results.py``, and hashes queries and database of every file, and of
the first one in the dark. Statistics are re-estimated on the database, whose labels are not used; the queries
are not seen. The imbalance of bits is 0 if each has as many ones as zeros, and 1 if all are constant.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from common import machine, table
from image_sets import Split, encoded_images
from results import DataSet, train
from torch import Tensor, nn

from hybridhash import encode, reestimate_batch_norm, unpack_codes
from hybridhash.eval import mean_average_precision

BACKBONE = "ResNet-18, narrow"
PX = 32
VARIANTS = ("as trained", "head", "all")


def measure(model: nn.Module, query: Split, database: Split) -> tuple[float, float]:
    """mAP, and the mean over the bits of ``|2 p - 1|``, p being the share of ones in the database."""
    codes = [
        encode(model, zip(images.split(500), labels.split(500), strict=True), progress=False)
        for images, labels in (query, database)
    ]
    signs = unpack_codes(codes[1].packed, codes[1].bits)
    return float(mean_average_precision(*codes)), float(signs.float().mean(0).abs().mean())


def adapted(model: nn.Module, variant: str, images: Tensor) -> nn.Module:
    """A copy of the model with layers re-estimated on images."""
    model = copy.deepcopy(model)
    if variant == "as trained":
        return model
    layers: Any = variant
    return reestimate_batch_norm(model, images.split(500), layers=layers, progress=False)


def dark(part: Split) -> Split:
    """The same images with 40 % of the light."""
    images, labels = part
    return 0.4 * (images + 1) - 1, labels


def summary(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", help="NAME=FILE.npz; the first is trained on, all are searched")
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = dict(item.split("=", 1) for item in args.data)
    sets = {name: encoded_images(path, PX) for name, path in paths.items()}
    source, data = next(iter(sets.items()))
    searched = {name: parts[1:] for name, parts in sets.items()}
    searched[f"{source}, dark"] = (dark(data[1]), dark(data[2]))
    print(f"{args.bits} bits, {args.steps} steps, {args.seeds} seeds\n{machine()}\n", flush=True)
    settings = DataSet(px=PX, steps=args.steps, bits=(args.bits,))
    results: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for seed in range(args.seeds):
        model = train(data, settings, BACKBONE, "orthohash", args.bits, seed)
        for (target, (query, database)), variant in product(searched.items(), VARIANTS):
            result = measure(adapted(model, variant, database[0]), query, database)
            results.setdefault((target, variant), []).append(result)
            print(seed, target, variant, *(f"{value:.4f}" for value in result), flush=True)
    rows = []
    for target in searched:
        columns = [list(zip(*results[target, variant], strict=True)) for variant in VARIANTS]
        rows.append(
            [target, *(summary(values) for quantity in zip(*columns, strict=True) for values in quantity)]
        )
    header = [f"{quantity}, {variant}" for quantity in ("mAP", "imbalance") for variant in VARIANTS]
    print(table(["searched", *header], rows))


if __name__ == "__main__":
    main()
