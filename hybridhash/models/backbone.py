"""The backbone of a hash model: created by name, from wherever its weights come."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path

from hybridhash._downloads import hub_source, loading, split_revision

__all__ = ["create_backbone"]


def create_backbone(
    name: str,
    pretrained: bool,
    weights: dict[str, Any],
    kwargs: dict[str, Any],
    factory: dict[str, Any],
) -> tuple[Any, str, dict[str, Any]]:
    """Create a backbone; return it with the name and the arguments from which timm builds it anywhere.

    Args:
        name: As in :func:`create_hash_model`.
        pretrained: Load weights.
        weights: Where from: ``pretrained_cfg_overlay`` and ``cache_dir``.
        kwargs: Arguments of the backbone.
        factory: ``device`` and ``dtype``.
    """
    overlay = weights.get("pretrained_cfg_overlay") or {}
    cache_dir = weights.get("cache_dir")
    elsewhere = ":" in name
    repository, revision = hub_source(name)
    if overlay.get("hf_hub_id"):
        repository, revision = split_revision(overlay["hf_hub_id"])
    if any(overlay.get(key) for key in ("file", "url", "state_dict")) or not (pretrained or elsewhere):
        repository = None
    cfg = None
    with loading(str(overlay.get("file") or name), repository, revision, cache_dir):
        if elsewhere:
            cfg, name, args = _read_config(name, cache_dir)
            kwargs = {**args, **kwargs}
        with _missing_weights() as missing, _refused_arguments(name):
            module: Any = timm.create_model(
                name,
                pretrained=pretrained,
                pretrained_cfg=cfg,
                num_classes=0,
                **weights,
                **kwargs,
                **{key: value for key, value in factory.items() if value is not None},
            )
        if len(missing) > len(module.state_dict()) / 2:
            raise ValueError(
                f"most weights of {name} are not in it, such as {', '.join(missing[:3])}: give the file of "
                "this architecture"
            )
    if cfg or overlay:
        kwargs = {**_arguments_in(module.pretrained_cfg), **kwargs}
    return module, name, kwargs


@contextmanager
def _refused_arguments(name: str) -> Iterator[None]:
    """Say which argument a backbone does not take, and what to do without ``img_size``."""
    try:
        yield
    except TypeError as error:
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if found is None:
            raise
        advice = "leave it out"
        if found[1] == "img_size":
            advice = (
                "a convolutional network takes images of any size as it is, and "
                'save_pretrained(..., preprocessing={"input_size": (3, H, W)}) records the size'
            )
        raise TypeError(f"the backbone {name} takes no argument {found[1]!r}: {advice}") from error


@contextmanager
def _missing_weights() -> Iterator[list[str]]:
    """Yield a list that will hold the weights that timm did not find, which it only writes to its log."""
    names: list[str] = []
    logger = logging.getLogger("timm.models._builder")
    level = logger.level
    shown = logger.getEffectiveLevel()

    def watch(record: logging.LogRecord) -> bool:
        if found := re.match(r"Missing keys \((.*?)\)", record.getMessage()):
            names.extend(found[1].split(", "))
        return record.levelno >= shown

    logger.setLevel(min(shown, logging.INFO))
    logger.addFilter(watch)
    try:
        yield names
    finally:
        logger.removeFilter(watch)
        logger.setLevel(level)


def _read_config(name: str, cache_dir: str | Path | None) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Return configuration, architecture and arguments of a saved backbone, by its ``hf-hub:`` or folder."""
    scheme, _, place = name.partition(":")
    if scheme == "local-dir":
        cfg, architecture, args = load_model_config_from_path(place)
    else:
        cfg, architecture, args = load_model_config_from_hf(place, cache_dir=cache_dir)
    return cfg, architecture, {key: value for key, value in args.items() if key != "num_classes"}


def _arguments_in(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that timm takes from a configuration if they are not given."""
    channels, *sides = cfg["input_size"]
    args: dict[str, Any] = {}
    if channels != 3:
        args["in_chans"] = channels
    if cfg.get("fixed_input_size"):
        args["img_size"] = sides
    if cfg.get("global_pool"):
        args["global_pool"] = cfg["global_pool"]
    return args
