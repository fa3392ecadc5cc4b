"""The interaction module between stages and the hash layer (HybridHash, He and Wei, ICMR 2024).

Both add a local branch (convolutions) and a global branch (attention among block tokens), then halve the map
by max-pooling. Maps have the shape NCHW and lie channels-last in memory, so that no module copies them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import create_classifier
from torch import Tensor, nn

from hybridhash._checks import check_integer
from hybridhash._code_checks import MAX_BITS
from hybridhash.models.blocks import Attention

__all__ = ["GlobalBranch", "HashHead", "HashInteraction", "Interaction"]


class GlobalBranch(nn.Module):
    """Attention among block tokens: average-pool, reduce, attend, upsample bilinearly to the map.

    The reference applies its 1x1 convolution before pooling. Both are linear, so here the few pooled tokens
    are mapped instead.

    Args:
        in_dim: Channels of the input map.
        dim: Channels of the output map. If they differ, tokens go through a linear map without bias.
        size: Positions per side of the map.
        num_heads: Attention heads; divides ``dim``.
        kernel: Positions per side that one token averages; divides ``size``.
        legacy_token_order: Read the channels-first memory of the tokens as if it were positions-first, as the
            public reference does. Only right for weights that were trained this way.

    Shape:
        ``(B, in_dim, size, size)`` to ``(B, dim, size, size)``; to ``(B, dim, 1, 1)``, to be broadcast, if
        there is a single token.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        size: int,
        num_heads: int,
        kernel: int,
        legacy_token_order: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.grid = size // kernel
        self.kernel = kernel
        self.legacy_token_order = legacy_token_order
        self.reduce: nn.Module = nn.Identity()
        if in_dim != dim:
            self.reduce = nn.Linear(in_dim, dim, bias=False, device=device, dtype=dtype)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2, dim, device=device, dtype=dtype))
        self.attn = Attention(dim, num_heads, qkv_bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        # One token per block: (B, tokens, dim).
        x = F.avg_pool2d(x, self.kernel)
        x = self.reduce(x.flatten(2).transpose(1, 2))
        tokens = x.shape[1]
        channels = x.shape[2]
        if self.legacy_token_order:
            x = x.transpose(1, 2).reshape(-1, tokens, channels)
        # Attention takes blocks of positions; here all tokens of an image are one block.
        x = self.attn((x + self.pos_embed).unsqueeze(1)).squeeze(1)
        # Back to a map; a single token is broadcast by whoever adds it.
        x = x.reshape(-1, self.grid, self.grid, channels).permute(0, 3, 1, 2)
        if self.grid > 1:
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        return x


def halving_max_pool(size: int, pad_type: str) -> nn.MaxPool2d:
    """Return 3x3 max-pooling of stride 2 from ``size`` to ``ceil(size / 2)`` positions per side.

    Args:
        size: Positions per side of the map.
        pad_type: ``"same"`` pads as TensorFlow does, which the NesT weights expect: one row and column at the
            end of an even map, one on either side of an odd one. ``""`` pads both sides.
    """
    if pad_type == "":
        return nn.MaxPool2d(3, 2, padding=1)
    # ceil_mode lets the last window reach over the end of an even map: a one-sided pad without a copy.
    return nn.MaxPool2d(3, 2, padding=size % 2, ceil_mode=True)


class Interaction(nn.Module):
    """Interaction module between two stages: ``maxpool(norm(conv3x3(x) + global_branch(x)))``.

    Args:
        in_dim: Channels of the stage before.
        dim: Channels of the stage after.
        size: Positions per side of the input map.
        norm_layer: Normalisation over channels.
        num_heads: Attention heads of the global branch, see :class:`GlobalBranch`.
        kernel: Positions per side of a block token, see :class:`GlobalBranch`.
        legacy_token_order: See :class:`GlobalBranch`.
        pad_type: See :func:`halving_max_pool`.

    Shape:
        ``(B, in_dim, size, size)`` to ``(B, dim, size / 2, size / 2)``.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        size: int,
        norm_layer: Callable[..., nn.Module],
        num_heads: int,
        kernel: int,
        legacy_token_order: bool,
        pad_type: str,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.local = nn.Conv2d(in_dim, dim, 3, padding=1, **dd)
        self.global_branch = GlobalBranch(in_dim, dim, size, num_heads, kernel, legacy_token_order, **dd)
        self.norm = norm_layer(dim, **dd)
        self.pool = halving_max_pool(size, pad_type)

    def forward(self, x: Tensor) -> Tensor:
        x = self.local(x) + self.global_branch(x)
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.pool(x)
        return x


class HashInteraction(nn.Module):
    """First half of the hash layer: ``maxpool(conv3x1(conv1x3(x)) + global_branch(x))``.

    Args:
        dim: Channels.
        size: Positions per side of the map.
        num_heads: Attention heads of the global branch, see :class:`GlobalBranch`.
        kernel: Positions per side of a block token, see :class:`GlobalBranch`.
        legacy_token_order: See :class:`GlobalBranch`.
        pad_type: See :func:`halving_max_pool`.

    Shape:
        ``(B, dim, size, size)`` to ``(B, dim, ceil(size / 2), ceil(size / 2))``.
    """

    def __init__(
        self,
        dim: int,
        size: int,
        num_heads: int,
        kernel: int,
        legacy_token_order: bool,
        pad_type: str,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.local_row = nn.Conv2d(dim, dim, (1, 3), padding=(0, 1), **dd)
        self.local_col = nn.Conv2d(dim, dim, (3, 1), padding=(1, 0), **dd)
        self.global_branch = GlobalBranch(dim, dim, size, num_heads, kernel, legacy_token_order, **dd)
        self.pool = halving_max_pool(size, pad_type)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.local_col(self.local_row(x)) + self.global_branch(x))


class HashHead(nn.Module):
    """Map the last features to real-valued codes: interaction, global pooling, linear map, tanh.

    Args:
        interaction: First half of the hash layer, from map to map; ``nn.Identity()`` for a plain head.
        in_features: Channels of the map.
        num_classes: Code length in bits; 0 gives the pooled embedding, without tanh.
        pool_type: timm's name of the global pooling; ``""`` returns the feature map untouched.
        drop_rate: Dropout rate of the pooled embedding.

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
        """Replace the pooling and the last linear map; the interaction keeps its weights."""
        check_integer(
            "num_classes", num_classes, 0, MAX_BITS, advice="it is the code length in bits, 0 for embeddings"
        )
        self.num_classes = num_classes
        self.pool_type = pool_type
        # timm refuses a classifier without pooling before it; such a head may exist, it only cannot be run.
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
