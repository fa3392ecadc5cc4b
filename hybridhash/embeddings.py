"""Codes of ready embeddings in one call: of any width, from any network, in memory, on disk or in batches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from hybridhash._checks import check_choice, check_integer, generator_device
from hybridhash._code_checks import MAX_BITS, as_ids, check_numbers, from_numpy
from hybridhash._inference import eval_mode, input_device
from hybridhash.codes import HashCodes
from hybridhash.labels import as_labels
from hybridhash.models.embedding_input import EmbeddingInput
from hybridhash.models.fit import fit_hash_layer
from hybridhash.models.hash_model import HashModel, create_hash_model
from hybridhash.models.heads import ProjectionHead

__all__ = ["EmbeddingBatches", "encode_embeddings", "hash_embeddings", "head_codes"]

Array: TypeAlias = "np.ndarray[Any, Any]"
Features: TypeAlias = "Tensor | Array | Iterable[Tensor | Array]"
Metric = Literal["euclidean", "cosine"]


def hash_embeddings(
    features: Features,
    bits: int,
    method: str = "auto",
    labels: Tensor | Array | None = None,
    *,
    metric: Metric = "euclidean",
    lengths: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 8192,
    progress: bool = False,
) -> tuple[HashCodes, HashModel]:
    """Turn embeddings into codes, and return them with the head that hashes further embeddings.

    Embeddings are read twice, in batches: once to fit the head, once to compute the codes. Memory does not
    grow with their number, but for the codes themselves.

    ``method="auto"`` is ``"rabitq"``: it takes every width and length, and its codes carry the correction
    factors that let real-valued queries estimate distances (:func:`hybridhash.asymmetric_topk`). With
    ``labels`` it is ``"itqcca"``, which brings embeddings with a common label together.

    Args:
        features: Embeddings ``(N, D)``, floating point: a tensor, a NumPy array (also one that is mapped from
            a file), or an iterable of such batches that can be read twice, such as a list or a DataLoader. Of
            a batch that is a tuple or list the first entry counts. A loader must not shuffle.
        bits: The code length, 1 to 4,096.
        method: ``"auto"``, a method of :func:`hybridhash.models.fit_hash_head`, or ``"itqcca"``.
        labels: Class ids ``(N,)`` or multi-hot labels ``(N, C)``. They become the labels of the codes. Only
            ``"itqcca"`` learns from them, from at most 50,000 rows.
        metric: What makes embeddings near. ``"cosine"`` divides each by its length first, and so does the
            head with later ones.
        lengths: Code lengths to which the codes may be cut, ascending to ``bits``, for ``"rabitq"`` and
            ``"itq"``; see :func:`hybridhash.models.fit_hash_head`.
        generator: The source of all random numbers.
        batch_size: The number of rows of an array that are read at a time.
        progress: Whether to show progress bars on stderr.

    Returns:
        ``(codes, model)``. The codes have row numbers as ids, and factors if the method is ``"rabitq"``. The
        model maps embeddings ``(B, D)`` to real-valued codes ``(B, bits)`` of queries;
        :func:`encode_embeddings` and :mod:`hybridhash.hub` take it. It is in eval mode.

    Raises:
        TypeError: The features are a path, an iterator, which can be read only once, or hold no
            floating-point numbers.
        ValueError: The features are empty, not ``(N, D)``, of different widths, not finite or all the same;
            they are shuffled, or another number at the second reading; they are fewer or vary in fewer
            directions than the method needs; labels have another length; or an argument is out of range.

    Example:
        >>> features = torch.randn(500, 96)
        >>> codes, model = hash_embeddings(features, bits=64)
        >>> model(features[:2]).shape
        torch.Size([2, 64])
    """
    check_integer("bits", bits, 1, MAX_BITS)
    check_integer("batch_size", batch_size, 1)
    check_choice("metric", metric, get_args(Metric))
    if method == "auto":
        method = "rabitq" if labels is None else "itqcca"
    batches = EmbeddingBatches(features, batch_size)
    if labels is not None:
        labels = as_labels(labels, length=batches.rows)
    cosine = metric == "cosine"
    model = create_hash_model("embedding_input", bits, in_chans=batches.width(), normalize=cosine)
    if method == "itqcca":
        if lengths is not None:
            raise ValueError("lengths are for 'itq' and 'rabitq', but the method is 'itqcca'")
        _fit_to_labels(model, batches, labels, generator)
    else:
        rows = _shown(batches, f"fit {method}", progress)
        settings: Any = {"method": method, "generator": generator, "lengths": lengths, "progress": False}
        fit_hash_layer(model, rows, **settings)
        if labels is not None:
            labels = as_labels(labels, length=batches.rows)  # of batches, they are counted by now
    model.eval()
    codes = encode_embeddings(model, batches, progress=progress)
    if labels is not None:
        codes = replace(codes, labels=labels.cpu())
    return codes, model


def encode_embeddings(
    model: HashModel,
    features: Features,
    ids: Tensor | Array | None = None,
    *,
    batch_size: int = 8192,
    progress: bool = False,
) -> HashCodes:
    """Encode further embeddings with a fitted model, such as new items of the database.

    Args:
        model: The model of :func:`hash_embeddings`, also after saving and loading. It runs in eval mode and
            returns to its own.
        features: Embeddings as for :func:`hash_embeddings`; an iterator is fine here.
        ids: The id of each row, integers ``(N,)``. None numbers the rows from 0; give ids of your own where
            codes are added to others.
        batch_size: The number of rows of an array that are read at a time.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The codes with their ids, on the CPU; with factors if the head is that of ``"rabitq"``. These hold the
        norms of the centred embeddings, so that distances count what lies outside of the projection.

    Raises:
        TypeError: The model is no :class:`hybridhash.models.HashModel`, or as :func:`hash_embeddings`.
        ValueError: The embeddings have another width than those of the fit, there are more or fewer ids than
            rows, or as :func:`hash_embeddings`.

    Example:
        >>> features = torch.randn(500, 96)
        >>> _, model = hash_embeddings(features, bits=64)
        >>> encode_embeddings(model, features[:3]).factors.shape
        torch.Size([3, 2])
    """
    if not isinstance(getattr(model, "backbone", None), EmbeddingInput):
        raise TypeError(
            f"model must be that of hash_embeddings, which takes embeddings, got {type(model).__name__}: for "
            "models of images there is encode"
        )
    check_integer("batch_size", batch_size, 1)
    if not isinstance(features, EmbeddingBatches):
        features = EmbeddingBatches(features, batch_size, once=True)
    device = input_device(model, None)
    parts = []
    with eval_mode(model), torch.no_grad():
        for batch in _shown(features, "encode", progress):
            inputs = model.backbone(batch.to(device))
            parts.append(head_codes(model.head, inputs, factors=isinstance(model.head, ProjectionHead)))
    if not parts:
        raise ValueError(_EMPTY)
    codes = HashCodes.cat(parts)
    rows = torch.arange(len(codes)) if ids is None else as_ids(ids, length=len(codes))
    return replace(codes, ids=rows.cpu())


def _shown(batches: EmbeddingBatches, task: str, progress: bool) -> Iterator[Tensor]:
    """Yield the batches, with a progress bar on stderr if it is wanted."""
    bar = tqdm(desc=task, total=batches.rows, unit="row", disable=not progress)  # type: ignore[no-untyped-call]
    with bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def head_codes(head: nn.Module, inputs: Tensor, *, factors: bool) -> HashCodes:
    """Return the codes of a batch on the CPU; factors have the norms of whole embeddings where known."""
    norms = head.norms(inputs) if factors and isinstance(head, ProjectionHead) else None
    return HashCodes.from_codes(head(inputs), factors=factors, norms=norms).to("cpu")


class EmbeddingBatches:
    """The batches of embeddings of any accepted kind, as finite float32 tensors; they can be read repeatedly.

    Args:
        features: As for :func:`hash_embeddings`.
        batch_size: The number of rows of an array that are read at a time.
        once: Whether an iterator will do, which is used up after one pass.

    Attributes:
        rows: The number of rows; of an iterable it is None before the first complete pass.

    Raises:
        TypeError, ValueError: As :func:`hash_embeddings`, some only when the batches are read.

    Example:
        >>> [len(batch) for batch in EmbeddingBatches(np.zeros((5, 2)), 2)]
        [2, 2, 1]
    """

    def __init__(self, features: Features, batch_size: int, *, once: bool = False) -> None:
        self.rows: int | None = None
        if isinstance(features, (Tensor, np.ndarray)):
            if features.ndim != 2:
                raise ValueError(f"features must be (N, D), got shape {tuple(features.shape)}")
            if isinstance(features, Tensor):
                check_numbers(features, "features")
            self.rows = len(features)
        elif isinstance(features, (str, os.PathLike)):
            raise TypeError(
                f"features must be embeddings, got the path {os.fspath(features)!r}: give "
                "numpy.load(path, mmap_mode='r')"
            )
        elif not isinstance(features, Iterable):
            raise TypeError(
                "features must be a tensor, a NumPy array or an iterable of batches of these, got "
                f"{type(features).__name__}"
            )
        elif isinstance(features, Iterator) and not once:
            raise TypeError(
                f"features must be readable twice, got a {type(features).__name__}, which is used up after "
                "one pass: give a list, a DataLoader, or an array mapped from a file (numpy.load with "
                "mmap_mode='r')"
            )
        elif isinstance(getattr(features, "sampler", None), _SHUFFLING):
            raise ValueError(
                "features come in another order at each pass, so codes could not be matched with rows: make "
                "the DataLoader with shuffle=False"
            )
        self._features, self._batch_size = features, batch_size

    def width(self) -> int:
        """Return the width of the embeddings, that of the first batch."""
        for batch in self:
            return batch.shape[1]
        raise ValueError(_EMPTY)

    def count(self) -> int:
        """Return the number of rows, for which an iterable is read through once."""
        return sum(len(batch) for batch in self) if self.rows is None else self.rows

    def take(self, rows: Tensor) -> Tensor:
        """Return rows as float32 ``(len(rows), D)``, given by their numbers in rising order."""
        if isinstance(self._features, (Tensor, np.ndarray)):
            chosen: Any = rows.numpy() if isinstance(self._features, np.ndarray) else rows
            return _as_float(self._features[chosen], "the sample of features", rows).cpu()
        parts, start = [], 0
        for batch in self:
            inside = (rows >= start) & (rows < start + len(batch))
            parts.append(batch.cpu()[rows[inside] - start])
            start += len(batch)
        return torch.cat(parts)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the batches that have rows, and check that all are alike."""
        width, total = None, 0
        for number, content in enumerate(self._contents()):
            batch = _as_float(content, f"batch {number} of features", total)
            if len(batch) == 0:
                continue
            width = batch.shape[1] if width is None else width
            if batch.shape[1] != width:
                raise ValueError(
                    f"batch {number} of features is {batch.shape[1]} wide, those before {width}: all must be "
                    "of one network"
                )
            total += len(batch)
            yield batch
        if self.rows not in (None, total):
            raise ValueError(
                f"features had {self.rows} rows at first and {total} when read again: they must stay the same"
            )
        self.rows = total

    def _contents(self) -> Iterator[Any]:
        """Yield what the user gave for each batch."""
        if not isinstance(self._features, (Tensor, np.ndarray)):
            for content in self._features:
                yield content[0] if isinstance(content, (tuple, list)) and content else content
            return
        for start in range(0, len(self._features), self._batch_size):
            yield self._features[start : start + self._batch_size]


def _as_float(batch: Tensor | Array, name: str, rows: Tensor | int = 0) -> Tensor:
    """Return a batch as a float32 tensor without gradient; raise unless it is ``(B, D)``, floating, finite.

    Args:
        batch: What the user gave.
        name: Its name in error messages.
        rows: The number of its first row among the features, or those of all.
    """
    if isinstance(batch, np.ndarray):
        batch = from_numpy(batch, name)
    if not isinstance(batch, Tensor):
        raise TypeError(f"{name} must be a tensor or a NumPy array, got {type(batch).__name__}")
    if not batch.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point, got {batch.dtype}: embeddings are real-valued")
    if batch.ndim != 2 or batch.shape[1] == 0:
        raise ValueError(f"{name} must be (B, D) with D at least 1, got shape {tuple(batch.shape)}")
    check_numbers(batch, name)
    batch = batch.detach().float()
    finite = batch.isfinite().all(1)
    if not bool(finite.all()):
        bad = (~finite).nonzero()[:, 0].cpu()
        first = int(rows[bad[0]]) if isinstance(rows, Tensor) else rows + int(bad[0])
        raise ValueError(
            f"{name} holds NaN or infinity in {len(bad)} of {len(batch)} rows, the first is row {first} of "
            "the features: leave these rows out"
        )
    return batch


def _fit_to_labels(
    model: HashModel, batches: EmbeddingBatches, labels: Tensor | None, generator: torch.Generator | None
) -> None:
    """Write ITQ-CCA's linear map into the head, fitted to a uniform sample of the labelled rows."""
    from hybridhash.shallow import ITQCCA

    if labels is None:
        raise ValueError('method "itqcca" learns from labels: give labels, or another method')
    as_labels(labels, length=batches.count())
    order = torch.randperm(len(labels), generator=generator, device=generator_device(generator))
    kept = order[:_LABELLED_ROWS].cpu().sort().values
    estimator = ITQCCA(model.bits)
    inputs = model.backbone(batches.take(kept))
    codes = estimator.fit_transform(inputs, labels.cpu()[kept], generator=generator)
    scale = codes.double().square().mean().rsqrt()  # one number for all: tanh is not saturated
    weight = estimator.projection_.T * scale
    with torch.no_grad():
        fc: Any = model.get_classifier()
        fc.weight.copy_(weight)
        fc.bias.copy_(-(weight @ estimator.mean_))


_EMPTY = "features are empty: give at least one batch with rows"
_LABELLED_ROWS = 50_000  # a bound of memory: ITQ-CCA computes in float64
_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
