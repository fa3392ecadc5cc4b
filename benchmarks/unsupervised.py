"""Codes without training or labels: mAP of the methods of fit_hash_layer on pixels and on a small network.

    python benchmarks/unsupervised.py [--bits 32 64] [--seeds 5] [--methods itq sh] [--images images.npz]

The digits ship with scikit-learn; with ``--images``, an npz file of encoded images (see ``image_sets.py``) is
used as well, its raw pixels at 16 x 16. The network is one layer of random whitened patches, rectified and
pooled (Coates, Lee, Ng, AISTATS 2011, without k-means): it has seen no label. Layers are fitted to the
training set; queries search the database. Methods that draw at random are averaged over seeds.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import torch
import torch.nn.functional as F
from common import machine, table
from image_sets import Split, digits, encoded_images, score
from torch import Tensor

from hybridhash.models import fit_hash_head

METHODS = ("lsh", "pca", "pca-rr", "itq", "sh", "sph", "contrastive")
DRAWN = ("lsh", "pca-rr", "itq", "sph", "contrastive")
PATCH = 6


class Patches:
    """``relu(± w · patch - threshold)`` averaged over a grid, each feature divided by its deviation."""

    def __init__(self, images: Tensor, filters: int = 64, grid: int = 3, threshold: float = 1.5) -> None:
        generator = torch.Generator().manual_seed(0)
        patches = self._normalised(images[:1000]).flatten(0, 1)
        patches = patches[torch.randperm(len(patches), generator=generator)[:20_000]]
        self.grid, self.threshold, self.mean = grid, threshold, patches.mean(0)
        variances, directions = torch.linalg.eigh(torch.cov(patches.T))
        self.whitening = directions @ torch.diag((variances + 0.1).rsqrt()) @ directions.T
        self.filters = F.normalize((patches[:filters] - self.mean) @ self.whitening)
        self.deviation = torch.ones(())
        self.deviation = self(images).std(0) + 1e-3

    def _normalised(self, images: Tensor) -> Tensor:
        """Patches ``(B, positions, values)`` of mean 0 and the same contrast."""
        patches = F.unfold(images, PATCH).transpose(1, 2)
        patches = patches - patches.mean(2, keepdim=True)
        return patches / (patches.var(2, keepdim=True) + 0.1).sqrt()

    def __call__(self, images: Tensor) -> Tensor:
        parts = []
        for batch in images.split(100):
            z = (self._normalised(batch) - self.mean) @ (self.whitening @ self.filters.T)
            z = torch.cat([F.relu(z - self.threshold), F.relu(-z - self.threshold)], dim=2)
            side = round(z.shape[1] ** 0.5)
            maps = z.transpose(1, 2).unflatten(2, (side, side))
            parts.append(F.adaptive_avg_pool2d(maps, self.grid).flatten(1))
        return torch.cat(parts) / self.deviation


def mean_ap(method: str, bits: int, seeds: int, data: tuple[Split, Split, Split]) -> str:
    """mAP and, if the method draws, its deviation over seeds; a dash where it cannot give the bits."""
    (features, _), query, database = data
    values = []
    for seed in range(seeds if method in DRAWN else 1):
        generator = torch.Generator().manual_seed(seed)
        try:
            head = fit_hash_head(features.split(500), method, bits, generator)  # type: ignore[arg-type]
        except ValueError as error:
            print(f"{method}, {bits} bits: {error}", flush=True)
            return "-"
        values.append(score(head, query, database))
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def spectrum(features: Tensor, bits: int) -> float:
    """Share of the variance that the first directions hold."""
    variances = torch.linalg.eigvalsh(torch.cov(features.double().T)).flip(0)
    return float(variances[:bits].sum() / variances.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--images", help="npz file of encoded images, to be used as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sources = {"digits": (digits, digits)}
    if arguments.images:
        read = partial(encoded_images, arguments.images)
        sources["images"] = (partial(read, px=16), read)
    print(f"mAP over the whole database, mean of {arguments.seeds} seeds\n{machine()}\n")
    rows = []
    for name, (pixels, pictures) in sources.items():
        raw, pictured = pixels(), pictures()
        network = Patches(pictured[0][0])
        extractors = {"pixels": (raw, partial(torch.flatten, start_dim=1)), "patches": (pictured, network)}
        for kind, (splits, extract) in extractors.items():
            train, query, database = ((extract(images), labels) for images, labels in splits)
            for bits in arguments.bits:
                parts = (train, query, database)
                values = [mean_ap(method, bits, arguments.seeds, parts) for method in arguments.methods]
                share = f"{spectrum(train[0], bits):.0%}"
                rows.append([f"{name}, {kind}", str(train[0].shape[1]), str(bits), share, *values])
                print(rows[-1], flush=True)
    print(table(["features", "width", "bits", "variance in as many directions", *arguments.methods], rows))


if __name__ == "__main__":
    main()
