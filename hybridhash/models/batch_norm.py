"""Running statistics of batch norm, re-estimated on the images that are searched."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hybridhash._checks import check_choice
from hybridhash._distributed import Ranks
from hybridhash._inference import (
    NO_LOADERS,
    autocast_of,
    check_loader,
    eval_mode,
    image_batches,
    input_device,
    named_batch,
    to_device,
)
from hybridhash.shallow.statistics import FeatureStatistics

__all__ = ["reestimate_batch_norm"]


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    layers: Literal["head", "all"] = "head",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> nn.Module:
    """Re-estimate the means and variances of batch norm on other images, without training and labels.

    A head with batch norm cuts each bit at the mean of the training images. In another collection the bits
    are then no longer balanced. This function replaces ``running_mean`` and ``running_var`` of the layers by
    the mean and the variance (with the divisor n - 1) of what they get from all images of the loader. Query
    and database must be encoded by the same model, so encode the database anew afterwards.

    Images go through the model once, in eval mode; afterwards every module returns to its own mode. Weights,
    ``momentum`` and the count of batches stay as they are. If anything fails, the model is unchanged.

    With one layer the result is exact and does not depend on the batch size. With several, each layer gets
    its images normalised by the layers before it with the statistics of their own batch, as in training, so
    the result depends on the batches a little: shuffle the images, and take batches as large as in training.

    Under ``torch.distributed`` call it in every process, each with its own part of the images. Every process
    gets the statistics of all images.

    Args:
        model: A ``hybridhash_*`` or the result of :func:`hybridhash.create_hash_model`, also inside DDP or
            ``torch.compile``; or any module, with ``layers="all"``. It is changed in place.
        loader: Yields batches as for :func:`hybridhash.encode`; labels and indices are ignored.
        layers: ``"head"`` for batch norm in ``model.head``, which cuts the bits; ``"all"`` for that of the
            backbone as well. Layers without running statistics, and those that the model does not run, are
            left as they are.
        device: The device of the images, see :func:`hybridhash.encode`.
        dtype: bfloat16 or float16 runs the model under autocast, see :func:`hybridhash.encode`.
        progress: Show a progress bar on stderr.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is no module, or the loader is a tensor, a path or a data set.
        ValueError: There is no such batch norm; there are fewer than two images; what a layer gets holds NaN
            or infinity; or, with several layers, a batch gives a layer one value a channel.

    Source: Hoe et al., One Loss for All, NeurIPS 2021, supplement, table 6.

    Example:
        >>> from hybridhash import create_hash_model, encode
        >>> model = create_hash_model("resnet10t", bits=16, head="batchnorm")
        >>> images = torch.randn(40, 3, 32, 32)
        >>> model = reestimate_batch_norm(model, images.split(20), progress=False)
        >>> codes = encode(model, [images], progress=False)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(loader, NO_LOADERS):
        check_loader(loader)
    network = unwrap_model(model)
    chosen = _layers(network, layers)
    device = input_device(network, device)
    autocast = autocast_of(network, device, dtype)

    def run() -> None:
        for number, images in image_batches(loader, "batch norm", progress):
            with autocast, named_batch(network, images, f"batch {number}"):
                network(to_device(images, device))

    with Ranks() as ranks, eval_mode(network):
        parts = ranks.collect(lambda: _measure(chosen, run))
    statistics = parts[0]
    for part in parts[1:]:
        for measured, others in zip(statistics, part, strict=True):
            measured.merge(others)
    if max(measured.count for measured in statistics) < 2:
        raise ValueError(
            "a variance needs two images or more: the loader gave fewer, or the model runs no layer of batch "
            "norm"
        )
    for norm, measured in zip(chosen, statistics, strict=True):
        if measured.count >= 2:  # else the model does not run it
            norm.running_mean.copy_(measured.mean)
            norm.running_var.copy_(measured.variances)
    return model


def _layers(network: nn.Module, layers: str) -> list[Any]:
    """Return the batch norm layers with running statistics, untyped because those may be None elsewhere."""
    check_choice("layers", layers, ("head", "all"))
    searched = network if layers == "all" else getattr(network, "head", None)
    if not isinstance(searched, nn.Module):
        raise ValueError(f'{type(network).__name__} has no module called head: give layers="all"')
    chosen = [
        module
        for module in searched.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if not chosen:
        where = "the model" if layers == "all" else f"the head, a {type(searched).__name__},"
        raise ValueError(
            f"{where} has no batch norm with running statistics: create_hash_model has it with "
            'head="batchnorm"' + ("" if layers == "all" else ', and layers="all" takes that of the backbone')
        )
    return chosen


def _measure(chosen: list[Any], run: Callable[[], None]) -> list[FeatureStatistics]:
    """Return the statistics of what each layer gets while the model runs."""
    statistics = [FeatureStatistics(covariance=False, sample_size=0) for _ in chosen]
    before = [(norm.running_mean, norm.running_var) for norm in chosen]
    hooks = [
        norm.register_forward_pre_hook(_measuring(measured, normalises=len(chosen) > 1))
        for norm, measured in zip(chosen, statistics, strict=True)
    ]
    try:
        run()
    finally:
        for norm, hook, (mean, variance) in zip(chosen, hooks, before, strict=True):
            hook.remove()
            norm.running_mean = mean
            norm.running_var = variance
    return [measured.cpu() for measured in statistics]


def _measuring(statistics: FeatureStatistics, *, normalises: bool) -> Callable[..., None]:
    """Return a hook that adds what a layer gets to statistics, before the layer runs in eval mode.

    Args:
        statistics: Where to.
        normalises: Whether the layer normalises this batch by its own mean and variance, as in training.
    """

    def add(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1).T  # one row a position
        statistics.update(values)
        if not normalises:
            return
        if len(values) == 1:
            raise ValueError(
                "a batch gives a layer of batch norm one value a channel, which has no variance: give "
                "batches of two images or more (drop_last=True leaves out an incomplete one)"
            )
        precise = torch.promote_types(values.dtype, torch.float32)
        variance, mean = torch.var_mean(values.to(precise), dim=0, correction=0)
        # Replaced and not written to: the layer has its own tensors back at the end.
        norm.running_mean = mean.to(norm.running_mean.dtype)
        norm.running_var = variance.to(norm.running_var.dtype)

    return add
