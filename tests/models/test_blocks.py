"""Layers against literal forms."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import create_pool2d
from torch import nn

from hybridhash.models.blocks import Attention, TransformerLayer, split_blocks
from hybridhash.models.interaction import GlobalBranch, halving_max_pool


def test_blocks_are_squares_of_the_map():
    x = torch.randn(2, 12, 12, 5)
    blocks = split_blocks(x, grid=4, edge=3)
    for row in range(4):
        for col in range(4):
            square = x[:, row * 3 : row * 3 + 3, col * 3 : col * 3 + 3]
            assert torch.equal(blocks[:, row * 4 + col], square.reshape(2, 9, 5))


def test_attention_is_softmax_attention_in_each_block():
    attention = Attention(12, 3)
    x = torch.randn(2, 4, 5, 12)
    out = attention(x)
    for image in range(2):
        for block in range(4):
            tokens = x[image, block]
            q, k, v = attention.qkv(tokens).split(12, dim=-1)
            heads = []
            for head in range(3):
                cols = slice(head * 4, head * 4 + 4)
                weights = (q[:, cols] @ k[:, cols].T / 2.0).softmax(dim=-1)
                heads.append(weights @ v[:, cols])
            expected = attention.proj(torch.cat(heads, dim=-1))
            torch.testing.assert_close(out[image, block], expected)


def test_stochastic_depth_drops_whole_images():
    layer = TransformerLayer(8, 2, 2.0, True, 0.0, 0.0, 0.5, nn.LayerNorm, nn.GELU).train()
    layer.drop_path2 = nn.Identity()
    layer.mlp = nn.Identity()
    layer.norm2 = nn.Identity()
    x = torch.randn(64, 4, 3, 8)
    attended = (layer(x) - 2 * x).abs().amax(dim=(2, 3)) > 1e-6  # (image, block)
    assert torch.equal(attended.all(dim=1), attended.any(dim=1))
    assert 0 < attended.all(dim=1).sum() < 64


@pytest.mark.parametrize("size", [2, 3, 4, 7, 8, 14])
def test_same_padding_equals_timms_dynamic_one(size):
    x = torch.randn(2, 3, size, size)
    expected = create_pool2d("max", kernel_size=3, stride=2, padding="same")(x)
    assert torch.equal(halving_max_pool(size, "same")(x), expected)


@pytest.mark.parametrize("size", [2, 3, 14])
def test_symmetric_padding_is_the_references(size):
    x = torch.randn(2, 3, size, size)
    assert torch.equal(halving_max_pool(size, "")(x), F.max_pool2d(x, 3, 2, 1))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("grid", [1, 2, 4])
def test_global_branch_is_the_papers(grid, legacy):
    """1x1 convolution, then pooling, attention with a position, bilinear upsampling."""
    branch = GlobalBranch(6, 8, size=3 * grid, num_heads=2, kernel=3, legacy_token_order=legacy)
    nn.init.normal_(branch.pos_embed)
    x = torch.randn(2, 6, 3 * grid, 3 * grid)
    reduced = F.conv2d(x, branch.reduce.weight[:, :, None, None])
    tokens = F.avg_pool2d(reduced, 3)
    tokens = tokens.reshape(2, grid**2, 8) if legacy else tokens.flatten(2).transpose(1, 2)
    tokens = branch.attn((tokens + branch.pos_embed)[:, None])[:, 0]
    plane = tokens.transpose(1, 2).reshape(2, 8, grid, grid)
    expected = F.interpolate(plane, scale_factor=3, mode="bilinear", align_corners=False)
    torch.testing.assert_close(branch(x).expand_as(expected), expected)
