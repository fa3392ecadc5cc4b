"""The interaction module between stages and the hash layer (HybridHash, He and Wei, ICMR 2024).

Both add a local branch (convolutions) and a global branch (attention among block tokens), then halve the map
by max-pooling. Maps are NCHW in shape and channels-last in memory, so that no module copies on the way.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import create_classifier
from torch import Tensor, nn

from hybridhash.models.blocks import Attention

__all__ = ["GlobalBranch", "HashHead", "HashInteraction", "Interaction"]


class GlobalBranch(nn.Module):
    """Attention among block tokens: average-pool, reduce, attend, spread bilinearly over the map again.

    The reference pools after its 1x1 convolution; both are linear, so here the pooled tokens are mapped.

    Args:
        in_dim: channels of the input map.
        dim: channels of the output map; where they differ from ``in_dim``, a bias-free linear map leads over.
        num_heads: attention heads; divides ``dim``.
        grid: tokens per side of the map.
        kernel: positions per side that one token averages.
        legacy_token_order: read the channels-first memory of the tokens as if it were positions-first, as the
            public reference does. Only right for weights that were trained so.

    Shape:
        ``(B, in_dim, H, H)`` to ``(B, dim, H, H)`` with ``H = grid * kernel``; to ``(B, dim, 1, 1)``, to be
        broadcast, where there is a single token.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        num_heads: int,
        grid: int,
        kernel: int,
        legacy_token_order: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.kernel = kernel
        self.legacy_token_order = legacy_token_order
        self.reduce = (
            nn.Linear(in_dim, dim, bias=False, device=device, dtype=dtype) if in_dim != dim else nn.Identity()
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, grid * grid, dim, device=device, dtype=dtype))
        self.attn = Attention(dim, num_heads, qkv_bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, self.kernel)
        x = self.reduce(x.flatten(2).transpose(1, 2))
        positions, channels = x.shape[1], x.shape[2]
        if self.legacy_token_order:
            x = x.transpose(1, 2).reshape(-1, positions, channels)
        x = self.attn((x + self.pos_embed).unsqueeze(1)).squeeze(1)
        x = x.reshape(-1, self.grid, self.grid, channels).permute(0, 3, 1, 2)
        if self.grid > 1:
            size = self.grid * self.kernel
            x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
        return x


def halving_max_pool(size: int, pad_type: str) -> nn.MaxPool2d:
    """3x3 max-pooling of stride 2 from ``size`` to ``ceil(size / 2)``.

    Args:
        size: positions per side of the map.
        pad_type: ``"same"`` pads as TensorFlow does (what the NesT weights expect): one row and column at the
            end of an even map, one on either side of an odd one. ``""`` pads both sides.
    """
    # ceil_mode lets the last window hang over the end of an even map: a one-sided pad without a copy.
    return nn.MaxPool2d(3, 2, padding=size % 2 if pad_type == "same" else 1, ceil_mode=pad_type == "same")


class Interaction(nn.Module):
    """Interaction module between two stages: ``maxpool(norm(conv3x3(x) + global_branch(x)))``.

    Args:
        in_dim: channels of the stage before.
        dim: channels of the stage after.
        global_branch: the branch of block tokens from ``in_dim`` to ``dim``.
        size: positions per side of the input map.
        norm_layer: normalisation over channels.
        pad_type: see :func:`halving_max_pool`.

    Shape:
        ``(B, in_dim, size, size)`` to ``(B, dim, size / 2, size / 2)``.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        global_branch: GlobalBranch,
        size: int,
        norm_layer: Callable[..., nn.Module],
        pad_type: str,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.local = nn.Conv2d(in_dim, dim, 3, padding=1, device=device, dtype=dtype)
        self.global_branch = global_branch
        self.norm = norm_layer(dim, device=device, dtype=dtype)
        self.pool = halving_max_pool(size, pad_type)

    def forward(self, x: Tensor) -> Tensor:
        x = self.local(x) + self.global_branch(x)
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.pool(x)
        return x


class HashInteraction(nn.Module):
    """First half of the hash layer: ``maxpool(conv3x1(conv1x3(x)) + global_branch(x))``.

    Args:
        dim: channels.
        global_branch: the branch of block tokens from ``dim`` to ``dim``.
        size: positions per side of the map.
        pad_type: see :func:`halving_max_pool`.

    Shape:
        ``(B, dim, size, size)`` to ``(B, dim, ceil(size / 2), ceil(size / 2))``.
    """

    def __init__(
        self,
        dim: int,
        global_branch: GlobalBranch,
        size: int,
        pad_type: str,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.local_row = nn.Conv2d(dim, dim, (1, 3), padding=(0, 1), device=device, dtype=dtype)
        self.local_col = nn.Conv2d(dim, dim, (3, 1), padding=(1, 0), device=device, dtype=dtype)
        self.global_branch = global_branch
        self.pool = halving_max_pool(size, pad_type)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.local_col(self.local_row(x)) + self.global_branch(x))


class HashHead(nn.Module):
    """From the feature map to real-valued codes: interaction, global pooling, Linear, tanh.

    Args:
        interaction: the first half, a map to a map; ``nn.Identity()`` for a plain head.
        in_features: channels of the map.
        num_classes: code length in bits; 0 gives the pooled embedding, without tanh.
        pool_type: timm's name of the global pooling; ``""`` hands the feature map on untouched.
        drop_rate: dropout rate of the pooled embedding.

    Shape:
        ``(B, C, H, W)`` to ``(B, num_classes)`` in (-1, 1); with 0 bits to ``(B, C)``, with ``""`` unchanged.
    """

    def __init__(
        self,
        interaction: nn.Module,
        in_features: int,
        num_classes: int,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.interaction = interaction
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, pool_type, device=device, dtype=dtype)

    def reset(self, num_classes: int, pool_type: str, device: Any = None, dtype: Any = None) -> None:
        """Replace pooling and last linear map; the interaction keeps its weights."""
        if num_classes < 0:
            raise ValueError(f"num_classes is the code length in bits and must be >= 0, got {num_classes}")
        self.num_classes = num_classes
        self.pool_type = pool_type
        # timm refuses a classifier behind no pooling; such a head may exist, it only cannot be run.
        self.global_pool, fc = create_classifier(
            self.in_features, num_classes if pool_type else 0, pool_type=pool_type, device=device, dtype=dtype
        )
        if num_classes > 0 and not pool_type:
            fc = nn.Linear(self.in_features, num_classes, device=device, dtype=dtype)
        self.fc = fc
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.pool_type == "":
            if self.num_classes > 0 and not pre_logits:
                raise ValueError(
                    "global_pool='' leaves a feature map, which has no codes: "
                    "use reset_classifier(num_classes, 'avg'), or num_classes=0 for the map itself"
                )
            return x
        x = self.drop(self.global_pool(self.interaction(x)))
        if pre_logits or self.num_classes == 0:
            return x
        return torch.tanh(self.fc(x))
