"""Deep hashing for image retrieval: models, losses and exact evaluation for PyTorch and timm.

Importing the package registers its models, so that ``timm.create_model("hybridhash_64")`` finds them.

Example:
    >>> import timm
    >>> import hybridhash
    >>> timm.list_models("hybridhash_??")
    ['hybridhash_16', 'hybridhash_32', 'hybridhash_48', 'hybridhash_64']
"""

from timm import create_model

from . import eval, hub, losses, models
from .codes import HashCodes, binarize, hamming_distance, hamming_topk, pack_codes, unpack_codes
from .encode import encode
from .hub import load

__all__ = [
    "HashCodes",
    "binarize",
    "create_model",
    "encode",
    "eval",
    "hamming_distance",
    "hamming_topk",
    "hub",
    "load",
    "losses",
    "models",
    "pack_codes",
    "unpack_codes",
]
__version__ = "0.1.0"
