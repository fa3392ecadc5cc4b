"""What the tests of search share: codes, and whether there is a Milvus Lite."""

from functools import cache
from importlib import metadata

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from hybridhash.losses import CodeBank, WMLLoss


def lite_version():
    try:
        return metadata.version("milvus-lite")
    except metadata.PackageNotFoundError:
        return None


needs_lite = pytest.mark.skipif(lite_version() != "2.5.1", reason="needs milvus-lite==2.5.1")


def random_codes(rows, bits=24, seed=0):
    """Real-valued codes ``(rows, bits)``; they say nothing about approximate search."""
    return torch.randn(rows, bits, generator=torch.Generator().manual_seed(seed))


@cache
def trained_codes(bits=64, epochs=2):
    """Real-valued codes of 300 queries and 5,988 database items: digits, the latter shifted four ways."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32) / 16
    labels = torch.as_tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    query, items = images[order[:300]], images[order[300:]]
    shifted = [items.roll(shift, dims=dim) for shift, dim in ((0, 1), (1, 1), (-1, 2), (1, 2))]
    database, targets = torch.cat(shifted), labels[order[300:]].repeat(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, bits), nn.Tanh())
    loss_fn = WMLLoss(bank=CodeBank(num_samples=len(database), bits=bits))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for indices in torch.randperm(len(database)).split(128):
            loss = loss_fn(model(database[indices]), targets[indices], indices=indices)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return model(query), model(database)


def recall(distances, exact):
    """Share of results that are as near as the exact ones: items at equal distances are equally right."""
    return (distances <= exact[:, -1:]).float().mean().item()
