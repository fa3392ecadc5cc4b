"""HybridHash learns to retrieve scanned digits: images in, binary codes out, mAP up, a picture to look at.

The data are the 1,797 digits that ship with scikit-learn. 300 of them are the queries; the other 1,497 are
the training set and the database, so no query is in the database. Run it with ``--help`` for the options.
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
from hybridhash.eval import mean_average_precision, plot_retrieval_grid
from hybridhash.losses import CodeBank, WMLLoss

NUM_QUERIES = 300


def load_images(seed):
    """Return queries and database as sets of images (1, 32, 32) in [-1, 1], labels and row numbers."""
    digits = load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    images = F.interpolate(images, size=(32, 32), mode="bilinear")
    labels = torch.as_tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    parts = order[:NUM_QUERIES], order[NUM_QUERIES:]
    return [TensorDataset(images[rows], labels[rows], torch.arange(len(rows))) for rows in parts]


def train(model, dataset, epochs, device):
    """Train in a plain loop, comparing each batch with the codes of the whole training set."""
    loader = DataLoader(dataset, batch_size=64, shuffle=True, drop_last=True)
    loss_fn = WMLLoss(bank=CodeBank(num_samples=len(dataset), bits=model.bits)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=epochs * len(loader))
    model.train()
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        for images, labels, indices in loader:
            codes = model(images.to(device))
            loss = loss_fn(codes, labels.to(device), indices=indices.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item()
        speed = len(loader) * loader.batch_size / (time.perf_counter() - start)
        print(f"epoch {epoch + 1:2d}/{epochs}  loss {total / len(loader):.4f}  {speed:.0f} images/s")


def draw(path, query, queries, database, items):
    """Draw queries (left) and their nearest images, right ones framed green, wrong ones red."""
    hardest = mean_average_precision(query, database, aggregation=None).argsort()[:3]
    rows = torch.cat([torch.arange(5), hardest])
    _, nearest = hamming_topk(query[rows], database, top_k=10)
    right = database.labels[nearest] == query.labels[rows, None]
    pixels = [(1 - part.tensors[0]) / 2 for part in (queries, items)]  # dark ink on white paper
    titles = [""] * 5 + ["hardest"] * 3
    plot_retrieval_grid(pixels[0][rows], pixels[1], nearest, right, query_titles=titles).savefig(
        path, dpi=100
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, default=16, help="code length (default 16)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training set (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same result (default 0)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default cpu)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the results (default out)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # as fast for a network this small, and the same result on any number of cores
    queries, items = load_images(args.seed)
    model = timm.create_model(
        "hybridhash_16",
        num_classes=args.bits,
        img_size=32,
        in_chans=1,
        embed_dims=(32, 64, 128),
        num_heads=(1, 2, 4),
        depths=(1, 1, 2),
        drop_path_rate=0.0,
    ).to(args.device)

    def hash_all():
        start = time.perf_counter()
        codes = [encode(model, DataLoader(part, batch_size=256), progress=False) for part in (queries, items)]
        return *codes, (len(queries) + len(items)) / (time.perf_counter() - start)

    query, database, _ = hash_all()
    print(f"{len(query)} queries, {len(database)} images in the database, {args.bits} bits")
    print(f"untrained mAP {mean_average_precision(query, database):.4f}")
    train(model, items, args.epochs, args.device)
    query, database, speed = hash_all()
    print(f"trained mAP {mean_average_precision(query, database):.4f}")
    pixels = items.tensors[0][0].numel()
    print(f"encoded at {speed:.0f} images/s, {database.packed.shape[1]} bytes per image ({pixels} pixels)")

    database.save(args.out / "database.safetensors")
    assert HashCodes.load(args.out / "database.safetensors").bits == args.bits
    draw(args.out / "retrieval.png", query, queries, database, items)
    print(f"wrote {args.out / 'database.safetensors'} and {args.out / 'retrieval.png'}")


if __name__ == "__main__":
    main()
