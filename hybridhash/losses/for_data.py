"""A loss by name with all that its class asks for, taken from the data set and the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hybridhash.labels import as_labels
from hybridhash.losses.bank import CodeBank
from hybridhash.losses.registry import _classes, create_loss
from hybridhash.losses.two_stage import cnnh_codes

__all__ = ["create_loss_for"]


def create_loss_for(
    name: str,
    labels: Tensor,
    bits: int,
    *,
    num_classes: int | None = None,
    model: nn.Module | None = None,
    bank: CodeBank | bool = False,
    count_unseen: bool = False,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A loss by name for a training set, so that methods can be compared by changing one word.

    Of ``num_classes``, ``bits``, ``database_labels``, ``target_codes`` (made by ``cnnh_codes``), ``layers``
    (the model's last one), ``generator`` and ``bank`` the class gets what it takes. ``latent`` of
    :class:`DLBHCLoss` is ``"tanh"``, which the models of this package end in.

    Args:
        name: one of :func:`list_losses`.
        labels: of the whole training set, ``(N,)`` class ids or ``(N, C)`` multi-hot.
        bits: code length.
        num_classes: number of classes; None takes the columns, or one more than the largest id.
        model: the network, for losses that weigh its last layer.
        bank: True compares with a :class:`CodeBank` of the whole training set instead of the batch; or a
            bank of your own.
        count_unseen: whether the bank made here counts rows never visited.
        generator: of the random choices.
        **kwargs: other arguments of the class; they win over those above.

    Returns:
        The module, as from :func:`create_loss`.

    Raises:
        TypeError: an argument that the class does not take.
        ValueError: no loss of that name, or a bank for a loss that has none.

    Example:
        >>> create_loss_for("csq", torch.tensor([0, 1, 2]), bits=16).centers.shape
        torch.Size([3, 16])
        >>> create_loss_for("wml", torch.tensor([0, 1, 2]), bits=16, bank=True).bank.num_samples
        3
    """
    labels = as_labels(labels)
    classes = _classes()
    key = name.lower().replace("-", "").replace("_", "")
    if key not in classes:
        create_loss(name)
    takes = inspect.signature(classes[key]).parameters
    if bank and "bank" not in takes:
        with_bank = [k for k, c in classes.items() if "bank" in inspect.signature(c).parameters]
        raise ValueError(f"{classes[key].__name__} has no bank; those with one: {', '.join(with_bank)}")
    if num_classes is None:
        num_classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    # Class ids compare faster; these fit a classifier to one-hot rows.
    columns = num_classes if labels.ndim == 2 or key in ("dfh", "dsdh") else None
    known: dict[str, Callable[[], Any]] = {
        "num_classes": lambda: num_classes,
        "bits": lambda: bits,
        "database_labels": lambda: labels,
        "target_codes": lambda: cnnh_codes(labels, bits, generator),
        "latent": lambda: "tanh",
        "generator": lambda: generator,
    }
    if model is not None:
        known["layers"] = getattr(model, "get_classifier", lambda: None)
    if isinstance(bank, CodeBank):
        known["bank"] = lambda: bank
    elif bank:
        known["bank"] = lambda: CodeBank(len(labels), bits, columns, count_unseen=count_unseen)
    given = {key: make() for key, make in known.items() if key in takes and key not in kwargs}
    return create_loss(name, **given, **kwargs)
