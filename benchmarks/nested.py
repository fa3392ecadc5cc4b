"""One training for all code lengths, against a training for each: mAP of every length, and time.

    python benchmarks/nested.py [--losses csq wml] [--seeds 3] [--images images.npz] [--held-out]
    python benchmarks/nested.py --time

A network with one hidden layer is trained on the pixels of the digits, or with ``--images`` on patch features
(see ``unsupervised.py``) of an npz file of encoded images. The nested training has 1.15 times the steps: if
the steps of a network take longer than those of the loss, that is at most 1.3 times the time (``--time``).

``--held-out`` searches with a fifth of the training set instead of the queries; the weights of the lengths
were chosen so. ``--time`` compares a step of all lengths with one of the longest, on this network and on
that of the quickstart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from common import interleaved, machine, table
from image_sets import Split, digits, encoded_images
from losses import network
from torch import nn
from unsupervised import Patches

from hybridhash import HashCodes
from hybridhash.eval import mean_average_precision
from hybridhash.losses import NestedLoss, create_loss_for

LENGTHS = (8, 16, 32, 64, 128)
LOSSES = ("csq", "orthohash", "wml", "dpsh")
WITH_BANK = ("wml",)
Data = tuple[Split, Split, Split]


def held_out(data: Data) -> Data:
    """Four fifths of the training set, the rest as queries, and the database."""
    (features, labels), _, database = data
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))
    queries, rows = order[: len(order) // 5], order[len(order) // 5 :]
    train = features[rows], labels[rows]
    return train, (features[queries], labels[queries]), train if database[0] is features else database


def make_model(width: int, bits: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 512), nn.ReLU(), nn.Linear(512, bits), nn.Tanh())


def train(
    name: str, data: Data, lengths: tuple[int, ...], seed: int, steps: int, power: float
) -> list[float]:
    """mAP of each length after one training with all of them."""
    (features, labels), query, database = data
    torch.manual_seed(seed)
    model = make_model(features.shape[1], lengths[-1])
    generator = torch.Generator().manual_seed(seed)
    make = partial(create_loss_for, name, labels, bank=name in WITH_BANK, generator=generator)
    if len(lengths) == 1:
        loss_fn = make(lengths[0])
    else:
        loss_fn = make(lengths[-1], lengths=lengths)
        inner = zip(lengths, loss_fn.losses.values(), strict=True)
        loss_fn = NestedLoss(dict(inner), weights={length: length**power for length in lengths})
    optimizer = torch.optim.Adam([*model.parameters(), *loss_fn.parameters()], lr=1e-3)
    done = 0
    while done < steps:
        for rows in torch.randperm(len(labels), generator=generator).split(64)[: steps - done]:
            loss = loss_fn(model(features[rows]), labels[rows], indices=rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
    with torch.no_grad():
        codes = [(model(items), classes) for items, classes in (query, database)]
    return [
        float(mean_average_precision(*(HashCodes.from_codes(u[:, :length], y) for u, y in codes)))
        for length in lengths
    ]


def compare(
    name: str, source: str, data: Data, seeds: int, steps: int, longer: float, power: float
) -> list[list[str]]:
    """Rows of the table: a training for each length, one for all, and the difference of the means."""
    alone = [
        [train(name, data, (length,), seed, steps, power)[0] for seed in range(seeds)] for length in LENGTHS
    ]
    steps = round(steps * longer)
    columns = zip(*(train(name, data, LENGTHS, seed, steps, power) for seed in range(seeds)), strict=True)
    nested = [list(column) for column in columns]

    def cells(values: list[list[float]]) -> list[str]:
        return [f"{statistics.fmean(v):.3f} ± {statistics.pstdev(v):.3f}" for v in values]

    differences = [
        f"{statistics.fmean(b) - statistics.fmean(a):+.3f}" for a, b in zip(alone, nested, strict=True)
    ]
    return [
        [source, name, "own training", *cells(alone)],
        [source, name, "nested", *cells(nested)],
        [source, name, "difference", *differences],
    ]


def make_step(
    name: str, data: Split, model: nn.Module, lengths: tuple[int, ...] | None
) -> Callable[[], None]:
    """One step of a training, as a function."""
    images, labels = data
    generator = torch.Generator().manual_seed(0)
    bank = name in WITH_BANK
    loss_fn = create_loss_for(name, labels, LENGTHS[-1], lengths=lengths, bank=bank, generator=generator)
    optimizer = torch.optim.Adam([*model.parameters(), *loss_fn.parameters()], lr=1e-3)

    def step() -> None:
        rows = torch.randperm(len(labels), generator=generator)[:64]
        loss = loss_fn(model(images[rows]), labels[rows], indices=rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def step_times(repeats: int = 30) -> str:
    """CPU time of a step with all lengths over that of a step with the longest, taking turns."""
    (pictures, labels), (pixels, _) = digits()[0], digits(px=8)[0]
    pixels = pixels.flatten(1)
    rows = []
    for name in LOSSES:
        for title, images in (("one hidden layer", pixels), ("of the quickstart", pictures)):
            rivals = {}
            for lengths in (None, LENGTHS):
                model = network(name, images, LENGTHS[-1])
                if images is pixels:
                    model = make_model(images.shape[1], LENGTHS[-1])
                rivals[str(lengths)] = make_step(name, (images, labels), model, lengths)
            one, nested = interleaved(rivals, repeats, clock=time.process_time).values()
            rows.append([name, title, f"{1e3 * one:.1f}", f"{1e3 * nested:.1f}", f"{nested / one:.2f}"])
            print(rows[-1], flush=True)
    return table(["loss", "network", "ms, 128 bits", "ms, all lengths", "ratio"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--losses", nargs="*", default=LOSSES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--longer", type=float, default=1.15, help="steps of the nested training over others")
    parser.add_argument("--power", type=float, default=0.0, help="a length weighs length**power (0)")
    parser.add_argument("--images", help="npz file of encoded images, to be used in place of the digits")
    parser.add_argument("--held-out", action="store_true", help="search with a part of the training set")
    parser.add_argument("--time", action="store_true", help="only compare the time of a step")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}\n")
    if arguments.time:
        print(step_times())
        return
    if arguments.images:
        pictures = encoded_images(arguments.images)
        extract = Patches(pictures[0][0])
        parts = [(extract(images), labels) for images, labels in pictures]
    else:
        parts = [(images.flatten(1), labels) for images, labels in digits(px=8)]
        parts[2] = parts[0]
    data = held_out(tuple(parts)) if arguments.held_out else tuple(parts)
    rows = []
    for name in arguments.losses:
        source = "images" if arguments.images else "digits"
        rows += compare(
            name, source, data, arguments.seeds, arguments.steps, arguments.longer, arguments.power
        )
        print(*rows[-3:], sep="\n", flush=True)
    print(table(["set", "loss", "training", *(f"{length} bits" for length in LENGTHS)], rows))


if __name__ == "__main__":
    main()
