"""Image blocks, layers that attend inside them, and stages of layers (NesT, Zhang et al., AAAI 2022)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from timm.models import checkpoint_seq
from torch import Tensor, nn

__all__ = ["Attention", "Level", "TransformerLayer", "merge_blocks", "split_blocks"]


def split_blocks(x: Tensor, grid: int, edge: int) -> Tensor:
    """Cut a square map into ``grid x grid`` blocks, row by row ("aggregation").

    Args:
        x: ``(B, H, W, C)`` with ``H = W = grid * edge``.
        grid: blocks per side.
        edge: positions per side of a block.

    Returns:
        ``(B, grid**2, edge**2, C)``.

    Example:
        >>> import torch
        >>> split_blocks(torch.arange(16).reshape(1, 4, 4, 1), grid=2, edge=2)[0, :, :, 0]
        tensor([[ 0,  1,  4,  5],
                [ 2,  3,  6,  7],
                [ 8,  9, 12, 13],
                [10, 11, 14, 15]])
    """
    channels = x.shape[-1]
    x = x.reshape(-1, grid, edge, grid, edge, channels).transpose(2, 3)
    return x.reshape(-1, grid * grid, edge * edge, channels)


def merge_blocks(x: Tensor, grid: int, edge: int) -> Tensor:
    """Put blocks back into one map ("disaggregation"): the inverse of :func:`split_blocks`.

    Args:
        x: ``(B, grid**2, edge**2, C)``.
        grid: blocks per side.
        edge: positions per side of a block.

    Returns:
        ``(B, H, W, C)`` with ``H = W = grid * edge``.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 6, 6, 5)
        >>> torch.equal(merge_blocks(split_blocks(x, 2, 3), 2, 3), x)
        True
    """
    channels = x.shape[-1]
    x = x.reshape(-1, grid, grid, edge, edge, channels).transpose(2, 3)
    return x.reshape(-1, grid * edge, grid * edge, channels)


class Attention(nn.Module):
    """Multi-head self-attention over the positions of each block, heads merged in (head, channel) order.

    Args:
        dim: channels ``C``; ``num_heads`` divides it.
        num_heads: attention heads.
        qkv_bias: whether the query/key/value map has a bias.
        attn_drop: dropout rate of the attention weights.
        proj_drop: dropout rate of the output.

    Shape:
        ``(B, T, N, C)`` to ``(B, T, N, C)``: attention among the ``N`` positions, each block ``T`` by itself.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        blocks, positions, channels = x.shape[1], x.shape[2], x.shape[3]
        # One 4-D batch of blocks: with a fifth dimension the fused kernels refuse and the slow path runs.
        qkv = self.qkv(x).reshape(-1, positions, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop if self.training else 0.0)
        x = x.transpose(1, 2).reshape(-1, blocks, positions, channels)
        x = self.proj_drop(self.proj(x))
        return x


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer on blocks: ``x + attn(norm(x))``, then ``x + mlp(norm(x))``.

    Stochastic depth drops whole images, not single blocks.

    Shape:
        ``(B, T, N, C)`` to ``(B, T, N, C)``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        proj_drop: float,
        attn_drop: float,
        drop_path: float,
        norm_layer: Callable[..., nn.Module],
        act_layer: Callable[..., nn.Module],
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = norm_layer(dim, **dd)
        self.attn = Attention(dim, num_heads, qkv_bias, attn_drop, proj_drop, device=device, dtype=dtype)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=proj_drop, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x


class Level(nn.Module):
    """One stage: interaction with the stage before (none in the first), then attention inside blocks.

    Args:
        interaction: from the stage before's map to this one's; ``nn.Identity()`` in the first stage.
        dim: channels.
        grid: blocks per side.
        edge: positions per side of a block.
        layers: the transformer layers.

    Shape:
        NCHW to NCHW, ``H = W = grid * edge`` at the output.
    """

    def __init__(
        self,
        interaction: nn.Module,
        dim: int,
        grid: int,
        edge: int,
        layers: Sequence[nn.Module],
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.edge = edge
        self.grad_checkpointing = False
        self.interaction = interaction
        self.pos_embed = nn.Parameter(
            torch.zeros(1, grid * grid, edge * edge, dim, device=device, dtype=dtype)
        )
        self.blocks = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.interaction(x)
        x = split_blocks(x.permute(0, 2, 3, 1), self.grid, self.edge) + self.pos_embed
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        x = merge_blocks(x, self.grid, self.edge)
        return x.permute(0, 3, 1, 2)
