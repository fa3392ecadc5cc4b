"""The HybridHash network and its timm entry points.

*HybridHash: Hybrid Convolutional and Self-Attention Deep Hashing for Image Retrieval*, Chao He and Hongxi
Wei, ICMR 2024 (arXiv 2405.07524): NesT (Zhang et al., AAAI 2022) whose block aggregation is replaced by an
interaction module, with a hash layer on top.

The file's name is the name of the timm module, and :func:`timm.models.build_model_with_cfg` looks for
``checkpoint_filter_fn`` and ``default_cfgs`` here.
"""

from collections.abc import Callable, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerNorm, PatchEmbed, _assert, calculate_drop_path_rates, trunc_normal_
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from hybridhash._checks import check_choice, check_integer
from hybridhash.models.blocks import Level, TransformerLayer
from hybridhash.models.checkpoint import checkpoint_filter_fn
from hybridhash.models.interaction import GlobalBranch, HashHead, HashInteraction, Interaction

NUM_LEVELS = 3


class HybridHash(nn.Module):
    """HybridHash: maps images to real-valued codes in (-1, 1), whose signs are the bits.

    timm's ``num_classes`` is the number of bits. With ``num_classes=0`` the model returns the pooled
    embedding ``(B, num_features)`` for re-ranking: real-valued and unbounded, not a code.

    Args:
        img_size: Pixels per side of the square input; a multiple of ``4 * patch_size``.
        in_chans: Input channels.
        patch_size: Pixels per side of a patch.
        embed_dims: Channels of the three stages.
        num_heads: Attention heads of the three stages; each divides its stage's channels.
        depths: Transformer layers of the three stages.
        num_classes: Code length in bits, 1 to 4,096, or 0 for the embedding.
        mlp_ratio: Hidden width of the MLPs divided by the channels.
        qkv_bias: Whether query, key and value maps have a bias.
        interaction_heads: Heads of the global branches; divides the channels of stages 2 and 3.
        tokens_per_block: Block tokens that the global branch forms from each image block: a square number
            whose root divides the edge of the block, ``img_size / patch_size / 4``.
        legacy_token_order: Reproduce the public reference, whose global branch mixes channels and positions.
        pad_type: How max-pooling pads: ``"same"`` as the published NesT weights expect, ``""`` as the
            reference does.
        drop_rate: Dropout rate of the pooled embedding.
        proj_drop_rate: Dropout rate inside MLPs and after attention.
        attn_drop_rate: Dropout rate of attention weights.
        drop_path_rate: Stochastic depth rate of the last layer; it rises linearly from 0.
        norm_layer: Normalisation layer; None is LayerNorm with eps 1e-6.
        act_layer: Activation of the MLPs; None is GELU.
        global_pool: timm's name of the global pooling (``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``),
            or ``""`` for none.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        ``(B, in_chans, img_size, img_size)`` to ``(B, num_classes)``, in the dtype of the input.

    Attributes:
        lengths: As in :class:`HashModel`: the code lengths that the codes may be cut to, or None.

    Raises:
        TypeError: A size is not an integer.
        ValueError: The configuration is impossible; the message names the nearest possible one.

    Example:
        >>> import torch
        >>> model = HybridHash(img_size=32, embed_dims=(16, 32, 64), num_heads=(1, 2, 4), depths=(1, 1, 1),
        ...                    num_classes=24).eval()
        >>> codes = model(torch.zeros(2, 3, 32, 32))
        >>> codes.shape, model.bits
        (torch.Size([2, 24]), 24)
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        patch_size: int = 4,
        embed_dims: Sequence[int] = (128, 256, 512),
        num_heads: Sequence[int] = (4, 8, 16),
        depths: Sequence[int] = (2, 2, 15),
        num_classes: int = 64,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        interaction_heads: int = 8,
        tokens_per_block: int = 1,
        legacy_token_order: bool = False,
        pad_type: str = "same",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.5,
        norm_layer: Callable[..., nn.Module] | None = None,
        act_layer: Callable[..., nn.Module] | None = None,
        global_pool: str = "avg",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        img_size = _square("img_size", img_size)
        patch_size = _square("patch_size", patch_size)
        check_integer("in_chans", in_chans, 1)
        check_choice("pad_type", pad_type, ("same", ""))
        _check_stages(embed_dims, num_heads, depths, interaction_heads)
        # Rebuilds the network. The arguments of the head are left out, because they can be reset.
        self.model_args: dict[str, Any] = {
            "img_size": img_size,
            "in_chans": in_chans,
            "patch_size": patch_size,
            "embed_dims": list(embed_dims),
            "num_heads": list(num_heads),
            "depths": list(depths),
            "mlp_ratio": mlp_ratio,
            "qkv_bias": qkv_bias,
            "interaction_heads": interaction_heads,
            "tokens_per_block": tokens_per_block,
            "legacy_token_order": legacy_token_order,
            "pad_type": pad_type,
        }
        if norm_layer is not None:
            self.model_args["norm_layer"] = norm_layer
        if act_layer is not None:
            self.model_args["act_layer"] = act_layer
        self.num_classes = num_classes
        self.lengths: tuple[int, ...] | None = None
        self.in_chans = in_chans
        self.img_size = img_size
        self.num_features = embed_dims[-1]
        self.legacy_token_order = legacy_token_order
        self.last_level = NUM_LEVELS - 1
        self.feature_info = [
            {"num_chs": dim, "reduction": patch_size * 2**i, "module": f"levels.{i}"}
            for i, dim in enumerate(embed_dims)
        ]

        dd = {"device": device, "dtype": dtype}
        norm_layer = norm_layer or LayerNorm
        edge = _block_edge(img_size, patch_size)
        interaction_args = {
            "num_heads": interaction_heads,
            "kernel": edge // _tokens_per_side(tokens_per_block, edge),
            "legacy_token_order": legacy_token_order,
            "pad_type": pad_type,
            **dd,
        }
        layer_args = {
            "mlp_ratio": mlp_ratio,
            "qkv_bias": qkv_bias,
            "proj_drop": proj_drop_rate,
            "attn_drop": attn_drop_rate,
            "norm_layer": norm_layer,
            "act_layer": act_layer or nn.GELU,
            **dd,
        }
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dims[0], flatten=False, **dd)
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        levels = []
        for i, dim in enumerate(embed_dims):
            grid = 2 ** (NUM_LEVELS - 1 - i)  # blocks per side: 4, 2, 1
            interaction: nn.Module = nn.Identity()
            if i > 0:
                size = 2 * grid * edge  # of the map before the interaction halves it
                interaction = Interaction(embed_dims[i - 1], dim, size, norm_layer, **interaction_args)
            layers = [
                TransformerLayer(dim, num_heads[i], drop_path=rate, **layer_args)
                for rate in drop_path_rates[i]
            ]
            levels.append(Level(interaction, dim, grid, edge, layers, **dd))
        self.levels = nn.Sequential(*levels)
        self.norm = norm_layer(self.num_features, **dd)
        interaction = HashInteraction(self.num_features, edge, **interaction_args)
        self.head = HashHead(interaction, self.num_features, num_classes, global_pool, drop_rate, **dd)
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()
        self.init_weights()

    @property
    def bits(self) -> int:
        """Code length in bits: timm's ``num_classes``; 0 if the model returns embeddings."""
        return self.num_classes

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Initialise every parameter, also after ``to_empty`` of a model made on the meta device."""
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if isinstance(module, nn.Conv2d) and name.endswith((".local_row", ".local_col")):
                    _add_identity(module)
            elif isinstance(module, (Level, GlobalBranch)):
                trunc_normal_(module.pos_embed, std=0.02)
            elif hasattr(module, "reset_parameters"):
                module.reset_parameters()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of the position embeddings, which weight decay should leave alone."""
        return {name for name, _ in self.named_parameters() if name.endswith("pos_embed")}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return parameter groups for layer-wise learning rates, in timm's form."""
        layer = r"^levels\.(\d+)" if coarse else r"^levels\.(\d+)\.blocks\.(\d+)"
        return {
            "stem": r"^patch_embed",
            "blocks": [
                (layer, None),
                (r"^levels\.(\d+)\.(?:interaction|pos_embed)", (0,)),
                (r"^norm", (99999,)),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the transformer layers in the backward pass instead of keeping their activations."""
        for level in self.modules():
            if isinstance(level, Level):
                level.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last linear map, ``head.fc``, from the embedding to the bits."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear map by a new one.

        Args:
            num_classes: New code length in bits, 0 for the pooled embedding.
            global_pool: timm's name of the pooling, None to keep it; ``""`` with 0 bits gives the map.
        """
        weight = self.patch_embed.proj.weight
        pool_type = self.head.pool_type if global_pool is None else global_pool
        self.head.reset(num_classes, pool_type, device=weight.device, dtype=weight.dtype)
        self.num_classes = num_classes
        self.lengths = None
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the feature maps of the stages.

        Args:
            x: Images ``(B, in_chans, img_size, img_size)``.
            indices: The last n stages if an int, these stages if a list, all if None.
            norm: Apply the final norm to the last stage's map.
            stop_early: Do not run the stages after the last requested one.
            output_fmt: Must be ``"NCHW"``.
            intermediates_only: Return the maps only.

        Returns:
            The maps, each ``(B, C_i, H_i, H_i)``. Without ``intermediates_only`` a pair: first
            ``forward_features(x)`` (with ``stop_early`` the last map that was computed), then the maps.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got '{output_fmt}'")
        intermediates = []
        take_indices, max_index = feature_take_indices(len(self.levels), indices)
        last = self.last_level
        x = self._embed(x)
        levels = self.levels
        if stop_early and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            levels = self.levels[: max_index + 1]  # TorchScript cannot slice modules
        for index, level in enumerate(levels):
            x = level(x)
            if index in take_indices:
                intermediates.append(self._norm_channels(x) if norm and index == last else x)
        if intermediates_only:
            return intermediates
        if index == last:
            x = self._norm_channels(x)
        return x, intermediates

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove what the given stages do not need, and return their absolute indices.

        The whole hash layer is removed, not only its last linear map.
        """
        take_indices, max_index = feature_take_indices(len(self.levels), indices)
        prune_end = max_index < len(self.levels) - 1
        if prune_norm or prune_end:
            self.norm = nn.Identity()
        self.levels = self.levels[: max_index + 1]
        if prune_end:
            self.num_features = self.feature_info[max_index]["num_chs"]
        if prune_head or prune_end:
            self.head.interaction = nn.Identity()
            self.head.in_features = self.num_features
            self.reset_classifier(0, "")
        return list(take_indices)

    def _embed(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2], x.shape[-1]
        advice = (
            f"got images of {height}x{width}, the model takes {self.img_size}x{self.img_size}: resize them, "
            "or build the model with create_model(..., img_size=...)"
        )
        _assert(height == self.img_size, advice)
        _assert(width == self.img_size, advice)
        return self.patch_embed(x)

    def _norm_channels(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_chans, img_size, img_size)`` to the last map ``(B, num_features, H, H)``."""
        x = self._embed(x)
        x = self.levels(x)
        return self._norm_channels(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features to codes ``(B, bits)``; with ``pre_logits`` to the embedding ``(B, C)``."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x)
        x = self.forward_head(x)
        return x


def _square(name: str, value: int | Sequence[int]) -> int:
    if isinstance(value, Sequence):
        if len(value) != 2 or value[0] != value[1]:
            raise ValueError(f"{name} must be square, got {tuple(value)}: give one number")
        value = value[0]
    return check_integer(name, value, 1)


def _block_edge(img_size: int, patch_size: int) -> int:
    """Return positions per side of a block, the same at every stage."""
    step = patch_size * 2 ** (NUM_LEVELS - 1)
    if img_size % step:
        below, above = img_size // step * step, (img_size // step + 1) * step
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"img_size must be a multiple of {step} for patch_size={patch_size}, got {img_size}: "
            f"the nearest possible is {nearest}"
        )
    return img_size // step


def _tokens_per_side(tokens_per_block: int, edge: int) -> int:
    possible = [side * side for side in range(1, edge + 1) if edge % side == 0]
    if tokens_per_block not in possible:
        raise ValueError(
            f"tokens_per_block must be one of {possible} for image blocks of {edge}x{edge} positions, "
            f"got {tokens_per_block}"
        )
    return isqrt(tokens_per_block)


def _check_stages(
    embed_dims: Sequence[int], num_heads: Sequence[int], depths: Sequence[int], interaction_heads: int
) -> None:
    for name, values in (("embed_dims", embed_dims), ("num_heads", num_heads), ("depths", depths)):
        if not isinstance(values, Sequence) or len(values) != NUM_LEVELS or min(values) < 1:
            raise ValueError(f"{name} needs {NUM_LEVELS} numbers >= 1, one for each stage, got {values}")
    heads_of = [("num_heads", dim, heads) for dim, heads in zip(embed_dims, num_heads, strict=True)]
    heads_of += [("interaction_heads", dim, interaction_heads) for dim in embed_dims[1:]]
    for name, dim, heads in heads_of:
        if heads < 1 or dim % heads:
            possible = [n for n in range(1, dim + 1) if dim % n == 0 and n <= 64]
            raise ValueError(f"{name}={heads} does not divide {dim} channels: possible are {possible}")


@torch.no_grad()
def _add_identity(conv: nn.Conv2d) -> None:
    """Add the identity, so that the map itself is a part of what comes out, beside the random mixture."""
    rows, cols = conv.kernel_size
    conv.weight[:, :, rows // 2, cols // 2].diagonal().add_(1.0)


_EVERY_CFG = {
    "fixed_input_size": True,
    "interpolation": "bicubic",
    "first_conv": "patch_embed.proj",
    "classifier": "head.fc",
    "license": "apache-2.0",
}


def _cfg(bits: int, nest: str) -> dict[str, Any]:
    return {
        **_EVERY_CFG,
        "hf_hub_id": f"timm/{nest}",
        # Without the name timm reports a Hub that is down as a missing pytorch_model.bin.
        "hf_hub_filename": "model.safetensors",
        "num_classes": bits,
        "input_size": (3, 224, 224),
        "pool_size": (14, 14),
        "crop_pct": 0.875,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
    }


# One file for three code lengths: its hash layer is cut to the first bits.
_NANO_WEIGHTS = Path(__file__).parent / "weights" / "hybridhash_nano.copies.safetensors"


def _nano_cfg(bits: int) -> dict[str, Any]:
    return {
        **_EVERY_CFG,
        "file": str(_NANO_WEIGHTS),
        "num_classes": bits,
        "input_size": (3, 64, 64),
        "pool_size": (4, 4),
        # The whole photo, squashed to the square: nothing of it is cut off.
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
    }


default_cfgs = generate_default_cfgs(
    {
        f"hybridhash{size}_{bits}.nest_goog_in1k": _cfg(bits, f"nest_{nest}_jx.goog_in1k")
        for size, nest in (("", "base"), ("_small", "small"), ("_tiny", "tiny"))
        for bits in (16, 32, 48, 64)
    }
    | {f"hybridhash_nano_{bits}.copies": _nano_cfg(bits) for bits in (64, 128, 256)}
)


def build_hybridhash(variant: str, pretrained: bool = False, **kwargs: Any) -> HybridHash:
    """Build a HybridHash for an entry point that is registered with timm.

    The code length is ``num_classes`` if it is given, else that of the configuration: of a saved model, or
    of the entry point in ``default_cfgs``.

    Args:
        variant: Name of the entry point. Its configuration comes from timm's registry.
        pretrained: Load the weights of the configuration.
        **kwargs: Arguments of :class:`HybridHash` and of :func:`timm.models.build_model_with_cfg`.

    Returns:
        The model, in training mode.

    Example:
        >>> build_hybridhash("hybridhash_16", num_classes=24, img_size=32, depths=(1, 1, 1)).bits
        24
    """
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    if overlay.get("num_classes") == -1:  # timm's train.py writes this to have the classifier replaced
        kwargs.setdefault("num_classes", get_pretrained_cfg(variant).num_classes)
    model: HybridHash = build_model_with_cfg(
        HybridHash,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2), "flatten_sequential": True},
        **kwargs,
    )
    return model


_base = {"embed_dims": (128, 256, 512), "num_heads": (4, 8, 16), "depths": (2, 2, 15)}
_small = {"embed_dims": (96, 192, 384), "num_heads": (3, 6, 12), "depths": (2, 2, 15)}
_tiny = {"embed_dims": (96, 192, 384), "num_heads": (3, 6, 12), "depths": (2, 2, 8)}
_nano = {
    "img_size": 64,
    "embed_dims": (32, 64, 128),
    "num_heads": (1, 2, 4),
    "depths": (1, 1, 2),
    "interaction_heads": 4,
    "drop_path_rate": 0.0,
}


@register_model
def hybridhash_16(pretrained: bool = False, **kwargs: Any) -> HybridHash:
    """Build HybridHash, 16 bits, 224 px."""
    return build_hybridhash("hybridhash_16", pretrained, **{**_base, **kwargs})


@register_model
def hybridhash_32(pretrained: bool = False, **kwargs: Any) -> HybridHash:
    """Build HybridHash, 32 bits, 224 px."""
    return build_hybridhash("hybridhash_32", pretrained, **{**_base, **kwargs})


@register_model
def hybridhash_48(pretrained: bool = False, **kwargs: Any) -> HybridHash:
    """Build HybridHash, 48 bits, 224 px."""
    return build_hybridhash("hybridhash_48", pretrained, **{**_base, **kwargs})


@register_model
def hybridhash_64(pretrained: bool = False, **kwargs: Any) -> HybridHash:
    """Build HybridHash, 64 bits, 224 px."""
    return build_hybridhash("hybridhash_64", pretrained, **{**_base, **kwargs})


@register_model
def hybridhash_small_16(pretrained: bool = False, **kwargs: Any) -> HybridHash:
    """Build HybridHash-S, 16 bits, 224 px."""
    return build_hybridhash("hybridhash_small_16", pretrained, **{**_small, **kwargs})


@register_model
def hybridhash_small_32(pretrained: bool = False, **kwargs: Any) -> HybridHash:
    """Build HybridHash-S, 32 bits, 224 px."""
    return build_hybridhash("hybridhash_small_32", pretrained, **{**_small, **kwargs})


@register_model
def hybridhash_small_48(pretrained: bool = False, **kwargs: Any) -> HybridHash:
    """Build HybridHash-S, 48 bits, 224 px."""
    return build_hybridhash("hybridhash_small_48", pretrained, **{**_small, **kwargs})


@register_model
def hybridhash_small_64(pretrained: bool = False, **kwargs: Any) -> HybridHash:
    """Build HybridHash-S, 64 bits, 224 px."""
    return build_hybridhash("hybridhash_small_64", pretrained, **{**_small, **kwargs})


@register_model
def hybridhash_tiny_16(pretrained: bool = False, **kwargs: Any) -> HybridHash:
    """Build HybridHash-T, 16 bits, 224 px."""
    return build_hybridhash("hybridhash_tiny_16", pretrained, **{**_tiny, **kwargs})


@register_model
def hybridhash_tiny_32(pretrained: bool = False, **kwargs: Any) -> HybridHash:
    """Build HybridHash-T, 32 bits, 224 px."""
    return build_hybridhash("hybridhash_tiny_32", pretrained, **{**_tiny, **kwargs})


@register_model
def hybridhash_tiny_48(pretrained: bool = False, **kwargs: Any) -> HybridHash:
    """Build HybridHash-T, 48 bits, 224 px."""
    return build_hybridhash("hybridhash_tiny_48", pretrained, **{**_tiny, **kwargs})


@register_model
def hybridhash_tiny_64(pretrained: bool = False, **kwargs: Any) -> HybridHash:
    """Build HybridHash-T, 64 bits, 224 px."""
    return build_hybridhash("hybridhash_tiny_64", pretrained, **{**_tiny, **kwargs})


@register_model
def hybridhash_nano_64(pretrained: bool = False, **kwargs: Any) -> HybridHash:
    """Build the network that finds copies of photos, 64 bits, 64 px."""
    return build_hybridhash("hybridhash_nano_64", pretrained, **{**_nano, **kwargs})


@register_model
def hybridhash_nano_128(pretrained: bool = False, **kwargs: Any) -> HybridHash:
    """Build the network that finds copies of photos, 128 bits, 64 px."""
    return build_hybridhash("hybridhash_nano_128", pretrained, **{**_nano, **kwargs})


@register_model
def hybridhash_nano_256(pretrained: bool = False, **kwargs: Any) -> HybridHash:
    """Build the network that finds copies of photos, 256 bits, 64 px."""
    return build_hybridhash("hybridhash_nano_256", pretrained, **{**_nano, **kwargs})
