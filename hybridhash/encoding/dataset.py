"""Binary codes of data sets of any size: in shards, on several devices and processes, and through crashes."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hybridhash._distributed import Ranks
from hybridhash._fingerprint import describe, model_name, weights_sha256
from hybridhash._inference import (
    autocast_of,
    check_model,
    eval_mode,
    input_device,
    launch,
    to_device,
)
from hybridhash.codes import HashCodes, check_joinable
from hybridhash.encoding.processes import Batches, only_writer
from hybridhash.encoding.reader import (
    Batch,
    Reader,
    Sample,
    check_dataset,
    collate,
    model_transform,
)
from hybridhash.encoding.shards import Failure, Manifest, Rows, ShardFolder

__all__ = ["encode_dataset"]


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
    on_error: str = "record",
    save_seconds: float = 60.0,
    progress: bool = True,
) -> Manifest:
    """Binary codes of all images of a data set, in a folder that :func:`hybridhash.open_codes` opens.

    The work may end at any moment, also by ``kill -9``, a full disk or a power cut: the same call goes on
    where it was, with no image lost and none twice, and at most ``save_seconds`` of work to do again. Batches
    are made of the same rows however often and on however many processes that happens, so the codes are the
    same to the byte.

    Where ``torch.distributed`` is initialised (``torchrun``), the processes share the rows without overlap
    and write to the same ``out``, which all must see; every process returns when all are done. The backend
    does not matter, since nothing but messages is exchanged. Otherwise one process uses all ``devices``.

    An image that cannot be decoded is recorded in its shard, and :func:`hybridhash.encoding.read_failures`
    gives its row, id and reason; a warning counts them. So is one whose codes are NaN. Errors of the program
    (a TypeError, say) or the machine (an I/O error of a disk) are raised.

    Args:
        model: maps images ``(B, ...)`` to real-valued codes ``(B, bits)``. It is run as by
            :func:`hybridhash.encode`, and neither moved nor changed.
        dataset: map-style (``len(dataset)``, ``dataset[row]``): an image, ``(image, label)``,
            ``(image, label, id)``, or a dict with the keys that ``encode`` takes. An image is a tensor, taken
            as it is, or a PIL image of any mode, which is brought to RGB (:func:`hybridhash.data.to_rgb`)
            and transformed. ``ImageFolder`` of torchvision, Hugging Face ``datasets``,
            :class:`hybridhash.data.ImageList` and :class:`hybridhash.data.TarImages` are such. Ids are
            kept as they are, those too that several rows share: no code is lost, and an index refuses such
            ids by name.
        out: the folder; made if it does not exist.
        batch_size: images in a batch.
        num_workers: processes that read images, 0 for none beside this one.
        shard_size: rows of the data set in a shard.
        devices: where the model runs: copies of it are dealt the batches in turn. None for where it is.
        resume: go on with what is in ``out``. False deletes the encoding there first.
        transform: applied to each image, tensors too. None applies the model's own
            (``timm.data.create_transform``) to PIL images, and nothing to tensors.
        dtype: bfloat16 or float16 for autocast, float32 for none, None to leave that as it is.
        on_error: ``"record"``, or ``"raise"`` to stop at the first image that cannot be decoded.
        save_seconds: how often what is done is written to disk.
        progress: show a progress bar on stderr, unless those of ``huggingface_hub`` are disabled.

    Returns:
        The :class:`hybridhash.encoding.shards.Manifest`: counts, model, weights' SHA-256, bits and transform.

    Raises:
        TypeError: a model or data set of a wrong type; errors of ``dataset`` of that kind.
        ValueError: an argument or a shape that does not fit, no image that can be read, NaN codes for all of
            a batch, ``out`` holds another encoding (model, bits, transform, size and so on: both are named)
            or a damaged shard (named), or an image cannot be decoded and ``on_error="raise"``.
        RuntimeError: another process is encoding to ``out``, or another process of the group failed.
        OSError: ``out`` cannot be written; what is there is whole, and the same call goes on.

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
    check_model(model)
    check_dataset(dataset)
    for name, value in (("batch_size", batch_size), ("shard_size", shard_size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an int >= 1, got {value!r}")
    if on_error not in ("record", "raise"):
        raise ValueError(f"on_error must be 'record' or 'raise', got {on_error!r}")
    out = Path(out)
    reader = Reader(dataset, transform, model_transform(model), on_error == "raise")
    replicas = _replicas(model, devices, dtype)
    ranks = Ranks()
    with ExitStack() as stack:
        stack.callback(ranks.close)
        for replica in replicas:
            stack.enter_context(eval_mode(replica.model))
        manifests = ranks.together(lambda: _describe(replicas[0], reader, dtype, shard_size))
        manifest = manifests[0]
        for rank, other in enumerate(manifests):
            if manifest.differences(other):
                raise ValueError(f"process {rank} encodes something else: {manifest.differences(other)}")
        files = ShardFolder(out, manifest)

        def prepare() -> list[tuple[int, int]]:
            if ranks.rank:
                return []
            stack.enter_context(only_writer(out))
            files.prepare(resume)
            return list(files.missing())

        batches = Batches(ranks.together(prepare)[0], batch_size, ranks.rank, ranks.size)
        bar = tqdm(  # type: ignore[no-untyped-call]
            desc="encode",
            unit="image",
            total=sum(map(len, batches)),
            disable=not progress or ranks.rank > 0,
        )
        stack.enter_context(bar)
        ranks.together(lambda: _encode(replicas, reader, batches, num_workers, files, save_seconds, bar))
        ranks.together(lambda: files.join_parts(range(ranks.rank, files.count, ranks.size)))
        done = ranks.together(lambda: None if ranks.rank else files.finish())[0]
    assert done is not None
    if done.failed and ranks.rank == 0:
        warnings.warn(
            f"{done.failed} of {done.images} images have no code: "
            f"hybridhash.encoding.read_failures({str(out)!r}) says which and why",
            stacklevel=2,
        )
    return done


class _Replica(NamedTuple):
    """The model on one device."""

    model: nn.Module
    device: torch.device
    autocast: Any


class _Launched(NamedTuple):
    """A batch, and its codes (packed, which are NaN, bits), perhaps still being computed."""

    batch: Batch
    codes: tuple[Tensor, Tensor, int] | None


class _Saver:
    """Keeps what is done until it is time to write it."""

    def __init__(self, files: ShardFolder, seconds: float) -> None:
        self.files = files
        self.seconds = seconds
        self.pending: list[Rows] = []
        self.saved = time.monotonic()

    def add(self, rows: Rows) -> None:
        joins = self.pending and rows.start == self.pending[-1].stop
        if not joins or rows.start % self.files.manifest.shard_size == 0:
            self.save()
        self.pending.append(rows)
        if time.monotonic() - self.saved >= self.seconds:
            self.save()

    def save(self) -> None:
        if self.pending:
            codes = HashCodes.cat([rows.codes for rows in self.pending])
            failures = [failure for rows in self.pending for failure in rows.failures]
            self.files.write_part(Rows(self.pending[0].start, self.pending[-1].stop, codes, failures))
            self.pending = []
        self.saved = time.monotonic()


def _encode(
    replicas: Sequence[_Replica],
    reader: Reader,
    batches: Batches,
    num_workers: int,
    files: ShardFolder,
    save_seconds: float,
    bar: Any,
) -> None:
    """Encode the batches of this process and write them as parts of shards."""
    if not len(batches):
        return
    pin = any(replica.device.type == "cuda" for replica in replicas)
    loader: DataLoader[Any] = DataLoader(
        reader,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin,
    )
    saver = _Saver(files, save_seconds)
    launched: deque[_Launched] = deque()

    def fetch() -> None:
        rows = _fetch(launched.popleft(), files.manifest, reader.strict)
        saver.add(rows)
        bar.update(rows.stop - rows.start)

    for number, batch in enumerate(loader):
        replica = replicas[number % len(replicas)]
        images = None if batch.images is None else to_device(batch.images, replica.device)
        # Only now is an earlier batch fetched, so that the devices computed while the loader was at work.
        if len(launched) == len(replicas):
            fetch()
        codes = None
        if images is not None:
            name = f"rows {batch.start} to {batch.stop - 1}"
            codes = launch(replica.model, images, replica.autocast, name)
        launched.append(_Launched(batch._replace(images=None), codes))
    while launched:
        fetch()
    saver.save()


def _fetch(launched: _Launched, manifest: Manifest, strict: bool) -> Rows:
    """The codes of a batch once they are computed, those that are NaN among the failures."""
    batch, failures = launched.batch, launched.batch.failures
    if launched.codes is None:
        return Rows(batch.start, batch.stop, manifest.no_codes(), failures)
    packed, nan, bits = launched.codes
    good = ~nan.cpu()
    if not bool(good.all()):
        failed = {failure.row for failure in failures}
        read = [row for row in range(batch.start, batch.stop) if row not in failed]
        bad = [(read[k], int(batch.ids[k])) for k in (~good).nonzero()[:, 0].tolist()]
        if strict or len(bad) == len(read) > 1:
            raise ValueError(
                f"the model gave NaN codes for {len(bad)} of the {len(read)} images of rows {batch.start} to "
                f"{batch.stop - 1}, the first is row {bad[0][0]}: check it, and whether training diverged"
            )
        failures = sorted([*failures, *(Failure(row, id, "the model gave NaN codes") for row, id in bad)])
    labels = None if batch.labels is None else batch.labels[good]
    codes = HashCodes(packed.cpu()[good], bits, labels, batch.ids[good])
    name = f"rows {batch.start} to {batch.stop - 1}"
    check_joinable(manifest.no_codes(), codes, ("the images before", name))
    return Rows(batch.start, batch.stop, codes, failures)


def _describe(replica: _Replica, reader: Reader, dtype: torch.dtype | None, shard_size: int) -> Manifest:
    """The manifest that the first image which can be read leads to."""
    failure = None
    for row in range(len(reader)):
        sample = reader[row]
        if isinstance(sample, Sample):
            break
        failure = failure or sample
    else:
        assert failure is not None
        raise ValueError(f"none of the {len(reader)} images can be read; row {failure.row}: {failure.reason}")
    batch = collate([sample])
    assert batch.images is not None
    images = to_device(batch.images, replica.device)
    bits = launch(replica.model, images, replica.autocast, f"row {sample.row}")[2]
    labels, classes = "none", None
    if batch.labels is not None:
        labels = "class ids" if batch.labels.ndim == 1 else "multi-hot"
        classes = batch.labels.shape[1] if batch.labels.ndim == 2 else None
    applied = reader.transform or (reader.model_transform if reader.decodes else None)
    transforms = [t for t in (getattr(reader.dataset, "transform", None), applied) if t is not None]
    return Manifest(
        model=model_name(replica.model),
        weights_sha256=weights_sha256(replica.model),
        bits=bits,
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        transform=", then ".join(map(describe, transforms)) or None,
        labels=labels,
        classes=classes,
        images=len(reader),
        shard_size=shard_size,
    )


def _replicas(
    model: nn.Module,
    devices: torch.device | str | Sequence[torch.device | str] | None,
    dtype: torch.dtype | None,
) -> list[_Replica]:
    """The model on each device: itself where it is, copies elsewhere."""
    home = input_device(model, None)
    if devices is None:
        places = [home]
    elif isinstance(devices, (str, torch.device)):
        places = [torch.device(devices)]
    else:
        places = [torch.device(device) for device in devices]
    if not places:
        raise ValueError("devices is empty: name one, or give None for where the model is")
    replicas = []
    for place in places:
        here = place.type == home.type and place.index in (None, home.index)
        copied = model if here else copy.deepcopy(model).to(place)
        place = home if here else place
        replicas.append(_Replica(copied, place, autocast_of(copied, place, dtype)))
    return replicas
