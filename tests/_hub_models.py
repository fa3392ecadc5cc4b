"""Small models for the tests of saving and publishing, and what they all ask of them."""

import os
from pathlib import Path

import timm
import torch

import hybridhash  # noqa: F401

SMALL = {"img_size": 32, "embed_dims": (16, 32, 64), "num_heads": (1, 2, 4), "depths": (1, 1, 2)}
FILES = {"README.md", "config.json", "model.safetensors"}


def create(architecture="hybridhash_16", **kwargs):
    """The same weights on each call."""
    torch.manual_seed(0)
    return timm.create_model(architecture, **{**SMALL, **kwargs}).eval()


def images_for(model, dtype=torch.float32):
    """The same two images on each call."""
    size = model.model_args["img_size"]
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, model.model_args["in_chans"], size, size, generator=generator).to(dtype)


def content(folder):
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


class Malicious:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("executed",))
