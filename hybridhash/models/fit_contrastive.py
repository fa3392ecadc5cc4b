"""The contrastive head of ``fit_hash_head``: neighbours among the features take the place of labels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import skip_init

from hybridhash._checks import generator_device
from hybridhash.losses.contrastive import contrastive_loss
from hybridhash.models.heads import HashCoderHead
from hybridhash.shallow.statistics import FeatureStatistics
from hybridhash.shallow.unsupervised import principal_directions

__all__ = ["fit_hash_coder", "nearest_neighbours", "paired", "walk_ends"]

# Chosen on parts of the database of two sets of features, held out for it (docs/data_driven.md).
_NEIGHBOURS = 10
_WALK = 3
_TEMPERATURE = 0.4
_STEPS = 400
_BATCH = 256
_RATE = 1e-3
_HIDDEN = 512
_DIRECTIONS = 256
_BLOCK = 4096  # rows of features in float64 at once


def paired(features: Tensor | Iterable[Tensor], views: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield batches of two aligned views side by side, ``(B, 2 D)``.

    Raises:
        TypeError: A batch is not a tensor.
        ValueError: The views have other numbers of batches, rows or columns than the features.
    """
    both = ([given] if isinstance(given, Tensor) else given for given in (features, views))
    for number, (first, second) in enumerate(itertools.zip_longest(*both)):
        if first is None or second is None:
            few, many = ("features", "views") if first is None else ("views", "features")
            raise ValueError(
                f"{few} end after {number} batches, but {many} go on: give one row of views for each of "
                "features, in the same batches"
            )
        for name, batch in (("features", first), ("views", second)):
            if not isinstance(batch, Tensor):
                raise TypeError(f"{name} of batch {number} must be a tensor, got {type(batch).__name__}")
        if first.ndim != 2 or first.shape != second.shape:
            raise ValueError(
                f"batch {number} of views has shape {tuple(second.shape)}, that of features "
                f"{tuple(first.shape)}: both must be (B, D), row i of both a view of one item"
            )
        yield torch.cat([first, second.to(first)], dim=1)


def nearest_neighbours(features: Tensor, number: int) -> Tensor:
    """Find the other rows of largest cosine, exactly: int64 ``(N, number)``, the nearest first.

    The (N, N) cosines are made in blocks of at most 128 MiB.

    Args:
        features: ``(N, D)`` float32.
        number: Neighbours of each row, 1 to N - 1.

    Example:
        >>> nearest_neighbours(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), 1).flatten()
        tensor([1, 0, 1])
    """
    x = F.normalize(features)
    size = max(2**25 // len(x), 1)
    found = []
    for start in range(0, len(x), size):
        block = x[start : start + size]
        cosines = block @ x.T
        cosines[:, start : start + size].fill_diagonal_(-math.inf)  # no row is its own neighbour
        found.append(cosines.topk(number).indices)
    return torch.cat(found)


def fit_hash_coder(
    features: Tensor,
    bits: int,
    generator: torch.Generator | None = None,
    *,
    pairs: bool = False,
    iterations: int = _STEPS,
) -> HashCoderHead:
    """Train a head by NT-Xent on the signs of its codes; see :func:`hybridhash.models.fit_hash_head`.

    Args:
        features: ``(N, D)`` float32 on the CPU, finite; with ``pairs`` ``(N, 2 D)``.
        bits: The code length.
        generator: The source of all random numbers.
        pairs: Whether each row holds two views of an item side by side. Else the positives are neighbours.
        iterations: Steps of training.

    Returns:
        The head, in evaluation mode.
    """
    with torch.inference_mode(False), torch.enable_grad():
        views = [part.clone() for part in features.chunk(2, dim=1)] if pairs else [features.clone()]
        statistics = FeatureStatistics(sample_size=0)
        for view in views:
            for start in range(0, len(view), _BLOCK):
                statistics.update(view[start : start + _BLOCK])
        # Training sees the features along their principal directions, all divided by one number.
        width = len(statistics.mean)
        directions, variances = principal_directions(statistics.covariance, min(_DIRECTIONS, width))
        basis = (directions / variances.mean().sqrt()).float()
        mean = statistics.mean.float()
        views = [(view - mean) @ basis for view in views]
        neighbours = None
        if not pairs:
            neighbours = nearest_neighbours(features, min(_NEIGHBOURS, len(features) - 1))
        head = _new_head(basis.shape[1], bits, generator)
        _train(head, views, neighbours, iterations, generator)
        _set_statistics(head, torch.cat(views))
        return _on_features(head, basis, mean)


def _new_head(in_features: int, bits: int, generator: torch.Generator | None) -> HashCoderHead:
    """Make a head with the weights of torch's own initialisation, drawn from ``generator``."""
    head: HashCoderHead = skip_init(HashCoderHead, in_features, bits, hidden=_HIDDEN)  # type: ignore[no-untyped-call]
    for norm in (head.hidden_norm, head.norm):
        norm.reset_parameters()
    with torch.no_grad():
        for parameter, width in (
            (head.hidden.weight, in_features),
            (head.hidden.bias, in_features),
            (head.fc.weight, _HIDDEN),
        ):
            parameter.copy_((2 * _uniform(parameter.shape, generator) - 1) / math.sqrt(width))
    return head.train()


def _train(
    head: HashCoderHead,
    views: list[Tensor],
    neighbours: Tensor | None,
    iterations: int,
    generator: torch.Generator | None,
) -> None:
    optimizer = torch.optim.Adam(head.parameters(), lr=_RATE)
    # A warm-up of one step divides by 0 in torch; very short runs end before the schedule.
    steps = max(iterations, 20)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.1)
    items = len(views[0])
    for _ in range(iterations):
        rows = _uniform((items,), generator).argsort()[:_BATCH]
        others = rows if neighbours is None else walk_ends(neighbours, rows, generator)
        codes = torch.tanh(head(torch.cat([views[0][rows], views[-1][others]])))
        loss = contrastive_loss(
            codes, torch.arange(len(rows)).repeat(2), temperature=_TEMPERATURE, binary="sign"
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def walk_ends(neighbours: Tensor, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return where walks from ``rows`` end, after three steps from a row to one of its neighbours.

    Args:
        neighbours: int64 ``(N, number)``, as :func:`nearest_neighbours` gives them.
        rows: int64 ``(B,)``.
        generator: The source of the steps.
    """
    for _ in range(_WALK):
        step = (_uniform(rows.shape, generator) * neighbours.shape[1]).long()
        rows = neighbours[rows, step]
    return rows


@torch.no_grad()
def _set_statistics(head: HashCoderHead, x: Tensor) -> None:
    """Give batch normalisation the statistics of all features, in place of those of the last batches."""
    norms = (head.hidden_norm, head.norm)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, of which there is one
    head.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def _on_features(head: HashCoderHead, basis: Tensor, mean: Tensor) -> HashCoderHead:
    """Return the head of features x for that of ``(x - mean) basis``."""
    whole: HashCoderHead = skip_init(HashCoderHead, len(mean), head.bits, hidden=_HIDDEN)  # type: ignore[no-untyped-call]
    weight = head.hidden.weight.double() @ basis.double().T
    state = head.state_dict()
    state["hidden.weight"] = weight
    state["hidden.bias"] = head.hidden.bias - weight @ mean.double()
    whole.load_state_dict(state)
    return whole.eval()


def _uniform(shape: torch.Size | tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Draw from [0, 1), float32 on the CPU, wherever the generator is."""
    device = generator_device(generator)
    return torch.rand(shape, dtype=torch.float32, generator=generator, device=device).cpu()
