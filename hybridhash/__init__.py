"""Deep hashing for image retrieval: models, losses and exact evaluation for PyTorch and timm.

Importing the package registers its models, so that ``timm.create_model("hybridhash_64")`` finds them.

Example:
    >>> import timm
    >>> import hybridhash
    >>> timm.list_models("hybridhash_??")
    ['hybridhash_16', 'hybridhash_32', 'hybridhash_48', 'hybridhash_64']
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from timm import create_model

from hybridhash import models
from hybridhash.asymmetric import asymmetric_topk
from hybridhash.codes import (
    HashCodes,
    binarize,
    hamming_distance,
    hamming_topk,
    pack_codes,
    unpack_codes,
)
from hybridhash.embeddings import hash_embeddings
from hybridhash.encoding import encode, encode_dataset, open_codes
from hybridhash.models import create_hash_model, fit_hash_layer, reestimate_batch_norm
from hybridhash.pairs import pairs_within, pairs_within_chunks

if TYPE_CHECKING:
    from hybridhash import data, duplicates, eval, export, hub, losses, search, shallow
    from hybridhash.binarization import binarization_report
    from hybridhash.duplicates import find_duplicates
    from hybridhash.hub import load

__all__ = [
    "HashCodes",
    "asymmetric_topk",
    "binarization_report",
    "binarize",
    "create_hash_model",
    "create_model",
    "data",
    "duplicates",
    "encode",
    "encode_dataset",
    "eval",
    "export",
    "find_duplicates",
    "fit_hash_layer",
    "hamming_distance",
    "hamming_topk",
    "hash_embeddings",
    "hub",
    "load",
    "losses",
    "models",
    "open_codes",
    "pack_codes",
    "pairs_within",
    "pairs_within_chunks",
    "reestimate_batch_norm",
    "search",
    "shallow",
    "unpack_codes",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what registering the models does not need when it is first asked for."""
    if name == "load":
        return import_module("hybridhash.hub").load
    if name == "binarization_report":
        return import_module("hybridhash.binarization").binarization_report
    if name == "find_duplicates":
        return import_module("hybridhash.duplicates").find_duplicates
    if name in ("data", "duplicates", "eval", "export", "hub", "losses", "search", "shallow"):
        return import_module(f"hybridhash.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
