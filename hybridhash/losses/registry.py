"""Losses by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybridhash._checks import check_flags
from hybridhash._code_checks import check_lengths
from hybridhash.labels import as_labels, count_classes
from hybridhash.losses.bank import CodeBank, CodeMemory
from hybridhash.losses.centers import hash_centers
from hybridhash.losses.cnnh import cnnh_codes
from hybridhash.losses.nested import NestedLoss

__all__ = ["create_loss", "create_loss_for", "list_losses"]


def _classes() -> dict[str, type[nn.Module]]:
    """Return every public loss class by its name without "Loss", in lower case.

    NestedLoss is no method, but made of the losses of methods.
    """
    from hybridhash import losses

    names = (name for name in losses.__all__ if name.endswith("Loss") and name != "NestedLoss")
    found = {name: getattr(losses, name) for name in names}
    found = {name: cls for name, cls in found.items() if not inspect.isabstract(cls)}
    return {name.removesuffix("Loss").lower(): found[name] for name in sorted(found, key=str.lower)}


def list_losses() -> list[str]:
    """Return the names that :func:`create_loss` takes, sorted.

    Example:
        >>> "wml" in list_losses()
        True
    """
    return list(_classes())


def create_loss(name: str, **kwargs: Any) -> nn.Module:
    """Create a loss by name, so that a training loop can compare methods by changing one word.

    Every class has ``requires``, a set of what a loop must provide: ``"bank"`` or ``"indices"`` (row numbers
    of the data set in each call), ``"parameters"`` (the loss has parameters for the optimizer),
    ``"epoch_hook"`` (``epoch_end`` is to be called after each epoch).

    Args:
        name: One of :func:`list_losses`; upper case, ``-`` and ``_`` do not matter.
        **kwargs: Arguments of the class; unknown ones are refused.

    Returns:
        The module; called as ``loss(codes, labels, *, indices=None, ref_codes=None, ref_labels=None)``.

    Raises:
        TypeError: An argument that the class does not take, or a missing one.
        ValueError: No loss of that name, or settings that the class refuses.

    Example:
        >>> create_loss("wml", alpha=0.2).alpha
        0.2
    """
    loss_class = _class_of(name)
    parameters = inspect.signature(loss_class).parameters
    for argument in kwargs:
        if argument not in parameters:
            raise TypeError(
                f"{loss_class.__name__} takes no argument {argument!r}, only {', '.join(parameters)}"
            )
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in kwargs]
    if missing:
        raise TypeError(f"{loss_class.__name__} needs {', '.join(missing)}")
    return loss_class(**kwargs)


def _class_of(name: str) -> type[nn.Module]:
    classes = _classes()
    if not isinstance(name, str):
        raise TypeError(f"name must be a str such as 'wml', got {type(name).__name__}")
    key = name.lower().replace("-", "").replace("_", "")
    if key not in classes:
        near = difflib.get_close_matches(key, classes, n=3)
        advice = f"nearest: {', '.join(near)} (all: list_losses())" if near else f"use {', '.join(classes)}"
        raise ValueError(f"no loss is called {name!r}; {advice}")
    return classes[key]


def create_loss_for(
    name: str,
    labels: Tensor,
    bits: int,
    *,
    lengths: Sequence[int] | None = None,
    num_classes: int | None = None,
    model: nn.Module | None = None,
    bank: CodeMemory | bool = False,
    count_unseen: bool = False,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Create a loss, filling in the arguments that follow from the data set and model.

    Each class gets those of the following that it takes: ``num_classes``, ``bits``, ``database_labels``,
    ``target_codes`` (made by :func:`cnnh_codes`), ``layers`` (the model's last one), ``generator`` and
    ``bank``. Two classes also get settings that fit the models of this package, which end in tanh:
    :class:`DLBHCLoss` ``latent="tanh"``, and :class:`DTSHLoss` ``margin=5``, ``scale=1`` and
    ``quantization=1 / bits``, with which bounded and unbounded codes train. The margin of the paper,
    ``bits / 2``, is for unbounded codes, and trains them more slowly.

    Args:
        name: One of :func:`list_losses`.
        labels: ``(N,)`` class ids or ``(N, C)`` multi-hot, of the whole training set.
        bits: The code length.
        lengths: Code lengths that one network is to be good at, ascending; the last is ``bits``. One loss is
            made for each of them, and returned as a :class:`NestedLoss`. Centers and target codes of a length
            are the first bits of those of the longest; ``centers`` is "nested" unless given.
        num_classes: The number of classes. None takes the number of columns, or one more than the largest id.
        model: The network, for losses that regularise its last layer.
        bank: True compares with a :class:`CodeBank` of the whole training set instead of the batch. A
            bank of your own works too, and so does a :class:`CodeQueue`.
        count_unseen: Whether the bank made here counts rows that were never visited.
        generator: The source of the random choices.
        **kwargs: Other arguments of the class; they win over those above.

    Returns:
        The loss module, as from :func:`create_loss`.

    Raises:
        TypeError: An argument that the class does not take.
        ValueError: No loss of that name, a bank for a loss that has none, lengths that do not ascend to
            ``bits``, or a bank of your own for several lengths.

    Example:
        >>> create_loss_for("csq", torch.tensor([0, 1, 2]), bits=16).centers.shape
        torch.Size([3, 16])
        >>> create_loss_for("wml", torch.tensor([0, 1, 2]), bits=16, bank=True).bank.num_samples
        3
        >>> create_loss_for("csq", torch.tensor([0, 1, 2]), bits=16, lengths=(8, 16)).lengths
        (8, 16)
    """
    labels = as_labels(labels)
    loss_class = _class_of(name)
    if not isinstance(bank, CodeMemory):
        check_flags(bank=bank)
    takes = inspect.signature(loss_class).parameters
    if bank and "bank" not in takes:
        with_bank = [k for k, c in _classes().items() if "bank" in inspect.signature(c).parameters]
        raise ValueError(f"{loss_class.__name__} has no bank; those with one: {', '.join(with_bank)}")
    if num_classes is None:
        num_classes = count_classes(labels)
    if lengths is not None:
        shared: dict[str, Any] = {
            "num_classes": num_classes,
            "model": model,
            "bank": bank,
            "count_unseen": count_unseen,
            "generator": generator,
        }
        return _nested(name, labels, bits, lengths, takes, shared, kwargs)
    known: dict[str, Any] = {
        "num_classes": num_classes,
        "bits": bits,
        "database_labels": labels,
        "latent": "tanh",
        "generator": generator,
    }
    if loss_class.__name__ == "DTSHLoss":
        known.update(margin=5.0, scale=1.0, quantization=1 / bits)
    if "target_codes" in takes and "target_codes" not in kwargs:
        known["target_codes"] = cnnh_codes(labels, bits, generator)
    get_classifier: Any = getattr(model, "get_classifier", None)
    if "layers" in takes and get_classifier is not None:
        known["layers"] = get_classifier()
    if isinstance(bank, CodeMemory):
        known["bank"] = bank
    elif bank:
        # Class ids compare faster, but these two fit a classifier to one-hot rows.
        one_hot = labels.ndim == 2 or loss_class.__name__ in ("DFHLoss", "DSDHLoss")
        columns = num_classes if one_hot else None
        known["bank"] = CodeBank(len(labels), bits, columns, count_unseen=count_unseen)
    given = {key: value for key, value in known.items() if key in takes}
    return create_loss(name, **{**given, **kwargs})


def _nested(
    name: str,
    labels: Tensor,
    bits: int,
    lengths: Sequence[int],
    takes: Mapping[str, inspect.Parameter],
    shared: dict[str, Any],
    kwargs: dict[str, Any],
) -> NestedLoss:
    """Return a NestedLoss of one loss for each length, whose targets are prefixes of those of all bits."""
    lengths = check_lengths(lengths, bits)
    if isinstance(shared["bank"], CodeBank):
        raise ValueError("a bank of your own is of one length: bank=True makes one for each")
    generator = shared["generator"]
    targets: dict[str, Tensor] = {}
    if "centers" in takes:
        centers = kwargs.get("centers", "nested")
        if not isinstance(centers, Tensor):
            centers = hash_centers(shared["num_classes"], bits, centers, generator)
        targets["centers"] = centers
    if "target_codes" in takes:
        given = kwargs.get("target_codes")
        targets["target_codes"] = cnnh_codes(labels, bits, generator) if given is None else given
    for key, target in targets.items():
        if target.ndim != 2 or target.shape[1] != bits:
            raise ValueError(f"{key} must have {bits} bits, got shape {tuple(target.shape)}")
    losses = {}
    for length in lengths:
        cut = {key: target[:, :length] for key, target in targets.items()}
        losses[length] = create_loss_for(name, labels, length, **shared, **{**kwargs, **cut})
    # Bits on which the centers of several labels are undecided take one side, whatever the length.
    for length, loss in losses.items():
        if "tie_bits" in dict(loss.named_buffers()):
            loss.get_buffer("tie_bits").copy_(losses[bits].get_buffer("tie_bits")[:length])
    return NestedLoss(losses)
