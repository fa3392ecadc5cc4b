"""Networks that hash images. Importing this registers ``hybridhash_*`` and ``hash_model`` with timm."""

from .checkpoint import checkpoint_filter_fn, load_checkpoint
from .data_driven import fit_hash_head, fit_hash_layer
from .hash_model import HashModel, create_hash_model
from .heads import create_head, list_heads
from .hybridhash import HybridHash
from .shallow import ITQCCA, KSH, SDH
from .unsupervised import itq_rotation

__all__ = [
    "ITQCCA",
    "KSH",
    "SDH",
    "HashModel",
    "HybridHash",
    "checkpoint_filter_fn",
    "create_hash_model",
    "create_head",
    "fit_hash_head",
    "fit_hash_layer",
    "itq_rotation",
    "list_heads",
    "load_checkpoint",
]
