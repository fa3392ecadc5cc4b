"""The HybridHash network; importing this registers its architectures with timm."""

from .checkpoint import checkpoint_filter_fn, load_checkpoint
from .hybridhash import HybridHash

__all__ = ["HybridHash", "checkpoint_filter_fn", "load_checkpoint"]
