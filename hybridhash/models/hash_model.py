"""A hash head on any timm backbone, with the interface of ``hybridhash_*``.

The architecture is registered with timm as ``hash_model``, so that what :mod:`hybridhash.hub` saves is an
ordinary timm repository: the name of the backbone and of the head are among the saved arguments.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from hybridhash._checks import check_integer
from hybridhash._code_checks import MAX_BITS
from hybridhash._inference import PREPROCESSING
from hybridhash.models.backbone import create_backbone
from hybridhash.models.heads import create_head, renamed_head

__all__ = ["HashModel", "create_hash_model"]

_INTERFACE = ("forward_features", "forward_head", "num_features")
# What timm's builder would keep for the network around the backbone.
_BUILDER_ARGUMENTS = {*inspect.signature(build_model_with_cfg).parameters, "features_only", "pruned"}


def create_hash_model(
    backbone: str | nn.Module,
    bits: int,
    *,
    head: str = "tanh",
    head_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    checkpoint_path: str | PathLike[str] | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    **backbone_kwargs: Any,
) -> HashModel:
    """Put a hash head on a timm backbone: images to real-valued codes, whose signs are the bits.

    Args:
        backbone: Name of a timm model, with or without tag. Or a module with timm's ``forward_features``,
            ``forward_head(x, pre_logits=True)`` and ``num_features``; :mod:`hybridhash.hub` cannot save a
            model made from a module, because it rebuilds models from names.
        bits: Code length, 1 to 4,096. It need not be a multiple of 8: codes are padded with zero bits to
            whole bytes, which :mod:`hybridhash.search` also does for FAISS and Milvus, whose own indexes take
            multiples of 8 only.
        head: One of :func:`hybridhash.models.list_heads`.
        head_args: Arguments of the head.
        pretrained: Load the backbone's weights from the Hub. The head starts untrained.
        checkpoint_path: Load the backbone's weights from this file instead, with or without a classifier.
        pretrained_cfg_overlay: Entries that replace those of the backbone's configuration in timm.
        cache_dir: Folder for downloads, by default that of huggingface_hub.
        **backbone_kwargs: Arguments of the backbone: ``img_size``, ``in_chans``, ``drop_path_rate`` ...

    Returns:
        The model, in training mode.

    Raises:
        TypeError: A module lacks timm's interface; ``pretrained`` or arguments are given with a module; the
            backbone or the head does not take an argument; ``bits`` is not an integer.
        ValueError: The backbone, its tag or the head is unknown; ``bits`` is below 1 or above
            4,096; or the weights do not fit the backbone.
        FileNotFoundError, PermissionError, ConnectionError, OSError: The weights cannot be had, as in
            :func:`hybridhash.load`.

    Example:
        >>> import torch
        >>> model = create_hash_model("resnet10t", bits=24, head="sign").eval()
        >>> model(torch.zeros(1, 3, 64, 64)).shape, model.bits, model.num_features
        (torch.Size([1, 24]), 24, 512)
    """
    bits = check_integer("bits", bits, 1, MAX_BITS, advice="a backbone without a head is timm.create_model")
    head = renamed_head(head)
    for name, value in (("head_args", head_args), ("pretrained_cfg_overlay", pretrained_cfg_overlay)):
        if not isinstance(value, Mapping | None):
            raise TypeError(f"{name} must be a dict, got {value!r}")
    if not isinstance(backbone, str | nn.Module):
        raise TypeError(f"backbone must be the name of a timm model or a module, got {backbone!r}")
    settings: dict[str, Any] = {"num_classes": bits, "head": head, "head_args": dict(head_args or {})}
    overlay = dict(pretrained_cfg_overlay or {})
    if checkpoint_path is not None:
        if not Path(checkpoint_path).is_file():
            raise FileNotFoundError(f"no checkpoint at {checkpoint_path}")
        # timm's own checkpoint_path refuses a file with a classifier.
        overlay["file"] = str(checkpoint_path)
        pretrained = True
    weights: dict[str, Any] = {}
    if overlay:
        weights["pretrained_cfg_overlay"] = overlay
    if cache_dir is not None:
        weights["cache_dir"] = cache_dir
    if isinstance(backbone, nn.Module):
        if pretrained or weights or backbone_kwargs:
            given = sorted(backbone_kwargs) or sorted(weights) or ["pretrained"]
            raise TypeError(
                f"backbone is a module already, so give {', '.join(given)} to what creates the module"
            )
        return HashModel(backbone, **settings)
    if ":" not in backbone and not timm.is_model(backbone.partition(".")[0]):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=3)
        raise ValueError(
            f"timm has no model {backbone!r}; nearest: {', '.join(near) or 'timm.list_models()'}"
        )
    eaten = sorted(_BUILDER_ARGUMENTS & backbone_kwargs.keys())
    if eaten:
        raise TypeError(
            f"{', '.join(eaten)} would not reach the backbone: give pretrained_cfg_overlay, or build the "
            "backbone with timm.create_model and give the module"
        )
    return hash_model(
        backbone=backbone,
        pretrained_backbone=pretrained,
        backbone_weights=weights,
        **settings,
        **backbone_kwargs,
    )


class HashModel(nn.Module):
    """A timm backbone with a hash head; :func:`create_hash_model` makes it.

    Args:
        backbone: Name of a timm model, or a module with its interface.
        num_classes: Code length in bits, 1 to 4,096, or 0 for the pooled embedding.
        head: Name of the head.
        head_args: Arguments of the head.
        pretrained_backbone: Load the backbone's weights from the Hub.
        backbone_weights: Arguments of ``timm.create_model`` that say where from.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
        **backbone_kwargs: Arguments of the backbone.

    Shape:
        ``(B, in_chans, H, W)`` to ``(B, num_classes)``, or to ``(B, head_hidden_size)`` with 0 bits.

    Attributes:
        lengths: The code lengths, ascending to ``bits``, at which codes cut to their first bits are meant to
            be good; None if only all bits are. :func:`fit_hash_layer` and :func:`hybridhash.hub.load` set it.
            Set it after a training with :class:`hybridhash.losses.NestedLoss`, and saving keeps it.

    Raises:
        TypeError: The backbone lacks timm's interface, or an argument is unknown.

    Example:
        >>> HashModel("resnet10t", num_classes=0).head
        Identity()
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet50",
        num_classes: int = 64,
        head: str = "tanh",
        head_args: Mapping[str, Any] | None = None,
        pretrained_backbone: bool = False,
        backbone_weights: Mapping[str, Any] | None = None,
        device: Any = None,
        dtype: Any = None,
        **backbone_kwargs: Any,
    ) -> None:
        super().__init__()
        head = "tanh" if head == "linear" else head  # its former name, in models that were saved with it
        if isinstance(backbone, str):
            factory = {"device": device, "dtype": dtype}  # None is not passed on: not every model takes them
            module, name, backbone_kwargs = create_backbone(
                backbone, pretrained_backbone, dict(backbone_weights or {}), backbone_kwargs, factory
            )
            self.model_args: dict[str, Any] = {
                "backbone": name,
                "head": head,
                "head_args": dict(head_args or {}),
                **backbone_kwargs,
            }
        else:
            module = backbone
        missing = [attribute for attribute in _INTERFACE if not hasattr(module, attribute)]
        if missing:
            raise TypeError(
                f"{type(module).__name__} has no {', '.join(missing)}: "
                "the backbone must be a model with timm's interface"
            )
        self.backbone = module
        self.head_name = head
        self.head_args = dict(head_args or {})
        self.num_features = int(module.num_features)
        self.in_chans = int(backbone_kwargs.get("in_chans", getattr(module, "in_chans", 3)))
        self.feature_info = getattr(module, "feature_info", [])
        self._make_head(num_classes, device, dtype)

    @property
    def bits(self) -> int:
        """Code length in bits: timm's ``num_classes``; 0 if the model returns embeddings."""
        return self.num_classes

    @property
    def head_hidden_size(self) -> int:
        """Width of the pooled embedding that the head sees."""
        return int(getattr(self.backbone, "head_hidden_size", self.num_features))

    def _make_head(self, num_classes: int, device: Any, dtype: Any) -> None:
        check_integer(
            "num_classes", num_classes, 0, MAX_BITS, advice="it is the code length in bits, 0 for embeddings"
        )
        self.num_classes = num_classes
        self.lengths: tuple[int, ...] | None = None
        self.head: nn.Module = nn.Identity()
        if num_classes > 0:
            self.head = create_head(
                self.head_name,
                self.head_hidden_size,
                num_classes,
                **self.head_args,
                device=device,
                dtype=dtype,
            )
        self.head.train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images to the backbone's features before pooling, in the shape that the backbone gives."""
        features: Tensor = self.backbone.forward_features(x)
        return features

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the backbone's feature maps; arguments and result as in the model of timm."""
        return self.backbone.forward_intermediates(
            x,
            indices=indices,
            norm=norm,
            stop_early=stop_early,
            output_fmt=output_fmt,
            intermediates_only=intermediates_only,
        )

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the given feature maps do not need, and return their absolute indices."""
        taken: list[int] = self.backbone.prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.reset_classifier(0)
        return taken

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features to codes ``(B, bits)``, or to ``(B, head_hidden_size)`` with ``pre_logits``."""
        x = self.backbone.forward_head(x, pre_logits=True)
        if x.ndim != 2:
            raise ValueError(
                f"the backbone gives {x.shape} where a pooled feature (B, C) is needed: "
                "build it with global_pool='avg'"
            )
        codes: Tensor = x if pre_logits else self.head(x)
        return codes

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_chans, H, W)`` to codes ``(B, bits)``, or with 0 bits to embeddings."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the last linear map of the head, or with 0 bits the identity that stands for the head."""
        fc: nn.Module = getattr(self.head, "fc", self.head)
        return fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one of the same kind.

        Args:
            num_classes: New code length in bits, 0 for the embedding.
            global_pool: timm's name of the backbone's pooling, None to keep it.
        """
        if global_pool is not None:
            self.backbone.reset_classifier(0, global_pool)
        weight = next(self.parameters(), torch.empty(0))  # embeddings as input: there may be none
        self._make_head(num_classes, weight.device, weight.dtype)

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, **options: Any) -> None:
        """Make the backbone take images of another size, if it is made for one size.

        The size that :func:`hybridhash.hub.save_pretrained` records becomes the new one.

        Args:
            img_size: Height and width, or both in one number; None keeps them.
            **options: Further arguments of the backbone's method of this name, such as ``patch_size``.

        Raises:
            AttributeError: timm gives the backbone no such method.
        """
        name = type(self.backbone).__name__
        if not hasattr(self.backbone, "set_input_size"):
            raise AttributeError(
                f"timm gives {name} no set_input_size: a convolutional network takes images of any size as "
                'it is, and save_pretrained(..., preprocessing={"input_size": (3, H, W)}) records the size; '
                "any other backbone is built for a size with create_hash_model(..., img_size=)"
            )
        self.backbone.set_input_size(img_size=img_size, **options)
        sizes = {} if img_size is None else {"img_size": img_size}
        if hasattr(self, "model_args"):
            self.model_args |= {**sizes, **options}
        cfg: Any = getattr(self, "pretrained_cfg", None)
        if cfg and img_size is not None:
            sides = to_2tuple(img_size)
            self.pretrained_cfg = {**cfg, "input_size": (self.in_chans, *sides)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass instead of keeping their activations."""
        self.backbone.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the backbone's parameter groups for layer-wise learning rates, in timm's form."""
        if not hasattr(self.backbone, "group_matcher"):
            raise AttributeError(
                f"timm gives {type(self.backbone).__name__} no parameter groups: train without layer_decay"
            )
        groups: dict[str, Any] = self.backbone.group_matcher(coarse=coarse)
        return {name: _below_backbone(pattern) for name, pattern in groups.items()}

    def no_weight_decay(self) -> set[str]:
        """Return the names of the backbone's parameters that weight decay should leave alone."""
        names = self.backbone.no_weight_decay() if hasattr(self.backbone, "no_weight_decay") else set()
        return {f"backbone.{name}" for name, _ in self.backbone.named_parameters() if name in names}


def _below_backbone(pattern: Any) -> Any:
    """Return a pattern of timm's group matcher for names that begin with ``backbone.``."""
    if isinstance(pattern, str):
        unanchored = re.sub(r"(^|[|(])\^", r"\1", pattern)
        return rf"^backbone\.(?:{unanchored})"
    return [(_below_backbone(part), order) for part, order in pattern]


default_cfgs = generate_default_cfgs({"hash_model": {"num_classes": 64, "classifier": "head.fc"}})


@register_model
def hash_model(pretrained: bool = False, **kwargs: Any) -> HashModel:
    """Hash head on the timm model that ``backbone`` names; see :func:`create_hash_model`."""
    model: Any = build_model_with_cfg(
        HashModel,
        "hash_model",
        pretrained,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **kwargs,
    )
    if not isinstance(model, HashModel):  # features_only: timm's wrapper
        return model
    source = getattr(model.backbone, "pretrained_cfg", None)
    if source and not pretrained:
        # Images are prepared as the backbone wants them.
        size = model.model_args.get("img_size", source["input_size"][-2:])
        sides = to_2tuple(size)
        copied = (*PREPROCESSING, "fixed_input_size", "license")
        cfg = {key: source[key] for key in copied if source.get(key) is not None}
        cfg |= {
            "architecture": "hash_model",
            "num_classes": model.num_classes,
            "input_size": (model.in_chans, *sides),
            "classifier": "head.fc",
            "first_conv": None,
        }
        model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]
    return model
