"""mAP of seven methods on two small backbones, from random weights: methods x bits x data sets, three seeds.

    python benchmarks/results.py cifar=cifar10_16k.npz clothing=clothing10_128.npz grocery=grocery124_128.npz

Each file is an npz of encoded images (``data``, ``offsets``, ``labels``, ``split``: 0 train, 1 query,
2 database). Every run adds a line to ``--out``; runs that are there already are not repeated, so that a
killed call goes on where it was, and calls with other data sets may run at the same time. ``--print`` makes
the tables from the file.

All methods see the same batches, augmentation, optimiser and number of steps, chosen once for all of them and
never tuned for one; each has the head of its paper. Nothing is chosen on the queries: the last weights count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from common import machine, table
from image_sets import encoded_images, score
from torch import Tensor, nn

from hybridhash.data import balanced_batches
from hybridhash.losses import create_loss_for
from hybridhash.models import create_hash_model
from hybridhash.models.interaction import GlobalBranch

BATCH = 60
HEADS = {
    "wml": "tanh",
    "hashnet": "continuation",
    "dpsh": "unbounded",
    "dch": "tanh",
    "csq": "tanh",
    "orthohash": "batchnorm",
    "greedyhash": "unbounded",  # the loss takes the sign itself
}
# The paper's quantiser, 10, is weighed against 5,000 training images; here that is a batch.
SETTINGS: dict[str, dict[str, Any]] = {"dpsh": {"eta": 0.14, "num_train": BATCH}}
SMALL = {"embed_dims": (32, 64, 128), "num_heads": (1, 2, 4), "depths": (1, 1, 2), "drop_path_rate": 0.0}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "HybridHash": ("hybridhash_16", SMALL),
    "ResNet-18, narrow": ("resnet18", {"channels": (16, 32, 64, 128), "stem_width": 16}),
}
ABLATION: dict[str, tuple[str, dict[str, Any]]] = {
    "HybridHash, legacy token order": ("hybridhash_16", {**SMALL, "legacy_token_order": True}),
    "HybridHash, no global branch": ("hybridhash_16", SMALL),
}


# Its softmax is defined for one label per image.
LEFT_OUT = {("grocery", "greedyhash")}


class DataSet(NamedTuple):
    """How a data set is used."""

    px: int
    steps: int
    bits: tuple[int, ...]


DATA_SETS = {
    "cifar": DataSet(px=32, steps=500, bits=(16, 48)),
    "clothing": DataSet(px=48, steps=300, bits=(32,)),
    "grocery": DataSet(px=48, steps=300, bits=(32,)),
}


def without_global_branch(model: nn.Module) -> nn.Module:
    """Takes the attention among block tokens out of every interaction module: convolutions are left."""
    for module in model.modules():
        if isinstance(module, GlobalBranch):
            module.requires_grad_(False)
            module.forward = lambda x: x.new_zeros(())
    return model


def make_model(backbone: str, method: str, bits: int, px: int) -> nn.Module:
    """The backbone with the head of the method's paper."""
    name, kwargs = (BACKBONES | ABLATION)[backbone]
    if name.startswith("hybridhash"):
        kwargs = {**kwargs, "img_size": px}
    model = create_hash_model(name, bits, head=HEADS.get(method, "tanh"), **kwargs)
    return without_global_branch(model) if backbone.endswith("no global branch") else model


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image moved by up to an eighth of its side, and half of them mirrored."""
    most = images.shape[-1] // 8
    padded = F.pad(images, [most] * 4, mode="reflect")
    moved = torch.empty_like(images)
    size = images.shape[-1]
    for row in range(len(images)):
        top, left, mirror = torch.randint(0, 2 * most + 1, (3,), generator=generator).tolist()
        image = padded[row, :, top : top + size, left : left + size]
        moved[row] = image.flip(-1) if mirror % 2 else image
    return moved


def endless_batches(labels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows: the same number of each class, or shuffled where an image has several labels."""
    classes = 10
    while True:
        if labels.ndim == 1:
            yield from map(torch.as_tensor, balanced_batches(labels, classes, BATCH // classes, generator))
        else:
            order = torch.randperm(len(labels), generator=generator)
            yield from order[: len(order) // BATCH * BATCH].split(BATCH)


def train(data: Any, settings: DataSet, backbone: str, method: str, bits: int, seed: int) -> nn.Module:
    """A model that has learned the training set of ``data``, which is its first split."""
    images, labels = data[0]
    torch.manual_seed(seed)
    model = make_model(backbone, method, bits, settings.px)
    if method != "untrained":
        loss_fn = create_loss_for(
            method,
            labels,
            bits,
            bank=method == "wml",
            generator=torch.Generator().manual_seed(seed),
            **SETTINGS.get(method, {}),
        )
        parameters = [p for p in (*model.parameters(), *loss_fn.parameters()) if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=settings.steps)
        generator = torch.Generator().manual_seed(seed)
        batches = endless_batches(labels, generator)
        step: Callable[[], None] = getattr(model.head, "step", lambda: None)
        model.train()
        for _, rows in zip(range(settings.steps), batches, strict=False):
            codes = model(shifted(images[rows], generator))
            loss = loss_fn(codes, labels[rows], indices=rows)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            scheduler.step()
            step()
    return model


def run(data: Any, settings: DataSet, backbone: str, method: str, bits: int, seed: int) -> dict[str, Any]:
    """Train once; mAP over the whole database, expected over ties, and seconds."""
    start = time.perf_counter()
    model = train(data, settings, backbone, method, bits, seed)
    _, query, database = data
    return {"map": score(model, query, database), "seconds": time.perf_counter() - start}


def plan(names: list[str], seeds: int) -> list[tuple[str, str, str, int, int]]:
    """All runs, seed by seed for each data set and code length."""
    runs = []
    for name, seed in product(names, range(seeds)):
        bits, *_ = DATA_SETS[name].bits
        runs += runs_of(name, bits, seed)
    for name, seed in product(names, range(seeds)):
        for bits in DATA_SETS[name].bits[1:]:
            runs += runs_of(name, bits, seed)
    return runs


def runs_of(name: str, bits: int, seed: int) -> list[tuple[str, str, str, int, int]]:
    methods = [method for method in ("untrained", *HEADS) if (name, method) not in LEFT_OUT]
    runs = [(name, backbone, method, bits, seed) for method in methods for backbone in BACKBONES]
    return runs + [(name, backbone, "wml", bits, seed) for backbone in ABLATION]


def tables(lines: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds, in Markdown."""
    kept: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in lines:
        kept.setdefault((line["data"], line["backbone"], line["method"], line["bits"]), []).append(line)

    seeds = len({line["seed"] for line in lines})

    def cell(*key: Any) -> str:
        values = [line["map"] for line in kept.get(key, [])]
        if not values:
            return "-"
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        fewer = f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else ""
        return f"{statistics.mean(values):.3f}{spread}{fewer}"

    columns = [(name, bits) for name in DATA_SETS for bits in DATA_SETS[name].bits]
    parts = []
    for title, backbones, methods in (
        ("Methods", BACKBONES, ("untrained", *HEADS)),
        ("Interaction module", {"HybridHash": None, **ABLATION}, ("wml",)),
    ):
        rows = []
        for backbone in backbones:
            for method in methods:
                cells = [cell(name, backbone, method, bits) for name, bits in columns]
                spent = [
                    line["seconds"] for key in kept if key[1:3] == (backbone, method) for line in kept[key]
                ]
                rows.append([backbone, method, *cells, f"{min(spent):.0f}" if spent else "-"])
        header = ["backbone", "method", *(f"{name}, {bits} bits" for name, bits in columns), "s, fastest run"]
        parts.append(f"{title}, {seeds} seeds:\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", help=f"NAME=FILE.npz, NAME being one of {', '.join(DATA_SETS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.jsonl"))
    parser.add_argument("--print", action="store_true", help="print the tables of --out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = dict(item.split("=", 1) for item in args.data)
    if unknown := set(paths) - set(DATA_SETS):
        parser.error(f"no data set is called {', '.join(unknown)}: {', '.join(DATA_SETS)}")
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(line["data"], line["backbone"], line["method"], line["bits"], line["seed"]) for line in lines}
    data = {name: encoded_images(path, DATA_SETS[name].px) for name, path in paths.items()}
    for key in plan(list(paths), args.seeds):
        if key not in done:
            name, *rest = key
            result = run(data[name], DATA_SETS[name], *rest)
            names = dict(zip(("data", "backbone", "method", "bits", "seed"), key, strict=True))
            with open(args.out, "a") as file:
                print(json.dumps({**names, **result}), file=file)
            print(*key, f"mAP {result['map']:.4f}, {result['seconds']:.0f} s", flush=True)
    if args.print:
        print(machine(), tables([json.loads(line) for line in args.out.read_text().splitlines()]), sep="\n\n")


if __name__ == "__main__":
    main()
