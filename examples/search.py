"""From images to search: train a hash, encode, put the codes into an index, save it, load it, search.

The data are the digits that ship with scikit-learn: 300 queries, and a database of 1,497 images. The index is
one of FAISS. With ``--milvus`` the same calls go to a Milvus server (``http://host:19530``) or to a file
(``codes.db``, Milvus Lite). Needs ``pip install hybridhash[examples,faiss]`` or ``[examples,milvus]``. Run it
with ``--help`` for the options.
"""

import argparse
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from hybridhash import HashCodes, encode, hamming_topk
from hybridhash.hub import weights_sha256
from hybridhash.losses import CodeBank, WMLLoss
from hybridhash.search import FaissIndex, MilvusIndex

NUM_QUERIES = 300


def load_images(seed):
    """Return queries and database: images (N, 1, 32, 32) in [-1, 1], labels, and rows as ids."""
    digits = load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    images = F.interpolate(images, size=(32, 32), mode="bilinear")
    labels = torch.as_tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    parts = order[:NUM_QUERIES], order[NUM_QUERIES:]
    return [TensorDataset(images[rows], labels[rows], rows) for rows in parts]


def train(bits, dataset, epochs):
    """Train a small network with a plain loop; ``examples/quickstart.py`` explains it."""
    model = timm.create_model(
        "hybridhash_16",
        num_classes=bits,
        img_size=32,
        in_chans=1,
        embed_dims=(32, 64, 128),
        num_heads=(1, 2, 4),
        depths=(1, 1, 1),
        drop_path_rate=0.0,
    )
    images, labels, _ = dataset.tensors
    loss_fn = WMLLoss(bank=CodeBank(num_samples=len(dataset), bits=bits))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for epoch in range(epochs):
        for rows in torch.randperm(len(dataset)).split(64):
            loss = loss_fn(model(images[rows]), labels[rows], indices=rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}/{epochs}  loss {loss.item():.4f}")
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, default=64, help="code length (default 64)")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the training set (default 3)")
    parser.add_argument("--kind", default="ivf", help="of the FAISS index: flat, ivf, hnsw, multihash")
    parser.add_argument("--milvus", metavar="URI", help="use this Milvus server or .db file, not FAISS")
    parser.add_argument(
        "--rescore",
        type=int,
        default=1,
        help="rank 10 times so many codes by the values of the query, not its bits (default 1: do not)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same codes (default 0)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the results (default out)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    queries, items = load_images(args.seed)
    model = train(args.bits, items, args.epochs)
    query, database = (
        encode(model, DataLoader(part, batch_size=256), progress=False) for part in (queries, items)
    )

    # The index refuses codes of another model, also after it was saved and loaded.
    model_id = weights_sha256(model)
    if args.milvus:
        index = MilvusIndex(args.milvus, f"digits_{model_id[:8]}", args.bits, model_id=model_id)
    else:
        index = FaissIndex(args.bits, args.kind, model_id=model_id)
    index.add(database)
    index.save(args.out / "index")
    index = type(index).load(args.out / "index", model_id=model_id)
    print(f"indexed {len(index)} codes: {index}")

    start = time.perf_counter()
    distances, ids = index.search(query, top_k=10)
    seconds = time.perf_counter() - start
    exact, _ = hamming_topk(query, database, 10)
    labels = torch.as_tensor(load_digits().target)
    right = labels[ids.clamp(min=0)] == query.labels[:, None]
    print(f"searched {len(query)} queries in {1000 * seconds:.1f} ms")
    print(f"recall@10 by distance {(distances <= exact[:, -1:]).float().mean():.4f}")
    print(f"of the 10 nearest images {right.float().mean():.4f} show the digit of the query")
    if args.rescore > 1:
        with torch.inference_mode():
            values = model.eval()(queries.tensors[0])  # before their signs are taken
        _, ids = index.search(values, top_k=10, rescore=args.rescore)
        right = labels[ids.clamp(min=0)] == query.labels[:, None]
        print(f"with rescore={args.rescore} {right.float().mean():.4f} do")
    limits, _, _ = index.range_search(query, radius=2)
    print(f"within radius 2 of a query lie {limits[-1].item() / len(query):.1f} images on average")

    database.save(args.out / "database.safetensors")
    assert len(HashCodes.load(args.out / "database.safetensors")) == len(index)
    print(f"wrote {args.out / 'index'} and {args.out / 'database.safetensors'}")


if __name__ == "__main__":
    main()
