"""Image sets as tensors, and the mAP of a model on them."""

from __future__ import annotations

import io
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hybridhash import encode
from hybridhash.eval import mean_average_precision

Split = tuple[Tensor, Tensor]


def digits(px: int = 32) -> tuple[Split, Split, Split]:
    """Training set, queries and database."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.as_tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    images = F.interpolate(images, size=(px, px), mode="bilinear")
    labels = torch.as_tensor(data.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    query, items = order[:300], order[300:]
    train = images[items], labels[items]
    return train, (images[query], labels[query]), train


def encoded_images(path: str, px: int = 32) -> tuple[Split, Split, Split]:
    """Training set, queries and database of an npz file of encoded images, as squares of ``px`` pixels."""
    import numpy as np
    from PIL import Image, ImageOps

    file = np.load(path)
    data, offsets, split = file["data"], file["offsets"], torch.as_tensor(file["split"])
    images = []
    for start, stop in pairwise(offsets):
        image = Image.open(io.BytesIO(data[start:stop].tobytes())).convert("RGB")
        pixels = np.array(ImageOps.fit(image, (px, px), Image.Resampling.BICUBIC))
        images.append(torch.as_tensor(pixels).permute(2, 0, 1))
    pixels_of_all = torch.stack(images).float() / 127.5 - 1
    labels = torch.as_tensor(file["labels"]).long()
    train, query, database = ((pixels_of_all[split == part], labels[split == part]) for part in range(3))
    return train, query, database


def score(model: nn.Module, query: Split, database: Split) -> float:
    """mAP over the whole database."""
    codes = [
        encode(model, DataLoader(TensorDataset(*part), batch_size=256), progress=False)
        for part in (query, database)
    ]
    return float(mean_average_precision(*codes))
