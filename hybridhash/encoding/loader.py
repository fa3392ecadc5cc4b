"""From images to binary codes: run a model over a loader and keep the bits."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
from torch import Tensor, nn

from hybridhash._inference import (
    autocast_of,
    check_model,
    eval_mode,
    input_device,
    launch,
    read_batch,
    to_device,
)
from hybridhash.codes import HashCodes, check_joinable

__all__ = ["encode"]


def encode(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> HashCodes:
    """Binary codes of all images of a loader, with their labels and indices if it yields them.

    The model runs in eval mode without gradients; afterwards, also after an exception, every module is back
    in the mode it was in. A bit is 1 where the output is > 0 (an infinity has its sign, NaN raises). Codes
    are packed on the device of the model: ``ceil(bits / 8)`` bytes leave it for each image.

    Args:
        model: maps images ``(B, ...)`` to real-valued codes ``(B, bits)``, 1 to 512 bits.
        loader: yields batches: ``images``, ``(images, labels)``, ``(images, labels, indices)``, or dicts with
            the keys ``image``, ``images`` or ``pixel_values``; ``label`` or ``labels``; ``index``,
            ``indices``, ``id`` or ``ids``. Labels are class ids ``(B,)`` or multi-hot ``(B, C)``, indices are
            integers ``(B,)``, None stands for absent. It is a :class:`torch.utils.data.DataLoader` or any
            iterable of batches: ``[images]`` hashes a few images at hand.
        device: where the images go. By default where the parameters of the model are: the first one if they
            are on several devices, the CPU if there are none. The model is never moved; a device where it is
            not raises.
        dtype: bfloat16 or float16 runs the model under autocast, float32 without; None leaves that as it is.
            A CPU that only emulates half precision runs in float32 and warns.
        progress: show a progress bar on stderr, unless those of ``huggingface_hub`` are disabled.

    Returns:
        :class:`HashCodes` on the CPU in the order of the loader: ``labels`` as the loader gave them, its
        indices as ``ids``.

    Raises:
        TypeError: ``model`` is no module, ``loader`` is a tensor, or a batch holds or the model returns
            something of a wrong type.
        ValueError: no batch; a batch with unknown keys, with different numbers of rows, or with labels or
            indices unlike the first batch; the model returns no ``(B, bits)``, has no hash layer
            (``num_classes=0``) or gives NaN; ``device`` or ``dtype`` is not one of the above. The message
            names the batch, counted from 0.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh())
        >>> images, labels = torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1])
        >>> encode(model, [(images[:3], labels[:3]), (images[3:], labels[3:])], progress=False)
        HashCodes(size=5, bits=16, bytes=10, labels=class ids, ids=None)
    """
    check_model(model)
    if isinstance(loader, Tensor):
        raise TypeError("loader must yield batches, got a tensor: give [images] for one batch of images")
    place = input_device(model, device)
    autocast = autocast_of(model, place, dtype)
    parts: list[HashCodes] = []
    launched: _Launched | None = None
    bar = tqdm(desc="encode", unit="image", disable=not progress)  # type: ignore[no-untyped-call]
    with eval_mode(model), bar:
        for number, content in enumerate(loader):
            images, labels, ids = read_batch(content, number)
            size = images.shape[0]
            images = to_device(images, place)
            # Only now is the batch before fetched, so that a GPU computed it while the loader was at work.
            if launched is not None:
                _fetch(launched, parts)
            launched = _Launched(*launch(model, images, autocast, f"batch {number}"), labels, ids)
            if number == 0:
                bar.total = operator.length_hint(loader) * size or None
            bar.update(size)
        if launched is None:
            raise ValueError("loader is empty: it gave no batch")
        _fetch(launched, parts)
        bar.total = bar.n
        bar.refresh()
    return HashCodes.cat(parts)


class _Launched(NamedTuple):
    """A batch whose codes are on the device, perhaps still being computed."""

    packed: Tensor
    nan: Tensor  # bool (B,)
    bits: int
    labels: Tensor | None
    ids: Tensor | None


def _fetch(batch: _Launched, parts: list[HashCodes]) -> None:
    """Append the codes of a batch to those of the batches before it, or raise if they are no codes."""
    number = len(parts)
    nan = batch.nan.cpu().nonzero()[:, 0]
    if len(nan):
        position = sum(map(len, parts)) + int(nan[0])
        raise ValueError(
            f"the model gave NaN codes in batch {number} for {len(nan)} of its {len(batch.nan)} images, the "
            f"first at position {position} of the loader: check that image, and whether training diverged"
        )
    codes = HashCodes(batch.packed.cpu(), batch.bits, batch.labels, batch.ids)
    if parts:
        check_joinable(parts[0], codes, ("batch 0", f"batch {number}"))
    parts.append(codes)
