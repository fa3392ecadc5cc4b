"""Batches with several images of each of several classes, as triplet losses need them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from hybridhash._checks import check_integer, generator_device
from hybridhash.labels import as_labels, labelled

__all__ = ["BalancedBatches", "balanced_batches"]


def balanced_batches(
    labels: Tensor,
    classes_per_batch: int,
    images_per_class: int,
    generator: torch.Generator | None = None,
) -> BalancedBatches:
    """Make a batch sampler of ``classes_per_batch`` classes with ``images_per_class`` images of each.

    Classes are dealt in shuffled rounds, so all come up equally often whatever their sizes. The images of a
    class are dealt in shuffled rounds too, which continue in the next epoch. No image is twice in a batch: a
    class with too few images gives all it has, and the batch is smaller. With multi-hot labels an image
    belongs to each of its classes, and counts for the class it was drawn for. Images without label are never
    drawn.

    Args:
        labels: The labels of the whole data set, class ids ``(N,)`` or multi-hot ``(N, C)``.
        classes_per_batch: The number of distinct classes in a batch.
        images_per_class: The number of images of each of them.
        generator: The source of randomness. Its state advances, so every epoch differs, and a fresh generator
            of the same seed repeats the sequence. None takes torch's global one. Under ``torch.distributed``
            give each rank its own seed.

    Returns:
        An iterable of lists of indices for ``DataLoader(dataset, batch_sampler=...)``. Its length is the
        number of labelled images divided by the batch size, rounded up. It may be iterated any number of
        times.

    Raises:
        TypeError: A number is not an integer.
        ValueError: A number is below 1, or fewer classes than ``classes_per_batch`` have images.

    Example:
        >>> batches = balanced_batches(torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]), 2, 2, torch.Generator())
        >>> len(batches), [len(batch) for batch in batches]
        (3, [4, 4, 4])
    """
    return BalancedBatches(labels, classes_per_batch, images_per_class, generator)


class BalancedBatches(Sampler[list[int]]):
    """The batch sampler that :func:`balanced_batches` makes; the arguments are explained there."""

    def __init__(
        self,
        labels: Tensor,
        classes_per_batch: int,
        images_per_class: int,
        generator: torch.Generator | None = None,
    ) -> None:
        check_integer("classes_per_batch", classes_per_batch, 1)
        check_integer("images_per_class", images_per_class, 1)
        labels = as_labels(labels).cpu()
        images = [members for members in _members(labels) if len(members)]
        if len(images) < classes_per_batch:
            raise ValueError(
                f"classes_per_batch is {classes_per_batch}, but only {len(images)} classes have images: "
                "ask for fewer classes"
            )
        self.classes_per_batch = classes_per_batch
        self.images_per_class = images_per_class
        self.num_labelled = int(labelled(labels).sum())
        self._classes = _Deck(torch.arange(len(images)), generator)
        self._images = [_Deck(members, generator) for members in images]

    def __len__(self) -> int:
        batch_size = self.classes_per_batch * self.images_per_class
        return -(-self.num_labelled // batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(len(self)):
            batch: dict[int, None] = {}
            for label in self._classes.draw(self.classes_per_batch, taken=()):
                batch.update(dict.fromkeys(self._images[label].draw(self.images_per_class, taken=batch)))
            yield list(batch)


class _Deck:
    """Cards in shuffled rounds: each comes up once before any comes up again."""

    def __init__(self, cards: Tensor, generator: torch.Generator | None) -> None:
        self.cards = cards
        self.generator = generator
        self.device = generator_device(generator)
        self.remaining: list[int] = []

    def draw(self, number: int, taken: Collection[int]) -> list[int]:
        """Draw up to ``number`` distinct cards not in ``taken``; fewer only if the deck has no more of them.

        Cards that are passed over (taken, or drawn already at the turn of a round) stay for the next draw.
        """
        drawn: dict[int, None] = {}
        passed: list[int] = []
        reshuffled = False
        while len(drawn) < number:
            if not self.remaining:
                if reshuffled:
                    break
                reshuffled = True
                self.remaining = self._shuffled()
            card = self.remaining.pop()
            if card in taken or card in drawn:
                passed.append(card)
            else:
                drawn[card] = None
        self.remaining.extend(reversed(passed))
        return list(drawn)

    def _shuffled(self) -> list[int]:
        order = torch.randperm(len(self.cards), generator=self.generator, device=self.device)
        shuffled: list[int] = self.cards[order.cpu()].tolist()
        return shuffled


def _members(labels: Tensor) -> list[Tensor]:
    """Return the images of each class."""
    if labels.ndim == 2:
        return [column.nonzero()[:, 0] for column in labels.T]
    order = torch.argsort(labels, stable=True)
    counts = torch.unique(labels, return_counts=True)[1].tolist()
    groups = list(torch.split(order, counts))
    return groups[1:] if bool((labels < 0).any()) else groups
