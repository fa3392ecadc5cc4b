"""A backbone without layers, so that a hash model takes ready embeddings in place of images.

It is registered with timm as ``embedding_input``: ``create_hash_model("embedding_input", 64, in_chans=768)``
maps embeddings ``(B, 768)`` to codes, and is fitted, trained, saved and loaded like every other hash model.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from hybridhash._checks import check_integer

__all__ = ["EmbeddingInput"]


class EmbeddingInput(nn.Module):
    """Hand embeddings on to the hash head, divided by their length if ``normalize`` is set.

    Args:
        in_chans: The width of the embeddings, timm's name for what one input position holds.
        normalize: Whether to divide each embedding by its Euclidean length, so that codes compare directions
            (cosine). A row of zeros stays zeros.
        num_classes: 0: there is no classifier.
        global_pool: Not used; timm passes it.

    Shape:
        ``(B, in_chans)``, or ``(B, in_chans, 1, 1)`` as timm describes the input, to ``(B, in_chans)``.

    Raises:
        TypeError: ``in_chans`` is not an integer.
        ValueError: A size is out of range, or the input is not ``(B, in_chans)``.

    Example:
        >>> import torch
        >>> EmbeddingInput(2, normalize=True)(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """

    def __init__(
        self, in_chans: int = 768, normalize: bool = False, num_classes: int = 0, global_pool: str = ""
    ) -> None:
        super().__init__()
        self.in_chans = self.num_features = check_integer("in_chans", in_chans, 1)
        check_integer("num_classes", num_classes, 0, 0, advice="the hash head is create_hash_model's")
        self.num_classes = 0
        self.normalize = normalize
        self.feature_info: list[dict[str, Any]] = []

    def forward_features(self, x: Tensor) -> Tensor:
        """Return embeddings ``(B, in_chans)``, normalised if the model does that."""
        if x.ndim not in (2, 4) or tuple(x.shape[1:]) not in ((self.in_chans,), (self.in_chans, 1, 1)):
            raise ValueError(
                f"the model takes embeddings (B, {self.in_chans}), got shape {tuple(x.shape)}: give those of "
                "the network whose embeddings it was fitted to"
            )
        x = x.flatten(1)
        return F.normalize(x, dim=1) if self.normalize else x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return ``x``."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings ``(B, in_chans)``, normalised if the model does that."""
        return self.forward_features(x)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Do nothing, as there is no classifier."""


default_cfgs = generate_default_cfgs({"embedding_input": {"input_size": (768, 1, 1), "num_classes": 0}})


@register_model
def embedding_input(pretrained: bool = False, **kwargs: Any) -> EmbeddingInput:
    """Take embeddings in place of images; it has no weights."""
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "device", "dtype"):  # of weights
        kwargs.pop(name, None)
    model: Any = EmbeddingInput(**kwargs)
    model.pretrained_cfg = model.default_cfg = {
        "architecture": "embedding_input",
        "input_size": (model.in_chans, 1, 1),
        "mean": (0.0,),
        "std": (1.0,),
        "num_classes": 0,
    }
    return model
