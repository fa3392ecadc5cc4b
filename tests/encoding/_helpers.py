"""A small model, images, and encodings of them."""

from __future__ import annotations

import os
from contextlib import contextmanager

import torch
from torch import nn
from torchvision.datasets import ImageFolder

from hybridhash import encode_dataset
from hybridhash.codes import pack_codes
from hybridhash.data import read_image

BITS = 12
IMAGES = torch.randn(23, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(23) % 4


class Net(nn.Module):
    """A small hash network; dropout and batch norm tell training from eval mode."""

    def __init__(self, bits=BITS, inputs=48):
        super().__init__()
        torch.manual_seed(0)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(inputs, bits)
        self.sizes: list[int] = []

    def forward(self, images):
        self.sizes.append(len(images))
        return torch.tanh(self.fc(self.drop(images).flatten(1)))


def probed(size):
    """The rows of a data set of 16 rows and more that a call reads to tell it from others."""
    return [0, *((size - 1) * part // 15 for part in range(16))]


def run(model, dataset, out, **options):
    options = {"batch_size": 4, "num_workers": 0, "shard_size": 10, "progress": False, **options}
    return encode_dataset(model, dataset, out, **options)


def expected(images=IMAGES):
    with torch.no_grad():
        return pack_codes(Net().eval()(images))


def contents(folder):
    """The bytes of all files of an encoding."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def image_folder(root):
    """Every file of the folder: torchvision alone would leave out GIFs."""
    return ImageFolder(str(root), loader=read_image, is_valid_file=os.path.isfile)


@contextmanager
def unprivileged():
    """Run as a user who may not write where the modes of files forbid it; root may write anywhere."""
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        yield
    finally:
        if root:
            os.seteuid(0)
