"""Labels of images: what "similar" means, everywhere in the package.

Two forms are accepted wherever labels are: class ids ``(N,)`` and multi-hot rows ``(N, C)``. Two items are
similar (relevant to each other) if they share at least one label; an item without any label (id -1, or a row
of zeros) is similar to nothing, itself included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridhash._code_checks import from_numpy

__all__ = [
    "as_labels",
    "class_ids",
    "count_classes",
    "labelled",
    "most_labels",
    "same_form",
    "shared_labels",
    "similar",
    "to_multi_hot",
]


def as_labels(
    labels: Tensor | np.ndarray[Any, Any], *, length: int | None = None, name: str = "labels"
) -> Tensor:
    """Check labels and bring them into one of the two canonical forms.

    Args:
        labels: Class ids, integers ``(N,)`` with values >= 0 or -1 for "no label"; or multi-hot rows
            ``(N, C)`` of any dtype with values 0 and 1. A tensor or a NumPy array. One column, ``(N, 1)``,
            must be bool: as numbers it could as well hold class ids.
        length: The required number of rows ``N``. None accepts any.
        name: The name of the argument in error messages.

    Returns:
        int64 ``(N,)`` or bool ``(N, C)``, on the device of ``labels``; never the caller's tensor written to.

    Raises:
        TypeError: Labels are not a tensor, or class ids are not integers.
        ValueError: The number of dimensions or rows is wrong, there is no class column, or one of numbers, an
            id is below -1, or an entry is neither 0 nor 1. Values are not checked under ``torch.compile``,
            where that would copy them to the host in every step.

    Example:
        >>> as_labels(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([[ True, False],
                [False,  True]])
    """
    if isinstance(labels, np.ndarray):
        labels = from_numpy(labels, name)
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(labels).__name__}: wrap it in torch.as_tensor")
    if labels.ndim not in (1, 2):
        raise ValueError(
            f"{name} must be class ids (N,) or multi-hot rows (N, C), got shape {tuple(labels.shape)}"
        )
    if labels.device.type == "meta":
        raise ValueError(f"{name} are on the meta device, where they have no values")
    if length is not None and labels.shape[0] != length:
        raise ValueError(f"{name} has {labels.shape[0]} rows, expected {length}: one row for each code")
    if labels.ndim == 1:
        if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
            raise TypeError(
                f"{name} of shape (N,) are class ids and must be integers, got {labels.dtype}: "
                "use labels.long(), or give multi-hot rows (N, C)"
            )
        ids = labels.to(torch.int64)
        if not torch.compiler.is_compiling() and ids.numel() and int(ids.min()) < -1:
            raise ValueError(f"{name} must be class ids >= 0 (or -1 for no label), got {int(ids.min())}")
        return ids
    if labels.shape[1] == 0:
        raise ValueError(f"{name} has no class column, got shape {tuple(labels.shape)}")
    if labels.dtype == torch.bool:
        return labels
    if labels.dtype.is_complex:
        raise TypeError(f"{name} of shape (N, C) are multi-hot (0 or 1), got {labels.dtype}: use labels.real")
    if labels.shape[1] == 1:
        raise ValueError(
            f"{name} of shape (N, 1) may be class ids or one class of multi-hot rows: give labels[:, 0] for "
            "class ids, or labels.bool() for one class"
        )
    hot = labels != 0
    if torch.compiler.is_compiling():
        return hot
    if not torch.equal(hot.to(labels.dtype), labels):
        bad_value = labels[hot.to(labels.dtype) != labels][0].item()
        raise ValueError(f"{name} of shape (N, C) must be multi-hot (0 or 1), got the entry {bad_value}")
    return hot


def shared_labels(query_labels: Tensor, database_labels: Tensor) -> Tensor:
    """Count the labels that each query shares with each database item.

    Args:
        query_labels: Class ids ``(Nq,)`` or multi-hot ``(Nq, C)``, as :func:`as_labels` returns them.
        database_labels: Labels of ``Nd`` items in either form.

    Returns:
        float32 ``(Nq, Nd)``, whole numbers 0..C (0 or 1 if both sides are class ids).

    Raises:
        ValueError: The sides have different numbers of classes, or an id is beyond the other side's columns.

    Example:
        >>> query = torch.tensor([[True, True, False]])
        >>> shared_labels(query, torch.tensor([[True, True, True], [False, False, False]]))
        tensor([[2., 0.]])
    """
    if query_labels.ndim == 1 and database_labels.ndim == 1:
        # -2 equals no id: an item without a label (-1) shares none with another one.
        query_labels = query_labels.masked_fill(query_labels < 0, -2)
        return (query_labels[:, None] == database_labels).float()
    classes = (query_labels if query_labels.ndim == 2 else database_labels).shape[1]
    query, database = to_multi_hot(query_labels, classes), to_multi_hot(database_labels, classes)
    return query.float() @ database.float().T


def similar(query_labels: Tensor, database_labels: Tensor) -> Tensor:
    """Tell which pairs share at least one label: bool ``(Nq, Nd)``; arguments as :func:`shared_labels`.

    Example:
        >>> similar(torch.tensor([0, 1, -1]), torch.tensor([0, 1, -1]))
        tensor([[ True, False, False],
                [False,  True, False],
                [False, False, False]])
    """
    return shared_labels(query_labels, database_labels) > 0


def to_multi_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Convert labels of either canonical form to multi-hot rows.

    Args:
        labels: int64 ``(N,)`` or bool ``(N, C)``, as :func:`as_labels` returns them.
        num_classes: The number of columns ``C``.

    Returns:
        bool ``(N, num_classes)``; a row of zeros where the id is -1. Rows that are multi-hot already are not
        copied.

    Raises:
        ValueError: Multi-hot rows have another number of classes, or an id is too large.

    Example:
        >>> to_multi_hot(torch.tensor([1, -1]), 3)
        tensor([[False,  True, False],
                [False, False, False]])
    """
    if labels.ndim == 2:
        if labels.shape[1] != num_classes:
            raise ValueError(f"labels of {labels.shape[1]} and of {num_classes} classes cannot be compared")
        return labels
    if not torch.compiler.is_compiling() and labels.numel() and int(labels.max()) >= num_classes:
        raise ValueError(f"class id {int(labels.max())} does not fit labels of {num_classes} classes")
    return labels[:, None] == torch.arange(num_classes, device=labels.device)


def labelled(labels: Tensor) -> Tensor:
    """Tell which rows have a label: bool ``(N,)``; ``labels`` as :func:`as_labels` returns them.

    Example:
        >>> labelled(torch.tensor([3, -1])), labelled(torch.tensor([[True, False], [False, False]]))
        (tensor([ True, False]), tensor([ True, False]))
    """
    return labels >= 0 if labels.ndim == 1 else labels.any(1)


def class_ids(labels: Tensor) -> Tensor:
    """Return the first label of each row as a class id, -1 where there is none: int64 ``(N,)``.

    Args:
        labels: int64 ``(N,)`` or bool ``(N, C)``, as :func:`as_labels` returns them.

    Example:
        >>> class_ids(torch.tensor([[False, True, True], [False, False, False]]))
        tensor([ 1, -1])
    """
    if labels.ndim == 1:
        return labels
    # argmax of bools is not defined; of bytes it gives the first of the largest, and a view copies nothing.
    return torch.where(labels.any(1), labels.view(torch.uint8).argmax(1), -1)


def count_classes(labels: Tensor) -> int:
    """Return the number of columns of multi-hot labels, or the largest class id plus one.

    Args:
        labels: int64 ``(N,)`` or bool ``(N, C)``, as :func:`as_labels` returns them.

    Example:
        >>> count_classes(torch.tensor([0, 4, -1]))
        5
    """
    if labels.ndim == 2:
        return labels.shape[1]
    return int(labels.max()) + 1 if labels.numel() else 0


def same_form(query_labels: Tensor, database_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Bring both sides into the same form: class ids if no row has two labels, else multi-hot.

    Args:
        query_labels: ``(Nq,)`` class ids or ``(Nq, C)`` multi-hot, as :func:`as_labels` returns them.
        database_labels: ``(Nd,)`` or ``(Nd, C)``; may be of the other form than ``query_labels``.

    Raises:
        ValueError: the two sides have different numbers of classes, or an id beyond the other side's columns.

    Example:
        >>> same_form(torch.tensor([1, 0]), torch.tensor([[True, False], [False, False]]))
        (tensor([1, 0]), tensor([ 0, -1]))
    """
    if query_labels.ndim == 1 and database_labels.ndim == 1:
        return query_labels, database_labels
    widths = {labels.shape[1] for labels in (query_labels, database_labels) if labels.ndim == 2}
    if len(widths) > 1:
        raise ValueError(
            f"query_labels have {query_labels.shape[1]} classes but database_labels have "
            f"{database_labels.shape[1]}: both need the same columns"
        )
    for labels, name in ((query_labels, "query_labels"), (database_labels, "database_labels")):
        if labels.ndim == 1 and int(labels.max()) >= min(widths):
            raise ValueError(
                f"{name} hold class id {int(labels.max())}, but the other side has only {min(widths)} classes"
            )
    if all(labels.ndim == 1 or most_labels(labels) <= 1 for labels in (query_labels, database_labels)):
        return class_ids(query_labels), class_ids(database_labels)
    classes = min(widths)
    return to_multi_hot(query_labels, classes), to_multi_hot(database_labels, classes)


def most_labels(labels: Tensor) -> int:
    """Return the largest number of labels of a row of bool ``(N, C)``."""
    # In parts, because the sum copies them to int64.
    parts = torch.split(labels, max(1, (1 << 20) // labels.shape[1]))
    return max(int(part.sum(1).max()) for part in parts)
