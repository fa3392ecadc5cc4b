"""Encode data sets of any size: in shards, on several devices and processes, and through crashes."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
from torch import nn
from torch.utils.data import DataLoader

from hybridhash._checks import check_choice, check_integer
from hybridhash._distributed import Ranks
from hybridhash._files import check_local
from hybridhash._fingerprint import describe, model_name, weights_sha256
from hybridhash._inference import (
    PackedBatch,
    autocast_of,
    check_hash_model,
    eval_mode,
    forward_packed,
    input_device,
    running_dtype,
    to_device,
)
from hybridhash.codes import HashCodes, check_joinable
from hybridhash.encoding.manifest import Failure, Manifest, Probe, Rows, Trial
from hybridhash.encoding.processes import RankBatches, write_lock
from hybridhash.encoding.reader import ImageBatch, Reader, Sample, check_dataset, collate, model_transform
from hybridhash.encoding.shards import ShardFolder
from hybridhash.encoding.source import names_sha256, probe

__all__ = ["encode_dataset"]

_PROBES = 16  # rows whose images are sampled for the manifest


def encode_dataset(
    model: nn.Module,
    dataset: Any,
    out: str | os.PathLike[str],
    *,
    batch_size: int,
    num_workers: int,
    shard_size: int = 1_000_000,
    devices: torch.device | str | Sequence[torch.device | str] | None = None,
    resume: bool = True,
    transform: Callable[[Any], Any] | None = None,
    dtype: torch.dtype | None = None,
    factors: bool = False,
    on_error: str = "record",
    save_seconds: float = 60.0,
    progress: bool = True,
) -> Manifest:
    """Encode all images of a data set into a folder that :func:`hybridhash.open_codes` opens.

    The work may end at any moment, also by ``kill -9``, a full disk or a power cut. The same call resumes it:
    no image is lost or encoded twice, and at most ``save_seconds`` of work is repeated; after an exception
    or Ctrl-C, only the batches in hand. Batches consist of the same rows however often and on however many
    processes that happens, so the codes are the same to the byte, and so are the files.

    Other data, another order of them, another model, another transform or another ``factors`` than those of
    the first call are refused. Data are told by the names of the images if the data set knows them, by
    samples of 16 images after the transform, with labels and ids, and by the real-valued codes of one image.
    So in a data set without names, rows that change places between the 16 are not seen. Give it an attribute
    ``ids``, a sequence with a name of each row, and every row is compared. All files found are checked
    against their SHA-256 before the work goes on.

    Where ``torch.distributed`` is initialised (``torchrun``), the processes share the rows without overlap
    and write to the same ``out``, which all must see. Every process returns when all are done. Any backend
    will do, since only messages are exchanged. Otherwise one process uses all ``devices``.

    An image that cannot be decoded is recorded in its shard, whatever its decoder raises, and so is one whose
    codes are NaN. A warning counts them, and :func:`hybridhash.encoding.read_failures` lists their rows, ids
    and reasons, with the name of the file if the data set knows it. Errors of the program (a TypeError, say)
    or of the machine (an I/O error of a disk) are raised, with the row in a note (Python 3.11 and later).

    Args:
        model: A module that maps images ``(B, ...)`` to real-valued codes ``(B, bits)``. It runs as in
            :func:`hybridhash.encode` and is neither moved nor changed.
        dataset: A map-style data set (``len(dataset)``, ``dataset[row]``) of images, ``(image, label)``,
            ``(image, label, id)``, or dicts with the keys that ``encode`` takes: ``ImageFolder`` of
            torchvision, Hugging Face ``datasets``, :class:`hybridhash.data.ImageList`,
            :class:`hybridhash.data.TarImages` and so on. An image is a tensor, taken as it is, or a PIL image
            of any mode, which is converted to RGB (:func:`hybridhash.data.to_rgb`) and transformed. Ids are
            kept even if several rows share one; a search index rejects duplicates and lists them.
        out: The folder to write to, local or mounted. It is made if it does not exist. Only the files of an
            encoding are replaced or deleted in it.
        batch_size: The number of images in a batch.
        num_workers: The number of processes that read images. 0 reads them in this one.
        shard_size: The number of rows of the data set in a shard.
        devices: One device or several. Copies of the model on them take the batches in turn. None uses the
            device where the model is.
        resume: Whether to continue an encoding in ``out``. False deletes it first.
        transform: A function applied to each image, tensors too. None applies the model's own
            (``timm.data.create_transform``) to PIL images and nothing to tensors.
        dtype: bfloat16 or float16 runs the model under autocast, float32 runs it without. None keeps the
            autocast of the caller.
        factors: Whether to keep the :func:`hybridhash.codes.correction_factors` of the codes, 8 more bytes
            for each image. An image whose codes are infinite is recorded as one whose codes are NaN then.
        on_error: ``"record"``, or ``"raise"`` to stop at the first image that cannot be decoded.
        save_seconds: The longest time, in seconds, before finished work is written to disk.
        progress: Whether to show a progress bar on stderr, unless those of ``huggingface_hub`` are disabled.

    Returns:
        The :class:`hybridhash.encoding.Manifest`: counts, model, weights' SHA-256, bits, transform, and the
        dtype in which the model ran.

    Raises:
        TypeError: The model, the data set or a number has a wrong type, or the data set raised it.
        ValueError: An argument or a shape does not fit, no image can be read, all codes of a batch are NaN,
            ``out`` is a URL or holds another encoding (both are described) or a damaged shard (named), or an
            image cannot be decoded and ``on_error="raise"``.
        RuntimeError: Another thread or process is encoding to ``out``, or another process of the group
            failed.
        OSError: ``out`` cannot be written. What is there is intact, and the same call resumes.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh())
        >>> images = [(torch.randn(3, 2, 2), row % 2) for row in range(5)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     manifest = encode_dataset(
        ...         model, images, folder, batch_size=2, num_workers=0, shard_size=3, progress=False
        ...     )
        ...     sorted(path.name for path in Path(folder).glob("shard*")), manifest.encoded
        (['shard-00000-of-00002.safetensors', 'shard-00001-of-00002.safetensors'], 5)
    """
    check_hash_model(model)
    check_dataset(dataset)
    check_integer("batch_size", batch_size, 1)
    check_integer("shard_size", shard_size, 1)
    check_choice("on_error", on_error, ("record", "raise"))
    check_choice("factors", factors, (True, False))
    check_local(out)
    reader = Reader(dataset, transform, model_transform(model), strict=on_error == "raise")
    replicas = _replicas(model, devices, dtype)
    with ExitStack() as stack:
        ranks = stack.enter_context(Ranks())
        for replica in replicas:
            stack.enter_context(eval_mode(replica.model))
        manifests = ranks.collect(lambda: _manifest_of(replicas[0], reader, shard_size, factors))
        _check_equal(manifests)
        shards = ShardFolder(Path(out), manifests[0])
        ranks.first(lambda: stack.enter_context(write_lock(shards.folder)))
        missing = ranks.first(lambda: shards.open(resume))
        shards.manifest = ranks.first(lambda: shards.manifest)
        batches = RankBatches(missing, batch_size, ranks.rank, ranks.size)
        bar = tqdm(  # type: ignore[no-untyped-call]
            desc="encode",
            unit="image",
            total=sum(map(len, batches)),
            disable=not progress or ranks.rank > 0,
        )
        stack.enter_context(bar)
        ranks.collect(lambda: _write_parts(shards, replicas, reader, batches, num_workers, save_seconds, bar))
        ranks.collect(lambda: shards.join_parts(range(ranks.rank, shards.count, ranks.size)))
        manifest = ranks.first(shards.finish)
        if manifest.failed and ranks.rank == 0:
            warnings.warn(
                f"{manifest.failed} of {manifest.images} images have no code: "
                f"hybridhash.encoding.read_failures({str(out)!r}) says which and why",
                stacklevel=2,
            )
    return manifest


class _Replica(NamedTuple):
    """The model on one device."""

    model: nn.Module
    device: torch.device
    autocast: Any


class _PartWriter:
    """Keep what is done until it is time to write it as a part of a shard."""

    def __init__(self, shards: ShardFolder, seconds: float) -> None:
        self.shards = shards
        self.seconds = seconds
        self.unsaved: list[Rows] = []
        self.saved_at = time.monotonic()

    def add(self, rows: Rows) -> None:
        follows = self.unsaved and rows.start == self.unsaved[-1].stop
        if not follows or rows.start % self.shards.manifest.shard_size == 0:
            self.save()
        self.unsaved.append(rows)
        if time.monotonic() - self.saved_at >= self.seconds:
            self.save()

    def save(self) -> None:
        if self.unsaved:
            codes = HashCodes.cat([rows.codes for rows in self.unsaved])
            failures = [failure for rows in self.unsaved for failure in rows.failures]
            self.shards.write_part(Rows(self.unsaved[0].start, self.unsaved[-1].stop, codes, failures))
            self.unsaved = []
        self.saved_at = time.monotonic()


def _write_parts(
    shards: ShardFolder,
    replicas: Sequence[_Replica],
    reader: Reader,
    batches: RankBatches,
    num_workers: int,
    save_seconds: float,
    bar: Any,
) -> None:
    """Encode the batches of this process and write them as parts of shards."""
    if not len(batches):
        return
    loader: DataLoader[ImageBatch] = DataLoader(
        reader,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=any(replica.device.type == "cuda" for replica in replicas),
    )
    writer = _PartWriter(shards, save_seconds)
    try:
        for rows in _encoded(loader, replicas, shards.manifest, reader.strict):
            writer.add(rows)
            bar.update(rows.stop - rows.start)
    finally:
        writer.save()


def _encoded(
    loader: Iterable[ImageBatch], replicas: Sequence[_Replica], manifest: Manifest, strict: bool
) -> Iterator[Rows]:
    """Yield the codes and failures of each batch; the replicas take the batches in turn."""
    pending: deque[tuple[ImageBatch, PackedBatch | None]] = deque()
    for number, batch in enumerate(loader):
        replica = replicas[number % len(replicas)]
        images = None if batch.images is None else to_device(batch.images, replica.device)
        # Only now is an earlier batch collected, so that the devices computed while the loader was at work.
        if len(pending) == len(replicas):
            yield _collect(*pending.popleft(), manifest, strict)
        codes = None
        if images is not None:
            codes = forward_packed(
                replica.model, images, replica.autocast, batch.name, factors=manifest.factors
            )
        pending.append((batch._replace(images=None), codes))
    while pending:
        yield _collect(*pending.popleft(), manifest, strict)


def _collect(batch: ImageBatch, packed_batch: PackedBatch | None, manifest: Manifest, strict: bool) -> Rows:
    """Wait for the codes of a batch; images whose codes are NaN join the failures."""
    if packed_batch is None:
        return Rows(batch.start, batch.stop, manifest.empty_codes(), batch.failures)
    valid = ~packed_batch.nan.cpu()
    failures = batch.failures
    if not bool(valid.all()):
        failures = sorted([*failures, *_nan_failures(batch, packed_batch.useless, valid.tolist(), strict)])
    labels = None if batch.labels is None else batch.labels[valid]
    factors = None if packed_batch.factors is None else packed_batch.factors.cpu()[valid]
    codes = HashCodes(packed_batch.packed.cpu()[valid], packed_batch.bits, labels, batch.ids[valid], factors)
    check_joinable(manifest.empty_codes(), codes, ("the images before", batch.name))
    return Rows(batch.start, batch.stop, codes, failures)


def _nan_failures(batch: ImageBatch, useless: str, valid: list[bool], strict: bool) -> list[Failure]:
    """Return the images of a batch whose codes are NaN; raise if ``strict``, or if all of several are."""
    unread = {failure.row for failure in batch.failures}
    rows = [row for row in range(batch.start, batch.stop) if row not in unread]
    failures = [
        Failure(row, id, f"the model gave {useless} codes")
        for row, id, is_valid in zip(rows, batch.ids.tolist(), valid, strict=True)
        if not is_valid
    ]
    if strict or len(failures) == len(rows) > 1:
        raise ValueError(
            f"the model gave {useless} codes for {len(failures)} of the {len(rows)} images of {batch.name}, "
            f"the first is row {failures[0].row}: check it, and whether training diverged"
        )
    return failures


def _check_equal(manifests: Sequence[Manifest]) -> None:
    """Raise unless all processes encode the same."""
    for rank, manifest in enumerate(manifests):
        differences = manifests[0].differences(manifest)
        if differences:
            raise ValueError(f"process {rank} encodes something else: {differences}")


def _manifest_of(replica: _Replica, reader: Reader, shard_size: int, factors: bool) -> Manifest:
    """Describe the encoding, from the first image that can be read and samples of some others."""
    batch = collate([_first_sample(reader)])
    assert batch.images is not None
    images = to_device(batch.images, replica.device)
    encoded = forward_packed(replica.model, images, replica.autocast, batch.name)
    codes = encoded.codes[0].double().cpu()
    trial = None
    if bool(codes.isfinite().all()):
        trial = Trial(batch.start, [float(f"{code:.4g}") for code in codes.tolist()])
    labels, classes = "none", None
    if batch.labels is not None:
        labels = "class ids" if batch.labels.ndim == 1 else "multi-hot"
        classes = batch.labels.shape[1] if batch.labels.ndim == 2 else None
    applied = reader.transform or (reader.model_transform if reader.decodes else None)
    transforms = [t for t in (getattr(reader.dataset, "transform", None), applied) if t is not None]
    dtype = running_dtype(replica.model, replica.device, replica.autocast)
    return Manifest(
        model=model_name(replica.model),
        weights_sha256=weights_sha256(replica.model),
        bits=encoded.bits,
        dtype=str(dtype).removeprefix("torch."),
        transform=", then ".join(map(describe, transforms)) or None,
        labels=labels,
        classes=classes,
        images=len(reader),
        shard_size=shard_size,
        exif_orientation=True if reader.decodes else None,
        names_sha256=names_sha256(reader.dataset),
        probes=_probes(reader),
        trial=trial,
        factors=factors,
    )


def _first_sample(reader: Reader) -> Sample:
    """Return the first image that can be read."""
    failure = None
    for row in range(len(reader)):
        sample = reader[row]
        if isinstance(sample, Sample):
            return sample
        failure = failure or sample
    assert failure is not None
    raise ValueError(f"none of the {len(reader)} images can be read; row {failure.row}: {failure.reason}")


def _probes(reader: Reader) -> dict[str, Probe | None]:
    """Sample the images of some rows, evenly spread over the data set."""
    last = len(reader) - 1
    rows = sorted({last * part // (_PROBES - 1) for part in range(_PROBES)})
    return {str(row): _probe_row(reader, row) for row in rows}


def _probe_row(reader: Reader, row: int) -> Probe | None:
    """Return a sample of a row, None if there is an error, which is for the work on that row to raise."""
    try:
        sample = reader[row]
    except Exception:
        return None
    return probe(sample.image, sample.label, sample.id) if isinstance(sample, Sample) else None


def _replicas(
    model: nn.Module,
    devices: torch.device | str | Sequence[torch.device | str] | None,
    dtype: torch.dtype | None,
) -> list[_Replica]:
    """Return the model on each device: itself where it is, copies elsewhere."""
    model_device = input_device(model, None)
    if devices is None:
        devices = [model_device]
    elif isinstance(devices, (str, torch.device)):
        devices = [devices]
    if not devices:
        raise ValueError("devices is empty: name one, or give None for where the model is")
    replicas = []
    for device in map(torch.device, devices):
        if device.type == model_device.type and device.index in (None, model_device.index):
            replicas.append(_Replica(model, model_device, autocast_of(model, model_device, dtype)))
        else:
            copied = copy.deepcopy(model).to(device)
            replicas.append(_Replica(copied, device, autocast_of(copied, device, dtype)))
    return replicas
