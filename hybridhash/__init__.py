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

from . import models
from .codes import HashCodes, binarize, hamming_distance, hamming_topk, pack_codes, unpack_codes
from .encode import encode
from .encode_dataset import encode_dataset
from .models import create_hash_model, fit_hash_layer
from .shards import open_codes

if TYPE_CHECKING:
    from . import eval, hub, losses, search
    from .hub import load

__all__ = [
    "HashCodes",
    "binarize",
    "create_hash_model",
    "create_model",
    "encode",
    "encode_dataset",
    "eval",
    "fit_hash_layer",
    "hamming_distance",
    "hamming_topk",
    "hub",
    "load",
    "losses",
    "models",
    "open_codes",
    "pack_codes",
    "search",
    "unpack_codes",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the subpackages that registering models does not need when they are first asked for."""
    if name in ("eval", "hub", "losses", "search"):
        return import_module(f"{__name__}.{name}")
    if name == "load":
        return import_module(f"{__name__}.hub").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
