"""Losses that learn codes through a classifier on them: DLBHC and GreedyHash."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridhash._checks import check_choice, check_not_negative
from hybridhash.losses._batch import refuse_reference
from hybridhash.losses._classes import check_batch, mean_over_labelled, single_labels

__all__ = ["DLBHCLoss", "GreedyHashLoss", "dlbhc_loss", "greedyhash_loss"]


def dlbhc_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    weight: Tensor,
    bias: Tensor | None = None,
    latent: Literal["sigmoid", "tanh"] = "sigmoid",
) -> Tensor:
    """Classification through a latent sigmoid layer; see :class:`DLBHCLoss`.

    Args:
        codes: ``(B, bits)`` floating-point.
        labels: ``(B,)`` class ids, or ``(B, C)`` with one label in a row at most.
        weight: ``(C, bits)`` of the classifier.
        bias: ``(C,)`` of the classifier; None: without.
        latent: what the codes are, see :class:`DLBHCLoss`.

    Returns:
        0-dim, float32 (float64 for float64 codes).

    Example:
        >>> dlbhc_loss(torch.tensor([[2.0, -1.0]]), torch.tensor([0]), weight=torch.eye(2))
        tensor(0.4333)
    """
    check_choice("latent", latent, ("sigmoid", "tanh"))
    codes, labels = check_batch(codes, labels, num_classes=weight.shape[0], bits=weight.shape[1])
    with torch.autocast(codes.device.type, enabled=False):
        activations = codes.sigmoid() if latent == "sigmoid" else (1 + codes) / 2
        losses = _classify(activations, labels, weight, bias, "DLBHCLoss")
        return mean_over_labelled(losses, labels)


def greedyhash_loss(codes: Tensor, labels: Tensor, *, weight: Tensor, alpha: float = 0.1) -> Tensor:
    """Classification of the signs of codes; see :class:`GreedyHashLoss`.

    Args:
        codes: ``(B, bits)`` floating-point.
        labels: ``(B,)`` class ids, or ``(B, C)`` with one label in a row at most.
        weight: ``(C, bits)`` of the classifier.
        alpha: weight of the penalty.

    Returns:
        0-dim, float32 (float64 for float64 codes).

    Example:
        >>> greedyhash_loss(torch.tensor([[2.0, -1.0]]), torch.tensor([0]), weight=torch.eye(2))
        tensor(0.1769)
    """
    check_not_negative(alpha=alpha)
    codes, labels = check_batch(codes, labels, num_classes=weight.shape[0], bits=weight.shape[1])
    with torch.autocast(codes.device.type, enabled=False):
        losses = _classify(_GreedySign.apply(codes), labels, weight, None, "GreedyHashLoss")
        if alpha:
            losses = losses + alpha * (codes.abs() - 1).abs().pow(3).mean(1)
        return mean_over_labelled(losses, labels)


def _classify(inputs: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None, method: str) -> Tensor:
    """Cross entropy of each row, 0 for rows without a label."""
    logits = F.linear(inputs, weight.to(inputs.dtype), None if bias is None else bias.to(inputs.dtype))
    return F.cross_entropy(logits, single_labels(labels, method), ignore_index=-1, reduction="none")


class _GreedySign(torch.autograd.Function):
    """Sign with the gradient of the identity; like everywhere in the package the sign of 0 is -1."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor) -> Tensor:
        return torch.where(codes > 0, 1.0, -1.0).to(codes.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _ClassifierLoss(nn.Module):
    """What both losses share: the classifier, a parameter of the loss."""

    requires: frozenset[str] = frozenset({"parameters"})

    def __init__(self, num_classes: int, bits: int, *, bias: bool, generator: torch.Generator | None) -> None:
        super().__init__()
        for name, size in (("num_classes", num_classes), ("bits", bits)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.classifier = nn.Linear(bits, num_classes, bias=bias, device="meta").to_empty(device="cpu")
        device = "cpu" if generator is None else generator.device
        with torch.no_grad():
            # nn.Linear's own range, drawn from the generator.
            for parameter in self.classifier.parameters():
                drawn = torch.rand(parameter.shape, generator=generator, device=device)
                parameter.copy_((2 * drawn - 1) / bits**0.5)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.classifier.weight.shape[0])

    @property
    def bits(self) -> int:
        """Length of a code."""
        return int(self.classifier.weight.shape[1])


class DLBHCLoss(_ClassifierLoss):
    r"""Deep learning of binary hash codes: a classifier on a latent layer of sigmoid units.

    .. math:: L = -\frac{1}{B} \sum_i \log \mathrm{softmax}(W a_i + b)_{y_i}, \quad a_i = \sigma(z_i)

    over the rows that have a label. A bit is 1 where a > 1/2, which is z > 0. One label per image: the paper
    has no rule for several, and rows with several are refused.

    The classifier belongs to this loss: give ``loss.parameters()`` to the optimizer too (the paper trains it
    with ten times the learning rate), and under ``torch.distributed`` wrap the loss in
    ``DistributedDataParallel`` like the network.

    Args:
        num_classes: classes C.
        bits: code length.
        latent: "sigmoid": the codes are the pre-activations z of a linear head, as in the paper. "tanh": they
            are the outputs u of a tanh head, and ``a = (1 + u) / 2``, the sigmoid of twice the head's
            pre-activation.
        generator: source of the classifier's first weights.

    Attributes:
        classifier: ``nn.Linear(bits, num_classes)``, W and b.

    Raises:
        ValueError: a size below 1, an unknown ``latent``.

    Source: Lin et al., Deep Learning of Binary Hash Codes for Fast Image Retrieval, CVPR Workshops 2015. Not
    in swuxyj/DeepHash-pytorch.

    Example:
        >>> loss = DLBHCLoss(num_classes=10, bits=48, generator=torch.Generator().manual_seed(0))
        >>> codes = torch.zeros(2, 48, requires_grad=True)
        >>> bool(loss(codes, torch.tensor([3, 5])) > 0), [tuple(p.shape) for p in loss.parameters()]
        (True, [(10, 48), (10,)])
    """

    def __init__(
        self,
        num_classes: int,
        bits: int,
        *,
        latent: Literal["sigmoid", "tanh"] = "sigmoid",
        generator: torch.Generator | None = None,
    ) -> None:
        check_choice("latent", latent, ("sigmoid", "tanh"))
        super().__init__(num_classes, bits, bias=True, generator=generator)
        self.latent = latent

    def forward(
        self,
        codes: Tensor,
        labels: Tensor,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            codes: ``(B, bits)`` floating-point.
            labels: ``(B,)`` class ids, or ``(B, C)`` with one label in a row at most; rows without a label
                are left out.
            indices: ignored.
            ref_codes: not used by this loss; None.
            ref_labels: not used by this loss; None.

        Returns:
            0-dim, float32 (float64 for float64 codes), whatever autocast does; 0 without any label.

        Raises:
            TypeError: codes that are not floating-point, labels that are not integers or multi-hot.
            ValueError: another number of bits or classes than at construction, several labels in a row,
                reference codes.
        """
        refuse_reference(type(self).__name__, ref_codes, ref_labels)
        weight, bias = self.classifier.weight, self.classifier.bias
        return dlbhc_loss(codes, labels, weight=weight, bias=bias, latent=self.latent)

    def extra_repr(self) -> str:
        return f"latent={self.latent!r}"


class GreedyHashLoss(_ClassifierLoss):
    r"""GreedyHash: a classifier on the signs of the codes, whose gradient passes the sign unchanged.

    .. math::
        L = \frac{1}{B} \sum_i \left[ -\log \mathrm{softmax}(W \mathrm{sign}(u_i))_{y_i}
        + \frac{\alpha}{K} \sum_k \big| |u_{ik}| - 1 \big|^3 \right]

    over the rows that have a label. One label per image: the paper has no rule for several, and rows with
    several are refused.

    The classifier belongs to this loss: give ``loss.parameters()`` to the optimizer too, and under
    ``torch.distributed`` wrap the loss in ``DistributedDataParallel`` like the network.

    Args:
        num_classes: classes C.
        bits: code length.
        alpha: weight of the penalty. The official code takes 0.1 for CIFAR-10 and 1 for ImageNet.
        generator: source of the classifier's first weights.

    Attributes:
        classifier: ``nn.Linear(bits, num_classes, bias=False)``, W.

    Raises:
        ValueError: a size below 1, a negative ``alpha``.

    Source: Su et al., Greedy Hash, NeurIPS 2018, and its official code. Here the sign of exactly 0 is -1, the
    bit that it is stored as; there it is 0. swuxyj/DeepHash-pytorch has the same loss, but drops all labels
    except the first of multi-label images (``labels.argmax(1)`` gives that).

    Example:
        >>> loss = GreedyHashLoss(num_classes=10, bits=48, generator=torch.Generator().manual_seed(0))
        >>> codes = torch.zeros(2, 48, requires_grad=True)
        >>> bool(loss(codes, torch.tensor([3, 5])) > 0), [tuple(p.shape) for p in loss.parameters()]
        (True, [(10, 48)])
    """

    def __init__(
        self, num_classes: int, bits: int, *, alpha: float = 0.1, generator: torch.Generator | None = None
    ) -> None:
        check_not_negative(alpha=alpha)
        super().__init__(num_classes, bits, bias=False, generator=generator)
        self.alpha = alpha

    def forward(
        self,
        codes: Tensor,
        labels: Tensor,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch; arguments, result and errors as :meth:`DLBHCLoss.forward`."""
        refuse_reference(type(self).__name__, ref_codes, ref_labels)
        return greedyhash_loss(codes, labels, weight=self.classifier.weight, alpha=self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}"
