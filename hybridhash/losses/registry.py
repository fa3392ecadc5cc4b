"""Losses by name."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from torch import nn

__all__ = ["create_loss", "list_losses"]


def _classes() -> dict[str, type[nn.Module]]:
    """Every public loss class by its name without "Loss", in lower case."""
    from hybridhash import losses

    found = {name: getattr(losses, name) for name in losses.__all__ if name.endswith("Loss")}
    found = {name: cls for name, cls in found.items() if not inspect.isabstract(cls)}
    return {name.removesuffix("Loss").lower(): found[name] for name in sorted(found, key=str.lower)}


def list_losses() -> list[str]:
    """Names that :func:`create_loss` takes, sorted.

    Example:
        >>> "wml" in list_losses()
        True
    """
    return list(_classes())


def create_loss(name: str, **kwargs: Any) -> nn.Module:
    """A loss by name, so that a training loop can compare methods by changing one word.

    Every class has ``requires``, a set of what a loop must provide: ``"bank"`` or ``"indices"`` (row numbers
    of the data set in each call), ``"parameters"`` (the loss has parameters for the optimizer),
    ``"epoch_hook"`` (``epoch_end`` is to be called after each epoch).

    Args:
        name: one of :func:`list_losses`; upper case, ``-`` and ``_`` do not matter.
        **kwargs: arguments of the class; unknown ones are refused.

    Returns:
        The module; called as ``loss(codes, labels, *, indices=None, ref_codes=None, ref_labels=None)``.

    Raises:
        TypeError: an argument that the class does not take, or a missing one.
        ValueError: no loss of that name, or settings that the class refuses.

    Example:
        >>> create_loss("wml", alpha=0.2).alpha
        0.2
    """
    classes = _classes()
    key = name.lower().replace("-", "").replace("_", "")
    if key not in classes:
        near = difflib.get_close_matches(key, classes, n=3) or list(classes)
        raise ValueError(f"no loss is called {name!r}; nearest: {', '.join(near)} (all: list_losses())")
    parameters = inspect.signature(classes[key]).parameters
    for argument in kwargs:
        if argument not in parameters:
            raise TypeError(
                f"{classes[key].__name__} takes no argument {argument!r}, only {', '.join(parameters)}"
            )
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in kwargs]
    if missing:
        raise TypeError(f"{classes[key].__name__} needs {', '.join(missing)}")
    return classes[key](**kwargs)
