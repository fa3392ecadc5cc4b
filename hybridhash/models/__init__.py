"""Networks that hash images. Importing this registers ``hybridhash_*`` and ``hash_model`` with timm."""

from hybridhash._moved import moved
from hybridhash.models.batch_norm import reestimate_batch_norm
from hybridhash.models.checkpoint import checkpoint_filter_fn, load_checkpoint
from hybridhash.models.embedding_input import EmbeddingInput
from hybridhash.models.fit import fit_hash_head, fit_hash_layer
from hybridhash.models.hash_model import HashModel, create_hash_model
from hybridhash.models.heads import create_head, list_heads
from hybridhash.models.hybridhash import HybridHash, build_hybridhash

__all__ = [
    "EmbeddingInput",
    "HashModel",
    "HybridHash",
    "build_hybridhash",
    "checkpoint_filter_fn",
    "create_hash_model",
    "create_head",
    "fit_hash_head",
    "fit_hash_layer",
    "list_heads",
    "load_checkpoint",
    "reestimate_batch_norm",
]

__getattr__ = moved(
    __name__, {name: f"hybridhash.shallow.{name}" for name in ("ITQCCA", "KSH", "SDH", "itq_rotation")}
)
