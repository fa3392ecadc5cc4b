"""Encode the images of a loader: run the model and keep the bits."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hybridhash._checks import check_integer
from hybridhash._inference import (
    NO_LOADERS,
    PackedBatch,
    autocast_of,
    check_hash_model,
    check_loader,
    eval_mode,
    forward_packed,
    input_device,
    read_batch,
    to_device,
)
from hybridhash.codes import HashCodes, check_joinable
from hybridhash.encoding.reader import Reader, check_dataset, collate, model_transform

__all__ = ["encode", "image_loader"]


def encode(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    factors: bool = False,
    progress: bool = True,
) -> HashCodes:
    """Encode all images of a loader, with their labels and indices if it yields them.

    The model runs in eval mode without gradients. Afterwards, also after an exception, every module is back
    in the mode it was in. A bit is 1 where the output is > 0; an infinity counts by its sign, NaN raises.
    Codes are packed on the device of the model, so ``ceil(bits / 8)`` bytes leave it for each image.

    Args:
        model: A module that maps images ``(B, ...)`` to real-valued codes ``(B, bits)``, 1 to 4,096 bits.
        loader: A :class:`torch.utils.data.DataLoader` or any iterable of batches: ``images``,
            ``(images, labels)``, ``(images, labels, indices)``, or dicts with the keys ``image``, ``images``
            or ``pixel_values``; ``label`` or ``labels``; ``index``, ``indices``, ``id`` or ``ids``. Labels
            are class ids ``(B,)`` or multi-hot ``(B, C)``, indices are integers ``(B,)``, and None means
            absent. ``[images]`` encodes a few images at hand, and :func:`hybridhash.encoding.image_loader`
            gives a loader for a data set of single images.
        device: The device that images go to. None takes the device of the first parameter, or the CPU if
            there are no parameters. The model is never moved, so a device without its weights raises.
        dtype: bfloat16 or float16 runs the model under autocast, float32 runs it without. None keeps the
            autocast of the caller. A CPU that only emulates half precision runs in float32 and warns.
        factors: Whether to keep the :func:`hybridhash.codes.correction_factors` of the codes, 8 more bytes
            for each image. Infinite codes raise then, too.
        progress: Whether to show a progress bar on stderr, unless those of ``huggingface_hub`` are disabled.

    Returns:
        :class:`HashCodes` on the CPU in the order of the loader, with the loader's labels, and its indices
        as ``ids``.

    Raises:
        TypeError: ``model`` is no module, ``loader`` is a tensor, a path or a data set, or a batch or the
            output of the model has a wrong type.
        ValueError: There is no batch; a batch has unknown keys, columns of different lengths, or labels or
            indices unlike the first batch; the model has no hash layer (``num_classes=0``), or returns NaN or
            no ``(B, bits)``; or ``device`` or ``dtype`` is not one of the above. The message names the batch,
            counted from 0.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh())
        >>> images, labels = torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1])
        >>> encode(model, [(images[:3], labels[:3]), (images[3:], labels[3:])], progress=False)
        HashCodes(size=5, bits=16, bytes=10, labels=class ids, ids=None)
    """
    check_hash_model(model)
    if factors not in (True, False):
        raise ValueError(f"factors must be one of True, False, got {factors!r}")
    if isinstance(loader, NO_LOADERS):
        check_loader(loader)
    device = input_device(model, device)
    autocast = autocast_of(model, device, dtype)
    parts: list[HashCodes] = []
    pending: _PendingBatch | None = None
    bar = tqdm(desc="encode", unit="image", disable=not progress)  # type: ignore[no-untyped-call]
    with eval_mode(model), bar:
        for number, content in enumerate(loader):
            images, labels, ids = read_batch(content, number)
            size = images.shape[0]
            images = to_device(images, device)
            # Only now is the batch before collected, so that a GPU computed it while the loader was at work.
            if pending is not None:
                parts.append(_collect(pending, parts))
            codes = forward_packed(model, images, autocast, f"batch {number}", factors=factors)
            pending = _PendingBatch(codes, labels, ids)
            if number == 0:
                bar.total = operator.length_hint(loader) * size or None
            bar.update(size)
        if pending is None:
            raise ValueError("loader is empty: it gave no batch")
        parts.append(_collect(pending, parts))
        bar.total = bar.n
        bar.refresh()
    return HashCodes.cat(parts)


def image_loader(
    model: nn.Module,
    dataset: Any,
    batch_size: int,
    *,
    num_workers: int = 0,
    transform: Callable[[Any], Any] | None = None,
) -> DataLoader[Any]:
    """Return a loader of all images of a data set, prepared for a model as :func:`encode_dataset` does.

    :func:`encode` and :func:`hybridhash.fit_hash_layer` take it. An image that cannot be read raises.

    Args:
        model: The model, whose own transform prepares PIL images.
        dataset: A map-style data set as for :func:`encode_dataset`.
        batch_size: The number of images in a batch; the last one may have fewer.
        num_workers: The number of processes that read images. 0 reads them in this one.
        transform: A function applied to each image in place of the model's own.

    Raises:
        TypeError, ValueError: As :func:`encode_dataset`; those of an image when its batch is read.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh())
        >>> dataset = [(torch.randn(3, 2, 2), row % 2) for row in range(5)]
        >>> encode(model, image_loader(model, dataset, batch_size=2), progress=False)
        HashCodes(size=5, bits=16, bytes=10, labels=class ids, ids=int64)
    """
    check_dataset(dataset)
    reader = Reader(dataset, transform, model_transform(model), strict=True)
    check_integer("batch_size", batch_size, 1)
    return DataLoader(reader, batch_size, num_workers=num_workers, collate_fn=_named_batch)


def _named_batch(rows: list[Any]) -> dict[str, Tensor | None]:
    batch = collate(rows)
    return {"images": batch.images, "labels": batch.labels, "ids": batch.ids}


class _PendingBatch(NamedTuple):
    """A batch whose codes are perhaps still being computed."""

    codes: PackedBatch
    labels: Tensor | None
    ids: Tensor | None


def _collect(batch: _PendingBatch, parts: Sequence[HashCodes]) -> HashCodes:
    """Wait for the codes of a batch; raise if they are NaN or unlike those of the batches before."""
    number = len(parts)
    nan = batch.codes.nan
    nan_rows = nan.cpu().nonzero()[:, 0]
    if len(nan_rows):
        position = sum(map(len, parts)) + int(nan_rows[0])
        raise ValueError(
            f"the model gave {batch.codes.useless} codes in batch {number} for {len(nan_rows)} of its "
            f"{len(nan)} images, the first at position {position} of the loader: check that image, and "
            "whether training diverged"
        )
    kept = None if batch.codes.factors is None else batch.codes.factors.cpu()
    codes = HashCodes(batch.codes.packed.cpu(), batch.codes.bits, batch.labels, batch.ids, kept)
    if parts:
        check_joinable(parts[0], codes, ("batch 0", f"batch {number}"))
    return codes
