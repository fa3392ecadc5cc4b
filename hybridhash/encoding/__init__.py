"""Encode images: a loader in memory, or a data set of any size into shards on disk."""

from hybridhash.encoding.dataset import encode_dataset
from hybridhash.encoding.loader import encode, image_loader
from hybridhash.encoding.manifest import Failure, Manifest, Trial
from hybridhash.encoding.opening import open_codes, read_failures, verify
from hybridhash.encoding.reader import model_transform

__all__ = [
    "Failure",
    "Manifest",
    "Trial",
    "encode",
    "encode_dataset",
    "image_loader",
    "model_transform",
    "open_codes",
    "read_failures",
    "verify",
]
