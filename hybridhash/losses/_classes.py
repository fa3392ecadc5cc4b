"""What the losses that know the classes share: hash centers in a buffer, or a classifier on the codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hybridhash._checks import check_integer, generator_device
from hybridhash.losses._inputs import HasParts, check_codes
from hybridhash.losses.centers import CenterMethod, hash_centers, minimum_distance

__all__ = ["CenterLoss", "ClassifierLoss", "linear_classifier"]


class CenterLoss(HasParts):
    """A loss that keeps the hash centers of the classes in a buffer.

    Args:
        num_classes: number of classes C.
        bits: code length.
        centers: the method by which :func:`~hybridhash.losses.hash_centers` makes the centers, or ±1
            ``(C, bits)``.
        generator: source of the random choices.
    """

    requires: frozenset[str] = frozenset()

    centers: Tensor

    def __init__(
        self, num_classes: int, bits: int, centers: CenterMethod | Tensor, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        if isinstance(centers, Tensor):
            centers = _checked_centers(centers, num_classes, bits)
        else:
            centers = hash_centers(num_classes, bits, centers, generator)
        self.register_buffer("centers", centers)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.centers.shape[0]

    @property
    def bits(self) -> int:
        """Code length."""
        return self.centers.shape[1]

    def _add_tie_bits(self, generator: torch.Generator | None) -> None:
        # Drawn even where no label set can tie, so that a state dict always has the same keys.
        device = generator_device(generator)
        bits = torch.randint(2, (self.bits,), generator=generator, device=device)
        self.register_buffer("tie_bits", bits.cpu().float() * 2 - 1)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, bits={self.bits}"


def _checked_centers(centers: Tensor, num_classes: int, bits: int) -> Tensor:
    centers = check_codes(centers, bits=bits, name="centers").detach().to(torch.float32, copy=True)
    if centers.shape[0] != num_classes:
        raise ValueError(f"got {centers.shape[0]} centers for {num_classes} classes")
    if not bool((centers.abs() == 1).all()):
        raise ValueError("centers must be -1 and 1 only: binarize them first")
    if minimum_distance(centers) == 0:
        raise ValueError("two centers are equal, so their classes would get the same code: see hash_centers")
    return centers


def linear_classifier(
    num_classes: int, bits: int, *, bias: bool, generator: torch.Generator | None
) -> nn.Linear:
    """Return ``nn.Linear(bits, num_classes)`` on the CPU, in float32, whose start is from the generator."""
    check_integer("num_classes", num_classes, 1)
    check_integer("bits", bits, 1)
    classifier = nn.Linear(bits, num_classes, bias=bias, device="meta", dtype=torch.float32)
    classifier.to_empty(device="cpu")
    device = generator_device(generator)
    with torch.no_grad():
        # nn.Linear's own range, drawn from the generator.
        for parameter in classifier.parameters():
            drawn = torch.rand(parameter.shape, generator=generator, device=device, dtype=torch.float32)
            parameter.copy_((2 * drawn - 1) / bits**0.5)
    return classifier


class ClassifierLoss(HasParts):
    """A loss with a linear classifier on the codes, which is a parameter of the loss.

    Args:
        num_classes: number of classes C.
        bits: code length.
        bias: whether the classifier has a bias.
        generator: source of the classifier's first weights.
    """

    requires: frozenset[str] = frozenset({"parameters"})

    def __init__(self, num_classes: int, bits: int, *, bias: bool, generator: torch.Generator | None) -> None:
        super().__init__()
        self.classifier = linear_classifier(num_classes, bits, bias=bias, generator=generator)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.classifier.weight.shape[0])

    @property
    def bits(self) -> int:
        """Code length."""
        return int(self.classifier.weight.shape[1])
