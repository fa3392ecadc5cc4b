"""Every loss trains the same small network for the same steps on scanned digits: does it learn, at what cost?

    python benchmarks/losses.py [--steps 300] [--bits 16] [--losses wml hashnet] [--cifar images.npz]
    python benchmarks/losses.py --small [--losses wml hashnet]

The digits ship with scikit-learn: 300 queries, 1,497 images for training and database, 32 x 32 pixels. With
``--cifar``, an npz file of encoded images (``data``, ``offsets``, ``labels``, ``split``: 0 train, 1 query,
2 database), its images are used as well; Pillow decodes them.

The extra memory is that of the loss alone: what a forward and backward pass from given codes holds at most.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import timm
import torch
import torch.nn.functional as F
from common import machine, table
from image_sets import Split, digits, encoded_images, score
from torch import Tensor, nn

from hybridhash.data import balanced_batches
from hybridhash.losses import create_loss, create_loss_for, list_losses

BATCH = 70
# These compare a batch with the codes of the whole training set; the others compare within the batch.
WITH_BANK = ("wml",)
# What the network hands to the loss, if not its tanh; the bits are the same.
OUTPUTS = {
    **dict.fromkeys(("dnnh", "drsdh"), "(0, 1)"),  # sigmoid codes in the papers: tanh rescaled
    **dict.fromkeys(("dsh", "dtsh"), "unbounded"),  # no tanh in the papers: bounded codes part too slowly
    # Methods for features: nothing in them keeps a deep network from giving one code to all images.
    **dict.fromkeys(("dh", "superviseddh"), "MLP on centred pixels"),
}


def network(name: str, images: Tensor, bits: int) -> nn.Module:
    """The network of the quickstart, ending as the loss wants it."""
    torch.manual_seed(0)
    output = OUTPUTS.get(name, "tanh")
    if output == "MLP on centred pixels":
        pixels = images.flatten(1)
        widths = (pixels.shape[1], 64, bits)
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.Tanh())]
        center = nn.Linear(widths[0], widths[0])
        with torch.no_grad():
            mean = pixels.mean(0)
            scale = 4 / (pixels - mean).square().sum(1).mean().sqrt()  # tanh neither linear nor saturated
            center.weight.copy_(scale * torch.eye(widths[0]))
            center.bias.copy_(-scale * mean)
        return nn.Sequential(nn.Flatten(), center.requires_grad_(False), nn.Sequential(*layers))
    model: nn.Module = timm.create_model(
        "hybridhash_16",
        num_classes=bits,
        img_size=32,
        in_chans=images.shape[1],
        embed_dims=(32, 64, 128),
        num_heads=(1, 2, 4),
        depths=(1, 1, 2),
        drop_path_rate=0.0,
    )
    if output == "unbounded":
        classifier = model.get_classifier()
        model.reset_classifier(0)
        return nn.Sequential(model, classifier)
    return model


def make_loss(name: str, labels: Tensor, bits: int, model: nn.Module | None = None) -> nn.Module:
    """The loss with its defaults; of the networks here, only the MLP has layers that a loss may weigh."""
    settings: dict[str, Any] = {}
    if model is not None and OUTPUTS.get(name) == "MLP on centred pixels":
        settings["layers"] = model[-1]
    generator = torch.Generator().manual_seed(0)
    return create_loss_for(name, labels, bits, bank=name in WITH_BANK, generator=generator, **settings)


def train(name: str, data: tuple[Split, Split, Split], steps: int, bits: int) -> tuple[float, float]:
    """mAP after the steps, and median milliseconds of a step."""
    (images, labels), query, database = data
    model = network(name, images, bits)
    loss_fn = make_loss(name, labels, bits, model)
    batches = balanced_batches(labels, 10, BATCH // 10, torch.Generator().manual_seed(0))
    parameters = [*model.parameters(), *loss_fn.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    times, done = [], 0
    model.train()
    while done < steps:
        for batch in batches:
            rows = torch.as_tensor(batch)
            start = time.perf_counter()
            codes = model(images[rows])
            codes = (codes + 1) / 2 if OUTPUTS.get(name) == "(0, 1)" else codes
            loss = loss_fn(codes, labels[rows], indices=rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            times.append(time.perf_counter() - start)
            done += 1
            if done == steps:
                break
        if "epoch_hook" in loss_fn.requires:
            loss_fn.epoch_end()
    return score(model, query, database), 1e3 * statistics.median(times)


# mAP of public implementations with the network and steps of `train_small`, mean of three seeds; for DPSH
# and DSDH with the weight of their quantiser scaled to a batch.
PEERS = {
    "csq": 0.951,
    "dbdh": 0.421,  # with its bank; it has no form within the batch
    "dch": 0.920,
    "dpsh": 0.801,
    "dsdh": 0.846,
    "dshsd": 0.897,  # with the classifier given to the optimizer
    "dtsh": 0.876,
    "greedyhash": 0.895,
    "hashnet": 0.743,
    "hyp2": 0.941,
    "lcdsh": 0.801,
    "wml": 0.858,
}


def train_small(name: str, bank: bool, seed: int, bits: int = 16, steps: int = 300) -> float:
    """mAP of a network with one hidden layer on the digits, trained by what `create_loss_for` makes."""
    (images, labels), query, database = digits(px=8)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, bits))
    generator = torch.Generator().manual_seed(seed)
    layers = {"layers": model} if OUTPUTS.get(name) == "MLP on centred pixels" else {}
    loss_fn = create_loss_for(name, labels, bits, bank=bank, generator=generator, **layers)
    optimizer = torch.optim.Adam([*model.parameters(), *loss_fn.parameters()], lr=1e-3)
    done = 0
    while done < steps:
        for rows in torch.randperm(len(labels), generator=generator).split(64):
            codes = model(images[rows])
            if OUTPUTS.get(name) == "(0, 1)":
                codes = codes.sigmoid()
            elif OUTPUTS.get(name) != "unbounded":
                codes = codes.tanh()
            loss = loss_fn(codes, labels[rows], indices=rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
        if "epoch_hook" in loss_fn.requires:
            loss_fn.epoch_end()
    return score(model, query, database)


def compare_small(names: list[str]) -> str:
    """The losses on a small network, in the batch and with a bank, beside public implementations."""
    rows = []
    for name in names:
        has_bank = hasattr(make_loss(name, torch.arange(9), 4), "bank")
        forms = [False, True] if has_bank else [False]
        means = [statistics.mean(train_small(name, bank, seed) for seed in range(3)) for bank in forms]
        cells = [f"{mean:.3f}" for mean in means] + [""] * (2 - len(means))
        rows.append([name, OUTPUTS.get(name, "tanh"), *cells, f"{PEERS[name]:.3f}" if name in PEERS else ""])
        print(rows[-1], flush=True)
    return table(["loss", "output", "mAP, batch", "mAP, bank", "mAP, peer"], rows)


def cost(name: str, labels: Tensor, bits: int) -> tuple[float, float]:
    """Median milliseconds and peak extra MiB of the loss alone for a batch, forward and backward."""
    loss_fn = make_loss(name, labels, bits)
    rows = torch.arange(BATCH)
    codes = torch.rand(BATCH, bits, generator=torch.Generator().manual_seed(0))

    def step() -> None:
        loss_fn(codes.clone().requires_grad_(), labels[:BATCH], indices=rows).backward()

    step()
    times = []
    for _ in range(20):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return 1e3 * statistics.median(times), peak / 2**20


def against_plain_formulas(batch: int = 128, bits: int = 64, classes: int = 10) -> str:
    """CPU time of small losses over that of their formula in plain PyTorch, without any check, interleaved.

    The formulas are the documented ones: means over the rows that have a label, and sign(0) = -1.
    """
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(batch, bits, generator=generator).tanh()
    labels = torch.randint(classes, (batch,), generator=generator)
    names = ("csq", "dpn", "greedyhash")
    losses = {name: create_loss(name, num_classes=classes, bits=bits, generator=generator) for name in names}
    weight = losses["greedyhash"].classifier.weight

    def csq(codes: Tensor) -> Tensor:
        kept = labels >= 0
        codes, target = codes[kept], losses["csq"].centers[labels[kept]]
        entropy = F.binary_cross_entropy((1 + codes) / 2, (1 + target) / 2)
        return entropy + 0.05 * (codes.abs() - 1).square().mean()

    def dpn(codes: Tensor) -> Tensor:
        kept = labels >= 0
        return F.relu(1 - codes[kept] * losses["dpn"].centers[labels[kept]]).sum(1).mean()

    def greedyhash(codes: Tensor) -> Tensor:
        kept = labels >= 0
        codes = codes[kept]
        signs = codes + (torch.where(codes > 0, 1.0, -1.0) - codes).detach()
        penalty = (codes.abs() - 1).abs().pow(3).mean()
        return F.cross_entropy(F.linear(signs, weight), labels[kept]) + 0.1 * penalty

    def seconds(loss: Callable[[Tensor], Tensor]) -> float:
        codes = given.clone().requires_grad_()
        start = time.process_time()
        for _ in range(50):
            loss(codes).backward()
        return (time.process_time() - start) / 50

    rows = []
    for name, plain in {"csq": csq, "dpn": dpn, "greedyhash": greedyhash}.items():
        loss_fn = losses[name]
        torch.testing.assert_close(loss_fn(given, labels), plain(given))
        pairs = [(seconds(lambda u, f=loss_fn: f(u, labels)), seconds(plain)) for _ in range(30)]
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        rows.append([name, f"{1e6 * ours:.0f}", f"{1e6 * theirs:.0f}", f"{ours / theirs:.2f}"])
    return table(["loss", "us", "us of the plain formula", "ratio"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--bits", type=int, default=16)
    parser.add_argument("--losses", nargs="*", default=list_losses())
    parser.add_argument("--plain", action="store_true", help="only compare with plain formulas")
    parser.add_argument("--small", action="store_true", help="only train a small network, beside peers")
    parser.add_argument("--cifar", help="npz file of encoded images, to be used as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.plain:
        print(f"{machine()}\n\n{against_plain_formulas()}")
        return
    if arguments.small:
        print(f"{machine()}\n\n{compare_small(arguments.losses)}")
        return
    sets = {"digits": digits()}
    if arguments.cifar:
        sets["images"] = encoded_images(arguments.cifar)
    print(f"{arguments.steps} steps of {BATCH} images, {arguments.bits} bits\n{machine()}\n")
    rows = []
    untrained: dict[str, list[float]] = {}
    for name in arguments.losses:
        output = OUTPUTS.get(name, "tanh")
        if output not in untrained:
            untrained[output] = [
                score(network(name, data[0][0], arguments.bits), *data[1:]) for data in sets.values()
            ]
        results = [train(name, data, arguments.steps, arguments.bits) for data in sets.values()]
        alone, memory = cost(name, sets["digits"][0][1], arguments.bits)
        maps = [
            f"{before:.3f} to {after:.3f}"
            for before, (after, _) in zip(untrained[output], results, strict=True)
        ]
        rows.append([name, output, *maps, f"{results[0][1]:.1f}", f"{alone:.2f}", f"{memory:.1f}"])
        print(rows[-1], flush=True)
    header = ["loss", "output", *(f"mAP, {name}" for name in sets)]
    header += ["ms per step", "ms of the loss", "MiB of the loss"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
