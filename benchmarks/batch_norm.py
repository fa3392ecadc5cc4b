"""mAP in another collection than that of the training, with batch norm as trained and re-estimated there.

    python benchmarks/batch_norm.py clothing=clothing10_128.npz cifar=cifar10_16k.npz

Each file is an npz of encoded images (see ``image_sets.py``). A narrow ResNet-18 with OrthoHash's head learns
the training set of one collection, as in ``results.py``, and hashes queries and database of every collection.
Statistics are re-estimated on the database, whose labels are not used; the queries are not seen.
"""

from __future__ import annotations

import argparse
import copy
import statistics

import torch
from common import machine, table
from image_sets import Split, encoded_images, score
from results import DataSet, train
from torch import nn

from hybridhash import encode, reestimate_batch_norm, unpack_codes

BACKBONE = "ResNet-18, narrow"
PX = 32
VARIANTS = ("as trained", "head", "all")


def imbalance(model: nn.Module, database: Split) -> float:
    """Mean over the bits of ``|2 p - 1|``, p being the share of ones; 0 if every bit is balanced."""
    codes = encode(model, database[0].split(500), progress=False)
    signs = unpack_codes(codes.packed, codes.bits)
    return float(signs.float().mean(0).abs().mean())


def measure(model: nn.Module, query: Split, database: Split) -> dict[str, tuple[float, float]]:
    """mAP and imbalance for the model as it is, and with the layers re-estimated on the database."""
    results = {}
    for variant in VARIANTS:
        adapted = copy.deepcopy(model)
        if variant != "as trained":
            loader = database[0].split(500)
            reestimate_batch_norm(adapted, loader, layers=variant, progress=False)  # type: ignore[arg-type]
        results[variant] = (score(adapted, query, database), imbalance(adapted, database))
    return results


def summary(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", help="NAME=FILE.npz, two or more")
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets = {name: encoded_images(path, PX) for name, path in (item.split("=", 1) for item in args.data)}
    print(f"{args.bits} bits, {args.steps} steps, {args.seeds} seeds\n{machine()}\n", flush=True)
    settings = DataSet(px=PX, steps=args.steps, bits=(args.bits,))
    results: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for source, data in sets.items():
        for seed in range(args.seeds):
            model = train(data, settings, BACKBONE, "orthohash", args.bits, seed)
            for target, (_, query, database) in sets.items():
                for variant, result in measure(model, query, database).items():
                    results.setdefault((source, target, variant), []).append(result)
                    print(source, target, variant, seed, *(f"{x:.4f}" for x in result), flush=True)
    rows = []
    for source in sets:
        for target in sets:
            columns = [list(zip(*results[source, target, variant], strict=True)) for variant in VARIANTS]
            cells = [summary(values) for quantity in zip(*columns, strict=True) for values in quantity]
            rows.append([source, target, *cells])
    header = [f"{quantity}, {variant}" for quantity in ("mAP", "imbalance") for variant in VARIANTS]
    print(table(["trained on", "searched", *header], rows))


if __name__ == "__main__":
    main()
