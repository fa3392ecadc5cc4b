"""Recall@10 of the exact float neighbours at equal bytes: RaBitQ heads of this package, and FAISS's RaBitQ.

    python benchmarks/rabitq_recall.py [--bits 128 256] [--seeds 5] [--images images.npz]

Features and data are those of ``unsupervised.py``: patches of the digits and, with ``--images``, of an npz
file of encoded images. Heads are fitted to the training set; real-valued queries search the database. A code
takes ``bits / 8`` bytes and 8 bytes of factors. The columns:

- ``hamming``, ``float query``: the signs alone, of both sides or of the database;
- ``factors``: distances of the projections, estimated with the factors of the codes;
- ``norms``: the same with the norms of the whole features (``head.norms``);
- ``faiss``: PCA, random rotation and ``IndexRaBitQ``, whose codes take the same bytes.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import faiss
import torch
from common import machine, table
from image_sets import digits, encoded_images
from torch import Tensor
from unsupervised import Patches

from hybridhash import HashCodes
from hybridhash.models import fit_hash_head
from hybridhash.models.heads import ProjectionHead

TOP_K = 10
COLUMNS = ("hamming", "float query", "factors", "norms")


def recall(found: Tensor, nearest: Tensor) -> float:
    """Share of the nearest neighbours that were found, both ``(Nq, TOP_K)``."""
    return float((found[:, :, None] == nearest[:, None, :]).any(2).double().mean())


def distances(codes: HashCodes, query: Tensor) -> Tensor:
    """Estimated squared distances ``(Nq, N)`` less the squared norm of the query, which changes no order."""
    assert codes.factors is not None
    norm, alignment = codes.factors.T
    return norm.square() - 2 * norm / alignment * (query @ codes.codes().T) / codes.bits**0.5


@torch.no_grad()
def recalls_of_head(
    rotation: str, bits: int, seed: int, train: Tensor, query: Tensor, database: Tensor, nearest: Tensor
) -> list[float]:
    """The recall in each of ``COLUMNS``."""
    generator = torch.Generator().manual_seed(seed)
    head = fit_hash_head(train.split(500), "rabitq", bits, generator, rotation=rotation)  # type: ignore[arg-type]
    assert isinstance(head, ProjectionHead)
    z, q = head(database), head(query)
    plain = HashCodes.from_codes(z, factors=True)
    whole = HashCodes.from_codes(z, factors=True, norms=head.norms(database))
    signs = plain.codes()
    scores = (-(q.sign() @ signs.T), -(q @ signs.T), distances(plain, q), distances(whole, q))
    return [recall(score.topk(TOP_K, largest=False).indices, nearest) for score in scores]


def recall_of_faiss(
    bits: int, seed: int, train: Tensor, query: Tensor, database: Tensor, nearest: Tensor
) -> float:
    """FAISS's RaBitQ after PCA and a random rotation."""
    pca = faiss.PCAMatrix(train.shape[1], bits)
    turn = faiss.RandomRotationMatrix(bits, bits)
    turn.init(seed)
    index = faiss.IndexRaBitQ(bits, faiss.METRIC_L2)
    pca.train(train.numpy())
    reduced = [turn.apply(pca.apply(part.numpy())) for part in (train, database, query)]
    index.train(reduced[0])
    index.add(reduced[1])
    return recall(torch.from_numpy(index.search(reduced[2], TOP_K)[1]), nearest)


def cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", help="npz file of encoded images, to be used as well")
    parser.add_argument("--rotations", nargs="+", default=["auto", "random", "itq"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sources = {"digits": digits}
    if arguments.images:
        sources["images"] = partial(encoded_images, arguments.images)
    print(f"recall@{TOP_K}, mean of {arguments.seeds} seeds\n{machine()}\n")
    rows = []
    for name, read in sources.items():
        splits = read()
        network = Patches(splits[0][0])
        parts = [network(images) for images, _ in splits]
        _, query, database = parts
        exact = torch.cdist(query.double(), database.double())
        nearest = exact.topk(TOP_K, largest=False).indices
        for bits in arguments.bits:
            rival = [recall_of_faiss(bits, seed, *parts, nearest) for seed in range(arguments.seeds)]
            for rotation in arguments.rotations:
                runs = [
                    recalls_of_head(rotation, bits, seed, *parts, nearest) for seed in range(arguments.seeds)
                ]
                cells = [cell(list(column)) for column in zip(*runs, strict=True)]
                rows.append([name, str(bits // 8 + 8), rotation, *cells, cell(rival)])
                print(rows[-1], flush=True)
    print(table(["features", "bytes", "rotation", *COLUMNS, "faiss"], rows))


if __name__ == "__main__":
    main()
