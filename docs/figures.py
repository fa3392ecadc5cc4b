"""Draw the figures of docs/concepts.md and docs/duplicates.md: python docs/figures.py"""

import sys
import tempfile
from itertools import permutations
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import ImageEnhance, ImageOps
from torchvision.transforms.functional import to_pil_image

import hybridhash
from hybridhash.eval import evaluate, mean_average_precision, plot_distance_histogram

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent / "figures"
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#555555"


def clustered_codes(per_class=200, classes=10, bits=16, flip=0.2, seed=0):
    """Draw codes around one random center for each class, sorted by class; every 20th is a query."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(per_class)
    centers = torch.rand(classes, bits, generator=generator).sub(0.5).sign()
    flips = torch.rand(len(labels), bits, generator=generator) < flip
    codes = torch.where(flips, -1, 1) * centers[labels]
    query = torch.arange(len(labels)) % 20 == 0
    return codes[query], labels[query], codes[~query], labels[~query]


def cube():
    """Draw the codes of 3 bits as the corners of a cube, with their distances from one of them."""
    figure, axes = plt.subplots(figsize=(5, 4.2))
    place = {}
    for code in range(8):
        x, y, z = code >> 2 & 1, code >> 1 & 1, code & 1
        place[code] = (x + 0.45 * z, y + 0.35 * z)
    for a in range(8):
        for bit in (1, 2, 4):
            if a < a ^ bit:
                axes.plot(*zip(place[a], place[a ^ bit], strict=True), color="#bbbbbb", zorder=0)
    shades = ["#000000", BLUE, "#7fb7d8", "#ffffff"]
    query = 0b010
    for code, (x, y) in place.items():
        distance = (code ^ query).bit_count()
        axes.scatter(x, y, s=420, color=shades[distance], edgecolors="black")
        axes.text(x, y, distance, ha="center", va="center", color="white" if distance < 2 else "black")
        axes.annotate(f"{code:03b}", (x, y), (14, 10), textcoords="offset points", family="monospace")
    axes.set_title("Hamming distances from the code 010")
    axes.set_xlim(-0.2, 1.8)
    axes.set_ylim(-0.2, 1.6)
    axes.axis("off")
    return figure


def orders():
    """Draw the average precision of each order of two relevant items and an irrelevant one."""
    names, values = [], []
    for order in sorted(set(permutations("++-"))):
        relevance = [sign == "+" for sign in order]
        hits = [sum(relevance[: i + 1]) / (i + 1) for i in range(3) if relevance[i]]
        names.append(" ".join(order))
        values.append(sum(hits) / len(hits))
    figure, axes = plt.subplots(figsize=(5, 3))
    axes.bar(names, values, color=BLUE, width=0.5)
    mean = sum(values) / len(values)
    axes.axhline(mean, color=ORANGE, linestyle="--")
    axes.text(2.35, mean + 0.02, f"expected {mean:.3f}", ha="right", color=ORANGE)
    for i, value in enumerate(values):
        axes.text(i, value - 0.08, f"{value:.3f}", ha="center", color="white")
    axes.set_ylim(0, 1.1)
    axes.set_ylabel("average precision")
    axes.set_title("Three items at the same distance")
    return figure


def database_order():
    """Draw the mAP of one set of codes when the database is shuffled, and the exact mean over all orders."""
    query, query_labels, codes, labels = clustered_codes()

    def stable(order):
        return mean_average_precision(query, query_labels, codes[order], labels[order], ties="stable")

    generator = torch.Generator().manual_seed(0)
    shuffled = [stable(torch.randperm(len(codes), generator=generator)) for _ in range(100)]
    exact = mean_average_precision(query, query_labels, codes, labels)
    by_class = [stable(torch.arange(len(codes))), stable(torch.arange(len(codes)).flip(0))]
    figure, axes = plt.subplots(figsize=(6, 3))
    axes.hist(shuffled, bins=20, color="#7fb7d8", edgecolor="black", label="100 shuffled databases")
    axes.axvline(exact, color=ORANGE, linestyle="--", label=f"ties='expected': {exact:.4f}")
    for value, style, name in zip(
        by_class, (":", "-."), ("class by class", "the same, reversed"), strict=True
    ):
        axes.axvline(value, color=GREY, linestyle=style, label=f"{name}: {value:.4f}")
    axes.set_xlabel("mAP, ties in database order")
    axes.set_ylabel("databases")
    axes.legend(fontsize=8)
    return figure


def distances():
    """Draw how far relevant and irrelevant items are, for codes with a tenth of the bits wrong."""
    return plot_distance_histogram(evaluate(*clustered_codes(bits=32, flip=0.1), top_k=100))


def duplicates():
    """Draw the groups that are found among 70 drawn pictures, of which three have altered copies."""
    sys.path.insert(0, str(FOLDER.parent.parent / "examples"))
    from train_copies import draw_picture

    random = np.random.default_rng(123)
    alterations = {
        "half": lambda picture: picture.resize((64, 64)),
        "grey": ImageOps.grayscale,
        "mirror": ImageOps.mirror,
        "turned": lambda picture: picture.rotate(5),
        "cropped": lambda picture: picture.crop((6, 6, 122, 122)),
        "bright": lambda picture: ImageEnhance.Brightness(picture).enhance(1.4),
    }
    with tempfile.TemporaryDirectory() as folder:
        for number in range(70):
            picture = to_pil_image(draw_picture(random))
            picture.save(f"{folder}/{number}.png")
            if number in (5, 21, 42):
                for name, alter in alterations.items():
                    alter(picture).save(f"{folder}/{number}-{name}.jpg", quality=70)
        found = hybridhash.find_duplicates(folder, progress=False)
        return found.plot(columns=len(alterations) + 1)


if __name__ == "__main__":
    for draw in (cube, orders, database_order, distances, duplicates):
        draw().savefig(FOLDER / f"{draw.__name__}.png", dpi=110, bbox_inches="tight")
