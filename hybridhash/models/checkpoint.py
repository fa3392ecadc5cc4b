"""Checkpoints: one mapping from every known layout to that of the network."""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isqrt
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from timm.models import adapt_input_conv, load_state_dict
from torch import Tensor
from torch.nn.init import dirac_

from hybridhash.models.blocks import Attention, merge_blocks, split_blocks

if TYPE_CHECKING:
    from hybridhash.models.hybridhash import HybridHash

__all__ = ["checkpoint_filter_fn", "load_checkpoint"]

_logger = logging.getLogger(__name__)

# Names of timm's NesT and of the HybridHash reference, and ours; applied in this order.
_RENAME = (
    (r"^(levels\.\d+)\.transformer_encoder\.", r"\1.blocks."),
    (r"^(levels\.\d+)\.pool\.conv_glo\.", r"\1.interaction.global_branch.reduce."),
    (r"^(levels\.\d+)\.pool\.conv\.", r"\1.interaction.local."),
    (r"^(levels\.\d+)\.pool\.norm\.", r"\1.interaction.norm."),
    (r"^(levels\.\d+)\.pool\.global_attention\.", r"\1.interaction.global_branch.attn."),
    (r"^hashlayer_train\.convS1\.", "head.interaction.local_row."),
    (r"^hashlayer_train\.convS2\.", "head.interaction.local_col."),
    (r"^hashlayer_train\.conv2\.", "head.fc."),
    (r"^hashlayer_train\.global_attention\.", "head.interaction.global_branch.attn."),
    (r"global_branch\.attn\.pos_embed_glo$", "global_branch.pos_embed"),
)
# In all three layouts, and once in a network.
_FIRST_WEIGHT = "patch_embed.proj.weight"
# Parts that HybridHash adds to NesT.
_NEW_IN_HYBRIDHASH = re.compile(r"\.global_branch\.|^head\.")


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: HybridHash) -> dict[str, Tensor]:
    """Map a checkpoint of any known layout to the state dict of a model.

    Three layouts are known:

    - that of the model itself;
    - timm's NesT (``nest_*_jx``): its classifier and surplus layers are dropped, and what it lacks (global
      branches, hash layer) is filled in so that ``forward_features`` computes what NesT computes, and the
      hash layer max-pools that map;
    - that of the public HybridHash reference.

    Position embeddings are resampled to the grid of the model. ``head.fc`` is passed on unchanged; timm drops
    it if the numbers of bits differ, and this function warns of it. Only a checkpoint with a tensor
    ``lengths``, the code lengths for which it was trained, is cut to the one of the model.

    Args:
        state_dict: Tensors of the checkpoint; they are not written to.
        model: Model to load into.

    Returns:
        A new state dict in the layout of the model.

    Raises:
        TypeError: The model is not a ``hybridhash_*``.
        ValueError: Keys are missing, left over or of the wrong shape, or the layout is none of the three. The
            message names the keys.
    """
    if not hasattr(model, "legacy_token_order"):
        raise TypeError(
            f"model must be a hybridhash_*, got {type(model).__name__}: for a hybridhash_* inside "
            "create_hash_model give model.backbone"
        )
    state_dict = _cut_to_length(_unwrapped(state_dict), model)
    if any(key.startswith("hashlayer_train.") for key in state_dict):
        mapped = _from_reference(state_dict, model)
    elif any(".transformer_encoder." in key for key in state_dict):
        mapped = _from_nest(state_dict, model)
    elif any(re.match(r"levels\.\d+\.blocks\.", key) for key in state_dict):
        mapped = dict(state_dict)
    else:
        some = ", ".join(sorted(map(str, state_dict))[:5]) or "no tensor at all"
        raise ValueError(
            f"this is neither HybridHash nor timm's NesT nor the HybridHash reference, it has: {some}"
        )
    _resample_pos_embeds(mapped, model)
    _check(mapped, model)
    bits = mapped["head.fc.weight"].shape[0] if "head.fc.weight" in mapped else model.num_classes
    if model.num_classes not in (0, bits):
        warnings.warn(
            f"the checkpoint's {bits}-bit hash layer does not fit a model of {model.num_classes} bits: "
            "its last linear map starts untrained",
            stacklevel=2,
        )
    return mapped


def _cut_to_length(state_dict: dict[str, Tensor], model: HybridHash) -> dict[str, Tensor]:
    """Cut a hash layer that was trained for several code lengths to the first bits, as many as the model has.

    The model gets to know the lengths. A ``num_classes`` other than that of its configuration is left alone,
    because timm drops the hash layer then.
    """
    if "lengths" not in state_dict:
        return state_dict
    rest = {key: value for key, value in state_dict.items() if key != "lengths"}
    bits = model.num_classes
    configured = (getattr(model, "pretrained_cfg", None) or {}).get("num_classes", bits)
    lengths = [int(length) for length in state_dict["lengths"] if length <= bits]
    if bits in lengths and configured == bits:
        rest.update((key, value[:bits]) for key, value in rest.items() if key.startswith("head.fc."))
        model.lengths = tuple(lengths) if len(lengths) > 1 else None
    return rest


def _unwrapped(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a network that a training script has wrapped in a dictionary or a module.

    The dictionary must have one state dict only, with one network in it. What stands beside the network in a
    training module, such as a loss with weights, is left out with a warning.
    """
    if not any(isinstance(value, Tensor) for value in checkpoint.values()):
        state_dicts = [value for value in checkpoint.values() if _is_state_dict(value)]
        if len(state_dicts) == 1:
            checkpoint = state_dicts[0]
    prefixes = [key.removesuffix(_FIRST_WEIGHT) for key in checkpoint if key.endswith(_FIRST_WEIGHT)]
    if len(prefixes) != 1:
        return dict(checkpoint)
    prefix = prefixes[0]
    others = [key for key in checkpoint if not key.startswith(prefix)]
    if others:
        warnings.warn(
            f"only what is below {prefix} is loaded, left out are {', '.join(others[:5])}"
            + (f" and {len(others) - 5} more" if len(others) > 5 else ""),
            stacklevel=3,
        )
    return {key.removeprefix(prefix): value for key, value in checkpoint.items() if key.startswith(prefix)}


def _is_state_dict(value: object) -> bool:
    return isinstance(value, Mapping) and any(str(key).endswith(_FIRST_WEIGHT) for key in value)


def load_checkpoint(model: HybridHash, path: str | PathLike[str], *, use_ema: bool = True) -> None:
    """Load a checkpoint file of any layout that :func:`checkpoint_filter_fn` knows.

    This does for an existing model what ``create_model(..., pretrained_cfg_overlay=dict(file=path))`` does
    for a new one. The first convolution is adapted to the ``in_chans`` of the model. If the file has another
    code length, the last linear map keeps its weights and a warning says so.

    Args:
        model: Model to load into.
        path: A safetensors file, or a file of ``torch.save`` that holds tensors only: a state dict, or a
            dictionary that holds one, as training scripts write it. A prefix of all names, such as
            ``net.``, is removed.
        use_ema: Prefer averaged weights if the file has them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, is a pickle of more than tensors, or does not fit the model.

    Example:
        >>> import timm
        >>> import hybridhash
        >>> model = timm.create_model("hybridhash_tiny_16")
        >>> hybridhash.models.load_checkpoint(model, "no/such/file.safetensors")
        Traceback (most recent call last):
            ...
        FileNotFoundError: no checkpoint at no/such/file.safetensors
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        state_dict = load_state_dict(str(path), use_ema, device="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{path} is no intact safetensors file ({error}): download it again") from error
    except (UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{path} cannot be read as a file of tensors only; it is damaged, or a pickle that could run "
            "code. If you trust it, load it yourself and save its state dict with safetensors"
        ) from error
    mapped = checkpoint_filter_fn(state_dict, model)
    weight = mapped["patch_embed.proj.weight"]
    if weight.shape[1] != model.in_chans:
        if weight.shape[1] != 3:
            raise ValueError(
                f"{path} has weights for {weight.shape[1]} input channels, the model has {model.in_chans}: "
                "only weights for 3 can be adapted"
            )
        mapped["patch_embed.proj.weight"] = adapt_input_conv(model.in_chans, weight)
    # The last linear map keeps its weights if the file's does not fit.
    present = model.state_dict()
    for key in ("head.fc.weight", "head.fc.bias"):
        if key not in present:
            mapped.pop(key, None)
        elif key not in mapped or mapped[key].shape != present[key].shape:
            mapped[key] = present[key]
    model.load_state_dict(mapped)


def _rename(state_dict: dict[str, Tensor], model: HybridHash) -> dict[str, Tensor]:
    mapped = {}
    for key, value in state_dict.items():
        for pattern, name in _RENAME:
            key = re.sub(pattern, name, key)
        if key.endswith((".reduce.weight", "head.fc.weight")) and value.ndim == 4:
            value = value.flatten(1)  # a 1x1 convolution is a Linear
        if key.endswith(".attn.proj.weight"):
            num_heads = _num_heads(key, model)
            if value.ndim == 2 and value.shape[1] % num_heads == 0:  # else _check names it
                value = _merge_heads_naturally(value, num_heads)
        mapped[key] = value
    return mapped


def _num_heads(key: str, model: HybridHash) -> int:
    """Return the number of heads of the attention that a key belongs to, surplus layers included."""
    try:
        attention = model.get_submodule(_in_first_layer(key).removesuffix(".proj.weight"))
    except AttributeError:
        return 1  # the model has no such module: _check names it
    return attention.num_heads if isinstance(attention, Attention) else 1


def _in_first_layer(key: str) -> str:
    return re.sub(r"\.blocks\.\d+\.", ".blocks.0.", key)


def _merge_heads_naturally(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder the input columns of NesT's output projection from (channel, head) to (head, channel)."""
    out_dim, in_dim = weight.shape
    return weight.reshape(out_dim, in_dim // num_heads, num_heads).transpose(1, 2).reshape(out_dim, in_dim)


def _from_reference(state_dict: dict[str, Tensor], model: HybridHash) -> dict[str, Tensor]:
    # FcLayer is created but never used by the reference.
    mapped = _rename({k: v for k, v in state_dict.items() if not k.startswith("FcLayer.")}, model)
    if not model.legacy_token_order:
        warnings.warn(
            "this checkpoint has the layout of the public HybridHash reference, which mixes channels and "
            "positions of the block tokens; weights that were trained there give their own codes only with "
            "create_model(..., legacy_token_order=True, pad_type='')",
            stacklevel=2,
        )
    return mapped


def _from_nest(state_dict: dict[str, Tensor], model: HybridHash) -> dict[str, Tensor]:
    mapped = _rename({k: v for k, v in state_dict.items() if not k.startswith("head.")}, model)
    expected = model.state_dict()
    surplus = [key for key in mapped if key not in expected and _in_first_layer(key) in expected]
    if surplus:
        layers = sorted({key.split(".attn.")[0] for key in surplus if ".attn.qkv.weight" in key})
        _logger.info("NesT's surplus layers are dropped: %s", ", ".join(layers))
        _warn_if_most_are_dropped(layers, model)
    for key in surplus:
        del mapped[key]
    for key, value in expected.items():
        if key not in mapped and _NEW_IN_HYBRIDHASH.search(key):
            mapped[key] = _start_of(key, value)
    if model.num_classes > 0:
        warnings.warn(
            "the weights are NesT's backbone: the hash layer is untrained, so train the model (see "
            "hybridhash.losses) before its codes are used for retrieval",
            stacklevel=2,
        )
    return mapped


def _start_of(key: str, value: Tensor) -> Tensor:
    """Return the first weights of a part that NesT lacks, given those of the model."""
    if ".global_branch.attn.proj." in key:
        # Silences the branch until it is trained; the maps before it start at random, so that every one of
        # them gets a gradient.
        return torch.zeros_like(value)
    if key.endswith((".local_row.weight", ".local_col.weight")):
        # The hash layer passes NesT's map on to its max-pooling, whatever the seed.
        return dirac_(torch.empty_like(value))
    return value.clone()


def _warn_if_most_are_dropped(layers: Sequence[str], model: HybridHash) -> None:
    """Warn if a stage keeps fewer than half of the file's layers, which are then of a larger NesT."""
    dropped = Counter(layer.split(".blocks.")[0] for layer in layers)
    for level, surplus in dropped.items():
        kept = len(list(model.get_submodule(f"{level}.blocks").children()))
        if kept < surplus:
            warnings.warn(
                f"only {kept} of the file's {kept + surplus} layers of {level} fit into the model: "
                "give depths, or the file of a smaller NesT",
                stacklevel=4,
            )


def _resample_pos_embeds(mapped: dict[str, Tensor], model: HybridHash) -> None:
    """Resample position embeddings of another image size or token grid bicubically, in place."""
    for key, target in model.state_dict().items():
        source = mapped.get(key)
        if not key.endswith("pos_embed") or source is None or source.shape == target.shape:
            continue
        if source.ndim != target.ndim or source.shape[-1] != target.shape[-1]:
            continue  # another architecture: _check names it
        # Both kinds as (1, blocks, positions, channels): block tokens are one block.
        shape = source.shape if source.ndim == 4 else (1, 1, *source.shape[1:])
        new_shape = target.shape if target.ndim == 4 else (1, 1, *target.shape[1:])
        grid = isqrt(shape[1])
        edge = isqrt(shape[2])
        new_grid = isqrt(new_shape[1])
        new_edge = isqrt(new_shape[2])
        if (grid * grid, edge * edge) != tuple(shape[1:3]):
            continue  # not square: _check names it
        # All blocks as one plane, resized, cut into blocks again.
        plane = merge_blocks(source.reshape(shape).float(), grid, edge).permute(0, 3, 1, 2)
        size = new_grid * new_edge
        plane = F.interpolate(plane, size=(size, size), mode="bicubic", align_corners=False)
        resized = split_blocks(plane.permute(0, 2, 3, 1), new_grid, new_edge)
        mapped[key] = resized.reshape(target.shape).to(source.dtype)
        _logger.info("%s resampled from %s to %s", key, tuple(source.shape), tuple(target.shape))


def _check(mapped: dict[str, Tensor], model: HybridHash) -> None:
    """Raise unless ``mapped`` has every key of the model, no other, and the right shapes.

    What timm adapts later, the first convolution and the last linear map, may differ.
    """
    expected = model.state_dict()
    adapted_later = {"head.fc.weight", "head.fc.bias"}
    missing = sorted(set(expected) - set(mapped) - adapted_later)
    unexpected = sorted(set(mapped) - set(expected) - adapted_later)
    wrong = sorted(
        f"{key} {tuple(mapped[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in set(expected) & set(mapped) - adapted_later
        if not _fits(key, mapped[key], expected[key])
    )
    problems = [
        f"{problem}: {', '.join(keys[:8])}" + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
        for problem, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong))
        if keys
    ]
    if problems:
        raise ValueError(
            "the checkpoint does not fit the model (check embed_dims, depths, patch_size): "
            + "; ".join(problems)
        )


def _fits(key: str, source: Tensor, target: Tensor) -> bool:
    if key == "patch_embed.proj.weight":  # the number of input channels is adapted by the loader
        return source.ndim == 4 and (source.shape[0], source.shape[2:]) == (target.shape[0], target.shape[2:])
    return source.shape == target.shape
