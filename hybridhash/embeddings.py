"""Codes of ready embeddings in one call: of any width, from any network, in memory, on disk or in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
from torch import Tensor, nn

from hybridhash._checks import check_choice, check_integer
from hybridhash._code_checks import MAX_BITS, check_numbers, from_numpy
from hybridhash._inference import eval_mode, input_device
from hybridhash.codes import HashCodes
from hybridhash.labels import as_labels
from hybridhash.models.embedding_input import EmbeddingInput
from hybridhash.models.fit import fit_hash_layer
from hybridhash.models.hash_model import HashModel, create_hash_model
from hybridhash.models.heads import ProjectionHead

__all__ = ["encode_embeddings", "hash_embeddings"]

Array: TypeAlias = "np.ndarray[Any, Any]"
Features: TypeAlias = "Tensor | Array | Iterable[Tensor | Array]"
METRICS = ("euclidean", "cosine")
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
            a file), or an iterable of such batches that can be read twice, such as a list or a DataLoader.
        bits: The code length, 1 to 4,096.
        method: ``"auto"``, a method of :func:`hybridhash.models.fit_hash_head`, or ``"itqcca"``.
        labels: Class ids ``(N,)`` or multi-hot labels ``(N, C)``. They become the labels of the codes. Only
            ``"itqcca"`` learns from them, from at most 100,000 rows.
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
        TypeError: The features are an iterator, which can be read only once, or hold no floating-point
            numbers.
        ValueError: The features are empty, not ``(N, D)``, of different widths, not finite or all the same;
            they vary in fewer directions than the method needs; labels have another length; or an argument
            is out of range.

    Example:
        >>> features = torch.randn(500, 96)
        >>> codes, model = hash_embeddings(features, bits=64)
        >>> model(features[:2]).shape
        torch.Size([2, 64])
    """
    check_integer("bits", bits, 1, MAX_BITS)
    check_integer("batch_size", batch_size, 1)
    check_choice("metric", metric, METRICS)
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
        settings: Any = {"method": method, "generator": generator, "lengths": lengths, "progress": progress}
        fit_hash_layer(model, batches, **settings)
    model.eval()
    codes = encode_embeddings(model, batches, progress=progress)
    if labels is not None:
        codes = replace(codes, labels=as_labels(labels, length=len(codes)))
    return codes, model


def encode_embeddings(
    model: HashModel, features: Features, *, batch_size: int = 8192, progress: bool = False
) -> HashCodes:
    """Encode further embeddings with a fitted model, such as new items of the database.

    Args:
        model: The model of :func:`hash_embeddings`, also after saving and loading. It runs in eval mode and
            returns to its own.
        features: Embeddings as for :func:`hash_embeddings`; an iterator is fine here.
        batch_size: The number of rows of an array that are read at a time.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The codes, with row numbers as ids; and with factors if the head is that of ``"rabitq"``. The factors
        hold the norms of the centred embeddings, so that distances count what lies outside of the projection.

    Raises:
        TypeError, ValueError: As :func:`hash_embeddings`.

    Example:
        >>> features = torch.randn(500, 96)
        >>> _, model = hash_embeddings(features, bits=64)
        >>> encode_embeddings(model, features[:3]).factors.shape
        torch.Size([3, 2])
    """
    check_integer("batch_size", batch_size, 1)
    if not isinstance(getattr(model, "backbone", None), EmbeddingInput):
        raise TypeError(
            f"model must be that of hash_embeddings, which takes embeddings, got {type(model).__name__}: for "
            "models of images there is encode"
        )
    if not isinstance(features, EmbeddingBatches):
        features = EmbeddingBatches(features, batch_size, once=True)
    parts = []
    bar = tqdm(desc="encode", unit="row", disable=not progress)  # type: ignore[no-untyped-call]
    with eval_mode(model), torch.no_grad(), bar:
        for batch in features:
            inputs = model.backbone(batch.to(input_device(model, None)))
            parts.append(_codes(model.head, inputs))
            bar.update(len(batch))
    if not parts:
        raise ValueError("features are empty: give at least one batch with rows")
    codes = HashCodes.cat(parts)
    return replace(codes, ids=torch.arange(len(codes)))


def _codes(head: nn.Module, inputs: Tensor) -> HashCodes:
    """Return the codes of a batch, with factors where the head is a projection."""
    codes = head(inputs)
    if isinstance(head, ProjectionHead):
        return HashCodes.from_codes(codes, factors=True, norms=head.norms(inputs)).to("cpu")
    return HashCodes.from_codes(codes).to("cpu")


class EmbeddingBatches:
    """The batches of embeddings of any accepted kind, as float32 tensors; they can be read repeatedly.

    Args:
        features: As for :func:`hash_embeddings`.
        batch_size: The number of rows of an array that are read at a time.
        once: Whether an iterator will do, which is used up after one pass.

    Attributes:
        rows: The number of rows, None if the batches do not say.

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
        elif not hasattr(features, "__iter__"):
            kind = type(features).__name__
            raise TypeError(
                f"features must be (N, D), or batches of it, got {kind}: give a tensor or an array"
            )
        elif not once and iter(features) is features:
            raise TypeError(
                f"features must be readable twice, got a {type(features).__name__}, which is used up after "
                "one pass: give a list, a DataLoader, or an array mapped from a file (numpy.load with "
                "mmap_mode='r')"
            )
        self._features, self._batch_size = features, batch_size

    def width(self) -> int:
        """Return the width of the first batch."""
        for batch in self:
            return batch.shape[1]
        raise ValueError("features are empty: give at least one batch with rows")

    def __iter__(self) -> Iterator[Tensor]:
        if not isinstance(self._features, (Tensor, np.ndarray)):
            for number, batch in enumerate(self._features):
                yield _as_float(batch, f"batch {number} of features")
            return
        for start in range(0, len(self._features), self._batch_size):
            yield _as_float(self._features[start : start + self._batch_size], "features")


def _as_float(batch: Tensor | Array, name: str) -> Tensor:
    """Return a batch as a float32 tensor without gradient; raise unless it is ``(B, D)`` and floating."""
    if isinstance(batch, np.ndarray):
        batch = from_numpy(batch, name)
    if not isinstance(batch, Tensor):
        raise TypeError(f"{name} must be a tensor or a NumPy array, got {type(batch).__name__}")
    if not batch.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point, got {batch.dtype}: embeddings are real-valued")
    if batch.ndim != 2:
        raise ValueError(f"{name} must be (B, D), got shape {tuple(batch.shape)}")
    check_numbers(batch, name)
    if batch.shape[1] == 0:
        raise ValueError(f"{name} must be (B, D) with D at least 1, got shape {tuple(batch.shape)}")
    return batch.detach().float()


def _fit_to_labels(
    model: HashModel, batches: EmbeddingBatches, labels: Tensor | None, generator: torch.Generator | None
) -> None:
    """Write ITQ-CCA's linear map into the head, fitted to a uniform sample of the labelled rows."""
    from hybridhash.shallow import ITQCCA

    if labels is None:
        raise ValueError('method "itqcca" learns from labels: give labels, or another method')
    count = len(labels)
    kept = torch.ones(count, dtype=torch.bool)
    if count > _LABELLED_ROWS:
        kept[torch.randperm(count, generator=generator)[_LABELLED_ROWS:]] = False
    parts, start = [], 0
    for batch in batches:
        rows = kept[start : start + len(batch)]
        parts.append(model.backbone(batch[rows]))
        start += len(batch)
    if start != count:
        raise ValueError(f"there are {count} labels for {start} rows of features")
    estimator = ITQCCA(model.bits)
    codes = estimator.fit_transform(torch.cat(parts), labels[kept], generator=generator)
    scale = codes.double().square().mean().rsqrt()  # one number for all: tanh is not saturated
    weight = estimator.projection_.T * scale
    with torch.no_grad():
        fc: Any = model.get_classifier()
        fc.weight.copy_(weight)
        fc.bias.copy_(-(weight @ estimator.mean_))


_LABELLED_ROWS = 100_000
